"""What the compiler made of the kernels: tensor cores and 16-byte accesses where meant, nothing spilled."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuda_on_cpu.harness import ROOT, toolkit_roots, unavailable

ARCHITECTURE = "90"
LIBRARY = ROOT / "ecgfast" / "libecgfast_cuda.so"
ELEMENTS = {"bfloat16": "13__nv_bfloat16", "float16": "6__half", "float32": "f"}
PRODUCT_ELEMENTS = {**ELEMENTS, "tf32": "NS_4Tf32E"}  # of kernels that have products
WIDE = ("float32", "tf32")
MMA = {
    "bfloat16": "HMMA.16816.F32.BF16",
    "float16": "HMMA.16816.F32 ",
    "float32": "HMMA.1688.F32.TF32",
    "tf32": "HMMA.1688.F32.TF32",
}
LDMATRIX = r"LDSM\.16\.MT?88\.4"
LDMATRIX_TRANSPOSED = r"LDSM\.16\.MT88\.4"
CP_ASYNC_16 = r"LDGSTS\.E\S*\.128"
STORE_16 = r"STG\.E\S*\.128"
LOAD_16 = r"LDG\.E\S*\.128"


def _disassemblers() -> Iterator[Path]:
    if found := shutil.which("cuobjdump"):
        yield Path(found)
    for root in toolkit_roots():
        yield root / "bin" / "cuobjdump"
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        yield Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@functools.cache
def sass() -> dict[str, str]:
    """The machine code of each kernel of the built library, by its mangled name."""
    cuobjdump = next((p for p in _disassemblers() if p.is_file()), None)
    if cuobjdump is None:
        unavailable("no cuobjdump: it comes with the CUDA toolkit and with the triton wheel")
    if not LIBRARY.exists():
        unavailable("the CUDA library is not built here")
    path = f"{cuobjdump.parent}{os.pathsep}{os.environ['PATH']}"  # it calls nvdisasm
    text = subprocess.run(
        [str(cuobjdump), "-sass", "-arch", f"sm_{ARCHITECTURE}", str(LIBRARY)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)[1:]
    if not parts:
        unavailable(f"the CUDA library is not built for sm_{ARCHITECTURE}")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def kernels(name: str, *dtypes: str) -> list[str]:
    """The code of the kernels of this name; of the template's instances that begin with ``dtypes``."""
    mark = f"{len(name)}{name}" + ("I" if dtypes else "") + "".join(PRODUCT_ELEMENTS[d] for d in dtypes)
    matches = [code for symbol, code in sass().items() if mark in symbol]
    assert matches, (mark, sorted(sass()))
    return matches


def kernel(name: str, *dtypes: str) -> str:
    """The code of the one kernel of this name; of the template's one instance for ``dtypes``."""
    (code,) = kernels(name, *dtypes)
    return code


@pytest.mark.parametrize("dtype", PRODUCT_ELEMENTS)
@pytest.mark.parametrize("name", ["local_contrastive_forward", "local_contrastive_backward"])
def test_local_contrastive(name, dtype):
    code = kernel(name, dtype)
    assert MMA[dtype] in code
    assert re.search(LDMATRIX, code)
    assert re.search(CP_ASYNC_16, code)
    if name.endswith("backward"):
        assert re.search(STORE_16, code)


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_gather_segments(dtype):
    code = kernel("gather_segments_copy", dtype)
    assert re.search(LOAD_16, code)
    assert re.search(STORE_16, code)


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_gumbel_forward(dtype):
    code = kernel("gumbel_forward", dtype)
    assert re.search(LOAD_16, code)  # of entries
    assert re.search(STORE_16, code)
    assert "MUFU.LG2" in code


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_gumbel_backward(dtype):
    codes = [c for symbol, c in sass().items() if f"15gumbel_backwardI{ELEMENTS[dtype]}" in symbol]
    assert len(codes) == (2 if dtype == "float32" else 3)  # entries of the same type, float32 or Tf32
    assert all(MMA[dtype] in code or MMA["float32"] in code for code in codes)
    assert any(MMA[dtype] in code for code in codes)
    for code in codes:
        assert re.search(LDMATRIX, code)
        assert re.search(CP_ASYNC_16, code)


@pytest.mark.parametrize("dtype", PRODUCT_ELEMENTS)
@pytest.mark.parametrize("name", ["convolve", "weight_gradient"])
def test_positional_conv(name, dtype):
    code = kernel(name, dtype)
    assert MMA["bfloat16" if dtype in WIDE else dtype] in code  # float32 is cut into bfloat16 pieces
    assert re.search(LDMATRIX, code)
    assert re.search(CP_ASYNC_16, code)
    if name == "convolve":
        assert re.search(LOAD_16, code)
        assert re.search(STORE_16, code)


@pytest.mark.parametrize("dtype", PRODUCT_ELEMENTS)
def test_positional_conv_packing(dtype):
    code = kernel("pack_tokens", dtype)
    assert re.search(LOAD_16, code)
    assert re.search(STORE_16, code)


def shaped_kernels(name: str, dtype: str) -> list[str]:
    """The code of the instances of a template whose first argument is a tile shape of ``dtype``."""
    mark = f"{len(name)}{name}INS_5ShapeI{PRODUCT_ELEMENTS[dtype]}"
    return [code for symbol, code in sass().items() if mark in symbol]


GLOBAL_PRODUCTS = [
    "similarity_sums",
    "similarity_gradients",
    "gradient_products",
    "pair_sums",
    "pair_gradients",
    "pair_products",
]


@pytest.mark.parametrize("dtype", PRODUCT_ELEMENTS)
@pytest.mark.parametrize("name", GLOBAL_PRODUCTS)
def test_global_contrastive(name, dtype):
    codes = shaped_kernels(name, dtype)
    assert len(codes) == (1 if dtype == "float32" else 2)  # sizes of tiles
    for code in codes:
        assert MMA[dtype] in code
        assert re.search(LDMATRIX, code)
        assert re.search(CP_ASYNC_16, code)
        if not name.endswith("_sums") and dtype not in WIDE:
            assert re.search(STORE_16, code)
        if name.endswith("_products") and dtype not in WIDE:
            assert re.search(LDMATRIX_TRANSPOSED, code)


@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize("name", ["prepare_rows", "prepare_pairs"])
def test_global_contrastive_rows(name, dtype):
    code = kernel(name, dtype)
    assert re.search(LOAD_16, code)
    assert re.search(STORE_16, code)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_positional_conv_weights(dtype):
    assert re.search(STORE_16, kernel("pack_weights", dtype))


PRODUCTS = [
    "stem_first",
    "stem_layer",
    "stem_grad_layer",
    "stem_grad_weight_first",
    "stem_grad_first",
]


@pytest.mark.parametrize("dtype", PRODUCT_ELEMENTS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_patch_embed_products(name, dtype):
    for code in kernels(name, dtype):
        assert MMA[dtype] in code
        assert re.search(CP_ASYNC_16, code)
        if dtype not in WIDE:
            assert re.search(LDMATRIX_TRANSPOSED if "grad" in name else LDMATRIX, code)
            if name in ("stem_first", "stem_layer", "stem_grad_layer"):
                assert re.search(STORE_16, code)


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_patch_embed_statistics(dtype):
    code = kernel("stem_statistics", dtype)
    assert MMA["bfloat16"] in code  # of slices in which any dtype's values are exact
    assert re.search(STORE_16, code)


@pytest.mark.parametrize("name", [*PRODUCTS, "local_contrastive_forward", "local_contrastive_backward"])
def test_tf32_takes_a_third_of_the_products(name):
    for precise, rounded in zip(kernels(name, "float32"), kernels(name, "tf32"), strict=True):
        assert 0 < 3 * rounded.count(MMA["tf32"]) == precise.count(MMA["float32"])


def test_no_kernel_uses_local_memory():
    assert sass()
    assert not [symbol for symbol, code in sass().items() if re.search(r"\b(LDL|STL)\b", code)]


def test_inline_ptx_stays_in_one_file():
    sources = [p for p in (ROOT / "csrc" / "cuda").iterdir() if p.name != "ptx.cuh"]
    assert not [p.name for p in sources if re.search(r"\basm\b", p.read_text())]
