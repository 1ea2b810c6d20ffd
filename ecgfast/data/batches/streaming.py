"""Batches read straight from a store's memory maps."""

import itertools
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic

from ecgfast.data.batches.batch import DTYPES, Batch
from ecgfast.data.batches.loader import Loader
from ecgfast.data.batches.plans import Plan, Segments
from ecgfast.data.store.store import Store
from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS
from ecgfast.units import MILLIVOLTS_PER_UNIT

_PREFETCH = 2  # batches assembled ahead of the consumer
_POLL = 0.1  # seconds after which a waiting producer looks whether it is still wanted
_LOOK = 1.0  # seconds between two looks whether the store's files are still those opened
_KEEP = _PREFETCH + 3  # buffers kept for reuse: those ahead, one being filled, two in use
_MILLIVOLT = np.float32(MILLIVOLTS_PER_UNIT)


class SegmentLoader(Loader):
    """Reads batches from the store's files, ahead of their use, in the background.

    The memory of a batch is used again once no tensor refers to it.

    Args:
        plan: Which segments of which store make which batch.
        threads: Threads that copy a batch together.
        pin_memory: Assemble in page-locked memory, for asynchronous copies to a GPU.
        options: Those of `Loader`: the dtype and the leads of the segments.

    Raises:
        EcgfastError: an argument out of range; while iterating: a file of the store was replaced or cut since
            it was opened.
    """

    def __init__(self, plan: Plan, *, threads: int = 2, pin_memory: bool = False, **options: Any) -> None:
        if threads < 1:
            raise EcgfastError(f"threads: got {threads}, want 1 or more")
        super().__init__(plan, **options)
        self._threads = threads
        self._gather = _Gather(plan.store, self._lead_index, threads)
        self._allocate = _pinned if pin_memory else _Buffers()

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        return _prefetched(self._assembled(epoch, start))

    def _assembled(self, epoch: int, start: int) -> Iterator[Batch]:
        plan = self.plan
        segments = plan.segments(epoch)
        looked = -_LOOK
        with ThreadPoolExecutor(self._threads, "ecgfast-gather") as pool:
            for i in range(start, len(plan)):
                # a map of a file that was cut ends the process when it is read
                if time.monotonic() - looked >= _LOOK:
                    plan.store.check_unchanged()
                    looked = time.monotonic()
                yield self._assemble(Segments(*(column[plan.rows(i)] for column in segments)), pool)

    def _assemble(self, rows: Segments, pool: ThreadPoolExecutor) -> Batch:
        shape = (len(rows.recording), len(self._lead_index), self.plan.segment_samples)
        signal = self._allocate(shape, DTYPES[self.dtype])
        self._gather(signal.numpy(), rows, pool)
        return Batch(
            signal=signal,
            sample_ids=torch.from_numpy(rows.sample_id.copy()),
            patients=torch.from_numpy(self._patients[rows.recording]),
            leads=torch.from_numpy(self._present[rows.recording]),
            recording=torch.from_numpy(rows.recording.copy()),
            lengths=None if self.plan.whole else torch.from_numpy(rows.length.copy()),
        )


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)  # torch keeps and reuses such memory itself


class _Buffers:
    """Memory for batches, used again when the last tensor over it is gone.

    Fresh pages would cost more than filling them: the system zeroes each at its first touch.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(n_bytes, dtype=np.uint8)
        if memory.size < n_bytes:
            memory = np.empty(n_bytes, dtype=np.uint8)
        lent = memory[:n_bytes]  # lives as long as a tensor over it
        weakref.finalize(lent, _take_back, self._free, memory).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)


def _take_back(free: list[np.ndarray], memory: np.ndarray) -> None:
    if len(free) < _KEEP:
        free.append(memory)


class _Gather:
    """Crops segments out of a store's shards with threads that do not hold the GIL."""

    def __init__(self, store: Store, lead_index: np.ndarray, threads: int) -> None:
        self._shards = store.shards  # keeps the maps alive that the addresses point into
        base = np.array([shard.ctypes.data for shard in store.shards], dtype=np.int64)
        shard = store.index["shard"].to_numpy()
        self._address = base[shard] + 2 * store.index["offset"].to_numpy()
        self._n_samples = store.n_samples
        self._lead_index = lead_index
        self._threads = threads

    def __call__(self, out: np.ndarray, rows: Segments, pool: ThreadPoolExecutor) -> None:
        n_samples = self._n_samples[rows.recording]
        start, length = rows.start, rows.length
        if (start < 0).any() or (length > out.shape[2]).any() or (start + length > n_samples).any():
            raise IndexError("a segment reaches past its recording")
        addresses = self._address[rows.recording]
        crop = _copy_segments if out.dtype == np.int16 else _convert_segments
        bounds = np.linspace(0, len(out), self._threads + 1).astype(int)
        parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        crops = [
            pool.submit(crop, out[p], addresses[p], n_samples[p], start[p], length[p], self._lead_index)
            for p in parts
        ]
        for done in crops:
            done.result()


@intrinsic
def _int16_pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer to int16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int16)(types.int64), codegen


@numba.njit(nogil=True, cache=True)
def _copy_segments(
    out: np.ndarray,
    addresses: np.ndarray,
    n_samples: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    leads: np.ndarray,
) -> None:
    for i in range(out.shape[0]):
        block = numba.carray(_int16_pointer(addresses[i]), (N_LEADS, n_samples[i]))
        length = lengths[i]
        for k in range(out.shape[1]):
            row = block[leads[k], starts[i] : starts[i] + length]
            for t in range(length):  # becomes a vector loop, twice as fast as assigning the slice
                out[i, k, t] = row[t]
            out[i, k, length:] = 0


@numba.njit(nogil=True, cache=True)
def _convert_segments(
    out: np.ndarray,
    addresses: np.ndarray,
    n_samples: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    leads: np.ndarray,
) -> None:
    for i in range(out.shape[0]):
        block = numba.carray(_int16_pointer(addresses[i]), (N_LEADS, n_samples[i]))
        length = lengths[i]
        for k in range(out.shape[1]):
            row = block[leads[k], starts[i] : starts[i] + length]
            for t in range(length):
                out[i, k, t] = np.float32(row[t]) * _MILLIVOLT
            out[i, k, length:] = 0


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
