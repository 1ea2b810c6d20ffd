"""The Gumbel quantisation kernels, emulated, against the reference in float64."""

import ctypes
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ecgfast.ops import draw_gumbel, gumbel_quantize_reference, make_rng
from tests.cuda_on_cpu.harness import SCHEDULES, TF32, Driver
from tests.ops.helpers import TOLERANCE, assert_close

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # as Dtype
RNG = make_rng(0x1234_5678_9ABC_DEF0, 77)


class Problem(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("logits", "codebook", "temperature", "noise", "rng", "sample_ids")),
        *((n, ctypes.c_uint32) for n in ("rows", "rows_per_sample")),
        *((n, ctypes.c_int) for n in ("groups", "entries", "width", "logits_type")),
    )


class Result(ctypes.Structure):
    _fields_ = tuple((n, ctypes.c_void_p) for n in ("quantized", "codes", "mean_probs", "partial"))


class Gradients(ctypes.Structure):
    _fields_ = tuple(
        (n, ctypes.c_void_p)
        for n in ("grad_quantized", "grad_mean_probs", "codes", "grad_logits", "grad_codebook")
    )


def address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


@dataclass
class Case:
    """Inputs of the op and gradients of its outputs."""

    logits: Tensor
    codebook: Tensor
    grad_quantized: Tensor | None
    grad_mean_probs: Tensor | None
    sample_ids: Tensor | None = None
    noise: Tensor | None = None
    rng: Tensor | None = None
    temperature: float = 1.7


def make_case(rows, g, v, width, dtype=torch.float32, *, codebook=None, samples=1, noise="drawn", seed=0):
    draw = torch.Generator().manual_seed(seed)
    random = [
        torch.randn(s, generator=draw) for s in ((rows, g * v), (g, v, width), (rows, g * width), (g, v))
    ]
    case = Case((2 * random[0]).to(dtype), *(t.to(codebook or dtype) for t in random[1:3]), random[3] * rows)
    if noise == "drawn":
        case.rng, case.sample_ids = RNG, torch.arange(samples) * 2**33 + 5
    elif noise == "given":
        case.noise = draw_gumbel(RNG, None, rows, g * v, torch.float32)
    return case


def reference(case: Case) -> dict[str, Tensor]:
    x, c = (t.double().requires_grad_() for t in (case.logits, case.codebook))
    quantized, codes, probs = gumbel_quantize_reference(
        x, c, case.temperature, rng=case.rng, sample_ids=case.sample_ids, noise=case.noise
    )
    loss = sum(
        (y * grad.double()).sum()
        for y, grad in ((quantized, case.grad_quantized), (probs, case.grad_mean_probs))
        if grad is not None
    )
    grads = torch.autograd.grad(loss, (x, c), materialize_grads=True)
    outputs = (quantized.detach(), codes, probs.detach(), *grads)
    return dict(
        zip(("quantized", "codes", "mean_probs", "grad_logits", "grad_codebook"), outputs, strict=True)
    )


class Kernels:
    def __init__(self) -> None:
        self.driver = Driver("gumbel_quantize")

    def problem(self, case: Case) -> Problem:
        self.temperature = torch.tensor(case.temperature)
        rows, (g, v, width) = len(case.logits), case.codebook.shape
        samples = 1 if case.sample_ids is None else len(case.sample_ids)
        tensors = (case.logits, case.codebook, self.temperature, case.noise, case.rng, case.sample_ids)
        sizes = (rows, max(rows // samples, 1), g, v, width)
        return Problem(*map(address, tensors), *sizes, DTYPES.index(case.logits.dtype))

    def run(self, case: Case, order: str = "fwd", *, tf32: bool = False) -> dict[str, Tensor]:
        """Forward and backward; outputs start as NaN, so what is not written shows."""
        self.driver.schedule(order)
        problem = self.problem(case)
        rows, (g, v, width) = len(case.logits), case.codebook.shape
        size = ctypes.c_int64()
        self.driver.call("partial_size", ctypes.byref(problem), ctypes.byref(size))
        out = {
            "quantized": case.codebook.new_full((rows, g * width), torch.nan),
            "codes": torch.full((rows, g), -7, dtype=torch.int32),
            "mean_probs": torch.full((g, v), torch.nan),
            "grad_logits": torch.full_like(case.logits, torch.nan),
            "grad_codebook": torch.full_like(case.codebook, torch.nan),
        }
        partial = torch.full((size.value,), torch.nan)
        result = Result(*(address(out[n]) for n in ("quantized", "codes", "mean_probs")), address(partial))
        self.driver.call("forward", ctypes.byref(problem), case.codebook.element_size(), ctypes.byref(result))
        grads = (case.grad_quantized, case.grad_mean_probs)
        written = (out[n] for n in ("codes", "grad_logits", "grad_codebook"))
        gradients = Gradients(*map(address, (*grads, *written)))
        dtype = TF32 if tf32 else DTYPES.index(case.codebook.dtype)
        self.driver.call("backward", ctypes.byref(problem), dtype, ctypes.byref(gradients))
        return out


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels()


def check(out: dict[str, Tensor], case: Case) -> None:
    want = reference(case)
    assert torch.equal(out["codes"], want["codes"])
    assert_close(out["quantized"], want["quantized"], TOLERANCE[case.codebook.dtype], "quantized")
    assert_close(out["mean_probs"], want["mean_probs"], 2e-6, "mean_probs")
    tolerance = max(TOLERANCE[t.dtype] for t in (case.logits, case.codebook))
    for name in ("grad_logits", "grad_codebook"):
        assert_close(out[name], want[name], tolerance, name)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 4, 1),
        (3, 2, 8, 3),
        (33, 1, 64, 16),
        (18, 2, 320, 128),
        (35, 3, 36, 40),
        (2, 1, 700, 24),  # three tiles of entries, two of the forward's
        (5, 1, 324, 8),
        (4, 1, 8, 200),  # two parts of an entry
    ],
    ids=str,
)
def test_shapes(kernels, shape, dtype):
    case = make_case(*shape, dtype)
    check(kernels.run(case), case)


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("logits", DTYPES, ids=str)
@pytest.mark.parametrize("codebook", [None, torch.float32], ids=["same", "float32"])
def test_noise_and_mixed_dtypes(kernels, logits, codebook, noise):
    case = make_case(20, 2, 24, 32, logits, codebook=codebook, samples=5, noise=noise)
    check(kernels.run(case), case)


@pytest.mark.parametrize("shape", [(40, 2, 100, 72), (7, 1, 328, 12)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_schedule_gives_the_same_bits(kernels, shape, dtype):
    case = make_case(*shape, dtype)
    outputs = [kernels.run(case, order) for order in SCHEDULES]
    check(outputs[0], case)
    for other in outputs[1:]:
        assert_same(outputs[0], other)


@pytest.mark.parametrize("logits", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(35, 3, 36, 40), (7, 1, 328, 12), (18, 2, 320, 128)], ids=str)
def test_tf32(kernels, shape, logits):
    """Only the product of the gradient with the codebook is rounded."""
    case = make_case(*shape, logits, codebook=torch.float32)
    want, precise = reference(case), kernels.run(case)
    outputs = [kernels.run(case, order, tf32=True) for order in SCHEDULES]
    for other in outputs[1:]:
        assert_same(outputs[0], other)
    out = outputs[0]
    assert_close(out["grad_logits"], want["grad_logits"], max(1e-3, TOLERANCE[logits]), "grad_logits")
    assert not torch.equal(out.pop("grad_logits"), precise["grad_logits"])
    for name, value in out.items():
        assert torch.equal(value, precise[name]), name


def test_drawn_noise_is_the_documented_stream(kernels):
    case = make_case(12, 2, 24, 8, samples=3)
    drawn = kernels.run(case)
    case.noise = draw_gumbel(RNG, case.sample_ids, 12, 48, torch.float32)
    case.rng = case.sample_ids = None
    given = kernels.run(case)
    assert torch.equal(drawn["codes"], given["codes"])
    for name in drawn:
        assert_close(drawn[name], given[name], 2e-6, name)


@pytest.mark.parametrize("absent", ["grad_quantized", "grad_mean_probs"])
@pytest.mark.parametrize("entries", [24, 400])
def test_a_gradient_of_one_output_alone(kernels, entries, absent):
    case = make_case(9, 2, entries, 16)
    setattr(case, absent, None)
    check(kernels.run(case), case)


def test_many_rows_choose_few_entries(kernels):
    """More rows than a block lists at once, most of them of one entry."""
    case = make_case(2100, 1, 4, 8)
    case.logits[:, 1] += 6
    check(kernels.run(case), case)


def test_unaligned_entries_give_the_same(kernels):
    case = make_case(10, 1, 64, 32, torch.bfloat16)
    aligned = kernels.run(case)
    for name in ("codebook", "grad_quantized"):
        values = getattr(case, name)
        storage = torch.cat([values.new_zeros(1), values.flatten()])
        setattr(case, name, storage[1:].view(values.shape))
    assert_same(aligned, kernels.run(case))


def test_no_rows(kernels):
    out = kernels.run(make_case(0, 2, 8, 3, noise="none"))
    assert not out["mean_probs"].any()
    assert not out["grad_codebook"].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_codes_stay_in_range_whatever_the_logits(kernels, value):
    case = make_case(6, 2, 20, 3)
    case.logits[1] = value
    case.logits[2, 3] = value
    codes = kernels.run(case)["codes"]
    assert ((codes >= 0) & (codes < 20)).all()


def test_the_largest_of_equal_logits_is_the_first(kernels):
    case = make_case(4, 1, 400, 4, noise="none")
    case.logits.zero_()
    case.logits[1, 37] = case.logits[1, 390] = case.logits[1, 41] = 1
    assert kernels.run(case)["codes"].flatten().tolist() == [0, 37, 0, 0]


@pytest.mark.parametrize("entries", [5, 8196])
def test_other_numbers_of_entries_are_refused_at_launch(kernels, entries):
    with pytest.raises(RuntimeError, match="launch"):
        kernels.run(make_case(2, 1, entries, 4))
