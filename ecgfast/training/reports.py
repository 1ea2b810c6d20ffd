"""What a run's folder tells: its metrics with their meaning, as a table and as curves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecgfast.errors import EcgfastError
from ecgfast.nn.config import config_from_dict
from ecgfast.objectives.base import Metric
from ecgfast.objectives.registry import DEFAULT, objective_class
from ecgfast.plotting import plot_curves
from ecgfast.training.metrics import COMMON, read_metrics, summarize_points
from ecgfast.training.validating import validation_metrics


def run_metrics(run: Path) -> tuple[Metric, ...]:
    """The metrics of a run, with what guessing would reach, as its `config.json` tells its objective.

    Without one that can be read they are those of the default objective, and nothing is known of guessing.
    """
    try:
        description = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return (*_described(description), *COMMON)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EcgfastError):
        kind = objective_class(DEFAULT)
        plain = (metric._replace(chance=None) for metric in kind.metrics(kind.Config()))
        return (*plain, *COMMON)


def _described(description: dict[str, Any]) -> tuple[Metric, ...]:
    config = description["config"]
    kind = objective_class(config.get("objective", DEFAULT))
    n_rows = rows_contrasted(config["batch_pairs"], config.get("global_batch"), description.get("world_size"))
    metrics = kind.metrics(config_from_dict(kind.Config, config["model"], "model"), n_rows)
    return (*metrics, *validation_metrics(metrics))


def rows_contrasted(batch_pairs: int, global_batch: bool, world_size: int) -> int:
    """Rows among which a loss contrasts: a process's, or those of all."""
    return 2 * batch_pairs * (world_size if global_batch else 1)


def plot_run(run: Path, out: Path, metrics: Sequence[Metric] | None = None) -> None:
    """Draw the curves of a run's `metrics.jsonl`, one panel per quantity, see `plot_curves`.

    Args:
        run: folder of the run.
        out: PNG, PDF or SVG file to write, by the end of its name.
        metrics: of the run; None: those of its objective.

    Raises:
        EcgfastError: the run has no log point; `out` has another end or no folder.
    """
    points = read_metrics(run / "metrics.jsonl")
    if not points:
        raise EcgfastError(f"{run / 'metrics.jsonl'}: no log point to plot")
    plot_curves(points, run_metrics(run) if metrics is None else metrics, out, title=str(run))


def summarize_run(run: Path, metrics: Sequence[Metric] | None = None) -> str:
    """What the run in `run` learned and where its files are, for people; a few lines.

    `metrics` are those of the run; None: those of its objective.
    """
    points = read_metrics(run / "metrics.jsonl")
    if not points and not (run / "model").is_dir():
        raise EcgfastError(f"{run}: no metrics.jsonl with a log point")
    known = run_metrics(run) if metrics is None else metrics
    rows = summarize_points(points, known) if points else [f"{run}: metrics.jsonl can't be read"]
    files = {
        "model": "model.safetensors, config.json",
        "metrics.jsonl": "every log point",
        "tensorboard": "the same for TensorBoard",
        "curves.png": "the same as a picture",
        "checkpoint": "training state",
    }
    rows += [f"{run / name!s:<32} {text}" for name, text in files.items()]
    return "\n".join(rows)
