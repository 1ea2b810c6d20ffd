"""Reading many records in order, in several processes.

A recording's block goes from process to process in memory that they share: through a pipe, it would cost as
much as reading it. Where processes are not forked, it goes through the pipe.
"""

import itertools
import mmap
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ecgfast.data.store.recording import Recording
from ecgfast.errors import EcgfastError

Outcome = Recording | tuple[str, str]
"""What becomes of a record: a recording, or its name and why it is rejected."""

_CHUNK = 8  # records handed to a process at once
_AHEAD = 4  # chunks per process that are being read or wait for it: it goes on while this one syncs
_IN_FLIGHT = 4  # chunks per process that are read and wait for their turn
_SWITCH = 2e-4  # seconds after which a thread that hands out chunks gets its turn, while this one reads
_SLOT = 2**20  # bytes of a block that is shared, of which only those used take memory; 87 s
_START_METHOD = "fork" if sys.platform == "linux" else "spawn"  # spawned, it imports for a second first

_shared: mmap.mmap | None = None  # in a forked process
_switching = threading.Lock()
_n_quick, _interval = 0, 0.0  # imports that have shortened the switch interval, and what it was


class _Shared(NamedTuple):
    """A recording without its block, which lies in a slot."""

    recording: Recording
    shape: tuple[int, ...]


def read_in_order(
    read: Callable[[Any], Outcome], records: Iterable[Any], workers: int, lock: int
) -> Iterator[Outcome]:
    """The outcome of every record, in order, with a bounded number in memory.

    This process is one of the workers: it reads whenever the others have enough to do.

    Args:
        read: Reads one record; to be pickled.
        records: What `read` takes, small.
        workers: Processes, this one included.
        lock: A file descriptor that only this process may hold.

    Yields:
        Outcomes; a recording's signal is good until the next is asked for.

    Raises:
        EcgfastError: a process died.
    """
    if workers == 1:
        yield from map(read, records)
        return
    slots = deque(range((_AHEAD + _IN_FLIGHT) * workers))
    memory = mmap.mmap(-1, len(slots) * _CHUNK * _SLOT) if _START_METHOD == "fork" else None
    context = multiprocessing.get_context(_START_METHOD)
    pool = ProcessPoolExecutor(workers - 1, context, _start_worker, (lock, memory))
    chunks = _chunks(records)
    pending: deque[tuple[Future[list[Any]], int]] = deque()
    _quick_switches(+1)
    try:
        while True:
            unread = sum(not future.done() for future, _ in pending)
            while slots and unread < _AHEAD * (workers - 1) and (chunk := next(chunks, None)):
                pending.append((pool.submit(_read_chunk, read, chunk, slots[0]), slots.popleft()))
                unread += 1
            head_is_ready = pending and pending[0][0].done()
            if not head_is_ready and slots and (chunk := next(chunks, None)):
                pending.append((Future(), slots.popleft()))
                pending[-1][0].set_result([read(name) for name in chunk])
            elif pending:
                future, slot = pending.popleft()
                for i, outcome in enumerate(future.result()):
                    yield _unshared(outcome, memory, slot * _CHUNK + i)
                slots.append(slot)
            else:
                return
    except BrokenProcessPool:
        raise EcgfastError(
            "workers: one died, perhaps for lack of memory; run again to go on, with fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        _quick_switches(-1)


def _quick_switches(more: int) -> None:
    """One import more or less that needs them: the first shortens the interval, the last restores it."""
    global _n_quick, _interval
    with _switching:
        if _n_quick == 0:
            _interval = sys.getswitchinterval()
        _n_quick += more
        sys.setswitchinterval(_SWITCH if _n_quick else _interval)


def _chunks(records: Iterable[Any]) -> Iterator[list[Any]]:
    records = iter(records)
    while chunk := list(itertools.islice(records, _CHUNK)):
        yield chunk


def _read_chunk(read: Callable[[Any], Outcome], records: list[Any], slot: int) -> list[Outcome | _Shared]:
    return [_put(read(record), slot * _CHUNK + i) for i, record in enumerate(records)]


def _put(outcome: Outcome, slot: int) -> Outcome | _Shared:
    if _shared is None or not isinstance(outcome, Recording) or outcome.signal.nbytes > _SLOT:
        return outcome
    shape = outcome.signal.shape
    _block(_shared, slot, shape)[:] = outcome.signal
    return _Shared(replace(outcome, signal=np.empty((0, 0), np.int16)), shape)


def _unshared(outcome: Outcome | _Shared, memory: mmap.mmap | None, slot: int) -> Outcome:
    if not isinstance(outcome, _Shared):
        return outcome
    return replace(outcome.recording, signal=_block(memory, slot, outcome.shape))


def _block(memory: mmap.mmap, slot: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.ndarray(shape, np.int16, memory, offset=slot * _SLOT)


def _start_worker(lock: int, memory: mmap.mmap | None) -> None:
    """Leave interrupts and the lock to the parent, and do not outlive it."""
    global _shared
    _shared = memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _START_METHOD == "fork":
        os.close(lock)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
