import csv
import os
import pickle

import numpy as np
import pytest

from ecgfast.data import Store, prepare, summarize
from ecgfast.data.sources import FORMATS, open_source
from ecgfast.data.sources.tables import Listed, safe_path
from ecgfast.data.store.reasons import kind_of
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS
from tests.data.made import mimic_row, ptbxl_row, sines, write_csv, write_mimic, write_ptbxl, write_record


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def reasons(store):
    with (store.path / "rejected.csv").open() as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def kinds(store):
    return {source: kind_of(reason) for source, reason in reasons(store).items()}


def rows(store):
    return {row["record_id"]: row for row in store.index.to_pylist()}


def importer(store):
    return store.description["provenance"]["importer"]


def test_ptbxl(tmp_path, imported):
    old = {"patient_id": "13243", "age": "300.0", "sex": 0, "strat_fold": 10, "scp_codes": "{'AFIB': 50.0}"}
    bare = {"patient_id": "", "age": "", "sex": "", "strat_fold": "", "scp_codes": "{}"}
    table = [ptbxl_row(1), ptbxl_row(2, **old), ptbxl_row(21837), ptbxl_row(4, **bare)]
    write_ptbxl(tmp_path / "in", table)
    store = imported(tmp_path / "in")
    assert importer(store) == "ptbxl"
    assert not reasons(store)
    found = rows(store)
    first = found["records500/00000/00001_hr"]
    assert (first["patient_id"], first["age"], first["sex"], first["fold"]) == ("15709", 56.0, "F", 3)
    assert first["labels"] == ["NORM", "LVOLT", "SR"]
    second = found["records500/00000/00002_hr"]
    assert (second["patient_id"], second["age"], second["sex"], second["fold"]) == ("13243", 90.0, "M", 10)
    assert second["labels"] == ["AFIB"]
    fourth = found["records500/00000/00004_hr"]
    assert fourth["patient_id"] == fourth["record_id"]
    assert [fourth[name] for name in ("age", "sex", "fold", "labels")] == [None, None, None, []]
    numbers = dict(zip(found, store.patient_numbers(), strict=True))
    assert numbers["records500/00000/00001_hr"] == numbers["records500/21000/21837_hr"]
    np.testing.assert_array_equal(store.signal(0), sines())
    assert "folds        3 2, 10 1\n" in str(summarize(store))
    assert {row["source_rate"] for row in found.values()} == {500.0}


@pytest.mark.parametrize(("rates", "form", "rate"), [((100,), "auto", 100), ((100, 500), "ptbxl100", 100)])
def test_ptbxl_at_100_hz(tmp_path, imported, rates, form, rate):
    write_ptbxl(tmp_path / "in", [ptbxl_row(1), ptbxl_row(2)], rates)
    store = imported(tmp_path / "in", format=form)
    assert set(rows(store)) == {"records100/00000/00001_lr", "records100/00000/00002_lr"}
    assert set(store.index["source_rate"].to_pylist()) == {rate}
    assert set(store.n_samples) == {5000}
    assert not reasons(store)


def test_ptbxl_that_is_incomplete_or_made_to_do_harm(tmp_path, imported):
    table = [
        ptbxl_row(1),
        ptbxl_row(2),
        ptbxl_row(3, filename_hr="../outside"),
        ptbxl_row(4, filename_hr=str(tmp_path / "outside")),
        ptbxl_row(5, scp_codes="{'NORM': __import__('os').system('true')}"),
        ptbxl_row(1, age="7"),
        ptbxl_row(6, filename_hr="records500/" + 300 * "a"),
        ptbxl_row(7, age="unknown", sex="x", strat_fold="1.5", scp_codes="{'NORM': 100.0,}"),
        ptbxl_row(8, filename_hr="records500\\00000\\00008_hr"),
    ]
    write_ptbxl(tmp_path / "in", [row for row in table if len(row["filename_hr"]) < 99])
    write_csv(tmp_path / "in/ptbxl_database.csv", table)
    with (tmp_path / "in/ptbxl_database.csv").open("a") as file:
        file.write("9,too few\n")
    write_record(tmp_path / "outside")
    write_record(tmp_path / "in/records500/00000/00099_hr")
    (tmp_path / "in/records500/00000/00002_hr.hea").unlink()
    store = imported(tmp_path / "in")
    assert kinds(store) == {
        "records500/00000/00002_hr.hea": "missing file",
        "ptbxl_database.csv line 4": "unsafe path",
        "ptbxl_database.csv line 5": "unsafe path",
        "records500/00000/00001_hr.hea": "ambiguous",
        f"records500/{300 * 'a'}.hea": "missing file",
        "ptbxl_database.csv line 10": "unsafe path",
        "ptbxl_database.csv line 11": "unreadable",
        "records500/00000/00099_hr.hea": "not listed",
    }
    found = rows(store)
    assert set(found) == {f"records500/00000/{ecg_id}_hr" for ecg_id in ("00001", "00005", "00007")}
    assert found["records500/00000/00005_hr"]["labels"] == []
    assert store.description["warnings"] == {"scp_codes": 1, "strat_fold": 1}
    assert found["records500/00000/00001_hr"]["age"] == 56.0
    seventh = found["records500/00000/00007_hr"]
    assert [seventh[name] for name in ("age", "sex", "fold", "labels")] == [None, None, None, ["NORM"]]


@pytest.mark.parametrize(
    ("codes", "want", "warned"),
    [
        ("", [], False),
        ("nan", [], False),
        ("{}", [], False),
        ('{"NORM": 100, "SR": 0.0}', ["NORM", "SR"], False),
        ("{'NORM': nan}", ["NORM"], False),
        ("{'NORM'}", [], True),
        ("{'NORM': 100.0", [], True),
        ("NORM", [], True),
        ("['NORM', 'SR']", [], True),
    ],
)
def test_ptbxl_codes_that_are_empty_or_odd(tmp_path, imported, codes, want, warned):
    write_ptbxl(
        tmp_path / "in", [ptbxl_row(1, scp_codes=codes, patient_id="nan", age="NA", sex="nan"), ptbxl_row(2)]
    )
    store = imported(tmp_path / "in")
    assert not reasons(store)
    row = rows(store)["records500/00000/00001_hr"]
    assert (row["labels"], row["age"], row["sex"]) == (want, None, None)
    assert store.description["warnings"] == ({"scp_codes": 1} if warned else {})
    assert store.description["without"] == {"patient": 1, "age": 1, "sex": 1, "label": int(not want)}
    np.testing.assert_array_equal(store.signal(0), sines())


def test_strangers_are_no_one_person(tmp_path, imported):
    """Whatever stands for an unknown patient, each such recording is of a patient of its own."""
    strangers = ["", "nan", "NaN", "NA", "<NA>", "None", "null", "unknown"]
    subjects = [*strangers, 7, "7.0", 7.0]
    table = [mimic_row(0, i, subject_id=subject) for i, subject in enumerate(subjects)]
    write_mimic(tmp_path / "mimic", table)
    for i, subject in enumerate(subjects):
        write_record(tmp_path / f"wfdb/{i}", comments=[f"Patient: {subject}"])
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / f"npy/{i}.npy", sines())
    rows = [{"file": f"{i}.npy", "patient_id": row["subject_id"]} for i, row in enumerate(table)]
    write_csv(tmp_path / "npy/records.csv", rows)
    for kind in ("mimic", "npy", "wfdb"):
        prepare(tmp_path / kind, tmp_path / f"store-{kind}", progress=False)
        store = Store(tmp_path / f"store-{kind}")
        numbers = dict(zip(store.index["source"].to_pylist(), store.patient_numbers().tolist(), strict=True))
        assert len(numbers) == 11
        assert len(set(numbers.values())) == 9
        assert store.description["without"]["patient"] == 8


def test_an_unknown_patient_is_none_of_the_known(tmp_path, imported):
    """Record 2 is of an unknown patient, and patient 2 is somebody else."""
    table = [{"file": f"{i}.npy", "patient_id": patient} for i, patient in enumerate(["2", "2", "", "3"])]
    write_csv(tmp_path / "in/records.csv", table)
    for i in range(4):
        np.save(tmp_path / f"in/{i}.npy", sines())
    store = imported(tmp_path / "in")
    assert store.index["patient_id"].to_pylist() == ["2", "2", "2 (patient unknown)", "3"]
    assert store.patient_numbers().tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("fs", r"a column 'fs', want of file, rate, .* \(names that begin with _ .*\); did you mean rate\?"),
        ("Rate", r"'Rate', .*; did you mean rate\?"),
        ("patient", r"; did you mean patient_id\?"),
        ("gender", r"; did you mean sex\?"),
        ("label", r"; did you mean labels\?"),
        ("notes", r"'notes', want of .*fold \(names that begin with _ are left alone\)$"),
    ],
)
def test_unknown_columns_are_an_error(tmp_path, column, told):
    write_csv(tmp_path / "in/records.csv", [{"file": "a.npy", column: 250}])
    np.save(tmp_path / "in/a.npy", sines())
    with pytest.raises(
        EcgfastError, match=rf"records\.csv has {'' if told.startswith('a ') else '.*'}{told}"
    ):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_columns_that_are_left_alone(tmp_path, imported):
    write_csv(tmp_path / "in/records.csv", [{"": 0, "file": "a.npy", "_fs": 250, "Unnamed: 0": 1, "age": 7}])
    np.save(tmp_path / "in/a.npy", sines())
    assert imported(tmp_path / "in").index["age"].to_pylist() == [7.0]


def test_a_column_twice(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/records.csv").write_text("file,rate,rate\na.npy,250,500\n")
    np.save(tmp_path / "in/a.npy", sines())
    with pytest.raises(EcgfastError, match=r"records\.csv has 2 columns rate, want one"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)


def test_arrays_of_the_wrong_shape(tmp_path):
    """The reasons are told whole, and kept where there is no store to keep them in."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        np.save(tmp_path / f"in/{i}.npy", sines(5000 + i).T)
    np.save(tmp_path / "in/8.npy", sines()[:8])
    np.save(tmp_path / "in/o.npy", np.array([{}], dtype=object), allow_pickle=True)
    store = tmp_path / "store"
    with pytest.raises(EcgfastError) as error:
        prepare(tmp_path / "in", store, progress=False)
    message = str(error.value)
    told = "shape: signal must be [leads, samples], got [5000, 12]; transpose it: signal.T"
    told += " (3 records, such as 0.npy)"
    assert told in message
    assert "got [8, 5000], while 12 leads are named; name those that it has" in message
    assert "unreadable: the array holds Python objects, want numbers" in message
    kept = tmp_path / "store.rejected.csv"
    assert message.endswith(f"all are listed in {kept}")
    with kept.open() as file:
        assert [row["source"] for row in csv.DictReader(file)] == [
            "0.npy",
            "1.npy",
            "2.npy",
            "8.npy",
            "o.npy",
        ]
    assert not store.exists()
    assert not (tmp_path / "store.partial").exists()
    np.save(tmp_path / "in/good.npy", sines())
    report = prepare(tmp_path / "in", store, progress=False)
    assert (report.n_imported, report.n_rejected) == (1, 5)
    assert told in str(report)
    assert not kept.exists()  # the list of this import is in the store
    again = prepare(tmp_path / "in", store, progress=False)
    assert again.nothing_to_do
    assert again.examples == report.examples


def test_mimic_iv_ecg(tmp_path, imported):
    table = [
        mimic_row(10001725, 41420867),
        mimic_row(10000032, 40689238),
        mimic_row(10001725, 44458630),
        mimic_row(10000032, 1, path="files/../../40689238"),
    ]
    write_mimic(tmp_path / "in", table[:3])
    write_csv(tmp_path / "in/record_list.csv", [*table, mimic_row(10000032, 2)])
    store = imported(tmp_path / "in")
    assert importer(store) == "mimic"
    assert kinds(store) == {
        "record_list.csv line 5": "unsafe path",
        "files/p1000/p10000032/s2/2.hea": "missing file",
    }
    found = rows(store)
    assert list(found) == [row["path"] for row in table[:3]]
    assert [row["patient_id"] for row in found.values()] == ["10001725", "10000032", "10001725"]
    for i in range(3):
        np.testing.assert_array_equal(store.signal(i), sines())


def test_ecg_id(shared, imported):
    store = imported(shared("data/ecgid"))
    assert importer(store) == "ecgid"
    found = rows(store)
    for record_id, row in found.items():
        assert row["patient_id"] == record_id.partition("/")[0]
        assert row["leads"] == ["I"]
    assert len({row["patient_id"] for row in found.values()}) == 45 == store.patient_numbers().max() + 1
    assert found["Person_01/rec_1"]["sex"] == "M"


@pytest.mark.parametrize("name", ["ludb", "cinc", "cinc_lead_subsets", "wfdb_formats"])
def test_other_real_folders_are_wfdb(shared, name):
    assert open_source(shared(f"data/{name}")).format == "wfdb"


def test_the_most_specific_format_wins(tmp_path):
    np.save(tmp_path / "a.npy", sines())
    assert open_source(tmp_path).format == "npy"
    write_record(tmp_path / "b")
    assert open_source(tmp_path).format == "wfdb"
    write_record(tmp_path / "Person_01/rec_1")
    assert open_source(tmp_path).format == "ecgid"
    write_mimic(tmp_path, [mimic_row(1, 2)])
    assert open_source(tmp_path).format == "mimic"
    write_ptbxl(tmp_path, [ptbxl_row(1)])
    assert open_source(tmp_path).format == "ptbxl"
    assert open_source(tmp_path, "wfdb").format == "wfdb"


def test_formats_that_do_not_fit(tmp_path):
    write_record(tmp_path / "in/a")
    for form in FORMATS:
        if form != "wfdb":
            with pytest.raises(EcgfastError, match=f"is not in format {form}: it has no "):
                prepare(tmp_path / "in", tmp_path / "store", format=form, progress=False)
    with pytest.raises(EcgfastError, match=r"format: got 'edf', want auto, .*ptbxl.*, wfdb"):
        prepare(tmp_path / "in", tmp_path / "store", format="edf", progress=False)
    prepare(tmp_path / "in", tmp_path / "store", progress=False)
    with pytest.raises(EcgfastError, match="is a store already"):
        prepare(tmp_path / "store", tmp_path / "other", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "store"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column subject_id, path"),
        (b"subject_id,file\n1,a\n", "has no column path"),
        (b"subject_id,path\n1," + b"a" * 200_000 + b"\n", "can't read .*field larger"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/record_list.csv").write_bytes(content)
    with pytest.raises(EcgfastError, match=rf"record_list\.csv.*{message}|{message}"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_tables_with_marks_and_other_bytes(tmp_path, imported):
    write_mimic(tmp_path / "in", [mimic_row(1, 2)])
    table = tmp_path / "in/record_list.csv"
    extra = b'\xff,3,3,"a\r\nb",files/p0/\xe9\r\n\r\n'
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n") + extra)
    store = imported(tmp_path / "in")
    assert list(rows(store)) == ["files/p0/p1/s2/2"]
    assert kinds(store) == {"files/p0/�.hea": "missing file"}


@pytest.mark.parametrize(
    ("text", "want"),
    [("a/b", "a/b"), ("./a//b", "a/b"), ("é", "é"), ("..a", "..a")]
    + [(bad, None) for bad in ("", ".", "/a", "a/../b", "..", "a\\b", "a\0b", "a\nb", "\ud800")],
)
def test_safe_paths(text, want):
    assert safe_path(text) == want


def test_listed_names():
    listed = Listed(["a", "b", "a", "ü"])
    assert [name in listed for name in ("a", "b", "ü", "c", "")] == [True, True, True, False, False]
    assert "a" not in Listed([])


@pytest.mark.parametrize("kind", ["ptbxl", "mimic"])
def test_workers_and_interruptions_do_not_change_the_bytes(tmp_path, monkeypatch, kind):
    if kind == "ptbxl":
        write_ptbxl(tmp_path / "in", [ptbxl_row(i) for i in range(1, 8)])
    else:
        write_mimic(tmp_path / "in", [mimic_row(10000000 + i, 40000000 + i) for i in range(7)])
    records = tmp_path / "in" / {"ptbxl": "records500", "mimic": "files"}[kind]
    sorted(records.rglob("*.dat"))[2].unlink()
    write_record(records / "extra")
    prepare(tmp_path / "in", tmp_path / "one", progress=False)
    prepare(tmp_path / "in", tmp_path / "two", progress=False, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    interrupt_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "in", tmp_path / "three", progress=False)
    monkeypatch.undo()
    assert not (tmp_path / "three").exists()
    prepare(tmp_path / "in", tmp_path / "three", progress=False)
    assert files(tmp_path / "one") == files(tmp_path / "three")
    assert len(Store(tmp_path / "one")) == 6
    assert sorted(kinds(Store(tmp_path / "one")).values()) == ["not listed", "unreadable"]


def interrupt_after(monkeypatch, n):
    """Stop the next import after n records, as Ctrl-C does."""
    from ecgfast.data.sources.importing import StoreWriter

    add = StoreWriter.add

    def stopped(self, recording):
        add(self, recording)
        if self.n_imported == n:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "add", stopped)


def test_a_changed_table_is_another_source(tmp_path):
    write_mimic(tmp_path / "in", [mimic_row(1, 2)])
    prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert prepare(tmp_path / "in", tmp_path / "store", progress=False).nothing_to_do
    table = tmp_path / "in/record_list.csv"
    table.write_text(table.read_text().replace("\n1,", "\n7,"))
    with pytest.raises(EcgfastError, match=r"made with provenance\.records_sha256"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)


def test_sources_and_items_can_be_sent_to_workers(tmp_path):
    write_ptbxl(tmp_path, [ptbxl_row(1)])
    source = open_source(tmp_path)
    items = list(source.items())
    assert pickle.loads(pickle.dumps((source, items))) == (source, items)


def test_arrays_in_a_folder(tmp_path, imported):
    (tmp_path / "in/deep").mkdir(parents=True)
    np.save(tmp_path / "in/a.npy", sines())
    np.save(tmp_path / "in/deep/b.npy", sines().astype(np.float32) / 1000)
    np.save(tmp_path / "in/c.npy", sines().T)
    np.save(tmp_path / "in/d.npy", sines().astype(np.int64))
    np.save(tmp_path / "in/e.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "in/f.npy").write_bytes((tmp_path / "in/a.npy").read_bytes()[:-10])
    (tmp_path / "in/g.npy").write_bytes(b"")
    (tmp_path / "in/i.npy").write_bytes(b"\x93NUMPY\x01\x00\x06\x00{'a':\n")
    np.save(tmp_path / "in/h.npy", np.zeros((12, 0)))
    np.save(tmp_path / "in" / os.fsdecode(b"\xff.npy"), sines())
    store = imported(tmp_path / "in")
    assert importer(store) == "npy"
    assert list(rows(store)) == ["a", "deep/b"]
    for i in range(2):
        np.testing.assert_array_equal(store.signal(i), sines())
    want = {
        "c": "shape",
        "d": "type",
        "e": "unreadable",
        "f": "unreadable",
        "g": "unreadable",
        "h": "too short",
        "i": "unreadable",
    }
    assert kinds(store) == {f"{name}.npy": kind for name, kind in want.items()} | {"\\udcff.npy": "record_id"}


def test_arrays_with_a_table(tmp_path, imported):
    known = {
        "rate": 250,
        "leads": "II;V1",
        "patient_id": "p",
        "labels": "AF; RBBB",
        "age": 7,
        "sex": "f",
        "fold": 2,
    }
    unknown = dict.fromkeys(known, "")
    table = [
        {"file": "a.npy", **known},
        {"file": "b.npy", **unknown},
        {"file": "c.npy", **known, "leads": "II;II"},
        {"file": "d.npy", **known, "age": "old"},
        {"file": "e.npy", **known},
        {"file": "../a.npy", **known},
        {"file": "g.npy", **known, "rate": "0"},
    ]
    write_csv(tmp_path / "in/records.csv", table)
    signal = sines(2500, rate=250)[[1, 6]] / 1000
    for name in "acdg":
        np.save(tmp_path / f"in/{name}.npy", signal)
    np.save(tmp_path / "in/b.npy", sines())
    np.save(tmp_path / "in/z.npy", sines())
    store = imported(tmp_path / "in")
    first, second, fourth = store.index.to_pylist()
    assert (first["record_id"], first["leads"], first["n_samples"]) == ("a", ["II", "V1"], 5000)
    values = [first[name] for name in ("patient_id", "labels", "age", "sex", "fold", "source_rate")]
    assert values == ["p", ["AF", "RBBB"], 7.0, "F", 2, 250.0]
    assert (second["patient_id"], second["leads"]) == ("b", list(STANDARD_LEADS))
    assert (fourth["record_id"], fourth["age"]) == ("d", None)
    assert (store.path / "warnings.csv").read_text().splitlines()[1:] == [
        "d.npy,\"age: got 'old', want 0 to 125 years\""
    ]
    assert kinds(store) == {
        "c.npy": "ambiguous",
        "e.npy": "unreadable",
        "records.csv line 7": "unsafe path",
        "g.npy": "sample rate",
        "z.npy": "not listed",
    }


@pytest.mark.parametrize("kind", ["ptbxl", "mimic", "npy"])
def test_rows_without_a_path(tmp_path, imported, kind):
    if kind == "ptbxl":
        write_ptbxl(tmp_path / "in", [ptbxl_row(1)])
        write_csv(tmp_path / "in/ptbxl_database.csv", [ptbxl_row(1), ptbxl_row(2, filename_hr="")])
    elif kind == "mimic":
        write_mimic(tmp_path / "in", [mimic_row(1, 2)])
        write_csv(tmp_path / "in/record_list.csv", [mimic_row(1, 2), mimic_row(1, 3, path="")])
    else:
        write_csv(tmp_path / "in/records.csv", [{"file": "a.npy", "age": 3}, {"file": "", "age": 4}])
        np.save(tmp_path / "in/a.npy", sines())
    store = imported(tmp_path / "in")
    assert len(store) == 1
    assert [reason.partition(" the row's")[0] for reason in reasons(store).values()] == ["missing file:"]
