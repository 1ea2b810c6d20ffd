"""What is to be predicted, and from which recordings of a store it is learnt."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ecgfast._suggest import did_you_mean
from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS

COLUMNS = ("age",)
"""Columns of a store's index that are numbers of a patient."""


class Targets(NamedTuple):
    """What is known of every recording of a store.

    Attributes:
        values: float32 [n, K]: 0 or 1 for a class, a number for a quantity; NaN: unknown.
        names: of the K classes or quantities.
    """

    values: np.ndarray
    names: tuple[str, ...]


class Split(NamedTuple):
    """Numbers of the recordings to train on, and of those to validate with; int64."""

    train: np.ndarray
    validation: np.ndarray


def label_targets(store: Store, classes: Sequence[str] = ()) -> Targets:
    """The classes of a store's `labels`: alphabetical, or those named in their order.

    A recording without any label is unknown of all classes.

    Raises:
        EcgfastError: the store has no labels, or none that is named.
    """
    every = store.index["labels"].to_pylist()
    found = sorted({label for labels in every for label in labels})
    if not found:
        raise EcgfastError(f"STORE: {str(store.path)!r} must have labels to learn, got none")
    names = tuple(classes) or tuple(found)
    for name in names:
        if name not in found:
            near = did_you_mean(name, found)
            raise EcgfastError(f"classes: must be labels of {str(store.path)!r}, got {name!r}{near}")
    column = {name: k for k, name in enumerate(names)}
    if len(column) < len(names):
        raise EcgfastError(f"classes: must be named once each, got {list(names)}")
    values = np.zeros((len(store), len(names)), dtype=np.float32)
    for i, labels in enumerate(every):
        if not labels:
            values[i] = np.nan
        values[i, [column[label] for label in set(labels) if label in column]] = 1
    return Targets(values, names)


def column_targets(store: Store, column: str) -> Targets:
    """A number column of a store's index, such as "age"; null is unknown.

    Raises:
        EcgfastError: there is no such column, or no number in it.
    """
    if column not in COLUMNS:
        raise EcgfastError(f"target: must be labels or {' or '.join(COLUMNS)}, got {column!r}")
    values = store.index[column].to_numpy().astype(np.float32)
    if not np.isfinite(values).any():
        raise EcgfastError(
            f"target: must be known of some recordings of {str(store.path)!r}, got no {column}"
        )
    return Targets(np.where(np.isfinite(values), values, np.nan)[:, None], (column,))


def split_by_patient(store: Store, fraction: float, seed: int) -> Split:
    """A random part of the patients for validation, at least one; the others to train on.

    Raises:
        EcgfastError: there is one patient alone.
    """
    patients = store.patient_numbers()
    numbers = np.unique(patients)
    if len(numbers) < 2:
        raise EcgfastError(
            f"STORE: {str(store.path)!r} must have two patients for a split, got {len(numbers)}"
        )
    n = min(max(1, round(fraction * len(numbers))), len(numbers) - 1)
    chosen = np.random.default_rng(seed).permutation(numbers)[:n]
    held = np.isin(patients, chosen)
    return Split(np.flatnonzero(~held), np.flatnonzero(held))


def split_by_fold(store: Store, validation: Sequence[int], test: Sequence[int] = ()) -> Split:
    """The source's folds: `validation` to validate with, `test` left alone, the others to train on.

    Recordings without a fold are in no part.

    Raises:
        EcgfastError: the store has no such fold, one is in both, or a patient of a test fold is in another.
    """
    column = store.index["fold"].to_numpy()
    folds = np.where(np.isfinite(column.astype(float)), column.astype(float), -1).astype(np.int64)
    present = sorted(set(folds[folds >= 0].tolist()))
    for name, asked in (("validation_folds", validation), ("test_folds", test)):
        for fold in asked:
            if fold not in present:
                raise EcgfastError(f"{name}: must be of the store's folds {present}, got {fold}")
    if both := set(validation) & set(test):
        raise EcgfastError(f"test_folds: must be other folds than validation_folds, got {min(both)} in both")
    tested = np.isin(folds, list(test))
    used = (folds >= 0) & ~tested
    validated = np.isin(folds, list(validation))
    numbers = store.patient_numbers()
    both = np.intersect1d(numbers[tested], numbers[used])
    if both.size:
        patient = store.index["patient_id"][int(np.flatnonzero(numbers == both[0])[0])].as_py()
        raise EcgfastError(f"test_folds: must hold whole patients, got {patient} in another fold too")
    return Split(np.flatnonzero(used & ~validated), np.flatnonzero(validated))


def check_targets(store: Store, targets: Targets, split: Split, *, classification: bool) -> None:
    """Refuse targets and parts of a store that nothing, or nothing true, can be learnt from.

    Raises:
        EcgfastError: shapes that differ, numbers out of range, an empty part, a patient in both parts, a
            value that is no label, or a class or quantity of one value only in training.
    """
    values, names = targets
    if values.shape != (len(store), len(names)):
        raise EcgfastError(f"targets: must be [{len(store)}, {len(names)}], got {list(values.shape)}")
    if np.isinf(values).any():
        raise EcgfastError("targets: must be finite or NaN (unknown), got infinity")
    for name, part in zip(Split._fields, split, strict=True):
        if len(part) == 0:
            raise EcgfastError(f"split: must have recordings with targets in {name}, got none")
        if part.min() < 0 or part.max() >= len(store):
            raise EcgfastError(
                f"split: {name} must be 0 to {len(store) - 1}, got {part.min()} to {part.max()}"
            )
    _check_patients(store, split)
    for k, name in enumerate(names):
        seen = np.unique(values[split.train, k])
        seen = seen[~np.isnan(seen)]
        if classification and not np.isin(seen, (0, 1)).all():
            raise EcgfastError(
                f"targets: class {name!r} must be 0, 1 or NaN, got {seen[~np.isin(seen, (0, 1))][0]}"
            )
        if len(seen) < 2:
            got = f"{seen[0]:g} alone" if len(seen) else "none"
            raise EcgfastError(
                f"targets: {name!r} must have two values among the training recordings, got {got}"
            )


def _check_patients(store: Store, split: Split) -> None:
    numbers = store.patient_numbers()
    both = np.intersect1d(numbers[split.train], numbers[split.validation])
    if both.size:
        patient = store.index["patient_id"][int(np.flatnonzero(numbers == both[0])[0])].as_py()
        raise EcgfastError(
            f"split: must have every patient in one part, got {patient} in both (and {both.size - 1} others)"
        )


def usable(store: Store, targets: Targets, split: Split, leads: Sequence[int]) -> tuple[Split, list[str]]:
    """The recordings of a split that have a target and a lead, and what was left out, for people."""
    known = ~np.isnan(targets.values).all(1)
    has = store.present_leads()[:, list(leads)]
    present = has.any(1)
    told = []
    chosen = np.zeros(len(store), dtype=bool)
    chosen[np.concatenate(split)] = True
    for why, bad in (("no known target", chosen & ~known), ("none of the leads", chosen & known & ~present)):
        if bad.any():
            told.append(f"{int(bad.sum())} of {int(chosen.sum())} recordings have {why}: they are left out")
    good = known & present
    partly = chosen & good & ~has.all(1)
    if partly.any():
        lacking = [
            STANDARD_LEADS[lead] for lead, there in zip(leads, has[partly].T, strict=True) if not there.all()
        ]
        told.append(
            f"{int(partly.sum())} of {int((chosen & good).sum())} recordings lack some of the leads, which "
            f"count as zero: {', '.join(lacking)}"
        )
    return Split(*(part[good[part]] for part in split)), told


def without_single(targets: Targets, split: Split) -> tuple[Targets, list[str]]:
    """The targets that have two values or more in training, and what was left out, for people."""
    values = targets.values[split.train]
    good = [k for k in range(len(targets.names)) if len(np.unique(values[~np.isnan(values[:, k]), k])) > 1]
    dropped = [name for k, name in enumerate(targets.names) if k not in good]
    if not good or not dropped:
        return targets, []
    named = ", ".join(dropped[:5]) + (", ..." if len(dropped) > 5 else "")
    told = f"{len(dropped)} of {len(targets.names)} classes are left out, of one value in training: {named}"
    return Targets(targets.values[:, good], tuple(targets.names[k] for k in good)), [told]


def describe_data(targets: Targets, split: Split) -> dict[str, Any]:
    """What makes targets and split the same as another run's, as JSON values."""
    digests = {
        name: hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()[:16]
        for name, part in (
            ("targets_sha256", targets.values.astype("<f4")),
            ("train_sha256", split.train.astype("<i8")),
            ("validation_sha256", split.validation.astype("<i8")),
        )
    }
    sizes = {"n_train": len(split.train), "n_validation": len(split.validation)}
    return {"names": list(targets.names), **sizes, **digests}
