"""Which segments of a store make which batch: plans, which know nothing of how the signals get there."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ecgfast.data.store.store import Store
from ecgfast.errors import EcgfastError


class Segments(NamedTuple):
    """A rank's segments of an epoch, batch after batch; int64 [n] each.

    Attributes:
        recording: Number of the recording in the store.
        start: First sample.
        length: Samples, at most T.
        sample_id: See `Batch.sample_ids`.
    """

    recording: np.ndarray
    start: np.ndarray
    length: np.ndarray
    sample_id: np.ndarray


class Plan(ABC):
    """Which segments of a store make which batch; a loader fetches what it names.

    A batch is made of units, such as pairs of segments, of one row or two each. What it holds depends on the
    plan's arguments, the epoch and its number alone, so that a loader can begin anywhere. Rank r of W takes
    every batch's r-th part of W * P units: ranks never overlap.

    Attributes:
        store: The store.
        batch_size: P, units per batch on this rank.
        n_units: Units in an epoch, over all ranks, before any are left out.
        segment_samples: T, samples per row of a batch.
        rank: This process's number, from 0.
        world_size: Number of processes, W.
        whole: Whether every segment has T samples.
    """

    unit: ClassVar[str]
    """What a unit is called, in the plural."""

    rows_per_unit: ClassVar[int] = 1

    def __init__(
        self, store: Store, batch_size: int, *, segment_samples: int, rank: int, world_size: int
    ) -> None:
        sizes = {"batch_size": batch_size, "segment_samples": segment_samples, "world_size": world_size}
        for name, value in sizes.items():
            if value < 1:
                raise EcgfastError(f"{name}: got {value}, want 1 or more")
        if not 0 <= rank < world_size:
            raise EcgfastError(f"rank: got {rank}, want 0 to {world_size - 1}")
        self.store = store
        self.batch_size = batch_size
        self.segment_samples = segment_samples
        self.rank = rank
        self.world_size = world_size
        self.n_units = 0
        self.whole = True

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        whole, rest = divmod(self.n_units, self.batch_size * self.world_size)
        first, end = self._last_part(rest)
        return whole + (end > first)

    @abstractmethod
    def segments(self, epoch: int) -> Segments:
        """All segments of this rank in an epoch: batch i has those at `rows(i)`."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the order of batches depends on, besides the store; plain values."""

    @abstractmethod
    def _last_part(self, rest: int) -> tuple[int, int]:
        """Bounds of this rank's part of the last `rest` units, which fill no batch on all ranks."""

    def rows(self, batch: int) -> slice:
        """Where a batch's segments lie among those of its epoch."""
        rows = self.rows_per_unit * self.batch_size
        return slice(rows * batch, rows * (batch + 1))

    def _own(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of this rank, of units in this order: the unit, and which of its rows each is.

        In a batch of units of two rows all first rows come first.
        """
        n_whole, rest = divmod(len(order), self.batch_size * self.world_size)
        whole, last = np.split(order, [len(order) - rest])
        parts = [whole.reshape(n_whole, self.world_size, self.batch_size)[:, self.rank]]
        first, end = self._last_part(rest)
        if end > first:
            parts.append(last[None, first:end])
        each = np.arange(self.rows_per_unit)
        units = [np.tile(part, self.rows_per_unit).ravel() for part in parts]
        places = [np.tile(np.repeat(each, part.shape[1]), len(part)) for part in parts]
        return np.concatenate(units), np.concatenate(places)


class _Shuffled(Plan):
    """A plan for training: another order in every epoch, and equally many batches on all ranks."""

    def __init__(
        self,
        store: Store,
        batch_size: int,
        *,
        seed: int,
        offsets: str,
        drop_last: bool,
        **options: Any,
    ) -> None:
        super().__init__(store, batch_size, **options)
        if offsets not in ("fixed", "random"):
            raise EcgfastError(f"offsets: got {offsets!r}, want 'fixed' or 'random'")
        if seed < 0:
            raise EcgfastError(f"seed: got {seed}, want 0 or more")
        self.seed = seed
        self.offsets = offsets
        self.drop_last = drop_last

    def identity(self) -> dict[str, Any]:
        names = ("seed", "world_size", "segment_samples", "offsets", "drop_last")
        sizes = {f"batch_{self.unit}": self.batch_size, f"n_{self.unit}": self.n_units}
        return {"plan": type(self).__name__} | sizes | {name: getattr(self, name) for name in names}

    def _last_part(self, rest: int) -> tuple[int, int]:
        share = 0 if self.drop_last else rest // self.world_size
        return self.rank * share, (self.rank + 1) * share

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, 0]).permutation(self.n_units)

    def _anywhere(self, epoch: int, room: np.ndarray) -> np.ndarray:
        """A first sample for every unit, from 0 to `room`."""
        return np.random.default_rng([self.seed, epoch, 1]).integers(0, room, endpoint=True)


class _Cut(_Shuffled):
    """Recordings cut into units of equal length, end to end; what is left of them makes none."""

    segments_per_unit: ClassVar[int] = 1

    def __init__(
        self,
        store: Store,
        batch_size: int,
        *,
        segment_samples: int = 2500,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        offsets: str = "fixed",
        drop_last: bool = True,
        recordings: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        super().__init__(
            store,
            batch_size,
            segment_samples=segment_samples,
            seed=seed,
            rank=rank,
            world_size=world_size,
            offsets=offsets,
            drop_last=drop_last,
        )
        self._unit_samples = self.segments_per_unit * segment_samples
        counts = store.n_samples // self._unit_samples
        first = np.cumsum(counts) - counts  # numbered through the whole store: a subset changes no draw
        chosen = np.arange(len(counts)) if recordings is None else _subset(store, recordings)
        self._digest = None if recordings is None else _digest(chosen)
        self.n_too_short = int(np.count_nonzero(counts[chosen] == 0))
        place, self._number = _numbered(counts[chosen])
        self._recording = chosen[place]
        self._id = first[self._recording] + self._number
        self.n_units = len(self._recording)
        if len(self) == 0:
            raise EcgfastError(
                f"store: {store.path} gives {self.n_units} {self.unit} of {segment_samples} "
                f"samples ({self.n_too_short} of {len(chosen)} recordings are too short), fewer than"
                f" one batch of {batch_size} x {world_size}"
            )

    @classmethod
    def count(cls, n_samples: np.ndarray, segment_samples: int) -> int:
        """Units in recordings of so many samples each."""
        return int((n_samples // (cls.segments_per_unit * segment_samples)).sum())

    def identity(self) -> dict[str, Any]:
        part = {} if self._digest is None else {"recordings": self._digest}
        return super().identity() | part

    def segments(self, epoch: int) -> Segments:
        unit, place = self._own(self._order(epoch))
        # of a unit of two segments they are its rows, of one segment with two rows both rows are that
        within = place * self.segment_samples if self.segments_per_unit > 1 else 0
        return Segments(
            recording=self._recording[unit],
            start=self._starts(epoch)[unit] + within,
            length=np.full(len(unit), self.segment_samples),
            sample_id=self.rows_per_unit * self._id[unit] + place,
        )

    def _starts(self, epoch: int) -> np.ndarray:
        if self.offsets == "fixed":
            return self._number * self._unit_samples
        return self._anywhere(epoch, self.store.n_samples[self._recording] - self._unit_samples)


class AdjacentPairs(_Cut):
    """Pairs of adjacent segments: rows i and P + i of a batch are the two segments of pair i.

    A recording gives floor(n_samples / (2 T)) pairs in every epoch. With fixed offsets they are
    the consecutive segments 0 and 1, 2 and 3, ... as in the paper; with random offsets each begins
    anywhere in its recording, drawn again in each epoch.

    The order depends on (seed, epoch) alone. Ranks have equally many batches. Pairs that fill no batch are
    left out of the epoch.

    Args:
        store: The store.
        batch_size: P, pairs per batch on this rank.
        segment_samples: T, samples per segment.
        seed: Of the order and the random offsets.
        rank: This process's number, from 0.
        world_size: Number of processes, W.
        offsets: "fixed" or "random".
        drop_last: False keeps the last, smaller batch, cut to equal parts over the ranks; what
            cannot be divided equally (fewer than W pairs) is left out.
        recordings: Numbers of the recordings to take, such as those to train on; None: all. Their pairs have
            the sample ids that they have among all.

    Attributes:
        n_too_short: Of the recordings, those shorter than two segments.

    Raises:
        EcgfastError: an argument out of range, or too few recordings to fill one batch.
    """

    unit = "pairs"
    rows_per_unit = 2
    segments_per_unit = 2

    def identity(self) -> dict[str, Any]:
        """As it was when these were the only plan: states from then go on."""
        return {name: value for name, value in super().identity().items() if name != "plan"}


class SingleSegments(_Cut):
    """Every segment on its own.

    A recording gives floor(n_samples / T) segments in every epoch, consecutive ones with fixed offsets; with
    random ones each begins anywhere in its recording, drawn again in each epoch. Order and ranks are as for
    `AdjacentPairs`.

    Args:
        store: The store.
        batch_size: P, segments per batch on this rank.
        segment_samples, seed, rank, world_size, offsets, drop_last, recordings: As for `AdjacentPairs`.

    Attributes:
        n_too_short: Of the recordings, those shorter than a segment.

    Raises:
        EcgfastError: an argument out of range, or too few recordings to fill one batch.
    """

    unit = "segments"


class TwoViews(_Cut):
    """The same segment twice, for objectives that change each copy at random.

    Rows i and P + i are the same samples, with sample ids of their own, so that draws differ between them.
    Segments, order and ranks are those of `SingleSegments`.

    Args:
        store: The store.
        batch_size: P, segments per batch on this rank: half as many as its rows.
        segment_samples, seed, rank, world_size, offsets, drop_last, recordings: As for `AdjacentPairs`.

    Attributes:
        n_too_short: Of the recordings, those shorter than a segment.

    Raises:
        EcgfastError: an argument out of range, or too few recordings to fill one batch.
    """

    unit = "segments"
    rows_per_unit = 2


class LabelledRecordings(_Shuffled):
    """One segment of each recording of a subset, such as a split with labels.

    A recording shorter than T is one segment (`Batch.lengths`). `Batch.recording` says which labels belong
    to a row; it is the sample id too.

    Shuffled, for training, order and ranks are as for `AdjacentPairs`. Else recordings come in the order
    given, each once over all ranks, whose numbers of batches may differ by one.

    Args:
        store: The store.
        batch_size: P, recordings per batch on this rank.
        recordings: Their numbers in the store.
        segment_samples: T, samples per segment.
        seed: Of the order and the random offsets.
        rank: This process's number, from 0.
        world_size: Number of processes, W.
        shuffle: False for evaluation.
        offsets: "fixed": a segment begins with its recording; "random": anywhere in it, new in every epoch.
        drop_last: False keeps the last, smaller batch of a shuffled epoch, as for `AdjacentPairs`.

    Raises:
        EcgfastError: an argument out of range, no recordings, one that the store has not or that is there
            twice, or too few to fill one batch.
    """

    unit = "recordings"

    def __init__(
        self,
        store: Store,
        batch_size: int,
        recordings: Sequence[int] | np.ndarray,
        *,
        segment_samples: int = 2500,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        offsets: str = "fixed",
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            store,
            batch_size,
            segment_samples=segment_samples,
            seed=seed,
            rank=rank,
            world_size=world_size,
            offsets=offsets,
            drop_last=drop_last,
        )
        self.shuffle = shuffle
        self._recordings = _subset(store, recordings)
        self._n_samples = store.n_samples[self._recordings]
        self.whole = bool((self._n_samples >= segment_samples).all())
        self.n_units = len(self._recordings)
        if shuffle and len(self) == 0:
            raise EcgfastError(
                f"recordings: got {self.n_units}, fewer than one batch of {batch_size} x {world_size}"
            )

    def segments(self, epoch: int) -> Segments:
        unit, _ = self._own(self._order(epoch) if self.shuffle else np.arange(self.n_units))
        length = np.minimum(self._n_samples, self.segment_samples)
        start = np.zeros_like(length)
        if self.offsets == "random":
            start = self._anywhere(epoch, self._n_samples - length)
        recording = self._recordings[unit]
        return Segments(recording, start[unit], length[unit], recording)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"shuffle": self.shuffle, "recordings": _digest(self._recordings)}

    def _last_part(self, rest: int) -> tuple[int, int]:
        return super()._last_part(rest) if self.shuffle else _even_part(rest, self.rank, self.world_size)


class Windows(Plan):
    """Windows that cover whole recordings, for scoring long ones by averaging over `Batch.recording`.

    A recording's windows begin every `stride` samples until one reaches its end: this last one may be
    shorter than T (`Batch.lengths`). They come in order, each once over all ranks, whose numbers of batches
    may differ by one. Every epoch is the same.

    Args:
        store: The store.
        batch_size: P, windows per batch on this rank.
        recordings: Numbers of recordings in the store; None: all.
        segment_samples: T, samples per window.
        stride: Samples from one window's begin to the next's, at most T; None: T.
        shortest: Fewest samples of a last window; one that has fewer is left out, unless it is the only one.
        rank: This process's number, from 0.
        world_size: Number of processes.

    Raises:
        EcgfastError: an argument out of range, no recordings, one that the store has not or that is there
            twice.
    """

    unit = "windows"

    def __init__(
        self,
        store: Store,
        batch_size: int,
        recordings: Sequence[int] | np.ndarray | None = None,
        *,
        segment_samples: int = 2500,
        stride: int | None = None,
        shortest: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(store, batch_size, segment_samples=segment_samples, rank=rank, world_size=world_size)
        self.stride = segment_samples if stride is None else stride
        for name, value in (("stride", self.stride), ("shortest", shortest)):
            if not 1 <= value <= segment_samples:
                raise EcgfastError(f"{name}: got {value}, want 1 to {segment_samples}, a window's samples")
        self.shortest = shortest
        chosen = _subset(store, np.arange(len(store)) if recordings is None else recordings)
        self._digest = _digest(chosen)
        counts = self._counts(store.n_samples)
        place, number = _numbered(counts[chosen])
        recording = chosen[place]
        start = number * self.stride
        length = np.minimum(store.n_samples[recording] - start, segment_samples)
        first = np.cumsum(counts) - counts  # numbered through the whole store: a subset changes no draw
        self._windows = Segments(recording, start, length, first[recording] + number)
        self.whole = bool((length == segment_samples).all())
        self.n_units = len(recording)

    def segments(self, epoch: int) -> Segments:
        unit, _ = self._own(np.arange(self.n_units))
        return Segments(*(column[unit] for column in self._windows))

    def identity(self) -> dict[str, Any]:
        names = ("world_size", "segment_samples", "stride", "shortest")
        sizes = {"batch_windows": self.batch_size, "n_windows": self.n_units, "recordings": self._digest}
        return {"plan": type(self).__name__} | sizes | {name: getattr(self, name) for name in names}

    def _last_part(self, rest: int) -> tuple[int, int]:
        return _even_part(rest, self.rank, self.world_size)

    def _counts(self, n_samples: np.ndarray) -> np.ndarray:
        """Windows of each recording."""
        beyond = np.maximum(n_samples - self.segment_samples, 0)
        last = -(-beyond // self.stride)
        return np.maximum(last + (n_samples - last * self.stride >= self.shortest), 1)


def _even_part(n: int, rank: int, world_size: int) -> tuple[int, int]:
    """A rank's part of n things, of which none is left out."""
    return n * rank // world_size, n * (rank + 1) // world_size


def _numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For things of which i has `counts[i]`, one after another: whose each is, and its number among those."""
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - first[owner]


def _subset(store: Store, recordings: Sequence[int] | np.ndarray) -> np.ndarray:
    chosen = np.asarray(recordings)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise EcgfastError(f"recordings: must be whole numbers, got {chosen.dtype} {list(chosen.shape)}")
    if chosen.size == 0:
        raise EcgfastError("recordings: must be one or more, got none")
    outside = chosen[(chosen < 0) | (chosen >= len(store))]
    if outside.size:
        raise EcgfastError(
            f"recordings: must be 0 to {len(store) - 1}, as many as {store.path} has, got {outside[0]}"
        )
    numbers, counts = np.unique(chosen, return_counts=True)
    if counts.max() > 1:
        raise EcgfastError(f"recordings: must be there once, got {numbers[counts > 1][0]} twice or more")
    return chosen.astype(np.int64)


def _digest(recordings: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(recordings, dtype="<i8").data)
