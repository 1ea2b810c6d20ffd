"""A plan of segments that are listed one by one."""

import hashlib
from typing import Any

import numpy as np

from ecgfast.data.batches.plans import Plan, Segments
from ecgfast.data.store.store import Store
from ecgfast.errors import EcgfastError


class ListedSegments(Plan):
    """Any segments of a store, in the order in which they are listed; every epoch is the same.

    Args:
        store: The store.
        batch_size: P, segments per batch.
        recording: Numbers of the recordings, int64 [n]; one may be there several times.
        start: First sample of each segment.
        length: Samples of each, 1 to T.
        segment_samples: T, samples per row of a batch; shorter segments are followed by zeros.

    Raises:
        EcgfastError: no segment, arrays of different lengths, or a segment that is not in its recording or
            longer than T.
    """

    unit = "segments"

    def __init__(
        self,
        store: Store,
        batch_size: int,
        recording: np.ndarray,
        start: np.ndarray,
        length: np.ndarray,
        *,
        segment_samples: int,
    ) -> None:
        super().__init__(store, batch_size, segment_samples=segment_samples, rank=0, world_size=1)
        columns = [np.asarray(column, dtype=np.int64) for column in (recording, start, length)]
        recording, start, length = columns
        if recording.ndim != 1 or not recording.size or not recording.shape == start.shape == length.shape:
            shapes = ", ".join(str(list(column.shape)) for column in columns)
            raise EcgfastError(f"segments: must be one or more, alike in all columns, got {shapes}")
        if recording.min() < 0 or recording.max() >= len(store):
            raise EcgfastError(f"segments: must be of recordings 0 to {len(store) - 1}")
        end = store.n_samples[recording]
        bad = (start < 0) | (length < 1) | (length > segment_samples) | (start + length > end)
        if bad.any():
            i = int(np.argmax(bad))
            raise EcgfastError(
                f"segments: must be 1 to {segment_samples} samples in their recording, got "
                f"{length[i]} from {start[i]} of recording {recording[i]}, which has {end[i]}"
            )
        self._segments = Segments(recording, start, length, np.arange(len(recording)))
        self.whole = bool((length == segment_samples).all())
        self.n_units = len(recording)

    def segments(self, epoch: int) -> Segments:
        return self._segments

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(b"".join(column.astype("<i8").tobytes() for column in self._segments[:3]))
        sizes = {"batch_segments": self.batch_size, "segment_samples": self.segment_samples}
        return {"plan": type(self).__name__, "segments": digest.hexdigest()} | sizes

    def _last_part(self, rest: int) -> tuple[int, int]:
        return 0, rest
