"""The check on a GPU and its benchmark of the training step, as far as a CPU can run them."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.training import step
from benchmarks.training.forms import ops_of
from ecgfast import ops

SCRIPT = gpu_check.ROOT / "benchmarks" / "gpu_check.sh"
# Threads of several processes wait for each other on a busy machine.
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    results = tmp_path_factory.mktemp("check") / "results"
    command = [str(SCRIPT), "--dry-run", str(results)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return results, done.stdout


def test_dry_run_does_every_part(dry_run):
    results, out = dry_run
    (path,) = results.glob("*.json")
    found = json.loads(path.read_text())
    parts = {part["part"]: part["result"] for part in found["parts"]}
    skipped = dict.fromkeys(("build", "memcheck", "racecheck", "tests"), "skipped")
    assert parts == dict.fromkeys(("packages", "cuda-tests", "ops", "step"), "ok") | skipped
    assert [result["op"] for result in found["ops"]] == ["masks"]
    assert [row["form"] for row in found["step"]["rows"]] == ["official", "ecgfast"]
    assert found["step"]["failed"] == []
    page = path.with_suffix(".md").read_text()
    assert "## Training step: 4 segments" in page
    assert "## masks: B = 4" in page
    assert str(path.with_suffix(".md")) in out


def test_a_part_that_fails_fails_the_check_and_is_reported(tmp_path):
    environment = {**ENVIRONMENT, "ECGFAST_OPS": "nonsense"}
    command = [str(SCRIPT), "--dry-run", "--only=packages,cuda-tests", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ECGFAST_OPS must be 'fused' or 'reference'" in done.stdout
    assert "failed" in done.stdout


def test_unknown_options_are_refused():
    done = subprocess.run([str(SCRIPT), "--dry"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gpu_check: unknown option --dry\n"


def test_missing_packages(monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "wfdb":
            raise metadata.PackageNotFoundError(name)
        return "2.0" if name == "torch" else installed(name)

    monkeypatch.setattr(metadata, "version", version)
    assert {"torch>=2.10", "wfdb>=4.1"} <= set(gpu_check.missing())


@pytest.mark.parametrize("form", ["official", "tuned", "ecgfast"])
def test_a_step_in_every_form(form):
    names = ("patch_embed", "span_mask", "local_contrastive", "positional_conv")
    before = [getattr(ops, name) for name in names]
    torch.manual_seed(0)
    update = step.Step(form, step.tiny(), "cpu")
    first = [p.detach().clone() for p in update.model.parameters()]
    update()
    changed = [not torch.equal(p, q) for p, q in zip(first, update.model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)  # a bias before a softmax has no gradient
    assert all(torch.isfinite(p).all() for p in update.model.parameters())
    with ops_of(form):
        inside = [getattr(ops, name) for name in names]
    assert [a is b for a, b in zip(inside, before, strict=True)] == [form == "ecgfast"] * len(names)
    assert [getattr(ops, name) for name in names] == before


def test_the_forms_compute_the_same_losses():
    """With the same draws, all but the negatives, the losses of the forms differ by rounding alone."""
    config = step.tiny()
    losses = {}
    for form in ("official", "tuned", "ecgfast"):
        update = step.Step("ecgfast", config, "cpu")
        update.model.eval()
        mask = ops.span_mask(update.ids, 100, 0.65, 10, update.rng, n_masked=60)
        keep = ops.lead_mask(update.ids, 12, 0.5, update.rng)
        with ops_of(form), pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(ops, "span_mask", lambda *_, found=mask, **__: found)
            patch.setattr(ops, "lead_mask", lambda *_, found=keep, **__: found)
            noiseless = ops.gumbel_quantize if form == "ecgfast" else ops.gumbel_quantize_reference
            patch.setattr(ops, "gumbel_quantize", noiseless)
            losses[form] = update.model(update.signal, update.ids % 2, update.ids, update.rng)
    for form in ("official", "tuned"):
        for name in ("feature_penalty", "diversity", "global_"):
            got, want = getattr(losses[form], name), getattr(losses["ecgfast"], name)
            torch.testing.assert_close(got.float(), want.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_script_is_clean():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
