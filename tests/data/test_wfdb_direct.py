"""The direct way from samples to a block against the way through floating-point arrays."""

import numpy as np
import pytest

from ecgfast.data import wfdb_direct, wfdb_signals
from ecgfast.data import wfdb_source as source
from ecgfast.data.preprocess import Preprocessing, Rejected
from ecgfast.data.wfdb_header import read_header
from ecgfast.leads import STANDARD_LEADS

PLAIN = Preprocessing()
FACTORS = {"mV": 1e3, "uV": 1.0}


def write(folder, samples, rate=500, form="16", gains=("1000",), names=STANDARD_LEADS):
    """One record of int16 samples [n, leads], in format 16 or 80."""
    content = samples.astype("<i2") if form == "16" else (samples + 128).astype(np.uint8)
    (folder / "r.dat").write_bytes(content.tobytes())
    lines = [f"r {samples.shape[1]} {rate} {len(samples)}"]
    for i, name in zip(range(samples.shape[1]), names, strict=True):
        lines.append(f"r.dat {form} {gains[i % len(gains)]} 16 0 0 0 0 {name}")
    (folder / "r.hea").write_text("\n".join(lines) + "\n")
    return read_header(folder / "r.hea")


def direct(folder, header, how=PLAIN):
    channels = source._channels([signal.name for signal in header.signals])
    factors = [FACTORS[header.signals[i].unit] for i in channels.values()]
    return wfdb_direct.direct_block(folder, header, channels, factors, how)


def general(folder, header, monkeypatch, how=PLAIN):
    with monkeypatch.context() as patch:
        patch.setattr(source, "direct_block", lambda *args: None)
        return source._decoded(folder, header, how)


def noise(n, leads=12, top=2000, seed=0):
    return np.random.default_rng(seed).integers(-top, top, (n, leads))


@pytest.mark.parametrize("rate", [500, 1000, 2000, 257, 400, 100])
@pytest.mark.parametrize("gains", [("1000",), ("-730.5(12)/mV", "4.88(-700)/uV", "200/mV")])
def test_same_block(tmp_path, monkeypatch, rate, gains):
    names = [*reversed(STANDARD_LEADS), "Vx"]
    header = write(tmp_path, noise(3 * rate + 1, 13), rate, gains=gains, names=names)
    block, present = direct(tmp_path, header)
    want, want_present = general(tmp_path, header, monkeypatch)
    assert present == want_present == list(range(12))
    np.testing.assert_array_equal(block, want)
    assert np.ptp(block, axis=1).min() > 100


def test_eight_bits_constant_leads_and_derived_ones(tmp_path, monkeypatch):
    samples = noise(2000, 4, top=120)
    samples[:, 3] = 7
    header = write(tmp_path, samples, form="80", gains=("20/uV",), names=("II", "I", "V1", "V2"))
    how = Preprocessing(derive_leads=True)
    block, present = direct(tmp_path, header, how)
    want, want_present = general(tmp_path, header, monkeypatch, how)
    assert present == want_present == [0, 1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(block, want)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda samples: samples.__setitem__((700, 3), -32768), "invalid samples"),
        (lambda samples: samples.__setitem__((slice(100, 900), 3), 5000), "saturated"),
        (lambda samples: samples.__setitem__((slice(100, 140), 3), 32767), "saturated"),
        (lambda samples: samples.__setitem__((700, 3), 32767), "out of range"),
        (lambda samples: samples.fill(3), "flat"),
    ],
)
def test_what_is_to_be_rejected_is_left(tmp_path, monkeypatch, spoil, reason):
    samples = noise(2000)
    spoil(samples)
    header = write(tmp_path, samples, gains=("1000/mV", "999/mV"))
    assert direct(tmp_path, header) is None
    with pytest.raises(Rejected, match=reason):
        general(tmp_path, header, monkeypatch)


def test_what_is_unusual_is_left(tmp_path):
    header = write(tmp_path, noise(2000))
    for how in (Preprocessing(notch=50), Preprocessing(bandpass=(0, 40)), Preprocessing(baseline=True)):
        assert direct(tmp_path, header, how) is None
    assert direct(tmp_path, write(tmp_path, noise(499))) is None
    text = (tmp_path / "r.hea").read_text().replace(".dat 16 ", ".dat 16:3 ", 1)
    (tmp_path / "r.hea").write_text(text)
    late = read_header(tmp_path / "r.hea")
    assert wfdb_signals.can_decode(late)
    assert direct(tmp_path, late) is None
