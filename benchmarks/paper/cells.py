"""Runs the commands of a comparison, several at a time; each leaves a mark when it is done."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

_MARK = "done"


@dataclass(frozen=True)
class Cell:
    """One command of a comparison.

    Attributes:
        name: Of its folder of marks and logs, such as "finetune/simclr/seed0/leads2".
        command: Arguments of `ecgfast`.
        needs: Names of the cells that must be done before.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(("ecgfast", *self.command))


@dataclass
class Outcome:
    """How a comparison went.

    Attributes:
        done: Names of the cells that are done, with the seconds that they took in all their runs.
        failed: Names of those that failed, with the last line of their log.
        left: Names of those that were not begun, since what they need failed or the time was over.
    """

    done: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


class Runner:
    """Runs cells in the folder `out`; a cell that is done is not run again.

    Every command takes itself up where it was stopped, so a comparison can be killed at any moment.

    Args:
        out: Where marks and logs go, under `cells`.
        jobs: Commands at a time; they share the cores.
        deadline: Time (`time.monotonic`) from which on no cell is begun; None: never.
    """

    def __init__(self, out: Path, jobs: int, deadline: float | None = None) -> None:
        self.out, self.jobs, self.deadline = out, jobs, deadline
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // jobs))}

    def run(self, cells: Sequence[Cell]) -> Outcome:
        """Run all cells, each after those that it needs; of those that can run, the first comes first."""
        outcome = Outcome(done={cell.name: self._seconds(cell) for cell in cells if self._is_done(cell)})
        waiting = [cell for cell in cells if cell.name not in outcome.done]
        total, running = len(cells), {}
        with ThreadPoolExecutor(self.jobs) as pool:
            while waiting or running:
                for cell in [c for c in waiting if all(need in outcome.done for need in c.needs)]:
                    if len(running) == self.jobs or self._is_late():
                        break
                    waiting.remove(cell)
                    running[pool.submit(self._run, cell)] = cell
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._finish(future, running.pop(future), outcome, total)
        outcome.left = [cell.name for cell in waiting]
        return outcome

    def _finish(self, future: Future, cell: Cell, outcome: Outcome, total: int) -> None:
        failure = future.result()
        if failure is None:
            outcome.done[cell.name] = self._seconds(cell)
            print(f"[{len(outcome.done)}/{total}] {cell.name}: {outcome.done[cell.name]:.0f} s", flush=True)
        else:
            outcome.failed[cell.name] = failure
            print(f"{cell.name} failed: {failure}; see {self._folder(cell) / 'log'}", flush=True)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def _is_done(self, cell: Cell) -> bool:
        mark = self._folder(cell) / _MARK
        return mark.is_file() and mark.read_text().splitlines()[1:] == [str(cell)]

    def _seconds(self, cell: Cell) -> float:
        return float((self._folder(cell) / _MARK).read_text().splitlines()[0])

    def _run(self, cell: Cell) -> str | None:
        """Run a command; the last line of its log if it failed."""
        folder = self._folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        spent = folder / "spent"
        before = float(spent.read_text()) if spent.is_file() else 0.0
        start = time.monotonic()
        with (folder / "log").open("a") as log:
            log.write(f"$ {cell}\n")
            log.flush()
            code = subprocess.run(
                [sys.executable, "-m", "ecgfast", *cell.command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                check=False,
            ).returncode
        seconds = before + time.monotonic() - start
        if code:
            spent.write_text(f"{seconds:.1f}")
            lines = (folder / "log").read_text(errors="replace").strip().splitlines()
            return f"exit status {code}, {lines[-1][:300]}"
        partial = folder / f"{_MARK}.partial"
        partial.write_text(f"{seconds:.1f}\n{cell}\n")
        partial.replace(folder / _MARK)
        return None
