import json
from collections import Counter
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from ecgfast.errors import EcgfastError
from ecgfast.evaluation import (
    LEAD_SETS,
    PROTOCOLS,
    ByIdentity,
    LastFolds,
    Statements,
    find_protocol,
)
from ecgfast.evaluation.ptbxl import TASKS
from tests.evaluation.made import cinc_index, made_index, ptbxl_index

SIZES = {"all": 71, "diagnostic": 44, "sub": 23, "super": 5, "form": 19, "rhythm": 12}


def made_ptbxl():
    """Ten folds of two recordings, each fold with the same labels."""
    return made_index(
        {"record_id": f"{fold}-{k}", "fold": fold, "labels": labels}
        for fold in range(1, 11)
        for k, labels in enumerate((["NORM", "SR"], ["IMI", "LVH", "AFIB"], ["ASMI", "NDT"], ["SR"]))
    )


def test_tasks_of_ptbxl_have_their_numbers_of_classes():
    for task, size in SIZES.items():
        protocol = find_protocol(f"helme:{task}")
        assert len(protocol.classes) == size
        assert list(protocol.classes) == sorted(protocol.classes)
    assert set(SIZES) == set(TASKS)
    assert find_protocol("helme:super").classes == ("CD", "HYP", "MI", "NORM", "STTC")


def test_the_built_in_statements_are_those_of_the_data(shared):
    read = Statements.read(shared("data/ptbxl_subset") / "scp_statements.csv")
    assert {name: row for name, row in read.rows.items() if name in Statements.standard().rows} == dict(
        Statements.standard().rows
    )
    assert set(read.rows) - set(Statements.standard().rows) == {"LAFB/LPFB", "AVB", "STTC", "ISCI", "ISCA"}


def test_helme_by_hand():
    prepared = find_protocol("helme:super").prepare(made_ptbxl())
    # Of the four recordings of a fold: NORM; MI (IMI) and HYP (LVH); MI (ASMI) and STTC (NDT); SR has none.
    assert prepared.targets.classes == ("HYP", "MI", "NORM", "STTC")
    want = [[0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1]]
    np.testing.assert_array_equal(prepared.rows(prepared.parts.test), want)
    np.testing.assert_array_equal(prepared.parts.test, [36, 37, 38])
    np.testing.assert_array_equal(prepared.parts.validation, [32, 33, 34])
    assert len(prepared.parts.train) == 8 * 3
    assert prepared.left_out["classes that no recording has"] == ["CD"]
    assert prepared.left_out["recordings without a label of the task"] == [f"{k}-3" for k in range(1, 11)]
    assert "left out 10: recordings without a label of the task (1-3, 2-3, 3-3 and 7 more)" in prepared.told
    with pytest.raises(EcgfastError, match="recordings: must have targets, got 39"):
        prepared.rows(np.array([36, 39]))


def test_sub_and_rhythm_by_hand():
    sub = find_protocol("helme:sub").prepare(made_ptbxl())
    assert sub.targets.classes == ("AMI", "IMI", "LVH", "NORM", "STTC")
    rhythm = find_protocol("helme:rhythm").prepare(made_ptbxl())
    assert rhythm.targets.classes == ("AFIB", "SR")
    np.testing.assert_array_equal(rhythm.rows(rhythm.parts.test), [[0, 1], [1, 0], [0, 1]])


def test_helme_on_real_labels(shared):
    """Superclasses as the subset's README counts them; it has no folds 9 and 10."""
    folder = shared("data/ptbxl_subset")
    index = ptbxl_index(folder)
    helme = find_protocol("helme:super")
    with pytest.raises(
        EcgfastError, match="must have recordings for validation in 9, the store's folds are 1"
    ):
        helme.prepare(index)
    statements = Statements.read(folder / "scp_statements.csv")
    prepared = helme.prepare(index, statements=statements, division=LastFolds())
    counts = dict(zip(prepared.targets.classes, prepared.targets.matrix.sum(axis=0).tolist(), strict=True))
    assert counts == {"CD": 367, "HYP": 160, "MI": 206, "NORM": 776, "STTC": 411}
    assert {name: len(part) for name, part in prepared.parts.parts().items()} == {
        "train": 1097,
        "validation": 185,
        "test": 160,
    }
    assert prepared.left_out == {}
    assert any("parts are not the protocol's" in line for line in prepared.told)
    form = find_protocol("helme:form").prepare(index, statements=statements, division=LastFolds())
    labelled = len(form.targets.recordings)
    assert labelled + len(form.left_out["recordings without a label of the task"]) == 1442
    # With PTB-XL's own statements, the rows that were made for the subset are told as unknown.
    unknown = helme.prepare(index, division=LastFolds()).left_out[
        "labels that are no statement of PTB-XL 1.0.3"
    ]
    assert unknown == ["AVB", "ISCA", "ISCI", "LAFB/LPFB", "STTC"]


def test_ai4health_leaves_out_rare_labels(shared):
    index = ptbxl_index(shared("data/ptbxl_subset"))
    prepared = find_protocol("ai4health").prepare(index)
    counts = Counter(label for labels in index["labels"].to_pylist() for label in labels)
    assert set(prepared.targets.classes) == {label for label, n in counts.items() if n >= 10}
    assert prepared.targets.matrix.sum(axis=0).min() >= 10
    rare = prepared.left_out["classes that fewer than 10 recordings have"]
    assert set(rare) == {label for label, n in counts.items() if n < 10}
    folds = np.array(index["fold"].to_pylist())
    assert set(folds[prepared.parts.test]) == {8}
    assert set(folds[prepared.parts.validation]) == {7}


def test_the_challenge_on_real_labels(shared):
    index = cinc_index(shared("data/cinc"))
    prepared = find_protocol("cinc2021").prepare(index)
    assert len(prepared.targets.classes) == 26
    assert len(prepared.targets.recordings) == 77  # those without a scored label too
    at = prepared.targets.classes.index("713427006|59118001")
    for i, labels in enumerate(index["labels"].to_pylist()):
        assert prepared.targets.matrix[i, at] == bool({"713427006", "59118001"} & set(labels))
    unscored = prepared.left_out["labels that the challenge does not score"]
    assert unscored
    assert not set(unscored) & set("|".join(prepared.targets.classes).split("|"))
    assert prepared.protocol.lead_sets == tuple(LEAD_SETS)


def test_recordings_without_a_scored_label_count_in_the_challenge():
    """They are told to have nothing, and an output is wrong there."""
    codes = (["426783006"], ["164909002", "1"], ["1"], [])
    index = made_index({"record_id": f"r{i}", "labels": codes[i % 4]} for i in range(80))
    prepared = find_protocol("cinc2021").prepare(index)
    assert len(prepared.targets.recordings) == 80
    np.testing.assert_array_equal(prepared.targets.matrix.sum(axis=1), [1, 1, 0, 0] * 20)
    assert prepared.targets.matrix[1, prepared.targets.classes.index("733534002|164909002")]
    assert prepared.left_out["labels that the challenge does not score"] == ["1"]


def test_the_papers_databases_by_patient_and_the_official_form_by_segment(shared):
    index = cinc_index(shared("data/cinc"))
    index = index.take(np.random.default_rng(0).permutation(index.num_rows))  # databases mixed
    records, labels = index["record_id"].to_pylist(), index["labels"].to_pylist()
    prepared = find_protocol("oh2022").prepare(index)
    parts = prepared.parts.parts()
    used = sorted(i for part in parts.values() for i in part)
    assert [records[i] for i in used] == [name for name in records if name[0] in "AE"]
    normal = prepared.rows(np.array(used))[:, prepared.targets.classes.index("426783006")]
    assert normal.tolist() == ["426783006" in labels[i] for i in used]
    assert 0 < normal.sum() < len(used)
    others = prepared.left_out["recordings of other databases than CPSC2018 and Georgia"]
    assert {name[:2] for name in others} == {"HR", "JS"}
    official = find_protocol("oh2022-official").prepare(index)
    assert official.parts.shared_patients
    assert set(official.parts.train.recording) & set(official.parts.test.recording)
    assert any("results flatter" in line for line in official.told)
    assert (prepared.protocol.unit, official.protocol.unit) == ("recording", "segment")
    with pytest.raises(
        EcgfastError, match="must have recordings of CPSC2018 and Georgia for oh2022, got such"
    ):
        find_protocol("oh2022").prepare(made_ptbxl())


def test_gallery_and_probe_of_real_patients(shared):
    index = ptbxl_index(shared("data/ptbxl_subset"))
    prepared = find_protocol("id-gallery-probe").prepare(index, division=ByIdentity((0, 0, 1)))
    counts = Counter(index["patient_id"].to_pylist())
    assert set(prepared.parts.test.patients) == {patient for patient, n in counts.items() if n == 2}
    assert (len(prepared.parts.test.patients), len(prepared.parts.train)) == (21, 1400)
    assert prepared.targets is None


def test_classes_with_one_value_in_a_part_are_told():
    index = made_index(
        {"record_id": str(fold), "fold": fold, "labels": ["NORM"] if fold < 10 else ["NORM", "IMI"]}
        for fold in range(1, 11)
        for _ in range(1)
    )
    told = find_protocol("helme:super").prepare(index).told
    assert "train: 2 classes have one value only: MI, NORM" in told


def test_every_preset_states_what_it_is():
    names = {name.partition(":")[0] for name in PROTOCOLS}
    assert names == {
        "helme",
        "ai4health",
        "ecg-fix",
        "merl",
        "cinc2021",
        "oh2022",
        "oh2022-official",
        "id-gallery-probe",
    }
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.source
        assert protocol.metrics
        assert json.loads(json.dumps(protocol.as_dict()))["division"] == str(protocol.division)
        with pytest.raises(FrozenInstanceError):
            protocol.name = "mine"


def test_find_protocol():
    assert find_protocol("helme").name == "helme:all"
    assert find_protocol("ai4health").labels == "store"
    with pytest.raises(EcgfastError, match="got 'helme:supra'; did you mean helme:super"):
        find_protocol("helme:supra")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("name,diagnostic,form\nNORM,1,\n", "has no column rhythm, diagnostic_class, diagnostic_subclass"),
        (
            ",diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nSR,,,1,,\nSR,,,1,,\n",
            "has 'SR' twice, want each once",
        ),
    ],
)
def test_bad_statements(tmp_path, text, want):
    path = tmp_path / "scp_statements.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EcgfastError, match=want):
        Statements.read(path)
    with pytest.raises(EcgfastError, match=r"task: must be of all, .*, got 'superb'; did you mean super"):
        Statements.standard().classes_of("superb")


def test_statements_of_the_folder_that_a_store_was_made_from(tmp_path):
    text = ",diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nX,1.0,,,MI,AMI\n"
    (tmp_path / "scp_statements.csv").write_text(text, encoding="utf-8")
    found = Statements.of_store({"provenance": {"source": str(tmp_path)}})
    assert found.classes_of("super") == {"X": "MI"}
    assert Statements.of_store({"provenance": {"source": "/gone"}}).source == "PTB-XL 1.0.3"
    assert len(Statements.of_store({}).rows) == 71
