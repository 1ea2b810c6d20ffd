"""The variants compute what the ops' references compute, so that a ratio of times means something."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ecgfast import ops
from ecgfast.benchmarking.variants import official, tuned
from tests.ops.helpers import assert_close, generator

DTYPES = (torch.float32, torch.bfloat16)
# The variants round intermediates to bf16 where the reference rounds inputs and outputs only.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}


def values_and_gradients(function, args, leaves, dtype):
    """Outputs and gradients of the leaves, each output weighted with fixed numbers."""
    leaves = [leaf.to(dtype).detach().requires_grad_() for leaf in leaves]
    outputs = function(*leaves, *args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    g = torch.Generator().manual_seed(7)
    weights = [torch.randn(out.shape, generator=g, dtype=torch.float64) for out in outputs]
    total = sum((o * w.to(o.dtype)).sum() for o, w in zip(outputs, weights, strict=True) if o.requires_grad)
    return outputs, torch.autograd.grad(total, leaves)


def check(function, reference, leaves, dtype, args=(), reference_args=None):
    """`function` in `dtype` against `reference` in fp64, on the same (rounded) values."""
    leaves = [leaf.to(dtype) for leaf in leaves]
    got = values_and_gradients(function, args, leaves, dtype)
    reference_args = args if reference_args is None else reference_args
    want = values_and_gradients(reference, reference_args, [leaf.double() for leaf in leaves], torch.float64)
    names = [f"output {i}" for i in range(len(want[0]))] + [f"gradient {i}" for i in range(len(want[1]))]
    pairs = zip((*got[0], *got[1]), (*want[0], *want[1]), names, strict=True)
    for value, wanted, name in pairs:
        if wanted.is_floating_point():
            assert_close(value, wanted, TOLERANCE[dtype], name)
        elif wanted.dtype == torch.bool:
            # Rounding decides near ties, of which bf16 makes more.
            assert (value == wanted).float().mean() >= (1.0 if dtype == torch.float32 else 0.9)
        else:
            assert torch.equal(value, wanted), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [official.patch_embed, tuned.patch_embed])
@pytest.mark.parametrize("samples", [160, 157])
def test_patch_embed(variant, dtype, samples):
    g = generator(1)
    signal, keep = torch.randn(3, 5, samples, generator=g), torch.rand(3, 5, generator=g) > 0.3
    shapes = [(8, 5, 2), (8, 8, 2), (8, 8, 2)]
    weights = [torch.randn(s, generator=g) * 0.5 for s in shapes]
    affine = [torch.rand(8, generator=g) + 0.5, torch.randn(8, generator=g)]

    def call(function):
        return lambda s, *rest: function(s, keep, rest[:3], *rest[3:])

    check(call(variant), call(ops.patch_embed_reference), [signal, *weights, *affine], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [official.gumbel_quantize, tuned.gumbel_quantize])
def test_gumbel_quantize(variant, dtype):
    g = generator(2)
    logits, codebook = torch.randn(14, 2 * 9, generator=g) * 2, torch.randn(2, 9, 4, generator=g)
    noise = -torch.empty(14, 18).exponential_(generator=g).log()
    check(
        lambda x, c: variant(x, c, 1.7, noise),
        lambda x, c: ops.gumbel_quantize_reference(x, c, 1.7, noise=noise.double()),
        [logits, codebook],
        dtype,
    )


@pytest.mark.parametrize("variant", [official.gumbel_quantize, tuned.gumbel_quantize])
def test_gumbel_noise_follows_the_softmax(variant):
    torch.manual_seed(3)
    logits = torch.tensor([0.0, 1.0, 2.0]).repeat(20_000, 1)
    _, codes, probs = variant(logits, torch.randn(1, 3, 2), 1.0)
    share = torch.bincount(codes.flatten(), minlength=3) / len(codes)
    assert_close(share, probs[0], 0.03, "share of each entry")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["official", "tuned"])
def test_local_contrastive(name, dtype):
    g = generator(4)
    codes = torch.randint(0, 5, (3, 11, 1), generator=g)
    table = torch.randn(5, 16, generator=g).to(dtype).float()
    predictions, targets = torch.randn(3, 11, 16, generator=g), table[codes[..., 0]]
    index = ops.draw_negatives(ops.make_rng(5), torch.arange(3), 11, 6)

    def variant(p, t):
        if name == "official":
            return official.local_contrastive(p, t, 6, 0.1, index)
        return tuned.local_contrastive(p, t, codes, 6, 0.1, index)

    def reference(p, t):
        return ops.local_contrastive_reference(p, t, codes=codes, negative_index=index)

    check(variant, reference, [predictions, targets], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "variant", [official.global_contrastive, tuned.global_contrastive, tuned.global_contrastive_compiled]
)
def test_global_contrastive(variant, dtype, monkeypatch):
    monkeypatch.setattr(tuned._GlobalContrastive, "ROWS", 4)
    g = generator(6)
    groups = torch.randperm(10, generator=g), torch.randperm(10, generator=g)
    leaves = [torch.randn(10, 12, generator=g), torch.randn(10, 12, generator=g)]
    check(
        lambda a, b: variant(a, b, *groups, 0.1),
        lambda a, b: ops.global_contrastive_reference(a, b, *groups),
        leaves,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [official.nt_xent, tuned.nt_xent])
def test_nt_xent(variant, dtype):
    groups = torch.arange(10) % 5
    leaves = [torch.randn(10, 12, generator=generator(7))]
    check(
        lambda a: variant(a, groups, 0.1),
        lambda a: ops.global_contrastive_reference(a, None, groups, detach_norm=variant is tuned.nt_xent),
        leaves,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [official.lead_pairs, tuned.lead_pairs])
def test_lead_pairs(variant, dtype):
    groups, pairs = torch.arange(8), torch.combinations(torch.arange(3))
    leaves = [torch.randn(3, 8, 12, generator=generator(8))]
    check(
        lambda a: variant(a, groups, pairs, 0.1),
        lambda a: ops.global_contrastive_reference(a, None, groups, pairs=pairs),
        leaves,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [official.positional_conv, tuned.positional_conv])
@pytest.mark.parametrize(("n", "kernel"), [(13, 8), (5, 12), (20, 7), (1, 13)])
def test_positional_conv(variant, dtype, n, kernel):
    g = generator(8)
    x, weight = torch.randn(2, n, 12, generator=g), torch.randn(12, 4, kernel, generator=g) * 0.3

    def reference(x, weight, bias):
        y = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=3)
        return x + F.gelu(y[..., :n].transpose(1, 2))

    leaves = [x, weight, torch.randn(12, generator=g)]
    check(lambda *a: variant(*a, 3), reference, leaves, dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int16])
@pytest.mark.parametrize(
    "variant", [official.gather_segments, tuned.gather_segments, tuned.gather_segments_compiled]
)
def test_gather_segments(variant, dtype):
    g = generator(10)
    n_samples = torch.tensor([20, 35, 50])
    store = torch.randint(-5000, 5000, (12 * 105,), generator=g).to(torch.int16)
    offset = torch.tensor([0, 12 * 20, 12 * 55])
    which = torch.tensor([2, 0, 1, 1])
    args = store, offset[which], torch.tensor([33, 0, 18, 4]), n_samples[which], 17
    want = ops.gather_segments_reference(*args, dtype=dtype)
    got = variant(*args, dtype)
    assert got.dtype == dtype
    # bf16: rounding before or after the scale.
    assert_close(got, want, {torch.float32: 1e-7, torch.bfloat16: 1e-2, torch.int16: 0}[dtype], "signal")


@pytest.mark.parametrize("variant", [official.masks, tuned.masks])
def test_masks(variant):
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    keep, mask = variant(400, 12, 0.5, 156, 0.65, 10)
    assert keep.shape == (400, 12)
    assert abs(keep.float().mean() - 0.5) < 0.03
    _, ours = ops.span_mask(torch.arange(400), 156, 0.65, 10, ops.make_rng(9), n_masked=None)
    counts = mask.sum(1)
    assert (counts == counts[0]).all()
    # The cut to the batch minimum; the official variant draws the number of spans once for all rows.
    assert abs(counts[0] - ours.sum(1)[0]) <= 10
    runs = (mask[:, 1:] != mask[:, :-1]).sum(1).float().mean()
    assert abs(runs - (ours[:, 1:] != ours[:, :-1]).sum(1).float().mean()) < 6
