"""The score of the PhysioNet/Computing in Cardiology Challenge 2021, with any table of weights.

Source: Reyna et al., "Will Two Do? Varying Dimensions in Electrocardiography: the PhysioNet/Computing in
Cardiology Challenge 2021" (Computing in Cardiology 48, 2021), and
github.com/physionetchallenges/evaluation-2021.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError, one_line
from ecgfast.evaluation._inputs import check_labels, named

SINUS_RHYTHM = "426783006"
"""SNOMED CT code of the class that an inactive classifier always tells."""


@dataclass(frozen=True, eq=False)
class ChallengeWeights:
    """Rewards for telling one class where another is labelled.

    Attributes:
        classes: Names of C classes; equivalent ones are joined by `|` as in "733534002|164909002".
        matrix: Rewards, float64 [C, C]: row the label, column the output.
        normal: The class that an inactive classifier tells, one of `classes`.
    """

    classes: tuple[str, ...]
    matrix: np.ndarray
    normal: str = SINUS_RHYTHM

    def __post_init__(self) -> None:
        n = len(self.classes)
        if self.matrix.shape != (n, n) or not np.isfinite(self.matrix).all():
            raise EcgfastError(f"weights: must be finite numbers [{n}, {n}], got {list(self.matrix.shape)}")
        if self.normal not in self.classes:
            raise EcgfastError(
                f"weights: must have the normal class {self.normal}, got {named(self.classes)}"
            )

    @classmethod
    def read(
        cls, path: str | Path, *, normal: str = SINUS_RHYTHM, equivalent: Sequence[Sequence[str]] = ()
    ) -> "ChallengeWeights":
        """Read a `weights.csv`: class names in its first line and its first column, numbers else.

        Args:
            path: The file.
            normal: The class that an inactive classifier tells.
            equivalent: Groups of classes that have lines of their own in the file and count as one, as the
                tables of earlier challenges have them: their rows and columns must be the same.

        Raises:
            EcgfastError: it can't be read, is not square, has a name twice, lines and columns in another
                order, what is no finite number, or different weights for equivalent classes.
        """
        names, matrix = _read_table(Path(path))
        for group in equivalent:
            names, matrix = _merged(names, matrix, [name for name in names if name in group])
        return cls(tuple(names), matrix, normal)

    @property
    def synonyms(self) -> dict[str, str]:
        """The class of each code: both codes of "733534002|164909002" are that class."""
        return {code: name for name in self.classes for code in (name, *name.split("|"))}


def challenge_score(labels: Any, outputs: Any, weights: ChallengeWeights) -> float:
    """Challenge score of 0/1 outputs: 1 for the labels themselves, 0 for normal everywhere, and down from
    there.

    Record i with L_i labels and O_i outputs adds W[j, k] / max(|L_i or O_i|, 1) for each label j and output
    k; with s the sum over all records, the score is (s(outputs) - s(normal alone)) / (s(labels) - s(normal
    alone)).

    Args:
        labels: 0 or 1, [n, C] in the order of `weights.classes`.
        outputs: 0 or 1, [n, C].
        weights: The rewards.

    Raises:
        EcgfastError: other shapes or values, or labels for which an inactive classifier is perfect, so that
            the score is not defined (the official code tells 0 there).
    """
    terms = score_terms(labels, outputs, weights)
    observed, correct, inactive = terms.sum(axis=0)
    if not has_gain(correct, inactive, len(terms)):
        raise EcgfastError(
            "labels: must reward more than the normal class alone does, got labels for which the challenge "
            "score is not defined"
        )
    return float((observed - inactive) / (correct - inactive))


def has_gain(correct: Any, inactive: Any, n: int) -> Any:
    """Whether the labels' own sum over n records differs from that of normal alone by more than rounding."""
    return np.abs(correct - inactive) > 1e-12 * n


def score_terms(labels: Any, outputs: Any, weights: ChallengeWeights) -> np.ndarray:
    """What each record adds to the sums of outputs, labels and normal alone: float64 [n, 3]."""
    n_classes = len(weights.classes)
    labels = check_labels("labels", labels)
    if labels.shape[1] != n_classes:
        raise EcgfastError(f"labels: must have the {n_classes} classes of the weights, got {labels.shape[1]}")
    outputs = check_labels("outputs", outputs, labels.shape)
    normal = np.zeros_like(labels)
    normal[:, weights.classes.index(weights.normal)] = True
    rewards = labels @ weights.matrix  # [n, C]: of each output, over the record's labels
    terms = [
        (rewards * told).sum(axis=1) / np.maximum((labels | told).sum(axis=1), 1)
        for told in (outputs, labels, normal)
    ]
    return np.stack(terms, axis=1)


def _read_table(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [[field.strip() for field in row] for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EcgfastError(f"weights: can't read {path}: {one_line(error)}") from None
    if len(rows) < 2:
        raise EcgfastError(f"weights: {path} holds no table of weights")
    names = rows[0][1:]
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise EcgfastError(f"weights: {path} has class {repeated[0]} twice, want each once")
    if names != [row[0] for row in rows[1:]]:
        raise EcgfastError(f"weights: {path} must have the same classes in its lines as in its columns")
    if uneven := [row[0] for row in rows[1:] if len(row) != len(rows[0])]:
        raise EcgfastError(
            f"weights: {path} has another number of fields in line {uneven[0]} than in its first"
        )
    try:
        matrix = np.array([[float(field) for field in row[1:]] for row in rows[1:]])
    except ValueError as error:
        raise EcgfastError(f"weights: {path} must have numbers: {one_line(error)}") from None
    return names, matrix


def _merged(names: list[str], matrix: np.ndarray, group: list[str]) -> tuple[list[str], np.ndarray]:
    """The table with the classes of a group as one, in the place of the first."""
    if len(group) < 2:
        return names, matrix
    at = [names.index(name) for name in group]
    if (matrix[at] != matrix[at[0]]).any() or (matrix[:, at] != matrix[:, at[:1]]).any():
        raise EcgfastError(f"weights: must be the same for the equivalent classes {', '.join(group)}")
    kept = [i for i in range(len(names)) if i not in at[1:]]
    joined = ["|".join(group) if i == at[0] else names[i] for i in kept]
    return joined, matrix[np.ix_(kept, kept)]
