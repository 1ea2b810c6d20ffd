"""The decoders against wfdb, bit for bit."""

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfast.data.wfdb.files import most_bytes
from ecgfast.data.wfdb.header import check_files, parse_header, read_header, signal_bytes
from ecgfast.data.wfdb.signals import can_decode, read_signals
from tests.data.made import sines, write_record

FORMATS = ["8", "16", "24", "32", "61", "80", "160", "212", "310", "311"]


def through_wfdb(folder, header, scratch):
    """Every signal in physical units; the header set right, since wfdb refuses some."""
    scratch.mkdir(exist_ok=True)
    (scratch / header.name).write_text(header.text)
    for name in check_files(folder, header):
        link = scratch / name
        link.unlink(missing_ok=True)
        link.symlink_to((folder / name).resolve())
    record = wfdb.rdrecord(str(scratch / header.name.removesuffix(".hea")), smooth_frames=False)
    return np.stack(record.e_p_signal), record


def assert_same_bits(got, want):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.nan_to_num(got).view(np.int64), np.nan_to_num(want).view(np.int64))


@pytest.mark.parametrize(
    ("source", "every", "count"),
    [("ludb", 10, 20), ("cinc", 1, 77), ("ecgid", 25, 7), ("cinc_lead_subsets", 1, 40)],
)
def test_real_records(shared, tmp_path, source, every, count):
    paths = sorted(shared(f"data/{source}").rglob("*.hea"))[::every]
    for path in paths:
        header = read_header(path)
        assert can_decode(header)
        want, record = through_wfdb(path.parent, header, tmp_path / "scratch")
        assert_same_bits(read_signals(path.parent, header, list(range(len(want)))), want)
        assert [signal.name for signal in header.signals] == record.sig_name
        assert [signal.unit for signal in header.signals] == record.units
        assert header.rate == record.fs
    assert len(paths) == count


def test_real_formats(shared, tmp_path):
    folder = shared("data/wfdb_formats")
    formats = set()
    for path in sorted(folder.glob("*.hea")):
        header = read_header(path)
        if path.stem in ("flacformats", "mixedsignals"):
            assert not can_decode(header)
            continue
        assert can_decode(header)
        formats.update(signal.format for signal in header.signals)
        want, _ = through_wfdb(folder, header, tmp_path / "scratch")
        assert_same_bits(read_signals(folder, header, list(range(len(want)))), want)
    assert formats == set(FORMATS)


GAINS = st.one_of(
    st.sampled_from(["", "0", "-0.0", "200.", "1.052e+04", "1e-3", "-1000"]),
    st.integers(1, 10**6).map(str),
    st.floats(1e-3, 1e6, allow_subnormal=False).map("{:.6f}".format),
)
UNITS = st.sampled_from(["", "/mV", "/uV", "/mv", "/V", "/NU"])
NUMBERS = st.integers(-(2**20), 2**20)


@st.composite
def signal_lines(draw, name, form, n, offset):
    """The lines of a file's signals."""
    lines = []
    skew = draw(st.integers(0, n if form != "8" else 0))  # wfdb fails on late differences,
    late = draw(st.sampled_from(["", f":{skew}"]))  # and on signals of a file not equally late
    for i in range(draw(st.integers(1, 4))):
        line = f"{name} {form}{draw(st.sampled_from(['', 'x1']))}{late}"
        line += f"+{offset}" if offset else ""
        if gain := draw(GAINS):
            baseline = draw(st.sampled_from(["", f"({draw(NUMBERS)})"]))
            line += f"{draw(st.sampled_from([' ', '  ', chr(9)]))}{gain}{baseline}{draw(UNITS)}"
            details = [12, *(draw(NUMBERS) for _ in range(3)), 0, f"lead {i}"]
            line += "".join(f" {detail}" for detail in details[: draw(st.integers(0, 6))])
        lines.append(line)
    return lines


@st.composite
def records(draw):
    """A header's text, and the bytes of its signal files."""
    n = draw(st.integers(1, 50))
    lines, files = [], {}
    for i in range(draw(st.integers(1, 3))):
        name, form = f"f{i}.dat", draw(st.sampled_from(FORMATS))
        offset = draw(st.sampled_from([0, 0, 1, 24]))
        part = draw(signal_lines(name, form, n, offset))
        n_bytes = st.integers(signal_bytes(form, n * len(part)), most_bytes(form, n * len(part)))
        size = draw(n_bytes)
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        common = np.array([0, 0, 0x80, 0x88, 0xFF, 0x7F, 0x10, 1], np.uint8)  # many an invalid sample
        raw = np.where(random.random(size) < 0.5, random.choice(common, size), random.integers(0, 256, size))
        if form == "311":
            raw[3::4] &= 0x3F  # wfdb takes one of the two bits that are not used for a sample's
        files[name] = bytes(offset) + raw.astype(np.uint8).tobytes()
        lines += part
    rate = draw(st.sampled_from(["500", "250.5", "360/360(10)", "1000.000000001"]))
    lines.insert(0, f"r{draw(st.sampled_from(['', '.mat']))} {len(lines)} {rate} {n} 10:00:00 01/02/2003")
    for comment in draw(st.lists(st.sampled_from(["#Age: 3", "", "# x"]), max_size=3)):
        lines.insert(draw(st.integers(0, len(lines))), comment)
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + "\n", files


@settings(max_examples=150, deadline=None, print_blob=True)
@given(record=records())
def test_made_records(tmp_path_factory, record):
    text, files = record
    folder = tmp_path_factory.mktemp("made")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    header = parse_header("r.hea", text)
    assert can_decode(header)
    want, found = through_wfdb(folder, header, folder / "scratch")
    assert_same_bits(read_signals(folder, header, list(range(len(want)))), want)
    chosen = list(range(len(want)))[::-2]
    assert_same_bits(read_signals(folder, header, chosen), want[chosen])
    assert header.rate == found.fs
    assert [signal.name for signal in header.signals] == [name or "" for name in found.sig_name]


def test_signals_of_two_files_in_turn(tmp_path):
    """wfdb fails on these."""
    signal = sines(1000, 4)
    for i in range(2):
        signal[i::2].T.astype("<i2").tofile(tmp_path / f"f{i}.dat")
    lines = [f"f{i % 2}.dat 16 1000/mV 16 0 0 0 0 {lead}" for i, lead in enumerate(("I", "II", "V1", "V2"))]
    header = parse_header("r.hea", "\n".join(["r 4 500 1000", *lines]))
    np.testing.assert_array_equal(read_signals(tmp_path, header, [3, 0, 1, 2]), signal[[3, 0, 1, 2]] / 1000)


@pytest.mark.parametrize(
    "lines",
    [
        ["a.dat 16x2 1000/mV 16 0 0 0 0 I"],
        ["a.dat 516 1000/mV 16 0 0 0 0 I"],
        ["a.dat 16 1000/mV 16 0 0 0 0 I", "a.dat 212 1000/mV 16 0 0 0 0 II"],
        ["a.dat 16+2 1000/mV 16 0 0 0 0 I", "a.dat 16+4 1000/mV 16 0 0 0 0 II"],
        ["a.dat 16 1e999/mV 16 0 0 0 0 I"],
        ["a.dat 8 1000/mV 16 0 99999999999 0 0 I"],
        ["a.dat 16 1000/m\u00e4 16 0 0 0 0 I"],
        ["a.dat 16 I"],
        ["~ 0 1000/mV 16 0 0 0 0 I"],
    ],
)
def test_left_to_wfdb(lines):
    assert not can_decode(parse_header("r.hea", "\n".join([f"r {len(lines)} 500 1000", *lines])))


@pytest.mark.parametrize("first", ["r 1", "r 1 500", "r 1 500 0", "r 1 5e2 1000"])
def test_length_and_rate_left_to_wfdb(first):
    assert not can_decode(parse_header("r.hea", f"{first}\na.dat 16 1000/mV 16 0 0 0 0 I\n"))


def test_wfdb_and_pandas_stay_unloaded(tmp_path, run_python):
    for form in ("16", "212"):
        write_record(tmp_path / f"in/r{form}", sines(1000))
        header = tmp_path / f"in/r{form}.hea"
        header.write_text(header.read_text().replace(".dat 16 ", f".dat {form} "))
    for workers in (1, 2):
        run_python(
            "import sys; from ecgfast.data import prepare\n"
            f"prepare({str(tmp_path / 'in')!r}, {str(tmp_path / f's{workers}')!r}, workers={workers})\n"
            "assert not {'wfdb', 'pandas'} & set(sys.modules)"
        )
