"""The ops and the encoder under ``torch.func``, forward-mode AD, vmap, meta tensors and FLOP counting."""

import subprocess
import sys

import pytest
import torch
from torch import func
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from ecgfast import ops
from ecgfast.nn import Encoder, EncoderConfig
from ecgfast.objectives import W2VCMSC, Views, W2VCMSCConfig
from tests.ops.test_compile import CASES, gradients

NAMES = [case.__name__.removeprefix("case_") for case in CASES]
CONFIG = EncoderConfig(
    stem_channels=8,
    width=8,
    layers=1,
    heads=2,
    ffn=16,
    conv_pos=4,
    conv_pos_groups=2,
    dropout=0,
    attention_dropout=0,
    dropout_input=0,
)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def local(x):
    targets = randn(2, 4, 3)
    return lambda x: ops.local_contrastive(x, targets, negatives="all")[0].sum()


def local_drawn(x):
    targets, rng, ids = randn(2, 4, 3), ops.make_rng(1), torch.arange(2)
    return lambda x: ops.local_contrastive(x, targets, n_negatives=5, rng=rng, sample_ids=ids)[0].sum()


def global_(x):
    groups = torch.arange(4)
    return lambda x: ops.global_contrastive(x[0], x[1], groups, groups, detach_norm=False)


def gumbel(x):
    codebook, rng, ids = randn(1, 3, 2), ops.make_rng(1), torch.arange(2)

    def f(x):
        out = ops.gumbel_quantize(x.flatten(0, 1), codebook, 1.5, rng=rng, sample_ids=ids, hard=False)
        return out[0].square().sum() + out[2].square().sum()

    return f


def positional(x):
    weight, bias = randn(3, 3, 3), randn(3)
    return lambda x: ops.positional_conv(x, weight, bias, 1).square().sum()


def stem(x):
    weights, scale, shift = [randn(2, 4, 2)], randn(2), randn(2)
    return lambda x: ops.patch_embed(x, None, weights, scale, shift).square().sum()


DIFFERENTIABLE = [local, local_drawn, global_, gumbel, positional, stem]


@pytest.fixture(params=DIFFERENTIABLE, ids=lambda f: f.__name__)
def problem(request):
    """A function [2, 4, 3] -> [], a point, its gradient there, and a direction."""
    torch.manual_seed(0)
    x = randn(2, 4, 3)
    f = request.param(x)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(leaf), leaf)
    return f, x, gradient, randn(2, 4, 3)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_transforms_in_reverse_mode(problem):
    f, x, gradient, _ = problem
    close(func.grad(f)(x), gradient)
    close(func.vjp(f, x)[1](torch.ones((), dtype=x.dtype))[0], gradient)
    close(func.jacrev(f)(x), gradient)
    xs = torch.stack([x, 2 * x])
    each = torch.stack([func.grad(f)(y) for y in xs])
    close(func.vmap(func.grad(f))(xs), each)
    close(func.grad(lambda xs: func.vmap(f)(xs).sum())(xs), each)


def test_forward_mode(problem):
    f, x, gradient, direction = problem
    want = (gradient * direction).sum()
    close(func.jvp(f, (x,), (direction,))[1], want)
    close(func.jacfwd(f)(x), gradient)
    close(func.linearize(f, x)[1](direction), want)
    with forward_ad.dual_level():
        close(forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction))).tangent, want)
        # Also through a compiled function.
        compiled = torch.compile(f, fullgraph=True, backend="eager")
        close(forward_ad.unpack_dual(compiled(forward_ad.make_dual(x, direction))).tangent, want)
    strategy = {"vectorize": True, "strategy": "forward-mode"}
    close(torch.autograd.functional.jacobian(f, x, **strategy), gradient)


def test_second_derivatives(problem):
    f, x, _, direction = problem
    hessian = func.hessian(f)(x)
    with ops.use_reference():
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        (want,) = torch.autograd.grad((gradient * direction).sum(), leaf)
    close(torch.tensordot(hessian, direction, 3), want)
    for refused in (
        lambda: torch.autograd.functional.hessian(f, x),
        lambda: torch.autograd.functional.jvp(f, x, direction),
    ):
        with pytest.raises(NotImplementedError, match=r"\w+: has no second derivative; .*use_reference"):
            refused()


def test_reverse_mode_functions_of_autograd(problem):
    f, x, gradient, _ = problem
    close(torch.autograd.functional.jacobian(f, x), gradient)
    close(torch.autograd.functional.vjp(f, x)[1], gradient)
    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.save_on_cpu():
        y = f(leaf)
    close(torch.autograd.grad(y, leaf)[0], gradient)


def test_batches_of_gradients(problem):
    f, x, gradient, _ = problem
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    factors = torch.tensor([1.0, -2.0, 3.0], dtype=x.dtype)
    (got,) = torch.autograd.grad(y, leaf, factors, is_grads_batched=True)
    close(got, factors[:, None, None, None] * gradient)
    close(torch.autograd.functional.jacobian(f, x, vectorize=True), gradient)


def test_the_vectorized_jacobian_of_the_stem():
    torch.manual_seed(0)
    parameters = randn(2, 3, 2), randn(2, 2, 2), randn(2), randn(2)

    def f(x, first, second, scale, shift):
        return ops.patch_embed(x, None, [first, second], scale, shift, biases=[scale, shift])

    inputs = randn(2, 3, 9), *parameters
    got = torch.autograd.functional.jacobian(f, inputs, vectorize=True)
    for x, y in zip(got, torch.autograd.functional.jacobian(f, inputs), strict=True):
        close(x, y)


def test_vmap_over_no_examples(problem):
    f, x, _, _ = problem
    assert func.vmap(f)(x.new_empty(0, *x.shape)).shape == (0,)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_vmap_of_every_op_over_no_examples(case):
    function, inputs = case(4)
    want = function(*inputs)
    got = func.vmap(function)(*(t.new_empty(0, *t.shape) for t in inputs))
    as_tuple = (lambda x: x) if isinstance(want, tuple) else (lambda x: (x,))
    for x, y in zip(as_tuple(got), as_tuple(want), strict=True):
        assert (x.shape, x.dtype, x.device) == ((0, *y.shape), y.dtype, y.device)


@pytest.mark.parametrize("randomness", ["error", "different", "same"])
def test_vmap(problem, randomness):
    f, x, _, _ = problem
    xs = torch.stack([x, 2 * x, -x]).requires_grad_()
    got, want = func.vmap(f, randomness=randomness)(xs), torch.stack([f(y) for y in xs])
    assert torch.equal(got, want)
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=x.dtype)
    (got,) = torch.autograd.grad((got * weights).sum(), xs)
    (want,) = torch.autograd.grad((want * weights).sum(), xs)
    assert torch.equal(got, want)


def test_vmap_of_draws():
    rngs = torch.stack([ops.make_rng(1, step) for step in range(3)])
    ids = torch.arange(12).view(3, 4)
    store = torch.arange(12 * 30).short()
    start = torch.tensor([[3], [5], [0]])

    def draw(ids, rng):
        keep = ops.lead_mask(ids, 12, 0.5, rng)
        return keep, *ops.span_mask(ids, 31, 0.65, 4, rng, n_masked=9)

    def crop(start):
        return ops.gather_segments(store, torch.zeros(1).long(), start, torch.full((1,), 30), 20)

    for f, inputs in ((draw, (ids, rngs)), (crop, (start,))):
        got = func.vmap(f)(*inputs)
        each = [f(*example) for example in zip(*inputs, strict=True)]
        if isinstance(got, tuple):
            each = [torch.stack(parts) for parts in zip(*each, strict=True)]
            assert all(map(torch.equal, got, each))
        else:
            assert torch.equal(got, torch.stack(each))


def test_no_size_depends_on_a_draw_where_it_cannot():
    message = "span_mask: n_masked must be an integer {}, .* got None"
    ids, rng = torch.arange(6).view(2, 3), ops.make_rng(1)
    with pytest.raises(ValueError, match=message.format("under torch.vmap")):
        func.vmap(lambda ids: ops.span_mask(ids, 31, 0.65, 4, rng, n_masked=None))(ids)
    with pytest.raises(ValueError, match=message.format("on meta tensors")):
        ops.span_mask(ids[0].to("meta"), 31, 0.65, 4, rng.to("meta"), n_masked=None)


@pytest.mark.parametrize("transform", [func.grad, func.vmap, lambda f: func.vmap(func.grad(f))])
def test_transforms_inside_of_a_compiled_function(transform):
    torch._dynamo.reset()
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 2, 6, 8), torch.randn(8, 4, 3), torch.randn(8)

    def f(x):
        return ops.positional_conv(x, weight, bias, 2).square().sum()

    x = x[0] if transform is func.grad else x
    compiled = torch.compile(lambda x: transform(f)(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), transform(f)(x))


def test_the_encoder_under_transforms():
    torch.manual_seed(0)
    encoder = Encoder(CONFIG).double()
    parameters, x = dict(encoder.named_parameters()), randn(2, 12, 64)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}

    def f(parameters, x):
        return func.functional_call(encoder, parameters, (x,)).tokens.square().sum()

    names = [name for name in parameters if name != "mask_token"]
    grads = torch.autograd.grad(f(parameters, x), [parameters[name] for name in names])
    got = func.grad(f)(parameters, x)
    for name, want in zip(names, grads, strict=True):
        close(got[name], want)
    slope = sum((g * tangents[name]).sum() for name, g in zip(names, grads, strict=True))
    close(func.jvp(lambda p: f(p, x), (parameters,), (tangents,))[1], slope)
    xs = torch.stack([x, 2 * x])
    per_sample = func.vmap(func.grad(f), (None, 0))(parameters, xs)
    for name in names:
        close(per_sample[name][0], got[name])


def on_meta(inputs):
    return [t.detach().to("meta").requires_grad_(t.requires_grad) for t in inputs]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_meta_tensors(case, reference):
    function, inputs = case(4)
    with ops.use_reference(reference):
        want, got = function(*inputs), function(*on_meta(inputs))
    as_tuple = (lambda x: x) if isinstance(want, tuple) else (lambda x: (x,))
    for x, y in zip(as_tuple(got), as_tuple(want), strict=True):
        assert (x.device.type, x.shape, x.dtype, x.stride()) == ("meta", y.shape, y.dtype, y.stride())
    inputs = on_meta(inputs)
    for gradient, x in zip(
        gradients(function(*inputs), inputs), (t for t in inputs if t.requires_grad), strict=True
    ):
        assert (gradient.device.type, gradient.shape, gradient.dtype) == ("meta", x.shape, x.dtype)


def test_the_objective_on_meta_tensors():
    with torch.device("meta"):
        model = W2VCMSC(W2VCMSCConfig(encoder=CONFIG, final_dim=8, latent_dim=8, entries=4, n_masked=3))
        ids = torch.zeros(4, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            views = Views(torch.zeros(4, 12, 160), ids, ids, ids)
            model(views, ops.make_rng(0, device="meta")).total.backward()
    counted = counter.get_flop_counts()["Global"]
    assert {torch.ops.ecgfast.patch_embed, torch.ops.ecgfast.positional_conv_backward} <= counted.keys()
    assert model.encoder.mask_token.grad.shape == (8,)


def flops(f, inputs, reference=False):
    """FLOPs of the forward pass, and of forward and backward pass."""
    with ops.use_reference(reference), FlopCounterMode(display=False) as counter:
        outputs = f(*inputs)
        forward = counter.get_total_flops()
        gradients(outputs, inputs)
        return forward, counter.get_total_flops()


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (
            lambda x, *w: ops.patch_embed(x, None, w, torch.ones(4), torch.zeros(4)),
            (leaf(2, 3, 37), leaf(4, 3, 2), leaf(4, 4, 2)),
        ),
        (
            lambda x, *w: ops.patch_embed(x, None, w, torch.ones(4), torch.zeros(4)),
            (torch.randn(2, 3, 37), leaf(4, 3, 2), leaf(4, 4, 2)),
        ),
        (
            lambda a, b: ops.global_contrastive(a, b, torch.arange(5), torch.arange(7)),
            (leaf(5, 3), leaf(7, 3)),
        ),
        (lambda x, c: ops.gumbel_quantize(x, c, 1.0, hard=False)[0], (leaf(6, 8), leaf(2, 4, 3))),
        (lambda x, w: ops.positional_conv(x, w, torch.zeros(4), 1), (leaf(2, 9, 4), leaf(4, 4, 5))),
        (lambda x: ops.positional_conv(x, torch.ones(4, 4, 5), torch.zeros(4), 1), (leaf(2, 9, 4),)),
    ],
    ids=["stem", "stem_without_signal", "global", "soft_gumbel", "positional", "positional_input"],
)
def test_flops_are_those_of_the_reference(function, inputs):
    got, want = flops(function, inputs), flops(function, inputs, reference=True)
    assert got == want
    assert got[0] > 0


def test_flops_where_the_reference_counts_otherwise():
    # The reference makes one output more of an even kernel.
    x, weight, bias = leaf(2, 9, 8), leaf(8, 4, 6), leaf(8)
    args = lambda *a: ops.positional_conv(*a, 2), (x, weight, bias)
    ours, reference = flops(*args)[0], flops(*args, reference=True)[0]
    assert ours == 2 * 2 * 9 * 8 * 4 * 6
    assert reference == ours * 10 // 9
    # The hard choice copies rows: its one product is the gradient's with the codebook.
    logits, codebook = leaf(6, 8), leaf(2, 4, 3)
    args = lambda *a: ops.gumbel_quantize(*a, 1.0)[0], (logits, codebook)
    assert flops(*args) == (0, 2 * 6 * 8 * 3)
    assert flops(*args, reference=True) == (2 * 6 * 8 * 3, 3 * 2 * 6 * 8 * 3)
    # All cosines of a segment, and two products of their gradients.
    p, t = leaf(2, 5, 7), leaf(2, 5, 7)
    args = lambda *a: ops.local_contrastive(*a, negatives="all")[0], (p, t)
    assert flops(*args) == (2 * 2 * 5 * 5 * 7, 3 * 2 * 2 * 5 * 5 * 7)


@pytest.mark.parametrize("first", ["ecgfast.ops", "torch.utils.flop_counter"])
def test_flops_count_in_either_order_of_imports(first):
    script = f"""
import {first}
import sys, torch
assert ("torch.utils.flop_counter" in sys.modules) == {first != "ecgfast.ops"}
from ecgfast import ops
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    ops.global_contrastive(torch.ones(2, 3), torch.ones(2, 3), torch.arange(2), torch.arange(2))
assert counter.get_total_flops() == 24, counter.get_total_flops()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "before", ["importlib.util.find_spec(name)", "importlib.reload(importlib.import_module(name))"]
)
def test_flops_count_once_the_counter_was_looked_for_or_loaded_again(before):
    script = f"""
import importlib.util, torch
from ecgfast import ops
name = "torch.utils.flop_counter"
{before}
from torch.utils.flop_counter import FlopCounterMode
assert importlib.util.find_spec(name).loader.get_source(name).count("class FlopCounterMode") == 1
with FlopCounterMode(display=False) as counter:
    ops.global_contrastive(torch.ones(2, 3), torch.ones(2, 3), torch.arange(2), torch.arange(2))
assert counter.get_total_flops() == 24, counter.get_total_flops()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
