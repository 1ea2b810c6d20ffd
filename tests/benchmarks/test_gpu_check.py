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
from benchmarks.training.variants import ops_of
from ecgfast import ops
from ecgfast.errors import EcgfastError

SCRIPT = gpu_check.ROOT / "benchmarks" / "gpu_check.sh"
# Threads of several processes wait for each other on a busy machine.
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def check(*arguments, **environment):
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False)


def parts_of(data):
    return {part["part"]: part["result"] for part in data["parts"]}


@pytest.fixture(scope="module", params=["correctness", "training"])
def dry_run(request, tmp_path_factory):
    results = tmp_path_factory.mktemp("check") / "results"
    done = check(request.param, "--dry-run", results)
    assert done.returncode == 0, done.stdout + done.stderr
    return request.param, results, done.stdout


def test_dry_run_does_every_part(dry_run):
    call, results, out = dry_run
    (path,) = results.glob(f"cpu-*-{call}.json")
    found = json.loads(path.read_text())
    page = path.with_suffix(".md").read_text()
    assert str(path.with_suffix(".md")) in out
    assert found["torch"] == torch.__version__
    if call == "correctness":
        assert parts_of(found) == dict.fromkeys(("libraries", "numerics", "cuda-tests", "ops"), "ok")
        assert [result["op"] for result in found["ops"]] == ["positional_conv"]
        assert "## positional_conv: B = " in page
    else:
        skipped = dict.fromkeys(("memcheck", "racecheck"), "skipped")
        assert parts_of(found) == dict.fromkeys(("libraries", "step"), "ok") | skipped
        assert [row["variant"] for row in found["step"]["rows"]] == ["official", "ecgfast"]
        assert found["step"]["failed"] == []
        assert "## Training step: 4 segments" in page


@pytest.mark.parametrize("call", ["correctness", "training"])
def test_a_call_fits_six_minutes(call):
    planned = check(call, "--plan")
    limits = {name: int(seconds) for name, seconds in map(str.split, planned.stdout.splitlines())}
    assert {"libraries", "page"} < set(limits), planned.stderr
    assert all(limits.values())
    assert sum(limits.values()) <= 360 - 15  # what is between the parts


def test_a_part_that_fails_fails_the_check_and_is_reported(tmp_path):
    done = check("correctness", "--dry-run", "--only=libraries", tmp_path, ECGFAST_OPS="nonsense")
    assert done.returncode != 0
    assert "ECGFAST_OPS must be 'fused' or 'reference'" in done.stdout
    (path,) = tmp_path.glob("unknown-*-correctness.json")
    (part,) = json.loads(path.read_text())["parts"]
    assert part["result"].startswith("failed")
    assert any("ECGFAST_OPS must be" in line for line in part["log"])


def test_a_call_cut_short_keeps_the_parts_that_it_did(tmp_path):
    """Each part's results are written when it ends."""
    command = [str(SCRIPT), "training", "--dry-run", "--only=libraries,step", str(tmp_path)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            if line.startswith("== step"):
                break
        (path,) = tmp_path.glob("cpu-*-training.json")
        kept = json.loads(path.read_text())
        running.terminate()
    assert parts_of(kept) == {"libraries": "ok"}


def test_a_part_at_its_limit_is_interrupted(tmp_path):
    """pytest then sums up what it has done; the others' time is kept for them."""
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\ndef test_first(): pass\ndef test_second(): time.sleep(600)\n")
    script = SCRIPT.read_text()
    begin, end = script.index("# part NAME"), script.index("skip() {")
    harness = f"""
        set -euo pipefail
        readonly BUDGET=360 PAGE=15 LONGER=1
        dry=true plan=false only='' work={tmp_path} failures=0
        mkdir -p $work/logs
        chosen() {{ :; }}
        done_with() {{ echo "$1|$2"; }}
        {script[begin:end]}
        part slow 20 "$PYTHON" -m pytest -v -p no:cacheprovider {slow}
        grep -c "test_first PASSED" $work/logs/slow.log
        grep -q KeyboardInterrupt $work/logs/slow.log
    """
    done = subprocess.run(
        ["bash", "-c", harness], env=ENVIRONMENT, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slow|out of time\n1\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("correctness", "--dry"), "gpu_check: unknown option --dry\n"),
        ((), "gpu_check: the first argument must be prepare, correctness or training, got ''\n"),
        (("all",), "gpu_check: the first argument must be prepare, correctness or training, got 'all'\n"),
    ],
)
def test_unknown_arguments_are_refused(arguments, message):
    done = check(*arguments)
    assert done.returncode == 2
    assert done.stderr == message


def test_libraries_of_other_sources_are_refused(tmp_path):
    """Nothing is put in the place of the libraries that are there."""
    copy = tmp_path / "repository"
    shutil.copytree(gpu_check.ROOT / "benchmarks", copy / "benchmarks")
    for name in ("csrc", "cmake"):
        shutil.copytree(gpu_check.ROOT / name, copy / name)
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(gpu_check.ROOT / name, copy)
    prepared = copy / "build" / "gpu-check"
    prepared.mkdir(parents=True)
    (prepared / "libecgfast_cuda.so").touch()
    (prepared / "sources").write_text(gpu_check.digest() + "\n")
    source = copy / "csrc" / "cpu" / "types.h"
    source.write_text(source.read_text() + "\n")
    command = [str(copy / "benchmarks" / "gpu_check.sh"), "correctness", "--only=libraries", str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "build/gpu-check was not prepared from these sources: run" in done.stdout
    assert not (copy / "ecgfast").exists()


def test_missing_packages(monkeypatch):
    installed = metadata.version

    def version(name):
        if name == "hypothesis":
            raise metadata.PackageNotFoundError(name)
        return "2.0" if name == "torch" else installed(name)

    monkeypatch.setattr(metadata, "version", version)
    assert gpu_check.missing() == ["torch>=2.10", "hypothesis"]


def test_results_of_an_op_that_fails_are_told_and_others_kept(tmp_path, monkeypatch, capsys):
    def run(op, *_, **__):
        if op == "patch_embed":
            raise EcgfastError("bench: no memory")
        return {"op": op}

    (tmp_path / "ops").mkdir()
    monkeypatch.setattr("ecgfast.benchmarking.run", run)
    with pytest.raises(SystemExit, match="no results: patch_embed"):
        gpu_check.measure_ops(tmp_path, "cpu", ["patch_embed", "masks"])
    assert json.loads((tmp_path / "ops" / "masks.json").read_text()) == {"op": "masks"}
    assert "bench: no memory" in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["official", "tuned", "ecgfast"])
def test_a_step_in_every_variant(variant):
    names = ("patch_embed", "span_mask", "local_contrastive", "positional_conv")
    before = [getattr(ops, name) for name in names]
    torch.manual_seed(0)
    update = step.Step(variant, step.tiny(), "cpu")
    first = [p.detach().clone() for p in update.model.parameters()]
    update()
    changed = [not torch.equal(p, q) for p, q in zip(first, update.model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)  # a bias before a softmax has no gradient
    assert all(torch.isfinite(p).all() for p in update.model.parameters())
    with ops_of(variant):
        inside = [getattr(ops, name) for name in names]
    assert [a is b for a, b in zip(inside, before, strict=True)] == [variant == "ecgfast"] * len(names)
    assert [getattr(ops, name) for name in names] == before


def test_the_variants_compute_the_same_losses():
    """With the same draws, all but the negatives, the losses of the variants differ by rounding alone."""
    config = step.tiny()
    losses = {}
    for variant in ("official", "tuned", "ecgfast"):
        update = step.Step("ecgfast", config, "cpu")
        update.model.eval()
        mask = ops.span_mask(update.views.sample_ids, 100, 0.65, 10, update.rng, n_masked=60)
        keep = ops.lead_mask(update.views.sample_ids, 12, 0.5, update.rng)
        with ops_of(variant), pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(ops, "span_mask", lambda *_, found=mask, **__: found)
            patch.setattr(ops, "lead_mask", lambda *_, found=keep, **__: found)
            noiseless = ops.gumbel_quantize if variant == "ecgfast" else ops.gumbel_quantize_reference
            patch.setattr(ops, "gumbel_quantize", noiseless)
            losses[variant] = update.model(update.views, update.rng)
    for variant in ("official", "tuned"):
        for name in ("feature_penalty", "diversity", "global"):
            got, want = losses[variant].terms[name], losses["ecgfast"].terms[name]
            torch.testing.assert_close(got.float(), want.float(), rtol=1e-4, atol=1e-4)


def test_old_names_of_variants_are_read(tmp_path):
    """`--forms`, and rows that name their variant under "form"."""
    path = tmp_path / "step.json"
    step.main(f"--preset tiny --forms ecgfast --rounds 1 --steps 1 --json {path}".split())
    result = json.loads(path.read_text())
    assert [row["variant"] for row in result["rows"]] == ["ecgfast"]
    old = result | {"rows": [{"form": row["variant"], **row} for row in result["rows"]]}
    for row in old["rows"]:
        del row["variant"]
    assert step.markdown(old) == step.markdown(result)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_script_is_clean():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
