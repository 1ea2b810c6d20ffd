"""The tables and the figure of a comparison, of whatever is there so far."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.cells import Outcome
from benchmarks.paper.plan import RANDOM, SCRATCH, TUNED_IDENTITY, Plan
from ecgfast.benchmarking import machine
from ecgfast.evaluation import Bootstrap
from ecgfast.evaluation.classification import drawn_macro_areas

FINETUNED, PROBED = "evaluate", "probe"
_TITLES = {
    FINETUNED: "Fine-tuned, stem frozen: macro AUROC of five superclasses",
    PROBED: "Linear probe on the frozen encoder: macro AUROC of five superclasses",
}
_KEYS = {FINETUNED: ("own", "1.0"), PROBED: ("linear", "1.0")}
_BOOTSTRAP = Bootstrap(draws=1000)


@dataclass(frozen=True)
class Score:
    """A method at a lead set.

    Attributes:
        values: Of each seed that is there.
        seeds: Those seeds.
        drawn: Mean over the seeds in each draw of the test patients, [draws]; None for identification.
    """

    values: tuple[float, ...]
    seeds: tuple[int, ...]
    drawn: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Gain:
    """The difference of a method to the random encoder at the same lead set and seeds.

    Attributes:
        mean: Over the seeds.
        low, high: 95 % interval over draws of the test patients, the same for both.
        seeds: In how many of how many seeds it is above 0.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[int, int]

    @property
    def sure(self) -> bool:
        """Whether the interval is above 0."""
        return self.low > 0


def collect(plan: Plan, kind: str) -> dict[tuple[str, str], Score]:
    """Scores by method and lead set, of the seeds that are finished."""
    found = {}
    for method in plan.methods:
        for leads in plan.lead_sets:
            values, seeds, drawn = [], [], []
            for seed in plan.seeds:
                folder = plan.result(kind, method, seed, leads if kind == FINETUNED else None)
                if (one := _read(folder, kind, leads)) is not None:
                    values.append(one[0])
                    seeds.append(seed)
                    drawn.append(one[1])
            if values:
                found[method, leads] = Score(tuple(values), tuple(seeds), np.mean(drawn, axis=0))
    return found


def _read(folder: Path, kind: str, leads: str) -> tuple[float, np.ndarray] | None:
    """The macro AUROC of an evaluation, and of its draws; None where it is not finished."""
    if not (folder / "report.json").is_file():
        return None
    probe, share = _KEYS[kind]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    of = [r for r in report["results"] if (r["leads"], r["encoder"], r["probe"]) == (leads, "model", probe)]
    value = of[0]["report"]["macro_auroc"]["value"]
    with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
        units = arrays[f"units|{leads}"]
        scores = arrays[f"{leads}|model|{probe}|{share}"]
        targets, patients = arrays["targets"][units], arrays["patients"][units]
    return value, drawn_macro_areas(targets, scores, _BOOTSTRAP, patients)[0]


def gain(scores: dict[tuple[str, str], Score], method: str, leads: str) -> Gain | None:
    """A method against the random encoder; None where one is not there for the same seeds."""
    mine, other = scores.get((method, leads)), scores.get((RANDOM, leads))
    if mine is None or other is None or mine.seeds != other.seeds:
        return None
    assert mine.drawn is not None
    assert other.drawn is not None
    drawn = mine.drawn - other.drawn
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    above = sum(a > b for a, b in zip(mine.values, other.values, strict=True))
    return Gain(mine.mean - other.mean, float(low), float(high), (above, len(mine.values)))


def collect_identities(plan: Plan) -> dict[tuple[str, str], dict[str, Score]]:
    """Rank-1, equal error rate and TAR by method and by "embeddings" or "ArcFace"."""
    found = {}
    for method in plan.methods:
        for kind in ("identify", TUNED_IDENTITY):
            reports, seeds = [], []
            for seed in plan.seeds:
                file = plan.result(kind, method, seed) / "report.json"
                if file.is_file():
                    seeds.append(seed)
                    reports.append(json.loads(file.read_text(encoding="utf-8"))["results"][0]["report"])
            if reports:
                found[method, kind] = {
                    name: Score(tuple(_value(report[name]) for report in reports), tuple(seeds))
                    for name in ("rank_1", "eer", "tar_at_far_1e_2")
                }
    return found


def _value(metric: Any) -> float:
    return float(metric["value"] if isinstance(metric, dict) else metric)


def write_tables(plan: Plan, outcome: Outcome) -> None:
    """Write table.md, table.json and figure.png into the comparison's folder."""
    kinds = {kind: scores for kind in (FINETUNED, PROBED) if (scores := collect(plan, kind))}
    identities = collect_identities(plan)
    text = _markdown(plan, kinds, identities, outcome)
    (plan.out / "table.md").write_text(text, encoding="utf-8")
    content = _as_json(plan, kinds, identities, outcome)
    (plan.out / "table.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if kinds:
        from benchmarks.paper.figure import draw

        draw(plan, kinds, plan.out / "figure.png")


def _markdown(
    plan: Plan,
    kinds: dict[str, dict[tuple[str, str], Score]],
    identities: dict[tuple[str, str], dict[str, Score]],
    outcome: Outcome,
) -> str:
    lines = [f"# Objectives by lead set, {len(plan.seeds)} seeds", ""]
    for kind, scores in kinds.items():
        lines += [f"## {_TITLES[kind]}", "", _cells(("", *_leads(plan))), _cells(_rule(plan))]
        for method in plan.methods:
            row = [_score(scores, method, leads, plan) for leads in plan.lead_sets]
            if any(row):
                lines.append(_cells((_name(method), *row)))
        lines += [
            "",
            "Mean ± standard deviation over the seeds; bold: above the random encoder in every seed, and the "
            "interval of the difference (95 % of 1,000 draws of the test patients, mean over the seeds) is "
            "above 0.",
            "",
            "Differences to the random encoder:",
            "",
            _cells(("", *_leads(plan))),
            _cells(_rule(plan)),
        ]
        for method in plan.methods:
            if method != RANDOM:
                row = [_gain(gain(scores, method, leads)) for leads in plan.lead_sets]
                if any(row):
                    lines.append(_cells((_name(method), *row)))
        lines.append("")
    lines += _identities(plan, identities)
    if outcome.failed or outcome.left:
        lines += [f"Not there: {len(outcome.failed)} cells failed, {len(outcome.left)} are left.", ""]
    return "\n".join(lines)


def _identities(plan: Plan, found: dict[tuple[str, str], dict[str, Score]]) -> list[str]:
    if not found:
        return []
    titles = {"identify": "embeddings", TUNED_IDENTITY: "ArcFace"}
    kinds = [kind for kind in titles if any(key[1] == kind for key in found)]
    heads = [f"{titles[kind]}: {what}" for kind in kinds for what in ("rank-1", "EER", "TAR at FAR 1e-2")]
    lines = ["## Patients told apart by lead I (ECG-ID, patients never trained on)", ""]
    lines += [_cells(("", *heads)), _cells(("---", *["---:"] * len(heads)))]
    for method in plan.methods:
        row = []
        for kind in kinds:
            scores = found.get((method, kind), {})
            names = ("rank_1", "eer", "tar_at_far_1e_2")
            row += [_spread(scores[name]) if name in scores else "" for name in names]
        if any(row):
            lines.append(_cells((_name(method), *row)))
    return [*lines, ""]


def _leads(plan: Plan) -> list[str]:
    return [f"{leads} lead{'s' if leads != '1' else ''}" for leads in plan.lead_sets]


def _rule(plan: Plan) -> tuple[str, ...]:
    return ("---", *["---:"] * len(plan.lead_sets))


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(method: str) -> str:
    names = {RANDOM: "random encoder", SCRATCH: "random encoder, all weights trained"}
    return names.get(method, f"`{method}`")


def _spread(score: Score) -> str:
    return f"{score.mean:.3f} ± {score.spread:.3f}"


def _score(scores: dict[tuple[str, str], Score], method: str, leads: str, plan: Plan) -> str:
    score = scores.get((method, leads))
    if score is None:
        return ""
    text = _spread(score) + ("" if len(score.values) == len(plan.seeds) else f" ({len(score.values)} seeds)")
    found = gain(scores, method, leads)
    better = found is not None and found.sure and found.seeds[0] == found.seeds[1]
    return f"**{text}**" if better else text


def _gain(found: Gain | None) -> str:
    if found is None:
        return ""
    above, seeds = found.seeds
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}), {above} of {seeds} seeds"


def _as_json(
    plan: Plan,
    kinds: dict[str, dict[tuple[str, str], Score]],
    identities: dict[tuple[str, str], dict[str, Score]],
    outcome: Outcome,
) -> dict[str, Any]:
    rows = []
    for kind, scores in kinds.items():
        for (method, leads), score in scores.items():
            found = None if method == RANDOM else gain(scores, method, leads)
            row: dict[str, Any] = {"kind": kind, "method": method, "leads": leads}
            row |= {"seeds": list(score.seeds), "macro_auroc": list(score.values)}
            if found is not None:
                row["gain"] = {"mean": found.mean, "low": found.low, "high": found.high}
            rows.append(row)
    return {
        "hardware": machine.hardware("cpu"),
        "commit": machine.commit(),
        "objectives": list(plan.objectives),
        "seeds": list(plan.seeds),
        "updates": plan.preset.updates,
        "rows": rows,
        "identities": [
            {"method": method, "kind": kind} | {name: list(score.values) for name, score in scores.items()}
            for (method, kind), scores in identities.items()
        ],
        "seconds": outcome.done,
        "failed": outcome.failed,
        "left": outcome.left,
    }
