"""The CPU kernels on aarch64: they compile, and where an emulator is found they compute the same there."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent / "include"
# As CMakeLists.txt compiles them, with less optimisation.
FLAGS = ["-std=gnu++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-unused-function", "-Wno-psabi"]
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-DECGFAST_ISA=baseline"]
KERNELS = sorted(ROOT.glob("csrc/cpu/*.cpp"))
LAYER = [*sorted(ROOT.glob("csrc/torch/cpu_*.cpp")), ROOT / "csrc/torch/schemas.cpp"]


@pytest.fixture(scope="session")
def compiler():
    names = ["aarch64-linux-gnu-g++", *(f"aarch64-linux-gnu-g++-{v}" for v in range(20, 8, -1))]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no aarch64-linux-gnu-g++")
    return found


def compile_(compiler, *arguments):
    done = subprocess.run([compiler, *FLAGS, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_kernels_compile(source, compiler, tmp_path):
    isas = ["-DECGFAST_HAS_baseline"] if source.stem == "dispatch" else []
    compile_(compiler, *KERNEL_FLAGS, *isas, "-c", source, "-o", tmp_path / "kernel.o")


@pytest.mark.parametrize("source", LAYER, ids=lambda path: path.stem)
def test_torch_layer_compiles(source, compiler):
    target = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    compile_(compiler, target, "-isystem", TORCH, "-fsyntax-only", source)


def test_kernels_compute_there_as_plain_loops_do(compiler, tmp_path):
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("no qemu-aarch64")
    names = ("activation", "local_contrastive")
    sources = [ROOT / f"csrc/cpu/{name}.cpp" for name in names]
    driver = ROOT / "tests/aarch64_driver.cpp"
    program = tmp_path / "driver"
    compile_(compiler, *KERNEL_FLAGS, "-I", ROOT / "csrc", "-static", driver, *sources, "-o", program)
    done = subprocess.run([emulator, program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["philox", "exp", "gelu", "gelu_grad", "local_contrastive"]
