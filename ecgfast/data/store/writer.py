"""Writing a store: beside its place, resumable, renamed into place when complete.

While an import runs, `STORE.partial/` holds a lock, the settings, a journal with one line per
finished record and, in `store/`, the shards. Signals reach the disk before the journal names them,
so the journal tells after any interruption how far the shards are good.
"""

import csv
import fcntl
import itertools
import json
import os
import shutil
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ecgfast.data.store.reasons import Reasons
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import INDEX_SCHEMA, block_checksum, file_checksum, read_store_json, shard_name
from ecgfast.errors import EcgfastError
from ecgfast.files import check_creatable, move_into_place, partial_path, sync
from ecgfast.leads import N_LEADS

SHARD_ELEMENTS = 2**29
"""Most elements of a shard (1 GiB), unless one recording alone is longer."""

COMMIT_EVERY = 64  # records between two syncs, as long as the disk follows
_MOST_PENDING = 4  # times as many are added while a sync goes on; then they wait for it
_ROW_GROUP = 65536  # rows of the index held in memory at once
_NPY_HEADER = 128
_COLUMNS = frozenset(INDEX_SCHEMA.names)
_MOST_NAMES = 256  # of signals that are counted: damage makes up ever more
_MAY_LACK = {"patient": "patient_id", "age": "age", "sex": "sex", "label": "labels"}


class StoreWriter:
    """Writes records into a new store, in the order given; a context manager.

    Entering takes the lock and finds where an interrupted import with the same settings stopped
    (`n_done`); one with other settings is started afresh. Leaving without `finish` keeps the
    partial folder for the next run, `discard` removes it. `lock` is the lock's file descriptor.

    Args:
        path: The store's folder, absent or empty.
        settings: What `store.json` says besides the counts; equal settings make equal stores.
        resume: False starts afresh what an interrupted import left: the settings don't tell all.

    Raises:
        EcgfastError: another import into `path` runs, or the disk refuses a write.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        *,
        resume: bool = True,
        shard_elements: int = SHARD_ELEMENTS,
    ) -> None:
        self.path = path
        self.settings = settings
        self.n_imported = 0
        self.rejected = Reasons()
        self.warnings = Reasons()
        self.without: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self._amplitudes: Counter[float] = Counter()
        self._resumes = resume
        self._shard_elements = shard_elements
        self._partial = partial_path(path)
        self._folder = self._partial / "store"
        self._journal_path = self._partial / "journal.jsonl"
        self._pending: list[str] = []
        self._syncer = ThreadPoolExecutor(1)  # its thread starts with the first commit
        self._syncing: Future[None] | None = None
        self._torn = False  # a commit failed: the journal must not go on behind the gap
        self._shard = 0
        self._end = 0  # elements in the open shard
        self._file: BinaryIO | None = None

    @property
    def n_rejected(self) -> int:
        """Records not taken."""
        return self.rejected.kinds.total()

    @property
    def n_done(self) -> int:
        """Records imported or rejected so far, those of an interrupted run included."""
        return self.n_imported + self.n_rejected

    def __enter__(self) -> "StoreWriter":
        with _naming(self._partial):
            self.lock = lock_folder(self._partial)
            try:
                self._resume()
            except BaseException:
                self._let_go()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._file is not None:
                self.commit()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Close what is open; what was to be told of it has been."""
        self._syncer.shutdown()
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses what is still in the buffer once more
                self._file.close()
        os.close(self.lock)

    def add(self, recording: Recording) -> None:
        """Append one recording."""
        signal = np.ascontiguousarray(recording.signal, dtype="<i2")
        if signal.ndim != 2 or signal.shape[0] != N_LEADS or signal.size == 0:
            raise ValueError(f"recording {recording.record_id}: got shape {signal.shape}")
        if self._end > 0 and self._end + signal.size > self._shard_elements:
            self._close_shard()
            self._open_shard(self._shard + 1, 0)
        with _naming(self._folder / shard_name(self._shard)):
            self._file.write(signal.data)
        row = {name: getattr(recording, name) for name in vars(recording) if name in _COLUMNS}
        row |= {"shard": self._shard, "offset": self._end, "n_samples": signal.shape[1]}
        row["checksum"] = block_checksum(signal)
        entry: dict[str, Any] = {"row": row}
        if recording.warnings:
            entry["warnings"] = list(map(_utf8, recording.warnings))
        if recording.unused:
            entry["unused"] = list(map(_utf8, recording.unused))
        if recording.amplitude is not None:
            entry["amplitude"] = float(f"{recording.amplitude:.2g}")
        self._end += signal.size
        self._count(entry)
        self._note(entry)

    def reject(self, source: str, reason: str) -> None:
        """Note a record that is not taken, and why: `kind: details`."""
        entry = {"source": _utf8(source), "reason": _utf8(reason)}
        self._count(entry)
        self._note(entry)

    def commit(self) -> None:
        """Put all records so far safely on disk."""
        self._begin_commit()
        self._end_commit()

    def _begin_commit(self) -> None:
        """Have all records so far put on disk while others are added; the commit before has ended."""
        self._end_commit()
        with _naming(self._folder / shard_name(self._shard)):
            self._file.flush()
        file = self._folder / shard_name(self._shard)
        # First: after an interrupt nothing is noted twice.
        entries, self._pending = self._pending, []
        try:
            self._syncing = self._syncer.submit(self._sync, file, self._file.fileno(), entries)
        except RuntimeError:  # the interpreter ends while a thread imports: no thread starts any more
            self._sync(file, self._file.fileno(), entries)

    def _end_commit(self) -> None:
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            syncing.result()

    def _sync(self, file: Path, descriptor: int, entries: list[str]) -> None:
        """Put the open shard on disk, and only then what the journal says of it."""
        if self._torn:
            return
        self._torn = True
        with _naming(file):
            os.fsync(descriptor)
        with _naming(self._journal_path), self._journal_path.open("a", encoding="utf-8") as journal:
            journal.writelines(entries)
            journal.flush()
            os.fsync(journal.fileno())
        self._torn = False

    def finish(self) -> None:
        """Write the index and rename the store into place."""
        self.commit()
        self._close_shard()
        self._write_index()
        counts = {
            "n_recordings": self.n_imported,
            "n_rejected": self.n_rejected,
            "rejected": dict(sorted(self.rejected.kinds.items())),
            "warnings": dict(sorted(self.warnings.kinds.items())),
            "unused_signals": dict(sorted(self.unused.items())),
            "without": {name: self.without[name] for name in _MAY_LACK},
            "amplitude_mv": self.amplitude,
            "n_shards": self._shard + 1,
            "index_crc32": file_checksum(self._folder / "index.parquet"),
        }
        with _naming(self._folder / "store.json"):
            write_json(self._folder / "store.json", self.settings | counts)
        with _naming(self._folder):
            sync(self._folder)
        with _naming(self.path):
            move_into_place(self._folder, self.path)
        with _naming(self._partial):
            self._remove_partial()
            rejected_beside(self.path).unlink(missing_ok=True)

    def keep_rejected(self) -> Path:
        """Write the list of rejected records beside the store's place, where none comes about."""
        self.commit()
        file = rejected_beside(self.path)
        self._write_list(file, "reason", self._rejects())
        return file

    def discard(self) -> None:
        """Remove everything written."""
        with suppress(EcgfastError):  # what could not be kept is not to be kept
            self._end_commit()
        file, self._file = self._file, None
        with suppress(OSError):
            file.close()
        with _naming(self._partial):
            self._remove_partial()

    @property
    def amplitude(self) -> float | None:
        """Median of the recordings' amplitudes in millivolts; None where none is known."""
        if not self._amplitudes:
            return None
        last = np.cumsum([count for _, count in sorted(self._amplitudes.items())])
        return sorted(self._amplitudes)[int(np.searchsorted(last, (last[-1] + 1) // 2))]

    def _count(self, entry: dict[str, Any]) -> None:
        if "row" not in entry:
            self.rejected.add(entry["source"], entry["reason"])
            return
        row = entry["row"]
        self.n_imported += 1
        self.without.update(name for name, column in _MAY_LACK.items() if row[column] in (None, []))
        for name in dict.fromkeys(entry.get("unused", ())):
            self.unused[name if name in self.unused or len(self.unused) < _MOST_NAMES else "others"] += 1
        for warning in entry.get("warnings", ()):
            self.warnings.add(row["source"], warning)
        if "amplitude" in entry:
            self._amplitudes[entry["amplitude"]] += 1

    def _note(self, entry: dict[str, Any]) -> None:
        self._pending.append(json.dumps(entry) + "\n")
        idle = self._syncing is None or self._syncing.done()
        if len(self._pending) >= COMMIT_EVERY * (1 if idle else _MOST_PENDING):
            self._begin_commit()

    def _resume(self) -> None:
        if not (self._resumes and self._journal_is_good()):
            self.n_imported = self._shard = self._end = 0
            for counted in (self.rejected, self.warnings, self.without, self.unused, self._amplitudes):
                counted.clear()
            self._empty_partial()
            self._folder.mkdir()
            settings = self._partial / "settings.json"
            with _naming(settings):
                write_json(settings, self.settings)
        self._open_shard(self._shard, self._end)
        self._journal_path.touch()
        sync(self._partial)

    def _empty_partial(self) -> None:
        for stale in self._partial.iterdir():
            if stale.name != "lock":
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    def _remove_partial(self) -> None:
        self._empty_partial()
        (self._partial / "lock").unlink()
        with suppress(OSError):  # another import may have put its lock there already
            self._partial.rmdir()

    def _journal_is_good(self) -> bool:
        """Take up the journal of an interrupted import; False if there is none to take up."""
        settings = self._partial / "settings.json"
        try:
            if json.loads(settings.read_text(encoding="utf-8")) != self.settings:
                return False
        except (FileNotFoundError, ValueError):
            return False
        good = 0
        for line, entry in _journal_entries(self._journal_path):
            if "row" in entry:
                row = entry["row"]
                if (row["shard"], row["offset"]) not in ((self._shard, self._end), (self._shard + 1, 0)):
                    break  # behind a gap, or twice
                self._shard, self._end = row["shard"], row["offset"] + N_LEADS * row["n_samples"]
            self._count(entry)
            good += len(line)
        if self._journal_path.exists():
            os.truncate(self._journal_path, good)
        return self._shards_reach(self._shard, self._end)

    def _shards_reach(self, shard: int, end: int) -> bool:
        files = [self._folder / shard_name(i) for i in range(shard + 1)]
        if end == 0:
            return self._folder.is_dir()
        present = all(file.is_file() for file in files)
        return present and files[-1].stat().st_size >= _NPY_HEADER + 2 * end

    def _open_shard(self, shard: int, end: int) -> None:
        for later in self._folder.glob("signals-*.npy"):
            if later.name > shard_name(shard):
                later.unlink()
        file = self._folder / shard_name(shard)
        with _naming(file):
            self._file = file.open("r+b" if end else "w+b")
            self._file.write(_npy_header(end))
            self._file.seek(_NPY_HEADER + 2 * end)
            self._file.truncate()
            sync(self._folder)
        self._shard, self._end = shard, end

    def _close_shard(self) -> None:
        self._end_commit()
        with _naming(self._folder / shard_name(self._shard)):
            self._file.seek(0)
            self._file.write(_npy_header(self._end))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._file = None

    def _write_index(self) -> None:
        index = self._folder / "index.parquet"
        with _naming(index):
            with (
                index.open("wb") as file,  # closed even where the writer fails to
                pq.ParquetWriter(file, INDEX_SCHEMA, write_page_checksum=True) as table,
            ):
                rows = self._rows()
                while group := list(itertools.islice(rows, _ROW_GROUP)):
                    table.write_table(_table(group))
            sync(index)
        self._write_list(self._folder / "rejected.csv", "reason", self._rejects())
        self._write_list(self._folder / "warnings.csv", "warning", self._warned())

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The index's rows; a recording of unknown patient is given one of its own."""
        known = self._known_patients()
        for _, entry in _journal_entries(self._journal_path):
            if "row" not in entry:
                continue
            row = entry["row"]
            if row["patient_id"] is None:
                row["patient_id"] = row["record_id"]
                while _holds(known, row["patient_id"]):
                    row["patient_id"] += " (patient unknown)"
            yield row

    def _known_patients(self) -> np.ndarray:
        """Hashes of the known patients' ids, sorted, 8 bytes each; none where all are known or unknown."""
        if not 0 < self.without["patient"] < self.n_imported:
            return np.empty(0, dtype=np.int64)
        rows = (entry["row"] for _, entry in _journal_entries(self._journal_path) if "row" in entry)
        ids = (row["patient_id"] for row in rows if row["patient_id"] is not None)
        return np.unique(np.fromiter(map(hash, ids), dtype=np.int64))

    def _rejects(self) -> Iterator[tuple[str, str]]:
        for _, entry in _journal_entries(self._journal_path) if self.n_rejected else ():
            if "row" not in entry:
                yield entry["source"], entry["reason"]

    def _warned(self) -> Iterator[tuple[str, str]]:
        for _, entry in _journal_entries(self._journal_path) if self.warnings.kinds else ():
            for warning in entry.get("warnings", ()):
                yield entry["row"]["source"], warning

    def _write_list(self, path: Path, what: str, rows: Iterable[tuple[str, str]]) -> None:
        with _naming(path):
            with path.open("w", encoding="utf-8", newline="") as file:
                written = csv.writer(file, lineterminator="\n")
                written.writerow(["source", what])
                written.writerows(rows)
            sync(path)


def rejected_beside(path: Path) -> Path:
    """Where the list of rejected records is kept if there is no store at `path` to keep it in."""
    return path.parent / f"{path.name}.rejected.csv"


def finished_store(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The description of the store at `path` if it was made with these settings.

    None where there is nothing yet.

    Raises:
        EcgfastError: something else lies there, a store made in another way, or what no store can
            replace.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        check_creatable(path, "store")
        return None
    if not path.is_dir():
        raise EcgfastError(f"store: {path} is a file, want a folder to create")
    if not (path / "store.json").is_file():
        raise EcgfastError(f"store: {path} is not empty and no store, want a folder to create")
    found = read_store_json(path)
    made, asked = _leaves(found), _leaves(settings)
    steps = {name: None for name in made if name.startswith("preprocessing.")}  # those not asked for, too
    for name, want in (steps | asked).items():
        if made.get(name) != want:
            raise EcgfastError(
                f"store: {path} was made with {name} {made.get(name)!r}, asked for is {want!r}: "
                "choose another folder or remove it"
            )
    return found


def _leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        leaves |= _leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves


def lock_folder(folder: Path) -> int:
    """Create `folder` if needed and lock it; returns the lock's file descriptor.

    The lock ends with the process, however it ends.

    Raises:
        EcgfastError: another process holds it, or the folder is not one of an import.
    """
    file = folder / "lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() and any(folder.iterdir()):
            raise EcgfastError(f"store: {folder} is in the way: it is not an interrupted import's")
        try:
            lock = os.open(file, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue  # the holder finished between the two lines above
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise EcgfastError(f"store: another import is writing {folder}") from None
        # The holder removes the file before it lets go: ours must still be the one that is there.
        if file.exists() and os.path.samestat(os.fstat(lock), file.stat()):
            return lock
        os.close(lock)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for people and programs, the same bytes for the same content, safely on disk."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync(path)


def _journal_entries(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The journal's lines up to the first torn or damaged one, which a crash may have left."""
    if not path.exists():
        return
    with path.open("rb") as journal:
        for line in journal:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                return
            if not line.endswith(b"\n") or not _is_entry(entry):
                return
            yield line, entry


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    if "row" not in entry:
        return entry.keys() == {"source", "reason"} and all(isinstance(v, str) for v in entry.values())
    if not entry.keys() <= {"row", "warnings", "amplitude", "unused"}:
        return False
    texts, amplitude = [entry.get(name, []) for name in ("warnings", "unused")], entry.get("amplitude", 0.0)
    if not all(isinstance(some, list) and all(isinstance(text, str) for text in some) for some in texts):
        return False
    row = entry["row"]
    places = ("shard", "offset", "n_samples")
    return (
        type(amplitude) is float
        and isinstance(row, dict)
        and row.keys() == _COLUMNS
        and all(type(row[name]) is int and row[name] >= 0 for name in places)
    )


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = [_column([row[field.name] for row in rows], field.type) for field in INDEX_SCHEMA]
    return pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Numbers or strings, None where unknown, or lists of them; `pa.array` would load pandas."""
    if pa.types.is_list(kind):
        items = _column(list(itertools.chain.from_iterable(values)), kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [None, _ends(values)], children=[items])
    known = np.array([value is not None for value in values], dtype=bool)
    validity = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    if pa.types.is_string(kind):
        texts = [(value or "").encode() for value in values]
        return pa.Array.from_buffers(
            kind, len(texts), [validity, _ends(texts), pa.py_buffer(b"".join(texts))]
        )
    numbers = np.array([value or 0 for value in values], dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(numbers), [validity, pa.py_buffer(numbers)])


def _ends(parts: list[Any]) -> pa.Buffer:
    lengths = np.fromiter(map(len, parts), dtype=np.int32, count=len(parts))
    return pa.py_buffer(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _holds(hashes: np.ndarray, text: str) -> bool:
    key = hash(text)
    at = np.searchsorted(hashes, key)
    return bool(at < len(hashes) and hashes[at] == key)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _npy_header(n: int) -> bytes:
    """A `.npy` header of fixed size for n int16: it can be rewritten when the shard is full."""
    text = f"{{'descr': '<i2', 'fortran_order': False, 'shape': ({n},), }}".encode("ascii")
    body = text.ljust(_NPY_HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn a refusal of the file system (disk full, no permission) into a one-line error."""
    try:
        yield
    except OSError as error:
        raise EcgfastError(f"store: can't write {path}: {error}") from error
