"""What a loader hands out."""

from typing import NamedTuple

import torch

DTYPES = {"int16": torch.int16, "float32": torch.float32}
"""What a batch's signal can be: microvolts as stored, or millivolts."""


class Batch(NamedTuple):
    """B segments of T samples; which of them belong together, the plan says.

    Attributes:
        signal: [B, L, T], absent leads zero: int16 microvolts or float32 millivolts.
        sample_ids: int64 [B], unique in an epoch, the same whatever the batch size and the number of ranks:
            counter-based draws take them.
        patients: int64 [B], the patient's number.
        leads: bool [B, L], the leads present.
        recording: int64 [B], the recording's number in the store, to look up what else is known of it.
        lengths: int64 [B], samples of each row, zeros after them; None for a plan whose segments all have T.
    """

    signal: torch.Tensor
    sample_ids: torch.Tensor
    patients: torch.Tensor
    leads: torch.Tensor
    recording: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
