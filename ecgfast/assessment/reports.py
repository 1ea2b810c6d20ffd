"""The report of an evaluation in Markdown."""

from collections.abc import Sequence
from typing import Any

from ecgfast.assessment.results import METRICS, RANDOM, Result, leads_name


def markdown(content: dict[str, Any], results: Sequence[Result]) -> str:
    """What `report.json` says, for people: a table for each metric, rows the sets of leads.

    Args:
        content: Of `report.json`.
        results: The same results.
    """
    task = content["task"]
    head = [
        f"# {content['model']['path']} on {content['store']['path']}",
        "",
        f"{task['name']}: {task['kind']}, windows of {task['segment_samples'] / 500:g} s. "
        + _intervals(task),
    ]
    names = METRICS[task["kind"]]
    tables = [
        table(content, results, metric, name)
        for metric, name in names.items()
        if any(result.value(metric) is not None for result in results)
    ]
    lines = [*head, *(line for one in tables for line in ("", *one))]
    if task["kind"] == "classification":
        lines += ["", *_versus_random(content), "", *_per_class(content, results)]
    told = [f"- {line}" for line in content["told"]]
    told += [f"- {line}" for line in _of_results(results)]
    return "\n".join([*lines, "", "## What was done, and left out", "", *told]) + "\n"


def _intervals(task: dict[str, Any]) -> str:
    bootstrap = task["bootstrap"]
    if not bootstrap["draws"] or task["kind"] == "identification":
        return "No intervals."
    share = f"{100 * bootstrap['confidence']:g} %"
    return f"Intervals: {share}, {bootstrap['draws']:,} draws by {bootstrap['by']}."


def table(content: dict[str, Any], results: Sequence[Result], metric: str, name: str) -> list[str]:
    """A metric: a row for each set of leads, a column for each method."""
    methods = list(dict.fromkeys(result.method for result in results))
    found = {(result.leads, result.method): result for result in results}
    lines = [
        f"## {name[0].upper()}{name[1:]}",
        "",
        "| leads | test | " + " | ".join(methods) + " |",
        "|---|---:|" + "---:|" * len(methods),
    ]
    for one in content["lead_sets"]:
        cells = []
        for method in methods:
            result = found.get((one["leads"], method))
            cells.append(estimate(None if result is None else result.value(metric)))
        lines.append(f"| {one['leads']} | {one['sizes']['test']:,} | " + " | ".join(cells) + " |")
    return lines


def estimate(value: dict[str, Any] | None) -> str:
    """A value with its interval: ".872 (.840 to .901)"; a dash where there is none."""
    if value is None:
        return "–"
    low, high = value.get("low"), value.get("high")
    text = number(value["value"])
    return text if low is None or high is None else f"{text} ({number(low)} to {number(high)})"


def number(value: float) -> str:
    """Three digits after the point; from 10 on three in all."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def _versus_random(content: dict[str, Any]) -> list[str]:
    rows = [(one["leads"], row) for one in content["lead_sets"] for row in one["versus_random"]]
    if not rows:
        return []
    lines = [
        "## Against the random encoder",
        "",
        "Difference in macro AUROC on the same draws of the test's patients (paired bootstrap, two-sided p).",
        "",
        "| leads | method | against | difference | p |",
        "|---|---|---|---:|---:|",
    ]
    for leads, row in rows:
        cells = (leads, row["method"], row["against"], estimate(row["auroc"]), f"{row['p_auroc']:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _per_class(content: dict[str, Any], results: Sequence[Result]) -> list[str]:
    """AUROC of each class, of the model's methods with all labels."""
    first = content["lead_sets"][0]["leads"]
    shown = [r for r in results if r.leads == first and r.encoder != RANDOM and r.share == 1] or [
        r for r in results if r.leads == first
    ][:1]
    by_class = [{one["name"]: one for one in result.report["classes"]} for result in shown]
    lines = [
        f"## AUROC by class, {leads_name(first)}",
        "",
        "| class | positives | " + " | ".join(result.method for result in shown) + " |",
        "|---|---:|" + "---:|" * len(shown),
    ]
    for name, one in by_class[0].items():
        cells = " | ".join(estimate(found[name]["auroc"]) for found in by_class)
        lines.append(f"| {name} | {one['positives']:,} | {cells} |")
    return lines


def _of_results(results: Sequence[Result]) -> list[str]:
    """What is odd or left out in single results, each said once."""
    lines: dict[str, list[str]] = {}
    for result in results:
        where = f"{leads_name(result.leads)}, {result.method}"
        for line in result.told:
            lines.setdefault(line, []).append(where)
        for what, why in result.report["left_out"].items():
            lines.setdefault(f"left out: {what}: {why}", []).append(where)
    return [f"{line} ({_some(places)})" for line, places in lines.items()]


def _some(places: Sequence[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
