"""Loads the compiled op libraries and says what they are."""

import os
import platform
from pathlib import Path

import torch

from ecgfast._version import __version__

_HERE = Path(__file__).resolve().parent
_CUDA_LIBRARY = _HERE / "libecgfast_cuda.so"

# The CPU library defines the ops, so it comes first; the CUDA one needs a torch built with CUDA.
try:
    torch.ops.load_library(str(_HERE / "libecgfast_cpu.so"))
    _BUILT = dict(line.split("=", 1) for line in torch.ops.ecgfast.build_info().splitlines())
except (OSError, AttributeError) as error:  # absent or of another machine; of another version of ecgfast
    raise ImportError(
        "ecgfast's compiled part is missing or does not fit this torch or machine; install it with "
        f"'pip install .' (or 'pip install -e .') in its repository: {error}"
    ) from error
cuda_loaded = bool(torch.version.cuda and _BUILT["cuda_architectures"] and _CUDA_LIBRARY.exists())
if cuda_loaded:
    torch.ops.load_library(str(_CUDA_LIBRARY))

_OPS = frozenset(
    {
        "gather_segments",
        "global_contrastive",
        "gumbel_quantize",
        "lead_mask",
        "local_contrastive",
        "patch_embed",
        "positional_conv",
        "span_mask",
    }
)
_CPU_OPS = _OPS | {"global_contrastive_pairs"}
_KERNELS = {"cpu": _CPU_OPS, "meta": _CPU_OPS, "cuda": _OPS if cuda_loaded else frozenset()}


def has_kernel(op: str, device_type: str) -> bool:
    """Whether ``op`` has a compiled kernel for tensors of this device type."""
    return op in _KERNELS.get(device_type, ())


def cpu_isa() -> str:
    """The instruction set whose CPU kernels run: "amx", "avx512_bf16", "avx512", "avx2" or "baseline"."""
    return torch.ops.ecgfast.cpu_isa()


def usable_cpu_isas() -> list[str]:
    """The instruction sets built in that this machine can run, best first."""
    return torch.ops.ecgfast.usable_cpu_isas().split(";")


def set_cpu_isa(name: str) -> None:
    """Run the CPU kernels of another instruction set; ``ECGFAST_CPU_ISA`` does it for a process.

    Raises:
        ValueError: ``name`` is none of :func:`usable_cpu_isas`.
    """
    if name not in usable_cpu_isas():
        taken = ", ".join(usable_cpu_isas())
        raise ValueError(f"set_cpu_isa: name must be one of {taken}, got {name!r}")
    torch.ops.ecgfast.set_cpu_isa(name)


def _check_environment() -> None:
    wanted = os.environ.get("ECGFAST_CPU_ISA")
    if wanted is not None and wanted not in usable_cpu_isas():
        taken = ", ".join(usable_cpu_isas())
        raise ImportError(f"ECGFAST_CPU_ISA must be one of {taken} on this machine, got {wanted!r}")


_check_environment()


def build_info() -> dict[str, str]:
    """What the libraries were built with: compilers, flags, instruction sets, CUDA architectures, torch."""
    return dict(_BUILT)


def config() -> dict[str, str]:
    """What was built and what runs: see :func:`show_config`."""
    built = build_info()
    cuda = built["cuda_architectures"]
    return {
        "ecgfast": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (needs >= {built['torch_target']}, "
        f"built with the headers of {built['torch_headers']})",
        "compiler": built["compiler"],
        "kernel flags": built["flags"],
        "CPU kernels": f"{cpu_isa()} in use; usable here: {', '.join(usable_cpu_isas())}; "
        f"built: {built['cpu_isas'].replace(',', ', ')}",
        "CUDA kernels": (
            f"sm_{cuda.replace(',', ', sm_')}, nvcc {built['cuda_compiler']}"
            + ("" if cuda_loaded else "; not loaded, this torch has no CUDA")
            if cuda
            else "not built"
        ),
        "CUDA device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def show_config() -> None:
    """Print the compilers, flags, CPU instruction sets, CUDA architectures and torch of this build."""
    entries = config()
    width = max(map(len, entries))
    for key, value in entries.items():
        print(f"{key:{width}}  {value}")
