"""Headers as they are found, and damaged ones."""

import contextlib
import os
import tracemalloc
import warnings

import numpy as np
import pytest
import wfdb  # noqa: F401 (what falls back on it must not pay for loading it)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources.wfdb_records import read_recording
from ecgfast.data.store.recording import Recording
from ecgfast.data.wfdb.header import parse_header, read_header, signal_bytes
from tests.data.made import sines, write_record

EXAMPLES = int(os.environ.get("ECGFAST_FUZZ", "300"))
"""Mutated records per test: thousands where time allows."""


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("a.dat 16", ("a.dat", "16", 1, 0, None, 200.0, 0, "mV", 0, 0, "")),
        ("a.dat 16+24 1000/mV 16 5 -3 7 0 I", ("a.dat", "16", 1, 0, 24, 1000.0, 5, "mV", -3, 7, "I")),
        ("a.mat 212 2e3(-7)/uV 12 5 0 0 0 V1", ("a.mat", "212", 1, 0, None, 2000.0, -7, "uV", 0, 0, "V1")),
        ("a 16x2:3 0 I", ("a", "16", 2, 3, None, 200.0, 0, "mV", 0, 0, "I")),
        ("a.dat 16 1000/mV 16 0 0 0 II", ("a.dat", "16", 1, 0, None, 1000.0, 0, "mV", 0, 0, "II")),
    ],
)
def test_signal_lines(line, want):
    header = parse_header("r.hea", f"r 1 500 1000\n{line}\n")
    assert tuple(header.signals[0]) == want


def test_a_date_that_is_none_is_left_out_for_wfdb():
    header = parse_header("r.hea", "r.mat 1 500 1000 2020-05-12 99:99:99\na.dat 516 1000/µV 16 0 0 0 0 I\n")
    assert header.text == "r 1 500 1000\na.dat 516 1000/uV 16 0 0 0 0 I\n"
    assert header.repaired


def test_leads_without_a_block_size(tmp_path):
    write_record(tmp_path / "a")
    path = tmp_path / "a.hea"
    path.write_text(path.read_text().replace(" 0 0 ", " 0 "))
    assert len(read_recording(tmp_path, "a.hea", Preprocessing()).leads) == 12


@pytest.mark.parametrize(("form", "sizes"), [("212", "02356"), ("310", "02446"), ("311", "02346")])
def test_bytes_of_packed_samples(form, sizes):
    assert "".join(str(signal_bytes(form, n)) for n in range(5)) == sizes


def reason(folder, name):
    with pytest.raises(Rejected) as caught:
        read_recording(folder, name, Preprocessing())
    return str(caught.value)


def test_pipes_and_endless_files_are_not_read(tmp_path):
    write_record(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe.hea")
    (tmp_path / "zeros.hea").symlink_to("/dev/zero")
    assert reason(tmp_path, "pipe.hea") == "unreadable: pipe.hea is no file"
    assert reason(tmp_path, "zeros.hea") == "unreadable: zeros.hea is no file"
    (tmp_path / "a.dat").unlink()
    os.mkfifo(tmp_path / "a.dat")
    assert reason(tmp_path, "a.hea") == "unreadable: a.dat is no file"


def test_headers_of_a_size_that_none_has(tmp_path):
    with open(tmp_path / "a.hea", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(Rejected, match="is no WFDB header: it has 1099511627776 bytes"):
        read_header(tmp_path / "a.hea")


def test_late_by_more_than_there_is(tmp_path):
    write_record(tmp_path / "a")
    path = tmp_path / "a.hea"
    path.write_text(path.read_text().replace(" 16 ", " 16:999999999999 ", 1))
    assert reason(tmp_path, "a.hea") == "unreadable: a signal in a.dat is late by all its samples"


@pytest.mark.parametrize("part", ["part 2000000000000", "empty 2000000000000"])
def test_segments_longer_than_they_are(tmp_path, part):
    write_record(tmp_path / "part", sines(1000))
    (tmp_path / "empty.hea").write_text("empty 0 500 2000000000000\n")
    (tmp_path / "whole.hea").write_text(f"whole/2 12 500 2000000001000\npart 1000\n{part}\n")
    assert reason(tmp_path, "whole.hea").startswith("cut short: segment")


HEADER = """r.mat 3 500 1200 12-May-2020 12:33:59
r.dat 16 1000(5)/mV 16 0 7 15310 0 I
r.dat 16 1000/mv 16 0 0 0 0 II
s.dat 212+3 200/uV 12 0 0 0 0 V1
#Age: 80
#Sex: Male
#Dx: 164889003,59118001
"""
FLAC = "r 2 300 400\nf.dat 516x2 1000/mV 16 0 0 0 0 I\nf.dat 516x2 1000/mV 16 0 0 0 0 II\n"
SEGMENTS = "r/2 2 400 1000\np 500\nq 500\n"
PART = "p 2 400 500\np.dat 16 1000/mV 16 0 0 0 0 I\np.dat 16 1000/mV 16 0 0 0 0 II\n"
TOKENS = ["0", "-1", "1", "8", "16", "24", "32", "61", "80", "160", "212", "310", "311", "508", "516", "x2"]
TOKENS += ["x0", ":5", "+24", "99999999", "999999999999999", "1e308", "1e-308", "nan", "inf", "~", "..", "/"]
TOKENS += ["../r.dat", "r.dat", "s.dat", "r", "\x00", "\t", "\n", " ", "(", ")", "#", "µ", "\u0661", "\udcff"]


KINDS = {
    "ambiguous",
    "cut short",
    "flat",
    "invalid samples",
    "no standard lead",
    "out of range",
    "sample rate",
    "saturated",
    "too short",
    "unit",
    "unreadable",
    "unsafe path",
}


@st.composite
def mutations(draw, text):
    """A text with parts cut out, repeated, or replaced by what a header may hold elsewhere."""
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.one_of(st.sampled_from(TOKENS), st.text(max_size=4), st.just(text[start:stop] * 2)))
        text = text[:start] + piece + text[stop:]
    return text


@st.composite
def damaged(draw, content):
    """Bytes cut short, lengthened, or with some replaced."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.sampled_from([len(content)] * 4 + [0, 1, len(content) // 2]))])


def fill(folder, soundfile):
    """The signal files of the headers above."""
    random = np.random.default_rng(0)
    walk = np.cumsum(random.integers(-9, 10, (1200, 2)), axis=0).astype("<i2")
    files = {"r.dat": walk.tobytes(), "s.dat": random.bytes(1803), "p.dat": walk[:500].tobytes()}
    soundfile.write(folder / "f.dat", walk[:800], 500, format="FLAC", subtype="PCM_16")
    return files | {"f.dat": (folder / "f.dat").read_bytes(), "q.dat": walk[500:1000].tobytes()}


def compile_readers(folder):
    """Read each format at two rates: what numba compiles takes minutes while memory is counted."""
    random = np.random.default_rng(0)
    (folder / "w.dat").write_bytes(random.bytes(4000))
    for form in ("8", "16", "24", "32", "61", "80", "160", "212", "310", "311"):
        for rate in (400, 500):
            (folder / "w.hea").write_text(f"w 1 {rate} 900\nw.dat {form} 1000/mV 12 0 0 0 0 I\n")
            with contextlib.suppress(Rejected), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_recording(folder, "w.hea", Preprocessing())


@pytest.mark.parametrize("header", [HEADER, FLAC, SEGMENTS, PART], ids=["plain", "flac", "segments", "part"])
def test_damaged_records_are_rejected_and_nothing_else(tmp_path, header):
    files = fill(tmp_path, pytest.importorskip("soundfile"))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "r.hea").write_text(header)
    if header == SEGMENTS:
        for part in "pq":
            (tmp_path / f"{part}.hea").write_text(PART.replace("p", part))
    assert read_recording(tmp_path, "r.hea", Preprocessing()).leads
    compile_readers(tmp_path)
    reasons = set()

    @settings(
        max_examples=EXAMPLES, deadline=5000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(data=st.data())
    def check(data):
        mutated = data.draw(mutations(header)).encode("utf-8", "surrogateescape")
        (tmp_path / "r.hea").write_bytes(mutated)
        if header == SEGMENTS:
            for part in "pq":
                text = data.draw(mutations(PART.replace("p", part)))
                (tmp_path / f"{part}.hea").write_bytes(text.encode("utf-8", "surrogateescape"))
        name = data.draw(st.sampled_from(sorted(files)))
        (tmp_path / name).write_bytes(data.draw(damaged(files[name])))
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()  # what hypothesis keeps of earlier examples
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert isinstance(read_recording(tmp_path, "r.hea", Preprocessing()), Recording)
        except Rejected as rejected:
            reasons.add(str(rejected).partition(":")[0])
        finally:
            (tmp_path / name).write_bytes(files[name])
        assert tracemalloc.get_traced_memory()[1] - before < 2**25

    tracemalloc.start()
    try:
        check()
    finally:
        tracemalloc.stop()
    assert reasons <= KINDS
