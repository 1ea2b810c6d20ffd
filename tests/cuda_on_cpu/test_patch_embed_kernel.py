"""The stem's kernels, emulated, against the op's reference in float64."""

import ctypes
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ecgfast.ops import patch_embed_reference
from ecgfast.ops.patch_embed import _saved_on_cuda
from tests.cuda_on_cpu.harness import SCHEDULES, TF32, Driver

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_LAYERS = 31
BLOCKS = 256  # kStemBlocks
# Relative to the norm of the tensor: the 16-bit types round activations after every layer, and their GELU.
TOLERANCE = {torch.float32: (1e-6, 2e-6), torch.bfloat16: (8e-3, 1.5e-2), torch.float16: (1e-3, 2e-3)}

TF32_TOLERANCE = 2e-3  # float16's: both round to 10 bits


class Inputs(ctypes.Structure):
    _fields_ = (
        ("signal", ctypes.c_void_p),
        ("signal_is_int16", ctypes.c_bool),
        ("keep", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * MAX_LAYERS),
        ("biases", ctypes.c_void_p * MAX_LAYERS),
        ("gn_weight", ctypes.c_void_p),
        ("gn_bias", ctypes.c_void_p),
        ("eps", ctypes.c_float),
    )


class Gradients(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.c_void_p),
        ("signal", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * MAX_LAYERS),
        ("biases", ctypes.c_void_p * MAX_LAYERS),
        ("gn_weight", ctypes.c_void_p),
        ("gn_bias", ctypes.c_void_p),
    )


def address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def addresses(xs: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * MAX_LAYERS)(*(x.data_ptr() for x in xs))


@dataclass
class Case:
    """Inputs of the op, as the kernels get them; gradients are asked of the signal unless it is int16."""

    signal: Tensor
    keep: Tensor | None
    weights: list[Tensor]
    gn_weight: Tensor
    gn_bias: Tensor
    biases: list[Tensor]
    grad_tokens: Tensor
    eps: float = 1e-5
    lengths: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.gn_weight.dtype

    @property
    def is_int16(self) -> bool:
        return self.signal.dtype == torch.int16

    def sizes(self) -> list[int]:
        return [*self.signal.shape, len(self.gn_weight), len(self.weights)]

    def expected(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        signal = self.signal.to(dtype) * 1e-3 if self.is_int16 else self.signal
        parameters = (signal, *self.weights, self.gn_weight, self.gn_bias)
        leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in parameters]
        biases = [x.to(dtype, copy=True).requires_grad_() for x in self.biases]
        signal, *weights, gn_weight, gn_bias = leaves
        tokens = patch_embed_reference(
            signal,
            self.keep,
            weights,
            gn_weight,
            gn_bias,
            biases=biases or None,
            eps=self.eps,
            lengths=self.lengths,
        )
        tokens.backward(self.grad_tokens.to(dtype))
        biases = {f"bias {i}": x.grad for i, x in enumerate(biases) if i}  # the norm cancels layer 0's
        grads = {f"weight {i}": x.grad for i, x in enumerate(weights)}
        named = {"gn_weight": gn_weight.grad, "gn_bias": gn_bias.grad, "signal": signal.grad}
        return {"tokens": tokens.detach()} | grads | biases | named


def make_case(b, n_leads, t, c, dtype=torch.float32, *, layers=4, bias=False, int16=False, keep=True, seed=0):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype)

    signal = randn(b, n_leads, t) + 0.5
    if int16:
        signal = (signal.double() * 1000).round().to(torch.int16)
    sizes = [n_leads, *[c] * (layers - 1)]
    return Case(
        signal=signal,
        keep=torch.rand(b, n_leads, generator=g) > 0.3 if keep else None,
        weights=[randn(c, s, 2, scale=(2.0 / s) ** 0.5) for s in sizes],
        gn_weight=randn(c, scale=0.3) + 1.0,
        gn_bias=randn(c, scale=0.3),
        biases=[randn(c, scale=0.2) for _ in sizes] if bias else [],
        grad_tokens=randn(b, t >> layers, c),
    )


def nan_like(x: Tensor) -> Tensor:
    return torch.full(x.shape, float("nan"), dtype=x.dtype)


class Kernels:
    def __init__(self) -> None:
        self.driver = Driver("patch_embed")

    def sizes(
        self, case: Case, slopes: bool, for_signal: bool = False, blocks: int = BLOCKS
    ) -> tuple[int, int]:
        """Elements of the state and bytes of the workspace."""
        out = (ctypes.c_int64 * 2)()
        shape = (ctypes.c_int64 * 5)(*case.sizes())
        self.driver.call(
            "sizes", shape, DTYPES[case.dtype], slopes, for_signal, bool(case.biases), blocks, out
        )
        return out[0], out[1]

    def run(
        self,
        case: Case,
        order: str = "fwd",
        *,
        backward: bool = True,
        for_signal: bool = True,
        blocks: int = BLOCKS,
        tokens: Tensor | None = None,
        tf32: bool = False,
    ) -> dict[str, Tensor]:
        """Forward and backward; outputs and memory to work in start as NaN, so what is not written shows."""
        self.driver.schedule(order)
        for_signal = for_signal and backward and not case.is_int16
        shape, dtype = (ctypes.c_int64 * 5)(*case.sizes()), TF32 if tf32 else DTYPES[case.dtype]
        n_state, n_work = self.sizes(case, backward, for_signal, blocks)
        inputs = Inputs(
            address(case.signal),
            case.is_int16,
            address(case.keep),
            address(case.lengths),
            addresses(case.weights),
            addresses(case.biases),
            address(case.gn_weight),
            address(case.gn_bias),
            case.eps,
        )
        state = torch.full((n_state,), float("nan"), dtype=case.dtype)
        tokens = nan_like(case.grad_tokens) if tokens is None else tokens
        arguments = shape, ctypes.byref(inputs), dtype, ctypes.c_void_p(address(state))
        self.driver.call("forward", *arguments, backward, ctypes.c_void_p(address(tokens)))
        if not backward:
            return {"tokens": tokens}
        work = torch.full((n_work,), 255, dtype=torch.uint8)
        weights, biases = [[nan_like(x) for x in xs] for xs in (case.weights, case.biases)]
        gn_weight, gn_bias = nan_like(case.gn_weight), nan_like(case.gn_bias)
        signal = nan_like(case.signal) if for_signal else None
        grads = Gradients(
            address(case.grad_tokens),
            address(signal),
            addresses(weights),
            addresses(biases),
            address(gn_weight),
            address(gn_bias),
        )
        self.driver.call("backward", *arguments, ctypes.c_void_p(address(work)), ctypes.byref(grads), blocks)
        out = {"tokens": tokens, "gn_weight": gn_weight, "gn_bias": gn_bias}
        out |= {f"weight {i}": x for i, x in enumerate(weights)} | {
            f"bias {i}": x for i, x in enumerate(biases)
        }
        return out | ({"signal": signal} if for_signal else {})


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels()


def relative(got: Tensor, want: Tensor) -> float:
    norm = want.norm().item()
    difference = (got.double() - want).norm().item()
    return difference / norm if norm else difference


def check(out: dict[str, Tensor], case: Case) -> None:
    want = case.expected()
    value_tolerance, grad_tolerance = TOLERANCE[case.dtype]
    for name, got in out.items():
        if name == "bias 0":
            assert not got.any()
            continue
        assert torch.isfinite(got).all(), name
        tolerance = value_tolerance if name == "tokens" else grad_tolerance
        assert relative(got, want[name]) < tolerance, name


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "kwargs"),
    [
        ((2, 3, 131, 20), {"layers": 3, "bias": True}),
        ((3, 12, 162, 40), {}),
        ((1, 15, 700, 17), {"layers": 2, "keep": False}),
        ((2, 5, 97, 64), {"layers": 5, "int16": True}),
    ],
    ids=str,
)
def test_shapes(kernels, shape, kwargs, dtype):
    case = make_case(*shape, dtype, **kwargs)
    check(kernels.run(case), case)


@pytest.mark.parametrize(
    ("shape", "layers"), [((2, 1, 67, 1), 2), ((1, 4, 16, 9), 4), ((1, 2, 24, 264), 2)], ids=str
)
def test_one_channel_one_token_many_channels(kernels, shape, layers):
    case = make_case(*shape, layers=layers)
    check(kernels.run(case), case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths(kernels, dtype):
    case = make_case(4, 3, 131, 20, dtype, layers=3)
    case.lengths = torch.tensor([131, 130, 67, 9])
    out = kernels.run(case)
    check(out, case)
    assert not out["signal"][3, :, 9:].any()


def test_lengths_of_int16_and_out_of_range(kernels):
    case = make_case(3, 3, 131, 20, layers=3, int16=True)
    case.lengths = torch.tensor([131, 55, 500])
    clipped = kernels.run(case)
    case.lengths = torch.tensor([131, 55, 131])
    check(clipped, case)
    case.lengths = torch.tensor([0, -7, 1])
    assert all(torch.isfinite(x).all() for x in kernels.run(case).values())


def correlated(case: str) -> Tensor:
    """Inputs that leave a small variance of large values, as real records do."""
    g = torch.Generator().manual_seed(4)
    signal = torch.randn(1, 4, 700, generator=g)
    if case == "step":
        signal = torch.tensor([5.0, 3.0, 0.0, -2.0])[:, None] + 0.2 * signal
        signal[..., 350:] = 0
    elif case == "duplicates":
        signal = signal[:, :1] + 1e-3 * torch.randn(1, 4, 700, generator=g)
    elif case == "offset":
        signal = 10 + 0.2 * signal
    return signal


@pytest.mark.parametrize("name", ["step", "duplicates", "offset"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_correlated_leads_are_as_exact_as_the_reference(kernels, name, dtype):
    case = make_case(1, 4, 700, 24, dtype, layers=2, keep=False)
    case.signal = correlated(name).to(dtype)
    first = case.weights[0].float()
    case.weights[0] = (first - first.mean((1, 2), keepdim=True)).to(dtype)
    want, got, theirs = case.expected(), kernels.run(case), case.expected(dtype)
    for key, value in got.items():
        assert relative(value, want[key]) <= 3 * relative(theirs[key], want[key]), key


def test_no_segment(kernels):
    out = kernels.run(make_case(0, 3, 64, 8, bias=True))
    assert not any(x.any() for x in out.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_schedule_gives_the_same_bits(kernels, dtype):
    case = make_case(2, 4, 75, 24, dtype, layers=3, bias=True)
    outputs = [kernels.run(case, order) for order in SCHEDULES]
    check(outputs[0], case)
    for other in outputs[1:]:
        assert_same(outputs[0], other)


@pytest.mark.parametrize(
    ("shape", "kwargs"),
    [
        ((2, 3, 131, 20), {"layers": 3, "bias": True}),
        ((3, 12, 162, 40), {}),
        ((1, 2, 24, 264), {"layers": 2, "int16": True}),
    ],
    ids=str,
)
def test_tf32(kernels, shape, kwargs):
    case = make_case(*shape, **kwargs)
    want, precise = case.expected(), kernels.run(case)
    outputs = [kernels.run(case, order, tf32=True) for order in SCHEDULES]
    for other in outputs[1:]:
        assert_same(outputs[0], other)
    for name, got in outputs[0].items():
        if name != "bias 0":
            assert 2e-5 < relative(got, want[name]) < TF32_TOLERANCE, name
            assert not torch.equal(got, precise[name]), name


def test_tf32_where_one_block_walks(kernels):
    case = make_case(2, 3, 620, 12, layers=2)
    want = case.expected()
    for name, got in kernels.run(case, blocks=1, tf32=True).items():
        assert relative(got, want[name]) < TF32_TOLERANCE, name


def test_tf32_keeps_large_offsets(kernels):
    """The norm's statistics are of fp32 precision, and the signal is centred before it is rounded."""
    case = make_case(1, 4, 160, 16, layers=2)
    case.signal = case.signal * 0.2 + 30.0
    want = case.expected()
    for name, got in kernels.run(case, tf32=True).items():
        assert relative(got, want[name]) < TF32_TOLERANCE, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_block_may_walk_over_row_tiles_and_segments(kernels, dtype):
    """As in a large batch: layer 0's gradients over several row tiles, weights' over several segments."""
    case = make_case(2, 3, 620, 12, dtype, layers=2)
    assert kernels.sizes(case, True, blocks=1)[1] < kernels.sizes(case, True)[1]
    check(kernels.run(case, blocks=1), case)


def test_unaligned_tensors_give_the_same_as_aligned_ones(kernels):
    case = make_case(1, 3, 99, 16, torch.bfloat16, layers=2)
    aligned = kernels.run(case)

    def shifted(x: Tensor) -> Tensor:
        storage = torch.zeros(x.numel() + 1, dtype=x.dtype)
        storage[1:] = x.reshape(-1)
        return storage[1:].view(x.shape)

    case.grad_tokens, case.signal = shifted(case.grad_tokens), shifted(case.signal)
    case.weights = [shifted(w) for w in case.weights]
    assert_same(aligned, kernels.run(case, tokens=shifted(nan_like(case.grad_tokens))))


def test_tokens_do_not_depend_on_what_is_asked(kernels):
    case = make_case(2, 3, 70, 24, torch.bfloat16, layers=3)
    full, plain = kernels.run(case), kernels.run(case, for_signal=False)
    assert torch.equal(full["tokens"], kernels.run(case, backward=False)["tokens"])
    del full["signal"]
    assert_same(full, plain)


def test_masked_leads_read_as_zero(kernels):
    case = make_case(2, 6, 64, 16, layers=2, int16=True)
    assert not case.keep.all()
    masked = kernels.run(case)
    case.signal, case.keep = torch.where(case.keep[:, :, None], case.signal, 0).to(torch.int16), None
    assert_same(masked, kernels.run(case))


@pytest.mark.parametrize("first_eight", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kept_leads_differ_by_segment(kernels, dtype, first_eight):
    """None, one, neighbours, all; products end after the first eight leads where no other is kept."""
    case = make_case(5, 12, 100, 24, dtype, layers=2, bias=True)
    case.keep[:] = False
    case.keep[1, 7] = case.keep[2, 2:5] = case.keep[3, ::2] = case.keep[4] = True
    if first_eight:
        case.keep[:, 8:] = False
    case.lengths = torch.tensor([100, 99, 100, 57, 100])
    out = kernels.run(case)
    check(out, case)
    assert not out["signal"][~case.keep].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_leads_of_zeros_give_the_same_as_masked_ones(kernels, dtype):
    case = make_case(3, 12, 100, 24, dtype, layers=2)
    masked = kernels.run(case, for_signal=False)
    case.signal, case.keep = torch.where(case.keep[:, :, None], case.signal, 0.0), None
    assert_same(masked, kernels.run(case, for_signal=False))
    out = kernels.run(case)  # with the gradient of the signal, which those leads have too
    check(out, case)
    assert_same({name: out[name] for name in masked}, masked)


@pytest.mark.parametrize("sample", [0.25, float("nan")])
def test_a_lead_of_one_sample_is_no_lead_of_zeros(kernels, sample):
    """Odd lengths leave a sample after the patches that the norm's statistics are of."""
    case = make_case(2, 3, 64, 16, layers=2, keep=False)
    case.signal[:, 1] = 0.0
    case.signal[0, 1, 32] = sample
    case.lengths = torch.tensor([33, 64])
    out = kernels.run(case)
    if sample == sample:
        check(out, case)
        assert out["weight 0"][:, 1].any()
    else:
        assert torch.isnan(out["tokens"][0, 8]).all()
        assert torch.isfinite(out["tokens"][1]).all()


def test_no_lead_kept(kernels):
    case = make_case(1, 3, 64, 16, layers=2)
    case.keep[:] = False
    out = kernels.run(case)
    torch.testing.assert_close(out["tokens"].double(), case.expected()["tokens"], rtol=1e-5, atol=1e-6)
    assert not out["weight 0"].any()
    assert not out["signal"].any()


def test_large_offsets_keep_their_precision(kernels):
    case = make_case(1, 4, 160, 16, layers=2)
    case.signal = case.signal * 0.2 + 30.0
    want = case.expected()
    for name, got in kernels.run(case).items():
        assert relative(got, want[name]) < 2e-5, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 12, 250, 20), (2, 1, 33, 256), (0, 2, 64, 7)], ids=str)
def test_python_knows_the_size_of_the_state(kernels, shape, dtype):
    for layers in (2, 4, 7):
        case = make_case(*shape, dtype, layers=layers)
        assert kernels.sizes(case, True)[0] == _saved_on_cuda(case.signal, case.weights)
