"""The stem: kernel against reference, over dtypes, shapes, ISAs and thread counts."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import ecgfast
from ecgfast.ops import patch_embed, patch_embed_reference
from tests.ops.helpers import DTYPES, assert_close, generator, strided

# Activations of the half precisions are rounded after every layer, in the kernel as in PyTorch.
STEM_TOLERANCE = {
    torch.float64: (1e-11, 1e-10),
    torch.float32: (4e-6, 2e-5),
    torch.float16: (4e-3, 1e-2),
    torch.bfloat16: (3e-2, 6e-2),
}


def make_inputs(b, n_leads, t, c, dtype, seed, layers=4, bias=False):
    g = generator(seed)

    def randn(*shape, scale=1.0):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype)

    signal = randn(b, n_leads, t) + 0.5
    keep = torch.rand(b, n_leads, generator=g) > 0.4
    sizes = [n_leads, *[c] * (layers - 1)]
    weights = [randn(c, s, 2, scale=(2.0 / s) ** 0.5) for s in sizes]
    gn_weight, gn_bias = randn(c, scale=0.3) + 1.0, randn(c, scale=0.1)
    biases = [randn(c, scale=0.1) for _ in sizes] if bias else None
    return signal, keep, weights, gn_weight, gn_bias, biases


def run(function, inputs, upstream, for_signal=True, device="cpu", lengths=None):
    signal, keep, weights, gn_weight, gn_bias, biases = inputs
    keep = None if keep is None else keep.to(device)
    signal = signal.detach().clone().to(device).requires_grad_(for_signal)
    parameters = (*weights, gn_weight, gn_bias, *(biases or ()))
    leaves = [t.detach().clone().to(device).requires_grad_() for t in parameters]
    n = len(weights)
    tokens = function(
        signal,
        keep,
        leaves[:n],
        leaves[n],
        leaves[n + 1],
        biases=leaves[n + 2 :] if biases else None,
        lengths=None if lengths is None else lengths.to(device),
    )
    tokens.backward(upstream.to(device, tokens.dtype))
    signal_grad = signal.grad.cpu() if for_signal else None
    return tokens.detach().cpu(), [t.grad.cpu() for t in leaves], signal_grad


@contextmanager
def set_isa(isa):
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        yield
    finally:
        ecgfast.set_cpu_isa(previous)


def double(inputs):
    signal, keep, weights, gn_weight, gn_bias, biases = inputs
    if signal.dtype == torch.int16:
        signal = signal.double() * 1e-3
    wide = [w.double() for w in weights]
    wide_biases = [b.double() for b in biases] if biases else None
    return signal.double(), keep, wide, gn_weight.double(), gn_bias.double(), wide_biases


def compare(inputs, for_signal=True, device="cpu", lengths=None):
    dtype = inputs[3].dtype
    signal, weights = inputs[0], inputs[2]
    shape = signal.shape[0], signal.shape[2] >> len(weights), inputs[3].shape[0]
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    got = run(patch_embed, inputs, upstream, for_signal, device, lengths)
    want = run(patch_embed_reference, double(inputs), upstream, for_signal, lengths=lengths)
    value_tolerance, grad_tolerance = STEM_TOLERANCE[dtype]
    assert_close(got[0], want[0], value_tolerance, "tokens")
    for i, (x, y) in enumerate(zip(got[1], want[1], strict=True)):
        if inputs[5] is not None and i == len(weights) + 2:  # the norm cancels layer 0's bias
            assert x.abs().max() == 0
            continue
        assert_close(x, y, grad_tolerance, f"gradient {i}")
    if for_signal:
        assert_close(got[2], want[2], grad_tolerance, "gradient of the signal")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("b", "n_leads", "t", "c"),
    [(1, 1, 16, 1), (2, 2, 33, 7), (3, 12, 250, 32), (2, 15, 131, 50), (1, 12, 2500, 64)],
)
def test_kernel_equals_reference(dtype, b, n_leads, t, c):
    compare(make_inputs(b, n_leads, t, c, dtype, seed=t + c))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize(
    ("b", "n_leads", "t", "c", "layers", "bias"),
    [
        (2, 2, 33, 7, 3, True),
        (3, 12, 250, 32, 4, False),
        (2, 15, 131, 50, 2, True),
        (5, 12, 2500, 256, 4, False),
        (2, 3, 5000, 300, 5, True),
    ],
)
def test_cuda_kernel_equals_reference(dtype, b, n_leads, t, c, layers, bias):
    compare(make_inputs(b, n_leads, t, c, dtype, seed=t + c, layers=layers, bias=bias), device="cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_cuda_lengths(dtype):
    inputs = make_inputs(5, 12, 1000, 72, dtype, seed=5)
    compare(inputs, device="cuda", lengths=torch.tensor([1000, 999, 513, 400, 37]))


@pytest.mark.cuda
def test_cuda_takes_int16_and_gives_the_same_bits_again():
    signal, *rest = make_inputs(40, 12, 2500, 256, torch.bfloat16, seed=7)
    inputs = ((signal.double() * 1000).round().to(torch.int16), *rest)
    compare(inputs, for_signal=False, device="cuda")
    upstream = torch.ones(40, 156, 256)
    first, again = (run(patch_embed, inputs, upstream, False, "cuda") for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(x, y) for x, y in zip(first[1], again[1], strict=True))


@pytest.mark.cuda
def test_cuda_stems_beyond_the_kernels_run_the_reference():
    for n_leads, layers in ((16, 2), (3, 1)):
        inputs = make_inputs(2, n_leads, 64, 8, torch.bfloat16, seed=1, layers=layers)
        compare(inputs, device="cuda")


@pytest.mark.cuda
def test_cuda_empty():
    for b, t in ((0, 64), (2, 15)):
        inputs = make_inputs(b, 3, t, 8, torch.float32, seed=1)
        tokens, grads, signal_grad = run(patch_embed, inputs, torch.ones(b, t >> 4, 8), device="cuda")
        assert tokens.shape == (b, t >> 4, 8)
        assert not any(g.any() for g in (*grads, signal_grad))


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_layers_with_bias(layers, dtype):
    compare(make_inputs(2, 3, 700, 24, dtype, seed=layers, layers=layers, bias=True))


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_every_isa(isa):
    with set_isa(isa):
        for dtype in DTYPES:
            compare(make_inputs(2, 12, 1000, 72, dtype, seed=5, bias=True))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    b=st.integers(0, 4),
    n_leads=st.integers(1, 15),
    t=st.integers(0, 400),
    c=st.integers(1, 70),
    layers=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape(b, n_leads, t, c, layers, dtype):
    inputs = make_inputs(b, n_leads, t, c, dtype, seed=b + t, layers=layers)
    tokens = t >> layers
    if b == 0 or tokens < 2:  # a norm over one patch divides rounding errors by themselves
        signal, keep, weights, gn_weight, gn_bias, _ = inputs
        assert patch_embed(signal, keep, weights, gn_weight, gn_bias).shape == (b, tokens, c)
        return
    compare(inputs)


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_lengths_on_every_isa(isa):
    with set_isa(isa):
        for dtype in DTYPES:
            inputs = make_inputs(5, 12, 400, 40, dtype, seed=5, bias=True)
            compare(inputs, lengths=torch.tensor([400, 399, 250, 164, 37]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bfloat16])
@pytest.mark.parametrize("reference", [False, True])
def test_tokens_of_a_padded_segment_are_those_of_the_segment_cut(dtype, reference):
    """Whatever the padding holds, and however long it is."""
    whole = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    signal, keep, weights, gn_weight, gn_bias, _ = make_inputs(1, 12, 700, 24, whole, seed=8)
    if dtype == torch.int16:
        signal = (signal * 1000).round().to(dtype)
    tolerance = 1e-5 if whole == torch.float32 else 2e-2
    function = patch_embed_reference if reference else patch_embed
    for length in (700, 512, 333, 161, 97, 64, 47):
        cut = function(signal[..., :length], keep, weights, gn_weight, gn_bias)
        for samples in (length, length + 1, length + 15, 1000):
            padded = torch.full((1, 12, samples), 300, dtype=dtype)
            padded[..., :length] = signal[..., :length]
            lengths = torch.tensor([length], dtype=torch.int32)
            tokens = function(padded, keep, weights, gn_weight, gn_bias, lengths=lengths)
            assert tokens.shape[1] == samples >> 4
            assert_close(tokens[:, : length >> 4], cut, tolerance, f"{length} of {samples}")


def test_lengths_of_all_samples_change_nothing():
    inputs = make_inputs(2, 12, 321, 24, torch.float32, seed=8)
    upstream = torch.randn(2, 20, 24)
    plain = run(patch_embed, inputs, upstream)
    full = run(patch_embed, inputs, upstream, lengths=torch.full((2,), 321))
    assert torch.equal(plain[0], full[0])
    assert all(torch.equal(x, y) for x, y in zip(plain[1], full[1], strict=True))
    assert torch.equal(plain[2], full[2])


def test_padding_has_no_gradient_and_gives_none_to_what_is_before():
    signal, _, weights, gn_weight, gn_bias, _ = make_inputs(1, 3, 128, 8, torch.float64, seed=3)
    signal.requires_grad_()
    lengths = torch.tensor([77])
    tokens = patch_embed(signal, None, weights, gn_weight, gn_bias, lengths=lengths)
    tokens[:, : 77 >> 4].square().sum().backward()
    cut = signal.detach()[..., :77].clone().requires_grad_()
    patch_embed(cut, None, weights, gn_weight, gn_bias).square().sum().backward()
    assert not signal.grad[..., 77:].any()
    assert_close(signal.grad[..., :77], cut.grad, 1e-10, "gradient of the signal")


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("lengths", [None, torch.tensor([160, 99])])
def test_activation_checkpointing(use_reentrant, lengths):
    inputs = make_inputs(2, 12, 160, 32, torch.float32, seed=6, bias=True)
    upstream = torch.randn(2, 10, 32)

    def checkpointed(signal, keep, weights, gn_weight, gn_bias, *, biases, lengths):
        def function(signal, *p):
            return patch_embed(signal, keep, p[:4], p[4], p[5], biases=p[6:], lengths=lengths)

        parameters = (*weights, gn_weight, gn_bias, *biases)
        return checkpoint(function, signal, *parameters, use_reentrant=use_reentrant)

    want = run(patch_embed, inputs, upstream, lengths=lengths)
    got = run(checkpointed, inputs, upstream, lengths=lengths)
    for x, y in zip((got[0], *got[1], got[2]), (want[0], *want[1], want[2]), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("with_lengths", [False, True])
def test_compiles_with_changing_sizes_and_numbers(with_lengths):
    _, _, weights, gn_weight, gn_bias, _ = make_inputs(1, 3, 64, 8, torch.float32, seed=2)
    compiled = torch.compile(patch_embed, fullgraph=True, dynamic=True)
    for batch, samples, eps in ((2, 64, 1e-5), (3, 97, 1e-4), (5, 160, 1e-3)):
        signal = torch.randn(batch, 3, samples)
        lengths = torch.arange(samples - batch, samples) if with_lengths else None
        arguments = (signal, None, weights, gn_weight, gn_bias)
        got = compiled(*arguments, eps=eps, lengths=lengths)
        assert torch.equal(got, patch_embed(*arguments, eps=eps, lengths=lengths))


def test_transforms_and_forward_mode_run_the_reference():
    signal, keep, weights, gn_weight, gn_bias, _ = make_inputs(2, 3, 64, 8, torch.float64, seed=2)

    def loss(signal):
        return patch_embed(signal, keep, weights, gn_weight, gn_bias).square().sum()

    leaf = signal.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(signal), leaf.grad)
    _, tangent = torch.func.jvp(loss, (signal,), (torch.ones_like(signal),))
    torch.testing.assert_close(tangent, leaf.grad.sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(signal, torch.ones_like(signal))
        again = torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent
    torch.testing.assert_close(again, tangent)


def test_int16_microvolts():
    signal, *rest = make_inputs(2, 12, 320, 48, torch.float32, seed=7)
    microvolts = (signal * 1000).round().to(torch.int16)
    compare((microvolts, *rest), for_signal=False)


def test_large_offsets_keep_their_precision():
    signal, *rest = make_inputs(2, 12, 320, 48, torch.float32, seed=9)
    compare((signal * 0.2 + 30.0, *rest), for_signal=False)


def test_masked_leads_read_as_zero():
    signal, keep, *rest, _ = make_inputs(3, 12, 160, 32, torch.float32, seed=3)
    masked = patch_embed(signal, keep, *rest)
    assert torch.equal(masked, patch_embed(torch.where(keep[..., None], signal, 0.0), None, *rest))
    nothing = patch_embed(signal, torch.zeros_like(keep), *rest)
    assert torch.isfinite(nothing).all()


def lead_masks():
    """Segments that keep no lead, one, neighbours, the last ones, every other and all of 12."""
    keep = torch.zeros(6, 12, dtype=torch.bool)
    keep[1, 7] = keep[2, 3:5] = keep[3, 9:] = keep[4, ::2] = keep[5] = True
    return keep


@pytest.mark.parametrize("lengths", [None, torch.tensor([160, 159, 100, 64, 37, 160])])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_masked_leads_are_left_out_on_every_isa(isa, dtype, lengths):
    signal, _, *rest = make_inputs(6, 12, 160, 24, dtype, seed=11, bias=True)
    with set_isa(isa):
        compare((signal, lead_masks(), *rest), lengths=lengths)


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_no_weight_of_a_masked_lead_is_read(isa, dtype, layers):
    """So what it holds, NaN here, costs nothing and changes nothing; nor do the lead's samples."""
    signal, _, weights, *rest = make_inputs(6, 12, 96, 24, dtype, seed=12, layers=layers)
    keep = lead_masks()
    keep[:, 5] = keep[:, 8] = False
    upstream = torch.ones(6, 96 >> layers, 24)
    with set_isa(isa):
        want = run(patch_embed, (signal, keep, weights, *rest), upstream)
        weights[0][:, 5] = torch.nan
        signal[:, 8] = torch.inf
        got = run(patch_embed, (signal, keep, weights, *rest), upstream)
    for x, y in zip((got[0], *got[1], got[2]), (want[0], *want[1], want[2]), strict=True):
        assert torch.equal(x, y)
    assert not got[1][0][:, [5, 8]].any()
    assert not got[2][~keep].any()
    assert got[2][keep].all(dim=1).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_leads_of_zeros_cost_and_count_as_much_as_masked_ones(isa, dtype):
    """Records that lack a lead have zeros there: no `keep` has to say so, and the bits are the same."""
    signal, _, weights, *rest = make_inputs(6, 12, 1100, 24, dtype, seed=13)
    keep = lead_masks()
    keep[:, 5] = False
    zeroed = torch.where(keep[:, :, None], signal, 0.0)
    upstream = torch.randn(6, 1100 >> 4, 24, generator=generator(3))
    with set_isa(isa):
        masked = run(patch_embed, (signal, keep, weights, *rest), upstream, for_signal=False)
        lacking = run(patch_embed, (zeroed, None, weights, *rest), upstream, for_signal=False)
        # Where a gradient of the signal is asked for, a lead of zeros has one, and all are multiplied.
        whole = run(patch_embed, (zeroed, None, weights, *rest), upstream)
    for other in (lacking, whole):
        assert torch.equal(masked[0], other[0])
        assert all(torch.equal(x, y) for x, y in zip(masked[1], other[1], strict=True))
    assert not lacking[1][0][:, 5].any()
    assert whole[2][1, 5].any()


def test_kept_leads_alone_are_the_whole_signal():
    """Two of 12 leads: as `keep`, and as a signal and weights of two leads (the stem's `channels`)."""
    signal, _, weights, *rest = make_inputs(3, 12, 320, 24, torch.float32, seed=14)
    keep = torch.zeros(3, 12, dtype=torch.bool)
    keep[:, [1, 10]] = True
    upstream = torch.randn(3, 20, 24, generator=generator(5))
    got = run(patch_embed, (signal, keep, weights, *rest), upstream)
    two = [weights[0][:, [1, 10]], *weights[1:]]
    want = run(patch_embed, (signal[:, [1, 10]], None, two, *rest), upstream)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1][0][:, [1, 10]], want[1][0])
    assert all(torch.equal(x, y) for x, y in zip(got[1][1:], want[1][1:], strict=True))
    assert_close(got[2][:, [1, 10]], want[2], 1e-6, "gradient of the signal")


def test_same_bits_for_any_thread_count():
    inputs = make_inputs(11, 12, 400, 64, torch.float32, seed=4)
    inputs[1][3], inputs[1][4] = False, True  # no lead, and all
    upstream, results, threads = torch.ones(11, 25, 64), [], torch.get_num_threads()
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(run(patch_embed, inputs, upstream))
    finally:
        torch.set_num_threads(threads)
    for tokens, grads, signal_grad in results[1:]:
        assert torch.equal(tokens, results[0][0])
        assert all(torch.equal(x, y) for x, y in zip(grads, results[0][1], strict=True))
        assert torch.equal(signal_grad, results[0][2])


def test_strides_and_expanded_inputs():
    signal, keep, weights, gn_weight, gn_bias, _ = make_inputs(2, 12, 160, 32, torch.float32, seed=6)
    plain = patch_embed(signal, keep, weights, gn_weight, gn_bias)
    other = patch_embed(strided(signal), strided(keep), [strided(w) for w in weights], gn_weight, gn_bias)
    assert torch.equal(plain, other)
    wide = patch_embed(signal[:1].expand(4, -1, -1), None, weights, gn_weight, gn_bias)
    assert torch.equal(wide[0], wide[3])


def test_saves_nothing_without_a_backward_pass():
    signal, keep, weights, gn_weight, gn_bias, _ = make_inputs(2, 12, 160, 32, torch.float32, seed=6)
    _, saved = torch.ops.ecgfast.patch_embed(
        signal, keep, weights, gn_weight, gn_bias, [], 1e-5, None, False, False
    )
    assert saved.numel() == 0


def test_gradcheck():
    signal, keep, weights, gn_weight, gn_bias, biases = make_inputs(
        2, 3, 34, 4, torch.float64, seed=2, layers=3, bias=True
    )
    leaves = [t.requires_grad_() for t in (signal, *weights, gn_weight, gn_bias, *biases)]

    def function(signal, *p):
        return patch_embed(signal, keep, p[:3], p[3], p[4], biases=p[5:])

    torch.autograd.gradcheck(function, leaves)


def test_gradcheck_of_padded_segments():
    signal, keep, weights, gn_weight, gn_bias, _ = make_inputs(3, 2, 34, 3, torch.float64, seed=4, layers=2)
    leaves = [t.requires_grad_() for t in (signal, *weights, gn_weight, gn_bias)]

    def function(signal, *p):
        return patch_embed(signal, keep, p[:2], p[2], p[3], lengths=torch.tensor([34, 21, 10]))

    torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    signal, keep, weights, gn_weight, gn_bias, biases = make_inputs(2, 3, 64, 20, dtype, seed=2, bias=True)
    for t in (signal, *weights, gn_weight, gn_bias, *biases):
        t.requires_grad_()
    op = torch.ops.ecgfast.patch_embed.default
    lengths = torch.tensor([64, 41])
    for each in (None, lengths):
        args = (signal, keep, weights, gn_weight, gn_bias, biases, 1e-5, each, True, True)
        torch.library.opcheck(op, args)
    torch.library.opcheck(op, (*args, torch.tensor(1e-3, dtype=torch.float64)))
    plain = [w.detach() for w in weights]
    args = (signal.detach(), None, plain, gn_weight.detach(), gn_bias.detach(), [], 1e-5, None, False, False)
    torch.library.opcheck(op, args)


def test_autocast_runs_in_the_autocast_dtype():
    signal, keep, weights, gn_weight, gn_bias, _ = make_inputs(2, 12, 160, 32, torch.float32, seed=6)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = patch_embed(signal, keep, weights, gn_weight, gn_bias)
    assert tokens.dtype == torch.bfloat16
    assert_close(tokens, patch_embed(signal, keep, weights, gn_weight, gn_bias), 3e-2, "tokens")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"signal": torch.zeros(2, 5, 64)}, r"signal must have shape \[B, 3, T\], got \[2, 5, 64\]"),
        ({"signal": torch.zeros(2, 3, 64).double()}, "signal must be int16, float32, got .* float64"),
        ({"weights": []}, "weights must hold at least one layer, got none"),
        ({"keep": torch.ones(2, 4, dtype=torch.bool)}, r"keep must have shape \[2, 3\], got \[2, 4\]"),
        ({"gn_weight": torch.ones(5)}, r"gn_weight must have shape \[4\], got \[5\]"),
        ({"biases": [torch.zeros(4)]}, "biases must be 2, got 1"),
        ({"weights": [torch.zeros(4, 3, 3)]}, r"weights\[0\] must have shape \[C, L, 2\]"),
        ({"weights": torch.zeros(2, 4, 3, 2)}, r"weights must be a list of tensors, got \[2, 4, 3, 2\]"),
        ({"signal": [[1.0]]}, "signal must be a tensor, got list"),
        ({"eps": -1e-5}, "eps must be at least 0, got -1e-05"),
        ({"eps": torch.tensor(1e-5)}, "eps must be a number, got"),
        ({"lengths": [64, 64]}, "lengths must be a tensor, got list"),
        ({"lengths": torch.tensor([64])}, r"lengths must have shape \[2\], got \[1\]"),
        ({"lengths": torch.tensor([64.0, 2.0])}, "lengths must be int64, int32, .* got .* float32"),
        ({"lengths": torch.tensor([64, 0])}, r"lengths must be in 1\.\.64, got 0"),
        ({"lengths": torch.tensor([65, 3])}, r"lengths must be in 1\.\.64, got 65"),
    ],
)
def test_bad_input(kwargs, message):
    args = {
        "signal": torch.zeros(2, 3, 64),
        "keep": None,
        "weights": [torch.zeros(4, 3, 2), torch.zeros(4, 4, 2)],
        "gn_weight": torch.ones(4),
        "gn_bias": torch.zeros(4),
    } | kwargs
    for function in (patch_embed, patch_embed_reference):
        with pytest.raises((ValueError, TypeError), match=f"patch_embed: {message}"):
            function(**args)
