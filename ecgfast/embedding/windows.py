"""Which windows stand for which recordings, and how what is told of windows becomes one of recordings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.leads import lead_indices


class Windows(NamedTuple):
    """The windows of n units, such as recordings, unit after unit; int64 [w] each.

    Attributes:
        unit: 0 to n - 1, ascending.
        recording: Number of the recording in the store.
        start: First sample.
        length: Samples.
    """

    unit: np.ndarray
    recording: np.ndarray
    start: np.ndarray
    length: np.ndarray


def cover_recordings(store: Store, recordings: np.ndarray, segment_samples: int, shortest: int) -> Windows:
    """Windows side by side that cover recordings, the units.

    A last window of fewer samples than half a segment is left out unless it is the only one, as
    `Classifier.predict` does.

    Args:
        store: The store.
        recordings: Their numbers, int64 [n].
        segment_samples: Samples of a window.
        shortest: Samples of the shortest window that there may be: those of a token.

    Raises:
        EcgfastError: a recording that the store has not, or one shorter than a token.
    """
    recordings = np.asarray(recordings, dtype=np.int64)
    if recordings.ndim != 1 or not recordings.size:
        raise EcgfastError(f"recordings: must be one or more, got {list(recordings.shape)}")
    if recordings.min() < 0 or recordings.max() >= len(store):
        raise EcgfastError(f"recordings: must be 0 to {len(store) - 1}, as many as {store.path} has")
    samples = store.n_samples[recordings]
    if samples.min() < shortest:
        record = store.index["record_id"][int(recordings[np.argmin(samples)])].as_py()
        raise EcgfastError(f"recordings: must have {shortest} samples, got {samples.min()} of {record}")
    last = max(shortest, segment_samples // 2)
    whole, rest = np.divmod(samples, segment_samples)
    counts = np.maximum(whole + (rest >= last), 1)
    unit = np.repeat(np.arange(len(recordings)), counts)
    number = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * segment_samples
    return Windows(unit, recordings[unit], start, np.minimum(samples[unit] - start, segment_samples))


def mean_over_units(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Mean over the windows of each unit, summed in their order: [w, ...] -> float64 [n, ...]."""
    first = np.flatnonzero(np.diff(unit, prepend=-1))
    counts = np.diff(first, append=len(unit))
    if len(first) == len(unit):
        return values.astype(np.float64)
    total = np.add.reduceat(values, first, axis=0, dtype=np.float64)
    return total / counts.reshape(-1, *[1] * (values.ndim - 1))


def check_lead_names(leads: Sequence[str] | None, own: Sequence[str]) -> tuple[str, ...]:
    """A model's own names of the leads asked for, in its order; None: all.

    Raises:
        EcgfastError: an unknown lead, one named twice, or one that the model does not take.
    """
    known = lead_indices(own)
    asked = known if leads is None else lead_indices(leads)
    for name, lead in zip(leads or (), asked, strict=False):
        if lead not in known:
            raise EcgfastError(f"leads: must be of the model's, {', '.join(own)}, got {name!r}")
    return tuple(name for name, lead in zip(own, known, strict=True) if lead in asked)


def with_a_lead(store: Store, leads: Sequence[str]) -> np.ndarray:
    """Which recordings have one of some leads at least: bool [n]."""
    return store.present_leads()[:, list(lead_indices(leads))].any(axis=1)
