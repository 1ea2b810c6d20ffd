"""Which signals are taken as which leads, and that those which aren't are told."""

import csv
import os

import numpy as np
import pytest

from ecgfast.cli import main
from ecgfast.data import Preprocessing, Store, prepare, summarize, write_store
from ecgfast.errors import EcgfastError
from ecgfast.leads import LeadNames
from tests.data.made import sines, write_record

QUIET = {"progress": False}


def reasons(store):
    with (store / "rejected.csv").open() as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def leads(store):
    return dict(zip(*(store.index[name].to_pylist() for name in ("record_id", "leads")), strict=True))


def test_spellings_of_files(tmp_path, imported):
    names = {
        "brazil": ["DI", "DII", "DIII", "AVR", "AVL", "AVF"],
        "turkey": ["D1", "D2", "D3", "avR", "avL", "avF"],
        "words": ["ECG I", "ECG lead II", "Lead III", "Lead aVR", "ECG_Lead_AVL", "lead_avf"],
        "codes": [f"MDC_ECG_LEAD_{name}" for name in ("I", "II", "III", "AVR", "AVL", "AVF")],
    }
    for name, spelt in names.items():
        write_record(tmp_path / "in" / name, sines(leads=6), leads=spelt)
    store = imported(tmp_path / "in")
    assert leads(store) == {name: ["I", "II", "III", "aVR", "aVL", "aVF"] for name in sorted(names)}
    assert store.description["unused_signals"] == {}


@pytest.fixture
def holter(tmp_path):
    write_record(tmp_path / "in/a", sines(leads=3), leads=["MLII", "V5", "RESP"])
    write_record(tmp_path / "in/b", sines(leads=2), leads=["MLII", "V5"])
    write_record(tmp_path / "in/c", sines(leads=2), leads=["I", "II"])
    write_record(tmp_path / "in/d", sines(leads=2), leads=["MLII", "II"])
    return tmp_path / "in"


def test_what_is_not_taken_is_told(holter, tmp_path):
    report = prepare(holter, tmp_path / "store", **QUIET)
    assert report.unused == {"MLII": 3, "RESP": 1}
    assert "signals not taken: MLII (3 records), RESP (1)" in str(report).splitlines()[0]
    again = prepare(holter, tmp_path / "store", **QUIET)
    assert again.nothing_to_do
    assert again.unused == report.unused
    store = Store(tmp_path / "store")
    assert leads(store) == {"a": ["V5"], "b": ["V5"], "c": ["I", "II"], "d": ["II"]}
    assert store.description["unused_signals"] == {"MLII": 3, "RESP": 1}
    assert "not taken    MLII 3, RESP 1\n" in str(summarize(store))
    assert summarize(store).as_dict()["unused_signals"] == {"MLII": 3, "RESP": 1}


def test_they_are_told_after_an_interruption_too(holter, tmp_path, monkeypatch):
    from ecgfast.data.sources.importing import StoreWriter

    add = StoreWriter.add

    def stopped(self, recording):
        add(self, recording)
        if self.n_imported == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(holter, tmp_path / "store", **QUIET)
    assert prepare(holter, tmp_path / "store", **QUIET).unused == {"MLII": 3, "RESP": 1}


def test_damaged_names_do_not_pile_up(tmp_path, imported):
    for i in range(40):
        write_record(tmp_path / f"in/r{i}", sines(600, 12), leads=["I", *(f"x{i}-{k}" for k in range(11))])
    found = imported(tmp_path / "in").description["unused_signals"]
    assert len(found) == 257
    assert sum(found.values()) - found["others"] == 256
    assert found["others"] == 40 * 11 - 256


def test_renamed(holter, tmp_path, capsys):
    store = tmp_path / "store"
    arguments = ["prepare", str(holter), str(store), "--workers", "1"]
    assert main([*arguments, "--rename", "mlii=II", "--rename", "RESP=V1"]) == 0
    assert leads(Store(store)) == {"a": ["II", "V1", "V5"], "b": ["II", "V5"], "c": ["I", "II"]}
    assert reasons(store) == {"d.hea": "ambiguous: two signals are lead II (MLII, II)"}
    np.testing.assert_array_equal(Store(store).signal(0)[[1, 10, 6]], sines(leads=3))
    capsys.readouterr()
    for others in ([], ["--rename", "MLII=II"], ["--leads", "I,II"]):
        assert main([*arguments, *others]) == 2
        assert "store was made with preprocessing." in capsys.readouterr().err
    assert main([*arguments, "--rename", "RESP=V1", "MLII=DII"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rename", "MLII"], "rename: must be NAME=LEAD, such as MLII=II, got 'MLII'"),
        (["--rename", "MLII=X"], "rename must make 'MLII' one of I, II, III,"),
        (["--rename", "a=I", "--rename", "a=II"], "rename: 'a' must become one lead, got I and II"),
        (["--rename", "a=I", "A=II"], "rename must have each name once, got 'A' twice"),
        (
            ["--leads", "I,II,X"],
            "V5, V6, got unknown lead 'X'",
        ),
        (["--leads", "I,II,I"], "leads must be named once each, got I twice"),
        (["--leads", ""], "got unknown lead 'unnamed'"),
        (["--leads", "-,-"], "leads must be at least one lead, got none"),
    ],
)
def test_bad_options(holter, tmp_path, capsys, options, message):
    assert main(["prepare", str(holter), str(tmp_path / "store"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_leads_by_position(tmp_path):
    write_record(tmp_path / "in/named", sines(leads=3), leads=["ECG 1", "ECG 2", "ECG 3"])
    write_record(tmp_path / "in/unnamed", sines(leads=3), leads=["", "", ""])
    write_record(tmp_path / "in/same", sines(leads=3), leads=["", "resp", "V1"])
    write_record(tmp_path / "in/other", sines(leads=3), leads=["V2", "", ""])
    write_record(tmp_path / "in/more", sines(leads=4), leads=["", "", "", ""])
    write_record(tmp_path / "alone/unnamed", sines(leads=3), leads=["", "", ""])
    with pytest.raises(EcgfastError, match="none of the 3 signals has a name, --leads can give them"):
        prepare(tmp_path / "alone", tmp_path / "store", **QUIET)
    how = Preprocessing(names=LeadNames.of(leads=["DII", "-", "v1"]))
    report = prepare(tmp_path / "in", tmp_path / "store", preprocessing=how, **QUIET)
    store = Store(tmp_path / "store")
    assert leads(store) == {name: ["II", "V1"] for name in ("named", "same", "unnamed")}
    for i in range(3):
        np.testing.assert_array_equal(store.signal(i)[[1, 6]], sines(leads=3)[[0, 2]])
    assert report.unused == {"ECG 2": 1, "resp": 1, "unnamed": 1}
    assert reasons(tmp_path / "store") == {
        "other.hea": "leads: signal V2 was given the name II",
        "more.hea": "leads: the record has 4 signals, 3 names were given for it",
    }


def test_names_of_arrays(tmp_path):
    records = [
        {"signal": sines(leads=2), "rate": 500, "leads": ["DI", "lead V1"]},
        {"signal": sines(leads=2), "rate": 500, "leads": ["MLII", "V5"]},
        {"signal": sines(leads=3), "rate": 500},
    ]
    names = LeadNames.of({"MLII": "II"}, ["I", "-", "II"])
    write_store(records, tmp_path / "store", preprocessing=Preprocessing(names=names))
    store = Store(tmp_path / "store")
    assert store.index["leads"].to_pylist() == [["I", "V1"], ["II", "V5"], ["I", "II"]]
    np.testing.assert_array_equal(store.signal(2)[:2], sines(leads=3)[[0, 2]])
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", sines(leads=3))
    np.save(tmp_path / "in/b.npy", sines())
    prepare(tmp_path / "in", tmp_path / "npy", preprocessing=Preprocessing(names=names), **QUIET)
    assert leads(Store(tmp_path / "npy")) == {"a": ["I", "II"]}
    assert reasons(tmp_path / "npy")["b.npy"].startswith(
        "leads: the signal is [12, 5000], 3 names were given"
    )


def test_chest_leads_that_are_numbered(tmp_path, imported):
    write_record(tmp_path / "in/chest", sines(leads=3), leads=["I", "C1", "C6"])
    write_record(tmp_path / "in/head", sines(leads=3), leads=["C3", "C4", "V5"])
    store = imported(tmp_path / "in")
    assert leads(store) == {"chest": ["I", "V1", "V6"], "head": ["V5"]}
    assert store.description["unused_signals"] == {"C3": 1, "C4": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_several_recordings_in_an_array(tmp_path, workers):
    signals = np.stack([sines(1000) + i for i in range(3)])
    (tmp_path / "in/deep").mkdir(parents=True)
    np.save(tmp_path / "in/deep/a.npy", signals)
    np.save(tmp_path / "in/b.npy", sines(1000))
    np.save(tmp_path / "in/t.npy", signals.transpose(0, 2, 1))
    np.save(tmp_path / "in/none.npy", signals[:0])
    prepare(tmp_path / "in", tmp_path / "store", workers=workers, **QUIET)
    store = Store(tmp_path / "store")
    assert store.index["record_id"].to_pylist() == ["b", "deep/a/0", "deep/a/1", "deep/a/2"]
    assert store.index["source"].to_pylist()[1:] == [f"deep/a.npy/{i}" for i in range(3)]
    for i in range(3):
        np.testing.assert_array_equal(store.signal(1 + i), signals[i])
    assert sorted(reasons(tmp_path / "store")) == [f"t.npy/{i}" for i in range(3)]
    table = "file,patient_id,age\na.npy,p,70\nb.npy,q,\nc.npy/1,r,\nc.npy/7,s,\n"
    (tmp_path / "two").mkdir()
    for name in "ac":
        np.save(tmp_path / f"two/{name}.npy", signals)
    np.save(tmp_path / "two/b.npy", sines(1000))
    (tmp_path / "two/records.csv").write_text(table)
    prepare(tmp_path / "two", tmp_path / "tabled", workers=workers, **QUIET)
    store = Store(tmp_path / "tabled")
    assert store.index["record_id"].to_pylist() == ["a/0", "a/1", "a/2", "b", "c/1"]
    assert store.index["patient_id"].to_pylist() == ["p", "p", "p", "q", "r"]
    assert {name: reason.partition(":")[0] for name, reason in reasons(tmp_path / "tabled").items()} == {
        "c.npy/7": "shape",
        "c.npy/0": "not listed",
        "c.npy/2": "not listed",
    }


def test_pipes_stores_and_links_among_records(tmp_path):
    source = tmp_path / "in"
    write_record(source / "a/r1")
    write_record(tmp_path / "far/r2")
    (source / "z").symlink_to(tmp_path / "far")
    (source / "a/back").symlink_to(source)
    (source / "a/again").symlink_to(source / "a")
    (source / "nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(source / "p.hea")
    write_record(source / "q")
    (source / "q.dat").unlink()
    os.mkfifo(source / "q.dat")
    first = prepare(source, source / "store", **QUIET)
    assert first.n_imported == 2
    assert Store(source / "store").index["record_id"].to_pylist() == ["a/r1", "z/r2"]
    assert reasons(source / "store") == {
        "p.hea": "unreadable: p.hea is no file",
        "q.hea": "unreadable: q.dat is no file",
    }
    assert prepare(source, source / "store", **QUIET).nothing_to_do
    partial = source / "other.partial/store"
    partial.mkdir(parents=True)
    for name in ("lock", "settings.json", "store/x.hea"):
        (partial.parent / name).touch()
    assert prepare(source, source / "store", **QUIET).nothing_to_do


def test_a_store_in_a_folder_of_arrays(tmp_path):
    np.save(tmp_path / "a.npy", sines())
    os.mkfifo(tmp_path / "b.npy")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/up").symlink_to(tmp_path)
    assert prepare(tmp_path, tmp_path / "store", **QUIET).n_imported == 1
    assert reasons(tmp_path / "store") == {"b.npy": "unreadable: it is no file"}
    assert prepare(tmp_path, tmp_path / "store", **QUIET).nothing_to_do
    assert prepare(tmp_path, tmp_path / "second", **QUIET).n_imported == 1


def test_linked_folders_are_detected_as_they_are_walked(tmp_path):
    write_record(tmp_path / "far/Person_01/rec_1", sines(leads=1), leads=["ECG I"])
    (tmp_path / "in").mkdir()
    (tmp_path / "in/Person_01").symlink_to(tmp_path / "far/Person_01")
    prepare(tmp_path / "in", tmp_path / "store", **QUIET)
    store = Store(tmp_path / "store")
    assert store.description["provenance"]["importer"] == "ecgid"
    assert store.index["patient_id"].to_pylist() == ["Person_01"]


def test_tables_that_are_pipes(tmp_path):
    np.save(tmp_path / "a.npy", sines())
    os.mkfifo(tmp_path / "records.csv")
    with pytest.raises(EcgfastError, match=r"can't read .*records.csv: it is no file"):
        prepare(tmp_path, tmp_path / "store", **QUIET)
