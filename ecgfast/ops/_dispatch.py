"""Which implementation a public op runs, and the checks that all ops share."""

import numbers
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ecgfast import _build

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Python's numbers, and what stands for them in a trace.
_INTEGER = (int, torch.SymInt)
_REAL = (float, torch.SymFloat, *_INTEGER)


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


def _transforms_differentiate() -> bool:
    transform = torch._C._functorch.TransformType
    stack = torch._C._functorch.get_interpreter_stack()
    return any(level.key() in (transform.Grad, transform.Jvp) for level in stack)


# As torch.compiler.assume_constant_result does, without importing the compiler, which guards both.
_transforms_differentiate._dynamo_marked_constant = True  # type: ignore[attr-defined]


def differentiated() -> bool:
    """Whether a transform of ``torch.func`` that differentiates, or forward-mode AD, is active."""
    if torch._C._are_functorch_transforms_active():
        return _transforms_differentiate()
    return forward_ad._current_level >= 0


def fused(op: str, tensor: Tensor) -> bool:
    """Whether ``op`` runs its kernel on this tensor's device; fp64 has kernels on the CPU alone.

    The kernels know reverse-mode gradients of plain tensors alone, so that the reference runs inside
    ``torch.func.grad``, ``jvp`` and their like. What is no tensor goes there too, to be refused.
    """
    if _reference or differentiated() or not isinstance(tensor, Tensor):
        return False
    return not (tensor.is_cuda and tensor.dtype == torch.float64) and _build.has_kernel(
        op, tensor.device.type
    )


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


def check(condition: bool, op: str, message: str, *values: object) -> None:
    """Raise ``ValueError("op: message")`` unless the condition holds.

    The values go into the message by ``str.format`` where the check fails, and not before: they may be
    symbolic under ``torch.compile``, which traces no text made of them.
    """
    if not condition:
        raise ValueError(f"{op}: {message.format(*values)}" if values else f"{op}: {message}")


def surely(condition: bool) -> bool:
    """A choice between two right ways: the condition, or False where a compiled graph cannot know it."""
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(condition)


def describe(value: object) -> str:
    """A tensor's shape, dtype and device, or another value, in a few words for error messages."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    if value is None or isinstance(value, numbers.Number | str | torch.dtype):
        return f"{value!r:.80}"
    return type(value).__name__


def integer(op: str, name: str, value: int) -> int:
    """The argument as a Python integer of 64 bits; NumPy's are accepted, bools and tensors are not."""
    value = any_integer(op, name, value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must be an integer of 64 bits, got {describe(value)}")
    return value


def any_integer(op: str, name: str, value: int) -> int:
    """As :func:`integer`, of any size."""
    if isinstance(value, _INTEGER) and not isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise TypeError(f"{op}: {name} must be an integer, got {describe(value)}")


def real(op: str, name: str, value: float) -> float:
    """The argument as a Python number; NumPy's numbers are accepted, bools and tensors are not."""
    if isinstance(value, numbers.Rational) and not -(2**1023) < value < 2**1023:
        raise ValueError(f"{op}: {name} must be a number that float64 holds, got {describe(value)}")
    if isinstance(value, _REAL) and not isinstance(value, bool):
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"{op}: {name} must be a number, got {describe(value)}")


def flag(op: str, name: str, value: bool) -> bool:
    """The argument as a bool; NumPy's are accepted."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{op}: {name} must be True or False, got {describe(value)}")


def readable(tensor: Tensor) -> bool:
    """Whether a check may look at a tensor's numbers: on the CPU, in a plain eager call.

    On another device the host would have to wait for them; under a compiler, a tracer, a transform or a
    dispatch mode there may be none.
    """
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )


def temperature_of(op: str, temperature: float | Tensor, like: Tensor) -> float | Tensor:
    """The temperature, checked: a positive number, or a 0-dim float tensor on ``like``'s device.

    The number in a tensor is looked at only where that waits for no device: see :func:`readable`.
    """
    if not isinstance(temperature, Tensor):
        temperature = real(op, "temperature", temperature)
        check(0 < temperature < torch.inf, op, "temperature must be positive, got {}", temperature)
        return temperature
    check_tensor(op, "temperature", temperature, (), FLOATS, like)
    if readable(temperature):
        value = temperature.item()
        check(0 < value < torch.inf, op, "temperature must be positive, got a tensor of {}", value)
    return temperature


def scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a 0-dim tensor, without a wait for the device."""
    if torch.compiler.is_compiling():
        # A product: the one form in which a graph keeps a changing number, and is not compiled once for each.
        return torch.ones((), dtype=dtype, device=device) * value
    return torch.scalar_tensor(value, dtype=dtype, device=device)


def host_number(value: float) -> tuple[float, Tensor | None]:
    """A number that a kernel takes from the host: the number, and the tensor that stands for it or None.

    The tensor wins. A changing number of a compiled graph needs one, a float64 on the CPU, which a kernel of
    any device reads without a wait; other numbers go as they are.
    """
    if not torch.compiler.is_compiling():
        return value, None
    from torch.fx.experimental.symbolic_shapes import has_static_value

    if has_static_value(value):
        return value, None
    return 0.0, scalar(value, torch.float64, torch.device("cpu"))


def check_tensor(
    op: str,
    name: str,
    t: Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    like: Tensor | None = None,
    letters: str = "",
) -> None:
    """Check a tensor's rank, sizes (``None``: any), dtype, and that it lies on ``like``'s device.

    ``letters`` names the sizes for the message, with ``{i}`` for the i-th number of ``shape``: "B, {1}, T".
    It holds no number itself: sizes may be symbolic under ``torch.compile``, which traces no text of them.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {describe(t)}")
    fits = t.dim() == len(shape)
    for want, size in zip(shape, t.shape, strict=False):
        fits = fits and (want is None or want == size)
    if not fits:
        takes = letters.format(*shape) or ", ".join("?" if s is None else str(s) for s in shape)
        raise ValueError(f"{op}: {name} must have shape [{takes}], got {describe(t)}")
    if t.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{op}: {name} must be {names}, got {describe(t)}")
    if like is not None and t.device != like.device:
        raise ValueError(f"{op}: {name} is on {t.device}, the other tensors on {like.device}")


def check_state(op: str, rng: Tensor | None, like: Tensor) -> None:
    """Check the random state."""
    if not isinstance(rng, Tensor):
        raise TypeError(f"{op}: rng must be a tensor (ecgfast.ops.make_rng makes it), got {describe(rng)}")
    check_tensor(op, "rng", rng, (2,), (torch.int64,), like)


def check_rng(op: str, rng: Tensor | None, sample_ids: Tensor | None, like: Tensor) -> None:
    """Check the random state and the sample ids that go with it; :func:`as_int64` makes them the kernels'."""
    check_tensor(op, "sample_ids", sample_ids, (None,), INTS, like, "B")
    check_state(op, rng, like)


def as_int64(tensor: Tensor) -> Tensor:
    """Integers in the dtype that the kernels take, for those that are accepted in others."""
    return tensor if tensor.dtype == torch.int64 else tensor.to(torch.int64)


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; PyTorch has none for meta tensors, and no answer."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the autocast dtype where autocast is on for their device; as they are otherwise."""
    first = next((t for t in tensors if isinstance(t, Tensor)), None)
    if first is None or not autocasts(first):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """A context without autocast for the tensor's device: what an op accumulates stays in fp32."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that an op accumulates in: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
