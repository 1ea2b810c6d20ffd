"""What no op may do: differentiate twice silently, read past its arguments, lose a NaN, hang."""

import sys

import pytest
import torch

from ecgfast import ops
from ecgfast.ops import make_rng

direct = torch.ops.ecgfast


def outputs(op):
    x = torch.randn(2, 6, 8, requires_grad=True)
    if op == "local_contrastive":
        return x, ops.local_contrastive(x, torch.randn(2, 6, 8), negatives="all")[0]
    if op == "global_contrastive":
        groups = torch.arange(6)
        return x, ops.global_contrastive(x[0], x[1], groups, groups)
    if op == "gumbel_quantize":
        return x, ops.gumbel_quantize(x.flatten(0, 1), torch.randn(2, 4, 3), 1.0)[0]
    if op == "positional_conv":
        return x, ops.positional_conv(x, torch.randn(8, 4, 3), torch.randn(8), 2)
    weights = [torch.randn(4, 6, 2), torch.randn(4, 4, 2)]
    return x, ops.patch_embed(x, None, weights, torch.ones(4), torch.zeros(4))


@pytest.mark.parametrize(
    "op",
    ["local_contrastive", "global_contrastive", "gumbel_quantize", "positional_conv", "patch_embed"],
)
def test_a_second_derivative_is_refused(op):
    x, y = outputs(op)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{op}: has no second derivative"):
        gradient.square().sum().backward()
    with ops.use_reference():
        x, y = outputs(op)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    "op", ["local_contrastive", "global_contrastive", "gumbel_quantize", "positional_conv"]
)
def test_eager_calls_and_the_registered_op_have_the_same_gradients(op, monkeypatch):
    torch.manual_seed(0)
    x, y = outputs(op)
    assert type(y.grad_fn).__name__ == f"{op}Backward"
    (eager,) = torch.autograd.grad(y.square().sum(), x)
    monkeypatch.setattr(sys.modules[f"ecgfast.ops.{op}"], "_call", getattr(direct, op))
    torch.manual_seed(0)
    x, y = outputs(op)
    assert type(y.grad_fn).__name__.startswith("GeneratedBackwardFor_ecgfast")
    (registered,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(eager, registered)


def test_vmap_and_tracing_take_the_registered_op():
    x, other, groups = torch.randn(3, 6, 8), torch.randn(6, 8), torch.arange(6)

    def loss(x):
        return ops.global_contrastive(x, other, groups, groups)

    want = torch.stack([loss(one) for one in x])
    assert torch.equal(torch.vmap(loss)(x), want)
    traced = torch.jit.trace(loss, x[0], check_trace=False)
    assert "ecgfast::global_contrastive" in str(traced.graph)


def test_direct_calls_are_checked():
    x, empty = torch.randn(1, 3, 4), torch.zeros(0, dtype=torch.int64)
    big = torch.randn(1, 30, 64)
    index = torch.zeros(1, 3, 2, dtype=torch.int64)
    weights = [torch.randn(4, 3, 2), torch.randn(4, 4, 2)]
    tokens = torch.randn(1, 1, 4)
    bad_saved = torch.zeros(2 * 1 * 64, dtype=torch.int8)
    calls = [
        lambda: direct.positional_conv_backward(x, x, torch.randn(4, 4, 3), x, 0, True, True, False),
        lambda: direct.positional_conv_backward(big, big, torch.randn(1, 1, 128), big, 1, True, True, False),
        lambda: direct.gumbel_quantize(
            torch.randn(4, 6), torch.randn(2, 3, 4), torch.ones(()), None, empty, None, True, False, False
        ),
        lambda: direct.local_contrastive(x, x, None, index, empty, None, 2, 0.1, False, False, False),
        lambda: direct.local_contrastive(
            x, x, None, None, make_rng(0), torch.arange(1), 2**62, 0.1, False, False, False
        ),
        lambda: direct.patch_embed_backward(
            tokens, x, None, weights, torch.ones(4), torch.zeros(4), [], 1e-5, None, bad_saved, False, False
        ),
        lambda: direct.lead_mask(torch.arange(2), 12, 0.5, empty, False),
        lambda: direct.span_mask(torch.arange(2), 12, 0.5, 3, empty, None, 4),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"csrc/torch/.*, \w+: "):
            call()


def test_the_forward_pass_without_backward_says_so():
    weights = [torch.randn(4, 3, 2, requires_grad=True)]
    signal, none = torch.randn(1, 3, 4), None
    args = (signal, none, weights, torch.ones(4), torch.zeros(4), [], 1e-5, none, False, False)
    with pytest.raises(RuntimeError, match="the forward pass ran with for_backward=False"):
        direct.patch_embed(*args)[0].sum().backward()


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_the_global_loss_keeps_a_nan(temperature):
    a, b, groups = torch.randn(24, 8), torch.randn(24, 8), torch.arange(24)
    other = groups.clone()
    other[0] = 99
    a[0, 0] = torch.nan
    assert ops.global_contrastive(a, b, other, groups, temperature=temperature).isnan()


def test_a_stem_of_more_leads_than_channels():
    signal, weights = torch.randn(2, 600, 16), [torch.randn(4, 600, 2) / 30]
    parameters = torch.ones(4), torch.zeros(4)
    got = ops.patch_embed(signal, None, weights, *parameters)
    torch.testing.assert_close(
        got, ops.patch_embed_reference(signal, None, weights, *parameters), rtol=1e-4, atol=1e-4
    )


def test_spans_of_any_length():
    want, _ = ops.span_mask(torch.arange(3), 19, 0.5, 19, make_rng(0), n_masked=None)
    got, _ = ops.span_mask(torch.arange(3), 19, 0.5, 2**62, make_rng(0), n_masked=None)
    assert got.shape[1] > 0
    assert want.shape[1] > 0


def test_nan_logits_are_never_chosen():
    logits = torch.randn(1, 40)
    logits[0, 5] = torch.nan
    logits[0, 21] = 50.0
    _, codes, _ = ops.gumbel_quantize(logits, torch.randn(1, 40, 2), 1.0)
    assert codes.item() == 21


def test_references_accumulate_in_full_precision_under_autocast():
    a, b, groups = torch.randn(9, 8), torch.randn(9, 8), torch.arange(9)
    plain = ops.global_contrastive_reference(a, b, groups, groups)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.global_contrastive_reference(a, b, groups, groups).equal(plain)
        mixed = ops.global_contrastive(a.bfloat16(), b, groups, groups)
        assert mixed.dtype == torch.float32
        codebook = torch.randn(2, 5, 4)
        quantized, codes, _ = ops.gumbel_quantize_reference(torch.randn(6, 10), codebook, 1.0)
    rows = torch.cat([codebook[g][codes[:, g].long()] for g in range(2)], dim=1)
    torch.testing.assert_close(quantized, rows, rtol=0, atol=1e-6)


def test_the_reference_of_the_local_loss_takes_empty_tensors():
    for shape in ((2, 0, 4), (0, 3, 4), (2, 3, 0)):
        x = torch.randn(shape)
        loss, _ = ops.local_contrastive_reference(x, x, negatives="all")
        assert loss.shape == shape[:2]


@pytest.mark.parametrize("n_masked", [None, 5])
@pytest.mark.parametrize("lengths", [None, torch.tensor([9, 12])])
def test_opcheck_masks(n_masked, lengths):
    ids, rng = torch.arange(2), make_rng(1)
    torch.library.opcheck(direct.lead_mask.default, (ids, 12, 0.5, rng, True))
    torch.library.opcheck(direct.span_mask.default, (ids, 12, 0.5, 3, rng, lengths, n_masked))
