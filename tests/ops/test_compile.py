"""Every op inside ``torch.compile(fullgraph=True)``, forward and backward, static and dynamic shapes."""

import pytest
import torch

from ecgfast import ops


def case_lead_mask(b):
    ids, rng = torch.arange(b), ops.make_rng(1, 2)
    return lambda ids, rng: ops.lead_mask(ids, 12, 0.5, rng), (ids, rng)


def case_span_mask(b):
    def function(ids, rng):
        return ops.span_mask(ids, 31, 0.65, 4, rng, n_masked=14)

    return function, (torch.arange(b), ops.make_rng(1, 2))


def case_local_contrastive(b):
    p, t = torch.randn(b, 9, 16, requires_grad=True), torch.randn(b, 9, 16, requires_grad=True)

    def function(p, t, ids, rng):
        loss, correct = ops.local_contrastive(p.sin(), t, rng=rng, sample_ids=ids, n_negatives=8)
        return loss * 2, correct

    return function, (p, t, torch.arange(b), ops.make_rng(1, 2))


def case_patch_embed(b):
    signal = torch.randn(b, 12, 64)
    weights = [torch.randn(8, c, 2, requires_grad=True) for c in (12, 8, 8, 8)]
    gn = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)

    def function(signal, keep, *parameters):
        return (ops.patch_embed(signal, keep, parameters[2:], *parameters[:2]),)

    return function, (signal, torch.rand(b, 12) > 0.5, *gn, *weights)


def case_gumbel_quantize(b):
    logits = torch.randn(b * 3, 2 * 5, requires_grad=True)
    codebook = torch.randn(2, 5, 4, requires_grad=True)

    def function(logits, codebook, ids, rng):
        return ops.gumbel_quantize(logits, codebook, 1.5, rng=rng, sample_ids=ids)

    return function, (logits, codebook, torch.arange(b), ops.make_rng(1, 2))


def case_global_contrastive(b):
    a, z = torch.randn(b, 16, requires_grad=True), torch.randn(b, 16, requires_grad=True)

    def function(a, z, groups):
        return (ops.global_contrastive(a, z, groups, groups),)

    return function, (a, z, torch.arange(b))


def case_positional_conv(b):
    x = torch.randn(b, 9, 16, requires_grad=True)
    weight, bias = torch.randn(16, 8, 4, requires_grad=True), torch.randn(16, requires_grad=True)

    def function(x, weight, bias):
        return ops.positional_conv(x.sin(), weight, bias, 2) * 2

    return function, (x, weight, bias)


def case_gather_segments(b):
    store = torch.arange(12 * 50 * b, dtype=torch.int16)

    def function(store, offset, start, n_samples, lead_index):
        return ops.gather_segments(store, offset, start, n_samples, 20, lead_index=lead_index) * 2

    start, n_samples = torch.arange(b), torch.full((b,), 50)
    return function, (store, start * 600, start, n_samples, torch.tensor([1, -1, 7]))


CASES = [v for k, v in sorted(globals().items()) if k.startswith("case_")]


def gradients(outputs, inputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum(o.float().square().sum() for o in outputs if o.requires_grad)
    leaves = [x for x in inputs if x.requires_grad]
    return torch.autograd.grad(total, leaves) if leaves else ()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__.removeprefix("case_"))
def test_compiles_whole(case):
    torch._dynamo.reset()
    torch.manual_seed(0)
    function, _ = case(4)
    # The graph of the traced joint forward and backward; the code generator is not what is tested.
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=None)
    for b in (4, 6, 7):
        _, inputs = case(b)
        got, want = compiled(*inputs), function(*inputs)
        as_tuple = (lambda x: x) if isinstance(want, tuple) else (lambda x: (x,))
        for x, y in zip(as_tuple(got), as_tuple(want), strict=True):
            torch.testing.assert_close(x, y)
        for x, y in zip(gradients(got, inputs), gradients(want, inputs), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
