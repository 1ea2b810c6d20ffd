"""The paper's comparison: which commands it runs, in which order, and what its tables say."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper.cells import Cell, Runner
from benchmarks.paper.plan import PRESETS, RANDOM, SCRATCH, Plan
from benchmarks.paper.table import Score, gain


@pytest.fixture
def plan(tmp_path):
    return Plan(tmp_path / "out", Path("data"), PRESETS["tiny"], ["cmsc", "simclr"], ["12", "1"], [0, 1])


def test_a_cell_is_run_once_and_what_needs_a_failed_one_is_left(tmp_path):
    cells = [
        Cell("second", ("show-config",), ("first",)),
        Cell("first", ("show-config",)),
        Cell("bad", ("prepare", str(tmp_path / "absent"), str(tmp_path / "store"))),
        Cell("after", ("show-config",), ("bad",)),
    ]
    outcome = Runner(tmp_path, jobs=2).run(cells)
    assert set(outcome.done) == {"first", "second"}
    assert list(outcome.failed) == ["bad"]
    assert "exit status 2, ecgfast: error" in outcome.failed["bad"]
    assert outcome.left == ["after"]
    again = Runner(tmp_path, jobs=2).run(cells[:2])
    assert again.done == outcome.done
    assert (tmp_path / "cells/first/log").read_text().count("$ ecgfast show-config") == 1


def test_no_cell_is_begun_after_the_deadline(tmp_path):
    outcome = Runner(tmp_path, jobs=1, deadline=0.0).run([Cell("late", ("show-config",))])
    assert outcome.left == ["late"]
    assert not outcome.done


def test_cells_need_what_comes_before(plan):
    cells = {cell.name: cell for cell in plan.cells()}
    known = set()
    for cell in cells.values():
        assert set(cell.needs) <= known, cell.name
        known.add(cell.name)
    methods = ("cmsc", "simclr", RANDOM, SCRATCH)
    for method in methods:
        for seed in (0, 1):
            for leads in ("12", "1"):
                assert f"evaluate/{method}/seed{seed}/leads{leads}" in cells
    tuned = cells["finetune/simclr/seed1/leads1"].command
    assert tuned[tuned.index("--leads") + 1] == "I"
    assert tuned[tuned.index("--test-folds") + 1] == "8"
    assert f"probe/{SCRATCH}/seed0" not in cells


def test_pretraining_never_sees_the_test_fold(plan):
    plan.write_inputs()
    config = plan._pretraining("cmsc", 0)
    assert (config.train_folds, config.validation_folds, config.exclude_folds) == (
        (1, 2, 3, 4, 5, 6),
        (7,),
        (8,),
    )
    assert sum(config.store_weights) == pytest.approx(1)
    assert (plan.out / "configs/simclr-seed1.json").is_file()
    assert (plan.model(RANDOM, 1) / "config.json").is_file()


def test_gain_is_of_the_same_draws():
    # Means .8 and .7, every draw .1 apart: the interval is the difference itself.
    drawn = np.linspace(0.6, 0.8, 101)
    scores = {
        ("cmsc", "12"): Score((0.75, 0.85), (0, 1), drawn + 0.1),
        (RANDOM, "12"): Score((0.65, 0.75), (0, 1), drawn),
        ("simclr", "12"): Score((0.75,), (0,), drawn),
        ("3kg", "12"): Score((0.75, 0.85), (0, 2), drawn),
    }
    found = gain(scores, "cmsc", "12")
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert found.seeds == (2, 2)
    assert found.sure
    assert gain(scores, "simclr", "12") is None  # of another number of seeds
    assert gain(scores, "3kg", "12") is None  # of as many, but others
    assert gain(scores, "cmsc", "1") is None
