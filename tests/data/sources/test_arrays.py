import csv
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ecgfast.data import Preprocessing, Store, prepare, synthesize, write_store
from ecgfast.data.store.reasons import kind_of
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS
from tests.data.made import sines


def written(folder, records, **options):
    write_store(records, folder / "store", **options)
    store = Store(folder / "store")
    store.verify()
    return store


def kinds(store):
    with (store.path / "rejected.csv").open() as file:
        return {row["source"]: kind_of(row["reason"]) for row in csv.DictReader(file)}


def test_mappings_and_objects(tmp_path):
    known = {"patient_id": 17, "labels": ["AF", 426783006], "age": 61.5, "sex": "Female", "fold": np.int64(4)}
    whole = {"signal": sines() / 1000, "rate": 500, **known}
    part = SimpleNamespace(signal=sines(2500, rate=250)[[8, 1]], rate=250, leads=("v3", "II"), record_id="x")
    unknown = {
        "signal": sines(),
        "rate": 500,
        "age": float("nan"),
        "sex": None,
        "patient_id": np.float64("nan"),
    }
    store = written(tmp_path, iter([whole, part, unknown]))
    first, second, third = store.index.to_pylist()
    assert (first["record_id"], first["patient_id"], first["labels"]) == ("0", "17", ["AF", "426783006"])
    assert (first["age"], first["sex"], first["fold"]) == (61.5, "F", 4)
    assert first["leads"] == list(STANDARD_LEADS)
    np.testing.assert_array_equal(store.signal(0), sines())
    np.testing.assert_array_equal(store.signal(2), sines())
    assert (second["record_id"], second["patient_id"], second["source_rate"]) == ("x", "x", 250.0)
    assert second["leads"] == ["II", "V3"]
    got, want = store.signal(1), sines()
    assert np.abs(got[[1, 8], 50:4900].astype(int) - want[[1, 8], 50:4900]).max() <= 3
    assert not got[[0, 2, 3, 4, 5, 6, 7, 9, 10, 11]].any()
    assert [third[name] for name in ("patient_id", "age", "sex", "fold")] == ["2", None, None, None]
    assert store.description["provenance"]["importer"] == "arrays"


def test_the_same_bytes_as_an_import_of_files(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        np.save(tmp_path / f"in/{i}.npy", sines(1000 + i))
    prepare(tmp_path / "in", tmp_path / "imported", progress=False, preprocessing=Preprocessing(notch=50))
    records = ({"signal": sines(1000 + i), "rate": 500} for i in range(3))
    store = written(tmp_path, records, preprocessing=Preprocessing(notch=50))
    name = "signals-00000.npy"
    assert (store.path / name).read_bytes() == (tmp_path / "imported" / name).read_bytes()


def test_bad_records_are_rejected_with_a_reason(tmp_path):
    good = {"signal": sines(), "rate": 500}
    bad = {
        "shape": {"signal": sines()[:11]},
        "shape1": {"signal": sines()[0]},
        "type": {"signal": sines().astype(np.uint8)},
        "type1": {"signal": [["a"]] * 12},
        "no standard lead": {"leads": ["V8", "V9"]},
        "leads1": {"leads": "I"},
        "leads2": {"leads": []},
        "rate": {"rate": "fast"},
        "sample rate": {"rate": -1},
        "invalid samples": {"signal": np.where(np.arange(5000) == 7, np.nan, sines())},
        "flat": {"signal": np.ones((12, 5000))},
        "too short": {"signal": np.zeros((12, 0))},
        "out of range": {"signal": sines().astype(float)},
    }
    records = [good | {"record_id": name} | change for name, change in bad.items()]
    store = written(tmp_path, [good, *records, good | {"record_id": "0"}, good | {"record_id": "\ud800"}])
    assert len(store) == 1
    want = {name: name.rstrip("12") for name in bad}
    assert kinds(store) == want | {"0": "ambiguous", "\\ud800": "record_id"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"rate": 500}, "one has no signal"),
        ({"signal": sines()}, "one has no rate"),
        ({"signal": sines(), "rate": 500, "patient": 3}, "has the field 'patient', want of signal"),
        (object(), "one has no signal"),
        ({"signal": np.zeros((12, 5000)), "rate": 500}, "records: none of 1 can be taken: flat 1"),
    ],
)
def test_mistakes_leave_nothing(tmp_path, record, message):
    with pytest.raises(EcgfastError, match=message):
        write_store([record], tmp_path / "store")
    assert not [path for path in tmp_path.iterdir() if path.name != "store.rejected.csv"]


def test_nothing_to_write(tmp_path):
    with pytest.raises(EcgfastError, match="none of 0"):
        write_store([], tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_no_store_is_written_over(tmp_path):
    records = [{"signal": sines(), "rate": 500}]
    write_store(records, tmp_path / "store")
    with pytest.raises(EcgfastError, match="is there already"):
        write_store(records, tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_an_interrupted_write_begins_anew(tmp_path, monkeypatch):
    def records(n):
        for i in range(3):
            if i == n:
                raise RuntimeError("the user's own")
            yield {"signal": sines(1000 + 10 * n + i), "rate": 500}

    with pytest.raises(RuntimeError, match="own"):
        write_store(records(2), tmp_path / "store")
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("ecgfast.data.store.writer.StoreWriter.discard", lambda self: None)  # as if killed
        with pytest.raises(RuntimeError):
            write_store(records(1), tmp_path / "store")
    assert (tmp_path / "store.partial").exists()
    store = written(tmp_path, records(5))
    assert store.n_samples.tolist() == [1050, 1051, 1052]


def test_synthetic_records_fit(tmp_path):
    records = list(synthesize(2, 2, 3, 0))
    store = written(tmp_path, ({"patient_id": r.patient, **fields(r)} for r in records))
    assert store.patient_numbers().tolist() == [0, 0, 1, 1]
    assert store.index["labels"].to_pylist() == [r.labels for r in records]
    np.testing.assert_array_equal(store.signal(3), records[3].signal)


def fields(record):
    return {name: getattr(record, name) for name in ("signal", "rate", "labels", "age", "sex")}


def test_records_that_are_a_table(tmp_path):
    frame = pd.DataFrame({"signal": [sines()], "rate": [500]})
    with pytest.raises(EcgfastError, match=r"got one DataFrame; pass records\.to_dict\('records'\)"):
        write_store(frame, tmp_path / "store")
    with pytest.raises(EcgfastError, match=r"got one dict; pass \[records\]"):
        write_store({"signal": sines(), "rate": 500}, tmp_path / "store")
    assert written(tmp_path, frame.to_dict("records")).n_samples.tolist() == [5000]
    assert list(written(tmp_path / "rows", frame.itertuples()).n_samples) == [5000]


def test_a_table_with_gaps(tmp_path):
    """A nullable integer column, and one that gaps made floating point, name the same patients."""
    nullable = pd.array([15709, None, None, 7, 15709], dtype="Int64")
    frame = pd.DataFrame({"patient_id": nullable, "age": [63, None, "old", 300, "063Y"], "rate": 500})
    frame["sex"] = ["F", None, "q", "male", pd.NA]
    frame["labels"] = ["AF;SR", None, {"NORM": 100.0}, np.nan, ["AF"]]
    frame["record_id"] = ["a", None, np.nan, "d", "e"]
    frame["unit"] = ["mV", None, np.nan, "V", ""]
    for name, patients in {
        "nullable": nullable,
        "float": nullable.astype("Float64").to_numpy(float, na_value=np.nan),
    }.items():
        frame["patient_id"] = patients
        scale = [1, 1, 1, 1000, 1]
        records = [
            row | {"signal": sines() / 1000 / k}
            for row, k in zip(frame.to_dict("records"), scale, strict=True)
        ]
        write_store(records, tmp_path / name)
        store = Store(tmp_path / name)
        assert store.index["record_id"].to_pylist() == ["a", "1", "2", "d", "e"]
        assert store.index["patient_id"].to_pylist() == ["15709", "1", "2", "7", "15709"]
        assert store.index["age"].to_pylist() == [63, None, None, None, 63]
        assert store.index["sex"].to_pylist() == ["F", None, None, "M", None]
        assert store.index["labels"].to_pylist() == [["AF", "SR"], [], ["NORM"], [], ["AF"]]
        assert store.description["warnings"] == {"age": 2, "sex": 1}
        assert store.description["without"] == {"patient": 2, "age": 3, "sex": 3, "label": 2}


def test_a_value_that_is_missing_costs_its_record_alone(tmp_path):
    good = {"signal": sines(), "rate": 500}
    records = [good, good | {"signal": None}, good | {"rate": pd.NA}, good | {"rate": "nan"}, good]
    store = written(tmp_path, records)
    assert kinds(store) == {"1": "signal", "2": "sample rate", "3": "sample rate"}
