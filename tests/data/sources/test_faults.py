"""What happens to a store when the machine, the disk or somebody else interferes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ecgfast.cli import main
from ecgfast.data import Store, prepare, summarize
from ecgfast.data.store.writer import StoreWriter
from ecgfast.errors import EcgfastError
from tests.data.made import sines, write_record

# A process that has everything imported forks an import per line: where to, how many workers,
# seconds of delay per recording, seconds after which it is killed or None.
SERVER = """
import os, signal, sys, time
import ecgfast.data.sources.importing as importing
import ecgfast.data.store.writer as writer

writer.COMMIT_EVERY = 3
writer.StoreWriter.__init__.__kwdefaults__["shard_elements"] = 300_000
add = writer.StoreWriter.add

def slow_add(self, recording):
    time.sleep(delay)
    add(self, recording)

writer.StoreWriter.add = slow_add
if __name__ == "__main__":
    source = sys.argv[1]
    for line in sys.stdin:
        store, workers, delay, killed_after = line.split()
        delay = float(delay)
        pid = os.fork()
        if pid == 0:
            importing.prepare(source, store, workers=int(workers), progress=False)
            os._exit(0)
        if killed_after != "None":
            time.sleep(float(killed_after))
            os.kill(pid, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Imports:
    """Runs imports of one folder in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "in"
        (folder / "server.py").write_text(SERVER)
        command = [sys.executable, str(folder / "server.py"), str(self.source)]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, store, workers=1, delay=0.0, killed_after=None):
        print(store, workers, delay, killed_after, file=self.server.stdin, flush=True)

    def wait(self):
        """How the import ended: its exit code, or minus the signal."""
        return int(self.server.stdout.readline())

    def run(self, *args, **options):
        self.start(*args, **options)
        return self.wait()


@pytest.fixture(scope="module")
def imports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imports")
    for i in range(30):
        write_record(folder / f"in/r{i:02d}", sines(1000 + 100 * i))
    write_record(folder / "in/flat", np.zeros((12, 5000)))
    imports = Imports(folder)
    yield imports
    imports.server.stdin.close()
    imports.server.wait()
    imports.server.stdout.close()


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(("workers", "kills"), [(1, 15), (2, 2)])
def test_killed_at_random_moments(tmp_path, imports, workers, kills):
    whole, store, delay = tmp_path / "whole", tmp_path / "killed", 0.01
    begin = time.monotonic()
    assert imports.run(whole, workers, delay) == 0
    duration = time.monotonic() - begin
    assert len(Store(whole).shards) > 2
    seed = time.time_ns()
    print("seed", seed)
    moments = random.Random(seed)
    for _ in range(kills):
        killed_after = moments.uniform(0, 0.5 * duration)
        ended = imports.run(store, workers, delay, killed_after)
        assert ended in (0, -signal.SIGKILL)
        if store.exists():
            assert files(store) == files(whole)
            shutil.rmtree(store)
    assert imports.run(store) == 0
    assert files(store) == files(whole)
    assert not (tmp_path / "killed.partial").exists()


def test_two_imports_at_once_the_second_refuses(tmp_path, imports):
    store = tmp_path / "store"
    imports.start(store, 1, 0.05)
    deadline = time.monotonic() + 60
    while not (tmp_path / "store.partial/journal.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(EcgfastError, match=r"another import is writing .*store\.partial"):
        prepare(imports.source, store, progress=False)
    assert imports.wait() == 0
    assert imports.run(tmp_path / "alone") == 0
    assert files(store) == files(tmp_path / "alone")


@pytest.fixture
def records(tmp_path):
    for i in range(12):
        write_record(tmp_path / f"in/r{i:02d}", sines(1000))
    prepare(tmp_path / "in", tmp_path / "whole", progress=False)
    return tmp_path / "in"


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def told(error):
    """The file that a one-line error says can't be written."""
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("store: can't write ")
    return Path(message.removeprefix("store: can't write ").partition(": ")[0]).name


def test_full_disk(records, disk, monkeypatch):
    monkeypatch.setattr("ecgfast.data.store.writer.COMMIT_EVERY", 5)
    size = sum(p.stat().st_size for p in (records.parent / "whole").iterdir())
    found = os.statvfs(disk)
    named = []
    for left in (*range(0, size, 40_000), *range(size - 4096, size + 12_000, 4096)):
        (disk / "ballast").write_bytes(bytes(found.f_bfree * found.f_bsize - left))
        with pytest.raises(EcgfastError, match="No space left on device") as error:
            prepare(records, disk / "store", progress=False)
        named.append(told(error))
        assert not (disk / "store").exists()
        (disk / "ballast").unlink()
        prepare(records, disk / "store", progress=False)
        assert files(disk / "store") == files(records.parent / "whole")
        assert sorted(p.name for p in disk.iterdir()) == ["store"]
        shutil.rmtree(disk / "store")
    assert {"settings.json", "signals-00000.npy", "journal.jsonl", "index.parquet"} == set(named)


def test_file_that_may_not_grow(records, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    code = f"{limit}import sys; from ecgfast.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "prepare", str(records), str(tmp_path / "store"), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ecgfast: error: store: can't write ")
    assert "signals-00000.npy: [Errno 27] File too large" in last
    assert "Traceback" not in done.stderr
    prepare(records, tmp_path / "store", progress=False)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ("pyarrow.parquet.ParquetWriter.write_table", "index.parquet"),
        ("csv.writer", "rejected.csv"),
        ("os.replace", "store"),
    ],
)
def test_disk_that_fails_at_the_end(records, tmp_path, monkeypatch, step, named):

    def fail(*args, **options):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(EcgfastError, match="Input/output error") as error:
            prepare(records, tmp_path / "store", progress=False)
    assert told(error) == named
    assert not (tmp_path / "store").exists()
    prepare(records, tmp_path / "store", progress=False)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


@contextmanager
def nobody():
    """Without the rights of root, whom no file is closed to."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that everybody may write to, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


def test_unreadable_record_is_rejected(records, open_folder):
    shutil.copytree(records, open_folder / "in")
    (open_folder / "in/r03.dat").chmod(0)
    (open_folder / "in/r05.hea").chmod(0)
    with nobody():
        report = prepare(open_folder / "in", open_folder / "store", progress=False)
        assert (report.n_imported, report.rejected) == (10, {"unreadable": 2})
        rejected = (open_folder / "store/rejected.csv").read_text()
    assert "r03.hea,unreadable: " in rejected
    assert "r05.hea,unreadable: " in rejected


@pytest.mark.parametrize("name", ["signals-00000.npy", "index.parquet", "store.json"])
def test_unreadable_store_is_told(records, open_folder, name):
    store = open_folder / "store"
    shutil.copytree(records.parent / "whole", store)
    (store / name).chmod(0)
    with nobody(), pytest.raises(EcgfastError, match=name) as error:
        Store(store)
    assert "\n" not in str(error.value)
    (store / name).unlink()
    (store / name).mkdir()
    with pytest.raises(EcgfastError, match=name):
        Store(store)


def fails(capsys, *args):
    """The one line that a command ends with."""
    assert main([str(arg) for arg in args]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_store_of_a_newer_version(records, tmp_path, capsys):
    store = tmp_path / "whole"
    meta = store / "store.json"
    meta.write_text(meta.read_text().replace('"version": ', '"version": 9'))
    before = files(store)
    for command in (("inspect", store), ("pretrain", store, tmp_path / "run"), ("prepare", records, store)):
        assert "store.json has version 9" in fails(capsys, *command)
    assert files(store) == before
    assert not (tmp_path / "run").exists()


def test_flipped_bits_are_found(records, tmp_path, capsys):
    store = tmp_path / "whole"
    file = store / "signals-00000.npy"
    good = file.read_bytes()
    seed = time.time_ns()
    print("seed", seed)
    bits = random.Random(seed)
    for _ in range(20):
        content = bytearray(good)
        content[bits.randrange(128, len(good))] ^= 1 << bits.randrange(8)
        file.write_bytes(content)
        assert f"{file} is damaged: checksum of record r" in fails(capsys, "inspect", store, "--verify")
    file.write_bytes(good)
    assert main(["inspect", str(store), "--verify"]) == 0


def refusal(path, index):
    """How a store is refused; None if it is read, and has this index."""
    try:
        store = Store(path)
        summarize(store)
        store.verify()
    except EcgfastError as error:
        return str(error)
    assert store.index.equals(index)
    return None


def test_flipped_bits_of_any_file_do_no_harm(records, tmp_path):
    path = tmp_path / "whole"
    index = Store(path).index
    seed = time.time_ns()
    print("seed", seed)
    bits = random.Random(seed)
    refused = set()
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        reach = 128 if file.suffix == ".npy" else len(good)  # of the signals: above
        for _ in range(250):
            content = bytearray(good)
            content[bits.randrange(reach)] ^= 1 << bits.randrange(8)
            file.write_bytes(content)
            message = refusal(path, index)
            if message is not None:
                refused.add(file.name)
                assert str(file if file.suffix != ".json" else path) in message
        file.write_bytes(good)
    assert refused == {"index.parquet", "signals-00000.npy", "store.json"}


@pytest.mark.parametrize("kept", [[0, 1, 1, 2], [0, 1, 3]], ids=["twice", "gap"])
def test_a_journal_ends_before_what_cannot_follow(records, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(StoreWriter, "finish", lambda writer: None)
    prepare(records, tmp_path / "store", progress=False)
    monkeypatch.undo()
    journal = tmp_path / "store.partial/journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[i] for i in kept))
    assert prepare(records, tmp_path / "store", progress=False).n_imported == len(lines)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_an_import_in_a_thread_outlives_the_main_one(records, tmp_path):
    """Then no thread can be started any more, for syncing neither."""
    program = """
import sys, threading, time
from ecgfast.data.sources import importing
from ecgfast.data.store import writer

writer.COMMIT_EVERY = 1
add = writer.StoreWriter.add

def after_main(self, recording):
    threading.main_thread().join()
    time.sleep(0.1)
    add(self, recording)

writer.StoreWriter.add = after_main
threading.Thread(target=importing.prepare, args=sys.argv[1:], kwargs={"progress": False}).start()
"""
    store = tmp_path / "store"
    run = [sys.executable, "-c", program, str(records), str(store)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(store) == files(tmp_path / "whole")


def test_a_failed_commit_ends_the_journal(records, tmp_path, monkeypatch):
    """What was added while the disk failed must not follow in the journal: nobody could see the gap."""
    monkeypatch.setattr("ecgfast.data.store.writer.COMMIT_EVERY", 2)
    calls = iter(range(10**6))
    sync = os.fsync

    def fails_once(descriptor):
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix == ".npy" and next(calls) == 1:
            raise OSError(5, "Input/output error")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_once)
        with pytest.raises(EcgfastError, match="Input/output error") as error:
            prepare(records, tmp_path / "store", progress=False)
    assert told(error) == "signals-00000.npy"
    journal = (tmp_path / "store.partial/journal.jsonl").read_text()
    assert [json.loads(line)["row"]["record_id"] for line in journal.splitlines()] == ["r00", "r01"]
    prepare(records, tmp_path / "store", progress=False)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_cut_shards_are_told_at_once(records, tmp_path, capsys):
    store = tmp_path / "whole"
    file = store / "signals-00000.npy"
    size = file.stat().st_size
    for left in (size - 1, size // 2, 128, 127, 0):
        os.truncate(file, left)
        message = fails(capsys, "inspect", store)
        assert f"can't read {file}" in message
