"""The global contrastive kernels over pairs of leads, emulated, against the reference in float64."""

import ctypes
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from ecgfast.ops import global_contrastive_reference
from tests.cuda_on_cpu.harness import SCHEDULES, TF32, Driver
from tests.cuda_on_cpu.test_global_contrastive_kernel import (
    DTYPES,
    GRAD_TOLERANCE,
    IDS,
    Plan,
    Workspace,
    pointers,
    relative,
)

LARGE = {"large_similarities": True, "large_products": True, "regions": (1, 1)}
DENOMINATORS = ("all", "negatives")
HALVES = (torch.float32, torch.bfloat16)


class Problem(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p * 2),
        ("group", ctypes.c_void_p * 2),
        ("present", ctypes.c_void_p * 2),
        ("present_by_lead", ctypes.c_bool * 2),
        ("pairs", ctypes.c_void_p),
        ("n_pairs", ctypes.c_int64),
        ("leads", ctypes.c_int64 * 2),
        ("rows", ctypes.c_int64 * 2),
        ("width", ctypes.c_int),
        ("alone", ctypes.c_bool),
        ("negatives", ctypes.c_bool),
        ("inv_temperature", ctypes.c_float),
        ("temperature", ctypes.c_void_p),
    )


class PairsPlan(ctypes.Structure):
    _fields_ = (*Plan._fields_, ("pairs", ctypes.c_int64))


class Result(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("loss", "statistics", "saved"))


class PairsSaved(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("grad_loss", "statistics", "saved"))


class Gradients(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p * 2), ("moments", ctypes.c_void_p))


@dataclass
class Case:
    a: Tensor
    b: Tensor | None
    group_a: Tensor
    group_b: Tensor | None
    pairs: Tensor
    present_a: Tensor | None = None
    present_b: Tensor | None = None
    denominator: str = "all"
    temperature: float = 0.1
    learnable: bool = False
    grad_loss: float = -1.5
    tensor: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.tensor = torch.tensor(self.temperature)

    @property
    def problem(self) -> Problem:
        alone = self.b is None
        b, group_b = (self.a, self.group_a) if alone else (self.b, self.group_b)
        present = (self.present_a, self.present_a if alone else self.present_b)
        return Problem(
            pointers(self.a, b),
            pointers(self.group_a, group_b),
            (ctypes.c_void_p * 2)(*(None if p is None else p.data_ptr() for p in present)),
            (ctypes.c_bool * 2)(*(p is not None and p.dim() == 2 for p in present)),
            self.pairs.data_ptr(),
            len(self.pairs),
            (self.a.shape[0], b.shape[0]),
            (self.a.shape[1], b.shape[1]),
            self.a.shape[2],
            alone,
            self.denominator == "negatives",
            7.0 if self.learnable else 1 / self.temperature,
            self.tensor.data_ptr() if self.learnable else None,
        )

    def sides(self) -> list[Tensor]:
        return [x for x in (self.a, self.b) if x is not None]

    def expected(self, detach_norm: bool) -> tuple[Tensor, list[Tensor], Tensor]:
        """The loss, and the gradients to the rows and to the temperature."""
        x = [t.double().requires_grad_() for t in self.sides()]
        tau = torch.tensor(self.temperature).double().requires_grad_()
        loss = global_contrastive_reference(
            x[0],
            None if self.b is None else x[1],
            self.group_a,
            self.group_b,
            temperature=tau,
            detach_norm=detach_norm,
            denominator=self.denominator,
            pairs=self.pairs,
            present_a=self.present_a,
            present_b=self.present_b,
        )
        grads = torch.autograd.grad(loss * self.grad_loss, [*x, tau], allow_unused=True)
        grads = [torch.zeros_like(t) if g is None else g for t, g in zip([*x, tau], grads, strict=True)]
        return loss.detach(), grads[:-1], grads[-1]


def make_case(shape, pairs, dtype, *, present="none", n_groups=None, seed=0, **settings) -> Case:
    """Of shape (L, N, D), or (L, N, L', N', D); absent rows hold NaN."""
    g = torch.Generator().manual_seed(seed)
    *sizes, width = shape
    sides = [sizes[:2], sizes[2:]] if len(sizes) == 4 else [sizes]
    n_groups = n_groups or max(1, sides[0][1] // 2)
    rows, groups, presence = [], [], []
    for leads, n in sides:
        x = torch.randn(leads, n, width, generator=g, dtype=torch.float64)
        x = x * (torch.rand(leads, n, 1, generator=g, dtype=torch.float64) * 5 + 0.1)
        x[1:] += x[:1] * 0.5  # leads are alike
        group = torch.randint(0, n_groups, (n,), generator=g)
        groups.append(torch.where(group % 2 == 0, group - 2**40, group // 2 + (group % 3) * 2**32))
        there = torch.rand(*((leads, n) if present == "leads" else (n,)), generator=g) < 0.7
        if present != "none":
            x[~there if present == "leads" else (~there).expand(leads, n)] = torch.nan
        presence.append(None if present == "none" else there)
        rows.append(x.to(dtype).contiguous())
    if len(sides) == 1:
        rows, groups, presence = ([x[0], None] for x in (rows, groups, presence))
    pairs = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Case(*rows, *groups, pairs, *presence, **settings)


@dataclass
class Output:
    loss: Tensor
    statistics: Tensor
    saved: Tensor
    grads: list[Tensor]
    moments: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.loss, self.statistics, self.saved, *self.grads, self.moments)


class Kernels:
    def __init__(self) -> None:
        self.driver = Driver("global_contrastive_pairs")

    def plan(self, problem: Problem, kind: int, **changes: object) -> PairsPlan:
        plan = PairsPlan()
        self.driver.call("plan", ctypes.byref(problem), kind, ctypes.byref(plan))
        for name, value in changes.items():
            setattr(plan, name, value)
        return plan

    def workspaces(self, problem: Problem, kind: int, plan: PairsPlan) -> list[int]:
        sizes = (ctypes.c_int64 * 3)()
        self.driver.call("workspaces", ctypes.byref(problem), kind, ctypes.byref(plan), sizes)
        return list(sizes)

    def run(
        self, case: Case, detach_norm: bool, order: str = "fwd", *, tf32: bool = False, **changes: object
    ) -> Output:
        """Forward and backward; outputs and workspaces start as NaN, so what is not written shows."""
        problem, kind = case.problem, TF32 if tf32 else DTYPES[case.a.dtype]
        plan = self.plan(problem, kind, **changes)
        sizes = self.workspaces(problem, kind, plan)
        rows = sum(x.shape[0] * x.shape[1] for x in case.sides())
        statistics = len(case.pairs) * sum(problem.rows) * (2 if case.denominator == "negatives" else 1)
        out = Output(
            *(torch.full(s, torch.nan) for s in ((), (statistics,), (rows + len(case.pairs) + 3,))),
            [torch.full_like(x, torch.nan) for x in case.sides()],
            torch.full((), torch.nan if case.learnable else 0.0, dtype=torch.float64),
        )
        self.driver.schedule(order)
        result = Result(*(t.data_ptr() for t in (out.loss, out.statistics, out.saved)))
        head = (ctypes.byref(problem), kind, ctypes.byref(plan))
        workspace = Workspace(sizes[0])
        self.driver.call("forward", *head, ctypes.byref(result), workspace.pointer)
        workspace.check()
        grad_loss = torch.tensor(case.grad_loss)
        saved = PairsSaved(*(t.data_ptr() for t in (grad_loss, out.statistics, out.saved)))
        workspace = Workspace(sizes[1] if detach_norm else sizes[2])
        grads = Gradients(
            pointers(out.grads[0], out.grads[-1]), out.moments.data_ptr() if case.learnable else None
        )
        self.driver.call(
            "backward",
            *head,
            ctypes.byref(saved),
            ctypes.c_bool(detach_norm),
            ctypes.byref(grads),
            workspace.pointer,
        )
        workspace.check()
        return out


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels()


def check(out: Output, case: Case, detach_norm: bool) -> None:
    loss, grads, tau = case.expected(detach_norm)
    torch.testing.assert_close(out.loss.double(), loss, rtol=2e-6, atol=1e-6 / case.temperature)
    for got, want, present in zip(out.grads, grads, (case.present_a, case.present_b), strict=False):
        if present is not None:
            assert not got[~present.expand(got.shape[:2])].any()
        assert torch.isfinite(got).all()
        assert relative(got, want) < GRAD_TOLERANCE[case.a.dtype]
    if case.learnable:
        t = case.temperature
        torch.testing.assert_close(-out.moments / t, tau, rtol=1e-4, atol=1e-6 / t**2)


def assert_same(x: Output, y: Output) -> None:
    for left, right in zip(x.tensors(), y.tensors(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=IDS.get)
@pytest.mark.parametrize("shape", [(1, 3, 5), (1, 70, 24), (1, 130, 40)], ids=str)
def test_a_batch_against_itself(kernels, shape, dtype, denominator, detach_norm):
    case = make_case(shape, [(0, 0)], dtype, denominator=denominator)
    if shape[1] == 3:
        case.group_a[:] = torch.tensor([3, 3, 5])
    check(kernels.run(case, detach_norm), case, detach_norm)


@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("present", ["none", "rows", "leads"])
@pytest.mark.parametrize("dtype", DTYPES, ids=IDS.get)
def test_pairs_of_leads(kernels, dtype, present, denominator, detach_norm):
    """A lead with itself and with others, twice the same pair; of one batch and of two."""
    pairs = [(0, 1), (2, 2), (1, 0), (0, 2), (0, 1)]
    settings = {"present": present, "denominator": denominator}
    for shape in ((3, 21, 17), (3, 19, 4, 13, 24)):
        case = make_case(shape, pairs, dtype, **settings)
        check(kernels.run(case, detach_norm), case, detach_norm)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
@pytest.mark.parametrize("shape", [(2, 70, 24), (2, 130, 1, 66, 24)], ids=str)
def test_held_pairs_and_blocks(kernels, shape, detach_norm, denominator):
    """A part of the pairs, or of one pair, at a time, backward, and regions of several tiles, forward."""
    pairs = [(0, 0), (1, 0), (0, 0)] if len(shape) == 5 else [(0, 1), (1, 1), (1, 0)]
    case = make_case(shape, pairs, torch.bfloat16, present="leads", denominator=denominator)
    for changes in ({"pairs": 2, "regions": (1, 2)}, {"pairs": 1, "block": (64, 64), "regions": (2, 1)}):
        check(kernels.run(case, detach_norm, **changes), case, detach_norm)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=IDS.get)
@pytest.mark.parametrize("shape", [(2, 150, 136), (1, 129, 2, 140, 40)], ids=str)
def test_large_tiles(kernels, shape, dtype, denominator):
    pairs = [(0, 0), (0, 1)]
    case = make_case(shape, pairs, dtype, present="leads", denominator=denominator)
    regions = (1, 1) if len(shape) == 5 else (2, 2)
    check(kernels.run(case, True, **{**LARGE, "regions": regions}), case, True)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("learnable", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 20.0])
@pytest.mark.parametrize("pairs", [[(0, 0)], [(0, 1), (1, 1)]], ids=str)
def test_temperatures(kernels, pairs, temperature, learnable, denominator):
    """Below 1 / 32, and where it is on the device, the sums need maxima."""
    case = make_case(
        (2, 37, 24),
        pairs,
        torch.float32,
        present="leads",
        denominator=denominator,
        temperature=temperature,
        learnable=learnable,
    )
    check(kernels.run(case, False), case, False)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("kind", ["all", "none", "some_pairs", "absent"])
def test_positives(kernels, kind, denominator):
    """One group: no negatives; none of any group; pairs without positives are not counted."""
    case = make_case((3, 12, 16), [(0, 0), (1, 2)], torch.float32, denominator=denominator)
    case.group_a[:] = torch.arange(12)  # none in (0, 0)
    if kind == "all":
        case.group_a[:] = 7
    if kind == "none":
        case.pairs = case.pairs[:1].contiguous()
    if kind == "absent":
        case.present_a = torch.zeros(12, dtype=torch.bool)
    out = kernels.run(case, True)
    check(out, case, True)
    if kind in ("none", "absent"):
        assert out.loss == 0


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0), (2, 3, 2, 0, 8)], ids=str)
@pytest.mark.parametrize("detach_norm", [True, False], ids=["detached", "true_norm"])
def test_empty(kernels, shape, detach_norm):
    case = make_case(shape, [] if shape[0] == 0 else [(0, 1)], torch.bfloat16)
    out = kernels.run(case, detach_norm)
    torch.testing.assert_close(out.loss.double(), case.expected(detach_norm)[0], rtol=1e-6, atol=0)
    assert not any(g.any() for g in out.grads)


def test_no_pair_is_a_loss_of_0(kernels):
    case = make_case((2, 9, 16), [], torch.bfloat16, learnable=True)
    out = kernels.run(case, True)
    assert out.loss == 0
    assert not out.grads[0].any()
    assert out.moments == 0


@pytest.mark.parametrize("pair", [(0, 2), (-1, 0)], ids=str)
def test_a_lead_that_is_not_there_shows(kernels, pair):
    case = make_case((2, 9, 16), [(0, 1), pair], torch.bfloat16)
    assert torch.isnan(kernels.run(case, True).loss)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("dtype", HALVES, ids=IDS.get)
def test_every_schedule_gives_the_same_bits(kernels, dtype, denominator):
    case = make_case((2, 70, 24), [(0, 1), (1, 1)], dtype, denominator=denominator, learnable=True)
    outputs = [kernels.run(case, False, order, pairs=1) for order in SCHEDULES]
    check(outputs[0], case, False)
    for other in outputs[1:]:
        assert_same(outputs[0], other)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_tf32(kernels, large):
    case = make_case((2, 40, 40), [(0, 1), (1, 1)], torch.float32)
    loss, (want,), _ = case.expected(True)
    out = kernels.run(case, True, tf32=True, **(LARGE if large else {}))
    torch.testing.assert_close(out.loss.double(), loss, rtol=1e-3, atol=1e-3)
    assert 2e-5 < relative(out.grads[0], want) < 2e-3


@pytest.mark.parametrize("dtype", HALVES, ids=IDS.get)
def test_unaligned_rows_give_the_same_as_aligned_ones(kernels, dtype):
    case = make_case((2, 20, 64), [(0, 1), (1, 1)], dtype, present="leads", denominator="negatives")
    aligned = kernels.run(case, False)
    shifted = torch.zeros(2 * 20 * 64 + 1, dtype=dtype)
    shifted[1:] = case.a.flatten()
    case.a = shifted[1:].view(2, 20, 64)
    assert case.a.data_ptr() % 16
    assert_same(aligned, kernels.run(case, False))


def test_nan_shows(kernels):
    case = make_case((2, 9, 16), [(0, 1)], torch.bfloat16)
    case.a[0, 4, 3] = torch.nan
    assert torch.isnan(kernels.run(case, True).loss)


@pytest.mark.parametrize("n", [64, 4096, 32768])
@pytest.mark.parametrize("n_pairs", [1, 66])
def test_workspaces_are_bounded(kernels, n, n_pairs):
    """No matrix of each pair."""
    case = make_case((12, 1, 768), [(0, 1)] * n_pairs, torch.bfloat16)
    problem = case.problem
    problem.rows[:] = (n, n)
    kind = DTYPES[torch.bfloat16]
    forward, *backward = kernels.workspaces(problem, kind, kernels.plan(problem, kind))
    assert forward <= 600 * 2 * n * n_pairs + 2**20
    for size in backward:
        assert size <= 2**27 + 2**22 + 12 * n * 768 * 6
