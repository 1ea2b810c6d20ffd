import gc
import itertools
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ecgfast.data import AdjacentPairs, Batch, ResidentLoader, SegmentLoader, Store, prepare
from ecgfast.data.store.writer import StoreWriter
from ecgfast.errors import EcgfastError
from tests.data.made import write_record

T = 500


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """26 recordings of 13 patients: 20 of two segments, 3 of seven, 3 too short."""
    folder = tmp_path_factory.mktemp("loader")
    rng = np.random.default_rng(0)
    for i in range(26):
        n = 2 * T if i < 20 else 7 * T + 3 if i < 23 else 2 * T - 1
        leads = ["II", "V1"] if i == 4 else ["I", "II", "V1"]
        signal = rng.integers(-3000, 3000, (len(leads), n))
        comments = [f"Patient: {i // 2}"]
        write_record(folder / f"in/{i:02d}", signal, leads=leads, comments=comments)
    prepare(folder / "in", folder / "store", progress=False)
    return Store(folder / "store")


def pairs_of(store, pairs=4, **options):
    return AdjacentPairs(store, pairs, **{"segment_samples": T} | options)


def _parts(options):
    """Those of the loader, and those of the plan."""
    form = {name: options.pop(name) for name in ("dtype", "leads") if name in options}
    return form, options


def loader(store, pairs=4, **options):
    form, options = _parts(options)
    return SegmentLoader(pairs_of(store, pairs, **options), **form)


def resident(store, pairs=4, device="cpu", **options):
    form, options = _parts(options)
    return ResidentLoader(pairs_of(store, pairs, **options), device=device, **form)


def assert_same_batches(a, b):
    a, b = list(a), list(b)
    assert len(a) == len(b) > 0
    for one, other in zip(a, b, strict=True):
        assert one.lengths is other.lengths is None
        for x, y in zip(one[:-1], other[:-1], strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


def collect(batches):
    """sample id -> its signal, patient and leads, in order."""
    out = {}
    for batch in batches:
        for i, key in enumerate(batch.sample_ids.tolist()):
            assert key not in out
            row = (batch.signal[i].numpy().tobytes(), batch.patients[i].item())
            out[key] = (*row, tuple(batch.leads[i].tolist()))
    return out


def test_batches_hold_adjacent_segments(store):
    feed = loader(store)
    assert (feed.plan.n_units, feed.plan.n_too_short, len(feed)) == (20 + 3 * 3, 3, 29 // 4)
    patients = store.patient_numbers()
    where = {}  # content of a first segment -> recording, start
    for i in range(len(store)):
        for start in range(0, store.signal(i).shape[1] - 2 * T + 1, 2 * T):
            where[store.signal(i)[:, start : start + T].tobytes()] = (i, start)
    for batch in feed:
        assert batch.signal.shape == (8, 12, T)
        assert batch.signal.dtype == torch.int16
        assert batch.sample_ids.dtype == batch.patients.dtype == torch.int64
        assert batch.leads.shape == (8, 12)
        assert batch.leads.dtype == torch.bool
        for a in range(4):
            i, start = where[batch.signal[a].numpy().tobytes()]
            second = store.signal(i)[:, start + T : start + 2 * T]
            np.testing.assert_array_equal(batch.signal[a + 4].numpy(), second)
            assert batch.patients[a] == batch.patients[a + 4] == patients[i]
            assert batch.recording[a] == batch.recording[a + 4] == i
            want = [0 if i != 4 else None, 1, 6]
            assert torch.nonzero(batch.leads[a]).flatten().tolist() == [
                lead for lead in want if lead is not None
            ]


def test_deterministic_and_another_order_in_another_epoch(store):
    first, again = loader(store, seed=3), loader(store, seed=3)
    a, b = collect(first), collect(again)
    assert list(a.items()) == list(b.items())
    again.set_epoch(1)
    c = collect(again)
    assert list(c) != list(a)
    assert all(a[key] == c[key] for key in a.keys() & c.keys())
    assert list(collect(loader(store, seed=4))) != list(a)


@pytest.mark.parametrize("offsets", ["fixed", "random"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_pairs_without_overlap(store, world_size, offsets):
    whole = collect(loader(store, 12, offsets=offsets))
    parts = []
    for rank in range(world_size):
        feed = loader(store, 12 // world_size, rank=rank, world_size=world_size, offsets=offsets)
        assert len(feed) == 2
        parts.append(collect(feed))
    merged = {key: value for part in parts for key, value in part.items()}
    assert len(merged) == sum(map(len, parts))
    assert merged == whole


def test_last_batch_can_be_kept(store):
    assert len(collect(loader(store, 4, drop_last=False))) == 2 * 29
    parts = [list(loader(store, 5, drop_last=False, rank=rank, world_size=2)) for rank in range(2)]
    assert [[len(b.patients) for b in part] for part in parts] == [[10, 10, 8]] * 2


def test_random_offsets_move_with_the_epoch(store):
    feed = loader(store, offsets="random")
    a = collect(feed)
    assert list(a.items()) == list(collect(loader(store, offsets="random")).items())
    feed.set_epoch(1)
    b = collect(feed)
    assert any(a[key] != b[key] for key in a.keys() & b.keys())


@pytest.mark.parametrize("offsets", ["fixed", "random"])
@pytest.mark.parametrize("stop", [0, 1, 5, 7])
def test_resumes_at_any_batch(store, offsets, stop):
    whole = loader(store, offsets=offsets, seed=1)
    whole.set_epoch(2)
    batches = list(whole)
    assert whole.state_dict()["batch"] == 7
    feed = loader(store, offsets=offsets, seed=1)
    feed.set_epoch(2)
    state = feed.state_dict()
    for i, _ in enumerate(feed, start=1):
        if i == stop:
            state = feed.state_dict()
            break
    resumed = loader(store, offsets=offsets, seed=1)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    rest = list(resumed)
    assert list(collect(rest).items()) == list(collect(batches[stop:]).items())
    resumed.set_epoch(3)
    assert len(list(resumed)) == 7


def test_broken_off_iteration_starts_again_and_leaves_no_thread(store):
    feed = loader(store)
    for _ in feed:
        break
    assert len(list(feed)) == len(feed)
    assert not [t for t in threading.enumerate() if t.name.startswith("ecgfast")]


def test_errors_of_the_thread_reach_the_consumer(store, monkeypatch):
    feed = loader(store)

    def fail(*args):
        raise OSError("the disk went away")

    monkeypatch.setattr(feed, "_gather", fail)
    with pytest.raises(OSError, match="the disk went away"):
        list(feed)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("leads", [None, ["v1", "II", "aVF"]])
@pytest.mark.parametrize("offsets", ["fixed", "random"])
def test_resident_batches_are_the_same_bit_for_bit(store, dtype, leads, offsets):
    options = {"dtype": dtype, "leads": leads, "offsets": offsets, "seed": 5}
    stream, kept = loader(store, **options), resident(store, **options)
    for epoch in (0, 3):
        stream.set_epoch(epoch)
        kept.set_epoch(epoch)
        assert_same_batches(stream, kept)
    for rank in range(2):
        share = options | {"rank": rank, "world_size": 2, "drop_last": False}
        assert_same_batches(loader(store, 5, **share), resident(store, 5, **share))


def test_float32_is_the_same_in_millivolts(store):
    for raw, batch in zip(loader(store), loader(store, dtype="float32"), strict=True):
        assert batch.signal.dtype == torch.float32
        assert torch.equal(batch.signal, raw.signal.float() * 1e-3)
        assert batch.signal.abs().max() > 2


@pytest.mark.parametrize("make", [loader, resident])
def test_leads_in_the_order_asked_for(store, make):
    for whole, part in zip(make(store), make(store, leads=["V1", "i"]), strict=True):
        assert torch.equal(part.signal, whole.signal[:, [6, 0]])
        assert torch.equal(part.leads, whole.leads[:, [6, 0]])
        assert torch.equal(part.sample_ids, whole.sample_ids)


@pytest.mark.parametrize(("first", "second"), [(loader, resident), (resident, loader), (resident, resident)])
@pytest.mark.parametrize("stop", [1, 6, 7])
def test_either_loader_goes_on_where_another_stopped(store, first, second, stop):
    feed = first(store, offsets="random")
    feed.set_epoch(1)
    batches = list(feed)
    for _ in itertools.islice(feed, stop):
        state = feed.state_dict()
    assert state["batch"] == stop
    resumed = second(store, offsets="random")
    resumed.load_state_dict(state)
    assert list(collect(resumed).items()) == list(collect(batches[stop:]).items())
    assert resumed.state_dict()["batch"] == 7
    resumed.set_epoch(2)
    assert len(list(resumed)) == 7


def test_resident_batches_come_without_work_on_the_host(store, monkeypatch):
    batches = iter(resident(store))
    next(batches)

    def fail(*args, **kwargs):
        raise AssertionError("the host works")

    for name in ("torch.from_numpy", "torch.tensor", "torch.Tensor.to", "torch.Tensor.cpu"):
        monkeypatch.setattr(name, fail)
    assert len(list(batches)) == 6


def test_shards_lie_one_after_another_in_memory(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    for i in range(7):
        write_record(tmp_path / f"in/{i}", rng.integers(-900, 900, (12, 2 * T + 10 * i)))
    monkeypatch.setitem(StoreWriter.__init__.__kwdefaults__, "shard_elements", 40_000)
    monkeypatch.setattr("ecgfast.data.batches.resident._CHUNK", 1999)
    prepare(tmp_path / "in", tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    assert len(store.shards) == 3
    assert_same_batches(loader(store, 7), resident(store, 7))


def test_store_that_does_not_fit_is_refused(store, monkeypatch):
    size = 2 * sum(shard.size for shard in store.shards)
    monkeypatch.setattr("ecgfast.data.batches.resident._free_bytes", lambda device: size - 1)
    with pytest.raises(EcgfastError, match=rf"takes {size:,} bytes .* on cpu, {size - 1:,} are free"):
        resident(store)
    monkeypatch.setattr("ecgfast.data.batches.resident._free_bytes", lambda device: size)
    assert len(resident(store)) == 7


def test_memory_of_batches_is_used_again_when_it_is_free(store):
    feed = loader(store)
    for _ in range(3):
        batches = list(feed)
        memory = {batch.signal.data_ptr() for batch in batches}
        assert len(memory) == len(batches)
    rows = [batch.signal[1] for batch in batches]
    before = [row.clone() for row in rows]
    del batches
    feed.set_epoch(1)
    for batch in feed:
        assert batch.signal.data_ptr() not in memory
    assert all(map(torch.equal, rows, before))
    del rows, batch
    gc.collect()
    seen = [batch.signal.data_ptr() for batch in feed]
    assert len(set(seen)) < len(seen)


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def replace(file):
    shutil.copy(file, file.with_name("other"))
    file.with_name("other").rename(file)


def write(file):
    file.write_bytes(file.read_bytes())


@pytest.mark.parametrize("change", [cut, replace, write, Path.unlink])
def test_a_store_changed_under_it_is_told(store, tmp_path, monkeypatch, change):
    shutil.copytree(store.path, tmp_path / "store")
    opened = Store(tmp_path / "store")
    stream, kept = loader(opened), resident(opened)
    monkeypatch.setattr("ecgfast.data.batches.streaming._LOOK", 0.0)
    look, looks = opened.check_unchanged, []

    def look_after_a_change():  # made by the only thread that reads: a cut file must not be read
        looks.append(0)
        if len(looks) == 4:
            change(opened.path / "signals-00000.npy")
        look()

    monkeypatch.setattr(opened, "check_unchanged", look_after_a_change)
    told = r"(can't read .*signals-00000\.npy|signals-00000\.npy was changed)"
    for begin in (lambda: list(stream), lambda: list(stream), lambda: resident(opened)):
        with pytest.raises(EcgfastError, match=told):
            begin()
    assert len(looks) == 6
    assert_same_batches(kept, loader(store))


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:99"])
def test_devices_that_are_not_there(store, device):
    with pytest.raises(EcgfastError, match=rf"device: got '{device}'"):
        resident(store, device=device)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_resident_on_a_gpu(store, dtype):
    options = {"dtype": dtype, "leads": ["V1", "II"], "offsets": "random"}
    kept = resident(store, device="cuda", **options)
    for on_device, batch in zip(kept, loader(store, **options), strict=True):
        assert all(x.is_cuda for x in on_device[:-1])
        assert_same_batches([Batch(*(x.cpu() for x in on_device[:-1]))], [batch])


@pytest.mark.parametrize("make", [loader, resident])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype: got 'float16', want 'int16' or 'float32'"),
        ({"leads": ["MLII"]}, "got unknown lead 'MLII'"),
        ({"leads": []}, "leads must be at least one lead, got none"),
        ({"pairs": 0}, "batch_size: got 0"),
        ({"pairs": 30}, "29 pairs of 500 samples .* one batch of 30 x 1"),
        ({"segment_samples": 99999}, "0 pairs"),
        ({"rank": 2, "world_size": 2}, "rank: got 2, want 0 to 1"),
        ({"offsets": "sliding"}, "offsets: got 'sliding'"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_refused(store, make, options, message):
    with pytest.raises(EcgfastError, match=message):
        make(store, **options)


def test_state_of_another_loader_is_refused(store):
    with pytest.raises(EcgfastError, match="loader state: seed is 1, here 2"):
        loader(store, seed=2).load_state_dict(loader(store, seed=1).state_dict())
