"""What is learnt on embeddings that stay as they are: linear models and nearest neighbours, scikit-learn's.

Every choice (regularisation, neighbours) is made on the validation part; the test part decides nothing.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError

PROBES = ("linear", "knn")

_C = (0.001, 0.01, 0.1, 1.0, 10.0)
_ALPHA = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
_NEIGHBOURS = (1, 5, 10, 20, 50)
_ITERATIONS = 1000
_LEAST = 1e-7  # a probability's distance from 0 and 1 in the loss


@dataclass(frozen=True)
class Probed:
    """What a probe tells.

    Attributes:
        validation: float64 [n, K], probabilities or numbers.
        test: float64 [m, K].
        chosen: What validation chose, by name.
        told: What is odd, for people.
    """

    validation: np.ndarray
    test: np.ndarray
    chosen: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """Embeddings [n, E] and targets [n, K] of the parts, float64."""

    train: np.ndarray
    train_targets: np.ndarray
    validation: np.ndarray
    validation_targets: np.ndarray
    test: np.ndarray

    def standardised(self) -> "Parts":
        """With mean 0 and deviation 1 in training, where a column has any."""
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(self.train)
        validation = scaler.transform(self.validation) if len(self.validation) else self.validation
        return Parts(
            scaler.transform(self.train),
            self.train_targets,
            validation,
            self.validation_targets,
            scaler.transform(self.test),
        )


def probe(kind: str, parts: Parts, names: tuple[str, ...], *, classification: bool, grid: str = "") -> Probed:
    """Fit a probe on the training part, choose by validation, and tell of validation and test.

    Args:
        kind: "linear": for classes one logistic regression each on standardised embeddings (L2; C by the
            log loss of validation), for numbers ridge regression (alpha by squared error); "knn": the mean
            over the nearest neighbours by cosine of standardised embeddings (their number by squared error).
        parts: Embeddings and targets.
        names: Of the K classes or quantities.
        classification: Whether the targets are classes.
        grid: "ecg-fix": besides C, standardising and class weights are chosen, as in that protocol.

    Raises:
        EcgfastError: scikit-learn is absent, or a part has nothing to learn from.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise EcgfastError("probes need scikit-learn: pip install 'ecgfast[evaluation]'") from None
    if kind not in PROBES:
        raise EcgfastError(f"probes: must be {' or '.join(PROBES)}, got {kind!r}")
    if len(parts.train) == 0:
        raise EcgfastError("train: must have recordings for a probe, got none")
    if kind == "knn":
        return _neighbours(parts.standardised())
    if classification:
        return _logistic(parts, names, grid)
    return _ridge(parts.standardised())


def _logistic(parts: Parts, names: tuple[str, ...], grid: str) -> Probed:
    forms = [parts.standardised()]
    weights: tuple[str | None, ...] = (None,)
    strengths = _C
    if grid == "ecg-fix":
        forms, weights, strengths = [parts, *forms], (None, "balanced"), _C[1:]
    shape = len(names)
    validation, test = np.empty((len(parts.validation), shape)), np.empty((len(parts.test), shape))
    chosen, single, unconverged = {}, [], 0
    for k, name in enumerate(names):
        truth = parts.train_targets[:, k]
        if truth.min() == truth.max():
            # Nothing to learn: the one value that training has.
            validation[:, k], test[:, k] = truth[0], truth[0]
            single.append(name)
            continue
        fits = [
            (form, {"C": c, "class_weight": weight, "standardised": form is forms[-1]})
            for form in forms
            for weight in weights
            for c in strengths
        ]
        best, unconverged_here = _best_logistic(fits, truth, parts.validation_targets[:, k])
        unconverged += unconverged_here
        chosen[name], validation[:, k], test[:, k] = best
    told = []
    if single:
        told.append(f"classes of one value in training get that value everywhere: {', '.join(single)}")
    if not len(parts.validation):
        told.append(f"without a validation part C is {_C[len(_C) // 2]:g}")
    if unconverged:
        told.append(f"{unconverged} fits of the logistic regression stopped at {_ITERATIONS} iterations")
    return Probed(validation, test, chosen, tuple(told))


def _best_logistic(
    fits: list[tuple[Parts, dict[str, Any]]], truth: np.ndarray, validation_truth: np.ndarray
) -> tuple[tuple[dict[str, Any], np.ndarray, np.ndarray], int]:
    """Settings and probabilities of the fit with the least log loss in validation, and how many fits did not
    converge.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not len(validation_truth):
        fits = [fit for fit in fits if fit[1]["C"] == _C[len(_C) // 2]][-1:]
    best, least, unconverged = None, np.inf, 0
    for form, settings in fits:
        model = LogisticRegression(
            C=settings["C"], class_weight=settings["class_weight"], max_iter=_ITERATIONS
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
            model.fit(form.train, truth)
        unconverged += int(model.n_iter_.max() >= _ITERATIONS)
        told = [model.predict_proba(x)[:, 1] if len(x) else np.empty(0) for x in (form.validation, form.test)]
        sure = np.clip(told[0], _LEAST, 1 - _LEAST)
        loss = -np.where(validation_truth > 0, np.log(sure), np.log1p(-sure)).mean() if len(sure) else 0.0
        if loss < least:
            best, least = (settings, *told), loss
    assert best is not None  # probabilities that are clipped have a finite loss
    return best, unconverged


def _ridge(parts: Parts) -> Probed:
    from sklearn.linear_model import Ridge

    def fit(alpha: float) -> tuple[np.ndarray, np.ndarray]:
        model = Ridge(alpha=alpha).fit(parts.train, parts.train_targets)
        shape = parts.train_targets.shape[1]
        validation = model.predict(parts.validation) if len(parts.validation) else np.empty((0, shape))
        return validation.reshape(-1, shape), model.predict(parts.test).reshape(-1, shape)

    return _choose("alpha", _ALPHA, fit, parts)


def _neighbours(parts: Parts) -> Probed:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(parts.train)
    counts = [k for k in _NEIGHBOURS if k <= len(parts.train)]
    nearest = [
        search.kneighbors(x, counts[-1], return_distance=False) if len(x) else np.empty((0, counts[-1]), int)
        for x in (parts.validation, parts.test)
    ]

    def fit(k: float) -> tuple[np.ndarray, np.ndarray]:
        return tuple(parts.train_targets[rows[:, : int(k)]].mean(axis=1) for rows in nearest)

    return _choose("neighbours", counts, fit, parts)


def _choose(name: str, values: Any, fit: Any, parts: Parts) -> Probed:
    """The value whose fit has the least squared error in validation; without one, the middle value."""
    if not len(parts.validation):
        value = values[len(values) // 2]
        return Probed(*fit(value), {name: value}, (f"without a validation part {name} is {value:g}",))
    fits = [fit(value) for value in values]
    losses = [float(((told - parts.validation_targets) ** 2).mean()) for told, _ in fits]
    at = int(np.argmin(losses))
    return Probed(*fits[at], {name: values[at]})
