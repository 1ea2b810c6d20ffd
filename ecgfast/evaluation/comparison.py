"""Whether one model is better than another on the same recordings: differences of areas with p-values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.evaluation._inputs import check_matrix
from ecgfast.evaluation.bootstrap import Bootstrap, Estimate
from ecgfast.evaluation.classification import ClassificationReport, classification_report, drawn_macro_areas


@dataclass(frozen=True)
class Comparison:
    """One model against another.

    Attributes:
        first: Scores of the first model.
        second: Scores of the second.
        auroc: Macro AUROC of the first less that of the second, with the interval of the difference.
        auprc: The same of average precision.
        p_auroc: Two-sided p-value of no difference in AUROC.
        p_auprc: Of none in average precision.
    """

    first: ClassificationReport
    second: ClassificationReport
    auroc: Estimate
    auprc: Estimate
    p_auroc: float
    p_auprc: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def compare_classifiers(
    labels: Any,
    first: Any,
    second: Any,
    classes: Sequence[str],
    *,
    patients: Any = None,
    bootstrap: Bootstrap | None = None,
) -> Comparison:
    """Compare the scores of two models for the same recordings.

    Both meet the same draws, and the difference is taken in each (a paired bootstrap). The p-value is twice
    the share of draws in which the difference has the other sign or is none, counting the recordings
    themselves as a draw (Davison and Hinkley 1997, section 4.2): with B draws it is 2 / (B + 1) or more.

    Args:
        labels: 0 or 1, [n, C].
        first: Finite numbers [n, C].
        second: Finite numbers [n, C].
        classes: Names of the C classes.
        patients: Whole numbers or texts [n]; needed where the bootstrap is by patient.
        bootstrap: How draws are made; None: 1,000 by patient.

    Raises:
        EcgfastError: as for `classification_report`, shapes that differ, or no draws.
    """
    bootstrap = Bootstrap() if bootstrap is None else bootstrap
    if bootstrap.draws == 0:
        raise EcgfastError("draws: must be 1 or more for a p-value, got 0")
    first = check_matrix("first", first, "[records, classes]")
    second = check_matrix("second", second, "[records, classes]")
    if first.shape != second.shape:
        got = f"{list(first.shape)} and {list(second.shape)}"
        raise EcgfastError(f"first and second: must have the same shape, got {got}")
    reports = [
        classification_report(labels, scores, classes, patients=patients, bootstrap=bootstrap)
        for scores in (first, second)
    ]
    drawn = [drawn_macro_areas(labels, scores, bootstrap, patients) for scores in (first, second)]
    values = [(report.macro_auroc.value, report.macro_auprc.value) for report in reports]
    differences = drawn[0] - drawn[1]
    estimates = [
        bootstrap.estimate(a - b, of_draws) for a, b, of_draws in zip(*values, differences, strict=True)
    ]
    return Comparison(*reports, *estimates, *(_p_value(of_draws) for of_draws in differences))


def _p_value(differences: np.ndarray) -> float:
    there = differences[np.isfinite(differences)]
    against = min(np.count_nonzero(there <= 0), np.count_nonzero(there >= 0))
    return float(min(1.0, 2 * (1 + against) / (len(there) + 1)))
