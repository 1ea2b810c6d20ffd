"""Several stores as one, and plans that are mixed in shares."""

import numpy as np
import pytest
import torch

from ecgfast.data import (
    AdjacentPairs,
    JoinedStores,
    Mixture,
    ResidentLoader,
    SegmentLoader,
    SingleSegments,
    Store,
    TwoViews,
    Windows,
)
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import STORE_VERSION
from ecgfast.data.store.writer import StoreWriter
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS
from tests.data.batches.test_plans import Records, batches, rows

T = 300
# 300 samples: 5 segments in the first store, 8 in the second, 30 in the third
LENGTHS = ([620, 310, 299, 650], [900, 1500], [900] * 10)
LEADS = (["I", "II", "V1"], ["I"], ["II"])
KINDS = [AdjacentPairs, SingleSegments, TwoViews]


def write(path, lengths, leads, provenance):
    """A store of noise whose record and patient ids are those of every other."""
    rng = np.random.default_rng(len(lengths))
    every = list(STANDARD_LEADS)
    settings = {"format": "ecgfast-store", "version": STORE_VERSION, "sample_rate": 500, "leads": every}
    with StoreWriter(path, settings | {"provenance": provenance}) as writer:
        for i, n in enumerate(lengths):
            signal = rng.integers(-500, 500, (12, n)).astype(np.int16)
            signal[[every.index(lead) for lead in every if lead not in leads]] = 0
            writer.add(Recording(f"r{i}", f"p{i // 2}", f"r{i}", signal, leads, [], None, None, 500.0))
        writer.finish()
    return Store(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    return [
        write(folder / f"store{k}", lengths, leads, {})
        for k, (lengths, leads) in enumerate(zip(LENGTHS, LEADS, strict=True))
    ]


@pytest.fixture(scope="module")
def joined(stores):
    return JoinedStores(stores)


def mixed(store, parts, batch=1, *, kind=SingleSegments, weights=None, samples=T, offsets="fixed", **options):
    """The mixture of plans of `kind` of these parts of a store."""
    plans = [
        kind(store, 1, segment_samples=samples, recordings=part, seed=3, offsets=offsets) for part in parts
    ]
    return Mixture(plans, batch, weights=weights, seed=3, **options)


def of_stores(joined, batch=1, **options):
    return mixed(joined, [joined.recordings(i) for i in range(3)], batch, **options)


def test_order_by_hand(monkeypatch):
    """Two plans of 3 and 5 segments, weights 3 to 1: 8 x 3/4 = 6 of the first and 2 of the second an epoch.

    With orders that aren't shuffled, the first gives 0 1 2 0 1 2 in every epoch, and the second 3 4, then
    5 6, then 7 3. The second round of the first has ids beyond the largest, 7: 8 + 0, 8 + 1, 8 + 2. Where
    the second plan is used up within an epoch, its next round is likewise numbered 8 + 3.
    """
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Unshuffled())
    store = Records([300] * 8)
    plan = mixed(store, [[0, 1, 2], [3, 4, 5, 6, 7]], 2, weights=[3, 1])
    assert plan.counts.tolist() == [6, 2]
    assert len(plan) == 4
    for epoch, last, ids in ((0, [3, 4], [3, 4]), (1, [5, 6], [5, 6]), (2, [7, 3], [7, 11])):
        recording, start, length, sample_id = plan.segments(epoch)
        assert recording.tolist() == [0, 1, 2, 0, 1, 2, *last]
        assert sample_id.tolist() == [0, 1, 2, 8, 9, 10, *ids]
        assert set(start) == {0}
        assert set(length) == {300}


class Unshuffled:
    """Stands in for a generator."""

    def permutation(self, x):
        return np.arange(x) if isinstance(x, int) else x


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        (None, [5, 8, 30]),
        ((5, 8, 30), [5, 8, 30]),
        ((0.7, 0.2, 0.1), [30, 9, 4]),  # of 43: 30.1, 8.6 and 4.3
        ((1, 1, 1), [15, 14, 14]),  # 14.33 each; of equal remainders the first
    ],
)
def test_shares_follow_weights(joined, weights, counts):
    plan = of_stores(joined, weights=weights)
    assert plan.counts.tolist() == counts
    for epoch in range(3):
        recording = plan.segments(epoch).recording
        shares = [int(np.isin(recording, joined.recordings(i)).sum()) for i in range(3)]
        assert shares == counts
    if weights is None:
        every = sorted(rows(SingleSegments(joined, 1, segment_samples=T).segments(0)))
        assert sorted(rows(plan.segments(1))) == every


def test_none_comes_again_before_its_store_is_used_up(joined):
    """Over epochs: any `n` units of a store in a row, counted from the run's start, are all of its `n`."""
    plan = of_stores(joined, weights=(0.3, 0.6, 0.1))
    for i, n in enumerate((5, 8, 30)):
        stream = []
        for epoch in range(12):
            own = [row[:2] for row in rows(plan.segments(epoch)) if row[0] in joined.recordings(i)]
            stream += own
        assert len(stream) > 1.5 * n
        rounds = [stream[k : k + n] for k in range(0, len(stream) - n + 1, n)]
        assert all(sorted(one) == sorted(rounds[0]) and len(set(one)) == n for one in rounds)
        assert len(rounds) == 1 or rounds[0] != rounds[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_what_one_would_have(joined, kind, world_size):
    options = {"kind": kind, "weights": (0.2, 0.5, 0.3), "offsets": "random"}
    one = of_stores(joined, 6, **options)
    parts = [
        of_stores(joined, 6 // world_size, rank=r, world_size=world_size, **options)
        for r in range(world_size)
    ]
    for epoch in (0, 4):
        whole = batches(one, epoch)
        shared = [batches(part, epoch) for part in parts]
        assert len(whole) == len(one) > 1
        for i, batch in enumerate(whole):
            assert sorted(batch) == sorted(row for part in shared for row in part[i])
        ids = [row[3] for batch in whole for row in batch]
        assert len(set(ids)) == len(ids)
        assert batches(of_stores(joined, 6, **options), epoch) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_one_plan_is_itself(joined, kind):
    for offsets in ("fixed", "random"):
        alone = kind(joined, 3, segment_samples=T, seed=3, offsets=offsets)
        plan = mixed(joined, [None], 3, kind=kind, offsets=offsets)
        assert [batches(plan, epoch) for epoch in (0, 5)] == [batches(alone, epoch) for epoch in (0, 5)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_has_the_segments_of_the_whole(joined, kind):
    whole = rows(kind(joined, 1, segment_samples=T).segments(0))
    part = rows(kind(joined, 1, segment_samples=T, recordings=[7, 5, 0]).segments(2))
    assert sorted(part) == sorted(row for row in whole if row[0] in (0, 5, 7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_loaders_fetch_from_all_stores(stores, joined, kind, dtype):
    plan = of_stores(joined, 2, kind=kind, weights=(0.3, 0.4, 0.3))
    kept = ResidentLoader(plan, device="cpu", dtype=dtype, leads=["V1", "I", "II"])
    stream = SegmentLoader(plan, dtype=dtype, leads=["V1", "I", "II"])
    seen = set()
    for named, a, b in zip(batches(plan), stream, kept, strict=True):
        for i, (recording, start, _, sample_id) in enumerate(named):
            k = next(k for k in range(3) if recording in joined.recordings(k))
            own = recording - int(joined.recordings(k)[0])
            want = torch.from_numpy(stores[k].signal(own)[[6, 0, 1], start : start + T].copy())
            assert torch.equal(a.signal[i], want if dtype == "int16" else want.float() * 1e-3)
            assert a.leads[i].tolist() == [lead in LEADS[k] for lead in ("V1", "I", "II")]
            assert (a.recording[i], a.sample_ids[i]) == (recording, sample_id)
            seen.add((k, own // 2, int(a.patients[i])))
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert {k for k, *_ in seen} == {0, 1, 2}
    # one number for each patient of each store, and no number twice
    assert len({(k, p) for k, p, _ in seen}) == len({number for *_, number in seen}) == len(seen)


def test_patients_of_the_same_source(tmp_path):
    """Ids are the same in all stores: equal numbers where the source is the same, others elsewhere."""
    told = [
        {"importer": "wfdb", "source": "/data/a"},
        {"importer": "arrays"},
        {"importer": "wfdb", "source": "/data/a"},
        {"importer": "arrays"},
        {"importer": "wfdb", "source": "/data/b"},
    ]
    stores = [write(tmp_path / str(k), [500] * 3, ["I"], one) for k, one in enumerate(told)]
    numbers = JoinedStores(stores).patient_numbers().reshape(5, 3)
    assert (numbers[:, 0] == numbers[:, 1]).all()
    assert (numbers[:, 0] != numbers[:, 2]).all()
    assert (numbers[0] == numbers[2]).all()
    assert len(np.unique(numbers)) == 8
    assert numbers.max() == 7


@pytest.mark.parametrize("make", [SegmentLoader, lambda plan: ResidentLoader(plan, device="cpu")])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_resumes_at_any_batch(joined, make, stop):
    def loader():
        return make(of_stores(joined, 4, weights=(0.7, 0.2, 0.1)))

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
    with pytest.raises(EcgfastError, match="loader state: counts is"):
        make(of_stores(joined, 4)).load_state_dict(state)


def test_a_changed_store_is_noticed(tmp_path):
    stores = [write(tmp_path / str(k), [600] * 4, ["I"], {}) for k in range(2)]
    loader = SegmentLoader(mixed(JoinedStores(stores), [range(4), range(4, 8)]))
    (tmp_path / "1/signals-00000.npy").touch()
    with pytest.raises(EcgfastError, match=r"1/signals-00000\.npy was changed"):
        next(iter(loader))


def test_refused(stores, joined, tmp_path):
    with pytest.raises(EcgfastError, match="stores: must be one or more, got none"):
        JoinedStores([])
    with pytest.raises(EcgfastError, match=r"stores: must be different ones, got .*store0' twice"):
        JoinedStores([stores[0], stores[1], Store(stores[0].path)])
    for weights in ((1, 2), (1, 2, 0), (1, 2, -1), (1, 2, float("nan"))):
        with pytest.raises(EcgfastError, match="weights: must be 3 positive numbers, got"):
            of_stores(joined, weights=weights)
    with pytest.raises(
        EcgfastError, match=r"weights: must give each .* got 0.001 for number 2, which has none"
    ):
        of_stores(joined, weights=(1, 0.001, 1))
    with pytest.raises(EcgfastError, match="fewer than one batch of 44 x 1"):
        of_stores(joined, 44)
    with pytest.raises(EcgfastError, match="seed: got -1"):
        Mixture([SingleSegments(joined, 1, segment_samples=T)], 1, seed=-1)
    with pytest.raises(EcgfastError, match="plans: must be one or more, got none"):
        Mixture([], 1)
    one = SingleSegments(joined, 1, segment_samples=T)
    for other, message in (
        (SingleSegments(joined, 2, segment_samples=T), "must have batch_size and world_size 1, got 2 and 1"),
        (SingleSegments(stores[0], 1, segment_samples=T), "must be of one store, opened once"),
        (SingleSegments(joined, 1, segment_samples=200), "must be alike, got SingleSegments of 200 samples"),
        (Windows(joined, 1, segment_samples=T), "must be alike, got Windows"),
    ):
        with pytest.raises(EcgfastError, match=f"plans: {message}"):
            Mixture([one, other], 1)
