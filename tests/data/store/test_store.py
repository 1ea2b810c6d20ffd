import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from tests.data.made import sines, write_record

# NumPy's reader of headers of version 1.0 raises an error of its tokenizer
UNCLOSED = b"\x93NUMPY\x01\x00\x06\x00{'a':\n" + b"\0" * 100


@pytest.fixture
def store(tmp_path, imported):
    for i, n in enumerate([5000, 600, 7001]):
        write_record(tmp_path / f"in/{i}", sines(n), comments=[f"Dx: {i}"])
    return imported(tmp_path / "in")


def forget_checksum(store):
    meta = store.path / "store.json"
    content = json.loads(meta.read_text())
    del content["index_crc32"]
    meta.write_text(json.dumps(content))


def test_an_index_without_checksums_is_read(store):
    """Stores had none before."""
    file = store.path / "index.parquet"
    pq.write_table(pq.read_table(file), file)
    with pytest.raises(EcgfastError, match=r"index\.parquet is damaged: its checksum differs"):
        Store(store.path)
    forget_checksum(store)
    assert Store(store.path).index.equals(store.index)


def test_standard_tools_read_it(store):
    table = pq.read_table(store.path / "index.parquet").to_pylist()
    for i, row in enumerate(table):
        shard = np.load(store.path / f"signals-{row['shard']:05d}.npy", mmap_mode="r")
        block = shard[row["offset"] : row["offset"] + 12 * row["n_samples"]]
        np.testing.assert_array_equal(block.reshape(12, -1), store.signal(i))
        assert row["labels"] == [str(i)]
    assert json.loads((store.path / "store.json").read_text())["sample_rate"] == store.rate == 500
    assert (store.path / "rejected.csv").read_text() == "source,reason\n"
    assert (len(store), store.index.num_rows) == (3, 3)


def test_signals_are_mapped_and_read_only(store):
    signal = store.signal(2)
    assert isinstance(signal, np.memmap)
    assert signal.dtype == np.int16
    with pytest.raises(ValueError, match="read-only"):
        signal[0, 0] = 1


def test_absent_and_foreign_folders(tmp_path):
    with pytest.raises(EcgfastError, match="no such folder"):
        Store(tmp_path / "absent")
    with pytest.raises(EcgfastError, match=r"no store: it holds no store\.json"):
        Store(tmp_path)
    (tmp_path / "store.json").write_text("[1]")
    with pytest.raises(EcgfastError, match="not a store's description"):
        Store(tmp_path)


@pytest.mark.parametrize(("version", "cure"), [(1, "a new import"), (3, "a newer ecgfast")])
def test_other_versions(store, version, cure):
    meta = store.path / "store.json"
    meta.write_text(meta.read_text().replace('"version": 2', f'"version": {version}'))
    with pytest.raises(EcgfastError, match=rf"store\.json has version {version}, want 2: it takes {cure}"):
        Store(store.path)


@pytest.mark.parametrize("size", [0, 60, 1000])
def test_truncated_shard(store, size):
    os.truncate(store.path / "signals-00000.npy", size)
    with pytest.raises(EcgfastError, match=r"can't read .*signals-00000\.npy"):
        Store(store.path)


def test_missing_files(store):
    (store.path / "signals-00000.npy").unlink()
    with pytest.raises(EcgfastError, match=r"signals-00000\.npy"):
        Store(store.path)
    (store.path / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(EcgfastError, match=r"index\.parquet"):
        Store(store.path)


def test_flipped_bit(store):
    store.verify()
    file = store.path / "signals-00000.npy"
    content = bytearray(file.read_bytes())
    content[-5000] ^= 4
    file.write_bytes(content)
    with pytest.raises(EcgfastError, match=r"signals-00000\.npy is damaged: .* record 2 "):
        Store(store.path).verify()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", None),
        ("sample_rate", 250),
        ("sample_rate", "500"),
        ("n_shards", None),
        ("n_shards", -1),
        ("n_shards", 1.0),
        ("n_shards", True),
        ("n_recordings", None),
        ("n_recordings", [3]),
        ("n_rejected", None),
        ("rejected", None),
        ("rejected", {"flat": "3"}),
        ("leads", ["I"]),
        ("version", None),
        ("format", None),
    ],
)
def test_bad_descriptions(store, name, value):
    meta = store.path / "store.json"
    content = json.loads(meta.read_text())
    removed = {key: content[key] for key in content if key != name}
    for damaged in (removed, content | {name: value}):
        meta.write_text(json.dumps(damaged))
        with pytest.raises(EcgfastError, match=rf"store\.json .*{name}|store\.json is not") as error:
            Store(store.path)
        assert "\n" not in str(error.value)


def test_description_that_is_only_plausible(store):
    meta = store.path / "store.json"
    deep = '{"format":' + "[" * 100_000
    for text in ('{"format":"ecgfast-store","version":2}', deep, "\0", '{"version":' + "9" * 5000 + "}"):
        meta.write_text(text)
        with pytest.raises(EcgfastError, match=r"store\.json"):
            Store(store.path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("record_id", None, "1 nulls in column record_id"),
        ("patient_id", None, "1 nulls in column patient_id"),
        ("shard", None, "1 nulls in column shard"),
        ("offset", None, "1 nulls in column offset"),
        ("n_samples", None, "1 nulls in column n_samples"),
        ("leads", None, "1 nulls in column leads"),
        ("leads", ["I", None], "1 nulls in column leads"),
        ("labels", [None], "1 nulls in column labels"),
        ("checksum", None, "1 nulls in column checksum"),
        ("leads", ["I", "MLII"], "a lead 'MLII'"),
    ],
)
def test_bad_index(store, column, value, message):
    file = store.path / "index.parquet"
    forget_checksum(store)
    rows = store.index.to_pylist()
    rows[1][column] = value
    pq.write_table(store.index.from_pylist(rows, schema=store.index.schema), file)
    with pytest.raises(EcgfastError, match=rf"index\.parquet has {message}"):
        Store(store.path)


def test_index_of_another_length(store):
    file = store.path / "index.parquet"
    forget_checksum(store)
    pq.write_table(store.index.slice(1), file)
    with pytest.raises(EcgfastError, match=r"index\.parquet has 2 recordings, want 3"):
        Store(store.path)


def test_recordings_without_shards(store):
    meta = store.path / "store.json"
    meta.write_text(meta.read_text().replace('"n_shards": 1', '"n_shards": 0'))
    with pytest.raises(EcgfastError, match="record 0 lies outside its shard"):
        Store(store.path)


@pytest.mark.parametrize("content", [b"PK\x03\x04rubbish", b"\x80\x04N.", b"rubbish", UNCLOSED])
def test_shards_of_another_kind(store, content):
    (store.path / "signals-00000.npy").write_bytes(content)
    with pytest.raises(EcgfastError, match=r"can't read .*signals-00000\.npy"):
        Store(store.path)


def test_blocks_outside_their_shard_are_refused(store):
    file = store.path / "index.parquet"
    table = pq.read_table(file)
    forget_checksum(store)
    for column, value in {"offset": -1, "n_samples": 2**62, "shard": 1}.items():
        rows = table.to_pylist()
        rows[1][column] = value
        pq.write_table(table.from_pylist(rows, schema=table.schema), file)
        with pytest.raises(EcgfastError, match="record 1 lies outside its shard"):
            Store(store.path)
