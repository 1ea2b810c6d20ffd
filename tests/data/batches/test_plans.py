"""Plans: which segments make which batch, of every kind, and their batches through both loaders."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from ecgfast.data import (
    AdjacentPairs,
    LabelledRecordings,
    ResidentLoader,
    SegmentLoader,
    SingleSegments,
    Store,
    TwoViews,
    Windows,
    prepare,
)
from ecgfast.errors import EcgfastError
from tests.data.made import write_record

T = 300
LENGTHS = [600, 1200, 500, 4321, 901, 899, 2100, 500, 1500, 3000, 650]


class Records:
    """All that a plan looks at in a store."""

    path = "made"

    def __init__(self, lengths):
        self.n_samples = np.array(lengths)

    def __len__(self):
        return len(self.n_samples)


MADE = Records([5000, 2500, 4999, 12345, 5001, 30000, 7, 10000])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    rng = np.random.default_rng(0)
    for i, n in enumerate(LENGTHS):
        leads = ["II", "V1"] if i == 4 else ["I", "II", "V1"]
        signal = rng.integers(-3000, 3000, (len(leads), n))
        write_record(folder / f"in/{i:02d}", signal, leads=leads, comments=[f"Patient: {i // 2}"])
    prepare(folder / "in", folder / "store", progress=False)
    return Store(folder / "store")


def labelled(store, batch, **options):
    return LabelledRecordings(store, batch, range(1, len(store) - 1), **options)


def in_order(store, batch, **options):
    return LabelledRecordings(store, batch, [7, 3, 1, 2, 6, 0, 5], shuffle=False, **options)


def overlapping(store, batch, **options):
    return Windows(store, batch, stride=T // 2, **options)


KINDS = [AdjacentPairs, SingleSegments, TwoViews, labelled, in_order, Windows, overlapping]
SHUFFLED = [AdjacentPairs, SingleSegments, TwoViews, labelled]
COMPLETE = [in_order, Windows, overlapping]


def rows(segments):
    return list(zip(*(column.tolist() for column in segments), strict=True))


def batches(plan, epoch=0):
    segments = plan.segments(epoch)
    return [rows(column[plan.rows(i)] for column in segments) for i in range(len(plan))]


@pytest.mark.parametrize(
    ("offsets", "starts", "digest"),
    [
        ("fixed", [0, 0, 1250, 1250, 5000, 7500, 6250, 8750], 2584684217),
        ("random", [2595, 1942, 3845, 3192, 4651, 4121, 5901, 5371], 2459034243),
    ],
)
def test_adjacent_pairs_are_those_of_every_version(offsets, starts, digest):
    """The numbers are those of 0.1's loader: a run goes on with the batches that it began with."""
    plan = AdjacentPairs(
        MADE,
        2,
        segment_samples=1250,
        seed=3,
        rank=1,
        world_size=2,
        offsets=offsets,
        drop_last=False,
    )
    recording, start, length, sample_id = plan.segments(4)
    assert recording[:8].tolist() == [3, 0, 3, 0, 3, 7, 3, 7]
    assert start[:8].tolist() == starts
    assert sample_id[:8].tolist() == [8, 0, 9, 1, 12, 50, 13, 51]
    digests = [zlib.crc32(column.astype("<i8").data) for column in (recording, start, sample_id)]
    assert digests == [1184859934, digest, 2433834379]
    assert set(length) == {1250}
    assert len(plan) == 7
    assert plan.identity() == {
        "seed": 3,
        "batch_pairs": 2,
        "world_size": 2,
        "segment_samples": 1250,
        "offsets": offsets,
        "drop_last": False,
        "n_pairs": 26,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_what_one_would_have(store, kind, world_size):
    one = kind(store, 6, segment_samples=T)
    parts = [
        kind(store, 6 // world_size, segment_samples=T, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for epoch in (0, 5):
        own = [row for batch in batches(one, epoch) for row in batch]
        shared = [row for part in parts for batch in batches(part, epoch) for row in batch]
        assert sorted(own) == sorted(shared)
        ids = [row[3] for row in shared]
        assert len(set(ids)) == len(ids) > 0
        wholes = [batches(part, epoch)[0] for part in parts]
        assert sorted(batches(one, epoch)[0]) == sorted(row for batch in wholes for row in batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4, 7])
def test_segments_lie_in_their_recordings(store, kind, size):
    for options in ({}, {"offsets": "random"}) if kind in SHUFFLED else ({},):
        plan = kind(store, size, segment_samples=T, **options)
        recording, start, length, _ = plan.segments(2)
        assert (start >= 0).all()
        assert (length >= 1).all()
        assert (length <= T).all()
        assert (start + length <= store.n_samples[recording]).all()
        assert plan.whole == bool((length == T).all())
        sizes = [len(batch) for batch in batches(plan)]
        assert set(sizes[:-1]) <= {plan.rows_per_unit * size}
        assert 0 < sizes[-1] <= plan.rows_per_unit * size


@pytest.mark.parametrize("kind", SHUFFLED)
def test_order_depends_on_seed_and_epoch_alone(store, kind):
    plan = kind(store, 2, segment_samples=T, seed=3, offsets="random")
    again = kind(store, 2, segment_samples=T, seed=3, offsets="random")
    again.segments(9)
    assert batches(plan, 1) == batches(again, 1)
    assert batches(plan, 1) != batches(plan, 2)
    assert batches(plan, 1) != batches(kind(store, 2, segment_samples=T, seed=4, offsets="random"), 1)


@pytest.mark.parametrize("kind", SHUFFLED)
def test_ranks_have_equally_many_batches_of_the_same_sizes(store, kind):
    for drop_last in (True, False):
        sizes = [
            [
                len(batch)
                for batch in batches(
                    kind(store, 2, segment_samples=T, rank=rank, world_size=3, drop_last=drop_last)
                )
            ]
            for rank in range(3)
        ]
        assert sizes[0] == sizes[1] == sizes[2] != []


@pytest.mark.parametrize("kind", COMPLETE)
@pytest.mark.parametrize(("size", "world_size"), [(1, 1), (3, 1), (3, 2), (50, 1), (50, 3), (1, 5)])
def test_nothing_is_left_out_or_twice_in_order(store, kind, size, world_size):
    want = [row for batch in batches(kind(store, 100, segment_samples=T)) for row in batch]
    plans = [kind(store, size, segment_samples=T, rank=r, world_size=world_size) for r in range(world_size)]
    got = [batches(plan) for plan in plans]
    assert sorted(row for part in got for batch in part for row in batch) == sorted(want)
    order = {row: i for i, row in enumerate(want)}
    for part in got:
        places = [order[row] for batch in part for row in batch]
        assert places == sorted(places)
    assert max(map(len, got)) - min(map(len, got)) <= 1


def test_single_segments_are_end_to_end(store):
    plan = SingleSegments(store, 1, segment_samples=T)
    found = sorted((recording, start) for recording, start, _, _ in rows(plan.segments(0)))
    assert found == [(i, T * k) for i, n in enumerate(LENGTHS) for k in range(n // T)]
    assert SingleSegments(store, 1, segment_samples=1000).n_too_short == sum(n < 1000 for n in LENGTHS)


def test_two_views_are_the_same_samples_with_other_ids(store):
    for offsets in ("fixed", "random"):
        plan = TwoViews(store, 3, segment_samples=T, offsets=offsets)
        single = SingleSegments(store, 3, segment_samples=T, offsets=offsets)
        for two, one in zip(batches(plan, 1), batches(single, 1), strict=True):
            assert [row[:3] for row in two[:3]] == [row[:3] for row in two[3:]] == [row[:3] for row in one]
            assert [row[3] for row in two[:3]] == [2 * row[3] for row in one]
            assert [row[3] for row in two[3:]] == [2 * row[3] + 1 for row in one]


def test_labelled_recordings(store):
    plan = in_order(store, 3, segment_samples=700)
    assert [row[0] for batch in batches(plan) for row in batch] == [7, 3, 1, 2, 6, 0, 5]
    assert {row[1] for batch in batches(plan) for row in batch} == {0}
    for recording, _, length, sample_id in (row for batch in batches(plan, 3) for row in batch):
        assert length == min(LENGTHS[recording], 700)
        assert sample_id == recording
    assert not plan.whole
    assert labelled(store, 2, segment_samples=500).whole
    shuffled = [row[0] for batch in batches(labelled(store, 3, segment_samples=T)) for row in batch]
    assert sorted(shuffled) == list(range(1, len(LENGTHS) - 1)) != shuffled


@pytest.mark.parametrize(("stride", "shortest"), [(T, 1), (T, 100), (T, T), (100, 1), (100, 250), (1, 1)])
def test_windows_cover_recordings(store, stride, shortest):
    plan = Windows(store, 4, segment_samples=T, stride=stride, shortest=shortest)
    found = {}
    for recording, start, length, _ in (row for batch in batches(plan) for row in batch):
        found.setdefault(recording, []).append((start, length))
    for i, n in enumerate(LENGTHS):
        starts = [start for start, _ in found[i]]
        assert starts[0] == 0
        assert {b - a for a, b in pairwise(starts)} <= {stride}
        assert all(length == T for _, length in found[i][:-1])
        start, length = found[i][-1]
        if start + length < n:  # what was left out was too short
            assert length == T
            assert n - (start + stride) < shortest
        else:
            assert start + length == n
            assert length >= shortest


def test_windows_of_short_recordings():
    plan = Windows(Records([7, 1, 300, 301]), 10, segment_samples=T, shortest=50)
    assert [row[:3] for row in batches(plan)[0]] == [(0, 0, 7), (1, 0, 1), (2, 0, 300), (3, 0, 300)]
    assert plan.whole is False
    assert Windows(Records([300, 301]), 10, segment_samples=T, shortest=50).whole


def test_windows_of_a_subset_have_the_ids_of_the_whole(store):
    whole = {row[:3]: row[3] for batch in batches(Windows(store, 4, segment_samples=T)) for row in batch}
    part = [row for batch in batches(Windows(store, 4, [9, 2], segment_samples=T)) for row in batch]
    assert [row[0] for row in part] == [9] * 10 + [2] * 2
    assert all(whole[row[:3]] == row[3] for row in part)


def expected(store, recording, start, length, leads):
    signal = np.zeros((len(leads), T), np.int16)
    signal[:, :length] = store.signal(recording)[leads, start : start + length]
    return signal


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_loaders_fetch_what_plans_name(store, kind, dtype):
    plan = kind(store, 4, segment_samples=T)
    kept = ResidentLoader(plan, device="cpu", dtype=dtype, leads=["V1", "aVR", "II"])
    stream = SegmentLoader(plan, dtype=dtype, leads=["V1", "aVR", "II"])
    patients = store.patient_numbers()
    for named, a, b in zip(batches(plan), stream, kept, strict=True):
        for i, (recording, start, length, sample_id) in enumerate(named):
            want = torch.from_numpy(expected(store, recording, start, length, [6, 3, 1]))
            assert torch.equal(a.signal[i], want if dtype == "int16" else want.float() * 1e-3)
            assert a.recording[i] == recording
            assert a.sample_ids[i] == sample_id
            assert a.patients[i] == patients[recording]
            assert a.leads[i].tolist() == [True, False, True]
            assert plan.whole or a.lengths[i] == length
        assert plan.whole == (a.lengths is None) == (b.lengths is None)
        for x, y in zip(a, b, strict=True):
            assert (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_short_segments_on_a_gpu(store, dtype):
    plan = Windows(store, 4, segment_samples=T)
    assert not plan.whole
    kept = ResidentLoader(plan, device="cuda", dtype=dtype)
    for on_device, batch in zip(kept, SegmentLoader(plan, dtype=dtype), strict=True):
        assert all(torch.equal(x.cpu(), y) for x, y in zip(on_device, batch, strict=True))


@pytest.mark.parametrize("kind", [in_order, Windows, TwoViews])
def test_a_recording_shorter_than_a_segment_ends_in_zeros(tmp_path, kind):
    """The memory of batches is used again: what was there must not stay."""
    rng = np.random.default_rng(1)
    for i, n in enumerate([2000, 1999, 500, 2000, 750, 2000, 1200, 501]):
        write_record(tmp_path / f"in/{i}", rng.integers(100, 900, (12, n)))
    prepare(tmp_path / "in", tmp_path / "store", progress=False)
    plan = kind(Store(tmp_path / "store"), 2, segment_samples=T if kind is TwoViews else 1000)
    loader = SegmentLoader(plan)
    for _ in range(3):
        for named, batch in zip(batches(plan), loader, strict=True):
            for row, signal in zip(named, batch.signal, strict=True):
                assert (signal[:, : row[2]] != 0).all()
                assert (signal[:, row[2] :] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_resumes_at_any_batch(store, kind, stop):
    def loader():
        return SegmentLoader(kind(store, 2, segment_samples=T))

    whole = loader()
    whole.set_epoch(2)
    want = [batch.sample_ids.tolist() for batch in whole]
    feed = loader()
    feed.set_epoch(2)
    state = feed.state_dict()
    for i, _ in enumerate(feed, start=1):
        if i > stop:
            break
        state = feed.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    assert [batch.sample_ids.tolist() for batch in resumed] == want[stop:]


def test_a_state_fits_its_own_plan_alone(store):
    loaders = [SegmentLoader(kind(store, 2, segment_samples=T)) for kind in KINDS]
    for i, feed in enumerate(loaders):
        for j, other in enumerate(loaders):
            if i == j:
                feed.load_state_dict(other.state_dict())
            else:
                with pytest.raises(EcgfastError, match="loader state: "):
                    feed.load_state_dict(other.state_dict())


@pytest.mark.parametrize("make", [SegmentLoader, lambda plan: ResidentLoader(plan, device="cpu")])
def test_two_plans_share_the_signals(store, make, monkeypatch):
    training = make(AdjacentPairs(store, 4, segment_samples=T))
    monkeypatch.setattr("ecgfast.data.batches.resident._load", pytest.fail)
    monkeypatch.setattr("ecgfast.data.batches.streaming._Gather.__init__", pytest.fail)
    first = next(iter(training))
    validation = training.for_plan(Windows(store, 3, [1, 5], segment_samples=T))
    assert [len(batch.signal) for batch in validation] == [3, 3, 1]
    assert (len(training), len(validation)) == (len(training.plan), 3)
    assert torch.equal(next(iter(training)).signal, first.signal)
    with pytest.raises(EcgfastError, match=r"plan: must be of .*, opened once"):
        training.for_plan(Windows(Store(store.path), 3))


@pytest.mark.parametrize("kind", [labelled, in_order, Windows])
@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        ([], "recordings: must be one or more, got none"),
        (np.zeros(0), "recordings: must be one or more, got none"),
        ([0, 11], "recordings: must be 0 to 10, as many as .* has, got 11"),
        ([-1], "recordings: must be 0 to 10, .* got -1"),
        ([3, 1, 3], "recordings: must be there once, got 3 twice"),
        ([0.5], r"recordings: must be whole numbers, got float64 \[1\]"),
        ([[1, 2]], r"recordings: must be whole numbers, got int64 \[1, 2\]"),
        (["a"], "recordings: must be whole numbers, got <U1"),
    ],
)
def test_refused_subsets(store, kind, recordings, message):
    made = Windows if kind is Windows else LabelledRecordings
    options = {"shuffle": kind is labelled} if kind is not Windows else {}
    with pytest.raises(EcgfastError, match=message):
        made(store, 4, recordings, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda store: SingleSegments(store, 0), "batch_size: got 0, want 1 or more"),
        (lambda store: Windows(store, 1, segment_samples=0), "segment_samples: got 0"),
        (lambda store: Windows(store, 1, rank=1), "rank: got 1, want 0 to 0"),
        (lambda store: Windows(store, 1, stride=0), "stride: got 0, want 1 to 2500"),
        (lambda store: Windows(store, 1, segment_samples=50, stride=51), "stride: got 51, want 1 to 50"),
        (lambda store: Windows(store, 1, shortest=0), "shortest: got 0, want 1 to 2500"),
        (lambda store: labelled(store, 10), "recordings: got 9, fewer than one batch of 10 x 1"),
        (lambda store: labelled(store, 1, offsets="some"), "offsets: got 'some'"),
        (lambda store: labelled(store, 1, seed=-1), "seed: got -1"),
        (lambda store: TwoViews(store, 9, segment_samples=2000), "gives 4 segments of 2000 samples"),
        (lambda store: SingleSegments(store, 1, segment_samples=9999), r"\(11 of 11 recordings are too sh"),
    ],
)
def test_refused(store, make, message):
    with pytest.raises(EcgfastError, match=message):
        make(store)
