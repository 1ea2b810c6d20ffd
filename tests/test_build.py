"""What was built: its configuration, its symbols, its wheel, and the choice of the instruction set."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ecgfast
from ecgfast._build import build_info

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ecgfast.__file__).parent


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=environment.get("PYTHONPATH", ROOT),
    )


def test_show_config_names_what_was_built(capsys):
    ecgfast.show_config()
    shown = capsys.readouterr().out
    for key in ("compiler", "kernel flags", "CPU kernels", "CUDA kernels", "torch"):
        assert re.search(rf"^{key} +\S", shown, re.MULTILINE), key
    built = build_info()
    assert set(ecgfast.usable_cpu_isas()) <= set(built["cpu_isas"].split(","))
    assert ecgfast.cpu_isa() in ecgfast.usable_cpu_isas()
    assert built["torch_target"] == "2.10"


def test_the_isa_can_be_forced():
    for isa in ecgfast.usable_cpu_isas():
        done = run_python("import ecgfast; print(ecgfast.cpu_isa())", ECGFAST_CPU_ISA=isa)
        assert done.stdout.strip() == isa, done.stderr
    done = run_python("import ecgfast.ops", ECGFAST_CPU_ISA="mmx")
    assert "ECGFAST_CPU_ISA must be one of" in done.stderr
    with pytest.raises(ValueError, match=r"set_cpu_isa: name must be one of .*, got 'mmx'"):
        ecgfast.set_cpu_isa("mmx")


def test_reference_ops_can_be_chosen_for_a_process():
    code = "import torch; from ecgfast.ops._dispatch import fused; print(fused('lead_mask', torch.zeros(1)))"
    assert run_python(code, ECGFAST_OPS="reference").stdout.strip() == "False"
    assert run_python(code, ECGFAST_OPS="fused").stdout.strip() == "True"
    assert "ECGFAST_OPS must be" in run_python(code, ECGFAST_OPS="fast").stderr


def test_the_op_libraries_export_nothing_and_carry_no_paths():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    for library in PACKAGE.glob("libecgfast_*.so"):
        listed = subprocess.run(
            [nm, "-D", "--defined-only", library], capture_output=True, text=True, check=True
        )
        assert listed.stdout.strip() == "", library
        assert str(ROOT).encode() not in library.read_bytes(), library


def test_no_isa_shares_code_with_another():
    """A weak symbol of one ISA's objects could be linked in place of another's."""
    nm = shutil.which("nm")
    objects = sorted(ROOT.glob("build/cmake-*/CMakeFiles/kernels_*.dir/**/*.o"))
    if nm is None or not objects:
        pytest.skip("no build folder")
    for path in objects:
        listed = subprocess.run([nm, "-C", path], capture_output=True, text=True, check=True).stdout
        shared = [line for line in listed.splitlines() if re.search(r" [WVu] ", line)]
        assert not shared, f"{path.name}: {shared[:3]}"


def test_a_wheel_holds_everything_and_runs(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ROOT,
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        tmp_path,
    ]
    built = re.sub(",", ";", build_info()["cuda_architectures"]) or "none"
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"ECGFAST_CUDA_ARCHS": built}
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("ecgfast-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "ecgfast/libecgfast_cpu.so" in names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "csrc/"))]
    code = (
        "import torch, ecgfast; x = torch.randn(2, 5, 8);"
        "loss, _ = ecgfast.ops.local_contrastive(x, x, negatives='all'); print(ecgfast.__file__, loss.shape)"
    )
    done = run_python(code, PYTHONPATH=str(tmp_path / "site"))
    assert str(tmp_path) in done.stdout, done.stderr
