"""Metrics files: written once per step, whatever happened to the process."""

import json
import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ecgfast.errors import EcgfastError
from ecgfast.objectives import W2VCMSC, Losses, W2VCMSCConfig
from ecgfast.training.metrics import (
    MetricLog,
    MetricSums,
    bar_text,
    check_finite,
    read_metrics,
)
from ecgfast.training.reports import plot_run, summarize_run

METRICS = W2VCMSC.metrics(W2VCMSCConfig())
LOSS_TERMS = tuple(metric.name for metric in METRICS if metric.term)


def point(step, loss=1.0):
    names = ("accuracy", "code_perplexity", "prob_perplexity", "grad_norm", "segments_per_second")
    return {"step": step, "epoch": 0.5} | dict.fromkeys((*LOSS_TERMS, *names), loss)


def losses(scale: float) -> Losses:
    terms = {
        name: torch.tensor(scale * i)
        for name, i in (("local", 4), ("diversity", 3), ("feature_penalty", 2), ("global", 1))
    }
    counts = {
        "n_correct": torch.tensor(scale * 4),
        "n_strict": torch.tensor(scale * 2),
        "strict_size": 8,
        "code_perplexity": torch.tensor(scale * 5),
        "prob_perplexity": torch.tensor(scale * 6),
        "temperature": torch.tensor(scale * 0.5),
    }
    return Losses(torch.tensor(scale * 10), 8, terms, counts)


def test_sums_become_means_per_token_and_per_batch():
    sums = MetricSums(METRICS, torch.device("cpu"))
    for scale in (1.0, 3.0):
        sums.add_batch(losses(scale))
    sums.add_step(torch.tensor(7.0))
    saved = sums.state_dict()
    means = sums.read()
    assert list(means) == [*(metric.name for metric in METRICS), "grad_norm"]
    assert means["loss"] == pytest.approx(40 / 16)
    assert means["global"] == pytest.approx(4 / 16)
    assert means["accuracy"] == pytest.approx(1.0)
    assert means["accuracy_strict"] == pytest.approx(0.5)
    assert means["code_perplexity"] == pytest.approx(10)
    assert means["temperature"] == pytest.approx(1.0)
    assert means["grad_norm"] == pytest.approx(7)
    assert not sums.values.any()
    sums.load_state_dict(saved)
    assert sums.read() == means


def test_sums_of_version_0_1_have_no_names():
    """At first there were 13: loss, terms, n_correct, sample_size, three per batch, batches, norm, steps."""
    sums = MetricSums(METRICS, torch.device("cpu"))
    first = [40, 16, 12, 8, 4, 16, 16, 20, 24, 2, 2, 7, 1]
    sums.load_state_dict({"sums": torch.tensor(first, dtype=torch.float64)})
    means = sums.read()
    assert (means["loss"], means["accuracy"], means["accuracy_strict"]) == (2.5, 1.0, 0.0)
    assert (means["code_perplexity"], means["temperature"], means["grad_norm"]) == (10, 1, 7)
    sums.load_state_dict({"sums": torch.tensor([*first, 8, 16], dtype=torch.float64)})
    assert sums.read()["accuracy_strict"] == 0.5


def test_bar_shows_what_the_objective_names():
    text = bar_text(METRICS, point(1, 2.0) | {"accuracy_strict": 0.25})
    assert text == (
        "local 2.000 global 2.000 diversity 2.0000 penalty 2.000 accuracy 25.0% "
        "perplexity 2.0 of 640, 2 segments/s"
    )


def test_points_after_the_resumed_step_are_dropped(tmp_path):
    log = MetricLog(tmp_path, METRICS, 0)
    for step in (1, 5, 10):
        log.write(point(step))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "lo')
    log = MetricLog(tmp_path, METRICS, 5)
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
    plot_run(folder, folder / "curves.svg")
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
    plot_run(tmp_path / "new", tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    for name, message in (("curves.gif", "must end in one of"), ("no/curves.png", "in a folder that exists")):
        with pytest.raises(EcgfastError, match=message):
            plot_run(tmp_path / "new", tmp_path / name)
    odd = draw(tmp_path / "$x_1$ \\frac{", [point(1)])
    assert any("$x_1$ \\frac{: 1 updates" in text for text in odd)


def test_curves_and_summary(tmp_path):
    with pytest.raises(EcgfastError, match="no log point"):
        plot_run(tmp_path, tmp_path / "curves.png")
    with pytest.raises(EcgfastError, match="log point"):
        summarize_run(tmp_path)
    lines = [json.dumps(point(step, 10.0 / step)) for step in (1, 10)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    plot_run(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = summarize_run(tmp_path)
    assert "local              10.0000   1.0000" in text
    assert "curves.png" in text


def test_a_file_in_place_of_tensorboard_is_told(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.warns(UserWarning, match="tensorboard: can't be written: File exists; the run goes on"):
        log = MetricLog(tmp_path, METRICS, 0)
    log.write(point(1))
    log.sync()
    log.close()
    assert [p["step"] for p in read_metrics(tmp_path / "metrics.jsonl")] == [1]
