from pathlib import Path

import numpy as np
import pytest
import wfdb
from wfdb.processing import xqrs_detect

from ecgfast.data import Store, prepare, synthesize, write_synthetic
from ecgfast.data.synthetic import RHYTHMS
from ecgfast.errors import EcgfastError


@pytest.fixture(scope="module")
def records():
    return list(synthesize(40, 2, 10.0, seed=5))


def test_limb_leads_are_exact(records):
    for record in records:
        one, two, three, avr, avl, avf = record.signal[:6].astype(int)
        np.testing.assert_array_equal(one + three, two)
        np.testing.assert_array_equal(2 * avr, -(one + two))
        np.testing.assert_array_equal(2 * avl, one - three)
        np.testing.assert_array_equal(2 * avf, two + three)
        np.testing.assert_array_equal(avr + avl + avf, 0)


def test_form(records):
    assert {record.rhythm for record in records} == set(RHYTHMS)
    for record in records:
        assert record.signal.shape == (12, 5000)
        assert record.signal.dtype == np.int16
        assert record.labels == RHYTHMS[record.rhythm]
        assert 300 < np.ptp(record.signal, axis=1).max() < 8000


def test_rate_and_rhythm_as_wfdb_detects_them(records):
    low_high = {
        "sinus rhythm": (55, 105),
        "sinus bradycardia": (36, 62),
        "sinus tachycardia": (95, 150),
        "atrial fibrillation": (55, 150),
        "premature ventricular contractions": (50, 110),
    }
    irregular = {rhythm: [] for rhythm in RHYTHMS}
    for record in records[::2]:
        beats = xqrs_detect(record.signal[7] / 1000, fs=record.rate, verbose=False)
        intervals = np.diff(beats) / record.rate
        low, high = low_high[record.rhythm]
        assert low < 60 / np.median(intervals) < high, record
        irregular[record.rhythm].append(np.std(intervals) / np.mean(intervals))
    spread = {rhythm: np.mean(values) for rhythm, values in irregular.items()}
    assert spread["sinus rhythm"] < 0.06
    assert spread["atrial fibrillation"] > 0.1
    assert spread["premature ventricular contractions"] > 0.1


def mean_beat(record):
    """Average of the 12 leads around the R peaks."""
    beats = xqrs_detect(record.signal[7] / 1000, fs=record.rate, verbose=False)
    beats = [b for b in beats if 60 < b < 4900]
    return np.median([record.signal[:, b - 50 : b + 50] for b in beats], axis=0).ravel()


def test_patients_resemble_themselves(records):
    """The other recording of a patient is nearest for most."""
    beats = np.stack([mean_beat(record) for record in records])
    first, second = beats[::2], beats[1::2]
    distance = np.linalg.norm(first[:, None] - second[None], axis=2)
    assert (distance.argmin(axis=1) == np.arange(len(first))).mean() > 0.8


def test_a_record_does_not_depend_on_how_many_are_made(records):
    few = list(synthesize(3, 1, 10.0, seed=5))
    for patient, record in enumerate(few):
        np.testing.assert_array_equal(record.signal, records[2 * patient].signal)
    other = next(synthesize(1, 1, 10.0, seed=6))
    assert not np.array_equal(other.signal, few[0].signal)


def test_written_records_import(tmp_path, records):
    options = {"patients": 4, "records": 2, "seconds": 10.0, "seed": 5, "progress": False}
    assert write_synthetic(tmp_path / "out", **options) == 8
    assert write_synthetic(tmp_path / "out", **options) == 0
    header = wfdb.rdrecord(str(tmp_path / "out/000/p000001_r01"), physical=False)
    assert header.calc_checksum() == [c % 65536 for c in header.checksum]
    assert header.units == ["mV"] * 12
    prepare(tmp_path / "out", tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    assert store.patient_numbers().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for i, row in enumerate(store.index.to_pylist()):
        np.testing.assert_array_equal(store.signal(i), records[i].signal)
        assert row["labels"] == records[i].labels
        assert (row["age"], row["sex"]) == (records[i].age, records[i].sex)
        assert row["patient_id"] == f"p{i // 2:06d}"


def test_other_arguments_and_foreign_folders_are_refused(tmp_path):
    options = {"patients": 1, "records": 1, "seconds": 2.0, "progress": False}
    out = Path(tmp_path / "out")
    write_synthetic(out, seed=1, **options)
    with pytest.raises(EcgfastError, match="holds other than these records"):
        write_synthetic(out, seed=2, **options)
    with pytest.raises(EcgfastError, match="not empty"):
        write_synthetic(tmp_path, seed=1, **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(EcgfastError, match="is a file"):
        write_synthetic(tmp_path / "file", seed=1, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 10, 0), "patients: got 0"),
        ((1, 0, 10, 0), "records: got 0"),
        ((1, 1, 0.5, 0), "seconds: got 0.5"),
        ((1, 1, 10, -1), "seed: got -1"),
        ((1, 1, 10, 0, 5), "rate: got 5"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(EcgfastError, match=message):
        synthesize(*arguments)


def test_current_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EcgfastError, match=r"out: can't replace the folder \."):
        write_synthetic(Path("."), patients=1, records=1, seconds=2.0, seed=0, progress=False)
    assert not list(tmp_path.iterdir())
