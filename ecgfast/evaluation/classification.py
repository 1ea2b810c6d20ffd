"""Scores of multi-label classification: AUROC, AUPRC, F1, and the challenge score, with confidence intervals.

AUROC, AUPRC (average precision) and F1 are scikit-learn's; the macro figures are plain means over classes. A
class with one value only, in which no record or every record is positive, has none of them: it is left out of
the means, and named.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.evaluation._inputs import (
    check_classes,
    check_groups,
    check_labels,
    check_matrix,
    named,
    sklearn_metrics,
)
from ecgfast.evaluation.bootstrap import Bootstrap, Estimate, mean_of_defined
from ecgfast.evaluation.challenge import ChallengeWeights, challenge_score, has_gain, score_terms
from ecgfast.evaluation.resampled import RankedClass


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class.

    Attributes:
        name: The class.
        positives: Records that have it.
        auroc: Area under the ROC curve.
        auprc: Average precision; a classifier that guesses has the share of positives.
        f1: At `threshold`; None without one.
        threshold: From which on a score tells the class.
    """

    name: str
    positives: int
    auroc: Estimate
    auprc: Estimate
    f1: Estimate | None
    threshold: float | None


@dataclass(frozen=True)
class ClassificationReport:
    """Scores of a set of records.

    Attributes:
        n_records: Records.
        n_patients: Patients, None where not told.
        macro_auroc: Mean AUROC of the classes in `classes`.
        macro_auprc: Mean average precision of these.
        macro_f1: Mean F1 of those that have a threshold; None where none has.
        challenge: Challenge score; None where not asked for, or not defined.
        classes: The classes with both values, in the order given.
        left_out: Why a class, an F1 or the challenge score is not there, by its name.
    """

    n_records: int
    n_patients: int | None
    macro_auroc: Estimate
    macro_auprc: Estimate
    macro_f1: Estimate | None
    challenge: Estimate | None
    classes: tuple[ClassScores, ...]
    left_out: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def classification_report(
    labels: Any,
    scores: Any,
    classes: Sequence[str],
    *,
    patients: Any = None,
    thresholds: Any = None,
    weights: ChallengeWeights | None = None,
    outputs: Any = None,
    bootstrap: Bootstrap | None = None,
) -> ClassificationReport:
    """Compare scores with labels.

    In a draw of the bootstrap that has one value only of a class, the class has no area: its interval is of
    the other draws (`Estimate.draws` says of how many), and the draw's macro figure is the mean over its
    other classes.

    Args:
        labels: 0 or 1, [n, C].
        scores: Finite numbers [n, C]; a higher one means more likely. One row a record: average the windows
            of long recordings before (`average_by_recording`).
        classes: Names of the C classes.
        patients: Whole numbers or texts [n], the same for all records of a patient; needed where the
            bootstrap is by patient.
        thresholds: A score from which on each class is told, [C], NaN where none could be tuned
            (`tune_thresholds` of validation scores); None: no F1.
        weights: Of the challenge score, whose classes must be `classes`; None: no challenge score.
        outputs: 0 or 1, [n, C]: what counts as told in the challenge score; None: scores of 0.5 or more.
        bootstrap: How intervals are drawn; None: 1,000 draws by patient.

    Raises:
        EcgfastError: shapes that don't fit, labels other than 0 and 1, numbers that are not finite, or no
            class with both values.
    """
    scores = check_matrix("scores", scores, "[records, classes]")
    labels = check_labels("labels", labels, scores.shape)
    n, n_classes = scores.shape
    names = check_classes(classes, n_classes)
    bootstrap = Bootstrap() if bootstrap is None else bootstrap
    left_out = _one_value_only(labels, names)
    kept = [c for c in range(n_classes) if names[c] not in left_out]
    if not kept:
        raise EcgfastError(
            f"labels: must have a class with both values, got one value only of {named(names)}"
        )
    told, cuts = _told(scores, thresholds, names, kept, left_out)
    challenge = _ChallengePart.of(labels, scores, names, weights, outputs, left_out)
    values = _areas_and_f1(labels, scores, told, cuts, kept)
    with_f1 = np.isfinite(values[2])
    drawn = _Drawn.of(
        labels,
        scores,
        told,
        kept,
        None if challenge is None else challenge.terms,
        bootstrap.counts(n, patients),
    )
    drawn.by_class[2][:, ~with_f1] = np.nan
    estimates = [
        [bootstrap.estimate(value, of_draws[:, j]) for j, value in enumerate(row)]
        for row, of_draws in zip(values, drawn.by_class, strict=True)
    ]
    macro = [
        bootstrap.estimate(mean_of_defined(row), mean_of_defined(of_draws))
        for row, of_draws in zip(values, drawn.by_class, strict=True)
    ]
    return ClassificationReport(
        n_records=n,
        n_patients=None if patients is None else int(check_groups("patients", patients, n).max()) + 1,
        macro_auroc=macro[0],
        macro_auprc=macro[1],
        macro_f1=macro[2] if with_f1.any() else None,
        challenge=None if challenge is None else bootstrap.estimate(challenge.score, drawn.challenge),
        classes=tuple(
            ClassScores(
                name=names[c],
                positives=int(labels[:, c].sum()),
                auroc=estimates[0][j],
                auprc=estimates[1][j],
                f1=estimates[2][j] if with_f1[j] else None,
                threshold=float(cuts[c]) if with_f1[j] else None,
            )
            for j, c in enumerate(kept)
        ),
        left_out=left_out,
    )


def tune_thresholds(labels: Any, scores: Any) -> np.ndarray:
    """For each class the score from which on telling it has the greatest F1.

    Of several with the same F1 it is the highest, and always one of the scores. Tune on validation records:
    on the records that are told afterwards it would flatter.

    Args:
        labels: 0 or 1, [n, C].
        scores: Finite numbers [n, C].

    Returns:
        float64 [C]; NaN for a class with one value only, for which there is nothing to tune.

    Raises:
        EcgfastError: shapes that don't fit, labels other than 0 and 1, or scores that are not finite.
    """
    scores = check_matrix("scores", scores, "[records, classes]")
    labels = check_labels("labels", labels, scores.shape)
    metrics = sklearn_metrics()
    found = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        if not labels[:, c].any() or labels[:, c].all():
            continue
        precision, recall, cuts = metrics.precision_recall_curve(labels[:, c], scores[:, c])
        precision, recall = precision[:-1], recall[:-1]  # the last point tells nothing at all
        f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
        found[c] = cuts[len(f1) - 1 - int(np.argmax(f1[::-1]))]
    return found


def drawn_macro_areas(labels: Any, scores: Any, bootstrap: Bootstrap, patients: Any = None) -> np.ndarray:
    """Macro AUROC and macro average precision of every draw, as `classification_report` has them.

    Args:
        labels: 0 or 1, [n, C].
        scores: Finite numbers [n, C].
        bootstrap: How draws are made.
        patients: Whole numbers or texts [n]; needed where the bootstrap is by patient.

    Returns:
        float64 [2, draws]; NaN for a draw that has one value only of every class.
    """
    scores = check_matrix("scores", scores, "[records, classes]")
    labels = check_labels("labels", labels, scores.shape)
    kept = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0)).tolist()
    drawn = _Drawn.of(labels, scores, None, kept, None, bootstrap.counts(len(labels), patients))
    return mean_of_defined(drawn.by_class[:2])


def average_by_recording(values: Any, recordings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the windows of each recording, of scores or of embeddings.

    Args:
        values: Finite numbers [windows, columns].
        recordings: Numbers of the windows' recordings, [windows], in any order.

    Returns:
        The recordings' numbers in ascending order, int64 [n], and their means, float64 [n, columns].

    Raises:
        EcgfastError: shapes that don't fit, or numbers that are not finite.
    """
    values = check_matrix("values", values, "[windows, columns]")
    numbers = np.asarray(recordings)
    if numbers.shape != (len(values),) or numbers.dtype.kind not in "iu":
        got = f"{numbers.dtype} {list(numbers.shape)}"
        raise EcgfastError(f"recordings: must be whole numbers [{len(values)}], got {got}")
    found, at, times = np.unique(numbers.astype(np.int64), return_inverse=True, return_counts=True)
    total = np.zeros((len(found), values.shape[1]))
    np.add.at(total, at, values)
    return found, total / times[:, None]


def _one_value_only(labels: np.ndarray, names: tuple[str, ...]) -> dict[str, str]:
    positives = labels.sum(axis=0)
    none = {name: "no record has it" for name, k in zip(names, positives, strict=True) if k == 0}
    every = {
        name: "every record has it" for name, k in zip(names, positives, strict=True) if k == len(labels)
    }
    return none | every


def _told(
    scores: np.ndarray, thresholds: Any, names: tuple[str, ...], kept: list[int], left_out: dict[str, str]
) -> tuple[np.ndarray | None, np.ndarray]:
    """What is told at the thresholds, bool [n, C] (None without any), and those; says where there is none."""
    if thresholds is None:
        return None, np.full(len(names), np.nan)
    cuts = np.asarray(thresholds, dtype=np.float64)
    if cuts.shape != (len(names),) or np.isinf(cuts).any():
        raise EcgfastError(f"thresholds: must be finite or NaN, [{len(names)}], got {list(cuts.shape)}")
    for c in kept:
        if np.isnan(cuts[c]):
            left_out[f"F1 of {names[c]}"] = "no threshold could be tuned for it"
    return scores >= cuts, cuts


@dataclass(frozen=True)
class _ChallengePart:
    """The challenge score of all records, and what each adds to its three sums, [n, 3]."""

    score: float
    terms: np.ndarray

    @classmethod
    def of(
        cls,
        labels: np.ndarray,
        scores: np.ndarray,
        names: tuple[str, ...],
        weights: ChallengeWeights | None,
        outputs: Any,
        left_out: dict[str, str],
    ) -> "_ChallengePart | None":
        if weights is None:
            return None
        if names != weights.classes:
            odd = [name for name in names if name not in weights.classes] or list(weights.classes)
            raise EcgfastError(f"classes: must be those of the weights, in their order, got {named(odd)}")
        outputs = scores >= 0.5 if outputs is None else outputs
        terms = score_terms(labels, outputs, weights)
        if not has_gain(terms[:, 1].sum(), terms[:, 2].sum(), len(terms)):
            left_out["challenge score"] = "the labels reward no more than the normal class alone does"
            return None
        return cls(challenge_score(labels, outputs, weights), terms)


def _areas_and_f1(
    labels: np.ndarray, scores: np.ndarray, told: np.ndarray | None, cuts: np.ndarray, kept: list[int]
) -> np.ndarray:
    """AUROC, AUPRC and F1 of the kept classes: float64 [3, kept], NaN for F1 without threshold."""
    metrics = sklearn_metrics()
    values = np.full((3, len(kept)), np.nan)
    for j, c in enumerate(kept):
        values[0, j] = metrics.roc_auc_score(labels[:, c], scores[:, c])
        values[1, j] = metrics.average_precision_score(labels[:, c], scores[:, c])
        if told is not None and not np.isnan(cuts[c]):
            values[2, j] = metrics.f1_score(labels[:, c], told[:, c], zero_division=0.0)
    return values


@dataclass(frozen=True)
class _Drawn:
    """AUROC, AUPRC and F1 of the draws, [3, draws, kept], and challenge score, [draws]; NaN where none."""

    by_class: np.ndarray
    challenge: np.ndarray

    @classmethod
    def of(
        cls,
        labels: np.ndarray,
        scores: np.ndarray,
        told: np.ndarray | None,
        kept: list[int],
        terms: np.ndarray | None,
        counts: Iterable[np.ndarray],
    ) -> "_Drawn":
        ranked = [RankedClass(labels[:, c], scores[:, c]) for c in kept]
        by_class, challenge = [], []
        for block in counts:
            areas = np.stack([one.areas(block) for one in ranked], axis=-1)  # [2, draws, kept]
            f1 = np.full(areas.shape[1:], np.nan)
            if told is not None:
                f1 = _drawn_f1(block, labels[:, kept], told[:, kept])
            by_class.append(np.concatenate([areas, f1[None]]))
            if terms is not None:
                observed, correct, inactive = (block @ terms).T
                score = np.full(len(block), np.nan)
                defined = has_gain(correct, inactive, len(labels))
                np.divide(observed - inactive, correct - inactive, out=score, where=defined)
                challenge.append(score)
        empty = np.zeros((3, 0, len(kept)))
        return cls(np.concatenate([empty, *by_class], axis=1), np.concatenate([np.zeros(0), *challenge]))


def _drawn_f1(counts: np.ndarray, labels: np.ndarray, told: np.ndarray) -> np.ndarray:
    """F1 of draws, float64 [draws, C]; NaN where a draw has one value of the label only."""
    hits = counts @ (labels & told).astype(np.float64)
    positives = counts @ labels.astype(np.float64)
    outputs = counts @ told.astype(np.float64)
    both = (positives > 0) & (positives < counts.sum(axis=1, keepdims=True))
    return np.divide(2 * hits, positives + outputs, out=np.full(hits.shape, np.nan), where=both)
