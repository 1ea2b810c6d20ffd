"""Parts of a store for training, validation and test: by the source's folds, or by patient.

A patient is in one part alone. Which one follows from the patient's id and a seed by a hash, so it stays the
same when a store grows, loses records or is made again in another order, and in any selection of its
recordings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from ecgfast.errors import EcgfastError
from ecgfast.evaluation.labels import LeftOut

PARTS = ("train", "validation", "test")
_NO_FOLD = -1


@dataclass(frozen=True, eq=False)
class Split:
    """Numbers of recordings in the store, ascending, int64; no patient is in two parts.

    Attributes:
        train: To train on.
        validation: To choose by.
        test: To tell results of; by default none.
        left_out: Ids of recordings that are in no part, by the reason.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    left_out: LeftOut = field(default_factory=dict)

    def parts(self) -> dict[str, np.ndarray]:
        """The three by name."""
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True)
class ByFolds:
    """The source's folds, each named for one part.

    Attributes:
        train: Folds to train on.
        validation: Folds to choose by.
        test: Folds to test on.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        every = [*self.train, *self.validation, *self.test]
        if len(set(every)) < len(every) or not (self.train and (self.validation or self.test)):
            raise EcgfastError(
                "folds: must be there once, some to train on and some to choose by or to test on, got "
                f"{asdict(self)}"
            )

    def __str__(self) -> str:
        parts = [f"{part} {_spans(getattr(self, part))}" for part in PARTS if getattr(self, part)]
        return f"folds of the source: {', '.join(parts)}"

    def split(self, index: pa.Table, recordings: Sequence[int] | np.ndarray | None = None) -> Split:
        """Divide a store's recordings.

        Args:
            index: `Store.index`.
            recordings: Numbers of those to divide; None: all.

        Raises:
            EcgfastError: the store has no folds, or no recording in those of a part, or a patient is in two
                parts.
        """
        recordings = _chosen(index, recordings)
        folds = _folds(index)[recordings]
        records = index["record_id"].to_pylist()
        wanted = {part: getattr(self, part) for part in PARTS}
        found = {part: recordings[np.isin(folds, numbers)] for part, numbers in wanted.items()}
        for part, numbers in wanted.items():
            if numbers and not found[part].size:
                has = _spans(np.unique(folds[folds != _NO_FOLD]).tolist()) or "none"
                raise EcgfastError(
                    f"folds: must have recordings for {part} in {_spans(numbers)}, "
                    f"the store's folds are {has}"
                )
        used = [number for numbers in wanted.values() for number in numbers]
        left_out = {
            "recordings without a fold": recordings[folds == _NO_FOLD],
            "recordings of other folds": recordings[~np.isin(folds, [*used, _NO_FOLD])],
        }
        told = {reason: [records[i] for i in which] for reason, which in left_out.items() if which.size}
        split = Split(**found, left_out=told)
        check_patients(index, split)
        return split


@dataclass(frozen=True)
class LastFolds:
    """The source's folds: the last to test on, the one before to choose by, the others to train on."""

    def __str__(self) -> str:
        return "last fold to test on, the one before for validation"

    def split(self, index: pa.Table, recordings: Sequence[int] | np.ndarray | None = None) -> Split:
        """Divide a store's recordings, as `ByFolds.split` does; the last fold is the store's last.

        Raises:
            EcgfastError: the store has fewer than three folds, or as `ByFolds.split`.
        """
        folds = _folds(index)
        numbers = np.unique(folds[folds != _NO_FOLD]).tolist()
        if len(numbers) < 3:
            raise EcgfastError(f"folds: must be three or more, got {len(numbers)} in the store")
        by = ByFolds(tuple(numbers[:-2]), (numbers[-2],), (numbers[-1],))
        return by.split(index, recordings)


@dataclass(frozen=True)
class HoldOut:
    """A number of the patients drawn to choose by, and to test on; all others are trained on.

    As many as the shares say, at least one, which suits few patients; but who they are follows from the order
    of the store, where `ByPatient` keeps everybody's part when a store grows.

    Attributes:
        validation: Share of the patients to choose by.
        test: Share to test on; 0: none.
        seed: Of the draw.
    """

    validation: float = 0.1
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1 or not 0 <= self.test < 1 or self.validation + self.test >= 1:
            got = f"{self.validation:g} and {self.test:g}"
            raise EcgfastError(f"shares: must be above 0 to choose by, and below 1 together, got {got}")

    def __str__(self) -> str:
        test = f"{100 * self.test:g} % of the patients to test on, " if self.test else ""
        return f"{test}{100 * self.validation:g} % of the patients for validation, seed {self.seed}"

    def split(self, index: pa.Table, recordings: Sequence[int] | np.ndarray | None = None) -> Split:
        """Divide a store's recordings.

        Args:
            index: `Store.index`.
            recordings: Numbers of those to divide; None: all.

        Raises:
            EcgfastError: there are fewer patients than parts.
        """
        recordings = _chosen(index, recordings)
        encoded = index["patient_id"].combine_chunks().dictionary_encode()
        patients = encoded.indices.to_numpy().astype(np.int64)[recordings]
        numbers = np.unique(patients)
        parts = 3 if self.test else 2
        if len(numbers) < parts:
            raise EcgfastError(f"split: must have {parts} patients or more to divide, got {len(numbers)}")
        drawn = np.random.default_rng(self.seed).permutation(numbers)
        tested = max(1, round(self.test * len(numbers))) if self.test else 0
        n = min(max(1, round(self.validation * len(numbers))), len(numbers) - 1 - tested)
        validated, held = np.isin(patients, drawn[:n]), np.isin(patients, drawn[n : n + tested])
        return Split(recordings[~validated & ~held], recordings[validated], recordings[held])


@dataclass(frozen=True)
class ByPatient:
    """Shares of the patients, drawn by their ids.

    Shares are kept on average: of few patients a part may have some more or fewer.

    Attributes:
        fractions: Shares to train on, to choose by and to test on, with the sum 1.
        seed: Of the draw.
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    def __str__(self) -> str:
        return (
            f"{'/'.join(f'{100 * share:g}' for share in self.fractions)} % of the patients, seed {self.seed}"
        )

    def split(self, index: pa.Table, recordings: Sequence[int] | np.ndarray | None = None) -> Split:
        """Divide a store's recordings.

        Args:
            index: `Store.index`.
            recordings: Numbers of those to divide; None: all.

        Raises:
            EcgfastError: a part that is to have patients has none.
        """
        recordings = _chosen(index, recordings)
        patients = index["patient_id"].to_pylist()
        of_patient = {p: part_of(p, self.fractions, self.seed) for p in {patients[i] for i in recordings}}
        part = np.array([of_patient[patients[i]] for i in recordings])
        found = {name: recordings[part == number] for number, name in enumerate(PARTS)}
        for name, share in zip(PARTS, self.fractions, strict=True):
            if share > 0 and not found[name].size:
                raise EcgfastError(
                    f"fractions: must give {name} a patient, got none of {len(of_patient)} at {share:g}: "
                    "take another share or seed"
                )
        return Split(**found)


@dataclass(frozen=True)
class ByFoldsOrPatient:
    """The source's folds where every recording has one and there are three or more; else shares of the
    patients.

    Attributes:
        otherwise: The shares.
    """

    otherwise: ByPatient = field(default_factory=ByPatient)

    def __str__(self) -> str:
        return f"{LastFolds()}; in a store without folds {self.otherwise}"

    def split(self, index: pa.Table, recordings: Sequence[int] | np.ndarray | None = None) -> Split:
        """Divide a store's recordings, see `LastFolds` and `ByPatient`."""
        column = index["fold"]
        has_folds = column.null_count == 0 and len(column.unique()) >= 3
        return (LastFolds() if has_folds else self.otherwise).split(index, recordings)


def check_fractions(fractions: Sequence[float]) -> None:
    """See to it that they are three shares with the sum 1, some to train and some to test on.

    Raises:
        EcgfastError: they are not.
    """
    good = len(fractions) == 3 and all(0 <= share <= 1 for share in fractions)
    if not good or abs(sum(fractions) - 1) > 1e-9 or fractions[0] == 0 or fractions[2] == 0:
        got = ", ".join(str(share) for share in fractions)
        raise EcgfastError(
            f"fractions: must be three shares with the sum 1, train and test above 0, got {got}"
        )


def part_of(name: str, fractions: Sequence[float], seed: int) -> int:
    """The part that an id falls in: 0, 1, ... by its place between 0 and 1."""
    return int(np.searchsorted(np.cumsum(fractions[:-1]), place_of(name, seed), side="right"))


def place_of(name: str, seed: int, purpose: str = "split") -> float:
    """Where an id falls between 0 and 1, by a hash of it, the seed and the purpose: uniform over ids."""
    text = f"{purpose}\0{seed}\0{name}".encode()
    return int.from_bytes(blake2b(text, digest_size=6).digest(), "big") / 2**48


def take_share(
    index: pa.Table, recordings: Sequence[int] | np.ndarray, share: float, *, seed: int = 0
) -> np.ndarray:
    """A share of recordings, whole patients, such as the 1 % of labels that a probe is given.

    Patients are taken in an order that follows from their ids until the share is reached, so a smaller share
    lies within a greater one.

    Args:
        index: `Store.index`.
        recordings: Their numbers.
        share: Above 0, at most 1; one recording at least is taken.
        seed: Of the order.

    Returns:
        int64, ascending.

    Raises:
        EcgfastError: another share, or no recordings.
    """
    if not 0 < share <= 1:
        raise EcgfastError(f"share: must be above 0 and at most 1, got {share!r}")
    recordings = _chosen(index, recordings)
    patients = index["patient_id"].to_pylist()
    by_patient: dict[str, list[int]] = {}
    for i in recordings.tolist():
        by_patient.setdefault(patients[i], []).append(i)
    wanted = max(1, round(share * len(recordings)))
    taken: list[int] = []
    for patient in sorted(by_patient, key=lambda name: (place_of(name, seed, "share"), name)):
        if len(taken) >= wanted:
            break
        taken += by_patient[patient]
    return np.array(sorted(taken), dtype=np.int64)


def check_patients(index: pa.Table, split: Split) -> None:
    """See to it that no patient is in two parts.

    Raises:
        EcgfastError: one is; names it and the recordings.
    """
    patients, records = index["patient_id"].to_pylist(), index["record_id"].to_pylist()
    seen: dict[str, tuple[str, int]] = {}
    for part, recordings in split.parts().items():
        for i in recordings.tolist():
            other, j = seen.setdefault(patients[i], (part, i))
            if other != part:
                raise EcgfastError(
                    f"split: must have each patient in one part, got {patients[i]!r} in {other} "
                    f"({records[j]}) and in {part} ({records[i]})"
                )


def _chosen(index: pa.Table, recordings: Any) -> np.ndarray:
    chosen = np.arange(index.num_rows) if recordings is None else np.asarray(recordings)
    if chosen.ndim != 1 or chosen.size == 0 or chosen.dtype.kind not in "iu":
        raise EcgfastError(
            f"recordings: must be one or more whole numbers, got {chosen.dtype} {list(chosen.shape)}"
        )
    if chosen.min() < 0 or chosen.max() >= index.num_rows or len(np.unique(chosen)) < len(chosen):
        raise EcgfastError(f"recordings: must be numbers from 0 to {index.num_rows - 1}, each once")
    return np.sort(chosen).astype(np.int64)


def _folds(index: pa.Table) -> np.ndarray:
    column = index["fold"]
    if column.null_count == len(column):
        raise EcgfastError("folds: must be in the store for a split by folds, got none: split by patient")
    return column.fill_null(_NO_FOLD).to_numpy().astype(np.int64)


def _spans(numbers: Iterable[int]) -> str:
    """Whole numbers for people: "1 to 8, 10"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in spans)
