"""Amplitudes: real ones pass, those of another unit or gain are told with the unit that they may be in."""

import re

import numpy as np
import pytest

from ecgfast.data import Store, prepare, summarize, synthesize, write_store
from ecgfast.data.signal.plausibility import amplitude, find_unit, lead_amplitudes, scale_advice
from ecgfast.errors import EcgfastError
from tests.data.made import sines, write_csv, write_record

ALL = list(range(12))


def heart():
    """Microvolts of a synthetic heart, int16 [12, 5000]."""
    return next(iter(synthesize(1, 1, 10, 0))).signal


@pytest.mark.parametrize("name", ["ludb", "cinc", "cinc_lead_subsets", "ecgid", "wfdb_formats"])
def test_no_real_record_is_implausible(shared, imported, name):
    store = imported(shared(f"data/{name}"))
    assert "amplitude" not in store.description["warnings"]
    assert 0.7 < store.description["amplitude_mv"] < 1.5
    assert summarize(store).n_implausible == 0


def test_the_amplitude_of_a_heart():
    signal = heart()
    windows = [np.ptp(signal[:, i * 750 : (i + 1) * 750].astype(int), axis=1) for i in range(6)]
    np.testing.assert_array_equal(lead_amplitudes(signal), np.sort(windows, axis=0)[3])
    assert amplitude(signal, [3]) == lead_amplitudes(signal)[3] / 1000


def test_spikes_wander_and_dead_leads_do_not_count():
    signal = heart()
    clean = amplitude(signal, ALL)
    spiked = signal.copy()
    spiked[:, [100, 2500]] = 30_000
    assert amplitude(spiked, ALL) == pytest.approx(clean, rel=0.3)
    wandering = signal + np.rint(5000 * np.sin(np.arange(5000) / 5000 * np.pi)).astype(np.int16)
    assert scale_advice(amplitude(wandering, ALL), "mV") is None
    dead = signal.copy()
    dead[:5] //= 5000
    assert scale_advice(amplitude(dead, ALL), "mV") is None
    assert amplitude(signal[:, :500], ALL) > 0


@pytest.mark.parametrize(
    ("millivolts", "unit", "want"),
    [
        (1.0, "mV", None),
        (0.05, "mV", None),
        (20.0, "mV", None),
        (0.0012, "mV", "0.0012 mV: volts? pass unit='V'"),
        (1200.0, "mV", "1200 mV: microvolts? pass unit='uV'"),
        (0.0011, "uV", "0.0011 mV: millivolts? pass unit='mV'"),
        (1100.0, "V", "1100 mV: millivolts? pass unit='mV'"),
        (1e6, "mV", "1000000 mV: nanovolts? pass unit='nV'"),
        (0.01, "mV", "0.01 mV, usual is about 1 mV: counts of a converter? pass its gain"),
        (0.0005, None, "0.0005 mV, usual is about 1 mV: is the gain or the unit in its header right?"),
    ],
)
def test_advice(millivolts, unit, want):
    advice = scale_advice(millivolts, unit)
    assert advice == want if want is None else want in advice


@pytest.mark.parametrize(
    ("text", "unit"), [("mV", "mV"), ("MV", "mV"), ("µv", "uV"), ("\u03bcV", "uV"), ("x", None)]
)
def test_units(text, unit):
    assert find_unit(text) == unit


def test_volts_for_millivolts_are_taken_with_a_warning(tmp_path):
    signal = heart().astype(float)  # microvolts
    records = [{"signal": signal * 1e-3, "rate": 500}] + [{"signal": signal * 2e-6, "rate": 500}] * 2
    report = write_store(records, tmp_path / "store")
    assert (report.n_imported, report.warnings) == (3, {"amplitude": 2})
    advice = r"median peak-to-peak amplitude 0\.00\d+ mV: volts\? pass unit='V' \(--unit V\)"
    assert re.search(rf"\n  warning: amplitude: {advice} \(2 records, such as 1\)$", str(report))
    assert (tmp_path / "store/warnings.csv").read_text().count("volts? pass unit='V'") == 2
    summary = summarize(Store(tmp_path / "store"))
    assert (summary.n_looked_at, summary.n_implausible, summary.warnings) == (3, 2, {"amplitude": 2})
    assert "warnings     amplitude 2 (warnings.csv)" in str(summary)
    assert "2 of 3 recordings looked at are outside 0.05 to 20 mV" in str(summary)
    assert (
        sorted(summary.levels.values())[6] < 10 < min(summarize_one(tmp_path, signal * 1e-3).levels.values())
    )


def summarize_one(folder, signal):
    write_store([{"signal": signal, "rate": 500}], folder / "one")
    return summarize(Store(folder / "one"))


def test_amplitudes_and_levels_by_lead(tmp_path):
    signal = sines()
    signal[2] = signal[2] // 20 * 20
    signal[5] *= 3
    summary = summarize_one(tmp_path, signal)
    assert list(summary.amplitude)[:3] == ["I", "II", "III"]
    assert summary.amplitude["I"] == pytest.approx(0.8, abs=0.01)
    assert summary.amplitude["aVF"] == pytest.approx(2.4, abs=0.02)
    assert summary.levels["III"] == len(np.unique(signal[2])) < 50
    assert "amplitude    I 0.8, II 0.8, III 0.8" in str(summary)


@pytest.mark.parametrize(
    ("factor", "reason"),
    [
        (
            2e-7,
            "flat: no lead varies by a microvolt; median peak-to-peak amplitude .*: volts[?] pass unit='V'",
        ),
        (3.0, "out of range: .*; median peak-to-peak amplitude .*: microvolts[?] pass unit='uV'"),
    ],
)
def test_refusals_for_a_wrong_scale_say_so(tmp_path, factor, reason):
    with pytest.raises(EcgfastError, match=reason):
        write_store([{"signal": heart() * factor, "rate": 500}], tmp_path / "store")
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", heart() * factor)
    with pytest.raises(EcgfastError, match=reason):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)


@pytest.mark.parametrize(("factor", "taken"), [(1, False), (30, True)])
def test_an_absurd_gain_in_a_header(tmp_path, factor, taken):
    write_record(tmp_path / "in/good", heart())
    write_record(tmp_path / "in/bad", heart() // 40 * factor, gain="2000000/mV")
    report = prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert report.n_imported == 1 + taken
    told = "is the gain or the unit in its header right? (record bad.hea)"
    assert sum(told in line for line in report.examples) == 1


def test_the_unit_of_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/a.npy", heart() * 1e-6)
    np.save(tmp_path / "in/b.npy", heart() * 1e-3)
    table = [{"file": "a.npy", "unit": "V", "gain": ""}, {"file": "b.npy", "unit": "nan", "gain": "1"}]
    write_csv(tmp_path / "in/records.csv", table)
    prepare(tmp_path / "in", tmp_path / "table", progress=False)
    (tmp_path / "in/records.csv").unlink()
    (tmp_path / "in/b.npy").unlink()
    prepare(tmp_path / "in", tmp_path / "option", progress=False, unit="v")
    for name in ("table", "option"):
        np.testing.assert_array_equal(Store(tmp_path / name).signal(0), heart())
    assert Store(tmp_path / "option").description["provenance"]["unit"] == "V"
    with pytest.raises(EcgfastError, match=r"was made with provenance\.unit 'V', asked for is 'uV'"):
        prepare(tmp_path / "in", tmp_path / "option", progress=False, unit="uV")
    with pytest.raises(EcgfastError, match="unit: must be one of V, mV, uV, nV, got 'volts'"):
        prepare(tmp_path / "in", tmp_path / "other", progress=False, unit="volts")
    write_record(tmp_path / "wfdb/a")
    with pytest.raises(EcgfastError, match="unit: must be left out for format wfdb"):
        prepare(tmp_path / "wfdb", tmp_path / "other", progress=False, unit="V")


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (0.15, True), (6.0, True)])
def test_many_recordings_together_tell_more_than_one(tmp_path, factor, told):
    """Counts at 200 per mV that were taken for microvolts pass one by one."""
    records = [{"signal": np.rint(heart() * factor).astype(np.int16), "rate": 500}] * 10
    records[0] = {"signal": heart(), "rate": 500}
    report = write_store([record | {"record_id": i} for i, record in enumerate(records)], tmp_path / "store")
    assert report.warnings == {}
    summary = str(summarize(Store(tmp_path / "store")))
    for text in (str(report), summary):
        assert ("usual is about 1 mV: is the unit or the gain right" in text) == told
