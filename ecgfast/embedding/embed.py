"""Embeds a store, in memory or into a file; a killed call goes on where it stopped."""

import fcntl
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ecgfast._outputs import check_output, check_space, write_whole
from ecgfast.data import Store
from ecgfast.data.progress import Progress
from ecgfast.embedding.encoding import Encoded, Encoding
from ecgfast.embedding.models import OpenedModel
from ecgfast.embedding.windows import (
    Windows,
    check_lead_names,
    cover_recordings,
    mean_over_units,
    with_a_lead,
)
from ecgfast.errors import EcgfastError
from ecgfast.files import write_atomically
from ecgfast.nn import Encoder
from ecgfast.nn.pretrained import file_digest
from ecgfast.training.parallel import resolve_device

KINDS = ("npy", "parquet")
"""Kinds of files of embeddings, by the end of the name."""
POOLINGS = ("mean", "none")

_JOURNAL_SECONDS = 2.0
_ROW_GROUP = 1024  # recordings


def embed_store(
    store: Store,
    encoder: Encoder,
    *,
    leads: Sequence[str] | None = None,
    recordings: np.ndarray | None = None,
    segment_samples: int = 2500,
    precision: str = "fp32",
    batch_size: int | None = None,
    device: str = "auto",
    progress: bool = False,
) -> np.ndarray:
    """An embedding of each recording: the mean over its windows of the mean over a window's tokens.

    Windows lie side by side; a last one of fewer samples than half a segment is left out unless it is the
    only one. Leads that are not named, and those that a recording lacks, count as zero and cost nothing.

    Args:
        store: The recordings.
        encoder: It is moved to the device, and put into evaluation mode.
        leads: Names, of the encoder's; None: all of them.
        recordings: Their numbers, in the order of the result; None: all.
        segment_samples: Samples of a window at 500 Hz.
        precision: "fp32", or "bf16" where autocast allows it.
        batch_size: Windows at a time; None: as many as fit.
        device: auto, cpu, cuda or cuda:N.
        progress: Show a bar on stderr.

    Returns:
        float32 [n, E].

    Raises:
        EcgfastError: an argument out of range, leads that are not the encoder's, a recording that has none of
            them (see `with_a_lead`), or numbers that are not finite.
    """
    recordings = np.arange(len(store)) if recordings is None else np.asarray(recordings)
    windows = cover_recordings(store, recordings, segment_samples, 1 << encoder.config.stem_layers)
    pooled = embed_windows(
        store,
        encoder,
        windows,
        leads=leads,
        segment_samples=segment_samples,
        precision=precision,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    return mean_over_units(pooled, windows.unit).astype(np.float32)


def embed_windows(
    store: Store,
    encoder: Encoder,
    windows: Windows,
    *,
    leads: Sequence[str] | None = None,
    segment_samples: int = 2500,
    precision: str = "fp32",
    batch_size: int | None = None,
    device: str = "auto",
    progress: bool = False,
    keep: Path | None = None,
    identity: Any = None,
) -> np.ndarray:
    """The mean over each window's tokens, float32 [w, E]; arguments and errors as in `embed_store`.

    Args:
        windows: What to encode.
        keep: Folder in which what is done is kept, so that a call that was killed goes on; the caller removes
            it. It must belong to this caller alone.
        identity: What else, beside the windows, the numbers depend on: plain values. A folder of another
            identity is begun again.
    """
    named = check_lead_names(leads, encoder.config.leads)
    shape = (len(windows.unit), encoder.config.width)
    kept = None
    if keep is not None:
        told = {"identity": identity, "windows": _digest(windows), "leads": list(named)}
        told |= {"precision": precision, "segment_samples": segment_samples}
        kept = _Kept(keep, told, shape)
    encoding = Encoding(
        store,
        encoder,
        windows,
        named,
        segment_samples=segment_samples,
        precision=precision,
        batch_size=(kept.batch_size if kept else None) or batch_size,
        device=resolve_device(device),
    )
    if kept is not None:
        _fill(kept, encoding, windows, _Pooled(), progress)
        return np.array(kept.rows)
    rows = np.empty(shape, dtype=np.float32)
    with Progress("encoding", _n_units(windows), shown=progress) as bar:
        for encoded in encoding.batches():
            rows[encoded.windows] = encoded.pooled()
            bar.update(_n_begun(windows, encoded.windows))
    return rows


class _Pooled:
    """A row for each window: the mean over its tokens."""

    def write(self, rows: np.ndarray, encoded: Encoded) -> None:
        rows[encoded.windows] = encoded.pooled()


class _Tokens:
    """A row for each token of each window, one after another."""

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        self.first = np.cumsum(counts) - counts

    def write(self, rows: np.ndarray, encoded: Encoded) -> None:
        tokens = encoded.tokens.cpu().numpy()
        for row, window in zip(tokens, encoded.windows, strict=True):
            first, count = self.first[window], self.counts[window]
            rows[first : first + count] = row[:count]


def write_embeddings(
    store: Path,
    model: OpenedModel,
    out: Path,
    *,
    pooling: str = "mean",
    leads: Sequence[str] | None = None,
    records: Sequence[str] = (),
    segment_samples: int | None = None,
    precision: str = "fp32",
    batch_size: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> tuple[int, ...]:
    """Write a store's embeddings to a file.

    What is done so far lies in the folder `OUT.parts`; a call that was stopped or killed goes on there and
    ends with the bytes that it would have ended with. Of a call with other arguments it is begun again.

    Args:
        store: Folder written by `ecgfast prepare`.
        model: See `open_model`.
        out: `.npy`, float32 [n, E], or [n, N, E] for tokens, in the order of the store or of `records`; or
            `.parquet`: record_id, patient_id, and `embedding` (E numbers) or `tokens` (a list of E numbers).
        pooling: "mean" over tokens and windows; or "none": every token, window after window.
        leads: To use, of the model's; None: all.
        records: Ids of the recordings; none: all of the store.
        segment_samples: Of a window; None: the model's.
        precision, batch_size, device, progress: As for `embed_store`.

    Returns:
        The shape; of tokens in a table (recordings, tokens in all, E).

    Raises:
        EcgfastError: as `embed_store`; an unknown record, a `.npy` that could hold no row for each recording,
            or another process at work on the same file.

    Warns:
        UserWarning: recordings are left out; the store was made otherwise than the model's.
    """
    check_output("out", out, KINDS)
    if pooling not in POOLINGS:
        raise EcgfastError(f"pooling: must be {' or '.join(POOLINGS)}, got {pooling!r}")
    opened = Store(store)
    model.warn_of_preprocessing(opened)
    config = model.encoder.config
    samples = model.segment_samples if segment_samples is None else segment_samples
    named = check_lead_names(leads, config.leads)
    is_npy = out.suffix.casefold() == ".npy"
    recordings = _usable(opened, _find_records(opened, records), named, is_npy)
    windows = cover_recordings(opened, recordings, samples, 1 << config.stem_layers)
    counts = windows.length >> config.stem_layers
    form: _Pooled | _Tokens = _Pooled() if pooling == "mean" else _Tokens(counts)
    per_recording = np.bincount(windows.unit, weights=counts).astype(np.int64)
    if pooling == "none" and is_npy and per_recording.min() < per_recording.max():
        raise EcgfastError(
            f"out: must be .parquet for recordings of different lengths, which have {per_recording.min()} to "
            f"{per_recording.max()} tokens, got {out.name!r}"
        )
    shape = (len(windows.unit) if pooling == "mean" else int(counts.sum()), config.width)
    check_space("out", 2 * 4 * shape[0] * shape[1], out)
    identity = {
        "store": file_digest(opened.path / "index.parquet"),
        "model": model.digest,
        "windows": _digest(windows),
        "leads": list(named),
        "segment_samples": samples,
        "pooling": pooling,
        "precision": precision,
        "device": resolve_device(device).type,
        "asked_batch_size": batch_size,
    }
    folder = out.with_name(f"{out.name}.parts")
    with _claimed(folder):
        kept = _Kept(folder, identity, shape)
        encoding = Encoding(
            opened,
            model.encoder,
            windows,
            named,
            segment_samples=samples,
            precision=precision,
            batch_size=kept.batch_size or batch_size,
            device=resolve_device(device),
        )
        _fill(kept, encoding, windows, form, progress)
        if pooling == "mean":
            shape = _write_pooled(out, opened, recordings, windows, kept.rows, is_npy)
        else:
            shape = _write_tokens(out, opened, recordings, per_recording, kept, is_npy)
    shutil.rmtree(folder)
    return shape


class _Kept:
    """Rows on the disk, and how many batches of them are there: what outlives a kill.

    Attributes:
        rows: float32 [n, E], a memory map.
        batches: Batches whose rows are written.
        batch_size: Of the batches; None: not decided yet.
    """

    def __init__(self, folder: Path, identity: Any, shape: tuple[int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._identity = folder, json.loads(json.dumps(identity))
        self._state, self.file = folder / "state.json", folder / "rows.npy"
        state = self._read()
        if state is not None and state.get("identity") != self._identity:
            warnings.warn(f"{folder}: is of other arguments, store or model: it is begun again")
            state = None
        self.batches: int = 0 if state is None else state["batches"]
        self.batch_size: int | None = None if state is None else state["batch_size"]
        if state is None:
            self._state.unlink(missing_ok=True)
            self.rows = np.lib.format.open_memmap(self.file, mode="w+", dtype=np.float32, shape=shape)
        else:
            self.rows = np.lib.format.open_memmap(self.file, mode="r+")

    def _read(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            return state if self.file.is_file() else None
        except (OSError, ValueError):
            return None  # nothing that could be taken up

    def journal(self) -> None:
        """Put the rows on the disk, then say that they are there."""
        self.rows.flush()
        state = {"identity": self._identity, "batches": self.batches, "batch_size": self.batch_size}
        text = json.dumps(state)
        write_atomically(self._state, lambda path: path.write_text(text, encoding="utf-8"))


def _fill(kept: _Kept, encoding: Encoding, windows: Windows, form: _Pooled | _Tokens, progress: bool) -> None:
    kept.batch_size = encoding.batch_size
    told = time.monotonic()
    done = _n_begun(windows, encoding.windows_of(kept.batches))
    with Progress("encoding", _n_units(windows), initial=done, shown=progress) as bar:
        try:
            for encoded in encoding.batches(kept.batches):
                form.write(kept.rows, encoded)
                kept.batches += 1
                bar.update(_n_begun(windows, encoded.windows))
                if time.monotonic() - told >= _JOURNAL_SECONDS:
                    kept.journal()
                    told = time.monotonic()
        finally:
            kept.journal()


def _n_units(windows: Windows) -> int:
    return int(windows.unit[-1]) + 1


def _n_begun(windows: Windows, some: np.ndarray) -> int:
    """Units whose first window is among some."""
    before = np.where(some > 0, windows.unit[some - 1], -1)
    return int(np.count_nonzero(windows.unit[some] != before))


def _digest(windows: Windows) -> str:
    return hashlib.sha256(b"".join(column.astype("<i8").tobytes() for column in windows)).hexdigest()


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from the folder of a file that is being made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EcgfastError(f"out: another process is at work in {str(folder)!r}") from None
        yield


def _find_records(store: Store, records: Sequence[str]) -> np.ndarray:
    if not records:
        return np.arange(len(store))
    at = {record: i for i, record in enumerate(store.index["record_id"].to_pylist())}
    for record in records:
        if record not in at:
            raise EcgfastError(f"records: must be ids of {str(store.path)!r}, got {record!r}")
    if len(set(records)) < len(records):
        raise EcgfastError("records: must be named once each")
    return np.array([at[record] for record in records])


def _usable(store: Store, recordings: np.ndarray, leads: Sequence[str], is_npy: bool) -> np.ndarray:
    there = with_a_lead(store, leads)[recordings]
    named = ", ".join(leads)
    if not there.any():
        raise EcgfastError(f"STORE: {str(store.path)!r} has no recording with any of {named}")
    if there.all():
        return recordings
    told = f"{int((~there).sum())} of {len(there)} recordings have none of {named}"
    if is_npy:
        raise EcgfastError(
            f"out: {told}, whose rows a .npy can't leave out: write a .parquet, or give --records"
        )
    warnings.warn(f"{told}: they are left out")
    return recordings[there]


def _ids(store: Store, recordings: np.ndarray) -> dict[str, Any]:
    taken = pa.array(recordings)
    return {name: store.index[name].take(taken) for name in ("record_id", "patient_id")}


def _write_pooled(
    out: Path, store: Store, recordings: np.ndarray, windows: Windows, rows: np.ndarray, is_npy: bool
) -> tuple[int, ...]:
    embeddings = mean_over_units(rows, windows.unit).astype(np.float32)
    if is_npy:
        write_whole(out, lambda path: _save(path, embeddings))
        return embeddings.shape
    column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    table = pa.table(_ids(store, recordings) | {"embedding": column})
    write_whole(out, lambda path: pa.parquet.write_table(table, path))
    return embeddings.shape


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # numpy.save would add an end to the name
        np.save(file, array)


def _write_tokens(
    out: Path, store: Store, recordings: np.ndarray, counts: np.ndarray, kept: _Kept, is_npy: bool
) -> tuple[int, ...]:
    total, width = kept.rows.shape
    if is_npy:
        shape = (len(recordings), int(counts[0]), width)
        write_whole(out, lambda path: _copy_rows(path, kept.rows, shape))
        return shape
    ends = np.concatenate([[0], np.cumsum(counts)])
    ids = _ids(store, recordings)
    schema = pa.schema(
        [
            ("record_id", pa.string()),
            ("patient_id", pa.string()),
            ("tokens", pa.list_(pa.list_(pa.float32(), width))),
        ]
    )

    def write(path: Path) -> None:
        with pa.parquet.ParquetWriter(path, schema) as writer:
            for first in range(0, len(recordings), _ROW_GROUP):
                last = min(first + _ROW_GROUP, len(recordings))
                rows = np.asarray(kept.rows[ends[first] : ends[last]])
                tokens = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), width)
                offsets = pa.array((ends[first : last + 1] - ends[first]).astype(np.int32))
                column = pa.ListArray.from_arrays(offsets, tokens)
                part = {name: values.slice(first, last - first) for name, values in ids.items()}
                writer.write_table(pa.table(part | {"tokens": column}, schema=schema))

    write_whole(out, write)
    return len(recordings), total, width


def _copy_rows(path: Path, rows: np.ndarray, shape: tuple[int, ...]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for first in range(0, len(rows), 2**16):
            file.write(np.ascontiguousarray(rows[first : first + 2**16], dtype="<f4").data)
