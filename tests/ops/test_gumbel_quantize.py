"""Gumbel product quantisation: kernel against reference, over dtypes, shapes, ISAs and thread counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import ecgfast
from ecgfast.ops import draw_gumbel, gumbel_quantize, gumbel_quantize_reference, make_rng
from tests.ops.helpers import DTYPES, TOLERANCE, assert_close, generator, on_cuda, strided

SHAPES = [  # rows, groups, entries, width of an entry
    (1, 1, 1, 1),
    (2, 1, 5, 3),
    (7, 3, 17, 5),
    (30, 2, 33, 40),
    (62, 2, 320, 128),
    (100, 1, 64, 16),
]


def make_inputs(rows, g, v, width, dtype, seed, codebook_dtype=None):
    draw = generator(seed)
    logits = torch.randn(rows, g * v, generator=draw, dtype=torch.float64) * 2
    codebook = torch.randn(g, v, width, generator=draw, dtype=torch.float64)
    return logits.to(dtype), codebook.to(codebook_dtype or dtype)


def run(function, logits, codebook, weights, temperature=1.7, **kwargs):
    x = logits.detach().clone().requires_grad_()
    c = codebook.detach().clone().requires_grad_()
    quantized, codes, probs = function(x, c, temperature, **kwargs)
    loss = (quantized * weights[0].to(quantized.dtype)).sum()
    loss = loss + (probs * weights[1].to(probs.dtype)).sum()
    loss.backward()
    return quantized, codes, probs, x.grad, c.grad


def compare(logits, codebook, tolerance, seed=0, **kwargs):
    rows, (g, v, width) = logits.shape[0], codebook.shape
    draw = torch.Generator().manual_seed(seed)
    weights = (
        torch.randn(rows, g * width, generator=draw, dtype=torch.float64).to(codebook.dtype),
        torch.randn(g, v, generator=draw, dtype=torch.float64),
    )
    got = run(gumbel_quantize, logits, codebook, weights, **kwargs)
    want = run(gumbel_quantize_reference, logits.double(), codebook.double(), weights, **kwargs)
    assert got[0].dtype == codebook.dtype
    assert got[1].dtype == torch.int32
    assert got[3].dtype == logits.dtype
    assert got[4].dtype == codebook.dtype
    # Random candidates are farther apart than fp32 rounds.
    assert torch.equal(got[1], want[1])
    assert_close(got[0], want[0], tolerance, "quantized")
    assert_close(got[2], want[2], 1e-12 if logits.dtype == torch.float64 else 2e-6, "mean_probs")
    assert_close(got[3], want[3], tolerance, "gradient of logits")
    assert_close(got[4], want[4], tolerance, "gradient of codebook")
    return got, want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hard", [True, False])
def test_kernel_equals_reference(dtype, shape, hard):
    rows = shape[0]
    logits, codebook = make_inputs(*shape, dtype, seed=rows)
    samples = 2 if rows % 2 == 0 else 1
    ids = torch.arange(samples) + 2**40
    # The reference draws in fp64 for fp64 logits: the same noise in both.
    noise = draw_gumbel(make_rng(3, 1), ids, rows, logits.shape[1], torch.float64)
    compare(logits, codebook, TOLERANCE[dtype], noise=noise, hard=hard)
    compare(logits, codebook, TOLERANCE[dtype], rng=make_rng(3, 1), sample_ids=ids, hard=hard)
    compare(logits, codebook, TOLERANCE[dtype], hard=hard)


@pytest.mark.parametrize("hard", [True, False])
def test_mixed_dtypes(hard):
    for logits_dtype in DTYPES:
        for codebook_dtype in DTYPES:
            logits, codebook = make_inputs(11, 2, 21, 12, logits_dtype, 1, codebook_dtype)
            tolerance = max(TOLERANCE[logits_dtype], TOLERANCE[codebook_dtype])
            compare(logits, codebook, tolerance, rng=make_rng(2), hard=hard)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codebook_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "hard"),
    [((62, 2, 320, 128), True), ((30, 1, 700, 40), True), ((7, 3, 17, 5), True), ((30, 2, 32, 8), False)],
)
def test_cuda(dtype, codebook_dtype, shape, hard):
    logits, codebook = make_inputs(*shape, dtype, 1, codebook_dtype)
    draw = torch.Generator().manual_seed(0)
    weights = (
        torch.randn(shape[0], shape[1] * shape[3], generator=draw).to(codebook.dtype),
        torch.randn(shape[1:3], generator=draw),
    )
    ids, rng = torch.arange(1) + 2**40, make_rng(3, 1)
    noise = draw_gumbel(rng, ids, shape[0], logits.shape[1], torch.float64)
    # In fp64 with the same noise, rounded: the kernel draws in fp32.
    wide = (logits.double(), codebook.double())
    want = run(gumbel_quantize_reference, *wide, weights, noise=noise, hard=hard)
    on_device = on_cuda(logits, codebook)
    for kwargs in ({"rng": rng.cuda(), "sample_ids": ids.cuda()}, {"noise": noise.float().cuda()}):
        got = run(gumbel_quantize, *on_device, on_cuda(*weights), hard=hard, **kwargs)
        tolerance = max(TOLERANCE[logits.dtype], TOLERANCE[codebook.dtype])
        assert torch.equal(got[1].cpu(), want[1])
        for value, target in zip(got, want, strict=True):
            assert_close(value.cpu(), target, tolerance, "value or gradient")


@pytest.mark.cuda
def test_cuda_gives_the_same_bits_each_time():
    inputs = on_cuda(*make_inputs(4000, 2, 320, 32, torch.bfloat16, seed=2))
    weights = on_cuda(torch.randn(4000, 64), torch.randn(2, 320))
    first, second = (run(gumbel_quantize, *inputs, weights, rng=make_rng(1).cuda()) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_the_draws_are_the_reference_stream():
    logits = torch.zeros(12, 2 * 37)
    codebook = torch.randn(2, 37, 4)
    ids, rng = torch.tensor([5, 2**33 + 1, 7]), make_rng(11, 4)
    _, codes, _ = gumbel_quantize(logits, codebook, 1.0, rng=rng, sample_ids=ids)
    noise = draw_gumbel(rng, ids, 12, 74, torch.float32)
    assert torch.equal(codes.long(), noise.view(12, 2, 37).argmax(-1))
    # A sample's codes do not depend on the batch that it is in.
    _, alone, _ = gumbel_quantize(logits[4:8], codebook, 1.0, rng=rng, sample_ids=ids[1:2])
    assert torch.equal(alone, codes[4:8])


def test_noise_has_the_gumbel_distribution():
    # With logits log p, code v is drawn with probability p_v.
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    logits = p.log().expand(20000, 4)
    _, codes, probs = gumbel_quantize(logits, torch.zeros(1, 4, 1), 1.0, rng=make_rng(1))
    counts = torch.bincount(codes.flatten().long(), minlength=4)
    chi2 = ((counts - 20000 * p) ** 2 / (20000 * p)).sum()
    assert chi2 < 16.3  # p = 0.001 at 3 degrees of freedom
    torch.testing.assert_close(probs[0], p)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    rows=st.integers(0, 60),
    g=st.integers(1, 3),
    v=st.integers(1, 70),
    width=st.integers(1, 40),
    hard=st.booleans(),
)
def test_any_shape(rows, g, v, width, hard):
    logits, codebook = make_inputs(rows, g, v, width, torch.float32, seed=5)
    compare(logits, codebook, TOLERANCE[torch.float32], rng=make_rng(9), hard=hard)


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_every_isa(isa):
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        for dtype in DTYPES:
            for hard in (True, False):
                for entries, width in ((45, 33), (64, 64)):  # these are whole registers, used in place
                    logits, codebook = make_inputs(50, 2, entries, width, dtype, seed=8)
                    compare(logits, codebook, TOLERANCE[dtype], rng=make_rng(2), hard=hard)
    finally:
        ecgfast.set_cpu_isa(previous)


@pytest.mark.parametrize("hard", [True, False])
def test_same_bits_for_any_thread_count(hard):
    logits, codebook = make_inputs(700, 2, 40, 16, torch.float32, seed=4)
    weights = torch.randn(700, 32), torch.randn(2, 40)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(run(gumbel_quantize, logits, codebook, weights, rng=make_rng(1), hard=hard))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_strides_and_expanded_inputs():
    logits, codebook = make_inputs(12, 2, 24, 8, torch.float32, seed=6)
    plain = gumbel_quantize(logits, codebook, 0.7, rng=make_rng(1))
    other = gumbel_quantize(strided(logits), strided(codebook), 0.7, rng=make_rng(1))
    assert all(torch.equal(x, y) for x, y in zip(plain, other, strict=True))
    wide = logits[:1].expand(4, -1).detach().requires_grad_()
    quantized, codes, _ = gumbel_quantize(wide, codebook, 0.7)
    quantized[:, :1].expand(-1, 5).sum().backward()
    assert torch.equal(codes, codes[:1].expand(4, -1))
    assert torch.isfinite(wide.grad).all()


@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize(("entries", "width"), [(14, 6), (64, 64)])
def test_gradient_of_one_output_alone(which, hard, entries, width):
    logits, codebook = make_inputs(9, 2, entries, width, torch.float64, seed=3)
    grads = []
    for function in (gumbel_quantize, gumbel_quantize_reference):
        x, c = logits.clone().requires_grad_(), codebook.clone().requires_grad_()
        output = function(x, c, 1.3, rng=make_rng(1), hard=hard)[which]
        grads.append(torch.autograd.grad(output.square().sum(), (x, c), materialize_grads=True))
    for got, want in zip(*grads, strict=True):
        assert_close(got, want, 1e-12, "gradient")


def test_temperature_as_a_tensor():
    logits, codebook = make_inputs(9, 2, 14, 6, torch.float32, seed=3)
    weights = torch.randn(9, 12), torch.randn(2, 14)
    number = run(gumbel_quantize, logits, codebook, weights, temperature=0.75, rng=make_rng(1))
    for dtype in DTYPES:
        t = torch.tensor(0.75, dtype=dtype)
        tensor = run(gumbel_quantize, logits, codebook, weights, temperature=t, rng=make_rng(1))
        assert all(torch.equal(x, y) for x, y in zip(number, tensor, strict=True))


def test_empty():
    logits = torch.zeros(0, 10, requires_grad=True)
    codebook = torch.randn(2, 5, 3, requires_grad=True)
    ids = torch.zeros(0, dtype=torch.int64)
    quantized, codes, probs = gumbel_quantize(logits, codebook, 1.0, rng=make_rng(0), sample_ids=ids)
    (quantized.sum() + probs.sum()).backward()
    assert quantized.shape == (0, 6)
    assert codes.shape == (0, 2)
    assert torch.equal(probs, torch.zeros(2, 5))
    assert torch.equal(codebook.grad, torch.zeros(2, 5, 3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_codes_stay_in_range_whatever_the_logits(value):
    logits, codebook = make_inputs(6, 2, 19, 3, torch.float32, seed=2)
    logits[1] = value
    logits[2, 3] = value
    _, codes, _ = gumbel_quantize(logits, codebook, 1.0, rng=make_rng(0))
    assert ((codes >= 0) & (codes < 19)).all()


def test_gradcheck():
    logits, codebook = make_inputs(5, 2, 6, 3, torch.float64, seed=1)
    logits.requires_grad_()
    codebook.requires_grad_()

    def soft(x, c):
        quantized, _, probs = gumbel_quantize(x, c, 1.3, rng=make_rng(4), hard=False)
        return quantized, probs

    assert torch.autograd.gradcheck(soft, (logits, codebook))
    # The hard choice is constant around a point: only the codebook and mean_probs have true derivatives.
    assert torch.autograd.gradcheck(
        lambda c: gumbel_quantize(logits.detach(), c, 1.3, rng=make_rng(4))[0], (codebook,)
    )
    assert torch.autograd.gradcheck(
        lambda x: gumbel_quantize(x, codebook.detach(), 1.3, rng=make_rng(4))[2], (logits,)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hard", [True, False])
def test_opcheck(dtype, hard):
    logits, codebook = make_inputs(8, 2, 9, 4, dtype, seed=1)
    logits.requires_grad_()
    codebook.requires_grad_()
    op = torch.ops.ecgfast.gumbel_quantize.default
    t, rng, ids = torch.tensor(1.5), make_rng(1), torch.arange(2)
    for keep in (True, False):
        torch.library.opcheck(op, (logits, codebook, t, None, rng, ids, hard, keep, keep))
        torch.library.opcheck(op, (logits, codebook, t, torch.randn(8, 18), None, None, hard, keep, False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize(("entries", "width"), [(35, 6), (64, 64)])
def test_the_backward_pass_draws_again_what_was_not_kept(dtype, hard, entries, width):
    logits, codebook = make_inputs(40, 2, entries, width, dtype, seed=7)
    op, backward = torch.ops.ecgfast.gumbel_quantize, torch.ops.ecgfast.gumbel_quantize_backward
    t, noise, rng, ids = torch.tensor(1.5, dtype=torch.float64), None, make_rng(3), torch.arange(4)
    grads = []
    for keep in (True, False):
        quantized, codes, probs, choice = op(logits, codebook, t, noise, rng, ids, hard, keep, False)
        assert choice.shape == (40 if keep else 0, 2 * entries)
        of_outputs = torch.ones_like(quantized) * quantized, probs * probs
        inputs = logits, codebook, t, codes, noise, rng, ids, choice, hard, False
        grads.append(backward(*of_outputs, *inputs))
    assert all(torch.equal(x, y) for x, y in zip(*grads, strict=True))
    assert not any(x.any() for x in backward(None, None, *inputs))


def test_nothing_is_kept_where_no_gradient_is_needed():
    logits, codebook = make_inputs(6, 2, 5, 3, torch.float32, seed=7)
    for enabled, shape in ((True, (6, 10)), (False, (0, 10))):
        with _Choices() as kept, torch.set_grad_enabled(enabled):
            gumbel_quantize(logits.requires_grad_(), codebook, 1.0, rng=make_rng(0))
        assert kept.shapes == [shape]


class _Choices(TorchDispatchMode):
    """The shapes of what the op keeps for its backward pass."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.ecgfast.gumbel_quantize.default:
            self.shapes.append(tuple(out[3].shape))
        return out


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"codebook": torch.zeros(5, 3)}, r"codebook must have shape \[G, V, D/G\], got \[5, 3\]"),
        ({"codebook": torch.zeros(2, 0, 3)}, r"codebook must have entries, got \[2, 0, 3\]"),
        ({"logits": torch.zeros(4, 9)}, r"logits must have shape \[R, 10 \(G\*V\)\], got \[4, 9\]"),
        ({"logits": torch.zeros(4, 10).long()}, "logits must be float32, .* got .* int64"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": torch.ones(1)}, r"temperature must have shape \[\], got \[1\]"),
        ({"temperature": torch.ones((), requires_grad=True)}, "temperature takes no gradient"),
        ({"noise": torch.zeros(4, 10)}, "takes noise or rng, got both"),
        ({"noise": torch.zeros(4, 9), "rng": None}, r"noise must have shape \[4, 10\]"),
        (
            {"noise": torch.zeros(4, 10, requires_grad=True), "rng": None},
            "noise takes no gradient",
        ),
        ({"sample_ids": torch.arange(3)}, "logits must have equally many rows per sample, got 4 for 3"),
        ({"rng": torch.zeros(2)}, "rng must be int64, got .* float32"),
    ],
)
def test_bad_input(kwargs, message):
    args = {
        "logits": torch.zeros(4, 10),
        "codebook": torch.zeros(2, 5, 3),
        "temperature": 1.0,
        "rng": make_rng(0),
        "sample_ids": torch.arange(2),
    } | kwargs
    for function in (gumbel_quantize, gumbel_quantize_reference):
        with pytest.raises((ValueError, TypeError), match=f"gumbel_quantize: {message}"):
            function(**args)
