import csv
import pickle
import sys

import numpy as np
import pytest

from ecgfast.data import prepare
from ecgfast.data.sources import open_source
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS
from tests.data.made import sines, write_csv

LABELS = ("1dAVb", "RBBB", "LBBB", "SB", "AF", "ST")  # in the order of the table


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def reasons(store):
    with (store.path / "rejected.csv").open() as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def exam_row(exam, patient, true=(), **values):
    """A row of `exams.csv` as published."""
    about = {"exam_id": exam, "age": 38, "is_male": "True", "nn_predicted_age": 40.160484}
    about |= {name: str(name in true) for name in LABELS}
    about |= {"patient_id": patient, "death": "False", "timey": 2.1, "normal_ecg": "True"}
    return about | {"trace_file": "exams_part13.hdf5"} | values


def tracing(n):
    """Millivolts [4096, 12]: zeros around n samples at 400 Hz."""
    signal = (sines(n, rate=400) / 1000).astype(np.float32)
    before = (4096 - n) // 2
    return np.pad(signal.T, ((before, 4096 - n - before), (0, 0)))


def write_part(path, tracings):
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["exam_id"] = np.array(list(tracings), dtype=np.int64)
        file["tracings"] = np.stack(list(tracings.values())).astype(np.float32)


def test_code15(tmp_path, imported):
    long, short = tracing(4000), tracing(2800)
    write_part(tmp_path / "in/exams_part0.hdf5", {1169160: long, 2873686: short, 0: np.zeros((4096, 12))})
    write_part(tmp_path / "in/deep/exams_part1.hdf5", {168405: long, 2873686: long, 77: np.zeros((4096, 12))})
    table = [
        exam_row(168405, 1523036, is_male="False", age=""),
        exam_row(1169160, 523632, ["RBBB", "ST"]),
        exam_row(2873686, 523632, ["1dAVb", "AF"]),
        exam_row(5, 6),
        exam_row(77, 8),
        exam_row("seven", 8),
        exam_row(168405, 9),
    ]
    write_csv(tmp_path / "in/exams.csv", table)
    store = imported(tmp_path / "in")
    assert store.description["provenance"]["importer"] == "code15"
    found = {row["record_id"]: row for row in store.index.to_pylist()}
    assert list(found) == ["1169160", "2873686", "168405"]
    row = found["1169160"]
    assert (row["patient_id"], row["age"], row["sex"]) == ("523632", 38.0, "M")
    assert row["labels"] == ["RBBB", "ST"]
    assert row["leads"] == list(STANDARD_LEADS)
    assert (row["source"], row["source_rate"]) == ("exams_part0.hdf5/1169160", 400.0)
    assert found["168405"]["age"] is None
    assert (found["168405"]["sex"], found["168405"]["patient_id"]) == ("F", "1523036")
    assert store.n_samples.tolist() == [5000, 3500, 5000]
    error = np.abs(store.signal(0)[:, 50:4900] - sines()[:, 50:4900].astype(float))
    assert error.max() <= 3
    assert store.patient_numbers()[0] == store.patient_numbers()[1]
    kinds = {source: reason.partition(":")[0] for source, reason in reasons(store).items()}
    assert kinds == {
        "exams.csv line 7": "unreadable",
        "exams.csv exam 168405": "ambiguous",
        "deep/exams_part1.hdf5/2873686": "ambiguous",
        "exams_part0.hdf5/0": "not listed",
        "deep/exams_part1.hdf5/77": "flat",
        "exams.csv exam 5": "missing file",
    }


def test_what_the_table_does_not_tell_is_unknown(tmp_path, imported):
    """Two strangers without an id are no one person, and no odd value costs a tracing."""
    exams = {1: ("", ""), 2: ("nan", "NA"), 3: ("x7", "old"), 4: ("9", "300"), 5: ("9.0", "")}
    write_part(tmp_path / "in/exams_part0.hdf5", {exam: tracing(2800 + exam) for exam in exams})
    rows = [exam_row(exam, patient, age=age) for exam, (patient, age) in exams.items()]
    rows[0] |= {"is_male": "", "AF": "", "SB": "True"}
    rows[1] |= {"is_male": "1"}
    rows[2] |= {"is_male": "perhaps", "AF": "maybe"}
    rows[3] |= {"is_male": "0.0"}
    write_csv(tmp_path / "in/exams.csv", rows)
    store = imported(tmp_path / "in")
    assert not reasons(store)
    assert [row["patient_id"] for row in store.index.to_pylist()] == ["1", "2", "3", "9", "9"]
    assert store.patient_numbers().tolist() == [0, 1, 2, 3, 3]
    assert store.index["age"].to_pylist() == [None] * 5
    assert store.index["sex"].to_pylist() == [None, "M", None, "F", "M"]
    assert store.index["labels"].to_pylist() == [["SB"], [], [], [], []]
    assert store.description["warnings"] == {"AF": 1, "age": 2, "patient_id": 1, "sex": 1}
    assert store.description["without"] == {"patient": 3, "age": 5, "sex": 2, "label": 4}


def test_tracings_in_another_unit(tmp_path, imported):
    write_part(tmp_path / "in/exams_part0.hdf5", {1: 1000 * tracing(4000)})
    write_csv(tmp_path / "in/exams.csv", [exam_row(1, 2)])
    with pytest.raises(EcgfastError, match=r"out of range: .*: microvolts\? pass unit='uV'"):
        imported(tmp_path / "in")
    store = imported(tmp_path / "in", unit="uV")
    assert store.description["amplitude_mv"] == pytest.approx(0.8)


def write_two_parts(folder):
    exams = range(100, 110)
    tracings = {exam: tracing(2800 + 8 * exam) for exam in exams}
    write_part(folder / "exams_part0.hdf5", {exam: tracings[exam] for exam in exams[:5]})
    write_part(folder / "exams_part1.hdf5", {exam: tracings[exam] for exam in exams[5:]})
    write_csv(folder / "exams.csv", [exam_row(exam, exam // 2) for exam in exams])


def test_workers_do_not_change_the_bytes(tmp_path):
    write_two_parts(tmp_path / "in")
    source = open_source(tmp_path / "in")
    assert pickle.loads(pickle.dumps(source)) == source
    prepare(tmp_path / "in", tmp_path / "one", progress=False)
    prepare(tmp_path / "in", tmp_path / "two", progress=False, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_damaged_parts(tmp_path, imported):
    h5py = pytest.importorskip("h5py")
    write_two_parts(tmp_path / "in")
    whole = (tmp_path / "in/exams_part1.hdf5").read_bytes()
    (tmp_path / "in/exams_part1.hdf5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/exams_part2.hdf5").write_bytes(b"no HDF5")
    for number, tracings in {3: np.zeros((2, 4096, 11)), 4: np.zeros((3, 4096, 12)), 5: np.zeros(2)}.items():
        with h5py.File(tmp_path / f"in/exams_part{number}.hdf5", "w") as file:
            file["exam_id"] = [1, 2]
            file["tracings"] = tracings
    with h5py.File(tmp_path / "in/exams_part6.hdf5", "w") as file:
        file["exam_id"] = ["a", "b"]
        file["tracings"] = np.zeros((2, 4096, 12))
    store = imported(tmp_path / "in")
    assert len(store) == 5
    kinds = {source: reason.partition(":")[0] for source, reason in reasons(store).items()}
    parts = {f"exams_part{number}.hdf5": "unreadable" for number in (1, 2)}
    parts |= {f"exams_part{number}.hdf5": "shape" for number in (3, 4, 5, 6)}
    assert kinds == parts | {f"exams.csv exam {exam}": "missing file" for exam in range(105, 110)}


@pytest.mark.parametrize("how", ["link", "external", "virtual"])
def test_parts_that_lead_elsewhere(tmp_path, imported, how):
    h5py = pytest.importorskip("h5py")
    write_two_parts(tmp_path / "in")
    elsewhere = tmp_path / "elsewhere.hdf5"
    write_part(elsewhere, {7: tracing(4000)})
    with h5py.File(tmp_path / "in/exams_part2.hdf5", "w") as file:
        file["exam_id"] = [7]
        shape = (1, 4096, 12)
        if how == "link":
            file["tracings"] = h5py.ExternalLink(str(elsewhere), "tracings")
        elif how == "external":
            file.create_dataset("tracings", shape, "f4", external=[(str(elsewhere), 0, 4096 * 48)])
        else:
            layout = h5py.VirtualLayout(shape, "f4")
            layout[:] = h5py.VirtualSource(str(elsewhere), "tracings", shape)
            file.create_virtual_dataset("tracings", layout)
    store = imported(tmp_path / "in")
    assert len(store) == 10
    assert reasons(store) == {
        "exams_part2.hdf5": "unreadable: no dataset tracings in the file itself",
    }


def test_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    write_csv(tmp_path / "in/exams.csv", [exam_row(1, 2)])
    (tmp_path / "in/exams_part0.hdf5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(EcgfastError, match=r"code15 needs h5py: pip install 'ecgfast\[code15\]'"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("rows", [[], [exam_row("one", "two")]])
def test_a_table_without_exams(tmp_path, rows):
    write_part(tmp_path / "in/exams_part0.hdf5", {7: tracing(4000)})
    write_csv(tmp_path / "in/exams.csv", rows or [exam_row(1, 2)])
    if not rows:
        table = tmp_path / "in/exams.csv"
        table.write_text(table.read_text().splitlines()[0])
    kinds = [item.refused.partition(":")[0] for item in open_source(tmp_path / "in").items()]
    assert kinds == ["unreadable"] * len(rows) + ["not listed"]
