"""The validation part of pre-training: its numbers, its curves, and that training doesn't notice it."""

import dataclasses
import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ecgfast.errors import EcgfastError
from ecgfast.ops import make_rng
from ecgfast.training import Interrupted, pretrain, read_metrics, summarize_run
from ecgfast.training.data import make_validation_plan, open_data
from ecgfast.training.pretrain import make_objective, make_trainer, open_batches, open_validation
from ecgfast.training.reports import plot_run
from tests.training.test_pretraining import CPU, assert_same, assert_same_run
from tests.training.test_resuming import stop_at

SHOWN = [
    "loss",
    "local",
    "global",
    "diversity",
    "feature_penalty",
    "accuracy",
    "accuracy_strict",
    "code_perplexity",
]

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def held(tiny):
    """Two of seven patients, four pairs, are held back: two batches."""
    return dataclasses.replace(tiny, validation_fraction=0.3, validate_every=3)


@pytest.fixture(scope="module")
def validated(store, held, tmp_path_factory):
    """A run that never stopped; no test changes it."""
    run = tmp_path_factory.mktemp("validated") / "run"
    assert pretrain(store, run, held, progress=False)
    return run


def opened(store, config):
    data = open_data([store], config)
    source, *_ = open_batches(data, config, CPU)
    validation, notes = open_validation(data, source, config, CPU)
    return make_trainer(make_objective(config), source, config, CPU, validation), data, notes


def test_numbers_by_hand(store, held):
    """The sums of two batches in evaluation mode with the draws of step 0, over their sizes."""
    trainer, data, notes = opened(store, held)
    assert notes == []
    batches = trainer.batches()
    trainer.update(batches)
    batches.close()
    trainer.model.train()
    found = trainer.validation.look(trainer)
    assert list(found) == [f"validation_{name}" for name in SHOWN]

    plan, _ = make_validation_plan(data, held, CPU)
    assert set(plan.segments(0).recording.tolist()) == set(data.validation.tolist())
    model = trainer.model.eval()
    sums = dict.fromkeys(("total", "local", "global", "size", "n_correct", "n"), 0.0)
    for i in range(2):
        rows = plan.rows(i)
        recording, start, _, ids = (torch.from_numpy(column[rows]) for column in plan.segments(0))
        signal = torch.stack(
            [
                torch.from_numpy(data.store.signal(r)[:, s : s + 320].copy())
                for r, s in zip(recording.tolist(), start.tolist(), strict=True)
            ]
        )
        views = next(iter(trainer.source.batches(0)))._replace(
            signal=signal, sample_ids=ids, patients=torch.from_numpy(data.store.patient_numbers())[recording]
        )
        with torch.no_grad():
            losses = model(views, make_rng(held.seed, 0))
        sums["total"] += losses.total.item()
        for name in ("local", "global"):
            sums[name] += losses.terms[name].item()
        sums["n_correct"] += float(losses.counts["n_correct"])
        sums["size"] += float(losses.size)
    want = {name: sums[name] / sums["size"] for name in ("local", "global")}
    assert found["validation_loss"] == pytest.approx(sums["total"] / sums["size"], rel=1e-6)
    assert {name: found[f"validation_{name}"] for name in want} == pytest.approx(want, rel=1e-6)
    assert found["validation_accuracy"] == pytest.approx(sums["n_correct"] / sums["size"])


def test_a_look_changes_nothing(store, held):
    trainer, *_ = opened(store, held)
    batches = trainer.batches()
    trainer.update(batches)
    before = [
        {name: value.clone() for name, value in trainer.model.state_dict().items()},
        torch.get_rng_state(),
        trainer.rng.clone(),
        trainer.sums.values.clone(),
    ]
    first = trainer.validation.look(trainer)
    assert trainer.model.training
    assert trainer.validation.look(trainer) == first
    after = [dict(trainer.model.state_dict()), torch.get_rng_state(), trainer.rng, trainer.sums.values]
    assert_same(before, after)
    assert all(p.grad is None for p in trainer.parameters)
    trainer.update(batches)
    assert trainer.validation.look(trainer) != first
    batches.close()


def test_training_does_not_notice(validated, store, held, tmp_path):
    """How often there is a look changes no other number."""
    pretrain(store, tmp_path / "run", dataclasses.replace(held, validate_every=10), progress=False)
    states = [
        torch.load(run / "checkpoint/state.pt", weights_only=True) for run in (validated, tmp_path / "run")
    ]
    for part in ("model", "optimizer", "rng"):
        assert_same(states[0][part], states[1][part])
    assert_same(*[state["ranks"][0]["torch"] for state in states])


def test_curves(validated, held, tmp_path):
    points = read_metrics(validated / "metrics.jsonl")
    looks = [point["step"] for point in points if "validation_loss" in point]
    assert looks == [3, 6, 9]
    for point in points:
        if point["step"] in looks:
            terms = [
                point[f"validation_{name}"] for name in ("local", "global", "diversity", "feature_penalty")
            ]
            assert point["validation_loss"] == pytest.approx(sum(terms), rel=1e-5)
    events = EventAccumulator(str(validated / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("validation/global")] == looks
    assert "loss/validation_global" not in events.Tags()["scalars"]
    plot_run(validated, tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    assert text.count("stroke-dasharray") >= len(SHOWN)
    assert ">validation</text>" in text
    assert ">official count, validation</text>" in text
    rows = [line.split() for line in summarize_run(validated).splitlines()]
    (row,) = [row for row in rows if row[0] == "validation_loss"]
    assert [float(value) for value in row[1:3]] == [
        pytest.approx(points[i]["validation_loss"], abs=1e-4) for i in (1, -2)
    ]


def test_it_goes_on_with_the_same_numbers(validated, store, held, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2, 6)
    for loader in ("stream", "resident"):
        with pytest.raises(Interrupted):
            pretrain(store, tmp_path / "run", dataclasses.replace(held, loader=loader), progress=False)
    assert pretrain(store, tmp_path / "run", held, progress=False)
    assert_same_run(validated, tmp_path / "run")


def test_how_often_by_default(store, tiny, tmp_path):
    """Once an epoch, or 20 times in the run: here 5 batches an epoch, and 40 / 20. A longer run keeps it."""
    config = dataclasses.replace(tiny, validation_fraction=0.3, max_steps=40, checkpoint_every=40)

    def every():
        return json.loads((tmp_path / "run/config.json").read_text())["config"]["validate_every"]

    pretrain(store, tmp_path / "run", config, progress=False)
    assert every() == 2
    pretrain(store, tmp_path / "run", dataclasses.replace(config, max_steps=44), progress=False)
    assert every() == 2
    points = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [point["step"] for point in points if "validation_loss" in point] == list(range(2, 45, 2))


def test_small_parts(store, tiny, tmp_path):
    """One smaller batch where the part fills none, which is told; otherwise what fills none is left out."""
    config = dataclasses.replace(tiny, batch_pairs=3, validation_fraction=0.1)
    data = open_data([store], config)
    plan, notes = make_validation_plan(data, config, CPU)
    assert (len(plan), len(plan.segments(0).recording)) == (1, 4)
    assert "has 2 pairs, fewer than a batch of 3: losses that contrast" in notes[0]
    config = dataclasses.replace(tiny, batch_pairs=3, validation_fraction=0.3)
    plan, notes = make_validation_plan(open_data([store], config), config, CPU)
    assert (len(plan), len(plan.segments(0).recording), notes) == (1, 6, [])
    config = dataclasses.replace(tiny, validation_fraction=0.3, validate_every=11)
    with pytest.raises(EcgfastError, match="validate_every: must be at most the run's 10 updates, got 11"):
        pretrain(store, tmp_path / "run", config, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_lost_loss_is_told(store, held):
    trainer, *_ = opened(store, held)
    with torch.no_grad():
        trainer.parameters[0].fill_(float("nan"))
    with pytest.raises(EcgfastError, match="the validation_loss became nan by step 0"):
        trainer.validation.look(trainer)
