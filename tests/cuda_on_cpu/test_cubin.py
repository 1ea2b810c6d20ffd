"""What the compiler made of the kernels: tensor cores and 16-byte accesses where meant, nothing spilled."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuda_on_cpu.harness import ROOT, toolkit_roots

ARCHITECTURE = "sm_90"


def _disassemblers() -> Iterator[Path]:
    if found := shutil.which("cuobjdump"):
        yield Path(found)
    for root in toolkit_roots():
        yield root / "bin" / "cuobjdump"
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        yield Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@pytest.fixture(scope="module")
def sass(tmp_path_factory) -> dict[str, str]:
    """The machine code of each kernel of ``local_contrastive.cu``, by its mangled name."""
    cuobjdump = next((p for p in _disassemblers() if p.is_file()), None)
    if cuobjdump is None:
        pytest.skip("no cuobjdump: it comes with the CUDA toolkit and with the triton wheel")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    cubin = tmp_path_factory.mktemp("cubin") / "local_contrastive.cubin"
    source = ROOT / "csrc" / "cuda" / "local_contrastive.cu"
    subprocess.run(
        [nvcc, "-std=c++17", "-O3", "-cubin", f"-arch={ARCHITECTURE}", "-o", str(cubin), str(source)],
        check=True,
    )
    path = f"{cuobjdump.parent}{os.pathsep}{os.environ['PATH']}"  # it calls nvdisasm
    text = subprocess.run(
        [str(cuobjdump), "-sass", str(cubin)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    name, *rest = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)[1:]
    parts = [name, *rest]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _kernel(sass: dict[str, str], name: str, element: str) -> str:
    matches = [code for symbol, code in sass.items() if f"{name}I{element}" in symbol]
    assert len(matches) == 1, sorted(sass)
    return matches[0]


@pytest.mark.parametrize("name", ["local_contrastive_forward", "local_contrastive_backward"])
@pytest.mark.parametrize(
    ("element", "mma"),
    [("13__nv_bfloat16", "HMMA.16816.F32.BF16"), ("6__half", "HMMA.16816.F32 "), ("f", "HMMA.1688.F32.TF32")],
)
def test_kernels_use_tensor_cores_and_wide_copies(sass, name, element, mma):
    code = _kernel(sass, name, element)
    assert mma in code
    assert "LDSM.16.M88.4" in code  # ldmatrix
    assert re.search(r"LDGSTS\.E\S*\.128", code)  # cp.async of 16 bytes
    assert not re.search(r"\b(LDL|STL)\b", code)  # no local memory
    if name.endswith("backward"):
        assert "STG.E.128" in code


def test_inline_ptx_stays_in_one_file():
    sources = [p for p in (ROOT / "csrc" / "cuda").iterdir() if p.name != "ptx.cuh"]
    assert not [p.name for p in sources if re.search(r"\basm\b", p.read_text())]
