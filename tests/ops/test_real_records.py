"""The stem on inputs like those of real records: never far less exact than the fp32 reference.

Leads of an ECG are strongly correlated, have offsets and wander, and are padded with zeros; a trained model's
weights take differences of them. What variances are left there takes products of more than fp32 precision.
"""

import numpy as np
import pytest
import torch
import wfdb

import ecgfast
from ecgfast.ops import patch_embed, patch_embed_reference
from tests.ops.helpers import generator

CHANNELS = 32
LAYERS = 4
# Times the reference's error, of norms over whole tensors and several stems: a single channel whose weights
# leave little of the signal makes up most of a stem's error, so that one stem tells little.
FACTOR = 3
STEMS = (3, 4, 5, 6)


def distance(x, y):
    return ((x.double() - y).norm() / y.norm()).item()


def stem(n_leads, kind, dtype, seed):
    """Weights of which every row sums to zero where ``kind`` is "differences"."""
    g = generator(seed)
    sizes = [n_leads] + [CHANNELS] * (LAYERS - 1)
    weights = [torch.randn(CHANNELS, n, 2, generator=g) / n**0.5 for n in sizes]
    if kind == "differences":
        weights[0] = weights[0] - weights[0].mean((1, 2), keepdim=True)
    gn_weight = 1 + 0.3 * torch.randn(CHANNELS, generator=g)
    gn_bias = 0.3 * torch.randn(CHANNELS, generator=g)
    return [t.to(dtype) for t in (gn_weight, gn_bias, *weights)]


def run(function, signal, keep, parameters, upstream, lengths, dtype):
    is_int16 = signal.dtype == torch.int16
    signal = signal if is_int16 else signal.to(dtype).clone().requires_grad_()
    leaves = [t.to(dtype).clone().requires_grad_() for t in parameters]
    tokens = function(signal, keep, leaves[2:], leaves[0], leaves[1], lengths=lengths)
    tokens.backward(upstream.to(dtype))
    names = ("gn_weight", "gn_bias", *(f"weights[{i}]" for i in range(LAYERS)))
    out = {"tokens": tokens.detach()} | {n: t.grad for n, t in zip(names, leaves, strict=True)}
    return out if is_int16 else out | {"signal": signal.grad}


def check(signal, kind="plain", keep=None, lengths=None, dtype=torch.float32, upstream=None, isas=None):
    """No result is further from that in float64 than FACTOR times the reference's in ``dtype``.

    ``isas``: the kernels to compare; None: those that this machine runs by itself.
    """
    if signal.dtype != torch.int16:
        signal = signal.to(dtype)
    if upstream is None:
        shape = signal.shape[0], signal.shape[2] >> LAYERS, CHANNELS
        upstream = torch.randn(shape, generator=generator(1)).to(dtype)
    exact = signal.double() * 1e-3 if signal.dtype == torch.int16 else signal
    errors = {}
    before = ecgfast.cpu_isa()
    for seed in STEMS:
        parameters = stem(signal.shape[1], kind, dtype, seed)
        want = run(patch_embed_reference, exact, keep, parameters, upstream, lengths, torch.float64)
        plain = run(patch_embed_reference, signal, keep, parameters, upstream, lengths, dtype)
        for isa in isas or (before,):
            ecgfast.set_cpu_isa(isa)
            try:
                got = run(patch_embed, signal, keep, parameters, upstream, lengths, dtype)
            finally:
                ecgfast.set_cpu_isa(before)
            for name, value in got.items():
                pair = distance(value, want[name]), distance(plain[name], want[name])
                errors.setdefault((isa, name), []).append(pair)
    for (isa, name), pairs in errors.items():
        ours, theirs = torch.tensor(pairs).norm(dim=0).tolist()
        assert ours <= FACTOR * theirs, f"{isa}, {name}: {ours:.2e} off, the reference {theirs:.2e}"


ISAS = ecgfast.usable_cpu_isas()


def beats(n_records=2, samples=2500):
    """Twelve leads of three dipole-like sources with beats, offsets, wander and little noise, in mV."""
    g = generator(5)
    t = torch.arange(samples) / 500
    phase = (
        t[None] * (1 + torch.rand(n_records, 1, generator=g)) + torch.rand(n_records, 1, generator=g)
    ) % 1
    waves = [
        torch.exp(-(((phase - at) / width) ** 2)) for at, width in ((0.3, 0.03), (0.4, 0.01), (0.65, 0.06))
    ]
    sources = torch.stack([0.15 * waves[0], 1.2 * waves[1], 0.3 * waves[2]], 1)
    leads = torch.einsum("blk,bkt->blt", torch.randn(n_records, 12, 3, generator=g), sources)
    wander = 0.2 * torch.sin(2 * torch.pi * 0.3 * t) * torch.randn(n_records, 12, 1, generator=g)
    return leads + wander + 0.005 * torch.randn(n_records, 12, samples, generator=g)


def padded(signal, n):
    return torch.where(torch.arange(signal.shape[2]) < n, signal, 0.0)


def near_duplicates(signal):
    return signal[:, :1] + 1e-3 * torch.randn(signal.shape, generator=generator(2))


def two_leads_and_a_step(signal):
    out = torch.zeros_like(signal)
    out[:, 0], out[:, 1] = 5 + 0.2 * signal[:, 0], 3 + 0.2 * signal[:, 1]
    return padded(out, 1250)


def wandering(signal):
    return signal + 3 * torch.sin(torch.arange(signal.shape[2]) * (2 * torch.pi * 0.2 / 500))


CASES = {
    "as it is": lambda x: x,
    "padded": lambda x: padded(x, 1203),
    "padded to eight times": lambda x: padded(x, 312),
    "offset": lambda x: x + 10,
    "offsets, padded": lambda x: padded(x + torch.linspace(-10, 10, x.shape[1])[:, None], 1250),
    "two leads and a step": two_leads_and_a_step,
    "one lead": lambda x: x[:, :1],
    "duplicated leads": lambda x: x[:, :1].expand(-1, 12, -1),
    "nearly duplicated leads": near_duplicates,
    "wander": wandering,
}


@pytest.mark.parametrize("kind", ["plain", "differences"])
@pytest.mark.parametrize("case", CASES)
def test_correlated_leads_on_every_isa(case, kind):
    check(CASES[case](beats()), kind, isas=ISAS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_half_precisions(case, dtype):
    check(CASES[case](beats()), "differences", dtype=dtype, isas=ISAS)


def test_gradients_that_have_a_mean():
    shape = 2, 2500 >> LAYERS, CHANNELS
    check(beats(), upstream=1 + 0.1 * torch.randn(shape, generator=generator(1)), isas=ISAS)


def test_lengths():
    check(beats(), "differences", lengths=torch.tensor([1203, 312]), isas=ISAS)


def test_the_step_that_showed_it():
    g = generator(0)
    weights = [torch.randn(256, 12, 2, generator=g) / 5]
    weights += [torch.randn(256, 256, 2, generator=g) / 22 for _ in range(3)]
    x = torch.zeros(1, 12, 2500)
    x[0, 0] = 5 + 0.2 * torch.randn(2500, generator=g)
    x[0, 1] = 3 + 0.2 * torch.randn(2500, generator=g)
    x[..., 1250:] = 0
    ones, zeros = torch.ones(256), torch.zeros(256)
    got = patch_embed(x, None, weights, ones, zeros)
    wide = [w.double() for w in weights]
    want = patch_embed_reference(x.double(), None, wide, ones.double(), zeros.double())
    assert distance(got, want) < 2e-6


def records(folder, n_leads, every, samples=2500):
    found = []
    for header in sorted(folder.rglob("*.hea"))[::every]:
        signal = np.nan_to_num(wfdb.rdrecord(str(header.with_suffix(""))).p_signal).T
        if signal.shape[0] >= n_leads and signal.shape[1] >= samples:
            found.append(torch.tensor(signal[:n_leads, :samples].copy()).float())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("name", "n_leads", "every"),
    [("ludb", 12, 50), ("cinc", 12, 19), ("ptbxl_subset", 12, 290), ("ecgid", 1, 60)],
)
@pytest.mark.parametrize("kind", ["plain", "differences"])
def test_real_records(name, n_leads, every, kind, shared):
    signal = records(shared(f"data/{name}"), n_leads, every)
    check(signal, kind)
    check(padded(signal, 1000), kind)
    check(padded(signal + 10, 333), kind)
    check(wandering(signal), kind)
    check((signal * 1000).round().clamp(-32768, 32767).to(torch.int16), kind)
    keep = torch.zeros(signal.shape[:2], dtype=torch.bool)
    keep[:, -1] = True
    check(signal, kind, keep=keep)
