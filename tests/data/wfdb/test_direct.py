"""The direct way from samples to a block against the way through floating-point arrays."""

import numpy as np
import pytest

from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources import wfdb_records as source
from ecgfast.data.wfdb import direct as wfdb_direct
from ecgfast.data.wfdb import signals as wfdb_signals
from ecgfast.data.wfdb.header import read_header
from ecgfast.leads import STANDARD_LEADS

PLAIN = Preprocessing()
FACTORS = {"mV": 1e3, "uV": 1.0}
BITS = {"80": 8, "212": 12, "310": 10, "311": 10, "16": 16}
DTYPES = {"8": np.int8, "80": np.uint8, "16": "<i2", "32": "<i4"}


def encoded(samples, form):
    """The samples [n] in a format of WFDB, n divisible by 6 where several share bytes."""
    if form in DTYPES:
        return (samples + 128 * (form == "80")).astype(DTYPES[form]).tobytes()
    if form == "24":
        return samples.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    if form == "212":
        a, b = (samples & 0xFFF).reshape(-1, 2).T
        return np.stack([a & 0xFF, a >> 8 | b >> 8 << 4, b & 0xFF], 1).astype(np.uint8).tobytes()
    a, b, c = (samples & 0x3FF).reshape(-1, 3).T
    if form == "310":
        return np.stack([a << 1 | (c & 0x1F) << 11, b << 1 | c >> 5 << 11], 1).astype("<u2").tobytes()
    return (a | b << 10 | c << 20).astype("<u4").tobytes()


def write(folder, samples, rate=500, form="16", gains=("1000",), names=STANDARD_LEADS):
    """One record of samples [n, leads], n * leads divisible by 6."""
    (folder / "r.dat").write_bytes(encoded(samples.ravel(), form))
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
@pytest.mark.parametrize(
    "gains",
    [("1000",), ("-730.5(12)/mV", "4.88(-700)/uV", "200/mV"), ("1(900)/uV", "-500/mV", "250(-7)/mV")],
)
def test_same_block(tmp_path, monkeypatch, rate, gains):
    names = [*reversed(STANDARD_LEADS), "Vx"]
    header = write(tmp_path, noise(3 * rate + 1, 13), rate, gains=gains, names=names)
    block, present = direct(tmp_path, header)
    want, want_present = general(tmp_path, header, monkeypatch)
    assert present == want_present == list(range(12))
    np.testing.assert_array_equal(block, want)
    assert np.ptp(block, axis=1).min() > 100


@pytest.mark.parametrize(("gain", "step"), [("1000(0)", 1), ("200(-17)", 5), ("-250(9)", -4), ("0.25/uV", 4)])
def test_whole_microvolts_are_exact(tmp_path, gain, step):
    samples = noise(1000, 2)
    zero = int(gain.partition("(")[2].partition(")")[0] or 0)
    block, present = direct(tmp_path, write(tmp_path, samples, gains=(gain,), names=("I", "II")))
    assert present == [0, 1]
    np.testing.assert_array_equal(block[:2], (samples.T - zero) * step)


def test_eight_bits_constant_leads_and_derived_ones(tmp_path, monkeypatch):
    samples = noise(2000, 4, top=120)
    samples[:, 3] = 7
    header = write(tmp_path, samples, form="80", gains=("20/uV",), names=("II", "I", "V1", "V2"))
    how = Preprocessing(derive_leads=True)
    block, present = direct(tmp_path, header, how)
    want, want_present = general(tmp_path, header, monkeypatch, how)
    assert present == want_present == [0, 1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(block, want)


def test_gain_that_no_quotient_is_finite_for(tmp_path, monkeypatch):
    samples = noise(1000, 2)
    samples[:, 1] = 0
    header = write(tmp_path, samples, gains=("1000", "5e-324/mV"), names=("I", "II"))
    assert np.array_equal(wfdb_signals.read_signals(tmp_path, header, [1]), np.zeros((1, 1000)))
    block, present = direct(tmp_path, header)
    want, want_present = general(tmp_path, header, monkeypatch)
    assert present == want_present == [0]
    np.testing.assert_array_equal(block, want)


def spoilt(folder, form, at, value):
    """A record within -10 .. 10 mV, one lead at a value of the range's end; and its microvolts."""
    end = 2 ** (BITS[form] - 1)
    samples = noise(2000, top=end // 2)
    samples[at, 3] = value(end)
    header = write(folder, samples, form=form, gains=(f"{end / 10}/mV",))
    return header, samples / (end / 10) * 1000


@pytest.mark.parametrize("form", BITS)
def test_invalid_samples_are_left(tmp_path, monkeypatch, form):
    header, microvolts = spoilt(tmp_path, form, slice(700, 702), lambda end: -end)
    fill = Preprocessing(longest_gap=0.1)
    assert direct(tmp_path, header) is None
    assert direct(tmp_path, header, fill) is None
    with pytest.raises(Rejected, match="invalid samples: aVR has 2 of 2000"):
        general(tmp_path, header, monkeypatch)
    microvolts[700:702, 3] = np.interp([1, 2], [0, 3], microvolts[[699, 702], 3])
    block, present = source._decoded(tmp_path, header, fill)
    assert present == list(range(12))
    np.testing.assert_array_equal(block, general(tmp_path, header, monkeypatch, fill)[0])
    np.testing.assert_allclose(block, microvolts.T, atol=0.501)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("form", BITS)
def test_runs_at_the_ends_of_the_range_are_left(tmp_path, monkeypatch, form, side):
    header, _ = spoilt(tmp_path, form, slice(700, 710), lambda end: side * (end - 1))
    assert direct(tmp_path, header) is None
    for decoded in (source._decoded, lambda *args: general(*args[:2], monkeypatch, args[2])):
        with pytest.raises(Rejected, match=r"saturated: aVR is at -?\d+\.\d+ mV for 0\.020 s"):
            decoded(tmp_path, header, PLAIN)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (slice(700, 701), lambda end: 1 - end),  # alone: neither invalid nor a run
        (slice(700, 701), lambda end: end - 1),
        (slice(700, 710), lambda end: 2 - end),
        (slice(700, 710), lambda end: end - 2),
    ],
)
@pytest.mark.parametrize("form", BITS)
def test_next_to_invalid_and_saturated(tmp_path, monkeypatch, form, at, value):
    header, microvolts = spoilt(tmp_path, form, at, value)
    block, present = direct(tmp_path, header)
    want, want_present = general(tmp_path, header, monkeypatch)
    assert present == want_present == list(range(12))
    np.testing.assert_array_equal(block, want)
    np.testing.assert_allclose(block, microvolts.T, atol=0.501)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda samples: samples.__setitem__((700, 3), -32768), "invalid samples"),
        (lambda samples: samples.__setitem__((slice(100, 900), 3), 5000), "saturated"),
        (lambda samples: samples.__setitem__((slice(100, 140), 3), 32767), "saturated"),
        (lambda samples: samples.__setitem__((700, 3), 32767), "out of range"),
        (lambda samples: samples.__setitem__((slice(None), 3), 32700), "out of range"),
        (lambda samples: samples.fill(3), "flat"),
    ],
)
@pytest.mark.parametrize("gain", ["999(-80)/mV", "1000(-80)/mV", "-1000(-80)/mV"])
def test_what_is_to_be_rejected_is_left(tmp_path, monkeypatch, spoil, reason, gain):
    samples = noise(2000)
    spoil(samples)
    header = write(tmp_path, samples, gains=("1000/mV", gain))
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


@pytest.fixture
def unread(monkeypatch):
    """Fails a test that reads samples."""
    monkeypatch.setattr(wfdb_signals, "samples_of", lambda *args: pytest.fail("samples were read"))


@pytest.mark.parametrize("form", ["8", "24", "32"])
def test_wide_samples_are_left_unread(tmp_path, unread, form):
    header = write(tmp_path, noise(2000, top=100), form=form)
    assert wfdb_signals.can_decode(header)
    assert direct(tmp_path, header) is None


@pytest.mark.parametrize("rate", [49, 100_001])
def test_rates_out_of_range_are_left_unread(tmp_path, unread, rate):
    header = write(tmp_path, noise(120_000, 1), rate, names=("I",))
    assert wfdb_signals.can_decode(header)
    assert direct(tmp_path, header) is None


def test_several_files_are_left_unread(tmp_path, unread):
    write(tmp_path, noise(2000))
    (tmp_path / "other.dat").write_bytes((tmp_path / "r.dat").read_bytes())
    text = (tmp_path / "r.hea").read_text().replace("\nr.dat", "\nother.dat", 1)
    (tmp_path / "r.hea").write_text(text)
    header = read_header(tmp_path / "r.hea")
    assert wfdb_signals.can_decode(header)
    assert {signal.file for signal in header.signals} == {"r.dat", "other.dat"}
    assert direct(tmp_path, header) is None
