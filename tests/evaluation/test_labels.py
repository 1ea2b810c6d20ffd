import numpy as np
import pytest

from ecgfast.data import Store, write_store
from ecgfast.errors import EcgfastError
from ecgfast.evaluation import ByPatient, LabelTable, describe_left_out, store_labels
from tests.evaluation.made import made_index

STORE = made_index(
    [
        {"record_id": "r1", "patient_id": "7", "labels": ["AF", "PVC"]},
        {"record_id": "r2", "patient_id": "7", "labels": ["NORM"]},
        {"record_id": "r3", "patient_id": "8", "labels": []},
        {"record_id": "r4", "patient_id": "9", "labels": ["AF", "odd"]},
    ]
)


@pytest.fixture
def table(tmp_path):
    def read(text):
        path = tmp_path / "labels.csv"
        path.write_text(text, encoding="utf-8")
        return LabelTable.read(path)

    return read


def test_labels_of_the_store():
    found = store_labels(STORE)
    assert found.classes == ("AF", "NORM", "PVC", "odd")
    np.testing.assert_array_equal(found.recordings, [0, 1, 3])
    np.testing.assert_array_equal(found.matrix, [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]])
    assert found.left_out == {"recordings without a label of the task": ["r3"]}


def test_classes_are_in_the_order_asked_for_and_labels_mapped():
    found = store_labels(
        STORE, ["ectopy", "rhythm"], synonyms={"AF": "rhythm", "NORM": "rhythm", "PVC": "ectopy"}
    )
    np.testing.assert_array_equal(found.matrix, [[1, 1], [0, 1], [0, 1]])
    kept = store_labels(STORE, ["PVC"], keep_unlabelled=True)
    np.testing.assert_array_equal(kept.matrix, [[1], [0], [0], [0]])
    assert kept.left_out == {}


def test_rare_and_absent_classes():
    found = store_labels(STORE, ["AF", "PVC", "VT"], min_records=2, absent="leave out")
    assert found.classes == ("AF",)
    np.testing.assert_array_equal(found.recordings, [0, 3])
    assert found.left_out["classes that no recording has"] == ["VT"]
    assert found.left_out["classes that fewer than 2 recordings have"] == ["PVC"]
    with pytest.raises(
        EcgfastError, match="classes: must be labels of the store, got 'NORMAL'; did you mean NO"
    ):
        store_labels(STORE, ["NORMAL"])
    with pytest.raises(EcgfastError, match="must have one that 9 or more recordings have, got none"):
        store_labels(STORE, min_records=9)
    with pytest.raises(EcgfastError, match="the store must have labels, got none"):
        store_labels(made_index([{"record_id": "a"}]))
    with pytest.raises(EcgfastError, match="some of the task, such as X, got AF, NORM, PVC and 1 more"):
        store_labels(STORE, synonyms={"X": "x"})


def test_columns_of_0_and_1_by_record(table):
    found = table("record_id,AF,old\nr4,1,0\nr1,0.0,True\nr2,1.0,false\n").multi_label(STORE)
    assert found.classes == ("AF", "old")
    np.testing.assert_array_equal(found.recordings, [0, 1, 3])
    np.testing.assert_array_equal(found.matrix, [[0, 1], [1, 0], [1, 0]])
    assert found.left_out == {"recordings without a row in the table": ["r3"]}


def test_lists_by_patient_count_for_all_recordings_of_the_patient(table):
    text = "patient_id,_note,diagnoses\n7.0,x,AF; PVC\n8,y,\n9,z,VT\n10,,AF\n"
    found = table(text).multi_label(STORE)
    assert found.classes == ("AF", "PVC", "VT")
    np.testing.assert_array_equal(found.recordings, [0, 1, 3])
    np.testing.assert_array_equal(found.matrix, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert found.left_out == {
        "rows whose patient_id is not in the store": ["10"],
        "recordings whose value in the table is missing": ["r3"],
    }
    assert describe_left_out(found.left_out) == [
        "left out 1: rows whose patient_id is not in the store (10)",
        "left out 1: recordings whose value in the table is missing (r3)",
    ]
    none = table(text).multi_label(STORE, classes=["PVC", "AF"], empty="none")
    np.testing.assert_array_equal(none.matrix, [[1, 1], [1, 1], [0, 0], [0, 0]])


def test_codes_that_look_like_numbers(table):
    labels = table("record_id,dx\nr1,426783006\nr2,164889003\n")
    with pytest.raises(EcgfastError, match=r"got numbers \(name it in lists if they are codes\)"):
        labels.multi_label(STORE)
    found = labels.multi_label(STORE, lists=["dx"])
    assert found.classes == ("164889003", "426783006")
    np.testing.assert_array_equal(found.matrix, [[0, 1], [1, 0]])
    with pytest.raises(EcgfastError, match=r"must be a column of .*, got 'dxs'; did you mean dx"):
        labels.multi_label(STORE, lists=["dxs"])


def test_numbers(table):
    labels = table("record_id,age,lvef\nr1,63,55.5\nr2,70,\nr4,NA,-1e1\n,5,5\n")
    found = labels.numbers(STORE, "lvef")
    np.testing.assert_array_equal(found.recordings, [0, 3])
    np.testing.assert_array_equal(found.values, [55.5, -10])
    assert found.left_out == {
        "rows without a record_id": ["line 5"],
        "recordings without a row in the table": ["r3"],
        "recordings whose value in the table is missing": ["r2"],
    }
    np.testing.assert_array_equal(labels.numbers(STORE, "age").values, [63, 70])


def test_kinds_of_columns(table):
    labels = table("record_id,a,b,c,d,e\nr1,1,2,AF,nan,TRUE\nr2,0,,1;2,,false\n")
    assert [labels.kind(column) for column in "abce"] == ["binary", "number", "list", "binary"]
    with pytest.raises(EcgfastError, match=r"column 'd' of .*labels.csv must have values, got none"):
        labels.kind("d")
    assert labels.multi_label(STORE, ["a", "c"]).classes == ("a", "1", "2", "AF")


def test_a_column_of_both_ids_joins_by_record(table):
    labels = table("patient_id,record_id,AF\n7,r2,1\n7,r1,0\n")
    assert (labels.by, list(labels.columns)) == ("record_id", ["AF"])
    np.testing.assert_array_equal(labels.multi_label(STORE).matrix, [[0], [1]])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", "must have a header and rows, got none"),
        ("record_id,AF\n", "must have a header and rows, got none"),
        ("id,AF\nr1,1\n", "must have a column record_id or patient_id, got id, AF"),
        ("record_id,_AF\nr1,1\n", "must have a column of labels beside record_id, got none"),
        ("record_id,AF,AF\nr1,1,1\n", "has the column AF twice"),
        ("record_id,AF\nr1,1\nr2\n", r"line 3 must have 2 fields as its header, got 1"),
        ("record_id,AF\nr1,1\nr2,0\nr1,1\n", "has record_id 'r1' in lines 2 and 4, want it once"),
    ],
)
def test_bad_tables(table, text, want):
    with pytest.raises(EcgfastError, match=want):
        table(text)


def test_bad_columns_and_classes(table, tmp_path):
    labels = table("record_id,age,AF,text\nr1,63,1,old\nr2,70,0,7\n")
    with pytest.raises(EcgfastError, match=r"must be a column of .*, got 'aeg'; did you mean age"):
        labels.numbers(STORE, "aeg")
    with pytest.raises(EcgfastError, match=r"line 2: text must be a finite number, got 'old'"):
        labels.numbers(STORE, "text")
    with pytest.raises(EcgfastError, match=r"column 'age' of .* must be 0/1 or lists of labels, got numbers"):
        labels.multi_label(STORE)
    with pytest.raises(EcgfastError, match=r"classes: must be of .*labels.csv, got 'AFF'; did you mean AF"):
        labels.multi_label(STORE, ["AF"], classes=["AFF"])
    with pytest.raises(EcgfastError, match="labels: can't read"):
        LabelTable.read(tmp_path / "absent.csv")


def test_ids_of_another_store(table):
    want = (
        "must have a record_id of the store, got such as 24, 43, the store has such as r1, r2, r3 and 1 more"
    )
    with pytest.raises(EcgfastError, match=want):
        table("record_id,AF\n24,1\n43,0\n").multi_label(STORE)
    with pytest.raises(EcgfastError, match="must have a value for a recording of the store, got none"):
        table("record_id,age\nr1,\nr9,5\n").numbers(STORE, "age")


def test_a_store_on_the_disk(table, tmp_path):
    """Its index comes from Parquet, in pieces, with ids and folds as the importer wrote them."""
    wave = np.sin(np.arange(2500) / 20)
    records = [
        {
            "signal": wave[None] * (1 + i / 40),
            "rate": 500,
            "leads": ["I"],
            "patient_id": i // 2,
            "labels": ["AF"] * (i % 2),
        }
        for i in range(40)
    ]
    write_store(records, tmp_path / "store")
    index = Store(tmp_path / "store").index
    ids = index["record_id"].to_pylist()
    rows = "".join(f"{name},{50 + i}\n" for i, name in enumerate(ids[:30]))
    ages = table(f"record_id,age\n{rows}").numbers(index, "age")
    np.testing.assert_array_equal(ages.values, np.arange(50, 80))
    assert ages.left_out == {"recordings without a row in the table": ids[30:]}
    np.testing.assert_array_equal(store_labels(index).recordings, np.arange(1, 40, 2))
    split = ByPatient((0.5, 0.25, 0.25)).split(index, ages.recordings)
    patients = index["patient_id"].to_pylist()
    parts = [{patients[i] for i in part} for part in split.parts().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 15
