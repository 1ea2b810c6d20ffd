"""A store: a folder of recordings that NumPy and any Parquet reader can open.

    index.parquet       one row per recording, see `INDEX_SCHEMA`
    signals-00000.npy   int16, one dimension: the recordings' blocks one after another
    store.json          format version, sample rate, preprocessing, provenance
    rejected.csv        source, reason: the records that were not taken
    warnings.csv        source, warning: what is odd about records that were taken; older stores have none

A recording is a `[12, n_samples]` block, lead-major, in microvolts, leads in the order of
`STANDARD_LEADS`, absent leads zero. In its shard it starts at element `offset`:

    block = np.load("signals-00000.npy", mmap_mode="r")[offset : offset + 12 * n_samples]
    signal = block.reshape(12, n_samples)
"""

import json
import os
import stat
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ecgfast.data.signal.preprocess import Preprocessing
from ecgfast.errors import EcgfastError, one_line
from ecgfast.leads import N_LEADS, STANDARD_LEADS
from ecgfast.units import SAMPLE_RATE

STORE_FORMAT = "ecgfast-store"
STORE_VERSION = 2  # 1 had no column `fold`

INDEX_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),  # unique in the store
        ("patient_id", pa.string()),  # one of its own where the source knows no patient: the record id
        ("source", pa.string()),  # path below the source folder
        ("shard", pa.int32()),
        ("offset", pa.int64()),  # of the block in the shard, in elements
        ("n_samples", pa.int64()),  # per lead
        ("leads", pa.list_(pa.string())),  # present in the source, and not constant
        ("labels", pa.list_(pa.string())),  # diagnosis codes as in the source
        ("age", pa.float32()),  # years
        ("sex", pa.string()),  # "F", "M" or null
        ("fold", pa.int32()),  # cross-validation fold of the source, such as PTB-XL's strat_fold, or null
        ("source_rate", pa.float64()),  # Hz, before resampling
        ("checksum", pa.uint32()),  # CRC-32 of the block's bytes
    ]
)

_NULLABLE = ("age", "sex", "fold")


def shard_name(shard: int) -> str:
    """File name of one shard of signals."""
    return f"signals-{shard:05d}.npy"


def block_checksum(signal: np.ndarray) -> int:
    """CRC-32 of a recording's block as it lies in the shard (little-endian int16)."""
    return zlib.crc32(np.ascontiguousarray(signal, dtype="<i2").data)


def file_checksum(file: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with file.open("rb") as content:
        while part := content.read(2**20):
            checksum = zlib.crc32(part, checksum)
    return checksum


def store_description(preprocessing: Preprocessing, provenance: dict[str, Any]) -> dict[str, Any]:
    """What `store.json` says besides the counts."""
    return {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "sample_rate": SAMPLE_RATE,
        "unit": "microvolt",
        "leads": list(STANDARD_LEADS),
        "preprocessing": preprocessing.describe(),
        "provenance": provenance,
    }


def read_store_json(path: Path) -> dict[str, Any]:
    """What `store.json` of the store at `path` says.

    Raises:
        EcgfastError: there is no store at `path`, or one that this version cannot read.
    """
    if not path.is_dir():
        raise EcgfastError(f"store: no such folder: {path}")
    meta = path / "store.json"
    if not meta.is_file():
        raise EcgfastError(f"store: {path} is no store: it holds no store.json")
    try:
        content = json.loads(meta.read_text(encoding="utf-8"))
        form, version = content["format"], content["version"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise EcgfastError(f"store: {meta} is not a store's description: {error!r}") from None
    if form != STORE_FORMAT:
        raise EcgfastError(f"store: {meta} has format {form!r}, want {STORE_FORMAT!r}")
    if version != STORE_VERSION:
        cure = "a newer ecgfast" if type(version) is int and version > STORE_VERSION else "a new import"
        raise EcgfastError(f"store: {meta} has version {version!r}, want {STORE_VERSION}: it takes {cure}")
    _check_description(content, meta)
    return content


def _check_description(content: dict[str, Any], meta: Path) -> None:
    for name in ("n_recordings", "n_rejected", "n_shards"):
        if not _is_count(content.get(name)):
            raise EcgfastError(f"store: {meta} has {name} {content.get(name)!r}, want 0 or more")
    rejected = content.get("rejected")
    if not isinstance(rejected, dict) or not all(map(_is_count, rejected.values())):
        raise EcgfastError(f"store: {meta} has rejected {rejected!r}, want counts by reason")
    wants = {"sample_rate": SAMPLE_RATE, "leads": list(STANDARD_LEADS)}
    for name, want in wants.items():
        if content.get(name) != want:
            raise EcgfastError(f"store: {meta} has {name} {content.get(name)!r}, want {want}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


class Store:
    """A store opened for reading; signals are memory-mapped, never copied.

    Attributes:
        path: The store's folder.
        rate: Samples per second, 500.
        index: `pyarrow.Table`, one row per recording, see `INDEX_SCHEMA`.

    Raises:
        EcgfastError: `path` is absent, is no store, or its files do not agree with each other.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description = read_store_json(self.path)
        self.rate: int = self.description["sample_rate"]
        self.index = self._read_index()
        self._shard = self.index["shard"].to_numpy()
        self._offset = self.index["offset"].to_numpy()
        self._n_samples = self.index["n_samples"].to_numpy()
        self._opened: list[tuple[int, ...]] = []  # which files the maps are of
        self._shards = [self._map_shard(i) for i in range(self.description["n_shards"])]
        self._check_blocks()

    def __len__(self) -> int:
        return self.index.num_rows

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} recordings)"

    @property
    def shards(self) -> list[np.ndarray]:
        """The shards' memory maps, int16, one dimension."""
        return self._shards

    @property
    def n_samples(self) -> np.ndarray:
        """Samples per lead of every recording, int64 [n]."""
        return self._n_samples

    def signal(self, i: int) -> np.ndarray:
        """Recording `i` in microvolts: read-only int16 [12, n_samples], absent leads zero."""
        n, offset = self._n_samples[i], self._offset[i]
        block = self._shards[self._shard[i]][offset : offset + N_LEADS * n]
        return block.reshape(N_LEADS, n)

    def present_leads(self) -> np.ndarray:
        """Which of the standard leads each recording has: bool [n, 12]."""
        leads = self.index["leads"].combine_chunks()
        names = pc.list_flatten(leads)
        column = pc.index_in(names, value_set=pa.array(STANDARD_LEADS)).to_numpy()
        present = np.zeros((len(self), N_LEADS), dtype=bool)
        present[pc.list_parent_indices(leads).to_numpy(), column] = True
        return present

    def patient_numbers(self) -> np.ndarray:
        """A number per patient, the same for all recordings of one patient: int64 [n]."""
        encoded = self.index["patient_id"].combine_chunks().dictionary_encode()
        return encoded.indices.to_numpy().astype(np.int64)

    def verify(self) -> None:
        """Read every signal and compare it with its checksum.

        Raises:
            EcgfastError: a recording's bytes changed since the import; names the file.
        """
        for i, want in enumerate(self.index["checksum"].to_pylist()):
            if block_checksum(self.signal(i)) != want:
                record = self.index["record_id"][i].as_py()
                file = self.path / shard_name(self._shard[i])
                raise EcgfastError(f"store: {file} is damaged: checksum of record {record} differs")

    def check_unchanged(self) -> None:
        """See whether the files of signals are still those that were opened.

        Raises:
            EcgfastError: one was replaced, cut, written to or removed since; names it.
        """
        for shard, opened in enumerate(self._opened):
            file = self.path / shard_name(shard)
            try:
                now = _identity(os.stat(file))
            except OSError as error:
                raise EcgfastError(f"store: can't read {file}: {error.strerror}") from None
            if now != opened:
                raise EcgfastError(f"store: {file} was changed while it was in use")

    def _read_index(self) -> pa.Table:
        file = self.path / "index.parquet"
        try:
            # The pages' checksums leave out what lies between them; older stores have no other.
            index = pq.read_table(file, page_checksum_verification=True)
            damaged = self.description.get("index_crc32", checksum := file_checksum(file)) != checksum
            index.validate(full=True)
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise EcgfastError(f"store: can't read {file}: {one_line(error)}") from None
        if damaged:
            raise EcgfastError(f"store: {file} is damaged: its checksum differs from store.json's")
        if not index.schema.equals(INDEX_SCHEMA):
            raise EcgfastError(f"store: {file} has other columns than a store's index")
        want = self.description["n_recordings"]
        if index.num_rows != want:
            got = f"{file} has {index.num_rows} recordings"
            raise EcgfastError(f"store: {got}, want {want} as in {self.path / 'store.json'}")
        for name in INDEX_SCHEMA.names:
            values = index[name]
            nulls = 0 if name in _NULLABLE else values.null_count
            if pa.types.is_list(values.type):
                nulls += pc.list_flatten(values).null_count
            if nulls:
                raise EcgfastError(f"store: {file} has {nulls} nulls in column {name}")
        leads = pc.unique(pc.list_flatten(index["leads"])).to_pylist()
        unknown = sorted(set(leads) - set(STANDARD_LEADS))
        if unknown:
            raise EcgfastError(f"store: {file} has a lead {unknown[0]!r}, want standard ones")
        return index

    def _map_shard(self, shard: int) -> np.ndarray:
        file = self.path / shard_name(shard)
        try:
            self._opened.append(_identity(os.stat(file)))
            signals = map_array(file)
        except (OSError, ValueError) as error:
            raise EcgfastError(f"store: can't read {file}: {one_line(error)}") from None
        if signals.dtype != np.dtype("<i2") or signals.ndim != 1:
            got = f"{signals.dtype} of {signals.ndim} dimensions"
            raise EcgfastError(f"store: {file} holds {got}, want int16 of one")
        return signals

    def _check_blocks(self) -> None:
        """Every block must lie inside its shard: what gathers segments relies on it."""
        sizes = np.array([signals.size for signals in self._shards], dtype=np.int64)
        known = (self._shard >= 0) & (self._shard < len(sizes))
        inside = known & (self._offset >= 0) & (self._n_samples > 0)
        # divided, not multiplied: a damaged n_samples must not overflow
        sizes = np.append(sizes, 0)  # of no shard: taken where the shard is unknown
        room = np.where(inside, sizes[np.where(known, self._shard, -1)] - self._offset, 0)
        inside &= self._n_samples <= room // N_LEADS
        if not inside.all():
            first = int(np.argmin(inside))
            record, shard = self.index["record_id"][first].as_py(), self._shard[first]
            if not known[first]:
                counted = f"{self.path / 'store.json'} counts {len(sizes) - 1}"
                raise EcgfastError(f"store: record {record} lies outside its shard {shard}: {counted}")
            file = self.path / shard_name(shard)
            raise EcgfastError(f"store: record {record} lies outside its shard {file}")


def array_shape(file: Path) -> tuple[int, ...]:
    """The shape of a `.npy` file's array, of which its header alone is read.

    Raises:
        OSError: it can't be read.
        ValueError: as `map_array`.
    """
    return map_array(file).shape


def map_array(file: Path) -> np.ndarray:
    """The memory map of a `.npy` file, read-only.

    Raises:
        OSError: it can't be read.
        ValueError: it is no such file, a pipe, or damaged: NumPy raises more for a damaged header.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe's writer may never come
        raise ValueError("it is no file")
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (
        EOFError,
        OverflowError,
        SyntaxError,
        TokenError,
        TypeError,
        MemoryError,
        RecursionError,
    ) as error:
        raise ValueError(one_line(error)) from None


def _identity(file: os.stat_result) -> tuple[int, ...]:
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns
