"""Pictures of runs and of recordings."""

import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast._outputs import PICTURES, check_output, write_whole
from ecgfast._suggest import did_you_mean
from ecgfast.data.signal.rhythm import heart_rate
from ecgfast.data.store.codes import with_name
from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS, STANDARD_LEADS, find_lead
from ecgfast.objectives.base import Metric, Panel
from ecgfast.units import UNITS_PER_MILLIVOLT


def plot_curves(
    points: Sequence[Mapping[str, float]], metrics: Sequence[Metric], out: Path, *, title: str = ""
) -> None:
    """Draw the curves of a run over the updates, one panel per quantity.

    Metrics that no point has have no panel. Dotted lines show what guessing would reach, where it is known.

    Args:
        points: Log points, oldest first, with their `step`.
        metrics: What to draw, panel by panel.
        out: PNG, PDF or SVG file to write, by the end of its name.
        title: Line above the panels; the number of updates follows it.

    Raises:
        EcgfastError: there is no log point; `out` has another end or no folder.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_output("out", out, PICTURES)
    if not points:
        raise EcgfastError("points: must hold a log point, got none")
    panels: dict[Panel, list[Metric]] = {}
    for metric in metrics:
        if any(metric.name in point for point in points):
            panels.setdefault(metric.panel, []).append(metric)
    columns = 4 if len(panels) > 9 else 3
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(rows, columns, sharex=True, squeeze=False).flat[len(panels) :]:
        axes.remove()
    for axes, (panel, drawn) in zip(figure.axes, panels.items(), strict=True):
        _draw_panel(axes, panel, drawn, points)
    for axes in figure.axes[-columns:]:
        axes.set_xlabel("update")
    head = f"{title}: {points[-1]['step']:,} updates".removeprefix(": ")
    figure.suptitle("\n".join(textwrap.wrap(head, 120)), parse_math=False)
    _save(figure, out, dpi=110)


def _draw_panel(
    axes: Any, panel: Panel, metrics: Sequence[Metric], points: Sequence[Mapping[str, float]]
) -> None:
    colours: dict[str, Any] = {}
    several = len(metrics) > 1
    for metric in metrics:
        # Those of validation stand at some of the log points only.
        own = [point for point in points if metric.name in point]
        steps, values = [point["step"] for point in own], [point[metric.name] for point in own]
        style = {"linestyle": "--", "color": colours.get(metric.beside)} if metric.beside else {}
        legend = metric.legend or ("training" if several else "")
        (line,) = axes.plot(
            steps,
            values,
            marker="." if len(own) < 60 else "",
            label=legend if several else None,
            **style,
        )
        colours[metric.name] = line.get_color()
    for value, words in dict.fromkeys(metric.chance for metric in metrics if metric.chance):
        axes.axhline(value, color="0.35", linestyle=":", label=f"chance: {words}")
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    axes.grid(alpha=0.3)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_tick_params(labelbottom=True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, which no window is opened for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, out: Path) -> Path:
    """Write a figure whole, PNG, PDF or SVG by the end of the name; returns the file.

    Raises:
        EcgfastError: `out` has another end or no folder.
    """
    check_output("out", out, PICTURES)
    _save(figure, out, dpi=130)
    return out


def _save(figure: Any, out: Path, **options: Any) -> None:
    """Write a figure in the format that the end of the name tells; text stays text in PDF and SVG."""
    import matplotlib

    kind = out.suffix.casefold().removeprefix(".")
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    settings = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "ecgfast"}
    with warnings.catch_warnings(), matplotlib.rc_context(settings):
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a box stands for it
        write_whole(out, lambda path: figure.savefig(path, format=kind, metadata=undated, **options))


_MM_PER_SECOND = 25.0
_MM_PER_MILLIVOLT = (10.0, 5.0, 2.5, 1.0, 0.5)  # the first at which the page's largest wave fits
_TALLEST_MM = 40.0  # of a wave above or below its baseline; neighbouring rows may overlap
_SHIFTED_MV = 1.5  # of a lead's median, from which it is drawn about its median
_PAGE_SECONDS = 10.0
_ROW_MM, _MARGIN_MM, _HEAD_MM, _LINE_MM = 30.0, 10.0, 15.0, 4.2
_LINES, _LINE_CHARACTERS = 3, 138  # lines of text that the head holds, and how long they are
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
    rhythm: str | None = None,
    title: str = "",
    labels: Sequence[str] = (),
) -> None:
    """Draw ten seconds of a recording on ECG paper: the leads that are there, and a rhythm strip.

    Twelve leads have the usual 3 rows of 4 leads, 2.5 s each; up to three leads have rows of their own, up to
    eight share rows by two. Every row is as wide as the page. Where leads share rows, a strip of one lead
    stands below. A column shows its own part of the ten seconds, or, of a shorter recording, the last part
    that fills it.

    The scale is the usual one, 25 mm/s and 10 mm/mV, with a calibration pulse of 1 mV for 0.2 s before every
    row; printed at 100 % the page's millimetres are millimetres. It is 5 mm/mV or less for waves above 4 mV.
    A lead whose median is more than 1.5 mV from zero is drawn about its median, which stands beside its name.

    The heart rate is that of the seconds shown, in beats per minute, "HR ?" where it can't be told.

    Args:
        signal: int16 microvolts [12, n], leads in standard order.
        present: Names of the leads present; the others are left out.
        out: PNG, PDF or SVG file to write, by the end of its name.
        rate: Samples per second.
        start: Second at which the page begins.
        rhythm: Lead of the strip below, one of those present; None: II, I, V1 or the first that is there.
        title: Line above the page.
        labels: Labels of the recording; known SNOMED CT and SCP-ECG codes are shown with their names.

    Raises:
        EcgfastError: a signal of another shape, a start beyond it, an unknown or absent rhythm lead, no lead;
            `out` has another end or no folder.
    """
    check_output("out", out, PICTURES)
    leads, strip = _check_recording(signal, present, rate, start, rhythm)
    first = int(start * rate)
    last = first + int(_PAGE_SECONDS * rate)
    page = {lead: signal[STANDARD_LEADS.index(lead), first:last] / UNITS_PER_MILLIVOLT for lead in leads}
    beats = heart_rate(np.stack(list(page.values())), rate)
    shown = ", ".join(map(with_name, labels)) or "no labels"
    head = _wrap(title) + _wrap(f"HR {'?' if beats is None else f'{beats:.0f} /min'}   {shown}")
    _draw_page(page, strip, rate, start, head, out)


def _check_recording(
    signal: np.ndarray, present: Sequence[str], rate: float, start: float, rhythm: str | None
) -> tuple[list[str], str]:
    """The leads to draw, in standard order, and that of the strip."""
    if signal.ndim != 2 or signal.shape[0] != N_LEADS:
        raise EcgfastError(f"signal: got shape {list(signal.shape)}, want [12, n]")
    strip = None
    if rhythm is not None:
        index = find_lead(rhythm)
        if index is None:
            near = did_you_mean(rhythm, STANDARD_LEADS)
            raise EcgfastError(f"rhythm: got {rhythm!r}, want one of {', '.join(STANDARD_LEADS)}{near}")
        strip = STANDARD_LEADS[index]
    if not 0 <= start < signal.shape[1] / rate:
        raise EcgfastError(f"start: got {start:g} s of a recording of {signal.shape[1] / rate:g} s")
    leads = [lead for lead in STANDARD_LEADS if lead in present]
    if not leads:
        raise EcgfastError("present: got no standard lead, want at least one")
    if strip is None:
        return leads, next(lead for lead in ("II", "I", "V1", *leads) if lead in leads)
    if strip not in leads:
        raise EcgfastError(
            f"rhythm: got {rhythm!r}, which the recording lacks, want one of {', '.join(leads)}"
        )
    return leads, strip


def _wrap(text: str) -> list[str]:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.wrap(printable, _LINE_CHARACTERS)


def arrange_leads(leads: Sequence[str]) -> list[list[str]]:
    """Rows of leads for a page, each as wide as the page: down the columns in the order given.

    Columns: one for up to three leads, two for up to eight, three for nine, else four.
    """
    n = len(leads)
    columns = 1 if n <= 3 else 2 if n <= 8 else 3 if n <= 9 else 4
    heights = [n // columns + (column < n % columns) for column in range(columns)]
    starts = np.cumsum([0, *heights])
    return [[leads[starts[c] + row] for c in range(columns) if row < heights[c]] for row in range(heights[0])]


def _draw_page(
    page: dict[str, np.ndarray], strip: str, rate: float, start: float, head: Sequence[str], out: Path
) -> None:
    rows = arrange_leads(list(page))
    if len(rows[0]) > 1:
        rows.append([strip])
    head_mm = _HEAD_MM + _LINE_MM * max(0, len(head) - _LINES)
    width = 2 * _MARGIN_MM + _PULSE_MM + _PAGE_SECONDS * _MM_PER_SECOND
    height = 2 * _MARGIN_MM + head_mm + len(rows) * _ROW_MM
    axes, save = _paper(width, height)
    offsets = {lead: float(np.median(trace)) for lead, trace in page.items()}
    offsets = {lead: offset for lead, offset in offsets.items() if abs(offset) > _SHIFTED_MV}
    page = {lead: trace - offsets.get(lead, 0.0) for lead, trace in page.items()}
    gain = _gain(page)
    seconds = len(page[strip]) / rate
    aligned = True
    for row, leads in enumerate(rows):
        baseline = height - _MARGIN_MM - head_mm - (row + 0.5) * _ROW_MM
        _pulse(axes, _MARGIN_MM, baseline, gain)
        span = _PAGE_SECONDS / len(leads)
        for column, lead in enumerate(leads):
            begin = max(0.0, min(column * span, seconds - span))
            aligned = aligned and begin == column * span
            left = _MARGIN_MM + _PULSE_MM + column * span * _MM_PER_SECOND
            shown = page[lead][round(begin * rate) : round((begin + span) * rate)]
            name = f"{lead} ({offsets[lead]:+.1f} mV)" if lead in offsets else lead
            _trace(axes, name, shown, rate, gain, (left, baseline))
    top = height - _MARGIN_MM / 2
    for number, line in enumerate(head):
        _text(axes, _MARGIN_MM, top - number * _LINE_MM, line, fontsize=9, va="top")
    scale = f"{_MM_PER_SECOND:g} mm/s   {gain:g} mm/mV   from {start:g} s"
    _text(axes, _MARGIN_MM, _MARGIN_MM / 2, scale, fontsize=7, va="center")
    if not aligned:
        note = f"{seconds:g} s in all: columns overlap in time"
        _text(axes, _MARGIN_MM, _MARGIN_MM / 2 - 3, note, fontsize=7, va="center")
    save(out)


def _gain(page: dict[str, np.ndarray]) -> float:
    tallest = max(float(np.abs(trace).max(initial=0.0)) for trace in page.values())
    return next((gain for gain in _MM_PER_MILLIVOLT if gain * tallest <= _TALLEST_MM), _MM_PER_MILLIVOLT[-1])


def _paper(width: float, height: float) -> tuple[Any, Callable[[Path], None]]:
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
        _save(figure, out, dpi=254, facecolor=_PAPER)  # ten pixels per millimetre

    return axes, save


def _text(axes: Any, x: float, y: float, text: str, **options: Any) -> None:
    # Names of records and labels are text, whatever dollar signs are in them.
    axes.text(x, y, text, color=_INK, parse_math=False, **options)


def _pulse(axes: Any, left: float, baseline: float, gain: float) -> None:
    """1 mV for 0.2 s."""
    x = left + np.array([0, 2.5, 2.5, 7.5, 7.5, 10])
    y = baseline + gain * np.array([0, 0, 1, 1, 0, 0])
    axes.plot(x, y, color=_INK, linewidth=0.9, solid_joinstyle="miter")


def _name_height(millimetres: np.ndarray, rate: float) -> float:
    """Millimetres above the baseline at which a name is clear of the trace below it, within the row."""
    peak = millimetres[: int(_NAME_WIDTH_MM / _MM_PER_SECOND * rate)].max(initial=0.0)
    return min(max(_NAME_MM, peak + 1.0), 0.7 * _ROW_MM)


def _trace(
    axes: Any, name: str, millivolts: np.ndarray, rate: float, gain: float, origin: tuple[float, float]
) -> None:
    """One lead's seconds at a place on the page, its name above it."""
    left, baseline = origin
    millimetres = gain * millivolts
    axes.vlines(left, baseline - 3, baseline + 3, colors=_INK, linewidth=0.6)
    height = baseline + _name_height(millimetres, rate)
    _text(axes, left + 1.5, height, name, fontsize=8, weight="bold")
    x = left + np.arange(len(millimetres)) / rate * _MM_PER_SECOND
    axes.plot(x, baseline + millimetres, color=_INK, linewidth=0.7)
