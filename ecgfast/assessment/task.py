"""What a model is scored by: the units, their targets, and their parts."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import (
    Bootstrap,
    ByFolds,
    ByFoldsOrPatient,
    ByPatient,
    ChallengeWeights,
    GalleryProbe,
    LabelTable,
    MultiLabel,
    Numbers,
    Prepared,
    Split,
    Statements,
    describe_left_out,
    find_protocol,
    gallery_probe,
    store_labels,
    store_numbers,
)
from ecgfast.evaluation.segments import IdentitySplit, SegmentSplit

LABELS = "labels"
_RATE = 500
_SHARES = (0.7, 0.1, 0.2)


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be told of which units of a store.

    Attributes:
        name: For people.
        kind: "classification", "regression" or "identification".
        names: Of the K classes or quantities.
        recording: Recording of each of the n units, int64 [n].
        start: First sample of each where units are segments; None: they are whole recordings.
        targets: float64 [n, K], finite; empty for identification.
        train, validation, test: Numbers of units, int64; of identification the test alone has some.
        n_gallery: The first units of the test of identification, the others are the probes.
        segment_samples: Samples of a window; None: the model's.
        bootstrap: How intervals are drawn.
        weights: Of the challenge score; None: there is none.
        label_shares: Of the training labels that probes are given.
        lead_sets: Of the protocol; None: no protocol.
        told: What was done and left out, for people.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    recording: np.ndarray
    targets: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    start: np.ndarray | None = None
    n_gallery: int = 0
    segment_samples: int | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    weights: ChallengeWeights | None = None
    label_shares: tuple[float, ...] = (1.0,)
    lead_sets: tuple[str, ...] | None = None
    told: tuple[str, ...] = ()

    @property
    def used(self) -> np.ndarray:
        """Numbers of the units that are in a part, ascending."""
        return np.sort(np.concatenate([self.train, self.validation, self.test]))


def choose_division(
    store: Store, validation_folds: Sequence[int], test_folds: Sequence[int], seed: int
) -> ByFolds | ByFoldsOrPatient:
    """How the parts are made: folds named for validation and test, else the last two folds, else patients.

    Raises:
        EcgfastError: the folds of one part alone.
    """
    if bool(validation_folds) != bool(test_folds):
        raise EcgfastError("validation_folds, test_folds: must be given both, or neither")
    if not test_folds:
        return ByFoldsOrPatient(ByPatient(_SHARES, seed))
    found = {fold for fold in store.index["fold"].to_pylist() if fold is not None}
    others = tuple(sorted(found - {*validation_folds, *test_folds}))
    if not others:
        raise EcgfastError(
            f"test_folds: must leave a fold to train on, got {sorted(found)} of the store in other parts"
        )
    return ByFolds(others, tuple(validation_folds), tuple(test_folds))


def protocol_task(
    store: Store, name: str, division: Any, weights: ChallengeWeights | None, *, classifier: bool
) -> Task:
    """The task of a preset.

    Args:
        store: The recordings.
        name: Of the preset.
        division: Another than the protocol's; None: its own.
        weights: Of the challenge score.
        classifier: Whether a fine-tuned model is scored, and not an encoder alone.

    Raises:
        EcgfastError: an unknown preset, or a store from which it can't be made.
    """
    protocol = find_protocol(name)
    if division is not None and protocol.task == "identification":
        raise EcgfastError(f"test_folds: must be without {name}, whose parts are made of patients")
    prepared = protocol.prepare(
        store.index, statements=Statements.of_store(store.description), division=division
    )
    protocol = prepared.protocol
    told = [*prepared.told, *_not_done(prepared, weights, classifier)]
    samples = None if protocol.segment_seconds is None else round(protocol.segment_seconds * _RATE)
    common: dict[str, Any] = {
        "name": protocol.name,
        "segment_samples": samples,
        "bootstrap": protocol.bootstrap,
        "label_shares": protocol.label_shares,
        "lead_sets": protocol.lead_sets,
    }
    parts = prepared.parts
    if isinstance(parts, IdentitySplit):
        if parts.test is None:
            raise EcgfastError(f"protocol: must have patients to test on, got none by {name}")
        return replace(_of_crops(parts.test), told=tuple(told), **common)
    if isinstance(parts, SegmentSplit):
        segments = [parts.train, parts.validation, parts.test]
        recording = np.concatenate([part.recording for part in segments])
        bounds = np.cumsum([0, *(len(part.recording) for part in segments)])
        numbers = [np.arange(a, b) for a, b in itertools.pairwise(bounds)]
        return Task(
            kind="classification",
            names=prepared.targets.classes,
            recording=recording,
            start=np.concatenate([part.start for part in segments]),
            targets=prepared.rows(recording).astype(float),
            train=numbers[0],
            validation=numbers[1],
            test=numbers[2],
            weights=weights,
            told=tuple(told),
            **common,
        )
    task = _of_split(prepared.targets, parts, told)
    return replace(task, weights=weights, told=tuple(told), **common)


def identities_task(store: Store, recordings: np.ndarray, segment_samples: int, seed: int) -> Task:
    """The task of recognising patients of whom some recordings are known.

    Args:
        store: The recordings.
        recordings: Numbers of those to test on: the first two of a patient are gallery and probe.
        segment_samples: Samples of a crop.
        seed: Of where crops begin.

    Raises:
        EcgfastError: fewer than two patients have two recordings that are long enough.
    """
    patients = store.index["patient_id"].to_pylist()
    records = store.index["record_id"].to_pylist()
    of_patient: dict[str, list[int]] = {}
    for i in recordings.tolist():
        if store.n_samples[i] >= segment_samples:
            of_patient.setdefault(patients[i], []).append(i)
    several = {patient: own for patient, own in of_patient.items() if len(own) > 1}
    if len(several) < 2:
        raise EcgfastError(f"test: must have two patients with two recordings, got {len(several)}")
    used = {i for own in several.values() for i in own[:2]}
    others = [records[i] for i in recordings.tolist() if i not in used]
    reason = "recordings beyond a patient's first two, too short, or of patients with one"
    told = [f"identification: {len(several):,} patients of the model's test part"]
    crops = gallery_probe(store.index, several, seed=seed, segment_samples=segment_samples)
    told += describe_left_out({reason: others})
    return replace(_of_crops(crops), name="identification", segment_samples=segment_samples, told=tuple(told))


def _of_crops(crops: GalleryProbe) -> Task:
    both = (crops.gallery, crops.probe)
    n = sum(len(one.recording) for one in both)
    empty = np.empty(0, dtype=np.int64)
    return Task(
        name="",
        kind="identification",
        names=(),
        recording=np.concatenate([one.recording for one in both]),
        start=np.concatenate([one.start for one in both]),
        targets=np.empty((n, 0)),
        train=empty,
        validation=empty,
        test=np.arange(n),
        n_gallery=len(crops.gallery.recording),
    )


def labels_task(
    store: Store,
    target: str,
    division: Any,
    *,
    table: Path | None = None,
    classes: Sequence[str] = (),
    weights: ChallengeWeights | None = None,
) -> Task:
    """The task of a store's labels, its ages, or a table of the user's.

    Args:
        store: The recordings.
        target: "labels": the store's or all columns of the table; a column of the table; or without one a
            column of numbers of the store, such as "age".
        division: How the parts are made.
        table: CSV with labels by record or patient.
        classes: Labels that count, in this order; none: all.
        weights: Of the challenge score, whose classes are then those that count.

    Raises:
        EcgfastError: the store or table has no such target, or a part would be empty.
    """
    index = store.index
    found: MultiLabel | Numbers
    if table is not None:
        read = LabelTable.read(table)
        name = f"{target} of {table.name}"
        if target == LABELS:
            found = read.multi_label(index, classes=classes or None)
        elif read.kind(target) == "number":
            found = read.numbers(index, target)
        else:
            found = read.multi_label(index, [target], classes=classes or None)
    elif target == LABELS:
        name = "labels of the store"
        wanted = weights.classes if weights is not None else classes or None
        found = store_labels(
            index,
            wanted,
            synonyms=None if weights is None else weights.synonyms,
            absent="error" if weights is None else "leave out",
        )
        if weights is not None:
            found = _all_classes(found, weights.classes)
    else:
        name, found = target, store_numbers(index, target)
    if isinstance(found, Numbers) and (classes or weights is not None):
        raise EcgfastError(f"classes, weights: must be without a target of numbers, got target {target!r}")
    split = division.split(index, found.recordings)
    told = [name, f"parts: {division}"]
    sizes = ", ".join(f"{part} {len(which):,}" for part, which in split.parts().items())
    told += [f"recordings: {sizes}", *describe_left_out(found.left_out | split.left_out)]
    task = _of_split(found, split, told)
    return replace(task, name=name, weights=weights)


def _of_split(found: MultiLabel | Numbers, split: Split, told: Sequence[str]) -> Task:
    numbers = isinstance(found, Numbers)
    values = found.values[:, None] if isinstance(found, Numbers) else found.matrix.astype(float)
    parts = {name: np.searchsorted(found.recordings, part) for name, part in split.parts().items()}
    return Task(
        name="",
        kind="regression" if numbers else "classification",
        names=(found.name,) if isinstance(found, Numbers) else found.classes,
        recording=found.recordings,
        targets=values,
        **parts,
        told=tuple(told),
    )


def _all_classes(found: MultiLabel, classes: tuple[str, ...]) -> MultiLabel:
    """Targets of all classes of the challenge score, also those that no recording has."""
    matrix = np.zeros((len(found.matrix), len(classes)), dtype=bool)
    matrix[:, [classes.index(name) for name in found.classes]] = found.matrix
    return replace(found, classes=classes, matrix=matrix)


def _not_done(prepared: Prepared, weights: ChallengeWeights | None, classifier: bool) -> list[str]:
    """What the protocol has and this evaluation has not."""
    protocol = prepared.protocol
    lines = []
    if "challenge" in protocol.metrics and weights is None:
        lines.append("left out: the challenge score, for which --weights weights.csv must be given")
    for recipe in () if classifier else protocol.recipes:
        if recipe.optimizer != "logistic regression":
            how = f"{recipe.optimizer}, learning rate {recipe.lr:g}"
            lines.append(f"left out: {recipe.what} ({how}): ecgfast finetune trains so")
    return lines
