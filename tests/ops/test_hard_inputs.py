"""The ops on inputs as real records and trained or collapsed models make them: see hard_inputs.py."""

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from ecgfast import ops
from ecgfast.ops import make_rng
from tests.ops.hard_inputs import LOGITS, ROWS, TOKENS, never_worse
from tests.ops.helpers import generator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pair(kind, shape):
    """Two independent sets of rows; two that are alike; two halves of one set."""

    def apart(g):
        return ROWS[kind](shape, g), ROWS[kind](shape, g)

    def aligned(g):
        x = ROWS[kind](shape, g)
        noise = torch.randn(shape, generator=g, dtype=torch.float64)
        return x, x + 1e-2 * x.norm() / x.numel() ** 0.5 * noise

    def together(g):
        x = ROWS[kind]((*shape[:-2], 2 * shape[-2], shape[-1]), g)
        return tuple(half.clone() for half in x.chunk(2, dim=-2))

    return {"apart": apart, "aligned": aligned, "together": together}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alike", ["apart", "aligned", "together"])
@pytest.mark.parametrize("kind", ROWS)
def test_local_contrastive(kind, alike, dtype):
    codes = torch.randint(0, 6, (2, 40, 2), generator=generator(5), dtype=torch.int32)
    settings = {"rng": make_rng(1), "sample_ids": torch.arange(2), "n_negatives": 30}
    make = pair(kind, (2, 40, 64))[alike]
    for temperature, given in ((0.1, None), (0.1, codes), (0.01, codes)):

        def loss(p, t, temperature=temperature, given=given):
            return ops.local_contrastive(p, t, codes=given, temperature=temperature, **settings)[:1]

        names = ("loss", "predictions", "targets")
        never_worse(loss, make, dtype, names, sharpness=1 / temperature)


def test_local_contrastive_of_equal_targets():
    """Given as codes that differ, or as vectors, of which none is then a negative."""
    codes = torch.arange(40, dtype=torch.int32).view(1, 40, 1)

    def make(g):
        return torch.randn(1, 40, 64, generator=g).double(), ROWS["all equal"]((1, 40, 64), g)

    for given in (codes, None):
        never_worse(
            lambda p, t, given=given: ops.local_contrastive(p, t, codes=given, negatives="all")[:1],
            make,
            torch.float32,
            ("loss", "predictions", "targets"),
            sharpness=10,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alike", ["apart", "aligned", "together"])
@pytest.mark.parametrize("kind", ROWS)
def test_global_contrastive(kind, alike, dtype):
    n, make = 64, pair(kind, (64, 96))[alike]
    each = torch.arange(n)
    many = torch.randint(0, 8, (n,), generator=generator(5))
    for groups, temperature, detach_norm in (
        (each, 0.1, True),
        (each, 0.1, False),
        (each, 0.02, True),
        (many, 0.1, True),
        (many, 0.02, False),
    ):
        settings = {"temperature": temperature, "detach_norm": detach_norm}

        def loss(a, b, groups=groups, settings=settings):
            return (ops.global_contrastive(a, b, groups, groups, **settings),)

        never_worse(loss, make, dtype, ("loss", "a", "b"), sharpness=1 / temperature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "correlated", "near duplicates", "all equal", "large norms"])
@pytest.mark.parametrize("op", ["local", "global"])
def test_the_gradient_of_a_temperature(op, kind, dtype):
    groups = torch.arange(40)

    def loss(a, b, temperature):
        if op == "local":
            return ops.local_contrastive(a[None], b[None], temperature=temperature, negatives="all")[:1]
        return (ops.global_contrastive(a, b, groups, groups, temperature=temperature),)

    for temperature in (0.1, 0.02):
        never_worse(
            loss,
            lambda g, t=temperature: (*pair(kind, (40, 64))["apart"](g), torch.tensor(t).double()),
            dtype,
            ("loss", "a", "b", "temperature"),
            sharpness=1 / temperature,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codebook", ["normal", "all equal", "large norms", "correlated", "duplicates"])
@pytest.mark.parametrize("kind", LOGITS)
def test_gumbel_quantize(kind, codebook, dtype):
    def make(g):
        logits = torch.cat([LOGITS[kind]((60, 64), g) for _ in range(2)], dim=1)
        return logits, ROWS[codebook]((2, 64, 32), g)

    for temperature, rng, hard in ((2.0, make_rng(3), True), (0.05, make_rng(3), True), (0.5, None, False)):

        def quantize(logits, codebook, temperature=temperature, rng=rng, hard=hard):
            quantized, _, probs = ops.gumbel_quantize(logits, codebook, temperature, rng=rng, hard=hard)
            return quantized, probs

        never_worse(quantize, make, dtype, ("quantized", "mean_probs", "logits", "codebook"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "taps"), [(40, 16), (156, 128), (400, 8)])
@pytest.mark.parametrize("kind", TOKENS)
def test_positional_conv(kind, tokens, taps, dtype):
    def make(g):
        weight = (torch.randn(24, 12, taps, generator=g, dtype=torch.float64) + 0.5) / (12 * taps) ** 0.5
        return TOKENS[kind]((2, tokens, 24), g), weight, torch.randn(24, generator=g, dtype=torch.float64)

    def conv(x, weight, bias):
        return (ops.positional_conv(x, weight, bias, 2),)

    never_worse(conv, make, dtype, ("out", "x", "weight", "bias"))


@pytest.fixture
def tokens(shared):
    """Features of real records, padded and not, as a stem with random weights makes them: [10, 78, 64]."""
    paths = sorted(shared("data/cinc").rglob("*.mat"))[:10]
    signals = [loadmat(path)["val"][:12, :1250].astype(np.float64) / 1000 for path in paths]
    signal = torch.stack([torch.from_numpy(s) for s in signals])
    signal[5:, :, 700:] = 0
    g = generator(3)
    weights = [torch.randn(64, c, 2, generator=g).double() / (2 * c) ** 0.5 for c in (12, 64, 64, 64)]
    x = ops.patch_embed(signal, None, weights, torch.ones(64).double(), torch.zeros(64).double())
    return torch.nn.functional.layer_norm(x, (64,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_of_real_records(tokens, dtype):
    targets = tokens[:, 20:60].roll(1, dims=1) + 0.1 * tokens[:, 10:50]
    never_worse(
        lambda p, t: ops.local_contrastive(p, t, negatives="all")[:1],
        lambda _: (tokens[:, 20:60].clone(), targets),
        dtype,
        ("loss", "predictions", "targets"),
        seeds=(0,),
    )
    groups = torch.arange(10)
    means = tokens[:, :39].mean(1), tokens[:, 39:].mean(1)
    for detach_norm in (True, False):
        never_worse(
            lambda a, b, d=detach_norm: (ops.global_contrastive(a, b, groups, groups, detach_norm=d),),
            lambda _: means,
            dtype,
            ("loss", "a", "b"),
            seeds=(0,),
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_positions_of_real_records(tokens, dtype):
    def make(g):
        weight = torch.randn(64, 16, 32, generator=g, dtype=torch.float64) / (16 * 32) ** 0.5
        return tokens, weight, torch.randn(64, generator=g, dtype=torch.float64)

    never_worse(
        lambda x, w, b: (ops.positional_conv(x, w, b, 4),), make, dtype, ("out", "x", "weight", "bias")
    )
