"""What a run learns from: several stores, the parts of their recordings, and how they were made."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from ecgfast.data import Mixture, Preprocessing, Store, prepare
from ecgfast.errors import EcgfastError
from ecgfast.nn import Encoder
from ecgfast.objectives import W2VCMSC
from ecgfast.training import Interrupted, export, pretrain, read_metrics
from ecgfast.training.data import describe_preprocessing, make_plan, open_data
from tests.training.conftest import write_store
from tests.training.test_pretraining import CPU, assert_same_run
from tests.training.test_resuming import stop_at

pytestmark = pytest.mark.usefixtures("no_pictures")

# patients of two recordings each, see `write_store`
FOLDS = (1, 1, 2, 2, 3, 3, 4, 4, None, None, 2, 2)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("folded") / "folded", 12, seed=1, folds=FOLDS)


@pytest.fixture(scope="module")
def limb(tmp_path_factory):
    """Another store, of lead I alone, with the patient ids of the others."""
    return write_store(tmp_path_factory.mktemp("limb") / "limb", 6, seed=2, leads=["I"])


@pytest.fixture(scope="module")
def several(tiny):
    return dataclasses.replace(tiny, store_weights=(1, 3), max_steps=9)


@pytest.fixture(scope="module")
def mixed(store, limb, several, tmp_path_factory):
    """A run from two stores that never stopped; no test changes it."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    assert pretrain([store, limb], run, several, progress=False)
    return run


def parts(paths, tiny, **settings):
    data = open_data(paths, dataclasses.replace(tiny, **settings))
    held = None if data.validation is None else data.validation.tolist()
    return [part.tolist() for part in data.training], held, data.notes


def test_a_store_alone_is_taken_whole(store, tiny):
    data = open_data([store], tiny)
    assert data.training == (None,)
    assert data.validation is None
    assert data.describe() is None
    assert data.used(0) is None


@pytest.mark.parametrize(
    ("settings", "training", "held", "left"),
    [
        ({"validation_folds": (3,)}, [0, 1, 2, 3, 6, 7, 8, 9, 10, 11], [4, 5], 0),
        ({"exclude_folds": (2,)}, [0, 1, 4, 5, 6, 7, 8, 9], None, 4),
        ({"validation_folds": (3,), "exclude_folds": (2, 4)}, [0, 1, 8, 9], [4, 5], 6),
        ({"train_folds": (1, 2), "validation_folds": (4,)}, [0, 1, 2, 3, 10, 11], [6, 7], 4),
    ],
)
def test_folds_by_hand(folded, store, tiny, settings, training, held, left):
    assert parts([folded], tiny, **settings)[:2] == ([training], held)
    # a store without folds is trained on whole, and said so
    both, of_both, notes = parts([folded, store], tiny, **settings)
    assert (both, of_both) == ([training, list(range(12, 26))], held)
    assert any("has no folds; all of its 14 recordings are trained on" in note for note in notes)
    assert any(f"{left} of 12 recordings are in no fold that is used" in note for note in notes) == bool(left)


def test_patients_are_held_back_whole(folded, store, tiny):
    (training,), held, _ = parts([store], tiny, validation_fraction=0.3)
    assert sorted(training + held) == list(range(14))
    patients = Store(store).patient_numbers()
    assert len(set(patients[held])) == 2  # 0.3 x 7 patients
    assert not set(patients[held]) & set(patients[training])
    assert parts([store], tiny, validation_fraction=0.3, seed=1)[1] != held
    few = parts([store], tiny, validation_fraction=0.001)[1]
    assert len(few) == 2  # one patient at least
    assert set(few) < set(held)  # those of a smaller share are of the larger one's
    # of those to train on: none of the folds left alone
    (training,), held, _ = parts([folded], tiny, validation_fraction=0.5, exclude_folds=(2, 3))
    assert sorted(training + held) == [0, 1, 6, 7, 8, 9]


def test_what_the_parts_are_stands_in_the_run(folded, tiny):
    data = open_data([folded], dataclasses.replace(tiny, validation_folds=(3,), exclude_folds=(2, 4)))
    told = data.describe()
    assert len(told.pop("parts_sha256")) == 64
    assert told == {"recordings": 12, "training": 4, "validation": 2}
    assert data.used(0).tolist() == [0, 1, 4, 5, 8, 9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_folds": (1, 9)}, r"train_folds: must be of the stores' folds \[1, 2, 3, 4\], got 9"),
        ({"exclude_folds": (7,)}, "exclude_folds: must be of the stores' folds"),
        (
            {"exclude_folds": (1, 2), "validation_folds": (2,)},
            "exclude_folds: .* got 2 in validation_folds too",
        ),
        ({"exclude_folds": (1, 1)}, "exclude_folds: must be folds of their own, got 1 twice"),
        ({"validation_folds": (-1,)}, "validation_folds: must be integers of at least 0, got -1"),
        ({"validation_folds": (1,), "validation_fraction": 0.1}, "validation_fraction: must be 0 beside"),
        ({"validation_fraction": 1.0}, r"validation_fraction: must be a number in \[0, 1\), got 1.0"),
        ({"validate_every": 3}, "validate_every: must have validation_fraction or validation_folds"),
        ({"store_weights": (1, 2)}, "store_weights: must be one for each of 1 stores, got 2"),
        ({"store_weights": (0,)}, "store_weights: must be positive numbers"),
        ({"train_folds": (1,), "validation_fraction": 0.5}, "must have two patients or more, got 1"),
    ],
)
def test_parts_refused(folded, tiny, settings, message):
    with pytest.raises(EcgfastError, match=message):
        open_data([folded], dataclasses.replace(tiny, **settings))


@pytest.mark.parametrize("name", ["validation_folds", "exclude_folds"])
def test_a_patient_in_two_parts(tiny, tmp_path, name):
    path = write_store(tmp_path / "store", 6, folds=(1, 2, 2, 2, 3, 3))
    with pytest.raises(EcgfastError, match=f"{name}: must hold whole patients, got p0 in another part too"):
        open_data([path], dataclasses.replace(tiny, **{name: (2,)}))


def test_excluded_recordings_are_never_read(tiny, tmp_path):
    """What they hold changes no number of the run, nor is it looked at."""
    config = dataclasses.replace(
        tiny, validation_folds=(3,), exclude_folds=(2, 4), max_steps=4, offsets="random", loader="resident"
    )
    path = write_store(tmp_path / "store", 12, folds=FOLDS)
    with pytest.warns(UserWarning, match="6 of 12 recordings are in no fold that is used"):
        pretrain(path, tmp_path / "before", config, progress=False)
    store = Store(path)
    shard = np.load(path / "signals-00000.npy")
    for i, fold in enumerate(FOLDS):
        if fold in (2, 4):
            start = store.index["offset"][i].as_py()
            shard[start : start + 12 * 640] = 32767
    np.save(path / "signals-00000.npy", shard)
    with pytest.warns(UserWarning, match="in no fold that is used"):
        pretrain(path, tmp_path / "after", config, progress=False)
    assert_same_run(tmp_path / "before", tmp_path / "after")
    with pytest.raises(EcgfastError, match="is damaged: checksum of record"):
        pretrain(path, tmp_path / "all", tiny, progress=False)


def test_a_run_from_two_stores(mixed, store, limb, several):
    told = json.loads((mixed / "config.json").read_text())
    assert [one["path"] for one in told["stores"]] == [str(store), str(limb)]
    assert "store" not in told
    assert told["config"]["store_weights"] == [1, 3]
    # 14 and 6 pairs: an epoch has 5 of the first and 15 of the second
    plan, notes = make_plan(open_data([store, limb], several), several, CPU)
    assert isinstance(plan, Mixture)
    assert (plan.counts.tolist(), notes) == ([5, 15], [])
    assert not pretrain([store, limb], mixed, several, progress=False)
    Encoder.from_pretrained(mixed / "model")


def test_it_goes_on_with_the_same_numbers(mixed, store, limb, several, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2, 7)
    for loader in ("stream", "resident"):
        config = dataclasses.replace(several, loader=loader)
        with pytest.raises(Interrupted):
            pretrain([store, limb], tmp_path / "run", config, progress=False)
    assert pretrain([store, limb], tmp_path / "run", several, progress=False)
    assert_same_run(mixed, tmp_path / "run")


def test_it_refuses_other_stores(mixed, store, limb, folded, several, tmp_path):
    for stores in ([limb, store], [store, folded], [store, limb, folded], [store]):
        config = dataclasses.replace(several, store_weights=(), max_steps=20)
        with pytest.raises(EcgfastError, match=r"was started with .*stores .*store, .*limb \(now"):
            pretrain(stores, mixed, config, progress=False)
    moved = shutil.copytree(limb, tmp_path / "moved")
    assert not pretrain([store, moved], mixed, several, progress=False)
    with pytest.raises(EcgfastError, match=r"store_weights = \[1, 3\] \(now \[3, 1\]\)"):
        pretrain([store, limb], mixed, dataclasses.replace(several, store_weights=(3, 1)), progress=False)
    with pytest.raises(EcgfastError, match=r"STORE: must be different ones, got .*limb' and .*moved', which"):
        pretrain([limb, moved], tmp_path / "run", several, progress=False)
    assert not (tmp_path / "run").exists()


def test_without_weights_every_recording_once(store, limb, tiny):
    data = open_data([store, limb], tiny)
    plan, _ = make_plan(data, dataclasses.replace(tiny, batch_pairs=1), CPU)
    assert sorted(plan.segments(3).recording.tolist()) == sorted([*range(20), *range(20)])


def test_a_store_too_short_is_left_out(store, limb, tiny, tmp_path):
    short = write_store(tmp_path / "short", 4, samples=639)
    config = dataclasses.replace(tiny, store_weights=(1, 5, 1))
    plan, notes = make_plan(open_data([store, short, limb], config), config, CPU)
    assert notes == [f"{short}: has none of the pairs of 320 samples to train on; it isn't used"]
    assert plan.counts.tolist() == [10, 10]  # 1 to 1 of 14 + 6
    other = write_store(tmp_path / "other", 4, seed=1, samples=600)
    with pytest.raises(EcgfastError, match="STORE: must have pairs of 320 samples to train on, got none in"):
        make_plan(open_data([short, other], tiny), tiny, CPU)
    alone, _ = make_plan(open_data([short, store], tiny), tiny, CPU)
    assert sorted(alone.segments(0).recording.tolist()) == sorted([*range(4, 18), *range(4, 18)])


def made(preprocessing, source):
    told = {"preprocessing": preprocessing.describe(), "unit": "microvolt"}
    return told | {"provenance": {"importer": "wfdb", "source": f"/data/{source}"}}


def test_preprocessing_goes_into_the_model(tiny, tmp_path):
    plain, other = Preprocessing(), Preprocessing(bandpass=(0.5, 40.0))
    paths = [
        write_store(tmp_path / name, 4, seed=seed, settings=made(how, name))
        for seed, (name, how) in enumerate((("a", plain), ("b", other), ("c", plain)))
    ]
    with pytest.warns(UserWarning, match="b: was made otherwise than .*a: no band-pass there, band-pass 0"):
        pretrain(paths, tmp_path / "run", dataclasses.replace(tiny, max_steps=1), progress=False)
    told = json.loads((tmp_path / "run/model/config.json").read_text())["preprocessing"]
    assert [one["sources"] for one in told] == [["a", "c"], ["b"]]
    assert told == describe_preprocessing([Store(path) for path in paths])
    for one, how in zip(told, (plain, other), strict=True):
        assert one["filters"] == json.loads(json.dumps(how.describe()["filters"]))
        assert (one["sample_rate"], one["unit"], one["leads"][:2]) == (500, "microvolt", ["I", "II"])

    export(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["preprocessing"] == told
    model = W2VCMSC.from_pretrained(tmp_path / "out")
    assert model.preprocessing == told
    encoder = Encoder.from_pretrained(tmp_path / "run/model")
    encoder.save_pretrained(tmp_path / "encoder")
    assert Encoder.from_pretrained(tmp_path / "encoder").preprocessing == told
    # an init has its own data, and says nothing of them
    config = dataclasses.replace(tiny, max_steps=1)
    pretrain(paths[1], tmp_path / "next", config, init=tmp_path / "out", progress=False)
    assert W2VCMSC.from_pretrained(tmp_path / "next/model").preprocessing["sources"] == ["b"]


def test_folders_without_it_load(store, tiny, tmp_path):
    model = W2VCMSC(tiny.model)
    model.save_pretrained(tmp_path / "old")
    assert "preprocessing" not in json.loads((tmp_path / "old/config.json").read_text())
    assert W2VCMSC.from_pretrained(tmp_path / "old").preprocessing is None
    assert Encoder.from_pretrained(tmp_path / "old").preprocessing is None


def test_real_stores_of_one_lead_and_of_twelve(shared, tiny, tmp_path):
    """LUDB, CinC 2021 and ECG-ID, whose 20 s recordings have lead I alone, in one run."""
    data = shared("data")
    taken = {
        "ludb": [data / f"ludb/{i}{end}" for i in (1, 2, 3) for end in (".hea", ".dat")],
        "cinc": sorted((data / "cinc").glob("A*"))[:6],
        "ecgid": [
            data / f"ecgid/Person_{p:02d}/rec_{i}{end}"
            for p in (1, 2, 3)
            for i in (1, 2)
            for end in (".hea", ".dat")
        ],
    }
    for name, files in taken.items():
        for file in files:
            copy = tmp_path / "records" / file.relative_to(data)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        prepare(tmp_path / "records" / name, tmp_path / name, progress=False)
    paths = [tmp_path / name for name in taken]
    config = dataclasses.replace(
        tiny, segment_samples=2500, store_weights=(0.4, 0.3, 0.3), validation_fraction=0.3, max_steps=3
    )
    opened = open_data(paths, config)
    counts = [len(store) for store in opened.stores]
    assert counts == [3, 3, 6]
    assert opened.store.present_leads().sum(1).tolist() == [12] * 6 + [1] * 6
    patients = opened.store.patient_numbers()
    assert len(np.unique(patients)) == 3 + 3 + 3
    assert pretrain(paths, tmp_path / "run", config, progress=False)
    points = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [point["step"] for point in points] == [1, 2, 3]
    assert all("validation_global" in point for point in points)
