"""Metrics files: written once per step, whatever happened to the process."""

import json
import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ecgfast.errors import EcgfastError
from ecgfast.objectives import PretrainOutput
from ecgfast.plotting import plot_curves
from ecgfast.training.metrics import (
    LOSS_TERMS,
    MetricLog,
    MetricSums,
    check_finite,
    read_metrics,
    summarize_run,
)


def point(step, loss=1.0):
    names = ("accuracy", "code_perplexity", "prob_perplexity", "grad_norm", "segments_per_second")
    return {"step": step, "epoch": 0.5} | dict.fromkeys((*LOSS_TERMS, *names), loss)


def test_sums_become_means_per_token_and_per_batch():
    sums = MetricSums(torch.device("cpu"))
    for scale in (1.0, 3.0):
        terms = [torch.tensor(scale * i) for i in (10, 4, 3, 2, 1)]
        sums.add_batch(PretrainOutput(*terms, 8, *(torch.tensor(scale * i) for i in (4, 5, 6, 0.5))))
    sums.add_step(torch.tensor(7.0))
    means = sums.read()
    assert means["loss"] == pytest.approx(40 / 16)
    assert means["global"] == pytest.approx(4 / 16)
    assert means["accuracy"] == pytest.approx(1.0)
    assert means["code_perplexity"] == pytest.approx(10)
    assert means["temperature"] == pytest.approx(1.0)
    assert means["grad_norm"] == pytest.approx(7)
    assert not sums.values.any()


def test_points_after_the_resumed_step_are_dropped(tmp_path):
    log = MetricLog(tmp_path, 0)
    for step in (1, 5, 10):
        log.write(point(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')
    log = MetricLog(tmp_path, 5)
    for step in (10, 15):
        log.write(point(step, loss=2.0))
    log.sync()
    log.close()
    points = read_metrics(tmp_path / "metrics.jsonl")
    assert [(p["step"], p["loss"]) for p in points] == [(1, 1.0), (5, 1.0), (10, 2.0), (15, 2.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = [(e.step, e.value) for e in events.Scalars("loss/loss")]
    assert scalars == [(1, 1.0), (5, 1.0), (10, 2.0), (15, 2.0)]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_no_number_is_an_error(loss):
    with pytest.raises(EcgfastError, match=r"the loss became .* by step 3.* in a new run folder"):
        check_finite("loss", loss, 3)
    check_finite("loss", 1.0, 3)


def draw(folder, points, config=None):
    """The texts of the curves of a run with these log points, and those of its dotted lines' heights."""
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, points)))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    plot_curves(folder / "metrics.jsonl", folder / "curves.svg")
    return re.findall(r">([^<]+)</text>", (folder / "curves.svg").read_text())


def test_curves_show_chance(tmp_path):
    config = {
        "config": {"batch_pairs": 8, "model": {"n_negatives": 100}, "global_batch": True},
        "world_size": 4,
    }
    texts = draw(tmp_path / "run", [point(1), point(10, 2.0)], config)
    assert {"chance: ln 101 = 4.62", "chance: 1/101", "chance: ln 32 = 3.47"} <= set(texts)
    config["config"]["global_batch"] = False
    assert "chance: ln 8 = 2.08" in draw(tmp_path / "run", [point(1)], config)
    for bad in (None, {}, {"config": None}, [], {"config": {"batch_pairs": 0, "model": {"n_negatives": 1}}}):
        texts = draw(tmp_path / f"bad {bad is None}", [point(1)], bad)
        assert not any(text.startswith("chance") for text in texts)


def test_curves_show_what_was_logged(tmp_path):
    old = draw(tmp_path / "old", [point(1), point(10)])
    assert "Learning rate" not in old
    assert "ties are no success" not in old
    assert "nan" not in old
    new = draw(tmp_path / "new", [point(1), point(10) | {"lr": 1e-3, "accuracy_strict": 0.5, "other": 1.0}])
    assert {"Learning rate", "ties are no success", "official count"} <= set(new)
    plot_curves(tmp_path / "new/metrics.jsonl", tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    for name, message in (("curves.gif", "must end in one of"), ("no/curves.png", "in a folder that exists")):
        with pytest.raises(EcgfastError, match=message):
            plot_curves(tmp_path / "new/metrics.jsonl", tmp_path / name)
    odd = draw(tmp_path / "$x_1$ \\frac{", [point(1)])
    assert any("$x_1$ \\frac{: 1 updates" in text for text in odd)


def test_curves_and_summary(tmp_path):
    with pytest.raises(EcgfastError, match="no log point"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with pytest.raises(EcgfastError, match="log point"):
        summarize_run(tmp_path)
    lines = [json.dumps(point(step, 10.0 / step)) for step in (1, 10)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = summarize_run(tmp_path)
    assert "local              10.0000   1.0000" in text
    assert "curves.png" in text


def test_a_file_in_place_of_tensorboard_is_told(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.warns(UserWarning, match="tensorboard: can't be written: File exists; the run goes on"):
        log = MetricLog(tmp_path, 0)
    log.write(point(1))
    log.sync()
    log.close()
    assert [p["step"] for p in read_metrics(tmp_path / "metrics.jsonl")] == [1]
