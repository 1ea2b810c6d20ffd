"""Batches cropped on the device out of a store that is kept in its memory."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecgfast.data.batches.batch import DTYPES, Batch
from ecgfast.data.batches.loader import Loader
from ecgfast.data.batches.plans import Plan
from ecgfast.data.store.store import Store
from ecgfast.errors import EcgfastError
from ecgfast.ops import gather_segments
from ecgfast.units import MILLIVOLTS_PER_UNIT

_CHUNK = 2**25  # elements (64 MiB) copied to a device at once


class ResidentLoader(Loader):
    """Keeps the store's int16 signals in a device's memory and crops every batch there.

    Gives the batches of `SegmentLoader` bit for bit, on `device`. What a whole epoch needs to know
    about its segments is put there before its first batch, so that a batch costs the host nothing
    but starting the crop; nothing waits for the device. Every rank keeps the whole store.

    Args:
        plan: Which segments of which store make which batch; the store's files are not looked at again.
        device: Where the signals are kept: 24 bytes per sample of 12 leads.
        options: Those of `Loader`: the dtype and the leads of the segments.

    Raises:
        EcgfastError: an argument out of range, no such device, or one with too little free memory; a file of
            the store was replaced since it was opened.
    """

    def __init__(self, plan: Plan, *, device: str | torch.device = "cuda", **options: Any) -> None:
        super().__init__(plan, **options)
        self.device = _find_device(device)
        store = plan.store
        self._signals = _load(store, self.device)
        first = np.cumsum([0, *(shard.size for shard in store.shards)], dtype=np.int64)
        self._offset = first[store.index["shard"].to_numpy()] + store.index["offset"].to_numpy()
        self._chosen = torch.from_numpy(self._lead_index).to(self.device)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        plan, segments = self.plan, self.plan.segments(epoch)
        recording = segments.recording
        columns = (
            self._offset[recording],
            segments.start,
            plan.store.n_samples[recording],
            segments.length,
            segments.sample_id,
            self._patients[recording],
            self._present[recording],
            recording,
        )
        on_device = [torch.from_numpy(column).to(self.device) for column in columns]
        for i in range(start, len(plan)):
            rows = plan.rows(i)
            *place, length, sample_ids, patients, leads, owner = (column[rows] for column in on_device)
            whole = plan.whole or bool((segments.length[rows] == plan.segment_samples).all())
            signal = self._crop(*place, None if whole else length)
            yield Batch(signal, sample_ids, patients, leads, owner, None if plan.whole else length)

    def _crop(self, offset: Tensor, start: Tensor, n_samples: Tensor, length: Tensor | None) -> Tensor:
        """The segments at these places, zeros after `length` samples where they are shorter than T."""
        samples, dtype = self.plan.segment_samples, DTYPES[self.dtype]
        if length is None:
            return gather_segments(
                self._signals, offset, start, n_samples, samples, lead_index=self._chosen, dtype=dtype
            )
        at = torch.arange(samples, device=self.device)
        within = (at < length[:, None])[:, None]
        first = (offset + start)[:, None] + self._chosen * n_samples[:, None]
        index = torch.where(within, first[:, :, None] + at, first[:, :, None])
        signal = self._signals[index] * within
        return signal if dtype == torch.int16 else signal.to(dtype) * MILLIVOLTS_PER_UNIT


def _find_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise EcgfastError(f"device: got {str(name)!r}, want cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EcgfastError(f"device: got {str(name)!r}, {torch.cuda.device_count()} CUDA devices found")
    return device


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            available = next(line for line in file if line.startswith("MemAvailable:"))
        return 1024 * int(available.split()[1])
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load(store: Store, device: torch.device) -> Tensor:
    """All shards one after another in the device's memory: int16 [n]."""
    n = sum(shard.size for shard in store.shards)
    free = _free_bytes(device)
    if 2 * n > free:
        raise EcgfastError(
            f"store: {store.path} takes {2 * n:,} bytes of memory on {device}, {free:,} are free; "
            "SegmentLoader reads it from the disk"
        )
    store.check_unchanged()
    signals = torch.empty(n, dtype=torch.int16, device=device)
    staging = torch.empty(min(n, _CHUNK), dtype=torch.int16, pin_memory=device.type == "cuda")
    end = 0
    for shard in store.shards:
        for part in np.array_split(shard, range(_CHUNK, shard.size, _CHUNK)):
            staging.numpy()[: part.size] = part
            signals[end : end + part.size].copy_(staging[: part.size])
            end += part.size
    store.check_unchanged()
    return signals
