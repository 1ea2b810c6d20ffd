"""The runner writes what it promises, and its errors are one line. No time is asserted."""

import json
import re

import pytest
import torch

from ecgfast import ops, usable_cpu_isas
from ecgfast.benchmarking import CASES, PAGES, VARIANTS, bench, machine, markdown, run, runner, worker
from ecgfast.benchmarking.cases import merge_sizes, variants_of
from ecgfast.benchmarking.worker import Subject
from ecgfast.cli import main
from ecgfast.errors import EcgfastError

FAST = {"variants": ("official", "ecgfast"), "dtypes": ("float32",), "passes": ("forward_backward",)}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    path, page = folder / "out" / "result.json", folder / "page.md"
    command = f"bench global_contrastive --quick --json {path} --markdown {page} --sizes N 40"
    for name, values in FAST.items():
        command += f" --{name} {' '.join(values)}"
    assert main(command.split()) == 0
    return json.loads(path.read_text()), page.read_text()


def test_schema(result):
    result, _ = result
    assert {"op", "device", "hardware", "torch", "commit", "sizes", "rows"} <= set(result)
    assert result["op"] == "global_contrastive"
    assert result["torch"] == torch.__version__
    assert result["sizes"] == CASES["global_contrastive"].quick | {"N": 40}
    assert result["failed"] == []
    measured = [(row["pages"], row["variant"]) for row in result["rows"]]
    assert sorted(measured) == sorted((p, v) for p in PAGES for v in FAST["variants"])
    for row in result["rows"]:
        assert row["variant"] in VARIANTS
        assert (row["dtype"], row["pass"]) == ("float32", "forward_backward")
        assert row["median_ms"] > 0
        assert row["floor_ms"] > 0
        assert row["gemm_share"] > 0
        assert row["peak_mib"] is None or row["peak_mib"] >= 0


def test_markdown(result):
    result, page = result
    assert page == markdown([result])
    assert "| float32 | forward + backward | kept |" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {15}


def test_sizes_on_cuda_are_a_batch_of_128():
    assert merge_sizes("positional_conv", {"N": 40}, quick=False, device="cuda")["B"] == 128
    assert merge_sizes("positional_conv", None, quick=True, device="cuda") == CASES["positional_conv"].quick
    for case in CASES.values():
        for sizes in (case.cuda, *case.others.values(), *case.cuda_others.values()):
            assert set(sizes) <= set(case.sizes)


@pytest.mark.parametrize("op", list(CASES))
def test_every_variant_runs(op):
    for dtype in CASES[op].dtypes:
        subject = Subject(op, merge_sizes(op, None, quick=True), dtype, len(CASES[op].passes) > 1, "cpu")
        for variant, function in variants_of(op).items():
            if variant != "tuned_compiled":  # compiling takes long; its functions are tested eagerly
                subject(function)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": "convolve"}, r"bench: OP must be one of patch_embed, .*, got 'convolve'"),
        ({"op": "masks", "device": "tpu"}, "bench: device must be cpu or cuda, got 'tpu'"),
        ({"op": "masks", "sizes": {"X": 3}}, "bench: sizes of masks are B, L, N, got 'X'"),
        ({"op": "masks", "sizes": {"B": 0}}, "bench: size B must be at least 1, got 0"),
        ({"op": "masks", "variants": ["fast"]}, "bench: variant must be of official, .*, got 'fast'"),
        ({"op": "patch_embed", "dtypes": ["int8"]}, "bench: dtype must be of .*, got 'int8'"),
        ({"op": "patch_embed", "budget_s": -1.0}, "bench: budget must be .*, got -1"),
        ({"op": "patch_embed", "budget_s": float("nan")}, "bench: budget must be .*, got nan"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(EcgfastError, match=message):
        run(**arguments)


def test_command_line_error_is_one_line(capsys):
    assert main(["bench", "convolve", "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("ecgfast: error: bench: OP must be one of patch_embed, ")


def test_every_op_has_a_case():
    """The benchmarks are called what the ops are called, but for those of several ops or of an op's forms."""
    names = [name for name in ops.__all__ if hasattr(ops, f"{name}_reference")]
    assert len(names) == 8
    assert set(names) | {"masks", "nt_xent", "lead_pairs"} == set(CASES)


def test_help_lists_the_ops(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    text = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert f" {', '.join(CASES)} (both of them), or all." in text


def test_rates_are_of_the_dtypes_asked_for(monkeypatch):
    measured = []

    def seconds(n, dtype, device):
        measured.append((n, dtype))
        return 2 * n**3 / 4e8  # as bfloat16 on a CPU without its products: 0.4 GFLOP/s

    monkeypatch.setattr(machine, "_product_seconds", seconds)
    lines = []
    found = machine.rates("cpu", quick=False, dtypes=["bfloat16"], log=lines.append)
    assert found.keys() == {"gemm_bfloat16_gflops", "copy_gb_per_s"}
    assert found["gemm_bfloat16_gflops"] == 0.4
    assert lines == ["the rate of products in bfloat16", "the rate of copies"]
    assert {dtype for _, dtype in measured} == {"bfloat16"}
    assert sum(2 * n**3 / 4e8 for n, _ in measured) < 1.5  # not 43 s for each of seven products of order 2048
    measured.clear()
    assert machine.rates("cpu", quick=False, dtypes=[]).keys() == {"copy_gb_per_s"}
    assert not measured


def test_repeats_end_in_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    calls = []

    def slow():
        calls.append(1)
        now[0] += 1.5

    assert machine._best_seconds(slow, "cpu") == 1.5
    assert len(calls) == 1


def test_rates_of_ops_without_products_are_not_measured():
    assert worker.rated_dtypes("masks", ["bool"]) == []
    assert worker.rated_dtypes("gather_segments", ["float32", "bfloat16", "int16"]) == []
    assert worker.rated_dtypes("patch_embed", ["float32"]) == ["float32"]
    assert worker.rated_dtypes("positional_conv", ["bfloat16"]) == ["bfloat16"]
    assert worker.rated_dtypes("gumbel_quantize", ["float32", "bfloat16"]) == ["float32", "bfloat16"]


def test_a_call_without_products_in_bfloat16(tmp_path, capsys):
    """On the CPU that AVX2 makes of this one: no dtype is measured that wasn't asked for, nor in silence."""
    env = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    if "avx2" in usable_cpu_isas():
        env["ECGFAST_CPU_ISA"] = "avx2"
    command = "bench patch_embed --quick --dtypes float32 --passes forward --variants ecgfast --pages plain"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        assert main([*command.split(), "--json", str(tmp_path / "x.json")]) == 0
    out, err = capsys.readouterr()
    rates = json.loads((tmp_path / "x.json").read_text())["rates"]
    assert rates.keys() == {"gemm_float32_gflops", "copy_gb_per_s"}
    assert "GFLOP/s fp32, " in out
    assert "bf16" not in out
    lines = err.splitlines()
    assert "patch_embed: the rate of products in float32" in lines
    assert "patch_embed: float32, forward" in lines
    assert "patch_embed: memory of ecgfast, float32, forward" in lines


@pytest.mark.parametrize("argument", ["json", "markdown", "json-dir"])
def test_files_are_checked_before_the_work(argument, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *args, **options: pytest.fail("measured"))
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / "x" if argument != "json-dir" else tmp_path / "file"
    assert main(["bench", "masks", "--quick", f"--{argument}", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"ecgfast: error: {argument.replace('-', '_')}: ")
    if argument != "json-dir":
        assert main(["bench", "masks", "--quick", f"--{argument}", str(tmp_path)]) == 2
        assert "must be a file, got the folder" in capsys.readouterr().err


def test_a_worker_that_fails_is_told(monkeypatch):
    monkeypatch.setenv("ECGFAST_CPU_ISA", "vax")
    with pytest.raises(
        EcgfastError, match=r"bench: measuring masks .* ended with 1: .*ECGFAST_CPU_ISA must be"
    ):
        run("masks", quick=True, pages=["plain"])


def test_all_takes_no_single_file(tmp_path):
    with pytest.raises(EcgfastError, match="give --json-dir"):
        bench("all", json_file=tmp_path / "x.json")
