"""Scores of regression: mean absolute error, correlation and R2, with confidence intervals."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.evaluation._inputs import check_groups, check_vector, sklearn_metrics
from ecgfast.evaluation.bootstrap import Bootstrap, Estimate


@dataclass(frozen=True)
class RegressionReport:
    """Scores of a set of records.

    Attributes:
        n_records: Records.
        n_patients: Patients, None where not told.
        mae: Mean absolute error, in the target's unit.
        mae_of_mean: That of telling the targets' mean everywhere, to compare with.
        r: Pearson correlation; None where the predictions are all the same.
        r2: Coefficient of determination, 1 - squared error / variance: below 0 for what is worse than the
            mean.
        left_out: Why a score is not there, by its name.
    """

    n_records: int
    n_patients: int | None
    mae: Estimate
    mae_of_mean: float
    r: Estimate | None
    r2: Estimate
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def regression_report(
    targets: Any, predictions: Any, *, patients: Any = None, bootstrap: Bootstrap | None = None
) -> RegressionReport:
    """Compare predictions with targets.

    Draws of the bootstrap in which all targets are the same have no r and no R2, and are left out of their
    intervals (`Estimate.draws`).

    Args:
        targets: Finite numbers [n], such as ages in years.
        predictions: Finite numbers [n].
        patients: Whole numbers or texts [n], the same for all records of a patient; needed where the
            bootstrap is by patient.
        bootstrap: How intervals are drawn; None: 1,000 draws by patient.

    Raises:
        EcgfastError: shapes that don't fit, numbers that are not finite, or targets that are all the same.
    """
    targets = check_vector("targets", targets)
    predictions = check_vector("predictions", predictions, len(targets))
    if targets.min() == targets.max():
        raise EcgfastError(f"targets: must differ between records, got {targets[0]:g} in all {len(targets)}")
    metrics = sklearn_metrics()
    bootstrap = Bootstrap() if bootstrap is None else bootstrap
    drawn = np.concatenate(
        [
            np.zeros((0, 3)),
            *(_drawn(targets, predictions, c) for c in bootstrap.counts(len(targets), patients)),
        ]
    )
    left_out = {}
    if predictions.min() == predictions.max():
        left_out["r"] = f"all predictions are {predictions[0]:g}"
    else:
        r = bootstrap.estimate(np.corrcoef(targets, predictions)[0, 1], drawn[:, 1])
    return RegressionReport(
        n_records=len(targets),
        n_patients=None
        if patients is None
        else int(check_groups("patients", patients, len(targets)).max()) + 1,
        mae=bootstrap.estimate(metrics.mean_absolute_error(targets, predictions), drawn[:, 0]),
        mae_of_mean=float(np.abs(targets - targets.mean()).mean()),
        r=None if left_out else r,
        r2=bootstrap.estimate(metrics.r2_score(targets, predictions), drawn[:, 2]),
        left_out=left_out,
    )


def _drawn(targets: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """MAE, r and R2 of draws, float64 [draws, 3], NaN where a draw has none."""
    metrics = sklearn_metrics()
    found = np.full((len(counts), 3), np.nan)
    for row, times in zip(found, counts, strict=True):
        truth, told = np.repeat(targets, times), np.repeat(predictions, times)
        row[0] = metrics.mean_absolute_error(truth, told)
        if truth.min() < truth.max():
            row[2] = metrics.r2_score(truth, told)
            if told.min() < told.max():
                row[1] = np.corrcoef(truth, told)[0, 1]
    return found
