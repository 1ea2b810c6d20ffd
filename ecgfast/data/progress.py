"""How far listing or importing records is, on stderr."""

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

_SETTLING = 1.0  # seconds from the first record on in which workers start and functions are compiled
_LEAST = 2.0  # seconds of steady work before a speed is told
_WINDOW = 30.0  # seconds over which it is measured
_MARK = 0.25  # seconds between two measurements
_LINE = 30.0  # seconds between two lines where there is no terminal


class Speed:
    """Records per second, once it is steady: what comes before the first record is no part of it.

    Args:
        clock: Seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._n = 0
        self._settled = float("inf")
        self._marks: deque[tuple[float, int]] = deque()

    def add(self, n: int) -> None:
        """Note `n` records more."""
        now = self._clock()
        self._n += n
        if self._settled == float("inf"):
            self._settled = now + _SETTLING
        last = self._marks[-1][0] if self._marks else -float("inf")
        if now >= self._settled and now >= last + _MARK:
            self._marks.append((now, self._n))
            while self._marks[0][0] < now - _WINDOW and len(self._marks) > 2:
                self._marks.popleft()

    def __call__(self) -> float | None:
        """Records per second; None until they are known."""
        if len(self._marks) < 2:
            return None
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end - start >= _LEAST else None


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar whose estimate is that of a `Speed`; "?" until there is one."""

    speed: Speed

    @property
    def format_dict(self) -> dict[str, Any]:
        speed = getattr(self, "speed", None)  # tqdm's constructor draws it once
        told = super().format_dict
        if self.total is not None and self.n >= self.total:
            return told  # done: the average
        return told | {"rate": (speed() or 0.0) if speed is not None else 0.0}


class Progress:
    """Counts records: a bar on a terminal, elsewhere a line of text every half a minute.

    Args:
        what: What is done, such as "listing".
        total: Records in all, None where that is not known.
        initial: Those done before.
        shown: Whether to show anything.
    """

    def __init__(self, what: str, total: int | None = None, *, initial: int = 0, shown: bool = True) -> None:
        self._what, self._total, self._n = what, total, initial
        self._speed = Speed()
        self._bar: _Bar | None = None
        self._next_line = time.monotonic() + _LINE if shown else float("inf")
        if shown and sys.stderr is not None and sys.stderr.isatty():
            self._next_line = float("inf")
            self._bar = _Bar(
                desc=what,
                total=total,
                initial=initial,
                unit="rec",
                leave=total is not None,
                dynamic_ncols=True,
            )
            self._bar.speed = self._speed

    def update(self, n: int = 1) -> None:
        """Count `n` records more."""
        self._n += n
        self._speed.add(n)
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE
            print(self._line(), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        speed = self._speed()
        told = f"{self._what}: {self._n:,}{'' if self._total is None else f' of {self._total:,}'} records"
        if speed:
            told += f", {speed:,.0f} a second"
            if self._total is not None:
                told += f", {tqdm.format_interval((self._total - self._n) / speed)} left"
        return told
