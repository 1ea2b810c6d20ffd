"""Figures of an evaluation: scores by leads and method, ROC curves, reliability."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.assessment.results import LOWER_IS_BETTER, METRICS, MODEL, RANDOM, Result, leads_name
from ecgfast.plotting import new_figure, save_figure

_BINS = 10
_MOST_CURVES = 12  # of classes in a panel: more can't be told from each other
_COLOURS = ("#1f5fa8", "#d1651e", "#3a8f4b", "#8a3fa0", "#b02a37", "#6b6b6b")


def draw_figures(
    out: Path, content: Mapping[str, Any], results: Sequence[Result], arrays: Mapping[str, np.ndarray]
) -> list[Path]:
    """Draw what the task has into the folder `out`: `heatmap.png`, and of classes or identities `roc.png`, of
    classes `reliability.png`, of numbers `scatter.png`.

    Args:
        out: The folder.
        content: Of `report.json`.
        results: The results, with their scores.
        arrays: Of `scores.npz`.

    Returns:
        The files.
    """
    kind = content["task"]["kind"]
    drawn = [_heatmap(out / "heatmap.png", content, results)]
    if kind == "classification":
        drawn.append(_roc(out / "roc.png", content, results, arrays))
        drawn.append(_reliability(out / "reliability.png", content, results, arrays))
    elif kind == "regression":
        drawn.append(_scatter(out / "scatter.png", content, results, arrays))
    else:
        drawn.append(_roc_of_identities(out / "roc.png", content, results))
    return drawn


def _heatmap(file: Path, content: Mapping[str, Any], results: Sequence[Result]) -> Path:
    """The main metric, a row for each set of leads, a column for each method."""
    metric, name = next(iter(METRICS[content["task"]["kind"]].items()))
    sets = [one["leads"] for one in content["lead_sets"]]
    methods = list(dict.fromkeys(result.method for result in results))
    values = np.full((len(sets), len(methods)), np.nan)
    for result in results:
        found = result.value(metric)
        if found is not None:
            values[sets.index(result.leads), methods.index(result.method)] = found["value"]
    figure = new_figure(2.2 + 1.25 * len(methods), 1.9 + 0.55 * len(sets))
    axes = figure.subplots()
    colours = "viridis_r" if metric in LOWER_IS_BETTER else "viridis"
    image = axes.imshow(values, cmap=colours, aspect="auto")
    axes.set_xticks(range(len(methods)), [method.replace(", ", "\n") for method in methods], fontsize=9)
    axes.set_yticks(range(len(sets)), sets)
    axes.set_ylabel("leads")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = image.cmap(image.norm(value))
            dark = float(np.dot(shade[:3], (0.299, 0.587, 0.114))) < 0.55
            text = f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    figure.colorbar(image, ax=axes, label=name)
    axes.set_title(f"{content['task']['name']}: {name} of the test part", parse_math=False)
    return save_figure(figure, file)


def _shown(content: Mapping[str, Any], results: Sequence[Result]) -> list[Result]:
    """At the first set of leads, the methods with all labels."""
    first = content["lead_sets"][0]["leads"]
    share = max(result.share for result in results)
    return [r for r in results if r.leads == first and r.share == share]


def _roc(
    file: Path, content: Mapping[str, Any], results: Sequence[Result], arrays: Mapping[str, np.ndarray]
) -> Path:
    """Left the classes of the first method, middle the methods, right the first method by leads."""
    first = _shown(content, results)[0]
    by_leads = [
        r for r in results if (r.encoder, r.probe, r.share) == (first.encoder, first.probe, first.share)
    ]
    figure = new_figure(13.5, 4.8)
    classes, methods, leads = figure.subplots(1, 3)
    curves = _class_curves(content, first, arrays)
    told = {one["name"]: one["auroc"]["value"] for one in first.report["classes"]}
    for name, (false, true) in list(curves.items())[:_MOST_CURVES]:
        classes.plot(false, true, linewidth=1.2, label=f"{name} {told[name]:.3f}")
    more = len(curves) - _MOST_CURVES
    classes.set_title(
        f"{first.method}, {leads_name(first.leads)}" + (f" ({more} classes more)" if more > 0 else "")
    )
    for axes, some, label in (
        (methods, _shown(content, results), lambda r: r.method),
        (leads, by_leads, lambda r: leads_name(r.leads)),
    ):
        for number, result in enumerate(some):
            false, true = _macro_curve(_class_curves(content, result, arrays))
            value = result.report["macro_auroc"]["value"]
            style = "--" if result.encoder == RANDOM else "-"
            colour = _COLOURS[number % len(_COLOURS)]
            axes.plot(false, true, style, color=colour, linewidth=1.4, label=f"{label(result)} {value:.3f}")
    methods.set_title(f"Mean over classes, {leads_name(first.leads)}")
    leads.set_title(f"Mean over classes, {first.method}")
    for axes in (classes, methods, leads):
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
        axes.set(xlabel="false positive rate", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
        axes.legend(fontsize=7, loc="lower right", title="AUROC", title_fontsize=7)
        axes.grid(alpha=0.3)
    classes.set_ylabel("true positive rate")
    return save_figure(figure, file)


def _class_curves(
    content: Mapping[str, Any], result: Result, arrays: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """False and true positive rates of each class that the report scores."""
    from sklearn.metrics import roc_curve

    names = content["task"]["names"]
    truth = arrays["targets"][arrays[f"units|{result.leads}"]]
    found = {}
    for one in result.report["classes"]:
        k = names.index(one["name"])
        false, true, _ = roc_curve(truth[:, k], result.scores[:, k])
        found[one["name"]] = false, true
    return found


def _macro_curve(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over classes of the true positive rate at each false positive rate."""
    at = np.linspace(0, 1, 401)
    mean = np.mean([np.interp(at, false, true) for false, true in curves.values()], axis=0)
    return np.concatenate([[0], at]), np.concatenate([[0], mean])


def _reliability(
    file: Path, content: Mapping[str, Any], results: Sequence[Result], arrays: Mapping[str, np.ndarray]
) -> Path:
    """How often a class is there of which a probability is told, all classes together; below, how often that
    is told.
    """
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    shown = [result for result in _shown(content, results) if result.encoder == MODEL]
    figure = new_figure(5.6, 6.4)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    names = content["task"]["names"]
    for number, result in enumerate(shown):
        columns = [names.index(one["name"]) for one in result.report["classes"]]
        truth = arrays["targets"][arrays[f"units|{result.leads}"]][:, columns].ravel()
        told = np.clip(result.scores[:, columns], 0, 1).ravel()
        share, mean = calibration_curve(truth, told, n_bins=_BINS)
        colour = _COLOURS[number % len(_COLOURS)]
        loss = brier_score_loss(truth, told)
        axes.plot(
            mean, share, marker="o", markersize=4, color=colour, label=f"{result.method}, Brier {loss:.3f}"
        )
        below.hist(told, bins=_BINS, range=(0, 1), histtype="step", color=colour, linewidth=1.4)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
    axes.set(ylabel="share that has the class", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"Reliability, {leads_name(shown[0].leads)}, {len(columns)} classes together")
    axes.legend(fontsize=8, loc="upper left")
    below.set(xlabel="probability told", ylabel="times told")
    for one in (axes, below):
        one.grid(alpha=0.3)
    return save_figure(figure, file)


def _scatter(
    file: Path, content: Mapping[str, Any], results: Sequence[Result], arrays: Mapping[str, np.ndarray]
) -> Path:
    """What is told against what is, a panel for each method."""
    shown = _shown(content, results)
    figure = new_figure(3.6 * len(shown), 4.0)
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, result in zip(panels, shown, strict=True):
        truth = arrays["targets"][arrays[f"units|{result.leads}"]][:, 0]
        told = result.scores[:, 0]
        axes.plot(truth, told, ".", markersize=4, alpha=0.6, color=_COLOURS[0])
        ends = [truth.min(), truth.max()]
        axes.plot(ends, ends, color="0.5", linestyle=":", linewidth=1)
        axes.set_title(f"{result.method}\nMAE {result.report['mae']['value']:.3g}", fontsize=9)
        axes.set_xlabel(content["task"]["names"][0], parse_math=False)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"told, {leads_name(shown[0].leads)}")
    return save_figure(figure, file)


def _roc_of_identities(file: Path, content: Mapping[str, Any], results: Sequence[Result]) -> Path:
    """True against false acceptances, whose rate is logarithmic: few may be false."""
    figure = new_figure(6.4, 5.0)
    axes = figure.subplots()
    sets = [one["leads"] for one in content["lead_sets"]]
    least = 1.0
    for result in results:
        false, true = np.array(result.report["roc"]).T
        least = min(least, float(false[false > 0].min(initial=1.0)))
        colour = _COLOURS[sets.index(result.leads) % len(_COLOURS)]
        style = "--" if result.encoder == RANDOM else "-"
        told = [leads_name(result.leads), *(["random encoder"] if result.encoder == RANDOM else [])]
        label = f"{', '.join(told)}, EER {result.report['eer']:.3f}"
        axes.plot(false, true, style, color=colour, linewidth=1.4, label=label)
    axes.set(xscale="log", xlim=(least, 1), ylim=(0, 1.005))
    axes.set(xlabel="false acceptance rate", ylabel="true acceptance rate")
    axes.set_title(f"{content['task']['name']}: acceptance of claimed identities")
    axes.legend(fontsize=7, loc="upper left")
    axes.grid(alpha=0.3, which="both")
    return save_figure(figure, file)
