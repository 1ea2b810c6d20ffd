"""Training metrics: summed on the device, read back at log points, written to files."""

import json
import math
import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ecgfast.errors import EcgfastError
from ecgfast.files import sync, write_atomically
from ecgfast.objectives import PretrainOutput

LOSS_TERMS = ("loss", "local", "diversity", "feature_penalty", "global")
"""Names of the logged loss terms: the total and what adds up to it, per masked token, in nats."""

_PER_BATCH = ("code_perplexity", "prob_perplexity", "temperature")
_SUMS = (
    *(*LOSS_TERMS, "n_correct", "sample_size", *_PER_BATCH, "batches", "grad_norm", "steps"),
    *("n_strict", "strict_size"),  # at the end: states of earlier versions do not have them
)


class MetricSums:
    """Sums over the steps since the last log point; float64, on the device, never waited for."""

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)

    def _add(self, **terms: Tensor | float) -> None:
        for name, term in terms.items():
            value = term.detach() if isinstance(term, Tensor) else term
            self.values[_SUMS.index(name)].add_(value)

    def add_batch(self, out: PretrainOutput) -> None:
        self._add(
            loss=out.loss,
            local=out.local,
            diversity=out.diversity,
            feature_penalty=out.feature_penalty,
            n_correct=out.n_correct,
            sample_size=out.sample_size,
            code_perplexity=out.code_perplexity,
            prob_perplexity=out.prob_perplexity,
            temperature=out.temperature,
            batches=1,
            **{"global": out.global_},
        )
        if out.n_strict is not None:
            self._add(n_strict=out.n_strict, strict_size=out.sample_size)

    def add_step(self, grad_norm: Tensor) -> None:
        self._add(grad_norm=grad_norm, steps=1)

    def restore(self, values: Tensor) -> None:
        """Take up sums that were read from `values` before; those of an earlier version are fewer."""
        self.values.zero_()
        self.values[: len(values)].copy_(values)

    def read(self) -> dict[str, float]:
        """The means of what was summed, and start again. Waits for the device."""
        sums = dict(zip(_SUMS, self.values.tolist(), strict=True))
        self.values.zero_()
        tokens = max(sums["sample_size"], 1.0)
        means = {name: sums[name] / tokens for name in LOSS_TERMS}
        means["accuracy"] = sums["n_correct"] / tokens
        means["accuracy_strict"] = sums["n_strict"] / max(sums["strict_size"], 1.0)
        means |= {name: sums[name] / sums["batches"] for name in _PER_BATCH}
        means["grad_norm"] = sums["grad_norm"] / sums["steps"]
        return means


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
        start: last step that the run's state knows of.
        drop_last: drop the log point of `start` too: it was the last of a shorter run.
    """

    def __init__(self, run: Path, start: int, *, drop_last: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of imports

        self.path = run / "metrics.jsonl"
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
                    panel = f"loss/{name}" if name in LOSS_TERMS else f"train/{name}"
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


def _row(name: str, first: dict[str, float], last: dict[str, float], form: str, unit: str) -> str:
    # Points of earlier versions, or of a damaged file, lack some values.
    values = [f"{point[name]:>9{form}}" if name in point else f"{'-':>9}" for point in (first, last)]
    return f"{name:<17}{values[0]}{values[1]}   {unit}".rstrip()


def summarize_run(run: Path) -> str:
    """What the run in `run` learned and where its files are, for people; a few lines."""
    points = read_metrics(run / "metrics.jsonl")
    if not points and not (run / "model").is_dir():
        raise EcgfastError(f"{run}: no metrics.jsonl with a log point")
    rows = _describe_points(points[0], points[-1]) if points else [f"{run}: metrics.jsonl can't be read"]
    files = {
        "model": "model.safetensors, config.json",
        "metrics.jsonl": "every log point",
        "tensorboard": "the same for TensorBoard",
        "curves.png": "the same as a picture",
        "checkpoint": "training state",
    }
    rows += [f"{run / name!s:<32} {text}" for name, text in files.items()]
    return "\n".join(rows)


def _describe_points(first: dict[str, float], last: dict[str, float]) -> list[str]:
    rows = [f"{'':<17}{'first':>9}{'last':>9}   (update {first['step']}, {last['step']})"]
    for name in LOSS_TERMS:
        unit = "per masked token" if name == "loss" else ""
        rows.append(_row(name, first, last, ".4f", unit))
    rows.append(_row("accuracy", first, last, ".1%", "of masked tokens told from their negatives"))
    if "accuracy_strict" in last and last["accuracy_strict"] != last.get("accuracy"):
        rows.append(_row("accuracy_strict", first, last, ".1%", "without ties, of those with a negative"))
    return rows
