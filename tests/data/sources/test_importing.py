import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import wfdb
from scipy.signal import resample_poly

from ecgfast.data import Store, prepare
from ecgfast.data.store.writer import lock_folder
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, find_lead
from tests.data.made import sines, write_record


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def reasons(store):
    with (store.path / "rejected.csv").open() as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def row(store, record_id):
    rows = store.index.to_pylist()
    i = [r["record_id"] for r in rows].index(record_id)
    return rows[i], store.signal(i)


@pytest.mark.parametrize(("name", "count"), [("ludb", 200), ("cinc", 77)])
def test_real_records_as_wfdb_reads_them(shared, imported, name, count):
    source = shared(f"data/{name}")
    store = imported(source)
    store.verify()
    assert len(store) == count
    assert not reasons(store)
    constant = {"JS11438"}  # its chest leads are all zero
    for record_id, leads in zip(
        *store.index.select(["record_id", "leads"]).to_pydict().values(), strict=True
    ):
        assert leads == list(STANDARD_LEADS[: 6 if record_id in constant else 12])
    random.seed(0)
    for i in random.sample(range(count), 10):
        record_id = store.index["record_id"][i].as_py()
        if record_id.startswith("E"):  # wfdb refuses these headers
            continue
        record = wfdb.rdrecord(str(source / record_id))
        assert [find_lead(lead) for lead in record.sig_name] == list(range(12))
        np.testing.assert_array_equal(store.signal(i), np.rint(record.p_signal.T * 1000))


def test_header_that_names_a_mat_file(shared, imported):
    source = shared("data/cinc")
    store = imported(source)
    found, signal = row(store, "E00271")
    raw = np.fromfile(source / "E00271.mat", "<i2", offset=24).reshape(-1, 12).T
    np.testing.assert_array_equal(signal, raw)
    assert (found["age"], found["sex"], found["labels"]) == (83.0, "F", ["59118001"])
    found, _ = row(store, "A0689")
    assert (found["age"], found["sex"], found["labels"]) == (80.0, "M", ["164889003"])
    assert found["patient_id"] == "A0689"


def test_lead_subsets(shared, imported):
    store = imported(shared("data/cinc_lead_subsets"))
    assert len(store) == 40
    _, signal = row(store, "twelve/E07500")
    for folder, leads in {"four": "I II III V2", "two": "I II", "six": None}.items():
        found, part = row(store, f"{folder}/E07500")
        present = found["leads"]
        assert leads is None or present == leads.split()
        for i, lead in enumerate(STANDARD_LEADS):
            np.testing.assert_array_equal(part[i], signal[i] if lead in present else 0)


def test_other_formats(shared, imported):
    store = imported(shared("data/wfdb_formats"))
    found, signal = row(store, "s0010_re")  # 15 leads at 1000 Hz, two files
    assert found["leads"] == list(STANDARD_LEADS)
    assert (found["source_rate"], found["n_samples"]) == (1000.0, 19200)
    path = shared("data/wfdb_formats") / "s0010_re"
    microvolts = wfdb.rdrecord(str(path)).p_signal[:, 1] * 1000
    want = resample_poly(microvolts, 1, 2, padtype="line")
    np.testing.assert_allclose(signal[1], want, atol=0.51)
    kinds = {source: reason.partition(":")[0] for source, reason in reasons(store).items()}
    assert kinds["binformats.hea"] == "no standard lead"
    assert kinds["mixedsignals.hea"] == "invalid samples"
    assert row(store, "a103l")[0]["leads"] == ["II"]


def test_leads_by_name_in_any_order(tmp_path, imported):
    order = [7, 3, 11, 0, 5, 1, 9, 2, 4, 10, 6, 8]
    signal = sines()
    names = [STANDARD_LEADS[i] for i in order]
    write_record(tmp_path / "in/a", signal[order], leads=[n.lower() for n in names])
    write_record(tmp_path / "in/b", signal[order], leads=[n.upper() for n in names])
    store = imported(tmp_path / "in")
    for i in range(2):
        np.testing.assert_array_equal(store.signal(i), signal)


@pytest.mark.parametrize(
    ("gain", "factor"),
    [
        ("1000/mV", 1),
        ("1000/mv", 1),
        ("1000", 1),
        ("500(100)/mV", 2),
        ("1/uV", 1),
        ("1/µV", 1),
        ("1e6/V", 1),
        ("0", 5),
    ],
)
def test_units_and_gains(tmp_path, imported, gain, factor):
    write_record(tmp_path / "in/a", gain=gain)
    baseline = 100 if "(100)" in gain else 0
    store = imported(tmp_path / "in")
    np.testing.assert_array_equal(store.signal(0), (sines().astype(int) - baseline) * factor)


@pytest.mark.parametrize(
    ("comments", "want"),
    [
        (["Dx: 1, 22 ,333", "Sex: Female", "Age: 51"], (51.0, "F", ["1", "22", "333"])),
        (["<age>: 51", "<sex>: M", "<diagnoses>:"], (51.0, "M", [])),
        ([" <age>: 25  <sex>: M  <diagnoses>: (none)"], (25.0, "M", [])),
        (["Age: NaN", "Sex: Unknown", "Dx: "], (None, None, [])),
        (["Age: -1", "Stage: 4"], (None, None, [])),
        ([" Age: 56", " Sex: Female", " Labels: NORM, STTC", " Image: a.png"], (56.0, "F", ["NORM", "STTC"])),
        (["Age: 300", "Sex: Male", "Height: Unknown", "Dx: CD, HYP"], (90.0, "M", ["CD", "HYP"])),
        (["Dx: 1, 2", "Labels: 2, 3"], (None, None, ["1", "2", "3"])),
        ([" Age: 44", " Sex: Male", " Chagas label: True", " Source: CODE-15%"], (44.0, "M", ["Chagas"])),
        ([" Age: 44.0", " Chagas label: False", " Source: PTB-XL"], (44.0, None, [])),
        ([" Chagas label: 1", " Chagas probability: 0.8"], (None, None, ["Chagas"])),
        ([], (None, None, [])),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_comments(tmp_path, imported, comments, want, newline):
    write_record(tmp_path / "in/a", comments=comments, newline=newline)
    found, _ = row(imported(tmp_path / "in"), "a")
    assert (found["age"], found["sex"], found["labels"]) == want


def test_patient_of_a_comment(tmp_path, imported):
    for name, patient in {"a": "p1", "b": "p2", "c": "p1"}.items():
        write_record(tmp_path / "in" / name, comments=[f"Patient: {patient}"])
    write_record(tmp_path / "in/d")
    store = imported(tmp_path / "in")
    numbers = store.patient_numbers()
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 3


def test_resampled_from_any_rate(tmp_path, imported):
    rates = {"a": 250, "b": 257, "c": 1000, "d": 360.5}
    for name, rate in rates.items():
        write_record(tmp_path / "in" / name, sines(int(10 * rate), rate=rate), rate=rate)
    store = imported(tmp_path / "in")
    for i in range(4):
        got, want = store.signal(i), sines(5000)
        assert abs(got.shape[1] - 5000) <= 2
        assert np.abs(got[:, 50:4900].astype(int) - want[:, 50:4900]).max() <= 3


def make_bad_folder(folder):
    good = sines()
    write_record(folder / "good", good)
    write_record(folder / "flat", np.full((12, 5000), 7))
    write_record(folder / "hole", np.where(np.arange(5000) == 9, -32768, good))
    write_record(folder / "short", good[:, :499])
    write_record(folder / "huge", good, gain="1/mV")
    write_record(folder / "slow", good[:, :400], rate=10)
    write_record(folder / "unknown", good[:2], leads=["MLII", "V"])
    write_record(folder / "twice", good[:2], leads=["II", "ii"])
    write_record(folder / "pressure", good[:2], leads=["I", "II"], gain="100/mmHg")
    write_record(folder / "above", good, file_name="../good.dat")
    write_record(folder / "elsewhere", good, file_name="/etc/passwd")
    write_record(folder / "missing")
    (folder / "missing.dat").unlink()
    write_record(folder / "cut")
    os.truncate(folder / "cut.dat", 1000)
    (folder / "empty.hea").write_bytes(b"")
    (folder / "noise.hea").write_bytes(bytes(range(256)))
    (folder / "fewer.hea").write_text("fewer 2 500 5000\nfewer.dat 16 1000 16 0 0 0 0 I\n")
    (folder / "giant.hea").write_text("giant 1 500 99999999999\ngood.dat 516 1000 16 0 0 0 0 I\n")
    return {
        "flat": "flat",
        "hole": "invalid samples",
        "short": "too short",
        "huge": "out of range",
        "slow": "sample rate",
        "unknown": "no standard lead",
        "twice": "ambiguous",
        "pressure": "unit",
        "above": "unsafe path",
        "elsewhere": "unsafe path",
        "missing": "unreadable",
        "cut": "cut short",
        "empty": "unreadable",
        "noise": "unreadable",
        "fewer": "unreadable",
        "giant": "cut short",
    }


def test_bad_records_are_rejected_with_a_reason(tmp_path, imported):
    want = make_bad_folder(tmp_path / "in")
    store = imported(tmp_path / "in")
    found = {source: reason.partition(":")[0] for source, reason in reasons(store).items()}
    assert found == {f"{name}.hea": kind for name, kind in want.items()}
    assert store.index["record_id"].to_pylist() == ["good"]
    np.testing.assert_array_equal(store.signal(0), sines())


def test_ecg_id_is_taken(shared, imported):
    store = imported(shared("data/ecgid"))
    assert len(store) == 166
    # their files have lost 4096 or 8192 bytes at the beginning, which are all ones
    assert len(reasons(store)) == 9
    for name, reason in reasons(store).items():
        assert reason.startswith("unreadable: ECG I begins with -1, its header says "), name


def noisy(seed=0, n=5000):
    """Sines with noise, int16 [12, n]: no value is held for long."""
    return sines(n) + np.random.default_rng(seed).integers(-20, 21, (12, n)).astype(np.int16)


@pytest.mark.parametrize("lead", [0, 7])
@pytest.mark.parametrize("end", [np.minimum, np.maximum])
def test_clipped_leads_are_rejected(tmp_path, imported, lead, end):
    write_record(tmp_path / "in/good", noisy())
    signal = noisy()
    level = 40 if end is np.minimum else -40
    signal[lead] = end(signal[lead], level)
    write_record(tmp_path / "in/clipped", signal)
    once = noisy()
    once[lead, 1000:1300] = 20 * level
    write_record(tmp_path / "in/once", once)
    store = imported(tmp_path / "in")
    assert store.index["record_id"].to_pylist() == ["good"]
    found = reasons(store)
    assert found["clipped.hea"].startswith(f"saturated: {STANDARD_LEADS[lead]} is at {level / 1000:.3f} mV")
    assert found["once.hea"].endswith(f"{20 * level / 1000:.3f} mV for 0.600 s")


@pytest.mark.parametrize("rail", [32767, -32767])
@pytest.mark.parametrize(("n_held", "taken"), [(4, True), (5, False)])
def test_the_converters_range(tmp_path, imported, rail, n_held, taken):
    write_record(tmp_path / "in/good", noisy())
    signal = noisy()
    signal[3, 2000 : 2000 + n_held] = rail
    write_record(tmp_path / "in/peak", signal, gain="2000(-100)/mV")
    store = imported(tmp_path / "in")
    assert len(store) == 1 + taken
    if not taken:
        assert reasons(store)["peak.hea"].startswith("saturated: aVR is at ")


def test_one_wide_peak_is_no_saturation(tmp_path, imported):
    signal = noisy()
    signal[2, 700:900] = 600  # 0.4 s, 4 %
    signal[2, 3000] = 600
    write_record(tmp_path / "in/a", signal)
    np.testing.assert_array_equal(imported(tmp_path / "in").signal(0), signal)


def test_a_constant_lead_counts_as_absent(tmp_path, imported):
    signal = noisy()
    signal[4] = 77
    write_record(tmp_path / "in/a", signal)
    store = imported(tmp_path / "in")
    assert store.index["leads"].to_pylist() == [[x for x in STANDARD_LEADS if x != "aVL"]]
    assert not store.present_leads()[0, 4]
    signal[4] = 0
    np.testing.assert_array_equal(store.signal(0), signal)


@pytest.mark.parametrize("digits", [16, 400, 5000])
def test_numbers_of_too_many_digits(tmp_path, imported, digits):
    write_record(tmp_path / "in/good")
    n = "9" * digits
    signal = "good.dat {} 1000 16 0 0 0 0 I\n"
    headers = {
        "frames": f"x 1 500 {n}\n" + signal.format("212"),
        "signals": f"x {n} 500 5000\n" + signal.format("16"),
        "segments": f"x/{n} 1 500 5000\ngood 5000\n",
        "length": f"x/1 1 500 5000\nok {n}\n",
        "format": "x 1 500 5000\n" + signal.format(n),
        "per_frame": "x 1 500 5000\n" + signal.format(f"16x{n}"),
        "offset": "x 1 500 5000\n" + signal.format(f"16+{n}"),
        "rate": f"x 1 {n} 5000\n" + signal.format("16"),
        "gain": "x 1 500 5000\n" + signal.format("16").replace("1000", n),
        "no_file": "x 1 500 999999999999\n" + signal.format("0").replace("good.dat", "~"),
    }
    for name, header in headers.items():
        (tmp_path / f"in/{name}.hea").write_text(header)
    store = imported(tmp_path / "in")
    assert "good" in store.index["record_id"].to_pylist()
    kinds = {source: reason.partition(":")[0] for source, reason in reasons(store).items()}
    flat_or_unreadable = {"gain.hea": kinds.pop("gain.hea"), "rate.hea": kinds.pop("rate.hea")}
    assert set(flat_or_unreadable.values()) <= {"flat", "unreadable", "sample rate"}
    assert kinds == {f"{name}.hea": "unreadable" for name in headers if name not in ("gain", "rate")}


def test_absurd_rates(tmp_path, imported):
    write_record(tmp_path / "in/good")
    for rate in ("1e8", "200000", "1e300", "0", "-5"):
        write_record(tmp_path / f"in/rate{rate}", rate=rate)
    store = imported(tmp_path / "in")
    assert store.index["record_id"].to_pylist() == ["good"]
    assert {reason.partition(":")[0] for reason in reasons(store).values()} <= {"sample rate", "unreadable"}


def test_multi_segment_record_is_imported_once(tmp_path, imported):
    signal = sines(6000)
    write_record(tmp_path / "in/part1", signal[:, :2000])
    write_record(tmp_path / "in/part2", signal[:, 2000:])
    header = "whole/2 12 500 6000\npart1 2000\npart2 4000\n#Age: 9\n"
    (tmp_path / "in/whole.hea").write_text(header)
    (tmp_path / "in/gap.hea").write_text("gap/2 12 500 3000\npart1 2000\n~ 1000\n")
    (tmp_path / "in/out.hea").write_text("out/1 12 500 2000\n../in/part1 2000\n")
    store = imported(tmp_path / "in")
    assert store.index["record_id"].to_pylist() == ["whole"]
    np.testing.assert_array_equal(store.signal(0), signal)
    kinds = {source: reason.partition(":")[0] for source, reason in reasons(store).items()}
    assert kinds == {"gap.hea": "invalid samples", "out.hea": "unsafe path"}


def test_variable_layout(tmp_path, imported):
    signal = sines(3000)
    write_record(tmp_path / "in/s1", signal[[1, 6], :1000], leads=["II", "V1"])
    write_record(tmp_path / "in/s2", signal[[6, 1], 1000:], leads=["V1", "II"])
    layout = "layout 2 500 0\n~ 0 1000/mV 16 0 0 0 0 II\n~ 0 1000/mV 16 0 0 0 0 V1\n"
    (tmp_path / "in/layout.hea").write_text(layout)
    header = "whole.mat/3 2 500 3000\nlayout 0\ns1 1000\ns2 2000\n"  # repaired, in a scratch folder
    (tmp_path / "in/whole.hea").write_text(header)
    store = imported(tmp_path / "in")
    assert store.index["leads"].to_pylist() == [["II", "V1"]]
    np.testing.assert_array_equal(store.signal(0)[[1, 6]], signal[[1, 6]])


def test_bad_sources_leave_nothing(tmp_path):
    with pytest.raises(EcgfastError, match="no such folder"):
        prepare(tmp_path / "absent", tmp_path / "store", progress=False)
    (tmp_path / "in").mkdir()
    with pytest.raises(EcgfastError, match="no WFDB record"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)
    write_record(tmp_path / "in/a", np.zeros((12, 5000)))
    with pytest.raises(EcgfastError, match=r"none of the 1 records in .* can be taken: flat 1"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)
    with pytest.raises(EcgfastError, match="workers"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False, workers=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "store.rejected.csv"]


def test_existing_stores(tmp_path):
    write_record(tmp_path / "in/a")
    write_record(tmp_path / "other/a")
    store = tmp_path / "deep/store"
    assert "imported 1 recordings" in str(prepare(tmp_path / "in", store, progress=False))
    before = {p.name: p.stat().st_mtime_ns for p in store.iterdir()}
    again = prepare(tmp_path / "in", store, progress=False)
    assert again.nothing_to_do
    assert "nothing to do" in str(again)
    assert before == {p.name: p.stat().st_mtime_ns for p in store.iterdir()}
    with pytest.raises(EcgfastError, match=r"made with provenance\.source"):
        prepare(tmp_path / "other", store, progress=False)
    write_record(tmp_path / "in/b")
    with pytest.raises(EcgfastError, match=r"made with provenance\.n_records 1, asked for is 2"):
        prepare(tmp_path / "in", store, progress=False)
    with pytest.raises(EcgfastError, match="not empty and no store"):
        prepare(tmp_path / "in", tmp_path / "other", progress=False)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["store"]


def test_killed_between_renaming_and_tidying(tmp_path):
    write_record(tmp_path / "in/a")
    prepare(tmp_path / "in", tmp_path / "store", progress=False)
    before = files(tmp_path / "store")
    os.close(lock_folder(tmp_path / "store.partial"))
    (tmp_path / "store.partial/journal.jsonl").write_text("{}")
    assert prepare(tmp_path / "in", tmp_path / "store", progress=False).nothing_to_do
    assert files(tmp_path / "store") == before
    assert not (tmp_path / "store.partial").exists()


def test_full_disk_is_a_one_line_error(tmp_path, monkeypatch):
    write_record(tmp_path / "in/a")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EcgfastError, match=r"can't write .*store\.partial.*No space left"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_two_imports_at_once(tmp_path):
    write_record(tmp_path / "in/a")
    lock = lock_folder(tmp_path / "store.partial")
    try:
        with pytest.raises(EcgfastError, match="another import is writing"):
            prepare(tmp_path / "in", tmp_path / "store", progress=False)
    finally:
        os.close(lock)
    assert prepare(tmp_path / "in", tmp_path / "store", progress=False).n_imported == 1


def test_foreign_partial_folder_is_left_alone(tmp_path):
    write_record(tmp_path / "in/a")
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial/thesis.txt").write_text("years of work")
    with pytest.raises(EcgfastError, match="in the way"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert (tmp_path / "store.partial/thesis.txt").exists()


SLOW_IMPORT = """
import sys, time
from pathlib import Path
import ecgfast.data.sources.importing as importing
import ecgfast.data.sources.wfdb as wfdb
import ecgfast.data.store.writer as writer
writer.COMMIT_EVERY = 3
writer.StoreWriter.__init__.__kwdefaults__["shard_elements"] = 300_000
if len(sys.argv) > 3:
    read = wfdb.read_recording
    def slow(*args):
        time.sleep(float(sys.argv[3]))
        return read(*args)
    wfdb.read_recording = slow
importing.prepare(sys.argv[1], sys.argv[2], progress=False)
"""


def n_lines(journal):
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def start_import(source, store, *delay):
    command = [sys.executable, "-c", SLOW_IMPORT, source, store, *map(str, delay)]
    return subprocess.Popen(command)


def test_killed_import_resumes_to_the_same_bytes(tmp_path):
    make_bad_folder(tmp_path / "in")
    for i in range(25):
        write_record(tmp_path / f"in/r{i:02d}", sines(2000 + 100 * i))
    assert start_import(tmp_path / "in", tmp_path / "whole").wait() == 0
    assert len(Store(tmp_path / "whole").shards) > 2
    seed = time.time_ns()
    print("seed", seed)
    delays = random.Random(seed)
    store = tmp_path / "killed"
    journal = tmp_path / "killed.partial/journal.jsonl"
    done = 0
    for _ in range(3):
        run = start_import(tmp_path / "in", store, 0.05)
        while n_lines(journal) <= done:
            assert run.poll() is None
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 0.2))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert not store.exists()
        done = n_lines(journal)
    with journal.open("ab") as torn:
        torn.write(b'{"row": {"rec')
    assert start_import(tmp_path / "in", store).wait() == 0
    assert files(store) == files(tmp_path / "whole")
    assert not (tmp_path / "killed.partial").exists()


@pytest.mark.parametrize(
    "garbage",
    [b"\0\0\0\n", b"rubbish\n", b"[1]\n", b"{}\n", b'{"row": {}}\n', b'{"row": 3}\n', b'{"source": "a"}\n'],
)
@pytest.mark.parametrize("kept", [0, 2])
def test_damaged_journal_ends_at_the_first_bad_line(tmp_path, monkeypatch, garbage, kept):
    for i in range(4):
        write_record(tmp_path / f"in/r{i}", sines(1000 + 100 * i))
    prepare(tmp_path / "in", tmp_path / "whole", progress=False)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ecgfast.data.store.writer.StoreWriter.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "in", tmp_path / "store", progress=False)
    journal = tmp_path / "store.partial/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    journal.write_bytes(b"".join([*lines[:kept], garbage, *lines[kept:]]))
    prepare(tmp_path / "in", tmp_path / "store", progress=False)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


@pytest.mark.parametrize("store", [".", "..", "../cwd", "/", "empty/..", "link", "dangling"])
def test_folders_that_cannot_be_replaced(tmp_path, monkeypatch, store):
    write_record(tmp_path / "in/a")
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    if "/.." in store or "l" in store:
        (tmp_path / "empty").mkdir()
        (cwd / "link").symlink_to(tmp_path / "empty")
        (cwd / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EcgfastError, match=r"^store: [^\n]*want (a folder|one) to create"):
        prepare(tmp_path / "in", store, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_mount_points_are_refused(tmp_path, monkeypatch):
    write_record(tmp_path / "in/a")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(EcgfastError, match="is a mount point"):
        prepare(tmp_path / "in", tmp_path / "disk", progress=False)
    assert not (tmp_path / "disk.partial").exists()


def test_interrupted_import_with_other_settings_starts_afresh(tmp_path):
    write_record(tmp_path / "in/a", sines(3000))
    partial = tmp_path / "store.partial"
    os.close(lock_folder(partial))
    (partial / "settings.json").write_text(json.dumps({"format": "other"}))
    (partial / "store").mkdir()
    (partial / "store/signals-00000.npy").write_bytes(b"rubbish" * 1000)
    prepare(tmp_path / "in", tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    store.verify()
    np.testing.assert_array_equal(store.signal(0), sines(3000))


def test_workers_do_not_change_the_bytes(tmp_path):
    make_bad_folder(tmp_path / "in")
    for i in range(12):
        write_record(tmp_path / f"in/r{i:02d}", sines(1000 + i))
    prepare(tmp_path / "in", tmp_path / "one", progress=False)
    prepare(tmp_path / "in", tmp_path / "two", progress=False, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert not multiprocessing.active_children()


def test_mistakes_in_the_program_are_not_taken_for_bad_records(tmp_path, monkeypatch):
    write_record(tmp_path / "in/a")

    def broken(*args):
        raise KeyError("a slip")

    monkeypatch.setattr("ecgfast.data.sources.wfdb_records.direct_block", broken)
    with pytest.raises(KeyError, match="a slip"):
        prepare(tmp_path / "in", tmp_path / "store", progress=False)
