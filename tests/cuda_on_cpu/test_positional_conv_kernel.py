"""The positional convolution's kernels, emulated, against the op's reference in float64."""

import ctypes

import pytest
import torch
from torch import Tensor

from ecgfast.ops import positional_conv_reference
from tests.cuda_on_cpu.harness import SCHEDULES, TF32, Driver
from tests.ops.helpers import TOLERANCE, assert_close, generator

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NAMES = ("out", "grad_x", "grad_weight", "grad_bias")


class Problem(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        *((n, ctypes.c_int) for n in ("tokens", "width", "groups", "kernel")),
    )


class Gradients(ctypes.Structure):
    _fields_ = tuple((n, ctypes.c_void_p) for n in ("grad_out", "conv", "grad_x", "grad_weight", "grad_bias"))


def make_inputs(b, n, e, groups, k, dtype, seed=0) -> list[Tensor]:
    g = generator(seed)
    x, grad = torch.randn(2, b, n, e, generator=g, dtype=torch.float64)
    weight = torch.randn(e, e // groups, k, generator=g, dtype=torch.float64) / (k * e / groups) ** 0.5
    bias = torch.randn(e, generator=g, dtype=torch.float64)
    return [t.to(dtype) for t in (x, weight, bias, grad)]


def expected(x, weight, bias, grad, groups) -> dict[str, Tensor]:
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    out = positional_conv_reference(*leaves, groups)
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, leaves, grad.double())), strict=True))


def unwritten(like: Tensor) -> Tensor:
    return torch.full_like(like, torch.nan, memory_format=torch.contiguous_format)


def workspace(n_bytes: int) -> Tensor:
    """Memory that holds NaN in any dtype; ends where ASan sees what goes beyond."""
    storage = torch.full((n_bytes + 256,), 0xFF, dtype=torch.uint8)
    at = -storage.data_ptr() % 256
    return storage[at : at + n_bytes]


class Kernels:
    def __init__(self) -> None:
        self.driver = Driver("positional_conv")

    def run(
        self, x, weight, bias, grad, groups, order="fwd", need_x=True, need_parameters=True, tf32=False
    ) -> dict[str, Tensor]:
        """Forward and backward; outputs and workspaces start as NaN, so what is not written shows."""
        self.driver.schedule(order)
        dtype = TF32 if tf32 else DTYPES[x.dtype]
        problem = Problem(x.data_ptr(), weight.data_ptr(), *x.shape, groups, weight.shape[2])
        sizes = (ctypes.c_uint64 * 2)()
        self.driver.call("workspaces", ctypes.byref(problem), dtype, need_x, need_parameters, sizes)
        spaces = [workspace(size) for size in sizes]
        out = {"out": unwritten(x), "conv": unwritten(x)}
        if need_x:
            out["grad_x"] = unwritten(x)
        if need_parameters:
            out |= {"grad_weight": unwritten(weight), "grad_bias": unwritten(bias)}
        pointers = {name: ctypes.c_void_p(t.data_ptr()) for name, t in out.items()}
        self.driver.call(
            "forward",
            ctypes.byref(problem),
            dtype,
            ctypes.c_void_p(bias.data_ptr()),
            pointers["out"],
            pointers["conv"],
            ctypes.c_void_p(spaces[0].data_ptr()),
        )
        gradients = Gradients(grad.data_ptr(), pointers["conv"], *(pointers.get(name) for name in NAMES[1:]))
        self.driver.call(
            "backward",
            ctypes.byref(problem),
            dtype,
            ctypes.byref(gradients),
            ctypes.c_void_p(spaces[1].data_ptr()),
        )
        return out


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels()


def check(out: dict[str, Tensor], inputs: list[Tensor], groups: int) -> None:
    want = expected(*inputs, groups)
    for name in NAMES:
        if name in out:
            assert_close(out[name], want[name], TOLERANCE[inputs[0].dtype], name)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a.keys() & b.keys():
        assert torch.equal(a[name], b[name]), name


SHAPES = [
    # b, n, e, groups, k
    (1, 1, 4, 1, 1),
    (2, 2, 6, 3, 3),
    (2, 1, 8, 2, 128),  # one tap of 128 reaches anything
    (3, 7, 15, 3, 4),
    (2, 31, 64, 4, 16),  # the golden files' size
    (1, 17, 40, 2, 129),
    (2, 90, 34, 2, 5),
    (1, 40, 50, 1, 33),  # two sides of channels
    (1, 330, 16, 1, 41),  # several tiles of tokens
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "n", "e", "groups", "k"), SHAPES)
def test_shapes(kernels, b, n, e, groups, k, dtype):
    inputs = make_inputs(b, n, e, groups, k, dtype, seed=n * k)
    check(kernels.run(*inputs, groups), inputs, groups)


def test_the_papers_group(kernels):
    inputs = make_inputs(1, 156, 48, 1, 128, torch.bfloat16)
    check(kernels.run(*inputs, 1), inputs, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 31, 32, 2, 40), (1, 100, 64, 1, 9)], ids=str)
def test_every_schedule_gives_the_same_bits(kernels, shape, dtype):
    inputs, groups = make_inputs(*shape, dtype), shape[3]
    outputs = [kernels.run(*inputs, groups, order) for order in SCHEDULES]
    check(outputs[0], inputs, groups)
    for other in outputs[1:]:
        assert_same(outputs[0], other)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("shape", [(3, 31, 32, 2, 40), (1, 40, 50, 1, 33), (2, 90, 34, 2, 5)], ids=str)
def test_tf32(kernels, shape):
    """Two bfloat16 pieces of each factor: between fp32's and TF32's precision."""
    inputs, groups = make_inputs(*shape, torch.float32), shape[3]
    want, precise = expected(*inputs, groups), kernels.run(*inputs, groups)
    outputs = [kernels.run(*inputs, groups, order, tf32=True) for order in SCHEDULES]
    for other in outputs[1:]:
        assert_same(outputs[0], other)
    for name in NAMES[:3]:
        assert 2e-6 < relative(outputs[0][name], want[name]) < 1e-4, name
        assert not torch.equal(outputs[0][name], precise[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unaligned_memory_gives_the_same_as_aligned(kernels, dtype):
    inputs = make_inputs(2, 20, 32, 2, 6, dtype)
    moved = []
    for t in inputs:
        storage = torch.zeros(t.numel() + 1, dtype=dtype)
        storage[1:] = t.flatten()
        moved.append(storage[1:].view(t.shape))
    assert_same(kernels.run(*inputs, 2), kernels.run(*moved, 2))


@pytest.mark.parametrize(("need_x", "need_parameters"), [(True, False), (False, True)])
def test_only_the_gradients_asked_for(kernels, need_x, need_parameters):
    inputs = make_inputs(2, 20, 32, 2, 6, torch.bfloat16)
    everything = kernels.run(*inputs, 2)
    assert_same(everything, kernels.run(*inputs, 2, need_x=need_x, need_parameters=need_parameters))


def test_a_segment_does_not_depend_on_the_others(kernels):
    x, *rest, grad = make_inputs(3, 31, 32, 2, 16, torch.bfloat16)
    together = kernels.run(x, *rest, grad, 2)
    x[1:] = torch.nan
    other = kernels.run(x, *rest, grad, 2)
    for name in ("out", "conv", "grad_x"):
        assert torch.equal(together[name][0], other[name][0]), name


@pytest.mark.parametrize("tf32", [False, True])
def test_fp32_extremes(kernels, tf32):
    """Values near the largest numbers are cut into pieces without overflow."""
    x, weight, bias, grad = make_inputs(1, 9, 16, 1, 3, torch.float32)
    inputs = [x * 2.0**100, weight * 2.0**-100, bias, grad * 2.0**-20]
    inputs[0][0, 4, 3] = 3.4e38
    want = expected(*inputs, 1)
    out = kernels.run(*inputs, 1, tf32=tf32)
    for name in NAMES:
        assert_close(out[name], want[name], 1e-4 if tf32 else TOLERANCE[torch.float32], name)
