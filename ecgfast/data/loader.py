"""Batches of adjacent segments, read straight from a store's memory maps."""

import itertools
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic

from ecgfast.data.store import Store
from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS

_PREFETCH = 2  # batches assembled ahead of the consumer
_POLL = 0.1  # seconds after which a waiting producer looks whether it is still wanted


class Batch(NamedTuple):
    """P pairs of adjacent segments; rows i and P + i are the two segments of pair i.

    Attributes:
        signal: int16 [2P, 12, T], microvolts, absent leads zero.
        sample_ids: int64 [2P], unique per segment of a store cut at this length, whatever the
            batch size and the number of ranks: counter-based draws take them.
        groups: int64 [2P], the patient's number.
        leads: bool [2P, 12], the leads present.
    """

    signal: torch.Tensor
    sample_ids: torch.Tensor
    groups: torch.Tensor
    leads: torch.Tensor


class SegmentLoader:
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
        threads: Threads that copy a batch together.
        pin_memory: Assemble in page-locked memory, for asynchronous copies to a GPU.

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
        threads: int = 2,
        pin_memory: bool = False,
    ) -> None:
        _check_positive(
            batch_pairs=batch_pairs,
            segment_samples=segment_samples,
            world_size=world_size,
            threads=threads,
        )
        if not 0 <= rank < world_size:
            raise EcgfastError(f"rank: got {rank}, want 0 to {world_size - 1}")
        if offsets not in ("fixed", "random"):
            raise EcgfastError(f"offsets: got {offsets!r}, want 'fixed' or 'random'")
        if seed < 0:
            raise EcgfastError(f"seed: got {seed}, want 0 or more")
        self.store = store
        self.batch_pairs = batch_pairs
        self.segment_samples = segment_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.offsets = offsets
        self.drop_last = drop_last
        self._threads = threads
        self._pin_memory = pin_memory
        self._epoch = 0
        self._batch = 0  # batches of this epoch already handed out
        self._resume_at = 0
        self._leads = store.present_leads()
        self._patients = store.patient_numbers()
        self._gather = _Gather(store, segment_samples, threads)
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
        for batch in _prefetched(self._batches(self._epoch, start)):
            self._batch += 1
            yield batch

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

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(self.n_pairs)
        starts = self._starts(epoch)
        step = self.batch_pairs * self.world_size
        with ThreadPoolExecutor(self._threads, "ecgfast-gather") as pool:
            for i in range(start, len(self)):
                batch = order[i * step : (i + 1) * step]
                share = len(batch) // self.world_size
                mine = batch[self.rank * share : (self.rank + 1) * share]
                yield self._assemble(mine, starts[mine], pool)

    def _starts(self, epoch: int) -> np.ndarray:
        """First sample of every pair."""
        if self.offsets == "fixed":
            return self._within * (2 * self.segment_samples)
        room = self.store.n_samples[self._recording] - 2 * self.segment_samples
        return np.random.default_rng([self.seed, epoch, 1]).integers(0, room, endpoint=True)

    def _assemble(self, pairs: np.ndarray, starts: np.ndarray, pool: ThreadPoolExecutor) -> Batch:
        recording = np.tile(self._recording[pairs], 2)
        shape = (len(recording), N_LEADS, self.segment_samples)
        signal = torch.empty(shape, dtype=torch.int16, pin_memory=self._pin_memory)
        starts = np.concatenate([starts, starts + self.segment_samples])
        self._gather(signal.numpy(), recording, starts, pool)
        return Batch(
            signal=signal,
            sample_ids=torch.from_numpy(np.concatenate([2 * pairs, 2 * pairs + 1])),
            groups=torch.from_numpy(self._patients[recording]),
            leads=torch.from_numpy(self._leads[recording]),
        )


class _Gather:
    """Copies segments out of a store's shards with threads that do not hold the GIL."""

    def __init__(self, store: Store, segment_samples: int, threads: int) -> None:
        self._shards = store.shards  # keeps the maps alive that the addresses point into
        base = np.array([shard.ctypes.data for shard in store.shards], dtype=np.int64)
        shard = store.index["shard"].to_numpy()
        self._address = base[shard] + 2 * store.index["offset"].to_numpy()
        self._n_samples = store.n_samples
        self._samples = segment_samples
        self._threads = threads

    def __call__(
        self,
        out: np.ndarray,
        recording: np.ndarray,
        starts: np.ndarray,
        pool: ThreadPoolExecutor,
    ) -> None:
        lengths = self._n_samples[recording]
        if (starts < 0).any() or (starts + self._samples > lengths).any():
            raise IndexError("a segment reaches past its recording")
        addresses = self._address[recording]
        bounds = np.linspace(0, len(out), self._threads + 1).astype(int)
        parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        copies = [pool.submit(_copy_segments, out[p], addresses[p], lengths[p], starts[p]) for p in parts]
        for copy in copies:
            copy.result()


@intrinsic
def _int16_pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer to int16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int16)(types.int64), codegen


@numba.njit(nogil=True, cache=True)
def _copy_segments(out: np.ndarray, addresses: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> None:
    for i in range(out.shape[0]):
        block = numba.carray(_int16_pointer(addresses[i]), (out.shape[1], lengths[i]))
        for lead in range(out.shape[1]):
            out[i, lead] = block[lead, starts[i] : starts[i] + out.shape[2]]


def _prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Run an iterator in a thread, a few items ahead; its errors are raised here."""
    items: queue.Queue[Any] = queue.Queue(_PREFETCH)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=_POLL)
            except queue.Full:
                continue
        return None

    def produce() -> None:
        try:
            for batch in batches:
                put(batch)
                if stop.is_set():
                    return
            put(end)
        except BaseException as error:  # raised again in the consumer
            put(error)

    thread = threading.Thread(target=produce, name="ecgfast-prefetch", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise EcgfastError(f"{name}: got {value}, want 1 or more")
