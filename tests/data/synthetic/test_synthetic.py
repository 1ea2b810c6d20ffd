from pathlib import Path

import numpy as np
import pytest
import wfdb
from wfdb.processing import gqrs_detect, xqrs_detect

from ecgfast.data import Store, prepare, synthesize, synthetic_store, write_synthetic
from ecgfast.data.store.writer import StoreWriter
from ecgfast.data.synthetic.hearts import CLASSES
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS

V2, V5 = 7, 10


@pytest.fixture(scope="module")
def records():
    return list(synthesize(60, 2, 10.0, seed=5))


def test_limb_leads_are_exact(records):
    for record in records:
        one, two, three, avr, avl, avf = record.signal[:6].astype(int)
        np.testing.assert_array_equal(one + three, two)
        np.testing.assert_array_equal(2 * avr, -(one + two))
        np.testing.assert_array_equal(2 * avl, one - three)
        np.testing.assert_array_equal(2 * avf, two + three)
        np.testing.assert_array_equal(avr + avl + avf, 0)


def test_form(records):
    assert {record.heart for record in records} == set(CLASSES)
    for record in records:
        assert record.signal.shape == (12, 5000)
        assert record.signal.dtype == np.int16
        assert record.labels == list(CLASSES[record.heart].labels)
        assert 300 < np.ptp(record.signal, axis=1).max() < 8000


def test_rate_and_rhythm_as_wfdb_detects_them(records):
    low_high = {
        "sinus rhythm": (55, 105),
        "sinus bradycardia": (36, 62),
        "sinus tachycardia": (95, 150),
        "atrial fibrillation": (55, 150),
        "premature ventricular contractions": (50, 110),
        "left bundle branch block": (55, 105),
        "right bundle branch block": (55, 105),
        "anterior ST elevation": (58, 108),
        "inferior ST elevation": (55, 102),
    }
    irregular = {name: [] for name in CLASSES}
    for record in records[::2]:
        beats = xqrs_detect(record.signal[V5] / 1000, fs=record.rate, verbose=False)
        intervals = np.diff(beats) / record.rate
        low, high = low_high[record.heart]
        assert low < 60 / np.median(intervals) < high, record
        # the other detector, in another lead
        others = np.diff(gqrs_detect(record.signal[V2] / 1000, fs=record.rate)) / record.rate
        assert low < 60 / np.median(others) < high, record
        irregular[record.heart].append(np.std(intervals) / np.mean(intervals))
    spread = {rhythm: np.mean(values) for rhythm, values in irregular.items()}
    assert spread["sinus rhythm"] < 0.06
    assert spread["atrial fibrillation"] > 0.1
    assert spread["premature ventricular contractions"] > 0.1


def beat_of(record, seconds=0.8):
    """Median beat of the 12 leads, microvolts [12, n], R peak or near it at 0.3 s; 0 V before the QRS."""
    peaks = xqrs_detect(record.signal[V5] / 1000, fs=record.rate, verbose=False)
    n = round(seconds * record.rate)
    peaks = [b for b in peaks if 150 < b < record.signal.shape[1] - n]
    beat = np.median([record.signal[:, b - 150 : b - 150 + n] for b in peaks], axis=0)
    first, last = qrs_limits(beat)
    return beat - np.median(beat[:, first - 10 : first], axis=1, keepdims=True), first, last


def qrs_limits(beat):
    """Samples where the leads' joint speed rises above an eighth of its maximum, and falls below."""
    speed = np.linalg.norm(beat[:, 4:] - beat[:, :-4], axis=0)
    top = 75 + speed[75:225].argmax()
    slow = speed < speed[top] / 8
    # a notch is no end: 30 ms of slowness is
    before, after = (np.convolve(side, np.ones(15), "valid") == 15 for side in (slow[top::-1], slow[top:]))
    assert before.any()
    assert after.any()
    return top - before.argmax() + 2, top + after.argmax() + 2


def named(records, heart):
    found = [record for record in records if record.heart == heart]
    assert len(found) >= 6
    return found


def test_qrs_is_wide_in_bundle_branch_block_alone(records):
    duration = {name: [] for name in CLASSES}
    for record in records:
        _, first, last = beat_of(record)
        duration[record.heart].append((last - first) / record.rate)
    for name, seconds in duration.items():
        if "block" in name:
            assert min(seconds) >= 0.12
            assert max(seconds) < 0.19
        else:
            assert np.median(seconds) < 0.11
            assert max(seconds) < 0.12


def test_left_block_has_its_form(records):
    """QS or rS in V1 with upright T, broad R without Q in I and V6, T against it in V6."""
    for record in named(records, "left bundle branch block"):
        beat, first, last = beat_of(record)
        qrs, t = beat[:, first:last], beat[:, last + 40 : last + 140]
        assert -qrs[6].min() > 4 * max(qrs[6].max(), 0)
        assert t[6].max() > 100
        for lead in (0, 11):
            assert qrs[lead].max() > 4 * -min(qrs[lead].min(), 0)
        assert t[11].min() < -80


def test_right_block_has_its_form(records):
    """A late R' in V1 above the first r, wide late S in I and V6, T down in V1."""
    for record in named(records, "right bundle branch block"):
        beat, first, last = beat_of(record)
        half = (first + last) // 2
        assert beat[6, half:last].max() > 300
        assert beat[6, half:last].max() > beat[6, first:half].max()
        for lead in (0, 11):
            late = beat[lead, half:last]
            assert late.min() < -100
            assert (late < late.min() / 3).sum() / record.rate > 0.03
        assert beat[6, last + 40 : last + 140].min() < -50


@pytest.mark.parametrize(
    ("heart", "up", "down"),
    [
        ("anterior ST elevation", {"V2": 200, "V3": 200, "V4": 100}, {"III": -30, "aVF": -30}),
        ("inferior ST elevation", {"II": 100, "III": 100, "aVF": 100}, {"I": -20, "aVL": -50}),
    ],
)
def test_st_is_up_in_its_territory_and_down_opposite(records, heart, up, down):
    for record in named(records, heart):
        beat, _, last = beat_of(record)
        level = beat[:, last + 10 : last + 20].mean(axis=1)  # 20 to 40 ms after the J point
        for lead, least in up.items():
            assert level[STANDARD_LEADS.index(lead)] > least
        for lead, most in down.items():
            assert level[STANDARD_LEADS.index(lead)] < most


def test_st_is_level_in_sinus_rhythm(records):
    for record in named(records, "sinus rhythm"):
        beat, _, last = beat_of(record)
        assert np.abs(beat[:, last + 10 : last + 20].mean(axis=1)).max() < 150


def mean_beat(record):
    """Average of the 12 leads around the R peaks."""
    beats = xqrs_detect(record.signal[V5] / 1000, fs=record.rate, verbose=False)
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


def test_workers_do_not_matter(tmp_path):
    options = {"patients": 35, "records": 2, "seconds": 2.0, "seed": 3, "progress": False}
    for workers in (1, 3):
        write_synthetic(tmp_path / f"records{workers}", workers=workers, **options)
        assert synthetic_store(tmp_path / f"store{workers}", workers=workers, **options) == 70
    for kind in ("records", "store"):
        one, three = tmp_path / f"{kind}1", tmp_path / f"{kind}3"
        names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        assert names == sorted(path.relative_to(three) for path in three.rglob("*") if path.is_file())
        for name in names:
            assert (one / name).read_bytes() == (three / name).read_bytes(), name


def test_a_store_at_once_is_the_imported_one(tmp_path):
    options = {"patients": 3, "records": 2, "seconds": 4.0, "seed": 9, "progress": False}
    write_synthetic(tmp_path / "records", **options)
    prepare(tmp_path / "records", tmp_path / "imported", progress=False)
    assert synthetic_store(tmp_path / "store", **options) == 6
    assert synthetic_store(tmp_path / "store", **options) == 0
    made, imported = Store(tmp_path / "store"), Store(tmp_path / "imported")
    assert made.index.equals(imported.index)
    made.verify()
    with pytest.raises(EcgfastError, match=r"provenance\.seed 9, asked for is 10"):
        synthetic_store(tmp_path / "store", **options | {"seed": 10})


def test_an_interrupted_store_is_taken_up(tmp_path, monkeypatch):
    options = {"patients": 20, "records": 2, "seconds": 2.0, "seed": 9, "progress": False}
    synthetic_store(tmp_path / "whole", **options)
    add, n_added = StoreWriter.add, []

    def interrupted(self, recording):
        if len(n_added) == 21:
            raise KeyboardInterrupt
        n_added.append(recording.record_id)
        add(self, recording)

    monkeypatch.setattr(StoreWriter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic_store(tmp_path / "store", **options)
    monkeypatch.setattr(StoreWriter, "add", lambda self, r: (n_added.append(r.record_id), add(self, r)))
    assert synthetic_store(tmp_path / "store", **options) == 40
    assert len(n_added) == len(set(n_added)) == 40
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "store" / file.name).read_bytes() == file.read_bytes()


def test_no_workers_are_refused(tmp_path):
    options = {"patients": 1, "records": 1, "seconds": 2.0, "seed": 0, "progress": False}
    for write in (write_synthetic, synthetic_store):
        with pytest.raises(EcgfastError, match="workers: got 0"):
            write(tmp_path / "out", workers=0, **options)
        assert not list(tmp_path.iterdir())


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
