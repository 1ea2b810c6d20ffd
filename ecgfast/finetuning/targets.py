"""What is to be predicted, and from which recordings of a store it is learnt."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import (
    ByFolds,
    HoldOut,
    LabelTable,
    MultiLabel,
    Numbers,
    Prepared,
    Split,
    Statements,
    check_patients,
    describe_left_out,
    find_protocol,
    store_labels,
    store_numbers,
)
from ecgfast.finetuning.config import FinetuneConfig
from ecgfast.leads import STANDARD_LEADS

LABELS = "labels"
"""As a target: the classes of a store's own labels."""


class Targets(NamedTuple):
    """What is known of every recording of a store.

    Attributes:
        values: float32 [n, K]: 0 or 1 for a class, a number for a quantity; NaN: unknown.
        names: of the K classes or quantities.
    """

    values: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, found: MultiLabel | Sequence[Numbers], n: int) -> "Targets":
        """Classes or columns of numbers of a store of n recordings; what they leave out is unknown."""
        names = found.classes if isinstance(found, MultiLabel) else tuple(one.name for one in found)
        values = np.full((n, len(names)), np.nan, dtype=np.float32)
        if isinstance(found, MultiLabel):
            values[found.recordings] = found.matrix
        else:
            for k, one in enumerate(found):
                values[one.recordings, k] = one.values
        return cls(values, names)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a run is to learn, and from which recordings.

    Attributes:
        targets: of the whole store.
        split: into parts; that to test on is left alone.
        task: "classification" or "regression".
        told: what was chosen and left out, line by line, for people.
        left_out: those of the lines that tell of something left out.
        single: what to do with classes of one value in training: "leave out", "refuse", or "keep" where a
            protocol scores them all.
        digests: of what is not in the store, such as a table of labels.
    """

    targets: Targets
    split: Split
    task: str
    told: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    single: str = "refuse"
    digests: dict[str, str] | None = None

    def describe(self) -> dict[str, Any]:
        """What makes it the same as another run's, as JSON values."""
        return {
            "names": list(self.targets.names),
            "targets_sha256": digest_of(self.targets.values, "<f4"),
            **describe_parts(self.split),
            **(self.digests or {}),
        }


def task_of(config: FinetuneConfig) -> str:
    """The task that a configuration names, "auto" where the targets' values decide."""
    if config.protocol and find_protocol(config.protocol).task == "identification":
        return "identification"
    return config.task


def choose_data(
    store: Store, config: FinetuneConfig, targets: Targets | None = None, split: Split | None = None
) -> TrainingData:
    """Targets and parts of a store, as given or else as the configuration names them.

    Args:
        store: the recordings.
        config: its protocol, or its labels, target, classes and folds or fractions.
        targets: of all recordings of the store; None: those that the configuration names.
        split: of the store; None: likewise.

    Raises:
        EcgfastError: the store, the table or the protocol has nothing of what is asked for.
    """
    if config.protocol and targets is None:
        return _of_protocol(store, config, split)
    left_out: dict[str, list[str]] = {}
    digests, among = None, None
    single = "leave out" if targets is None and not config.classes else "refuse"
    if targets is not None:
        task = _task_of_values(config, targets)
    elif config.labels:
        table = LabelTable.read(Path(config.labels))
        targets, task, left_out = _of_table(store, config, table)
        digests = {"labels_sha256": table.digest}
        among = np.flatnonzero(~np.isnan(targets.values).all(1))
    elif config.target == LABELS:
        if config.task == "regression":
            raise EcgfastError("task: must be classification for labels, got 'regression'")
        targets, task = label_targets(store, config.classes), "classification"
    else:
        if config.task == "classification":
            raise EcgfastError(f"task: must be regression for {config.target}, got 'classification'")
        targets, task = column_targets(store, config.target), "regression"
    split = choose_split(store, config, among) if split is None else split
    lines = tuple(describe_left_out(left_out | split.left_out))
    return TrainingData(targets, _whole_numbers(split), task, lines, lines, single, digests)


def label_targets(store: Store, classes: Sequence[str] = ()) -> Targets:
    """The classes of a store's `labels`: alphabetical, or those named in their order.

    A recording without any label is unknown of all classes.

    Raises:
        EcgfastError: the store has no labels, or none that is named.
    """
    if len(set(classes)) < len(classes):
        raise EcgfastError(f"classes: must be named once each, got {list(classes)}")
    return Targets.of(store_labels(store.index, classes or None, keep_unlabelled="others"), len(store))


def column_targets(store: Store, column: str) -> Targets:
    """A number column of a store's index, such as "age"; null is unknown.

    Raises:
        EcgfastError: there is no such column, or no number in it.
    """
    return Targets.of([store_numbers(store.index, column)], len(store))


def _of_table(
    store: Store, config: FinetuneConfig, table: LabelTable
) -> tuple[Targets, str, dict[str, list[str]]]:
    """Targets of a table's columns, their task, and what they leave out."""
    columns = list(config.label_columns) or list(table.columns)
    kinds = {
        name: "list" if name in config.label_lists else table.kind(name)
        for name in dict.fromkeys([*columns, *config.label_lists])
    }
    numbers = [name for name in columns if kinds[name] == "number"]
    if config.task == "regression" or (config.task == "auto" and len(numbers) == len(columns)):
        if config.classes:
            raise EcgfastError(f"classes: must be of labels, got columns of numbers, {', '.join(columns)}")
        found = [table.numbers(store.index, name) for name in columns]
        left_out = found[0].left_out
        if len(found) > 1:
            # A recording may have some of the numbers alone: it counts for those.
            by_name = [(one.name, *item) for one in found for item in one.left_out.items()]
            left_out = {f"{reason} ({name})": ids for name, reason, ids in by_name}
        return Targets.of(found, len(store)), "regression", left_out
    if numbers and config.task == "auto":
        other = next(name for name in columns if name not in numbers)
        raise EcgfastError(
            f"label_columns: must be all numbers or all classes, got {numbers[0]!r} of numbers and "
            f"{other!r} of classes: name the columns, or codes that look like numbers in label_lists"
        )
    found = table.multi_label(store.index, columns, classes=config.classes or None, lists=config.label_lists)
    return Targets.of(found, len(store)), "classification", found.left_out


def _of_protocol(store: Store, config: FinetuneConfig, split: Split | None) -> TrainingData:
    prepared = prepare_protocol(store, config)
    parts = prepared.parts
    if not isinstance(parts, Split):
        raise EcgfastError(
            f"protocol: must divide recordings, got {config.protocol!r}, which divides segments of them: "
            "its results flatter; take the protocol without -official"
        )
    targets = Targets.of(prepared.targets, len(store))
    left_out = tuple(describe_left_out(prepared.left_out))
    split = _whole_numbers(parts if split is None else split)
    return TrainingData(targets, split, "classification", prepared.told, left_out, single="keep")


def prepare_protocol(store: Store, config: FinetuneConfig) -> Prepared:
    """The configuration's protocol applied to a store; folds that the configuration names are its parts.

    Raises:
        EcgfastError: the store has none of the labels, folds or recordings that the protocol takes.
    """
    division = None
    if config.validation_folds:
        division = _by_folds(store, config)
    return find_protocol(config.protocol).prepare(
        store.index, statements=Statements.of_store(store.description), division=division
    )


def _task_of_values(config: FinetuneConfig, targets: Targets) -> str:
    if config.task != "auto":
        return config.task
    known = targets.values[~np.isnan(targets.values)]
    return "classification" if np.isin(known, (0, 1)).all() else "regression"


def choose_split(store: Store, config: FinetuneConfig, among: np.ndarray | None = None) -> Split:
    """The parts of a store by the folds that the configuration names, or by shares of the patients.

    Args:
        store: the recordings.
        config: its folds, or its fractions and seed.
        among: numbers of the recordings to divide; None: all.

    Raises:
        EcgfastError: the store has no such fold, or a patient is in two parts, or there are too few.
    """
    if config.validation_folds:
        return _by_folds(store, config).split(store.index, among)
    shares = HoldOut(config.validation_fraction, config.test_fraction, config.seed)
    return shares.split(store.index, among)


def _by_folds(store: Store, config: FinetuneConfig) -> ByFolds:
    column = store.index["fold"].to_numpy().astype(float)
    present = sorted(set(column[np.isfinite(column)].astype(int).tolist()))
    for name in ("validation_folds", "test_folds"):
        for fold in getattr(config, name):
            if fold not in present:
                raise EcgfastError(f"{name}: must be of the store's folds {present}, got {fold}")
    if both := set(config.validation_folds) & set(config.test_folds):
        raise EcgfastError(f"test_folds: must be other folds than validation_folds, got {min(both)} in both")
    held = {*config.validation_folds, *config.test_folds}
    train = tuple(fold for fold in present if fold not in held)
    if not train:
        raise EcgfastError(f"validation_folds: must leave a fold to train on, got all of {present}")
    return ByFolds(train, config.validation_folds, config.test_folds)


def _whole_numbers(split: Split) -> Split:
    return replace(split, **{name: np.asarray(part, dtype=np.int64) for name, part in split.parts().items()})


def check_targets(store: Store, data: TrainingData) -> None:
    """Refuse targets and parts of a store that nothing, or nothing true, can be learnt from.

    Raises:
        EcgfastError: shapes that differ, numbers out of range, an empty part, a patient in both parts, a
            value that is no label, or a class or quantity of one value only in training.
    """
    (values, names), split = data.targets, data.split
    if values.shape != (len(store), len(names)):
        raise EcgfastError(f"targets: must be [{len(store)}, {len(names)}], got {list(values.shape)}")
    if np.isinf(values).any():
        raise EcgfastError("targets: must be finite or NaN (unknown), got infinity")
    check_parts(store, split)
    for k, name in enumerate(names):
        seen = np.unique(values[split.train, k])
        seen = seen[~np.isnan(seen)]
        if data.task == "classification" and not np.isin(seen, (0, 1)).all():
            raise EcgfastError(
                f"targets: class {name!r} must be 0, 1 or NaN, got {seen[~np.isin(seen, (0, 1))][0]}"
            )
        if len(seen) < 2 and data.single != "keep":
            got = f"{seen[0]:g} alone" if len(seen) else "none"
            raise EcgfastError(
                f"targets: {name!r} must have two values among the training recordings, got {got}"
            )


def check_parts(store: Store, split: Split) -> None:
    """Refuse parts to train on and to validate with that are empty or share a patient, with any other too.

    Raises:
        EcgfastError: they do.
    """
    for name, part in split.parts().items():
        if len(part) == 0 and name != "test":
            raise EcgfastError(f"split: must have recordings with targets in {name}, got none")
        if len(part) and (part.min() < 0 or part.max() >= len(store)):
            raise EcgfastError(
                f"split: {name} must be 0 to {len(store) - 1}, got {part.min()} to {part.max()}"
            )
    check_patients(store.index, split)


def usable(store: Store, targets: Targets, split: Split, leads: Sequence[int]) -> tuple[Split, list[str]]:
    """The recordings of a split that have a target and a lead, and what was left out, for people.

    Of those to test on it says nothing, and leaves out those without a target alone: they may be tested with
    other leads.
    """
    known = ~np.isnan(targets.values).all(1)
    has = store.present_leads()[:, list(leads)]
    present = has.any(1)
    told = []
    chosen = np.zeros(len(store), dtype=bool)
    chosen[np.concatenate([split.train, split.validation])] = True
    for why, bad in (("no known target", chosen & ~known), ("none of the leads", chosen & known & ~present)):
        if bad.any():
            told.append(f"{int(bad.sum())} of {int(chosen.sum())} recordings have {why}: they are left out")
    good = known & present
    told += _lacking(chosen & good, has, leads)
    parts = {name: part[good[part]] for name, part in split.parts().items()}
    return replace(split, **parts | {"test": split.test[known[split.test]]}), told


def _lacking(chosen: np.ndarray, has: np.ndarray, leads: Sequence[int]) -> list[str]:
    """That some of the recordings have some of the leads only."""
    partly = chosen & ~has.all(1)
    if not partly.any():
        return []
    lacking = [
        STANDARD_LEADS[lead] for lead, there in zip(leads, has[partly].T, strict=True) if not there.all()
    ]
    return [
        f"{int(partly.sum())} of {int(chosen.sum())} recordings lack some of the leads, which count as zero: "
        f"{', '.join(lacking)}"
    ]


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


def digest_of(array: np.ndarray, dtype: str) -> str:
    """A digest of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array.astype(dtype)).tobytes()).hexdigest()[:16]


def describe_parts(split: Split) -> dict[str, Any]:
    """Sizes and digests of the parts, by the recordings' numbers in the store."""
    parts = split.parts()
    return {
        **{f"n_{name}": len(part) for name, part in parts.items()},
        **{f"{name}_sha256": digest_of(part, "<i8") for name, part in parts.items()},
    }
