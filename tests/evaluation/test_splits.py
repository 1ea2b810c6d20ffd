import numpy as np
import pytest

from ecgfast.errors import EcgfastError
from ecgfast.evaluation import (
    ByFolds,
    ByFoldsOrPatient,
    ByIdentity,
    ByPatient,
    BySegment,
    LastFolds,
    Split,
    check_patients,
    take_share,
)
from ecgfast.evaluation.splits import part_of, place_of
from tests.evaluation.made import made_index


def patients(n, records=2, **more):
    rows = [
        {"record_id": f"r{i}-{k}", "patient_id": f"p{i}"} | {name: value(i) for name, value in more.items()}
        for i in range(n)
        for k in range(records)
    ]
    return made_index(rows)


def owners(index, recordings):
    names = index["patient_id"].to_pylist()
    return {names[i] for i in recordings}


def test_no_patient_is_in_two_parts_and_shares_are_about_right():
    index = patients(2000)
    split = ByPatient((0.7, 0.1, 0.2), seed=3).split(index)
    sets = [owners(index, part) for part in split.parts().values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 2000
    # Of 2,000 patients, 1,400, 200 and 400 on average, with standard deviations of 20, 13 and 18.
    np.testing.assert_allclose([len(part) for part in sets], [1400, 200, 400], atol=70)
    assert sum(len(part) for part in split.parts().values()) == 4000
    assert (np.diff(split.train) > 0).all()


def test_a_patients_part_follows_from_the_id_and_the_seed_alone():
    index = patients(300)
    backwards = index.take(np.arange(index.num_rows)[::-1])
    one, other = ByPatient().split(index), ByPatient().split(backwards)
    some = ByPatient().split(index, np.arange(0, 300))
    for part in ("train", "validation", "test"):
        assert owners(index, getattr(one, part)) == owners(backwards, getattr(other, part))
        assert set(getattr(some, part)) == {i for i in getattr(one, part) if i < 300}
    assert owners(index, ByPatient(seed=1).split(index).test) != owners(index, one.test)
    # Of the hash itself: these never change, or published results could not be made again.
    assert [part_of(f"p{i}", (0.5, 0.25, 0.25), 0) for i in range(8)] == [0, 1, 2, 2, 0, 1, 0, 0]
    assert place_of("p0", 0) == pytest.approx(0.21573112268817596, abs=1e-15)


def test_folds_of_the_source():
    index = patients(12, fold=lambda i: i % 6 if i < 11 else None)
    split = ByFolds(train=(0, 1, 2), validation=(3,), test=(4,)).split(index)
    assert owners(index, split.train) == {f"p{i}" for i in (0, 1, 2, 6, 7, 8)}
    assert owners(index, split.validation) == {"p3", "p9"}
    assert owners(index, split.test) == {"p4", "p10"}
    assert split.left_out == {
        "recordings without a fold": ["r11-0", "r11-1"],
        "recordings of other folds": ["r5-0", "r5-1"],
    }


def test_the_last_folds():
    index = patients(10, fold=lambda i: (1, 2, 5, 7)[i % 4])
    split = LastFolds().split(index, np.arange(18))
    assert owners(index, split.train) == {"p0", "p1", "p4", "p5", "p8"}
    assert owners(index, split.validation) == {"p2", "p6"}
    assert owners(index, split.test) == {"p3", "p7"}
    with pytest.raises(EcgfastError, match="folds: must be three or more, got 2 in the store"):
        LastFolds().split(patients(4, fold=lambda i: i % 2))


def test_folds_where_the_store_has_them_else_patients():
    index = patients(60, fold=lambda i: i % 5)
    assert owners(index, ByFoldsOrPatient().split(index).test) == {f"p{i}" for i in range(4, 60, 5)}
    without = patients(60)
    want = ByPatient().split(without)
    np.testing.assert_array_equal(ByFoldsOrPatient().split(without).test, want.test)


def test_a_patient_on_both_sides_is_an_error():
    index = made_index(
        {"record_id": f"r{i}", "patient_id": "p" if i in (1, 3) else f"p{i}", "fold": i} for i in range(5)
    )
    want = r"got 'p' in train \(r1\) and in validation \(r3\)"
    with pytest.raises(EcgfastError, match=want):
        ByFolds((0, 1, 2), (3,), (4,)).split(index)
    ByFolds((0, 1), (2,), (4,)).split(index)  # r3 is in no part
    with pytest.raises(EcgfastError, match="split: must have each patient in one part"):
        check_patients(index, Split(np.array([0, 1]), np.array([2]), np.array([3])))


@pytest.mark.parametrize(
    ("divide", "want"),
    [
        (
            lambda i: ByFolds((1, 2), (9,), (10,)).split(i),
            "for validation in 9, the store's folds are 0 to 3",
        ),
        (lambda i: ByFolds((1, 2), (2,), (3,)), "folds: must be there once"),
        (lambda i: ByPatient((0.5, 0.5, 0.5)), "fractions: must be three shares with the sum 1"),
        (lambda i: ByPatient((0.9, 0.1, 0.0)), "train and test above 0"),
        (
            lambda i: ByPatient((0.999, 0.0, 0.001)).split(i),
            "must give test a patient, got none of 12 at 0.001",
        ),
        (lambda i: ByPatient().split(i, []), "recordings: must be one or more whole numbers"),
        (lambda i: ByPatient().split(i, [3, 3]), "recordings: must be numbers from 0 to 23, each once"),
        (lambda i: LastFolds().split(patients(3)), "got none: split by patient"),
        (lambda i: take_share(i, [0, 1], 1.5), "share: must be above 0 and at most 1, got 1.5"),
        (lambda i: ByIdentity((1, 0, 0)), "validation or test above 0"),
        (lambda i: ByIdentity().split(patients(9, 1)), "two patients with two recordings, got 0 of 0"),
    ],
)
def test_bad_divisions(divide, want):
    with pytest.raises(EcgfastError, match=want):
        divide(patients(12, fold=lambda i: i % 4))


def test_shares_of_the_training_part_lie_in_each_other():
    index = patients(200, records=3)
    train = ByPatient().split(index).train
    taken = [take_share(index, train, share) for share in (0.01, 0.1, 1.0)]
    assert set(taken[0]) < set(taken[1]) < set(taken[2]) == set(train)
    for share, part in zip((0.01, 0.1), taken, strict=False):
        assert share * len(train) - 1 < len(part) < share * len(train) + 3
        names = index["patient_id"].to_pylist()
        assert all(i in part for i in train if names[i] in owners(index, part))
    assert len(take_share(index, train, 1e-6)) == 3  # one patient at least
    assert set(take_share(index, train, 0.1, seed=1)) != set(taken[1])


def test_the_official_division_by_segment_shares_patients_and_says_so():
    rows = [{"record_id": f"r{i}", "n_samples": 5001 if i else 2499} for i in range(200)]
    split = BySegment(seed=1).split(made_index(rows))
    parts = (split.train, split.validation, split.test)
    every = np.concatenate([np.stack([part.recording, part.start]) for part in parts], axis=1)
    assert every.shape == (2, 398)
    assert {tuple(pair) for pair in every.T} == {(i, s) for i in range(1, 200) for s in (0, 2500)}
    np.testing.assert_allclose([len(part.recording) for part in parts], [318, 40, 40], atol=25)
    both = [set(part.recording) for part in parts]
    shared = (both[0] & both[1]) | (both[0] & both[2]) | (both[1] & both[2])
    assert set(split.shared_patients) == {f"r{i}" for i in shared}
    assert len(shared) > 20
    assert split.left_out == {"recordings shorter than 2500 samples": ["r0"]}


def test_gallery_and_probe_are_of_patients_never_trained_on():
    rows = [
        {"record_id": f"r{i}-{k}", "patient_id": f"p{i}", "n_samples": 2000 if i == 0 else 3000 + i}
        for i in range(200)
        for k in range(1 + i % 3)
    ]
    index = made_index(rows)
    split = ByIdentity((0.3, 0.2, 0.5), seed=2).split(index)
    trained = owners(index, split.train)
    held = [set(split.validation.patients), set(split.test.patients)]
    assert not (trained & held[0] | trained & held[1] | held[0] & held[1])
    assert {f"p{i}" for i in range(3, 200, 3)} <= trained  # one recording: nothing to recognise it by
    np.testing.assert_allclose([len(part) for part in held], [26.6, 66.5], atol=14)
    records, patient = index["record_id"].to_pylist(), index["patient_id"].to_pylist()
    for which, crops in enumerate((split.test.gallery, split.test.probe)):
        assert [patient[i] for i in crops.recording] == list(split.test.patients)
        assert all(records[i].endswith(f"-{which}") for i in crops.recording)
        room = index["n_samples"].to_numpy()[crops.recording] - 2500
        assert ((crops.start >= 0) & (crops.start <= room)).all()
        assert len(np.unique(crops.start)) > 40
    third = split.left_out["recordings beyond a patient's first two"]
    assert all(name.endswith("-2") for name in third)
    assert split.left_out["recordings shorter than 2500 samples"] == ["r0-0"]
    again = ByIdentity((0.3, 0.2, 0.5), seed=2).split(index).test
    np.testing.assert_array_equal(again.probe.start, split.test.probe.start)


def test_all_patients_with_two_recordings_can_be_tested_on():
    index = made_index(
        {"record_id": f"r{i}-{k}", "patient_id": f"p{i}"} for i in range(9) for k in range(1 + i % 2)
    )
    split = ByIdentity((0, 0, 1)).split(index)
    assert set(split.test.patients) == {"p1", "p3", "p5", "p7"}
    assert split.validation is None
    assert owners(index, split.train) == {"p0", "p2", "p4", "p6", "p8"}
