"""The benchmark of the fine-tuning step, at a tiny size."""

from benchmarks.training import finetuning
from benchmarks.training.step import tiny
from ecgfast.finetuning.classifier import FREEZES


def test_every_step_in_the_eager_variants():
    result = finetuning.measure(tiny(), "cpu", ["ecgfast", "official"], rounds=1, steps=1, bf16=False)
    steps = {(row["step"], row["variant"]) for row in result["rows"]}
    tasks = (finetuning.PRETRAINING, *FREEZES)
    assert steps == {(task, variant) for task in tasks for variant in ("ecgfast", "official")}
    assert all(row["ms"] > 0 for row in result["rows"])
    page = finetuning.markdown(result)
    assert page.count("| 1.00 |") == 2  # the pre-training steps, of themselves
