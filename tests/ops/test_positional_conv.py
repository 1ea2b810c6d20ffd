"""The convolutional position embedding: kernel against reference, over shapes, dtypes, ISAs and threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ecgfast
from ecgfast.ops import positional_conv, positional_conv_reference
from tests.ops.helpers import DTYPES, TOLERANCE, assert_close, generator, strided

NAMES = ("output", "gradient of x", "gradient of weight", "gradient of bias")


def make_inputs(b, n, e, groups, k, dtype, seed):
    g = generator(seed)
    x = torch.randn(b, n, e, generator=g, dtype=torch.float64)
    weight = torch.randn(e, e // groups, k, generator=g, dtype=torch.float64) / (k * e / groups) ** 0.5
    bias = torch.randn(e, generator=g, dtype=torch.float64)
    grad = torch.randn(b, n, e, generator=g, dtype=torch.float64)
    return [t.to(dtype) for t in (x, weight, bias, grad)]


def run(function, x, weight, bias, grad, groups):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    out = function(*leaves, groups)
    return (out, *torch.autograd.grad(out, leaves, grad))


def compare(inputs, groups, slack=1.0):
    dtype = inputs[0].dtype
    got = run(positional_conv, *inputs, groups)
    want = run(positional_conv_reference, *(t.double() for t in inputs), groups)
    for name, x, y in zip(NAMES, got, want, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, slack * TOLERANCE[dtype], name)
    return got


SHAPES = [
    # b, n, e, groups, k
    (1, 1, 4, 1, 1),
    (2, 1, 8, 2, 128),  # one tap of 128 reaches anything
    (2, 2, 6, 3, 3),
    (3, 7, 15, 3, 4),
    (2, 31, 64, 4, 16),  # the golden files' size
    (5, 17, 40, 2, 129),
    (3, 156, 96, 2, 128),
    (1, 100, 34, 2, 5),  # pieces of a sequence
    (2, 1500, 8, 1, 100),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "n", "e", "groups", "k"), SHAPES)
def test_kernel_equals_reference(dtype, b, n, e, groups, k):
    compare(make_inputs(b, n, e, groups, k, dtype, seed=n * k), groups)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 90), st.integers(1, 20), st.integers(1, 3), st.integers(1, 40))
def test_any_shape(b, n, channels, groups, k):
    inputs = make_inputs(b, n, channels * groups, groups, k, torch.float32, seed=1)
    compare(inputs, groups, slack=20)  # a sum over one or two channels may all but cancel


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_every_isa(isa):
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        for dtype in DTYPES:
            compare(make_inputs(3, 156, 40, 2, 128, dtype, seed=2), 2)
            compare(make_inputs(2, 90, 34, 2, 7, dtype, seed=3), 2)
    finally:
        ecgfast.set_cpu_isa(previous)


@pytest.mark.parametrize("n", range(1, 70))
def test_every_length_of_transform(n):
    """Each n takes another sequence of passes."""
    compare(make_inputs(1, 3 * n, 4, 1, 6 * n, torch.float64, seed=n), 1)


def test_same_bits_for_any_thread_count():
    inputs, results = make_inputs(5, 40, 96, 3, 24, torch.float32, seed=4), []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(run(positional_conv, *inputs, 3))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_more_rows_than_are_held_at_a_time():
    inputs = make_inputs(70, 2000, 16, 1, 2, torch.float32, seed=5)
    compare(inputs, 1, slack=4)  # a tap's gradient sums 140,000 products


def test_a_row_does_not_depend_on_the_others():
    x, weight, bias, _ = make_inputs(3, 31, 64, 4, 16, torch.float32, seed=6)
    together = positional_conv(x, weight, bias, 4)
    x[1] = 1e30
    x[2] = torch.nan
    assert torch.equal(positional_conv(x, weight, bias, 4)[0], together[0])
    assert torch.equal(positional_conv(x[:1], weight, bias, 4)[0], together[0])


def test_strides_and_expanded_inputs():
    x, weight, bias, grad = make_inputs(2, 12, 24, 3, 5, torch.float32, seed=7)
    plain = run(positional_conv, x, weight, bias, grad, 3)
    leaf = x.clone().requires_grad_()
    out = positional_conv(strided(leaf), strided(weight), bias, 3)
    out.backward(strided(grad))
    assert torch.equal(out, plain[0])
    assert torch.equal(leaf.grad, plain[1])
    wide = x[:1].expand(4, -1, -1).detach().requires_grad_()
    out = positional_conv(wide, weight, bias, 3)
    out.sum().backward()
    assert torch.equal(out[0], out[3])
    assert torch.equal(wide.grad[0], wide.grad[3])


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
def test_empty(shape):
    inputs = [torch.zeros(shape), torch.ones(8, 4, 3), torch.ones(8)]
    leaves = [t.requires_grad_() for t in inputs]
    for function in (positional_conv, positional_conv_reference):
        out = function(*leaves, 2)
        grads = torch.autograd.grad(out.sum(), leaves)
        assert out.shape == shape
        assert [g.shape for g in grads] == [t.shape for t in leaves]
        assert not any(g.any() for g in grads)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_the_gradients_asked_for(wanted):
    x, weight, bias, grad = make_inputs(3, 20, 32, 2, 6, torch.float32, seed=8)
    everything = run(positional_conv, x, weight, bias, grad, 2)[1:]
    leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate((x, weight, bias))]
    positional_conv(*leaves, 2).backward(grad)
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in wanted)
        if i in wanted:
            assert torch.equal(leaf.grad, everything[i])


def test_nothing_is_kept_without_gradients():
    x, weight, bias, _ = make_inputs(1, 9, 8, 2, 4, torch.float32, seed=9)
    out, conv = torch.ops.ecgfast.positional_conv(x, weight, bias, 2, False, False)
    assert conv.numel() == 0
    with pytest.raises(RuntimeError, match=r"positional_conv_backward: .* run with save"):
        torch.ops.ecgfast.positional_conv_backward(out, x, weight, conv, 2, True, True, False)
    kept = torch.ops.ecgfast.positional_conv(x, weight, bias, 2, True, False)
    assert torch.equal(kept[0], out)


def test_gradcheck():
    x, weight, bias, _ = make_inputs(2, 7, 6, 2, 4, torch.float64, seed=10)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    torch.autograd.gradcheck(lambda *t: positional_conv(*t, 2), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    x, weight, bias, _ = make_inputs(2, 9, 16, 2, 4, dtype, seed=11)
    op = torch.ops.ecgfast.positional_conv.default
    torch.library.opcheck(op, (x, weight, bias, 2, False, True))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(op, (*leaves, 2, True, False))


def test_autocast():
    x, weight, bias, _ = make_inputs(2, 9, 16, 2, 4, torch.float32, seed=12)
    with torch.autocast("cpu", torch.bfloat16):
        out = positional_conv(x, weight, bias, 2)
    assert torch.equal(out, positional_conv(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), 2))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x must have shape \[B, N, E\], got \[2, 3\]"),
        ({"x": torch.zeros(2, 3, 4).int()}, "x must be float32, .* got .* int32"),
        ({"groups": 3}, "groups must divide E = 4, got 3"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        (
            {"weight": torch.zeros(4, 4, 3)},
            r"weight must have shape \[E = 4, E / groups = 2, K\], got \[4, 4, 3\]",
        ),
        ({"weight": torch.zeros(4, 2, 0)}, "weight must have at least one tap, got K = 0"),
        ({"weight": torch.zeros(4, 2, 3).double()}, "weight must be float32, got .* float64"),
        ({"bias": torch.zeros(5)}, r"bias must have shape \[4\], got \[5\]"),
    ],
)
def test_bad_input(kwargs, message):
    args = {
        "x": torch.zeros(2, 3, 4),
        "weight": torch.zeros(4, 2, 3),
        "bias": torch.zeros(4),
        "groups": 2,
    } | kwargs
    for function in (positional_conv, positional_conv_reference):
        with pytest.raises((ValueError, TypeError), match=f"positional_conv: {message}"):
            function(**args)


CUDA_SHAPES = [
    # b, n, e, groups, k
    (1, 1, 8, 1, 1),
    (3, 31, 64, 4, 16),
    (2, 90, 34, 2, 5),  # rows that are not aligned
    (5, 17, 40, 2, 129),
    (1, 40, 100, 1, 33),  # three tiles of channels
    (2, 1500, 48, 1, 100),  # many tiles of tokens
    pytest.param(9, 156, 768, 16, 128, marks=pytest.mark.large),
    (3, 7, 15, 3, 4),  # too few channels: the reference
]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("b", "n", "e", "groups", "k"), CUDA_SHAPES)
def test_on_cuda(dtype, b, n, e, groups, k):
    inputs = make_inputs(b, n, e, groups, k, dtype, seed=n * k)
    got = run(positional_conv, *(t.cuda() for t in inputs), groups)
    again = run(positional_conv, *(t.cuda() for t in inputs), groups)
    want = run(positional_conv_reference, *(t.double() for t in inputs), groups)
    for name, x, y, z in zip(NAMES, got, want, again, strict=True):
        assert torch.equal(x, z), name
        assert_close(x.cpu(), y, TOLERANCE[dtype], name)


@pytest.mark.cuda
def test_bad_devices():
    x, weight, bias, _ = make_inputs(2, 9, 16, 2, 4, torch.float32, seed=13)
    with pytest.raises(ValueError, match="positional_conv: weight is on cpu"):
        positional_conv(x.cuda(), weight, bias, 2)
