"""Signal files that are not what their headers say."""

import struct

import numpy as np
import pytest
import wfdb

from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources.wfdb_records import read_recording
from ecgfast.data.wfdb.files import most_bytes
from ecgfast.data.wfdb.header import check_files, parse_header, read_header, signal_bytes
from ecgfast.leads import STANDARD_LEADS
from tests.data.made import write_record


def noise(n=2000, leads=12, top=500, seed=0):
    return np.random.default_rng(seed).integers(-top, top, (leads, n)).astype(np.int16)


def write_matrix(folder, signal, n_told=None, lines=None, kind=30, dtype="<i2", offset=24, form="16"):
    """A MATLAB 4 file of signal [rows, columns], and a header of `lines` signals."""
    order = ">" if kind >= 1000 else "<"
    start = struct.pack(f"{order}5i", kind, *signal.shape, 0, 4) + b"val\0"
    (folder / "m.mat").write_bytes(start + signal.T.astype(dtype).tobytes())
    n = signal.shape[1] if n_told is None else n_told
    names = STANDARD_LEADS[: len(signal) if lines is None else lines]
    at = f"+{offset}" if offset else ""
    told = [f"m.mat {form}{at} 1000/mV 16 0 0 0 0 {name}" for name in names]
    (folder / "m.hea").write_text("\n".join([f"m {len(names)} 500 {n or ''}", *told]) + "\n")


def reason(folder, name="m.hea"):
    with pytest.raises(Rejected) as caught:
        read_recording(folder, name, Preprocessing())
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "dtype", "form"), [(30, "<i2", "16"), (1030, ">i2", "61"), (20, "<i4", "32"), (50, "u1", "80")]
)
@pytest.mark.parametrize("told", [True, False])
def test_a_matrix_as_its_header_says(tmp_path, kind, dtype, form, told):
    signal = noise(top=100)
    written = signal + 128 if form == "80" else signal
    write_matrix(tmp_path, written, kind=kind, dtype=dtype, form=form, n_told=None if told else 0)
    assert np.array_equal(read_recording(tmp_path, "m.hea", Preprocessing()).signal, signal)


@pytest.mark.parametrize(
    ("signal", "options", "told"),
    [
        (noise(), {"lines": 2}, "12 rows of 2000 samples, its header tells of 2 signals of 2000 samples"),
        (noise(), {"lines": 2, "n_told": 12000}, "12 rows of 2000 samples, its header tells of 2 signals"),
        (noise(), {"lines": 2, "n_told": 0}, "12 rows of 2000 samples"),
        (noise(leads=2), {"lines": 4, "n_told": 1000}, "2 rows of 2000 samples"),
        (noise().T, {"lines": 12, "n_told": 2000}, "2000 rows of 12 samples"),
        (noise(), {"n_told": 1999}, "12 rows of 2000 samples"),
        (noise(), {"n_told": 2001}, "12 rows of 2000 samples"),
        (noise(), {"kind": 20, "dtype": "<i4"}, "a matrix of type 20, its header says format 16"),
        (noise(), {"kind": 1030, "dtype": ">i2"}, "a matrix of type 1030"),
        (noise(), {"kind": 0, "dtype": "<f8"}, "no MATLAB 4 file of samples"),
        (noise(), {"offset": 0}, "samples begin at byte 24, its header says 0"),
        (noise(), {"offset": 20}, "samples begin at byte 24, its header says 20"),
    ],
)
def test_matrices_of_another_shape(tmp_path, signal, options, told):
    write_matrix(tmp_path, signal, **options)
    assert told in reason(tmp_path)


def test_newer_matlab_files(tmp_path):
    write_matrix(tmp_path, noise())
    content = (tmp_path / "m.mat").read_bytes()
    for start in (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", b"\x89HDF\r\n\x1a\n"):
        (tmp_path / "m.mat").write_bytes(start.ljust(24) + content[24:])
        assert reason(tmp_path) == "unreadable: m.mat is a MATLAB file of version 5 or later, want version 4"


def test_samples_in_a_file_that_is_called_mat(tmp_path):
    signal = noise(leads=2)
    signal[:, :1] = [[30], [0]]  # the beginning of a matrix of the right type
    signal.T.astype("<i2").tofile(tmp_path / "m.mat")
    lines = [f"m.mat 16 1000/mV 16 0 0 0 0 {lead}" for lead in ("I", "II")]
    (tmp_path / "m.hea").write_text("\n".join(["m 2 500 2000", *lines]))
    assert np.array_equal(read_recording(tmp_path, "m.hea", Preprocessing()).signal[:2], signal)


FORMATS = ["8", "16", "24", "32", "61", "80", "160", "212", "310", "311"]


@pytest.mark.parametrize("offset", [0, 7])
@pytest.mark.parametrize("n", [1001, 1002, 1003])
@pytest.mark.parametrize("form", FORMATS)
def test_length_of_files(tmp_path, form, n, offset):
    """Neither shorter nor longer, but for what writers fill up groups of samples and words with."""
    header = parse_header("r.hea", f"r 1 500 {n}\nr.dat {form}+{offset} 200/mV 12 0 0 0 0 I\n")
    least, most = (offset + count(form, n) for count in (signal_bytes, most_bytes))
    assert 0 <= most - least <= {"212": 2, "310": 2, "311": 3}.get(form, 1)
    for size in range(least - 4, most + 5):
        (tmp_path / "r.dat").write_bytes(bytes(size))
        if least <= size <= most:
            assert check_files(tmp_path, header) == {"r.dat"}
        else:
            kind = "cut short: " if size < least else "unreadable: r.dat is too long: "
            with pytest.raises(Rejected, match=kind):
                check_files(tmp_path, header)


@pytest.mark.parametrize("n", [499, 500, 501])
@pytest.mark.parametrize("form", ["16", "24", "32", "80", "212", "516", "508", "524"])
def test_what_wfdb_writes_is_taken_and_no_frame_more_or_less(tmp_path, form, n):
    digital = noise(n, 3, top=100).astype(np.int64).T
    names = ["I", "II", "V1"]
    gains = {"adc_gain": [1000.0] * 3, "baseline": [0] * 3}
    wfdb.wrsamp(
        "r", 500, ["mV"] * 3, names, d_signal=digital, fmt=[form] * 3, **gains, write_dir=str(tmp_path)
    )
    path = tmp_path / "r.hea"
    assert check_files(tmp_path, read_header(path)) == {"r.dat"}
    text = path.read_text()
    for other in (n - 1, n + 1):
        path.write_text(text.replace(f"r 3 500 {n}", f"r 3 500 {other}"))
        with pytest.raises(Rejected, match=r"cut short|too long"):
            check_files(tmp_path, read_header(path))
    path.write_text("\n".join([f"r 2 500 {n}", *text.splitlines()[1:3]]))
    with pytest.raises(Rejected, match=r"too long|3 channels"):
        check_files(tmp_path, read_header(path))


def test_without_a_number_of_samples(tmp_path):
    write_record(tmp_path / "r", noise())
    path = tmp_path / "r.hea"
    path.write_text(path.read_text().replace("r 12 500 2000", "r 12 500"))
    assert read_recording(tmp_path, "r.hea", Preprocessing()).signal.shape == (12, 2000)
    (tmp_path / "r.dat").write_bytes((tmp_path / "r.dat").read_bytes()[:-2])
    assert reason(tmp_path, "r.hea").startswith("unreadable: r.dat is too long")
    write_record(tmp_path / "s", noise(1500, 2), leads=["I", "II"])
    write_record(tmp_path / "t", noise(1501, 2), leads=["V1", "V2"])
    lines = [
        line
        for name in "st"
        for line in (tmp_path / f"{name}.hea").read_text().splitlines()
        if ".dat" in line
    ]
    (tmp_path / "u.hea").write_text("\n".join(["u 4 500", *lines]))
    assert reason(tmp_path, "u.hea").startswith("unreadable: the signal files differ in length")


@pytest.mark.parametrize("form", ["516", "16x2"])
def test_files_for_wfdb_without_a_number_of_samples(tmp_path, form):
    signal = write_checked(tmp_path, form.removesuffix("x2"))
    path = tmp_path / "r.hea"
    if form == "16x2":  # two samples of I in a frame of three
        lines = ["r 2 250", "r.dat 16x2 1000/mV 16 0 0 0 0 I", "r.dat 16 1000/mV 16 0 0 0 0 V1"]
        path.write_text("\n".join(lines))
        found = read_recording(tmp_path, "r.hea", Preprocessing()).signal[0]
        np.testing.assert_array_equal(found, signal[:, :2].ravel())
    else:
        path.write_text(path.read_text().replace("r 3 500 1000", "r 3 500"))
        found = read_recording(tmp_path, "r.hea", Preprocessing()).signal[[0, 1, 6]]
        np.testing.assert_array_equal(found, signal.T)


CHECKED = ["16", "24", "32", "80", "212", "516", "508", "524"]


def write_checked(folder, form, **wrong):
    """A record of wfdb, with the initial values and checksums that it tells; one of V1's wrong."""
    digital = noise(1000, 3, top=100).astype(np.int64).T
    gains = {"adc_gain": [1000.0] * 3, "baseline": [0] * 3}
    names = ["I", "II", "V1"]
    wfdb.wrsamp("r", 500, ["mV"] * 3, names, d_signal=digital, fmt=[form] * 3, **gains, write_dir=str(folder))
    path = folder / "r.hea"
    lines = path.read_text().splitlines()
    fields = lines[3].split()
    assert int(fields[5]) == digital[0, 2]
    assert (int(fields[6]) - digital[:, 2].sum()) % 2**16 == 0
    fields[5], fields[6] = wrong.get("initial", fields[5]), wrong.get("checksum", fields[6])
    lines[3] = " ".join(map(str, fields))
    path.write_text("\n".join(lines) + "\n")
    return digital


@pytest.mark.parametrize("form", CHECKED)
def test_initial_values_and_checksums(tmp_path, form):
    digital = write_checked(tmp_path, form)
    total = int(digital[:, 2].sum())
    assert np.array_equal(read_recording(tmp_path, "r.hea", Preprocessing()).signal[6], digital[:, 2])
    for same in (total, total % 2**16, total % 2**16 - 2**16, 0):  # signed, unsigned, not told
        write_checked(tmp_path, form, checksum=same)
        assert read_recording(tmp_path, "r.hea", Preprocessing()).leads == ["I", "II", "V1"]
    write_checked(tmp_path, form, initial=0)  # not told
    assert read_recording(tmp_path, "r.hea", Preprocessing()).leads == ["I", "II", "V1"]
    write_checked(tmp_path, form, checksum=(total + 1) % 2**16)
    told = reason(tmp_path, "r.hea")
    assert (
        told
        == f"unreadable: V1 has the checksum {shown(total, total + 1)}, its header says {(total + 1) % 2**16}"
    )
    write_checked(tmp_path, form, initial=digital[0, 2] + 1)
    first = digital[0, 2]
    assert reason(tmp_path, "r.hea") == f"unreadable: V1 begins with {first}, its header says {first + 1}"


def shown(total, told):
    """A checksum in the same range as another."""
    total %= 2**16
    return total if told % 2**16 >= 2**15 or total < 2**15 else total - 2**16


@pytest.mark.parametrize("form", CHECKED)
def test_one_changed_sample(tmp_path, form):
    write_checked(tmp_path, form)
    content = bytearray((tmp_path / "r.dat").read_bytes())
    content[len(content) // 2] ^= 0x04
    (tmp_path / "r.dat").write_bytes(content)
    assert reason(tmp_path, "r.hea").startswith("unreadable: ")


def test_checksums_in_segments(tmp_path):
    for part, seed in (("p", 1), ("q", 2)):
        write_record(tmp_path / part, noise(1000, 2, seed=seed), leads=["I", "II"])
    (tmp_path / "r.hea").write_text("r/2 2 500 2000\np 1000\nq 1000\n")
    assert read_recording(tmp_path, "r.hea", Preprocessing()).signal.shape == (12, 2000)
    path = tmp_path / "q.hea"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace(" 0 0 II", " 77 0 II")
    path.write_text("\n".join(lines))
    assert "II has the checksum" in reason(tmp_path, "r.hea")


def test_initial_values_of_invalid_samples_are_none(tmp_path):
    """WFDB's own library writes 0 there."""
    signal = noise(leads=2)
    signal[1, 0] = -32768
    total = int(signal[1].sum())
    signal[0].tofile(tmp_path / "unused")
    signal.T.astype("<i2").tofile(tmp_path / "r.dat")
    lines = ["r.dat 16 1000/mV 16 0 0 0 0 I", f"r.dat 16 1000/mV 16 0 5 {total} 0 II"]
    (tmp_path / "r.hea").write_text("\n".join(["r 2 500 2000", *lines]))
    assert reason(tmp_path, "r.hea") == "invalid samples: II has 1 of 2000"
    assert read_recording(tmp_path, "r.hea", Preprocessing(longest_gap=0.1)).leads == ["I", "II"]


def test_a_file_that_no_lead_is_in_may_be_missing(shared, tmp_path):
    source = shared("data/wfdb_formats")
    for suffix in ("hea", "dat"):
        (tmp_path / f"s0010_re.{suffix}").write_bytes((source / f"s0010_re.{suffix}").read_bytes())
    found = read_recording(tmp_path, "s0010_re.hea", Preprocessing())
    whole = read_recording(source, "s0010_re.hea", Preprocessing())
    assert np.array_equal(found.signal, whole.signal)
    assert found.leads == list(STANDARD_LEADS)
    assert found.unused == whole.unused == ("vx", "vy", "vz")
    assert whole.warnings == ()
    assert found.warnings == ("missing file: s0010_re.xyz, of vx, vy, vz",)
    (tmp_path / "s0010_re.dat").rename(tmp_path / "s0010_re.xyz")
    assert reason(tmp_path, "s0010_re.hea") == "unreadable: s0010_re.dat: No such file or directory"


@pytest.mark.parametrize("folders", ["ge_median_beats_wfdb/", "records500/00000/", "a.b/c-d/"])
@pytest.mark.parametrize("form", ["16", "516"])
def test_names_with_folders(tmp_path, folders, form):
    """As in PTB-XL+: what they name lies beside the header."""
    write_checked(tmp_path, form)
    path = tmp_path / "r.hea"
    path.write_text(path.read_text().replace("r.dat", f"{folders}r.dat").replace("r 3 ", f"{folders}r 3 "))
    assert read_recording(tmp_path, "r.hea", Preprocessing()).leads == ["I", "II", "V1"]


@pytest.mark.parametrize("folders", ["../", "/", "a/../", "a/.b/", "//"])
def test_folders_that_lead_elsewhere(tmp_path, folders):
    write_record(tmp_path / "r", noise())
    path = tmp_path / "r.hea"
    text = path.read_text()
    path.write_text(text.replace("\nr.dat", f"\n{folders}r.dat"))
    assert reason(tmp_path, "r.hea").startswith("unsafe path: the header names file")
    path.write_text(folders + text)
    assert reason(tmp_path, "r.hea") == "unreadable: r.hea is no WFDB header"
