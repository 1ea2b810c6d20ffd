"""Which pairs of segments make which batch: what all loaders share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ecgfast.data.store.store import Store
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, lead_indices

DTYPES = {"int16": torch.int16, "float32": torch.float32}
"""What a batch's signal can be: microvolts as stored, or millivolts."""


class Batch(NamedTuple):
    """P pairs of adjacent segments; rows i and P + i are the two segments of pair i.

    Attributes:
        signal: [2P, L, T], absent leads zero: int16 microvolts or float32 millivolts.
        sample_ids: int64 [2P], unique per segment of a store cut at this length, whatever the
            batch size and the number of ranks: counter-based draws take them.
        groups: int64 [2P], the patient's number.
        leads: bool [2P, L], the leads present.
    """

    signal: torch.Tensor
    sample_ids: torch.Tensor
    groups: torch.Tensor
    leads: torch.Tensor


class Segments(NamedTuple):
    """A rank's segments of an epoch, batch after batch; int64 [n] each."""

    recording: np.ndarray
    start: np.ndarray
    sample_id: np.ndarray


class PairLoader(ABC):
    """Iterates over pairs of adjacent segments of a store's recordings.

    A recording gives floor(n_samples / (2 T)) pairs in every epoch. With fixed offsets they are
    the consecutive segments 0 and 1, 2 and 3, ... as in the paper; with random offsets each begins
    anywhere in its recording, anew in every epoch.

    The order depends on (seed, epoch) alone; rank r of W takes every batch's r-th part of W * P
    pairs, so that ranks never overlap and have equally many batches. Pairs that fill no batch are
    left out of the epoch.

    Args:
        store: The store to read.
        batch_pairs: P, pairs per batch on this rank.
        segment_samples: T, samples per segment.
        seed: Of the order and the random offsets.
        rank: This process's number, from 0.
        world_size: Number of processes, W.
        offsets: "fixed" or "random".
        drop_last: False keeps the last, smaller batch, cut to equal parts over the ranks; what
            cannot be divided equally (fewer than W pairs) is left out.
        dtype: "int16" (microvolts as stored) or "float32" (millivolts).
        leads: Names of the L leads to give, in this order; None: the 12 standard ones.

    Attributes:
        n_pairs: Pairs in an epoch, over all ranks, before any are left out.
        n_too_short: Recordings shorter than two segments.

    Raises:
        EcgfastError: an argument out of range, or too few recordings to fill one batch.
    """

    def __init__(
        self,
        store: Store,
        batch_pairs: int,
        *,
        segment_samples: int = 2500,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        offsets: str = "fixed",
        drop_last: bool = True,
        dtype: str = "int16",
        leads: Sequence[str] | None = None,
    ) -> None:
        check_positive(batch_pairs=batch_pairs, segment_samples=segment_samples, world_size=world_size)
        if not 0 <= rank < world_size:
            raise EcgfastError(f"rank: got {rank}, want 0 to {world_size - 1}")
        if offsets not in ("fixed", "random"):
            raise EcgfastError(f"offsets: got {offsets!r}, want 'fixed' or 'random'")
        if seed < 0:
            raise EcgfastError(f"seed: got {seed}, want 0 or more")
        if dtype not in DTYPES:
            raise EcgfastError(f"dtype: got {dtype!r}, want {' or '.join(map(repr, DTYPES))}")
        self.store = store
        self.batch_pairs = batch_pairs
        self.segment_samples = segment_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.offsets = offsets
        self.drop_last = drop_last
        self.dtype = dtype
        self._lead_index = np.array(lead_indices(STANDARD_LEADS if leads is None else leads))
        self._epoch = 0
        self._batch = 0  # batches of this epoch already handed out
        self._resume_at = 0
        self._present = store.present_leads()[:, self._lead_index]
        self._patients = store.patient_numbers()
        self._find_pairs()

    def __len__(self) -> int:
        whole, rest = divmod(self.n_pairs, self.batch_pairs * self.world_size)
        return whole + (not self.drop_last and rest >= self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through.

        A position restored by `load_state_dict` is kept if it lies in that epoch.
        """
        if epoch < 0:
            raise EcgfastError(f"epoch: got {epoch}, want 0 or more")
        if epoch != self._epoch:
            self._epoch = epoch
            self._batch = self._resume_at = 0

    def state_dict(self) -> dict[str, Any]:
        """Position after the last batch handed out, and what it depends on."""
        return {"epoch": self._epoch, "batch": self._batch} | self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position of `state_dict`: the next iteration begins there.

        Raises:
            EcgfastError: the state is of a loader with another order of batches.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise EcgfastError(f"loader state: {name} is {state.get(name)!r}, here {mine!r}")
        self._epoch = state["epoch"]
        self._batch = self._resume_at = state["batch"]

    def __iter__(self) -> Iterator[Batch]:
        start, self._resume_at = self._resume_at, 0
        self._batch = start
        for batch in self._batches(self._epoch, start):
            self._batch += 1
            yield batch

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""

    def _identity(self) -> dict[str, Any]:
        names = ("seed", "batch_pairs", "world_size", "segment_samples", "offsets", "drop_last")
        return {name: getattr(self, name) for name in names} | {"n_pairs": self.n_pairs}

    def _find_pairs(self) -> None:
        pairs = self.store.n_samples // (2 * self.segment_samples)
        self.n_too_short = int(np.count_nonzero(pairs == 0))
        self._recording = np.repeat(np.arange(len(pairs)), pairs)
        first = np.cumsum(pairs) - pairs
        self._within = np.arange(len(self._recording)) - first[self._recording]
        self.n_pairs = len(self._recording)
        if len(self) == 0:
            raise EcgfastError(
                f"store: {self.store.path} gives {self.n_pairs} pairs of {self.segment_samples} "
                f"samples ({self.n_too_short} of {len(pairs)} recordings are too short), fewer than"
                f" one batch of {self.batch_pairs} x {self.world_size}"
            )

    def _segments(self, epoch: int) -> Segments:
        """Those of this rank: each batch's first ones, then its second ones."""
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(self.n_pairs)
        n_whole, rest = divmod(self.n_pairs, self.batch_pairs * self.world_size)
        whole, last = np.split(order, [self.n_pairs - rest])
        parts = [whole.reshape(n_whole, self.world_size, self.batch_pairs)[:, self.rank]]
        share = rest // self.world_size
        if not self.drop_last and share:
            parts.append(last[None, self.rank * share : (self.rank + 1) * share])
        pairs = np.concatenate([np.tile(part, 2).ravel() for part in parts])
        second = np.concatenate([np.tile(np.repeat([0, 1], part.shape[1]), len(part)) for part in parts])
        return Segments(
            recording=self._recording[pairs],
            start=self._starts(epoch)[pairs] + second * self.segment_samples,
            sample_id=2 * pairs + second,
        )

    def _rows(self, batch: int) -> slice:
        """Where a batch's segments lie among those of its epoch."""
        return slice(2 * self.batch_pairs * batch, 2 * self.batch_pairs * (batch + 1))

    def _starts(self, epoch: int) -> np.ndarray:
        """First sample of every pair."""
        if self.offsets == "fixed":
            return self._within * (2 * self.segment_samples)
        room = self.store.n_samples[self._recording] - 2 * self.segment_samples
        return np.random.default_rng([self.seed, epoch, 1]).integers(0, room, endpoint=True)


def check_positive(**values: int) -> None:
    """Raise `EcgfastError` naming the first of the arguments that is not 1 or more."""
    for name, value in values.items():
        if value < 1:
            raise EcgfastError(f"{name}: got {value}, want 1 or more")
