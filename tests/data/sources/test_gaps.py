"""Files, links, names and cells of sources that are missing or odd."""

import csv
import shutil

import numpy as np
import pytest

from ecgfast.data import Store, prepare
from ecgfast.data.store.reasons import Reasons, kind_of
from ecgfast.data.wfdb.comments import read_comments
from ecgfast.errors import EcgfastError
from tests.data.made import sines, write_csv, write_record


def _rejected(store):
    with (store / "rejected.csv").open() as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("link", [True, False])
def test_an_absent_file_without_standard_leads_costs_nothing(tmp_path, length, link):
    signal = sines(leads=2)
    write_record(tmp_path / "in/a", signal, leads=["I", "V5"])
    header = tmp_path / "in/a.hea"
    first, *lines = header.read_text().splitlines()
    first = f"a 3 500 {signal.shape[1]}" if length else "a 3 500"
    header.write_text("\n".join([first, *lines, "b.dat 16 1000(0)/mV 16 0 0 0 0 RESP"]) + "\n")
    if link:
        (tmp_path / "in/b.dat").symlink_to("../.git/annex/objects/gone")
    prepare(tmp_path / "in", tmp_path / "store", progress=False, workers=1)
    np.testing.assert_array_equal(Store(tmp_path / "store").signal(0)[[0, 10]], signal)


@pytest.mark.parametrize("rate", ["", "NA", "nan"])
def test_a_missing_rate_of_a_table_is_the_default(tmp_path, rate):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", sines())
    write_csv(tmp_path / "in/records.csv", [{"file": "a.npy", "rate": rate}])
    prepare(tmp_path / "in", tmp_path / "store", progress=False, workers=1)
    assert Store(tmp_path / "store").index["source_rate"].to_pylist() == [500.0]


@pytest.mark.parametrize("gain", ["", "NA", "nan;nan"])
def test_a_missing_gain_of_a_table(tmp_path, gain):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", sines())
    np.save(tmp_path / "in/b.npy", sines())
    write_csv(
        tmp_path / "in/records.csv", [{"file": "a.npy", "gain": gain}, {"file": "b.npy", "gain": "1000"}]
    )
    prepare(tmp_path / "in", tmp_path / "store", progress=False, workers=1)
    assert _rejected(tmp_path / "store") == {"a.npy": "gain must be a number, got nothing"}
    prepare(tmp_path / "in", tmp_path / "told", progress=False, workers=1, unit="uV")
    np.testing.assert_array_equal(Store(tmp_path / "told").signal(0), sines())


def test_names_of_files_are_told_in_one_line():
    told = Reasons([("a\n\x1b[31mé.hea", "unreadable: b\n.hea is no file")]).told()
    assert told == ["unreadable: b\\n.hea is no file (record a\\n\\x1b[31mé.hea)"]


def test_a_kind_is_the_argument():
    assert [kind_of(text) for text in ("gain must be a number, got ':'", "flat: all")] == ["gain", "flat"]


def test_an_error_of_wfdb_has_its_type_once(tmp_path, monkeypatch):
    import wfdb

    def fails(*args, **options):
        raise KeyError("99")

    monkeypatch.setattr(wfdb, "rdrecord", fails)
    write_record(tmp_path / "in/a", leads=["I"], signal=sines(leads=1))
    header = tmp_path / "in/a.hea"
    header.write_text(header.read_text().replace(" 16 ", " 16x2 ", 1).replace(" 5000\n", " 2500\n"))
    shutil.copy(tmp_path / "in/a.dat", tmp_path / "in/keep.dat")
    with pytest.raises(EcgfastError, match="unreadable: KeyError: '99'"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False, workers=1)


@pytest.mark.parametrize("text", ["Number of leads per subject: 12", "Mean age: 50", "No. by sex: F"])
def test_a_field_begins_its_comment(text):
    told = read_comments([text])
    assert (told.patient_id, told.age, told.sex) == (None, None, None)


def test_fields_follow_each_other():
    told = read_comments(["Subject ID: 7 Age: 35 years  Sex: M"])
    assert (told.patient_id, told.age, told.sex) == ("7", 35.0, "M")
