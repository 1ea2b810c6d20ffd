"""Pictures of runs."""

import os
from pathlib import Path

from ecgfast.errors import EcgfastError

# Title, y label, and the metrics drawn with their names in the legend (one needs none).
_PANELS = (
    ("Total loss", "nats", {"loss": ""}),
    ("Local loss (W2V)", "nats per masked token", {"local": ""}),
    ("Global loss (CMSC)", "nats", {"global": ""}),
    ("Diversity loss", "with its weight", {"diversity": ""}),
    ("Feature penalty", "with its weight", {"feature_penalty": ""}),
    ("Masked tokens found among negatives", "share", {"accuracy": ""}),
    (
        "Codebook perplexity",
        "entries in use, all groups",
        {"code_perplexity": "chosen codes", "prob_perplexity": "mean probabilities"},
    ),
    ("Gradient norm", "before clipping", {"grad_norm": ""}),
    ("Throughput", "segments per second", {"segments_per_second": ""}),
)


def plot_curves(metrics: Path, out: Path) -> None:
    """Draw the curves of a `metrics.jsonl` over the updates, one panel per quantity, as a PNG.

    Raises:
        EcgfastError: `metrics` holds no log point.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ecgfast.training.metrics import read_metrics

    points = read_metrics(metrics)
    if not points:
        raise EcgfastError(f"{metrics}: no log point to plot")
    steps = [point["step"] for point in points]
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, label, names) in zip(figure.subplots(3, 3, sharex=True).flat, _PANELS, strict=True):
        for name, legend in names.items():
            values = [point[name] for point in points]
            axes.plot(steps, values, marker="." if len(points) < 60 else "", label=legend)
        axes.set_title(title)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.xaxis.set_tick_params(labelbottom=True)
        if len(names) > 1:
            axes.legend()
    for axes in figure.axes[-3:]:
        axes.set_xlabel("update")
    figure.suptitle(f"{metrics.parent}: {steps[-1]} updates")
    partial = out.with_name(out.name + ".partial")
    figure.savefig(partial, dpi=110, format="png")
    os.replace(partial, out)
