"""The global contrastive kernels, emulated, against the reference in float64."""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgfast.ops import global_contrastive_reference
from tests.cuda_on_cpu.harness import SCHEDULES, TF32, Driver

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
IDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# Relative to the norm of the gradient. The similarities are exact products summed in fp32 for all dtypes;
# their gradients, the unit rows and the results are rounded to the dtype.
GRAD_TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float16: 7e-4}
LARGE = {"large_similarities": True, "large_products": True, "regions": (1, 1)}


class Problem(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p * 2),
        ("group", ctypes.c_void_p * 2),
        ("rows", ctypes.c_int64 * 2),
        ("width", ctypes.c_int),
        ("inv_temperature", ctypes.c_float),
        ("temperature", ctypes.c_void_p),
    )


class Plan(ctypes.Structure):
    _fields_ = (
        ("large_similarities", ctypes.c_bool),
        ("large_products", ctypes.c_bool),
        ("regions", ctypes.c_int * 2),
        ("block", ctypes.c_int64 * 2),
    )


class Result(ctypes.Structure):
    _fields_ = (("loss", ctypes.c_void_p), ("lse", ctypes.c_void_p * 2), ("saved", ctypes.c_void_p))


class Gradients(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p * 2), ("moments", ctypes.c_void_p))


class Saved(ctypes.Structure):
    _fields_ = (("grad_loss", ctypes.c_void_p), ("lse", ctypes.c_void_p * 2), ("saved", ctypes.c_void_p))


@dataclass
class Case:
    a: Tensor
    b: Tensor
    group_a: Tensor
    group_b: Tensor
    temperature: float = 0.1
    learnable: bool = False
    grad_loss: float = -1.5

    def __post_init__(self) -> None:
        self.tensor = torch.tensor(self.temperature)
        self.problem = Problem(
            pointers(self.a, self.b),
            pointers(self.group_a, self.group_b),
            (len(self.a), len(self.b)),
            self.a.shape[1],
            7.0 if self.learnable else 1 / self.temperature,
            self.tensor.data_ptr() if self.learnable else None,
        )

    def expected(self, detach_norm: bool) -> tuple[Tensor, Tensor, Tensor]:
        x, y = (t.double().requires_grad_() for t in (self.a, self.b))
        loss = global_contrastive_reference(
            x,
            y,
            self.group_a,
            self.group_b,
            temperature=self.temperature,
            detach_norm=detach_norm,
        )
        (loss * self.grad_loss).backward()
        return loss.detach(), x.grad, y.grad


def pointers(*tensors: Tensor) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def make_case(n, m, d, dtype, *, n_groups=None, seed=0, **settings) -> Case:
    g = torch.Generator().manual_seed(seed)
    n_groups = n_groups or max(1, n // 2)
    scale = torch.rand(n + m, 1, generator=g, dtype=torch.float64) * 5 + 0.1  # norms apart
    rows = torch.randn(n + m, d, generator=g, dtype=torch.float64) * scale
    shared = min(n, m) // 3
    rows[n : n + shared] += rows[:shared]  # some are alike
    # Groups far apart, some of which differ in their upper halves alone.
    groups = torch.randint(0, n_groups, (n + m,), generator=g)
    groups = torch.where(groups % 2 == 0, groups - 2**40, groups // 2 + (groups % 3) * 2**32)
    a, b = (x.to(dtype).contiguous() for x in rows.split([n, m]))
    return Case(a, b, *(x.contiguous() for x in groups.split([n, m])), **settings)


@dataclass
class Output:
    loss: Tensor
    lse: tuple[Tensor, Tensor]
    saved: Tensor
    grads: tuple[Tensor, Tensor]
    moments: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.loss, *self.lse, self.saved, *self.grads, self.moments)


class Kernels:
    def __init__(self) -> None:
        self.driver = Driver("global_contrastive")

    def plan(self, case: Case, *, tf32: bool = False, **changes: object) -> Plan:
        plan, kind = Plan(), TF32 if tf32 else DTYPES[case.a.dtype]
        self.driver.call("plan", ctypes.byref(case.problem), kind, ctypes.byref(plan))
        for name, value in changes.items():
            setattr(plan, name, value)
        return plan

    def workspaces(self, case: Case, plan: Plan, *, tf32: bool = False) -> list[int]:
        sizes, kind = (ctypes.c_int64 * 3)(), TF32 if tf32 else DTYPES[case.a.dtype]
        problem = ctypes.byref(case.problem)
        self.driver.call("workspaces", problem, kind, ctypes.byref(plan), sizes)
        return list(sizes)

    def run(
        self, case: Case, detach_norm: bool, order: str = "fwd", *, tf32: bool = False, **changes: object
    ) -> Output:
        """Forward and backward; outputs and workspaces start as NaN, so what is not written shows."""
        n, m, dtype = len(case.a), len(case.b), case.a.dtype
        plan = self.plan(case, tf32=tf32, **changes)
        problem, kind = ctypes.byref(case.problem), TF32 if tf32 else DTYPES[dtype]
        sizes = self.workspaces(case, plan, tf32=tf32)
        nan = [torch.full(s, torch.nan) for s in ((), (n,), (m,), (2 * (n + m) + 2,))]
        out = Output(
            nan[0],
            (nan[1], nan[2]),
            nan[3],
            tuple(torch.full_like(x, torch.nan) for x in (case.a, case.b)),
            torch.full((), torch.nan if case.learnable else 0.0, dtype=torch.float64),
        )
        self.driver.schedule(order)
        result = Result(out.loss.data_ptr(), pointers(*out.lse), out.saved.data_ptr())
        workspace = Workspace(sizes[0])
        self.driver.call(
            "forward", problem, kind, ctypes.byref(plan), ctypes.byref(result), workspace.pointer
        )
        workspace.check()
        grad_loss = torch.tensor(case.grad_loss)
        saved = Saved(grad_loss.data_ptr(), pointers(*out.lse), out.saved.data_ptr())
        workspace = Workspace(sizes[1] if detach_norm else sizes[2])
        grads = Gradients(pointers(*out.grads), out.moments.data_ptr() if case.learnable else None)
        self.driver.call(
            "backward",
            problem,
            kind,
            ctypes.byref(plan),
            ctypes.byref(saved),
            ctypes.c_bool(detach_norm),
            ctypes.byref(grads),
            workspace.pointer,
        )
        workspace.check()
        return out


class Workspace:
    """Bytes of 0xFF (NaN), at a multiple of 256 as an allocator gives them, with a guard behind."""

    def __init__(self, n_bytes: int) -> None:
        self._all = np.full(n_bytes + 512, 0xFF, np.uint8)
        start = -self._all.ctypes.data % 256
        self._end = start + n_bytes
        self.pointer = ctypes.c_void_p(self._all.ctypes.data + start)

    def check(self) -> None:
        assert (self._all[self._end :] == 0xFF).all(), "written beyond the workspace"


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels()


def relative(got: Tensor, want: Tensor) -> float:
    norm = want.norm()
    return float((got.double() - want).norm() / norm) if norm else float(got.double().abs().amax())


def check(out: Output, case: Case, detach_norm: bool) -> None:
    loss, *grads = case.expected(detach_norm)
    torch.testing.assert_close(out.loss.double(), loss, rtol=2e-6, atol=1e-6 / case.temperature)
    norms = torch.cat([x.double().norm(dim=1).clamp(min=1e-8) for x in (case.a, case.b)])
    same = case.group_a[:, None] == case.group_b[None]
    counts = torch.cat([same.sum(1), same.sum(0)])
    n = len(norms)
    torch.testing.assert_close(out.saved[:n].double(), 1 / norms, rtol=1e-6, atol=0)
    assert torch.equal(out.saved[n : 2 * n], counts.float())
    assert out.saved[2 * n] == max(2, counts.sum())
    for name, got, want in zip("ab", out.grads, grads, strict=True):
        if want.numel():
            assert torch.isfinite(got).all(), name
            assert relative(got, want) < GRAD_TOLERANCE[case.a.dtype], name


def assert_same(x: Output, y: Output) -> None:
    for left, right in zip(x.tensors(), y.tensors(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=IDS.get)
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 3, 5), (33, 20, 17), (65, 130, 40), (64, 64, 72)], ids=str)
def test_shapes(kernels, shape, dtype, detach_norm):
    case = make_case(*shape, dtype)
    check(kernels.run(case, detach_norm), case, detach_norm)


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=IDS.get)
@pytest.mark.parametrize("shape", [(150, 140, 96), (300, 129, 133)], ids=str)
def test_large_tiles(kernels, shape, dtype, detach_norm):
    case = make_case(*shape, dtype)
    changes = {**LARGE, "regions": (-(-shape[0] // 128), 1)}
    check(kernels.run(case, detach_norm, **changes), case, detach_norm)


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=IDS.get)
def test_blocks_and_regions(kernels, dtype, detach_norm):
    """Several blocks of both sides, backward, and regions of several tiles, forward."""
    case = make_case(200, 150, 24, dtype, n_groups=40)
    out = kernels.run(case, detach_norm, regions=(1, 2), block=(128, 64))
    check(out, case, detach_norm)


@pytest.mark.parametrize("temperature", [0.005, 0.03, 0.04, 20.0])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_temperatures(kernels, temperature, large):
    """Below 1 / 32 the sums need maxima; above they don't."""
    case = make_case(70, 61, 40, torch.bfloat16, temperature=temperature)
    case.b[:20] = -case.a[:20]  # far below what any similarity may be
    out = kernels.run(case, True, **(LARGE if large else {}))
    loss, *_ = case.expected(True)
    torch.testing.assert_close(out.loss.double(), loss, rtol=2e-6, atol=1e-6 / temperature)
    check(kernels.run(case, True, regions=(1, 1)), case, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS.get)
@pytest.mark.parametrize("kind", ["all", "none", "one"])
def test_positives(kernels, dtype, kind):
    case = make_case(70, 80, 16, dtype, seed=4)
    case.group_a[:] = 7
    case.group_b[:] = 7 if kind == "all" else 2**32 + 7
    if kind == "one":
        case.group_b[75] = 7
    out = kernels.run(case, True)
    check(out, case, True)
    if kind == "none":
        assert out.loss == 0
        assert not any(g.any() for g in out.grads)


@pytest.mark.parametrize("shape", [(0, 0, 8), (0, 3, 8), (3, 0, 8), (3, 2, 0)], ids=str)
@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
def test_empty(kernels, shape, detach_norm):
    case = make_case(*shape, torch.bfloat16)
    out = kernels.run(case, detach_norm)
    assert not any(g.any() for g in out.grads)
    torch.testing.assert_close(out.loss.double(), case.expected(detach_norm)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=IDS.get)
@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
def test_zero_vectors(kernels, dtype, detach_norm):
    """Cosine 0 with all, and no gradient."""
    case = make_case(12, 9, 16, dtype)
    case.a[3], case.b[5] = 0, 0
    out, (_, *grads) = kernels.run(case, detach_norm), case.expected(detach_norm)
    for got, want, zero in zip(out.grads, grads, (3, 5), strict=True):
        rest = torch.arange(len(got)) != zero
        assert not got[zero].any()
        assert relative(got[rest], want[rest]) < GRAD_TOLERANCE[dtype]


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=IDS.get)
def test_long_vectors(kernels, dtype, detach_norm):
    """Whose squares overflow."""
    case = make_case(12, 9, 16, dtype)
    case.a.mul_(2.0**67)
    check(kernels.run(case, detach_norm), case, detach_norm)


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS.get)
@pytest.mark.parametrize("temperature", [0.02, 0.1, 3.0])
@pytest.mark.parametrize("shape", [(1, 1, 8), (33, 20, 17), (200, 150, 24)], ids=str)
def test_a_temperature_on_the_device(kernels, shape, temperature, dtype):
    case = make_case(*shape, dtype, temperature=temperature, learnable=True)
    out = kernels.run(case, False, block=(128, 64))
    check(out, case, False)
    x, y, tau = case.a.double(), case.b.double(), torch.tensor(temperature).double().requires_grad_()
    loss = global_contrastive_reference(x, y, case.group_a, case.group_b, temperature=tau)
    (loss * case.grad_loss).backward()
    torch.testing.assert_close(-out.moments / temperature, tau.grad, rtol=1e-4, atol=1e-6 / temperature**2)
    for order in SCHEDULES[1:]:
        assert_same(out, kernels.run(case, False, order, block=(128, 64)))


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
def test_a_temperature_on_the_device_that_is_not_positive_shows(kernels, temperature):
    case = make_case(9, 8, 16, torch.bfloat16, learnable=True)
    case.tensor.fill_(temperature)
    assert torch.isnan(kernels.run(case, True).loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=IDS.get)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_every_schedule_gives_the_same_bits(kernels, dtype, large):
    case = make_case(140, 70, 136, dtype)
    changes = {"regions": (1, 1), "block": (128, 64), **(LARGE if large else {})}
    outputs = [kernels.run(case, False, order, **changes) for order in SCHEDULES]
    check(outputs[0], case, False)
    for other in outputs[1:]:
        assert_same(outputs[0], other)


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("shape", [(33, 20, 17), (140, 70, 136)], ids=str)
def test_tf32(kernels, shape, large, detach_norm):
    case = make_case(*shape, torch.float32)
    changes = {"regions": (1, 1), "block": (128, 64), **(LARGE if large else {})}
    loss, *grads = case.expected(detach_norm)
    precise = kernels.run(case, detach_norm, **changes)
    outputs = [kernels.run(case, detach_norm, order, tf32=True, **changes) for order in SCHEDULES]
    for other in outputs[1:]:
        assert_same(outputs[0], other)
    out = outputs[0]
    torch.testing.assert_close(out.loss.double(), loss, rtol=1e-3, atol=1e-3)
    n = len(precise.saved) // 2 - 1
    assert torch.equal(out.saved[:n], precise.saved[:n])  # the norms
    assert not torch.equal(out.lse[0], precise.lse[0])
    for got, want, exact in zip(out.grads, grads, precise.grads, strict=True):
        assert 2e-5 < relative(got, want) < 2e-3
        assert not torch.equal(got, exact)


def test_tf32_has_large_tiles_where_there_are_many(kernels):
    rows, groups = torch.zeros(1, 768), torch.zeros(1, dtype=torch.int64)
    case = Case(rows, rows, groups, groups)
    case.problem.rows[:] = (4096, 4096)
    precise, rounded = kernels.plan(case), kernels.plan(case, tf32=True)
    assert not precise.large_similarities
    assert not precise.large_products
    assert rounded.large_similarities
    assert rounded.large_products
    assert kernels.workspaces(case, rounded, tf32=True)[1:] == kernels.workspaces(case, precise)[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=IDS.get)
def test_unaligned_rows_give_the_same_as_aligned_ones(kernels, dtype):
    case = make_case(20, 30, 64, dtype)
    aligned = kernels.run(case, False)
    shifted = torch.zeros(20 * 64 + 1, dtype=dtype)
    shifted[1:] = case.a.flatten()
    case.a = shifted[1:].view(20, 64)
    case.__post_init__()
    assert case.a.data_ptr() % 16
    assert_same(aligned, kernels.run(case, False))


def test_nan_shows(kernels):
    case = make_case(9, 8, 16, torch.bfloat16)
    case.a[4, 3] = torch.nan
    assert torch.isnan(kernels.run(case, True).loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=IDS.get)
@pytest.mark.parametrize("n", [64, 4096, 32768, 65536])
def test_workspaces_are_bounded(kernels, n, dtype):
    rows = torch.zeros(1, 768, dtype=dtype)
    groups = torch.zeros(1, dtype=torch.int64)
    case = Case(rows, rows, groups, groups)
    case.problem.rows[:] = (n, n)
    forward, detached, true_norm = kernels.workspaces(case, kernels.plan(case))
    assert forward <= 600 * 2 * n + 2**20
    row = 768 * dtype.itemsize
    assert detached <= 2**27 + 2**22 + 2 * n * row + (n + 8192) * 768 * 4
    assert true_norm <= 2**27 + 2**22 + 2 * n * row + (n + 8192) * 768 * 4
    if n <= 4096:
        assert detached <= n * n * dtype.itemsize + 2 * n * row + 2**16
