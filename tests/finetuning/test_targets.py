"""Targets and splits: what is taken from a store, and what is refused."""

import numpy as np
import pytest

from ecgfast.data import Store
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import STORE_VERSION
from ecgfast.data.store.writer import StoreWriter
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import Split
from ecgfast.finetuning import FinetuneConfig
from ecgfast.finetuning.targets import (
    Targets,
    TrainingData,
    check_targets,
    choose_split,
    column_targets,
    label_targets,
    usable,
    without_single,
)
from ecgfast.leads import STANDARD_LEADS

NAN = np.nan
# record: patient, labels, age, fold, leads
ROWS = [
    ("p0", ["A"], 40.0, 1, STANDARD_LEADS),
    ("p0", ["A", "B"], 41.0, 1, STANDARD_LEADS),
    ("p1", ["B"], None, 2, STANDARD_LEADS),
    ("p2", [], 60.0, 2, ("I", "II")),
    ("p3", ["C"], 70.0, 3, ("V1",)),
    ("p4", ["A"], 20.0, None, ("V1",)),
]


def write(path, rows, names=None, samples=800) -> Store:
    settings = {
        "format": "ecgfast-store",
        "version": STORE_VERSION,
        "sample_rate": 500,
        "leads": list(STANDARD_LEADS),
    }
    with StoreWriter(path, settings) as writer:
        for i, (patient, labels, age, fold, leads) in enumerate(rows):
            signal = np.full((12, samples), i + 1, np.int16)
            signal[[lead not in leads for lead in STANDARD_LEADS]] = 0
            name = names[i] if names else f"r{i}"
            record = Recording(name, patient, name, signal, list(leads), labels, age, None, 500.0, fold)
            writer.add(record)
        writer.finish()
    return Store(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write(tmp_path_factory.mktemp("targets") / "store", ROWS)


def parts(split):
    return [part.tolist() for part in split.parts().values()]


def by_fold(store, validation, test=()):
    return choose_split(store, FinetuneConfig(validation_folds=validation, test_folds=test))


def test_labels_in_alphabetical_order(store):
    values, names = label_targets(store)
    assert names == ("A", "B", "C")
    want = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [NAN] * 3, [0, 0, 1], [1, 0, 0]]
    np.testing.assert_array_equal(values, want)
    values, names = label_targets(store, ("C", "A"))
    assert names == ("C", "A")
    np.testing.assert_array_equal(values[:2], [[0, 1], [0, 1]])


def test_age(store):
    values, names = column_targets(store, "age")
    assert names == ("age",)
    np.testing.assert_array_equal(values[:, 0], [40, 41, NAN, 60, 70, 20])


def test_folds(store):
    split = by_fold(store, (3,), (1,))
    assert parts(split) == [[2, 3], [4], [0, 1]]
    assert split.left_out == {"recordings without a fold": ["r5"]}


def test_random_split_keeps_patients_whole(store):
    splits = [choose_split(store, FinetuneConfig(validation_fraction=0.4, seed=seed)) for seed in range(20)]
    patients = store.patient_numbers()
    for split in splits:
        assert len(np.unique(patients[split.validation])) == 2
        assert not set(patients[split.train]) & set(patients[split.validation])
        assert sorted([*split.train, *split.validation]) == list(range(6))
    assert len({tuple(split.validation) for split in splits}) > 3


def test_a_patient_of_a_test_fold_elsewhere(tmp_path):
    rows = [
        (patient, ["A"], None, fold, STANDARD_LEADS) for patient, fold in (("p0", 1), ("p1", 2), ("p0", 3))
    ]
    with pytest.raises(EcgfastError, match=r"each patient in one part, got 'p0' in train \(r0\) and in test"):
        by_fold(write(tmp_path / "store", rows), (2,), (3,))


def test_leads_that_some_lack_are_told(store):
    split, told = usable(store, label_targets(store), Split(np.array([0, 1, 2]), np.array([4, 5])), [0, 6])
    assert parts(split) == [[0, 1, 2], [4, 5], []]
    assert told == ["2 of 5 recordings lack some of the leads, which count as zero: I"]


def test_what_is_left_out_is_told(store):
    """Recording 3 has no label, 4 and 5 none of the leads I, II."""
    split, told = usable(store, label_targets(store), Split(np.array([0, 1, 2, 3, 5]), np.array([4])), [0, 1])
    assert parts(split) == [[0, 1, 2], [], []]
    assert told == [
        "1 of 6 recordings have no known target: they are left out",
        "2 of 6 recordings have none of the leads: they are left out",
    ]


def test_single_valued_classes_are_left_out(store):
    targets, told = without_single(label_targets(store), Split(np.array([0, 1, 2]), np.array([4])))
    assert targets.names == ("A", "B")
    assert targets.values.shape == (6, 2)
    assert told == ["1 of 3 classes are left out, of one value in training: C"]


def test_another_target_is_another_run(store):
    targets, split = label_targets(store), Split(np.array([0, 1]), np.array([2]))
    told = TrainingData(targets, split, "classification").describe()
    assert told == TrainingData(targets, split, "classification").describe()
    other = targets.values.copy()
    other[0, 0] = 0
    for changed in (
        TrainingData(Targets(other, targets.names), split, "classification"),
        TrainingData(targets, Split(split.train[::-1], split.validation), "classification"),
        TrainingData(targets, Split(split.train, split.validation, np.array([4])), "classification"),
        TrainingData(targets, split, "classification", digests={"labels_sha256": "0"}),
    ):
        assert told != changed.describe()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: label_targets(s, ("D",)), "classes: must be labels of .*, got 'D'"),
        (lambda s: label_targets(s, ("A", "A")), "classes: must be named once each"),
        (
            lambda s: column_targets(s, "weight"),
            "must be labels or n_samples or age or .*, got 'weight'",
        ),
        (
            lambda s: by_fold(s, (9,)),
            r"validation_folds: must be of the store's folds \[1, 2, 3\], got 9",
        ),
        (lambda s: by_fold(s, (1,), (1,)), "test_folds: must be other folds"),
    ],
)
def test_bad_choices(store, make, message):
    with pytest.raises(EcgfastError, match=message):
        make(store)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([0, 2], [1, 4], r"split: must have each patient in one part, got 'p0' in train \(r0\)"),
        ([0, 1], [4], "targets: 'A' must have two values among the training recordings, got 1 alone"),
        ([0, 2], [], "split: must have recordings with targets in validation, got none"),
        ([0, 9], [4], "split: train must be 0 to 5, got 0 to 9"),
    ],
)
def test_bad_splits(store, train, validation, message):
    split = Split(np.array(train, dtype=np.int64), np.array(validation, dtype=np.int64))
    with pytest.raises(EcgfastError, match=message):
        check_targets(store, TrainingData(label_targets(store, ("A",)), split, "classification"))


def test_bad_values(store):
    split = Split(np.array([0, 1, 2]), np.array([4]))
    for values, message in (
        (np.array([[0], [1], [2], [0], [0], [0]]), "class 'x' must be 0, 1 or NaN, got 2"),
        (np.array([[0], [1], [np.inf], [0], [0], [0]]), "targets: must be finite or NaN"),
        (np.zeros((5, 1)), r"targets: must be \[6, 1\], got \[5, 1\]"),
    ):
        data = TrainingData(Targets(values.astype(np.float32), ("x",)), split, "classification")
        with pytest.raises(EcgfastError, match=message):
            check_targets(store, data)


def test_stores_without_targets(tmp_path):
    rows = [("p0", [], None, None, STANDARD_LEADS)]
    bare = write(tmp_path / "store", rows)
    with pytest.raises(EcgfastError, match="the store must have labels, got none"):
        label_targets(bare)
    with pytest.raises(EcgfastError, match="got no age"):
        column_targets(bare, "age")
    with pytest.raises(EcgfastError, match="must have 2 patients or more to divide, got 1"):
        choose_split(bare, FinetuneConfig())
