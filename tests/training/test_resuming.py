"""Runs that go on for longer, start from a model, or give their model before they end."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch

from ecgfast.errors import EcgfastError
from ecgfast.nn import Encoder
from ecgfast.objectives import W2VCMSC
from ecgfast.training import Interrupted, export, pretrain, read_metrics
from ecgfast.training.loop import Trainer
from tests.training.conftest import write_store
from tests.training.test_pretraining import assert_same, assert_same_run


@pytest.fixture(scope="module")
def long(store, tiny, tmp_path_factory):
    """A run of 14 updates that never stopped; no test changes it."""
    run = tmp_path_factory.mktemp("long") / "run"
    assert pretrain(store, run, dataclasses.replace(tiny, max_steps=14), progress=False)
    return run


@pytest.fixture(scope="module")
def short(store, tiny, tmp_path_factory):
    """A finished run of 10 updates, to copy."""
    run = tmp_path_factory.mktemp("short") / "run"
    assert pretrain(store, run, tiny, progress=False)
    return run


@pytest.fixture
def copy(short, tmp_path):
    return shutil.copytree(short, tmp_path / "run")


def stop_at(monkeypatch, *steps):
    update = Trainer.update

    def update_then_stop(self, batches):
        update(self, batches)
        if self.step in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", update_then_stop)


def test_a_finished_run_goes_on(long, copy, store, tiny):
    """Its last log point, out of turn, gives way to those of the longer run."""
    config = dataclasses.replace(tiny, max_steps=14)
    assert [p["step"] for p in read_metrics(copy / "metrics.jsonl")] == [1, 4, 8, 10]
    assert pretrain(store, copy, config, progress=False)
    assert_same_run(long, copy)
    assert [p["step"] for p in read_metrics(copy / "metrics.jsonl")] == [1, 4, 8, 12, 14]
    told = json.loads((copy / "config.json").read_text())
    assert told["config"]["max_steps"] == 14
    assert told["history"] == [{"step": 10, "changes": {"max_steps": [10, 14]}}]
    assert W2VCMSC.from_pretrained(copy / "model-10").config == tiny.model
    assert not pretrain(store, copy, config, progress=False)
    assert not pretrain(store, copy, tiny, progress=False)  # shorter than it is: nothing to do


def test_a_schedule_resumes_and_keeps_its_length(store, tiny, tmp_path, monkeypatch):
    """Over the run's length: the same numbers after a stop, and no other length."""
    optim = dataclasses.replace(tiny.optim, schedule="cosine", warmup_steps=2)
    config = dataclasses.replace(tiny, optim=optim)
    pretrain(store, tmp_path / "whole", config, progress=False)
    points = read_metrics(tmp_path / "whole/metrics.jsonl")
    assert points[0]["lr"] == pytest.approx(optim.lr / 3)
    assert points[-1]["lr"] == pytest.approx(0.01 * optim.lr)
    stop_at(monkeypatch, 5)
    with pytest.raises(Interrupted):
        pretrain(store, tmp_path / "run", config, progress=False)
    with pytest.raises(EcgfastError, match=r"max_steps = 10 \(now 14\)"):
        pretrain(store, tmp_path / "run", dataclasses.replace(config, max_steps=14), progress=False)
    pretrain(store, tmp_path / "run", config, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_everything_that_may_change(long, store, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stop_at(monkeypatch, 5)
    with pytest.raises(Interrupted):
        pretrain(store, run, tiny, progress=False)
    changed = dataclasses.replace(
        tiny, max_steps=14, epochs=tiny.epochs + 1, log_every=2, checkpoint_every=6, loader="resident"
    )
    pretrain(store, run, changed, progress=False)
    states = [torch.load(path / "checkpoint/state.pt", weights_only=True) for path in (long, run)]
    for part in ("model", "optimizer", "rng", "step"):
        assert_same(states[0][part], states[1][part])
    told = json.loads((run / "config.json").read_text())
    assert told["history"][0]["step"] == 5
    assert told["history"][0]["changes"].keys() == {
        *("max_steps", "epochs", "log_every", "checkpoint_every", "loader")
    }
    assert [p["step"] for p in read_metrics(run / "metrics.jsonl")] == [1, 4, 6, 8, 10, 12, 14]


def test_fewer_steps_than_made(store, tiny, tmp_path, monkeypatch):
    stop_at(monkeypatch, 7)
    with pytest.raises(Interrupted):
        pretrain(store, tmp_path / "run", tiny, progress=False)
    before = (tmp_path / "run/config.json").read_text()
    with pytest.raises(EcgfastError, match=r"max_steps: must be at least 7, .* got 6"):
        pretrain(store, tmp_path / "run", dataclasses.replace(tiny, max_steps=6), progress=False)
    assert (tmp_path / "run/config.json").read_text() == before
    assert pretrain(store, tmp_path / "run", dataclasses.replace(tiny, max_steps=7), progress=False)


def test_a_finished_run_without_its_checkpoint(copy, store, tiny):
    shutil.rmtree(copy / "checkpoint")
    assert not pretrain(store, copy, tiny, progress=False)
    with pytest.raises(EcgfastError, match=r"checkpoint is gone.* --init .*model"):
        pretrain(store, copy, dataclasses.replace(tiny, max_steps=14), progress=False)
    with pytest.raises(EcgfastError, match="has no checkpoint any more; its model is"):
        export(copy, copy.parent / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed = 0 \(now 1\)"),
        ({"batch_pairs": 3}, r"batch_pairs = 2 \(now 3\)"),
    ],
)
def test_everything_else_is_refused(copy, store, tiny, change, message):
    with pytest.raises(EcgfastError, match=message):
        pretrain(store, copy, dataclasses.replace(tiny, max_steps=14, **change), progress=False)


def test_states_of_other_runs(copy, store, tiny, tmp_path):
    """The same model with other settings, and another model."""
    more = dataclasses.replace(tiny, max_steps=14)
    other = dataclasses.replace(tiny, seed=1, max_steps=3)
    pretrain(store, tmp_path / "other", other, progress=False)
    shutil.rmtree(copy / "checkpoint")
    shutil.copytree(tmp_path / "other/checkpoint", copy / "checkpoint")
    with pytest.raises(EcgfastError, match=r"state\.pt: is the state of a run with other settings.* delete"):
        pretrain(store, copy, more, progress=False)

    state = torch.load(copy / "checkpoint/state.pt", weights_only=True)
    identity = json.loads((copy / "config.json").read_text())["identity"]
    for change, message in (
        (lambda s: s.pop("model"), "does not fit this run: 'model'"),
        (lambda s: s["model"].pop("project_q.bias"), "lacks 1 tensors of the model: project_q.bias"),
        (lambda s: s["model"].update({"project_q.bias": torch.ones(3)}), r"project_q.bias has shape \(3,\)"),
        (lambda s: s.update(optimizer={}), "does not fit this run"),
        (lambda s: s.update(ranks=[]), "does not fit this run"),
        (lambda s: s.update(rng=torch.zeros(5)), "does not fit this run"),
        (lambda s: s["ranks"][0].pop("torch"), "does not fit this run: 'torch'"),
    ):
        damaged = {**state, "model": dict(state["model"]), "ranks": [dict(state["ranks"][0])]}
        damaged["identity"] = identity
        change(damaged)
        torch.save(damaged, copy / "checkpoint/state.pt")
        (copy / "checkpoint/sha256.json").unlink(missing_ok=True)
        with pytest.raises(EcgfastError, match=message) as error:
            pretrain(store, copy, more, progress=False)
        assert "\n" not in str(error.value)
    assert (copy / "model").is_dir()


def test_export(store, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(EcgfastError, match=r"RUN: .*no such folder"):
        export(run, tmp_path / "out")
    stop_at(monkeypatch, 5)
    exported = []
    update = Trainer.update

    def update_and_export(self, batches):
        update(self, batches)
        if self.step == 2:
            with pytest.raises(EcgfastError, match="no checkpoint yet; it writes one every 3 steps"):
                export(run, tmp_path / "early")
        if self.step == 4:
            exported.append(export(run, tmp_path / "while"))

    monkeypatch.setattr(Trainer, "update", update_and_export)
    with pytest.raises(Interrupted):
        pretrain(store, run, tiny, progress=False)
    assert exported == [3]
    assert export(run, tmp_path / "out") == 5
    model = W2VCMSC.from_pretrained(tmp_path / "out")
    state = torch.load(run / "checkpoint/state.pt", weights_only=True)
    assert_same(dict(model.state_dict()), dict(state["model"]))
    assert not model.training
    Encoder.from_pretrained(tmp_path / "while")
    assert json.loads((tmp_path / "out/config.json").read_text())["origin"]["step"] == 5
    with pytest.raises(EcgfastError, match=r"OUT: .* is not empty"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "early").exists()


def test_init(short, store, tiny, tmp_path, monkeypatch):
    """All weights of a model folder, or an encoder's; recorded, and needed no more later."""
    Encoder.from_pretrained(short / "model").save_pretrained(tmp_path / "encoder")
    config = dataclasses.replace(tiny, seed=3, max_steps=4)
    before = {}
    update = Trainer.update

    def update_and_note(self, batches):
        before.setdefault(self.step, {k: v.clone() for k, v in self.model.state_dict().items()})
        update(self, batches)

    monkeypatch.setattr(Trainer, "update", update_and_note)
    model = W2VCMSC.from_pretrained(short / "model").state_dict()
    pretrain(store, tmp_path / "whole", config, init=short / "model", progress=False)
    assert_same(dict(before.pop(0)), dict(model))
    told = json.loads((tmp_path / "whole/config.json").read_text())
    assert told["init"]["path"] == str(short / "model")
    assert len(told["init"]["sha256"]) == 64

    pretrain(store, tmp_path / "part", config, init=tmp_path / "encoder", progress=False)
    for name, value in before[0].items():
        assert torch.equal(value, model[name]) == name.startswith("encoder."), name

    shutil.rmtree(tmp_path / "encoder")
    more = dataclasses.replace(config, max_steps=5)
    assert pretrain(store, tmp_path / "part", more, progress=False)
    with pytest.raises(EcgfastError, match=r"init: .*is no model folder"):
        pretrain(store, tmp_path / "part", more, init=tmp_path / "encoder", progress=False)
    with pytest.raises(EcgfastError, match=r"was started with init .*encoder \(now .*model\)"):
        pretrain(store, tmp_path / "part", more, init=short / "model", progress=False)


def test_init_before_the_first_checkpoint(short, store, tiny, tmp_path, monkeypatch):
    """Killed at once and resumed without --init, the run starts from the same model."""
    config = dataclasses.replace(tiny, seed=3, max_steps=4)
    update = Trainer.update

    def die(self, batches):
        raise MemoryError

    monkeypatch.setattr(Trainer, "update", die)
    with pytest.raises(MemoryError):
        pretrain(store, tmp_path / "a", config, init=short / "model", progress=False)
    monkeypatch.setattr(Trainer, "update", update)
    pretrain(store, tmp_path / "a", config, progress=False)
    pretrain(store, tmp_path / "b", config, init=short / "model", progress=False)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("encoder", "model", "message"),
    [
        ({"width": 32}, {}, r"model.encoder.width 16 \(the run: 32\); give --model.encoder.width 16"),
        ({"heads": 4}, {}, r"model.encoder.heads 2 .*give --model.encoder.heads 2"),
        ({"norm_first": True}, {}, "give --model.encoder.no-norm-first"),
        ({}, {"entries": 8}, r"model.entries 4 \(the run: 8\); give --model.entries 4"),
        (
            {"leads": ("I", "II"), "n_leads": 2},
            {},
            "give --model.encoder.n-leads 12 --model.encoder.leads I II",
        ),
    ],
)
def test_init_of_another_architecture(short, store, tiny, tmp_path, encoder, model, message):
    changed = dataclasses.replace(
        tiny.model, **model, encoder=dataclasses.replace(tiny.model.encoder, **encoder)
    )
    config = dataclasses.replace(tiny, model=changed)
    with pytest.raises(EcgfastError, match=message):
        pretrain(store, tmp_path / "run", config, init=short / "model", progress=False)
    assert not (tmp_path / "run").exists()


def test_training_settings_may_differ_from_the_initial_models(short, store, tiny, tmp_path):
    encoder = dataclasses.replace(tiny.model.encoder, dropout=0.5, layer_drop=0.5)
    model = dataclasses.replace(tiny.model, encoder=encoder, n_masked=9, mask_prob=0.3)
    config = dataclasses.replace(tiny, model=model, max_steps=1)
    assert pretrain(store, tmp_path / "run", config, init=short / "model", progress=False)


def test_store_is_looked_at(tiny, tmp_path):
    """Changed bytes, zeros and absent leads, before anything is written."""
    store = write_store(tmp_path / "store", recordings=100)
    shard = store / "signals-00000.npy"
    whole = shard.read_bytes()
    for damage in (b"\x01", bytes(12 * 640 * 2)):
        shard.write_bytes(whole[: -len(damage)] + damage)
        with pytest.raises(
            EcgfastError, match=r"signals-00000\.npy is damaged: checksum of record r99 differs"
        ):
            pretrain(store, tmp_path / "run", tiny, progress=False)
    assert not (tmp_path / "run").exists()
