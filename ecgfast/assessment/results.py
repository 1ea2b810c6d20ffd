"""What an evaluation finds: scores of each method at each set of leads, and how they are kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.files import write_atomically

MODEL, RANDOM = "model", "random"
OWN, LINEAR, KNN, EMBEDDING = "own", "linear", "knn", "embedding"

_NAMES = {OWN: "fine-tuned", LINEAR: "linear probe", KNN: "k-NN", EMBEDDING: "embeddings"}

METRICS = {
    "classification": {
        "macro_auroc": "macro AUROC",
        "macro_auprc": "macro AUPRC",
        "macro_f1": "macro F1",
        "challenge": "challenge score",
    },
    "regression": {"mae": "MAE", "r": "r", "r2": "R2"},
    "identification": {
        "rank_1": "rank-1",
        "rank_5": "rank-5",
        "eer": "EER",
        "tar_at_far_1e_2": "TAR at FAR 1e-2",
        "tar_at_far_1e_3": "TAR at FAR 1e-3",
    },
}
"""Metrics by task, the main one first: names in reports, and for people."""

LOWER_IS_BETTER = ("mae", "eer")


@dataclass(frozen=True, eq=False)
class Result:
    """One method at one set of leads.

    Attributes:
        leads: Name of the set.
        encoder: "model", or "random" of the same architecture.
        probe: "own" head, "linear", "knn", or "embedding" for identification.
        share: Of the training labels.
        report: The scores, as the report's `as_dict` has them.
        chosen: What validation chose.
        told: What is odd.
        scores: float64 [n, K] of the test's units; None for identification.
    """

    leads: str
    encoder: str
    probe: str
    share: float
    report: dict[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    scores: np.ndarray | None = None

    @property
    def method(self) -> str:
        """The method for people."""
        return method_name(self.encoder, self.probe, self.share)

    @property
    def key(self) -> str:
        """Its name among the arrays of scores."""
        return "|".join((self.leads, self.encoder, self.probe, repr(self.share)))

    def as_dict(self) -> dict[str, Any]:
        """The same without the arrays, for JSON."""
        names = ("leads", "encoder", "probe", "share", "report", "chosen", "told")
        return {"method": self.method, **{name: getattr(self, name) for name in names}}

    def value(self, metric: str) -> dict[str, Any] | None:
        """A metric as `{"value", "low", "high"}`; None where it has none."""
        found = self.report.get(metric)
        if found is None:
            return None
        return found if isinstance(found, dict) else {"value": found, "low": None, "high": None}


def leads_name(leads: str) -> str:
    """A set of leads for people: "12 leads", "1 lead", "leads I,II"."""
    if not leads.isdecimal():
        return f"leads {leads}"
    return f"{leads} lead{'' if leads == '1' else 's'}"


def method_name(encoder: str, probe: str, share: float) -> str:
    """A method for people."""
    name = _NAMES[probe] + (", random encoder" if encoder == RANDOM else "")
    return name if share == 1 else f"{name}, {100 * share:g} % of labels"


def write_results(
    folder: Path, name: str, results: Sequence[Result], units: np.ndarray, extra: dict[str, Any]
) -> None:
    """Keep the results of a set of leads: `name.npz` first, then `name.json`, with which they count.

    Args:
        folder: Where to.
        name: Of the set.
        results: Its results.
        units: Numbers of the test's units that were scored, int64 [n].
        extra: What else is told of the set, plain values.
    """
    arrays = {result.key: result.scores for result in results if result.scores is not None}
    write_atomically(folder / f"{name}.npz", lambda path: write_arrays(path, {"units": units, **arrays}))
    write_json(folder / f"{name}.json", {**extra, "results": [result.as_dict() for result in results]})


def read_results(folder: Path, name: str) -> tuple[list[Result], np.ndarray, dict[str, Any]] | None:
    """What `write_results` kept; None: nothing yet."""
    if not (folder / f"{name}.json").is_file():
        return None
    content = read_json(folder / f"{name}.json")
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        results = [_result(one, arrays) for one in content.pop("results")]
        return results, arrays["units"], content


def _result(content: dict[str, Any], arrays: Any) -> Result:
    names = ("leads", "encoder", "probe", "share", "report", "chosen")
    result = Result(**{name: content[name] for name in names}, told=tuple(content["told"]))
    return replace(result, scores=arrays[result.key] if result.key in arrays.files else None)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an open `.npz` file, whatever the path's end is."""
    with path.open("wb") as file:
        np.savez(file, **arrays)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole; NaN and infinity are refused."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        EcgfastError: it can't be read, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EcgfastError(f"{path}: is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise EcgfastError(f"{path}: must hold a JSON object, got {type(content).__name__}")
    return content
