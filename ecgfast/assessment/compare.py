"""One table of several evaluations and runs of fine-tuning."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.assessment.folder import SETTINGS, flat
from ecgfast.assessment.reports import estimate, number
from ecgfast.assessment.results import METRICS, RANDOM, leads_name, method_name, read_json
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Bootstrap, compare_classifiers
from ecgfast.finetuning.config import TASK

VALIDATION = "validation"
"""The column of a run of fine-tuning that was not evaluated: its best score in validation."""

# What names files and machines, and what follows from other settings.
_ASIDE = ("ecgfast_version", "identity", "world_size")


@dataclass(frozen=True)
class Row:
    """A method of an evaluation, or a run of fine-tuning.

    Attributes:
        run: Its folder.
        method: Of an evaluation; "validation" of a run of fine-tuning.
        metric: Name of the metric, for people.
        values: The metric by set of leads: `{"value", "low", "high"}` each.
    """

    run: str
    method: str
    metric: str
    values: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Difference:
    """Two runs on the same test recordings.

    Attributes:
        run: The one.
        against: The other, the first that was named.
        method: Of both.
        leads: Set of leads.
        auroc: Macro AUROC of the one less the other's, with the interval of the difference.
        p_auroc: Two-sided p-value of no difference.
    """

    run: str
    against: str
    method: str
    leads: str
    auroc: dict[str, Any]
    p_auroc: float


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        rows: The scores.
        differences: To the first run, of the same method at the same leads, where the test is the same.
        settings: Those that differ: value by run, for each setting.
        told: What could not be compared, for people.
    """

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    settings: dict[str, dict[str, Any]]
    told: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)

    def markdown(self) -> str:
        """The same for people."""
        return "\n".join(_markdown(self)) + "\n"


def compare(runs: Sequence[Path | str], *, metric: str | None = None, random: bool = True) -> Comparison:
    """Put evaluations and runs of fine-tuning beside each other.

    Args:
        runs: Folders of `evaluate` or `finetune`, finished.
        metric: One that the evaluations have, such as "macro_auprc"; None: the main one of each.
        random: Have rows of the random encoders too.

    Raises:
        EcgfastError: a folder that is neither, is not finished or is there twice; a metric that none has.
    """
    names = [str(run) for run in runs]
    if not names:
        raise EcgfastError("RUN: must be one folder or more, got none")
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise EcgfastError(f"RUN: must be there once, got {repeated[0]!r} twice")
    rows: list[Row] = []
    settings: dict[str, dict[str, Any]] = {}
    evaluations: dict[str, dict[str, Any]] = {}
    for name in names:
        folder = Path(name)
        if (folder / SETTINGS).is_file():
            if not (folder / "report.json").is_file():
                raise EcgfastError(f"RUN: {name!r} must be finished, got an evaluation without a report yet")
            evaluations[name] = report = read_json(folder / "report.json")
            rows += _rows_of_evaluation(name, report, metric, random)
            described = {key: report[key] for key in ("store", "model", "config")}
            settings[name] = flat(described | {"task": report["task"]["name"]})
        elif (folder / "config.json").is_file() and (folder / "checkpoint").is_dir():
            run = read_json(folder / "config.json")
            rows.append(_row_of_finetuning(name, folder, run))
            settings[name] = flat({key: value for key, value in run.items() if key not in _ASIDE})
        else:
            raise EcgfastError(f"RUN: must be a folder of ecgfast evaluate or finetune, got {name!r}")
    if metric is not None and not any(row.values for row in rows):
        known = ", ".join(dict.fromkeys(name for of_task in METRICS.values() for name in of_task))
        raise EcgfastError(f"metric: must be of {known}, and in a report, got {metric!r}")
    differences, told = _differences(evaluations)
    return Comparison(tuple(rows), tuple(differences), _that_differ(settings), tuple(told))


def _rows_of_evaluation(name: str, report: dict[str, Any], metric: str | None, random: bool) -> list[Row]:
    metrics = METRICS[report["task"]["kind"]]
    chosen = metric or next(iter(metrics))
    found: dict[str, dict[str, Any]] = {}
    for result in report["results"]:
        if result["encoder"] == RANDOM and not random:
            continue
        value = result["report"].get(chosen)
        if value is not None:
            value = value if isinstance(value, dict) else {"value": value, "low": None, "high": None}
            found.setdefault(result["method"], {})[result["leads"]] = value
    return [Row(name, method, metrics.get(chosen, chosen), values) for method, values in found.items()]


def _row_of_finetuning(name: str, folder: Path, run: dict[str, Any]) -> Row:
    if run.get("task") != TASK:
        raise EcgfastError(f"RUN: {name!r} must be of ecgfast finetune or evaluate, got {run.get('task')}")
    if not (folder / "model" / "config.json").is_file():
        raise EcgfastError(f"RUN: {name!r} must be finished, got one without a model yet")
    model = read_json(folder / "model" / "config.json")
    score = model.get("origin", {}).get("score")
    if not isinstance(score, int | float):
        raise EcgfastError(f"RUN: {name!r} must tell its best score, got {score!r}")
    regression = model.get("task") == "regression"
    # The run keeps the greatest; an error counts with its sign turned.
    value = {"value": -score if regression else score, "low": None, "high": None}
    names = {"regression": "MAE", "classification": "macro AUROC"}
    metric = names.get(str(model.get("task")), "score")
    return Row(name, VALIDATION, metric, {VALIDATION: value})


def _differences(evaluations: dict[str, dict[str, Any]]) -> tuple[list[Difference], list[str]]:
    """Paired differences of all evaluations to the first."""
    found: list[Difference] = []
    told: list[str] = []
    if len(evaluations) < 2:
        return found, told
    first, *others = evaluations
    for other in others:
        if why := _unlike(evaluations[first], evaluations[other]):
            told.append(f"{other} and {first}: not compared pair by pair: {why}")
            continue
        with (
            np.load(Path(first) / "scores.npz", allow_pickle=False) as a,
            np.load(Path(other) / "scores.npz", allow_pickle=False) as b,
        ):
            pairs = [key for key in b.files if key in a.files and key.count("|") == 3]
            for key in pairs:
                leads, encoder, probe, share = key.split("|")
                if not _same_test(a, b, leads):
                    told.append(f"{other} and {first}: other test recordings at {leads_name(leads)}")
                    continue
                units = a[f"units|{leads}"]
                compared = compare_classifiers(
                    a["targets"][units],
                    b[key],
                    a[key],
                    evaluations[first]["task"]["names"],
                    patients=a["patients"][units],
                    bootstrap=_bootstrap(evaluations[first]),
                )
                method = method_name(encoder, probe, float(share))
                auroc = asdict(compared.auroc)
                found.append(Difference(other, first, method, leads, auroc, compared.p_auroc))
            if not pairs:
                told.append(f"{other} and {first}: not compared pair by pair: no method in common")
    return found, list(dict.fromkeys(told))


def _bootstrap(report: dict[str, Any]) -> Bootstrap:
    """The draws of an evaluation; where it had none, the usual ones: a p-value needs some."""
    settings = report["task"]["bootstrap"]
    return Bootstrap(**settings | {"draws": settings["draws"] or Bootstrap().draws})


def _unlike(first: dict[str, Any], other: dict[str, Any]) -> str:
    """Why two evaluations can't be compared pair by pair; "": they can."""
    kinds = {report["task"]["kind"] for report in (first, other)}
    if kinds != {"classification"}:
        return f"paired differences are of classification, these are {' and '.join(sorted(kinds))}"
    if first["store"]["index_sha256"] != other["store"]["index_sha256"]:
        return "other stores"
    if first["task"]["names"] != other["task"]["names"]:
        return "other classes"
    return ""


def _same_test(a: Any, b: Any, leads: str) -> bool:
    """Whether the same recordings with the same targets were scored."""
    units = [arrays[f"units|{leads}"] for arrays in (a, b)]
    return all(
        np.array_equal(*(arrays[name][which] for arrays, which in zip((a, b), units, strict=True)))
        for name in ("recording", "targets")
    )


def _that_differ(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys(name for of_run in settings.values() for name in of_run)
    differ = {}
    for name in names:
        values = {run: of_run.get(name) for run, of_run in settings.items()}
        if len({json.dumps(value) for value in values.values()}) > 1 and not name.endswith("sha256"):
            differ[name] = values
    return differ


def _markdown(found: Comparison) -> list[str]:
    columns = list(dict.fromkeys(leads for row in found.rows for leads in row.values))
    metrics = dict.fromkeys(row.metric for row in found.rows)
    lines = [
        f"## {', '.join(metrics)} by leads",
        "",
        "| run | method | metric | " + " | ".join(columns) + " |",
        "|---|---|---|" + "---:|" * len(columns),
    ]
    for row in found.rows:
        cells = " | ".join(estimate(row.values.get(column)) for column in columns)
        lines.append(f"| {row.run} | {row.method} | {row.metric} | {cells} |")
    if found.differences:
        lines += [
            "",
            f"## Against {found.differences[0].against}",
            "",
            "Differences in macro AUROC of the same method on the same draws of the test's patients.",
            "",
            "| run | method | leads | difference | p |",
            "|---|---|---|---:|---:|",
        ]
        lines += [
            f"| {one.run} | {one.method} | {one.leads} | {estimate(one.auroc)} | {number(one.p_auroc)} |"
            for one in found.differences
        ]
    if found.settings:
        runs = list(next(iter(found.settings.values())))
        lines += ["", "## Settings that differ", "", "| setting | " + " | ".join(runs) + " |"]
        lines.append("|---|" + "---|" * len(runs))
        for name, values in found.settings.items():
            cells = " | ".join("–" if values[run] is None else str(values[run]) for run in runs)
            lines.append(f"| {name} | {cells} |")
    lines += ["", *(f"- {line}" for line in found.told)] if found.told else []
    return lines
