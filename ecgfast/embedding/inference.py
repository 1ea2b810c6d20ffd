"""An encoder as it is run where nothing is learnt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ecgfast.nn import Encoder


class Inference:
    """Runs an encoder without gradients.

    Args:
        encoder: In evaluation mode, where it is to run.
        precision: "fp32", or "bf16" where autocast allows it.
    """

    def __init__(self, encoder: Encoder, precision: str) -> None:
        self._encoder = encoder
        self._bf16 = precision == "bf16"

    @torch.inference_mode()
    def __call__(
        self, signal: Tensor, leads: Sequence[str], lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens, float32 [B, N, E], and which of them are padding (None: none), of `Encoder.forward`."""
        with torch.autocast(signal.device.type, torch.bfloat16, enabled=self._bf16):
            output = self._encoder(signal, leads, lengths=lengths)
        return output.tokens.float(), output.padding
