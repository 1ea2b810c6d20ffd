"""Training of each objective: what the loop asks of it, and the folders that its runs leave."""

import copy
import dataclasses
import json

import pytest
import torch

from ecgfast.cli import main
from ecgfast.errors import EcgfastError
from ecgfast.nn import Encoder
from ecgfast.objectives import CMSC, OBJECTIVES, W2V, W2VCMSC, objective_class
from ecgfast.objectives.parts import Local
from ecgfast.objectives.registry import Entry
from ecgfast.training import PretrainConfig, export, pretrain, read_metrics, summarize_run
from ecgfast.training.loop import Trainer
from tests.training.test_pretraining import assert_same, assert_same_run, train_with_two, trainer_of
from tests.training.test_resuming import stop_at


def config_of(objective: str, tiny: PretrainConfig, **changes: object) -> PretrainConfig:
    """The settings of `tiny` for another objective, as far as it has them."""
    kind = objective_class(objective).Config
    own = {field.name for field in dataclasses.fields(kind)}
    model = kind(**{name: value for name, value in vars(tiny.model).items() if name in own})
    return dataclasses.replace(tiny, objective=objective, model=model, **changes)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_of_each(name, store, tiny, tmp_path, monkeypatch, capfd):
    """Stopped and resumed it ends as one that was not, and its files tell its own metrics."""
    config = config_of(name, tiny)
    kind = objective_class(name)
    assert pretrain(store, tmp_path / "whole", config)
    assert ("local" if issubclass(kind, Local) else "global") in capfd.readouterr().err
    stop_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        pretrain(store, tmp_path / "run", config, progress=False)
    assert export(tmp_path / "run", tmp_path / "exported") == 5
    assert kind.from_pretrained(tmp_path / "exported").config == config.model
    assert pretrain(store, tmp_path / "run", config, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["objective"] == name
    point = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    own = {metric.name for metric in kind.metrics(config.model)}
    assert point.keys() == own | {"step", "epoch", "lr", "grad_norm", "segments_per_second"}
    assert point["loss"] > 0
    assert summarize_run(tmp_path / "run").splitlines()[1].startswith("loss")
    assert (tmp_path / "run/curves.png").is_file()
    assert Encoder.from_pretrained(tmp_path / "run/model").config == config.model.encoder


def test_two_processes_train_each(store, tiny, tmp_path):
    """Every parameter that is trained has a gradient, for which DDP waits."""
    for name in ("w2v", "cmsc"):
        (tmp_path / name).mkdir()
        train_with_two(config_of(name, tiny, batch_pairs=1, max_steps=3), store, tmp_path / name)
        told = [(tmp_path / name / f"rank{rank}").read_text().split()[0] for rank in (0, 1)]
        assert told[0] == told[1]


def test_a_run_keeps_its_objective(store, tiny, tmp_path):
    config = config_of("w2v", tiny, max_steps=1)
    pretrain(store, tmp_path / "run", config, progress=False)
    other = config_of("cmsc", tiny, max_steps=1)
    with pytest.raises(EcgfastError, match=r'was started with objective = "w2v" \(now "cmsc"\)'):
        pretrain(store, tmp_path / "run", other, progress=False)


def test_the_encoder_of_another_objective_to_start_from(store, tiny, tmp_path, monkeypatch):
    pretrain(store, tmp_path / "first", config_of("cmsc", tiny, max_steps=1), progress=False)
    trained = CMSC.from_pretrained(tmp_path / "first/model").encoder.state_dict()
    at_first = {}
    update = Trainer.update

    def note_and_update(self, batches):
        at_first.setdefault(self.step, {k: v.clone() for k, v in self.model.encoder.state_dict().items()})
        update(self, batches)

    monkeypatch.setattr(Trainer, "update", note_and_update)
    second = config_of("w2v", tiny, max_steps=1, seed=3)
    pretrain(store, tmp_path / "second", second, init=tmp_path / "first/model", progress=False)
    assert_same(at_first[0], dict(trained))
    wider = dataclasses.replace(
        second,
        model=dataclasses.replace(second.model, encoder=dataclasses.replace(tiny.model.encoder, width=32)),
    )
    with pytest.raises(EcgfastError, match=r"model.encoder.width 16 \(the run: 32\); give --model"):
        pretrain(store, tmp_path / "third", wider, init=tmp_path / "first/model", progress=False)


def test_after_update_is_called_once_per_update(store, tiny, monkeypatch):
    """However many micro-batches there are, after the step, with the random state of the update."""
    calls = []

    def note(self, rng):
        assert not torch.is_grad_enabled() or all(p.grad is None for p in self.parameters())
        calls.append(rng.tolist())

    monkeypatch.setattr(W2VCMSC, "after_update", note)
    trainer = trainer_of(dataclasses.replace(tiny, accumulation=3), store)
    batches = trainer.batches()
    for _ in range(2):
        trainer.update(batches)
    batches.close()
    assert calls == [[tiny.seed, 0], [tiny.seed, 1]]


class Taught(CMSC):
    """With a teacher that follows the encoder after each update."""

    model_type = "taught"

    def __init__(self, config=None):
        super().__init__(config)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)

    def after_update(self, rng):
        for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 0.5)


def test_a_teacher_follows_without_gradients(store, tiny, tmp_path, monkeypatch):
    """Updates leave no graph on it, and a run that was stopped goes on with it as it was."""
    monkeypatch.setitem(OBJECTIVES, "taught", Entry(__name__, "Taught", "an example"))
    config = config_of("taught", tiny)
    assert pretrain(store, tmp_path / "whole", config, progress=False)
    stop_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        pretrain(store, tmp_path / "run", config, progress=False)
    assert pretrain(store, tmp_path / "run", config, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    trainer = trainer_of(config, store)
    before = [p.clone() for p in trainer.model.teacher.parameters()]
    batches = trainer.batches()
    trainer.update(batches)
    batches.close()
    after = list(trainer.model.teacher.parameters())
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert all(p.grad_fn is None and not p.requires_grad for p in after)


def test_single_segments_are_batches_too(store, tiny):
    """As many rows as those of pairs have, each of its own."""
    trainer = trainer_of(config_of("w2v", tiny), store)
    assert W2V.plan == "single_segments"
    assert trainer.source.rows == 2 * tiny.batch_pairs
    batches = trainer.batches()
    assert next(batches).signal.shape == (4, 12, 320)
    batches.close()


def test_help_lists_the_objectives(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = capsys.readouterr().out
    for name in OBJECTIVES:
        assert f"\n- {name}: {OBJECTIVES[name].summary}" in text
    assert "type: ignore" not in text
    assert "Settings of the objective" in text
    assert "--model.codebook-groups" in text


def test_help_shows_an_objectives_own_settings(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--objective", "cmsc", "--help"])
    text = capsys.readouterr().out
    assert "--model.global-temperature" in text
    assert "--model.codebook-groups" not in text
    assert "(default: cmsc)" in text


def test_options_under_the_names_of_earlier_versions(capsys):
    assert main(["pretrain", "S", "R", "--model.groups", "2"]) == 2
    assert "did you mean --model.codebook-groups" in capsys.readouterr().err
