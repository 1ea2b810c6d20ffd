"""The official way from disk to a batch, as fairseq-signals feeds its training, written again.

One `.mat` file per segment of 5 s, holding float64 millivolts and what is known of the patient; every
item of every epoch is one `scipy.io.loadmat`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from torch import Tensor
from torch.utils.data import Dataset

_RATE = 500
_N_LABELS = 26


def write_segments(folder: Path, recordings: Iterable[np.ndarray], samples: int) -> list[Path]:
    """Cut recordings (int16 microvolts [12, n]) to segments, one file each; returns the files in order."""
    files = []
    for patient, signal in enumerate(recordings):
        millivolts = signal / 1000.0
        for i in range(signal.shape[1] // samples):
            content = {
                "age": 60,
                "sex": 0,
                "label": np.zeros(_N_LABELS, dtype=bool),
                "patient_id": patient,
                "curr_sample_rate": _RATE,
                "feats": millivolts[:, i * samples : (i + 1) * samples],
            }
            files.append(folder / f"{patient:06d}_{i}.mat")
            scipy.io.savemat(files[-1], content)
    return files


class SegmentFiles(Dataset):
    """An item per file: float32 millivolts [12, T] and the patient."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = [str(file) for file in files]
        self.leads = list(range(12))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        content = scipy.io.loadmat(self.files[index])
        if content["curr_sample_rate"] != _RATE:
            raise ValueError(f"{self.files[index]}: another sample rate than {_RATE}")
        signal = torch.from_numpy(content["feats"]).float()[self.leads]
        return {"id": index, "source": signal, "patient": int(content["patient_id"].item())}


def collate(items: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """Signals [B, 12, T], numbers [B] and patients [B] of a batch, copied one item at a time."""
    first = items[0]["source"]
    signal = first.new_zeros((len(items), *first.shape))
    for i, item in enumerate(items):
        signal[i] = item["source"]
    ids = torch.tensor([item["id"] for item in items])
    return signal, ids, torch.tensor([item["patient"] for item in items])
