"""Runs of fine-tuning: what they learn and leave, how they go on, and what they refuse."""

import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ecgfast.cli import main
from ecgfast.data import Store, prepare
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import STORE_VERSION
from ecgfast.data.store.writer import StoreWriter
from ecgfast.errors import EcgfastError
from ecgfast.finetuning import (
    Classifier,
    Split,
    Targets,
    finetune,
    label_targets,
    predict_store,
)
from ecgfast.finetuning.scoring import macro_auroc
from ecgfast.finetuning.targets import choose_split
from ecgfast.interop import convert_fairseq
from ecgfast.leads import STANDARD_LEADS
from ecgfast.nn import Encoder
from ecgfast.training import Interrupted, OptimConfig, export, read_metrics
from ecgfast.training.loop import Trainer
from tests.finetuning.conftest import LEFT_BLOCK, RIGHT_BLOCK, SINUS, SMALL


@pytest.fixture(scope="module")
def whole(path, pretrained, config, tmp_path_factory):
    """A run of 10 updates that never stopped; no test changes it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert finetune(path, pretrained, run, config, progress=False)
    return run


def stop_at(monkeypatch, *steps):
    update = Trainer.update

    def update_then_stop(self, batches):
        update(self, batches)
        if self.step in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", update_then_stop)


def assert_same(a, b):
    """Two training states, or parts of them, agree bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def state(run):
    return torch.load(run / "checkpoint/state.pt", weights_only=True)


def test_validation_is_logged_and_the_best_is_kept(whole, store, config):
    points = read_metrics(whole / "metrics.jsonl")
    assert [p["step"] for p in points] == [1, 2, 4, 5, 6, 8, 10]
    looked = [p for p in points if "val_auroc" in p]
    assert [p["step"] for p in looked] == [2, 4, 6, 8, 10]
    assert all(math.isfinite(p["val_loss"]) for p in looked)
    best = max(looked, key=lambda p: p["val_auroc"])
    assert (whole / "curves.png").stat().st_size > 10_000

    # the folder's model is that of the best step: it gives the very number, computed here anew
    classifier = Classifier.from_pretrained(whole)
    assert json.loads((whole / "model/config.json").read_text())["origin"]["step"] == best["step"]
    held = choose_split(store, config).validation
    truth = label_targets(store, config.classes).values[held]
    outputs = np.concatenate([classifier.predict(store.signal(i).copy()) for i in held])
    assert roc_auc_score(truth, outputs) == pytest.approx(best["val_auroc"], abs=1e-9)
    each = -np.where(truth > 0.5, np.log(outputs), np.log(1 - outputs))
    assert each.mean() == pytest.approx(best["val_loss"], rel=1e-4)
    chosen, table = predict_store(store, classifier, recordings=held, batch_size=3, device="cpu")
    assert (chosen == held).all()
    np.testing.assert_allclose(table, outputs, atol=1e-6)


def test_stopped_anywhere_it_ends_the_same(whole, path, pretrained, config, tmp_path, monkeypatch):
    """Stops before the first validation, between two, and right at one."""
    run = tmp_path / "run"
    stop_at(monkeypatch, 1, 5, 8)
    for _ in range(3):
        with pytest.raises(Interrupted):
            finetune(path, pretrained, run, config, progress=False)
    assert finetune(path, pretrained, run, config, progress=False)
    assert_same(state(whole), state(run))
    assert (whole / "model/model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()
    points = [read_metrics(folder / "metrics.jsonl") for folder in (whole, run)]
    for point in (*points[0], *points[1]):
        point.pop("segments_per_second")
    assert points[0] == points[1]
    assert not finetune(path, pretrained, run, config, progress=False)


def test_a_finished_run_goes_on(whole, path, pretrained, config, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    longer = dataclasses.replace(config, max_steps=14)
    assert finetune(path, pretrained, run, longer, progress=False)
    assert finetune(path, pretrained, tmp_path / "other", longer, progress=False)
    assert_same(state(run), state(tmp_path / "other"))


def test_frozen_weights_stay(path, pretrained, config, tmp_path):
    before = Encoder.from_pretrained(pretrained).state_dict()
    for freeze in ("stem", "encoder"):
        run = tmp_path / freeze
        changed = dataclasses.replace(config, freeze=freeze, max_steps=2)
        finetune(path, pretrained, run, changed, progress=False)
        after = Classifier.from_pretrained(run).encoder.state_dict()
        same = {name for name in before if torch.equal(before[name], after[name])}
        stem = {name for name in before if name.startswith("stem.")}
        assert same == ({*stem, "mask_token"} if freeze == "stem" else before.keys())


def test_layer_decay_trains_lower_layers_less(path, pretrained, config, tmp_path):
    """Adam's first step is lr * sign of the gradient: a weight moves by its layer's rate, 1e-3 / 2^depth."""
    optim = OptimConfig(lr=1e-3, weight_decay=0.0, eps=1e-12)
    changed = dataclasses.replace(
        config, optim=optim, freeze="none", layer_decay=0.5, max_steps=1, validate_every=1
    )
    finetune(path, pretrained, tmp_path / "run", changed, progress=False)
    before = Encoder.from_pretrained(pretrained).state_dict()
    after = Classifier.from_pretrained(tmp_path / "run").encoder.state_dict()
    for layer, rate in ((1, 5e-4), (0, 2.5e-4)):
        name = f"transformer.layers.{layer}.fc2.bias"
        assert (after[name] - before[name]).abs().max().item() == pytest.approx(rate, rel=1e-3)


def test_it_learns_what_the_leads_carry(path, store, config, tmp_path):
    """A number that each recording's signal has: its largest amplitude of lead II, from lead II alone."""
    peak = np.array([np.abs(store.signal(i)[1]).max() for i in range(len(store))]) / 1000
    targets = Targets(peak[:, None].astype(np.float32), ("peak",))
    changed = dataclasses.replace(
        config,
        classes=(),
        leads=("II",),
        optim=OptimConfig(lr=3e-3),
        freeze="none",
        max_steps=150,
        batch_size=16,
        validate_every=10,
    )
    finetune(path, "random", tmp_path / "run", changed, targets=targets, progress=False)
    classifier = Classifier.from_pretrained(tmp_path / "run")
    assert classifier.config.task == "regression"
    held = choose_split(store, config).validation
    outputs = np.concatenate([classifier.predict(store.signal(i)[1:2].copy(), leads=["II"]) for i in held])
    assert outputs.shape == (len(held), 1)
    assert np.corrcoef(outputs[:, 0], peak[held])[0, 1] > 0.6
    spread = np.abs(peak[held] - np.median(peak[held])).mean()
    assert np.abs(outputs[:, 0] - peak[held]).mean() < 0.9 * spread


def test_it_learns_classes(path, store, config, tmp_path):
    """Whether that amplitude is above the median, from leads I and II; the validation keeps the best."""
    peak = np.array([np.abs(store.signal(i)[1]).max() for i in range(len(store))])
    targets = Targets((peak > np.median(peak))[:, None].astype(np.float32), ("large",))
    changed = dataclasses.replace(
        config,
        classes=(),
        leads=("I", "II"),
        optim=OptimConfig(lr=3e-3, schedule="cosine", warmup_steps=5),
        freeze="none",
        max_steps=80,
        batch_size=16,
        validate_every=10,
    )
    finetune(path, "random", tmp_path / "run", changed, targets=targets, progress=False)
    held = choose_split(store, config).validation
    _, outputs = predict_store(store, Classifier.from_pretrained(tmp_path / "run"), recordings=held)
    assert roc_auc_score(targets.values[held, 0], outputs[:, 0]) > 0.8


def test_age_of_the_store(path, config, tmp_path):
    changed = dataclasses.replace(config, classes=(), target="age", max_steps=2)
    finetune(path, "random", tmp_path / "run", changed, progress=False)
    classifier = Classifier.from_pretrained(tmp_path / "run")
    assert classifier.config.names == ("age",)
    assert 20 < classifier.config.mean[0] < 90
    assert "val_mae" in read_metrics(tmp_path / "run/metrics.jsonl")[-1]


def test_balanced_weights(path, store, config, tmp_path):
    changed = dataclasses.replace(config, class_weights="balanced", max_steps=2)
    finetune(path, "random", tmp_path / "run", changed, progress=False)
    train = choose_split(store, config).train
    present = label_targets(store, (SINUS,)).values[train].sum()
    weights = Classifier.from_pretrained(tmp_path / "run").config.positive_weights
    assert weights == pytest.approx([(len(train) - present) / present])


def test_official_checkpoint(path, config, tmp_path, shared):
    checkpoint = shared("golden/tiny_fairseq_checkpoint.pt")
    convert_fairseq(checkpoint, tmp_path / "converted")
    encoder = Encoder.from_pretrained(tmp_path / "converted")
    changed = dataclasses.replace(config, max_steps=2, encoder=dataclasses.replace(SMALL, **_sizes(encoder)))
    finetune(path, checkpoint, tmp_path / "run", changed, progress=False)
    got = Classifier.from_pretrained(tmp_path / "run").encoder
    assert torch.equal(got.stem.convs[0].weight, encoder.stem.convs[0].weight)


def _sizes(encoder):
    names = (
        "stem_channels",
        "width",
        "layers",
        "heads",
        "ffn",
        "conv_pos",
        "conv_pos_groups",
        "norm_padding",
    )
    return {name: getattr(encoder.config, name) for name in names}


def test_macro_auroc_by_hand():
    """Class 0: positives .9, .4 against .5: 1 of 2 pairs right; class 1 has one value; class 2: unknown
    first, then .2 positive against .1: 1. Mean of 1/2 and 1."""
    targets = np.array([[1, 1, np.nan], [0, 1, 1], [1, 1, 0]])
    outputs = np.array([[0.9, 0.3, 0.9], [0.5, 0.3, 0.2], [0.4, 0.3, 0.1]])
    assert macro_auroc(targets, outputs) == pytest.approx(0.75)


@pytest.fixture(scope="module")
def together(path, pretrained, config, tmp_path_factory):
    """Runs of two processes, which are started once for all of them: the folder that has them."""
    folder = tmp_path_factory.mktemp("together")
    two = dataclasses.replace(config, batch_size=4, max_steps=6)
    still = dataclasses.replace(two, encoder=dataclasses.replace(config.encoder, activation_dropout=0.0))
    identity = dataclasses.replace(
        two, classes=(), task="identification", lead_mask_prob=0.5, max_steps=4, precision="bf16"
    )
    runs = [
        ("still", still),
        ("whole", two),
        ("parts", dataclasses.replace(two, max_steps=3)),
        ("parts", two),
        ("identity", identity),
    ]
    stages = []
    for number, (name, told) in enumerate(runs):
        settings = folder / f"{number}.json"
        settings.write_text(json.dumps(dataclasses.asdict(told)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        stage = {"store": path, "model": pretrained, "run": folder / name, "config": settings, "port": port}
        stages.append({key: value if key == "port" else str(value) for key, value in stage.items()})
    (folder / "stages.json").write_text(json.dumps(stages))
    command = [sys.executable, "-m", "tests.finetuning.two_processes", str(folder / "stages.json")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=env | {"RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    return folder


def test_two_processes_go_on(together):
    """Dropout is on, and each process has its own: 3 updates and 3 more are 6, the best state too."""
    assert (together / "parts/model-3").is_dir()
    assert_same(state(together / "whole"), state(together / "parts"))


def test_two_processes(together, path, pretrained, config, tmp_path):
    """Two processes of 4 recordings are one of 8 but for rounding and dropout, which is off here."""
    encoder = dataclasses.replace(config.encoder, activation_dropout=0.0)
    alone = dataclasses.replace(config, encoder=encoder, max_steps=6)
    finetune(path, pretrained, tmp_path / "alone", alone, progress=False)
    points = [read_metrics(run / "metrics.jsonl") for run in (tmp_path / "alone", together / "still")]
    for one, two in zip(*points, strict=True):
        assert one.keys() == two.keys()
        for name in ("loss", "accuracy", "grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=2e-3), (one["step"], name)
        if "val_loss" in one:
            assert one["val_loss"] == pytest.approx(two["val_loss"], rel=2e-3)


def test_two_processes_tell_whose_a_recording_is(together):
    points = read_metrics(together / "identity/metrics.jsonl")
    assert all(0 <= p["val_rank_1"] <= 1 and 0 <= p["val_eer"] <= 1 for p in points if "val_rank_1" in p)
    assert [p["step"] for p in points if "val_rank_1" in p] == [2, 4]
    assert Classifier.from_pretrained(together / "identity").config.task == "identification"


def test_one_lead_from_end_to_end(config, pretrained, tmp_path):
    """A watch's recordings: one lead, some shorter than a segment; the encoder was made for twelve."""
    rng = np.random.default_rng(0)
    settings = {"format": "ecgfast-store", "version": STORE_VERSION, "sample_rate": 500}
    with StoreWriter(tmp_path / "store", settings | {"leads": list(STANDARD_LEADS)}) as writer:
        for i in range(24):
            signal = np.zeros((12, 500 + 100 * (i % 8)), np.int16)
            lead = 1 if i == 23 else 0
            signal[lead] = rng.integers(-500, 500, signal.shape[1])
            leads, labels = [STANDARD_LEADS[lead]], ["A"] if i % 3 else ["B"]
            writer.add(Recording(f"r{i}", f"p{i}", f"r{i}", signal, leads, labels, None, None, 500.0))
        writer.finish()
    changed = dataclasses.replace(config, classes=("A", "B"), leads=("I",), max_steps=2, batch_size=4)
    with pytest.warns(UserWarning, match="1 of 24 recordings have none of the leads: they are left out"):
        finetune(tmp_path / "store", pretrained, tmp_path / "run", changed, progress=False)
    store, classifier = Store(tmp_path / "store"), Classifier.from_pretrained(tmp_path / "run")
    with pytest.warns(UserWarning, match="1 of 24 recordings have none of I: they are left out"):
        chosen, outputs = predict_store(store, classifier, batch_size=5, device="cpu")
    assert chosen.tolist() == list(range(23))
    want = [classifier.predict(store.signal(i)[:1].copy())[0] for i in chosen]
    np.testing.assert_allclose(outputs, want, atol=1e-5)
    with pytest.raises(EcgfastError, match="has no recording with any of the leads V1"):
        finetune(
            tmp_path / "store",
            pretrained,
            tmp_path / "other",
            dataclasses.replace(changed, leads=("V1",)),
            progress=False,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("X",)}, "classes: must be labels of .*, got 'X'"),
        ({"classes": (RIGHT_BLOCK, LEFT_BLOCK, SINUS), "leads": ("X",)}, "unknown lead 'X'"),
        ({"task": "regression"}, "task: must be classification for labels, got 'regression'"),
        ({"validate_every": 11}, "validate_every: must be at most the run's 10 updates, got 11"),
        ({"validation_folds": (1,)}, r"validation_folds: must be of the store's folds \[\], got 1"),
        ({"batch_size": 64}, "recordings: got .*, fewer than one batch of 64"),
        ({"encoder": dataclasses.replace(SMALL, width=64)}, r"encoder.width: must be 32, that of the model"),
    ],
)
def test_what_is_refused(path, pretrained, config, tmp_path, changes, message):
    with pytest.raises(EcgfastError, match=message):
        finetune(path, pretrained, tmp_path / "run", dataclasses.replace(config, **changes), progress=False)
    assert not (tmp_path / "run").exists()


def test_splits_and_models_that_are_refused(path, store, pretrained, config, whole, tmp_path):
    both = Split(np.arange(0, 60, 2), np.arange(1, 60, 2))  # of each patient one recording in each part
    with pytest.raises(EcgfastError, match=r"each patient in one part, got 'p000000' in train"):
        finetune(path, pretrained, tmp_path / "run", config, split=both, progress=False)
    with pytest.raises(EcgfastError, match=r"RUN: must be a run of ecgfast pretrain, got .* of finetune"):
        export(whole, tmp_path / "out")
    with pytest.raises(EcgfastError, match="MODEL: must be a model folder, an official checkpoint or random"):
        finetune(path, tmp_path / "none", tmp_path / "run", config, progress=False)
    Encoder(SMALL).save_pretrained(tmp_path / "other")
    with pytest.raises(EcgfastError, match=r"was started with init .*model \(now .*other\)"):
        finetune(path, tmp_path / "other", whole, config, progress=False)
    flipped = label_targets(store, (SINUS,))
    flipped = Targets(1 - flipped.values, flipped.names)
    with pytest.raises(EcgfastError, match=r"was started with data\.targets_sha256"):
        finetune(path, pretrained, whole, config, targets=flipped, progress=False)


def test_commands(whole, path, tmp_path, capsys):
    assert main(["predict", str(path), str(whole), str(tmp_path / "out.parquet")]) == 0
    assert main(["predict", str(path), str(whole / "model"), str(tmp_path / "out.csv"), "--leads", "I"]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["record_id", "patient_id", SINUS]
    one = pyarrow.csv.read_csv(tmp_path / "out.csv")
    assert one.num_rows == table.num_rows == 60
    opened, classifier = Store(path), Classifier.from_pretrained(whole)
    want = [classifier.predict(opened.signal(i)[:1].copy(), leads=["I"])[0, 0] for i in range(60)]
    np.testing.assert_allclose(one[SINUS].to_numpy(), want, atol=1e-6)
    assert main(["finetune", str(path), "random", str(tmp_path / "run"), "--classes", "X"]) == 2
    assert "classes: must be labels" in capsys.readouterr().err
    assert main(["predict", str(path), str(path), str(tmp_path / "x.csv")]) == 2
    assert main(["predict", str(path), str(whole), str(tmp_path / "x.txt")]) == 2
    with pytest.raises(SystemExit, match="0"):
        main(["finetune", "--help"])
    told = capsys.readouterr().out
    assert "--layer-decay" in told
    assert "--optim.schedule" in told


def test_a_warning_where_preprocessing_differs(whole, store, monkeypatch):
    classifier = Classifier.from_pretrained(whole)
    changed = {**store.description, "preprocessing": {"highpass": 0.5}}
    other = Store(store.path)
    monkeypatch.setattr(other, "description", changed)
    with pytest.warns(UserWarning, match="was made with other preprocessing"):
        predict_store(other, classifier, recordings=np.arange(2), device="cpu")


def test_real_records(shared, config, tmp_path):
    """Some PTB-XL recordings, with their folds, to a table of predictions."""
    source = shared("data/ptbxl_subset")
    some = tmp_path / "records"
    some.mkdir()
    for name in ("ptbxl_database.csv", "scp_statements.csv"):
        shutil.copy(source / name, some)
    rows = (some / "ptbxl_database.csv").read_text().splitlines()
    (some / "ptbxl_database.csv").write_text("\n".join([rows[0], *rows[1:61]]) + "\n")
    (some / "records500").symlink_to(source / "records500")
    prepare(some, tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    counts = np.nansum(label_targets(store).values, 0)
    common = label_targets(store).names[int(np.argmin(np.abs(counts - len(store) / 2)))]
    changed = dataclasses.replace(
        config, classes=(common,), max_steps=4, segment_samples=2500, validation_fraction=0.3
    )
    finetune(tmp_path / "store", "random", tmp_path / "run", changed, progress=False)
    chosen, outputs = predict_store(store, Classifier.from_pretrained(tmp_path / "run"), leads=["I"])
    assert len(chosen) == len(store)
    assert ((outputs > 0) & (outputs < 1)).all()
