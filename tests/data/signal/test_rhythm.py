"""Heart rates: known ones of made signals, those of real recordings, and none where there are none."""

import numpy as np
import pytest
from scipy.signal import lfilter

from ecgfast.data import heart_rate, prepare
from ecgfast.data.store.store import Store
from ecgfast.leads import STANDARD_LEADS


def beats(rate: float, bpm: float, seconds: float = 10.0, t_wave: float = 0.4, seed: int = 0) -> np.ndarray:
    """One lead in mV: P, QRS and T as bells, jittered by 2 % of the interval."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    interval = 60 / bpm
    at = np.arange(0.3 * interval, seconds, interval)
    at = at + rng.normal(scale=0.02 * interval / 3, size=len(at))
    x = np.zeros_like(t)
    stretch = min(1.0, np.sqrt(interval))
    for beat in at:
        for delay, width, height in (
            (-0.16 * stretch, 0.025, 0.12),
            (0, 0.011, 1.0),
            (0.03, 0.010, -0.25),
            (0.28 * stretch, 0.05 * stretch, t_wave),
        ):
            x += height * np.exp(-0.5 * ((t - beat - delay) / width) ** 2)
    return x


@pytest.mark.parametrize("bpm", [32, 45, 60, 72, 100, 140, 190, 220])
@pytest.mark.parametrize("rate", [100, 500])
@pytest.mark.parametrize("t_wave", [0.1, -0.3, 0.8])
def test_known_rates(bpm, rate, t_wave):
    rng = np.random.default_rng(bpm)
    one = beats(rate, bpm, t_wave=t_wave, seed=bpm) + 0.02 * rng.normal(size=10 * rate)
    wander = 3 * np.sin(2 * np.pi * 0.2 * np.arange(10 * rate) / rate)
    for signal in (one[None], np.stack([one, -0.3 * one, 0.1 * one, one + wander])):
        for scale in (1.0, 1000.0):  # the unit does not matter
            found = heart_rate(scale * signal, rate)
            if bpm == 220 and t_wave == 0.8 and found is None:
                continue  # hardly a rest between T and QRS: it may be unsure
            assert found == pytest.approx(bpm, rel=0.02)


def test_irregular_rhythms_have_their_mean_rate():
    rate, rng = 500, np.random.default_rng(5)
    intervals = rng.uniform(0.45, 1.1, 12)
    at = np.cumsum(intervals)
    t = np.arange(round((at[-1] + 0.5) * rate)) / rate
    x = sum(np.exp(-0.5 * ((t - beat) / 0.011) ** 2) for beat in at)
    assert heart_rate(x[None], rate) == pytest.approx(60 * 11 / (at[-1] - at[0]), rel=0.01)


def test_no_rate_without_beats():
    rng = np.random.default_rng(1)
    print("seed 1")
    t = np.arange(5000) / 500
    for leads in (1, 3, 12):
        white = rng.normal(size=(leads, 5000))
        for signal in (
            white,
            np.cumsum(white, axis=1),
            lfilter([1], [1, -0.95], white),
            np.sin(2 * np.pi * 50 * t) + 0.01 * white,
            np.sin(2 * np.pi * 1.2 * t) + 0.01 * white,
            np.zeros((leads, 5000)),
            np.full((leads, 5000), 300),
        ):
            assert heart_rate(signal, 500) is None
    assert heart_rate(beats(500, 72, seconds=1.5)[None], 500) is None
    assert heart_rate(beats(500, 40, seconds=3.0)[None], 500) is None  # two beats
    assert heart_rate(np.zeros((0, 5000)), 500) is None


# Of beats counted by eye on the page of each.
COUNTED = {
    "34": 59.9,  # a pacemaker's spikes before low complexes
    "110": 87.3,  # atrial fibrillation with a wide ventricular beat
    "116": 90.5,  # fast, with tall P and T waves
    "125": 56.0,  # two wide, low extrasystoles
    "127": 40.0,  # bradycardia, and an artefact at the end
    "17": 72.2,  # muscle noise
}


def test_real_recordings(shared, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for name in COUNTED:
        for suffix in ("hea", "dat"):
            source = shared(f"data/ludb/{name}.{suffix}")
            (folder / source.name).write_bytes(source.read_bytes())
    prepare(folder, tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    rates = {}
    for i, name in enumerate(store.index["record_id"].to_pylist()):
        present = [STANDARD_LEADS.index(lead) for lead in store.index["leads"][i].as_py()]
        rates[name] = heart_rate(store.signal(i)[present], store.rate)
    assert rates == {name: pytest.approx(bpm, rel=0.02) for name, bpm in COUNTED.items()}
