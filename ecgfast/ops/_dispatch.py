"""Which implementation a public op runs, and the checks that all ops share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ecgfast import _build

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _initial() -> bool:
    value = os.environ.get("ECGFAST_OPS", "fused")
    if value not in ("fused", "reference"):
        raise ImportError(f"ECGFAST_OPS must be 'fused' or 'reference', got {value!r}")
    return value == "reference"


_reference = _initial()


@contextmanager
def use_reference(enabled: bool = True) -> Iterator[None]:
    """Run every op through its plain PyTorch reference inside the ``with`` block, for debugging.

    The environment variable ``ECGFAST_OPS=reference`` does the same for a whole process.
    """
    global _reference
    previous, _reference = _reference, enabled
    try:
        yield
    finally:
        _reference = previous


def fused(op: str, tensor: Tensor) -> bool:
    """Whether ``op`` runs its kernel on this tensor's device; fp64 has kernels on the CPU alone."""
    if _reference or (tensor.is_cuda and tensor.dtype == torch.float64):
        return False
    return _build.has_kernel(op, tensor.device.type)


def _tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# As torch.compiler.assume_constant_result does, without importing the compiler, which guards the setting.
_tf32_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def tf32(tensor: Tensor) -> bool:
    """Whether kernels may multiply this tensor's values in TF32: fp32 on CUDA, where PyTorch's products may.

    That is where :func:`torch.get_float32_matmul_precision` is "high" or "medium", or
    ``torch.backends.cuda.matmul.fp32_precision`` "tf32"; unlike the former, the latter can always be read.
    """
    return tensor.is_cuda and tensor.dtype == torch.float32 and _tf32_allowed()


def check(condition: bool, op: str, message: str) -> None:
    """Raise ``ValueError("op: message")`` unless the condition holds."""
    if not condition:
        raise ValueError(f"{op}: {message}")


def describe(t: object) -> str:
    """A tensor's shape, dtype and device in a few words, for error messages."""
    if not isinstance(t, Tensor):
        return type(t).__name__
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}"


def check_tensor(
    op: str,
    name: str,
    t: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    like: Tensor | None = None,
    letters: str = "",
) -> None:
    """Check a tensor's rank, sizes (``None``: any), dtype, and that it lies on ``like``'s device."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
    fits = t.dim() == len(shape)
    for want, size in zip(shape, t.shape, strict=False):
        fits = fits and (want is None or want == size)
    if not fits:
        taken = letters or ", ".join("?" if s is None else str(s) for s in shape)
        raise ValueError(f"{op}: {name} must have shape [{taken}], got {describe(t)}")
    if t.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{op}: {name} must be {names}, got {describe(t)}")
    if like is not None and t.device != like.device:
        raise ValueError(f"{op}: {name} is on {t.device}, the other tensors on {like.device}")


def check_state(op: str, rng: Tensor | None, like: Tensor) -> None:
    """Check the random state."""
    check_tensor(op, "rng", rng, (2,), (torch.int64,), like, "2: seed, step")


def check_rng(op: str, rng: Tensor | None, sample_ids: Tensor | None, like: Tensor) -> None:
    """Check the random state and the sample ids that go with it."""
    check_state(op, rng, like)
    check_tensor(op, "sample_ids", sample_ids, (None,), (torch.int64,), like, "B")


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the autocast dtype where autocast is on for their device; as they are otherwise."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context without autocast for the tensor's device: what an op accumulates stays in fp32."""
    return torch.autocast(tensor.device.type, enabled=False)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that an op accumulates in: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
