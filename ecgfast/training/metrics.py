"""Training metrics: summed on the device, read back at log points, written to files."""

import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecgfast.errors import EcgfastError
from ecgfast.files import sync, write_atomically
from ecgfast.objectives.base import Losses, Metric, Panel

COMMON = (
    Metric("grad_norm", Panel("Gradient norm", "before clipping"), "grad_norm", "steps"),
    Metric("lr", Panel("Learning rate", "of the update"), ""),
    Metric("segments_per_second", Panel("Throughput", "segments per second"), "", bar="{:.0f} segments/s"),
)
"""What every training reports besides the metrics of its objective."""

# The sums in states that do not name them; at first they were without the last two.
_FIRST_SUMS = (
    *("total", "local", "diversity", "feature_penalty", "global", "n_correct", "size"),
    *("code_perplexity", "prob_perplexity", "temperature", "batches", "grad_norm", "steps"),
    *("n_strict", "strict_size"),
)


class MetricSums:
    """Sums over the steps since the last log point; float64, on the device, never waited for.

    Args:
        metrics: what is to be known at a log point.
        device: where the losses are.
    """

    def __init__(self, metrics: Sequence[Metric], device: torch.device) -> None:
        self._metrics = [metric for metric in (*metrics, *COMMON) if metric.of]
        names = dict.fromkeys(name for m in self._metrics for name in (m.of, m.per))
        # In the order of states without names, so that earlier versions read those of their objective.
        first = [name for name in _FIRST_SUMS if name in names]
        self.names = [*first, *(name for name in names if name not in first)]
        self.values = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def _add(self, terms: Mapping[str, Tensor | float]) -> None:
        for name in self.names:
            if name in terms:
                term = terms[name]
                value = term.detach() if isinstance(term, Tensor) else term
                self.values[self.names.index(name)].add_(value)

    def add_batch(self, losses: Losses) -> None:
        self._add({**losses.terms, **losses.counts, "total": losses.total, "size": losses.size, "batches": 1})

    def add_step(self, grad_norm: Tensor) -> None:
        self._add({"grad_norm": grad_norm, "steps": 1})

    def state_dict(self) -> dict[str, Any]:
        """The sums and their names, for a training state."""
        return {"sums": self.values.to("cpu", copy=True), "sum_names": list(self.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the sums of `state_dict`; those of an earlier version are fewer, and without names."""
        values = state["sums"]
        known = dict(zip(state.get("sum_names", _FIRST_SUMS), values.tolist(), strict=False))
        self.values.copy_(torch.tensor([known.get(name, 0.0) for name in self.names], dtype=torch.float64))

    def read(self) -> dict[str, float]:
        """The means of what was summed, and start again. Waits for the device."""
        sums = dict(zip(self.names, self.values.tolist(), strict=True))
        self.values.zero_()
        return {m.name: sums[m.of] / (sums[m.per] or 1.0) for m in self._metrics}


def check_finite(what: str, value: float, step: int, saved: int | None = None) -> None:
    """Raise `EcgfastError` where `value` is no number any more: there is nothing to go on with.

    Args:
        what: name of the value.
        value: it.
        step: at which it was read.
        saved: step of the last checkpoint; None: there is none.
    """
    if not math.isfinite(value):
        kept = "no checkpoint was written yet" if saved is None else f"the checkpoint of step {saved} is kept"
        raise EcgfastError(
            f"the {what} became {value} by step {step}; {kept}: a lower optim.lr, "
            "more optim.warmup_steps or optim.clip_norm may help, in a new run folder"
        )


def _parse(line: bytes) -> dict[str, float] | None:
    """A log point; None if the line is none."""
    try:
        point = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8
        return None
    if not isinstance(point, dict) or type(point.get("step")) is not int:
        return None
    values = point.values()
    return point if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) else None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The log points of `metrics.jsonl`, oldest first, without what can't be read."""
    return _read_lines(path)[0]


def _read_lines(path: Path) -> tuple[list[dict[str, float]], int]:
    """The log points, and how many lines are none; the last one may be cut off by a crash."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return [], 0
    points = [_parse(line) for line in lines]
    bad = sum(point is None for point in points[:-1])
    return [point for point in points if point is not None], bad


class MetricLog:
    """`metrics.jsonl` and TensorBoard events of a run, continued after step `start`.

    Log points of later steps, left by a process that died, are dropped. A file that can't be read or
    written is told in a warning: training goes on without it.

    Args:
        run: the run's folder.
        metrics: what is logged: TensorBoard shows the loss and its terms together.
        start: last step that the run's state knows of.
        drop_last: drop the log point of `start` too: it was the last of a shorter run.
    """

    def __init__(self, run: Path, metrics: Sequence[Metric], start: int, *, drop_last: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of imports

        self.path = run / "metrics.jsonl"
        self._terms = {metric.name for metric in metrics if metric.term}
        self._beside = {metric.name: metric.beside for metric in metrics if metric.beside}
        self._told = False
        self._continue(start - drop_last)
        self._events = run / "tensorboard"
        self._writer: SummaryWriter | None = None
        try:
            self._writer = SummaryWriter(self._events, purge_step=start - drop_last + 1)
        except OSError as error:
            self._drop_events(error)

    def _continue(self, last: int) -> None:
        points, bad = _read_lines(self.path)
        try:
            if bad:
                aside = self.path.with_name(self.path.name + ".damaged")
                shutil.copyfile(self.path, aside)
                warnings.warn(f"{self.path}: {bad} lines are no log points; a copy is kept in {aside.name}")
            kept = [point for point in points if point["step"] <= last]
            text = "".join(json.dumps(point) + "\n" for point in kept)
            write_atomically(self.path, lambda path: path.write_bytes(text.encode()))
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            warnings.warn(f"{self.path}: can't be written: {error.strerror}; the run goes on without it")
        self._told = True

    def _drop_events(self, error: OSError) -> None:
        warnings.warn(f"{self._events}: can't be written: {error.strerror}; the run goes on without it")
        self._writer = None

    def write(self, point: dict[str, float]) -> None:
        try:
            # Opened each time: whoever moves or deletes the file finds the next points in a new one.
            with self.path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a line that was cut must not take this one with it
                        file.write(b"\n")
                file.write(json.dumps(point).encode() + b"\n")
        except OSError as error:
            self._tell(error)
        self._write_events(point)

    def _write_events(self, point: dict[str, float]) -> None:
        if self._writer is None:
            return
        try:
            for name, value in point.items():
                if name not in ("step", "epoch"):
                    panel = f"loss/{name}" if name in self._terms else f"train/{name}"
                    if name in self._beside:
                        panel = f"validation/{self._beside[name]}"
                    self._writer.add_scalar(panel, value, point["step"])
        except OSError as error:
            self._drop_events(error)

    def sync(self) -> None:
        """Put everything on the disk, before a checkpoint that relies on it."""
        try:
            sync(self.path)
        except OSError as error:
            self._tell(error)
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._drop_events(error)

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._drop_events(error)


def bar_text(metrics: Sequence[Metric], point: Mapping[str, float]) -> str:
    """What the progress bar shows of a log point."""
    shown = [m.bar.format(point[m.name]) for m in (*metrics, *COMMON) if m.bar and m.name in point]
    *some, last = shown
    return f"{' '.join(some)}, {last}" if some else last


def _row(metric: Metric, first: dict[str, float], last: dict[str, float], width: int) -> str:
    # Points of earlier versions, or of a damaged file, lack some values.
    values = [
        f"{point[metric.name]:>9{metric.row}}" if metric.name in point else f"{'-':>9}"
        for point in (first, last)
    ]
    return f"{metric.name:<{width}}{values[0]}{values[1]}   {metric.note}".rstrip()


def summarize_points(points: Sequence[dict[str, float]], metrics: Sequence[Metric]) -> list[str]:
    """The first and the last log point as lines of a table, for people; of validation those that have it."""
    shown: dict[tuple[Panel, float], tuple[Metric, dict[str, float], dict[str, float]]] = {}
    for metric in metrics:
        first, last = points[0], points[-1]
        if metric.beside and (own := [point for point in points if metric.name in point]):
            first, last = own[0], own[-1]
        if metric.row and metric.name in last:
            # One that ends as another in its panel, as a stricter count does, adds nothing.
            shown.setdefault((metric.panel, last[metric.name]), (metric, first, last))
    width = max([17, *(len(metric.name) + 1 for metric, *_ in shown.values())])
    steps = f"(update {points[0]['step']}, {points[-1]['step']})"
    rows = [f"{'':<{width}}{'first':>9}{'last':>9}   {steps}"]
    return rows + [_row(*row, width) for row in shown.values()]
