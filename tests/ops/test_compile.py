"""Every op inside ``torch.compile(fullgraph=True)``, forward and backward, static and dynamic shapes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

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


def dynamic_lead_mask(i):
    b, n_leads, p = ((4, 12, 0.5), (5, 8, 0.25), (7, 3, 0.75))[i % 3]
    return ops.lead_mask, (torch.arange(b), n_leads, p + i / 100, ops.make_rng(1, i))


def dynamic_span_mask(i):
    def function(ids, n_tokens, prob, length, rng, lengths, n_masked):
        return ops.span_mask(ids, n_tokens, prob, length, rng, lengths=lengths, n_masked=n_masked)

    b, n, prob, length, m = ((4, 31, 0.5, 4, 14), (5, 40, 0.25, 3, 13), (7, 55, 0.75, 6, 4))[i % 3]
    return function, (torch.arange(b), n, prob + i / 100, length, ops.make_rng(1, i), torch.arange(b) + 9, m)


def dynamic_span_mask_of_drawn_size(i):
    def function(ids, n_tokens, prob, length, rng):
        index, mask = ops.span_mask(ids, n_tokens, prob, length, rng, n_masked=None)
        return index * 2, mask

    b, n, prob, length = ((4, 31, 0.5, 4), (5, 40, 0.25, 3), (7, 55, 0.75, 6))[i % 3]
    return function, (torch.arange(b), n, prob + i / 100, length, ops.make_rng(1, i))


def dynamic_local_contrastive(i):
    def function(p, t, codes, n, temperature, ids, rng):
        return ops.local_contrastive(
            p, t, codes=codes, n_negatives=n, temperature=temperature, rng=rng, sample_ids=ids
        )

    b, m, d, n, temperature = ((2, 5, 8, 6, 0.2), (3, 7, 6, 9, 0.3), (4, 9, 5, 4, 0.4))[i % 3]
    p, t = torch.randn(b, m, d, requires_grad=True), torch.randn(b, m, d, requires_grad=True)
    codes = torch.arange(b * m * 2).view(b, m, 2) % 5
    return function, (p, t, codes, n, temperature + i / 100, torch.arange(b), ops.make_rng(1, i))


def dynamic_local_contrastive_with_given_negatives(i):
    def function(p, t, index, temperature):
        loss, correct = ops.local_contrastive(p, t, negative_index=index, temperature=temperature)
        return loss, correct, ops.local_contrastive(p, t, negatives="all", temperature=temperature)[0]

    b, m, d, temperature = ((2, 5, 8, 0.2), (3, 7, 6, 0.3), (4, 9, 5, 0.4))[i % 3]
    p, t = torch.randn(b, m, d, requires_grad=True), torch.randn(b, m, d, requires_grad=True)
    return function, (p, t, torch.arange(b * m * 3).view(b, m, 3) % m, temperature + i / 100)


def dynamic_global_contrastive(i):
    def function(a, b, groups, temperature):
        return ops.global_contrastive(a, b, groups, groups, temperature=temperature)

    n, d, temperature = ((4, 8, 0.2), (5, 6, 0.3), (7, 9, 0.4))[i % 3]
    a, b = torch.randn(n, d, requires_grad=True), torch.randn(n, d, requires_grad=True)
    return function, (a, b, torch.arange(n) % 3, temperature + i / 100)


def dynamic_gumbel_quantize(i):
    def function(logits, codebook, temperature, ids, rng):
        return ops.gumbel_quantize(logits, codebook, temperature, rng=rng, sample_ids=ids)

    b, g, v, d, temperature = ((4, 2, 5, 4, 0.5), (5, 3, 7, 8, 1.5), (7, 4, 8, 9, 1.25))[i % 3]
    logits, codebook = torch.randn(b * 3, g * v, requires_grad=True), torch.randn(g, v, d, requires_grad=True)
    return function, (logits, codebook, temperature + i / 100, torch.arange(b), ops.make_rng(1, i))


def dynamic_positional_conv(i):
    b, n, e, groups, k = ((4, 9, 16, 2, 4), (5, 8, 24, 3, 5), (7, 10, 40, 5, 7))[i % 3]
    x, bias = torch.randn(b, n, e, requires_grad=True), torch.randn(e, requires_grad=True)
    return ops.positional_conv, (x, torch.randn(e, e // groups, k, requires_grad=True), bias, groups)


def dynamic_patch_embed(i):
    def function(signal, keep, scale, shift, eps, *weights):
        return ops.patch_embed(signal, keep, weights, scale, shift, eps=eps)

    b, leads, t, c, eps = ((4, 12, 64, 8, 1e-5), (5, 8, 70, 9, 1e-4), (7, 3, 99, 12, 1e-3))[i % 3]
    weights = [torch.randn(c, n, 2, requires_grad=True) for n in (leads, c, c)]
    scale, shift = torch.randn(c, requires_grad=True), torch.randn(c, requires_grad=True)
    signal = torch.randn(b, leads, t, requires_grad=True)
    return function, (signal, torch.rand(b, leads) > 0.3, scale, shift, eps * (1 + i), *weights)


def dynamic_gather_segments(i):
    def function(store, offset, start, n_samples, length, lead_index):
        return ops.gather_segments(store, offset, start, n_samples, length, lead_index=lead_index)

    b, length, leads = ((4, 20, [1, -1, 7]), (5, 21, [0, 3]), (7, 9, [2, 4, 6, 8]))[i % 3]
    store, start = torch.arange(12 * 50 * b, dtype=torch.int16), torch.arange(b)
    return function, (store, start * 600, start, torch.full((b,), 50), length, torch.tensor(leads))


DYNAMIC = [v for k, v in sorted(globals().items()) if k.startswith("dynamic_")]


@pytest.mark.parametrize("case", DYNAMIC, ids=lambda c: c.__name__.removeprefix("dynamic_"))
def test_compiles_whole_with_dynamic_sizes_and_numbers(case):
    """All sizes and numbers change, more often than the compiler would compile again."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case(0)[0], fullgraph=True, backend=counter, dynamic=True)
    for i in range(12):
        function, inputs = case(i)
        got, want = compiled(*inputs), function(*inputs)
        as_tuple = (lambda x: x) if isinstance(want, tuple) else (lambda x: (x,))
        for x, y in zip(as_tuple(got), as_tuple(want), strict=True):
            torch.testing.assert_close(x, y, rtol=0 if x.dtype != torch.float32 else 1e-5, atol=1e-5)
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        for x, y in zip(gradients(got, tensors), gradients(want, tensors), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2, "compiled again for other numbers"


@pytest.mark.parametrize("case", DYNAMIC, ids=lambda c: c.__name__.removeprefix("dynamic_"))
def test_references_compile_with_dynamic_sizes_and_numbers(case):
    torch._dynamo.reset()
    torch.manual_seed(0)
    with ops.use_reference():
        compiled = torch.compile(case(0)[0], fullgraph=True, backend="eager", dynamic=True)
        for i in range(5):
            function, inputs = case(i)
            torch.testing.assert_close(compiled(*inputs), function(*inputs))
