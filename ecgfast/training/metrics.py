"""Training metrics: summed on the device, read back at log points, written to files."""

import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from ecgfast.errors import EcgfastError
from ecgfast.objectives import PretrainOutput
from ecgfast.training.checkpoint import write_atomically

LOSS_TERMS = ("loss", "local", "diversity", "feature_penalty", "global")
"""Names of the logged loss terms: the total and what adds up to it, per masked token, in nats."""

_PER_BATCH = ("code_perplexity", "prob_perplexity", "temperature")
_SUMS = (*LOSS_TERMS, "n_correct", "sample_size", *_PER_BATCH, "batches", "grad_norm", "steps")


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

    def add_step(self, grad_norm: Tensor) -> None:
        self._add(grad_norm=grad_norm, steps=1)

    def read(self) -> dict[str, float]:
        """The means of what was summed, and start again. Waits for the device."""
        sums = dict(zip(_SUMS, self.values.tolist(), strict=True))
        self.values.zero_()
        tokens = max(sums["sample_size"], 1.0)
        means = {name: sums[name] / tokens for name in LOSS_TERMS}
        means["accuracy"] = sums["n_correct"] / tokens
        means |= {name: sums[name] / sums["batches"] for name in _PER_BATCH}
        means["grad_norm"] = sums["grad_norm"] / sums["steps"]
        return means


def check_finite(what: str, value: float, step: int) -> None:
    """Raise `EcgfastError` where `value` is no number any more: there is nothing to go on with."""
    if not math.isfinite(value):
        raise EcgfastError(
            f"the {what} became {value} by step {step}; the last checkpoint is kept: a lower optim.lr, "
            "more optim.warmup_steps or optim.clip_norm may help, in a new run folder"
        )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The log points of `metrics.jsonl`, oldest first, without a line that a crash cut off."""
    points = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                points.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return points


class MetricLog:
    """`metrics.jsonl` and TensorBoard events of a run, continued after step `start`.

    Log points of later steps, left by a process that died, are dropped.
    """

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of imports

        path = run / "metrics.jsonl"
        kept = [point for point in read_metrics(path) if point["step"] <= start]
        text = "".join(json.dumps(point) + "\n" for point in kept)
        write_atomically(path, lambda file: file.write(text.encode()))
        self._file = path.open("a")
        self._writer = SummaryWriter(run / "tensorboard", purge_step=start + 1)

    def write(self, point: dict[str, float]) -> None:
        self._file.write(json.dumps(point) + "\n")
        self._file.flush()
        for name, value in point.items():
            if name not in ("step", "epoch"):
                panel = f"loss/{name}" if name in LOSS_TERMS else f"train/{name}"
                self._writer.add_scalar(panel, value, point["step"])

    def sync(self) -> None:
        """Put everything on the disk, before a checkpoint that relies on it."""
        os.fsync(self._file.fileno())
        self._writer.flush()

    def close(self) -> None:
        self._file.close()
        self._writer.close()


def summarize_run(run: Path) -> str:
    """What the run in `run` learned and where its files are, for people; a few lines."""
    points = read_metrics(run / "metrics.jsonl")
    if not points:
        raise EcgfastError(f"{run}: no metrics.jsonl with a log point")
    first, last = points[0], points[-1]
    rows = [f"{'':<17}{'first':>9}{'last':>9}   (update {first['step']}, {last['step']})"]
    for name in LOSS_TERMS:
        unit = "per masked token" if name == "loss" else ""
        rows.append(f"{name:<17}{first[name]:>9.4f}{last[name]:>9.4f}   {unit}".rstrip())
    rows.append(
        f"{'accuracy':<17}{first['accuracy']:>9.1%}{last['accuracy']:>9.1%}   "
        "of masked tokens told from their negatives"
    )
    files = {
        "model": "model.safetensors, config.json",
        "metrics.jsonl": "every log point",
        "tensorboard": "the same for TensorBoard",
        "curves.png": "the same as a picture",
        "checkpoint": "training state",
    }
    rows += [f"{run / name!s:<32} {text}" for name, text in files.items()]
    return "\n".join(rows)
