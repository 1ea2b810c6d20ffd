"""The runner writes what it promises, and its errors are one line. No time is asserted."""

import json

import pytest
import torch

from ecgfast.benchmarking import CASES, PAGES, VARIANTS, bench, markdown, run
from ecgfast.benchmarking.cases import forms, merge_sizes
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
def test_every_form_runs(op):
    for dtype in CASES[op].dtypes:
        subject = Subject(op, merge_sizes(op, None, quick=True), dtype, len(CASES[op].passes) > 1, "cpu")
        for variant, form in forms(op).items():
            if variant != "tuned_compiled":  # compiling takes long; its functions are tested eagerly
                subject(form)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": "convolve"}, r"bench: OP must be one of patch_embed, .*, got 'convolve'"),
        ({"op": "masks", "device": "tpu"}, "bench: device must be cpu or cuda, got 'tpu'"),
        ({"op": "masks", "sizes": {"X": 3}}, "bench: sizes of masks are B, L, N, got 'X'"),
        ({"op": "masks", "sizes": {"B": 0}}, "bench: size B must be at least 1, got 0"),
        ({"op": "masks", "variants": ["fast"]}, "bench: variant must be of official, .*, got 'fast'"),
        ({"op": "patch_embed", "dtypes": ["int8"]}, "bench: dtype must be of .*, got 'int8'"),
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


def test_all_takes_no_single_file(tmp_path):
    with pytest.raises(EcgfastError, match="give --json-dir"):
        bench("all", json_file=tmp_path / "x.json")
