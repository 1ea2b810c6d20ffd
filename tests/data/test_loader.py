import threading

import numpy as np
import pytest
import torch
from made import write_record

from ecgfast.data import SegmentLoader
from ecgfast.errors import EcgfastError

T = 500


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """26 recordings of 13 patients: 20 of two segments, 3 of seven, 3 too short."""
    from ecgfast.data import Store, prepare

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


def loader(store, pairs=4, **options):
    return SegmentLoader(store, pairs, segment_samples=T, **options)


def collect(batches):
    """sample id -> its signal, group and leads, in order."""
    out = {}
    for batch in batches:
        for i, key in enumerate(batch.sample_ids.tolist()):
            assert key not in out
            row = (batch.signal[i].numpy().tobytes(), batch.groups[i].item())
            out[key] = (*row, tuple(batch.leads[i].tolist()))
    return out


def test_batches_hold_adjacent_segments(store):
    feed = loader(store)
    assert (feed.n_pairs, feed.n_too_short, len(feed)) == (20 + 3 * 3, 3, 29 // 4)
    patients = store.patient_numbers()
    where = {}  # content of a first segment -> recording, start
    for i in range(len(store)):
        for start in range(0, store.signal(i).shape[1] - 2 * T + 1, 2 * T):
            where[store.signal(i)[:, start : start + T].tobytes()] = (i, start)
    for batch in feed:
        assert batch.signal.shape == (8, 12, T)
        assert batch.signal.dtype == torch.int16
        assert batch.sample_ids.dtype == batch.groups.dtype == torch.int64
        assert batch.leads.shape == (8, 12)
        assert batch.leads.dtype == torch.bool
        for a in range(4):
            i, start = where[batch.signal[a].numpy().tobytes()]
            second = store.signal(i)[:, start + T : start + 2 * T]
            np.testing.assert_array_equal(batch.signal[a + 4].numpy(), second)
            assert batch.groups[a] == batch.groups[a + 4] == patients[i]
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
    assert [[len(b.groups) for b in part] for part in parts] == [[10, 10, 8]] * 2


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_pairs": 0}, "batch_pairs: got 0"),
        ({"batch_pairs": 30}, "29 pairs of 500 samples .* one batch of 30 x 1"),
        ({"segment_samples": 99999}, "0 pairs"),
        ({"rank": 2, "world_size": 2}, "rank: got 2, want 0 to 1"),
        ({"offsets": "sliding"}, "offsets: got 'sliding'"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_refused(store, options, message):
    options = {"batch_pairs": 4, "segment_samples": T} | options
    with pytest.raises(EcgfastError, match=message):
        SegmentLoader(store, **options)


def test_state_of_another_loader_is_refused(store):
    with pytest.raises(EcgfastError, match="loader state: seed is 1, here 2"):
        loader(store, seed=2).load_state_dict(loader(store, seed=1).state_dict())
