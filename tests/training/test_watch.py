"""Runs that can't learn say so; damaged files beside the model never keep it from being written."""

import dataclasses
import warnings

import pytest
import torch

from ecgfast.data import Store
from ecgfast.errors import EcgfastError
from ecgfast.objectives import W2VCMSC, Losses, W2VCMSCConfig
from ecgfast.training import PretrainConfig, pretrain, read_metrics, summarize_run
from ecgfast.training.loop import Trainer
from ecgfast.training.metrics import check_finite
from ecgfast.training.reports import rows_contrasted
from ecgfast.training.watch import Watch, check_store
from tests.training.conftest import write_store
from tests.training.test_pretraining import CPU
from tests.training.test_resuming import stop_at


def point(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "local": 3.0, "accuracy_strict": 0.3, "code_perplexity": 8.0, **values}


def test_collapse_is_told_once(tiny):
    watch = Watch(W2VCMSC, tiny.model, 0)  # 2 groups of 4 entries
    assert watch.point(point(100, code_perplexity=3.1)) == []
    assert watch.point(point(10, code_perplexity=2.0)) == []  # the first steps
    (told,) = watch.point(point(100, code_perplexity=2.9))
    assert "step 100: the targets collapse: their perplexity is 1.45 of 4 codes per group" in told
    assert watch.point(point(120, code_perplexity=2.0)) == []
    (told,) = watch.point(point(140, local=0.0, accuracy_strict=0.0))
    assert "no masked token has a negative" in told
    assert Watch(W2VCMSC, tiny.model, 500).point(point(400, code_perplexity=2.0)) == []


def test_masks_are_told_once(tiny):
    def masks(watch, n_masked):
        return watch.batch(Losses(torch.zeros(()), 4 * n_masked, {}, {}), 4, 320)

    assert masks(Watch(W2VCMSC, tiny.model, 0), 8) == []
    (told,) = masks(Watch(W2VCMSC, tiny.model, 0), 20)
    assert "all 20 tokens of a batch's segments are masked" in told
    watch = Watch(W2VCMSC, tiny.model, 0)
    (told,) = masks(watch, 1)
    assert "they have no negatives" in told
    assert masks(watch, 1) == []


def test_pairs_without_negatives(tiny):
    def weaknesses(config, world):
        return W2VCMSC.weaknesses(
            config.model, rows_contrasted(config.batch_pairs, config.global_batch, world.size)
        )

    one = dataclasses.replace(tiny, batch_pairs=1)
    (told,) = weaknesses(one, CPU)
    assert "take batch_pairs of at least 2" in told
    assert weaknesses(tiny, CPU) == []
    two = dataclasses.replace(CPU, size=2)
    assert weaknesses(one, two)
    assert weaknesses(dataclasses.replace(one, global_batch=True), two) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"n_masked": 1}, "model.n_masked: got 1; a masked token alone has no negatives"),
        ({"n_masked": 156}, "model.n_masked: got 156, all tokens of 2500 samples; fewer are taken"),
        ({"n_masked": 157}, "segment_samples: got 2500, which make 156 tokens"),
        ({"mask_length": 156}, "model.mask_length: got 156; fewer than 156 are taken"),
    ],
)
def test_masks_that_leave_nothing_are_refused(model, message):
    with pytest.raises(EcgfastError, match=message):
        PretrainConfig(model=W2VCMSCConfig(**model))


def test_collapsed_run(store, tiny, tmp_path, monkeypatch):
    """One code for all: the official count is 100 %, the strict one 0, and the run says so."""
    config = dataclasses.replace(tiny, batch_pairs=1, max_steps=24)
    make = Trainer.__init__

    def make_collapsed(self, *args, **options):
        make(self, *args, **options)
        with torch.no_grad():
            self.model.quantizer.projection.weight.zero_()
            self.model.quantizer.projection.bias.zero_()[::4] = 1e4

    monkeypatch.setattr(Trainer, "__init__", make_collapsed)
    with pytest.warns(UserWarning, match="the targets collapse") as told:
        assert pretrain(store, tmp_path / "run", config, progress=False)
    texts = [str(warning.message) for warning in told]
    for text in ("batch_pairs is 1", "no masked token has a negative", "the targets collapse"):
        assert sum(text in line for line in texts) == 1, text
    last = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert (last["local"], last["accuracy"], last["accuracy_strict"]) == (0.0, 1.0, 0.0)
    assert "accuracy_strict" in summarize_run(tmp_path / "run")


def test_bar_shows_the_perplexity(store, tiny, tmp_path, capfd):
    pretrain(store, tmp_path / "run", dataclasses.replace(tiny, max_steps=2))
    last = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert f"perplexity {last['code_perplexity']:.1f} of 8" in capfd.readouterr().err


def test_leads_that_the_store_lacks(tmp_path):
    opened = Store(write_store(tmp_path / "store", leads=["I", "II"]))
    assert check_store(opened, ("II", "V1")) == []
    with pytest.raises(EcgfastError, match="no recording with any of the leads V1, V2"):
        check_store(opened, ("V1", "V2"))


@pytest.mark.parametrize("saved", [None, 6])
def test_divergence_names_a_checkpoint_only_if_there_is_one(saved):
    with pytest.raises(EcgfastError) as error:
        check_finite("loss", float("nan"), 9, saved)
    want = "no checkpoint was written yet" if saved is None else "the checkpoint of step 6 is kept"
    assert f"the loss became nan by step 9; {want}" in str(error.value)


def lose(monkeypatch, step):
    update = Trainer.update

    def update_and_lose(self, batches):
        update(self, batches)
        if self.step == step:
            self.parameters[0].detach().fill_(float("nan"))

    monkeypatch.setattr(Trainer, "update", update_and_lose)


@pytest.mark.parametrize(
    ("step", "kept"), [(1, "no checkpoint was written yet"), (5, "the checkpoint of step 3")]
)
def test_diverged_run_names_its_checkpoint(store, tiny, tmp_path, monkeypatch, step, kept):
    lose(monkeypatch, step)
    with pytest.raises(EcgfastError, match=kept):
        pretrain(store, tmp_path / "run", dataclasses.replace(tiny, log_every=1), progress=False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b"\xff\xfe\x00" * 100),
        lambda file: file.write_bytes(b"\n[1]\n{}\n3\n" + file.read_bytes()),
        lambda file: file.write_text('{"step": 1}\n{"step": 2, "loss": "x"}\n' + "[" * 100000 + "\n"),
        lambda file: file.unlink(),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["cut", "binary", "other lines", "other values", "deleted", "folder"],
)
@pytest.mark.parametrize("when", ["between", "while"])
def test_damaged_metrics_never_keep_the_model(store, tiny, tmp_path, monkeypatch, damage, when):
    run = tmp_path / "run"
    update = Trainer.update
    if when == "between":
        stop_at(monkeypatch, 5)
        with pytest.raises(KeyboardInterrupt):
            pretrain(store, run, tiny, progress=False)
        damage(run / "metrics.jsonl")
        monkeypatch.setattr(Trainer, "update", update)
    else:

        def update_and_damage(self, batches):
            update(self, batches)
            if self.step == 9:
                damage(run / "metrics.jsonl")

        monkeypatch.setattr(Trainer, "update", update_and_damage)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert pretrain(store, run, tiny, progress=False)
    W2VCMSC.from_pretrained(run / "model")
    assert "model.safetensors" in summarize_run(run)
    if (run / "metrics.jsonl").is_dir():
        assert any("metrics.jsonl: can't be written" in str(w.message) for w in told)
    else:
        assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 10
    assert not pretrain(store, run, tiny, progress=False)
