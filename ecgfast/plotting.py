"""Pictures of runs and of recordings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS, STANDARD_LEADS

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


_GRID = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
_MM_PER_SECOND, _MM_PER_MILLIVOLT = 25.0, 10.0
_PAGE_SECONDS = 10.0
_ROW_MM, _MARGIN_MM, _HEAD_MM = 30.0, 10.0, 15.0
_NAME_MM, _NAME_WIDTH_MM = 10.0, 8.0  # where a lead's name stands above its baseline, if the trace allows
_PULSE_MM = 15.0  # where the calibration pulse stands, left of every row
_PAPER, _FINE, _COARSE, _INK = "#fffafa", "#f9d5d5", "#eea6a6", "#101010"


def plot_recording(
    signal: np.ndarray,
    present: Sequence[str],
    out: Path,
    *,
    rate: float = 500.0,
    start: float = 0.0,
    rhythm: str = "II",
    title: str = "",
) -> None:
    """Draw ten seconds of a recording on ECG paper: 3 x 4 leads of 2.5 s each, and a rhythm strip.

    The scale is the usual one, 25 mm/s and 10 mm/mV, with a calibration pulse of 1 mV for 0.2 s before every
    row; printed at 100 % the PNG's millimetres are millimetres.

    Args:
        signal: int16 microvolts [12, n], leads in standard order.
        present: Names of the leads present; the others are left out.
        out: PNG file to write.
        rate: Samples per second.
        start: Second at which the page begins.
        rhythm: Lead of the strip below.
        title: Line above the page.

    Raises:
        EcgfastError: a signal of another shape, a start beyond it, an unknown rhythm lead.
    """
    if signal.ndim != 2 or signal.shape[0] != N_LEADS:
        raise EcgfastError(f"signal: got shape {list(signal.shape)}, want [12, n]")
    if rhythm not in STANDARD_LEADS:
        raise EcgfastError(f"rhythm: got {rhythm!r}, want one of {', '.join(STANDARD_LEADS)}")
    if not 0 <= start < signal.shape[1] / rate:
        raise EcgfastError(f"start: got {start:g} s of a recording of {signal.shape[1] / rate:g} s")
    first = int(start * rate)
    millivolts = signal[:, first : first + int(_PAGE_SECONDS * rate)] / 1000.0
    width = 2 * _MARGIN_MM + _PULSE_MM + _PAGE_SECONDS * _MM_PER_SECOND
    height = 2 * _MARGIN_MM + _HEAD_MM + (len(_GRID) + 1) * _ROW_MM
    axes, save = _paper(width, height)
    column_seconds = _PAGE_SECONDS / len(_GRID[0])
    for row, leads in enumerate((*_GRID, (rhythm,))):
        baseline = height - _MARGIN_MM - _HEAD_MM - (row + 0.5) * _ROW_MM
        _pulse(axes, _MARGIN_MM, baseline)
        span = column_seconds if len(leads) > 1 else _PAGE_SECONDS
        for column, lead in enumerate(leads):
            trace = millivolts[STANDARD_LEADS.index(lead)] if lead in present else None
            begin = column * span
            left = _MARGIN_MM + _PULSE_MM + begin * _MM_PER_SECOND
            _trace(axes, lead, trace, rate, (begin, begin + span), (left, baseline))
    axes.text(_MARGIN_MM, height - _MARGIN_MM, title, fontsize=9, va="top", color=_INK)
    scale = f"{_MM_PER_SECOND:g} mm/s   {_MM_PER_MILLIVOLT:g} mm/mV   from {start:g} s"
    axes.text(_MARGIN_MM, _MARGIN_MM / 2, scale, fontsize=7, va="center", color=_INK)
    save(out)


def _paper(width: float, height: float) -> tuple[Any, Any]:
    """Axes in millimetres over a whole page with its grid, and a function that saves it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 25.4, height / 25.4), facecolor=_PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    for step, colour, line in ((1, _FINE, 0.4), (5, _COARSE, 0.7)):
        axes.vlines(np.arange(0, width + 1, step), 0, height, colors=colour, linewidth=line)
        axes.hlines(np.arange(0, height + 1, step), 0, width, colors=colour, linewidth=line)

    def save(out: Path) -> None:
        partial = out.with_name(out.name + ".partial")
        figure.savefig(partial, dpi=254, format="png", facecolor=_PAPER)  # ten pixels per millimetre
        os.replace(partial, out)

    return axes, save


def _pulse(axes: Any, left: float, baseline: float) -> None:
    """1 mV for 0.2 s."""
    x = left + np.array([0, 2.5, 2.5, 7.5, 7.5, 10])
    y = baseline + _MM_PER_MILLIVOLT * np.array([0, 0, 1, 1, 0, 0])
    axes.plot(x, y, color=_INK, linewidth=0.9, solid_joinstyle="miter")


def _name_height(millivolts: np.ndarray, rate: float, begin: float) -> float:
    """Millimetres above the baseline at which a name is clear of the trace below it, within the row."""
    below = millivolts[int(begin * rate) : int((begin + _NAME_WIDTH_MM / _MM_PER_SECOND) * rate)]
    peak = _MM_PER_MILLIVOLT * below.max(initial=0.0)
    return min(max(_NAME_MM, peak + 1.0), 0.7 * _ROW_MM)


def _trace(
    axes: Any,
    lead: str,
    millivolts: np.ndarray | None,
    rate: float,
    seconds: tuple[float, float],
    origin: tuple[float, float],
) -> None:
    """One lead's seconds at a place on the page, its name above it."""
    left, baseline = origin
    axes.vlines(left, baseline - 3, baseline + 3, colors=_INK, linewidth=0.6)
    absent = millivolts is None
    axes.text(
        left + 1.5,
        baseline + (_NAME_MM if absent else _name_height(millivolts, rate, seconds[0])),
        f"{lead} (absent)" if absent else lead,
        fontsize=8,
        weight="bold",
        color=_INK,
    )
    if absent:
        return
    shown = millivolts[int(seconds[0] * rate) : int(seconds[1] * rate)]
    x = left + np.arange(len(shown)) / rate * _MM_PER_SECOND
    axes.plot(x, baseline + shown * _MM_PER_MILLIVOLT, color=_INK, linewidth=0.7)
