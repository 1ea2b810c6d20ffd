"""The local contrastive loss: kernel against reference, over dtypes, shapes, ISAs and thread counts."""

import itertools
import sys

import pytest
import torch
import torch._dynamo.testing

import ecgfast
from ecgfast.ops import draw_negatives, local_contrastive, local_contrastive_reference, make_rng
from tests.ops.helpers import DTYPES, TOLERANCE, assert_close, generator, strided


def make_inputs(b, m, d, dtype, seed, repeated=True):
    g = generator(seed)
    predictions = torch.randn(b, m, d, generator=g, dtype=torch.float64)
    codes = torch.randint(0, max(m // 2, 2) if repeated else 10**6, (b, m, 2), generator=g)
    table = torch.randn(10**3, d, generator=g, dtype=torch.float64)
    targets = table[(codes[..., 0] * 31 + codes[..., 1] * 7) % 10**3]
    if not repeated:
        targets = torch.randn(b, m, d, generator=g, dtype=torch.float64)
    return predictions.to(dtype), targets.to(dtype), codes.to(torch.int32)


def run(function, predictions, targets, weights, **kwargs):
    p = predictions.detach().clone().requires_grad_()
    t = targets.detach().clone().requires_grad_()
    tau = kwargs.get("temperature")
    if isinstance(tau, torch.Tensor):
        kwargs["temperature"] = tau = tau.detach().clone().requires_grad_()
    loss, correct = function(p, t, **kwargs)
    (loss * weights.to(loss.dtype)).sum().backward()
    return loss, correct, p.grad, t.grad, *([tau.grad] if isinstance(tau, torch.Tensor) else [])


def compare(predictions, targets, tolerance, seed=0, **kwargs):
    b, m, _ = predictions.shape
    weights = torch.randn(b, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = run(local_contrastive, predictions, targets, weights, **kwargs)
    if isinstance(kwargs.get("temperature"), torch.Tensor):
        kwargs["temperature"] = kwargs["temperature"].double()
    want = run(local_contrastive_reference, predictions.double(), targets.double(), weights, **kwargs)
    assert got[2].dtype == predictions.dtype
    loss_tolerance = 1e-12 if predictions.dtype == torch.float64 else 2e-6
    assert_close(got[0], want[0], loss_tolerance, "loss")
    assert_close(got[2], want[2], tolerance, "gradient of predictions")
    assert_close(got[3], want[3], tolerance, "gradient of targets")
    if len(got) > 4:
        assert got[4].dtype == got[0].dtype
        assert_close(got[4], want[4], loss_tolerance * 10, "gradient of the temperature", 1.0)
    return got, want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("b", "m", "d", "k"),
    [
        (1, 1, 8, 5),
        (2, 2, 1, 3),
        (3, 7, 5, 20),
        (2, 33, 100, 21),
        (2, 62, 256, 100),
        (1, 130, 33, 9),
        (1, 130, 160, 9),
    ],
)
@pytest.mark.parametrize("with_codes", [True, False])
def test_kernel_equals_reference(dtype, b, m, d, k, with_codes):
    predictions, targets, codes = make_inputs(b, m, d, dtype, seed=m * d)
    ids, rng = torch.arange(b) + 2**40, make_rng(5, 9)
    kwargs = {
        "codes": codes if with_codes else None,
        "n_negatives": k,
        "rng": rng,
        "sample_ids": ids,
    }
    got, want = compare(predictions, targets, TOLERANCE[dtype], **kwargs)
    # Where cosines tie to the last bit, rounding may decide "correct" either way; random vectors don't.
    assert (got[1] == want[1]).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_negatives_and_all_negatives(dtype):
    predictions, targets, codes = make_inputs(2, 31, 32, dtype, seed=3)
    index = draw_negatives(make_rng(1), torch.arange(2), 31, 17)
    drawn = compare(
        predictions,
        targets,
        TOLERANCE[dtype],
        rng=make_rng(1),
        sample_ids=torch.arange(2),
        n_negatives=17,
    )
    for integer in (torch.int64, torch.int32):
        given = compare(predictions, targets, TOLERANCE[dtype], negative_index=index.to(integer))
        assert torch.equal(drawn[0][0], given[0][0])
    compare(predictions, targets, TOLERANCE[dtype], negatives="all")
    compare(predictions, targets, TOLERANCE[dtype], negatives="all", codes=codes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("b", "m", "d"), [(1, 1, 8), (2, 7, 5), (3, 33, 100), (1, 130, 33)])
@pytest.mark.parametrize("value", [0.03, 0.1, 1.7])
def test_a_learnable_temperature(dtype, b, m, d, value):
    predictions, targets, codes = make_inputs(b, m, d, dtype, seed=m * d)
    kwargs = {"codes": codes, "n_negatives": 20, "rng": make_rng(5), "sample_ids": torch.arange(b)}
    tau = torch.tensor(value, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    got, _ = compare(predictions, targets, max(TOLERANCE[dtype], 4e-6), temperature=tau, **kwargs)
    assert len(got) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_temperature_of_any_float_dtype(dtype):
    predictions, targets, _ = make_inputs(2, 9, 16, dtype, seed=3)
    grads = []
    for kind in DTYPES:
        tau = torch.tensor(0.125, dtype=kind, requires_grad=True)  # the same in all dtypes
        loss, _ = local_contrastive(predictions, targets, negatives="all", temperature=tau)
        loss.sum().backward()
        assert tau.grad.dtype == kind
        grads.append(tau.grad)
    for kind, grad in zip(DTYPES, grads, strict=True):
        assert_close(grad, grads[0], max(TOLERANCE[kind], 2e-6), str(kind))


def test_a_logit_scale_as_clip_has_it():
    """Learned through the exponential; a wrong sign or a missing gradient would not lower the loss."""
    predictions, targets, _ = make_inputs(2, 20, 32, torch.float32, seed=3)
    targets = targets + predictions
    scale = torch.nn.Parameter(torch.tensor(0.0))
    losses = []
    for _ in range(20):
        loss = local_contrastive(predictions, targets, negatives="all", temperature=1 / scale.exp())[0].mean()
        (grad,) = torch.autograd.grad(loss, scale)
        with torch.no_grad():
            scale -= 0.5 * grad
        losses.append(loss.item())
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert scale > 1


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive(value):
    x = torch.randn(1, 4, 8)
    for function in (local_contrastive, local_contrastive_reference):
        for tau in (value, torch.tensor(value), torch.nn.Parameter(torch.tensor(value))):
            with pytest.raises(ValueError, match="local_contrastive: temperature must be positive, got"):
                function(x, x, negatives="all", temperature=tau)
        with pytest.raises(ValueError, match=r"temperature must have shape \[\], got \[1\]"):
            function(x, x, negatives="all", temperature=torch.ones(1))
        with pytest.raises(TypeError, match=r"temperature must be float32, .*, got \[\] int64"):
            function(x, x, negatives="all", temperature=torch.tensor(1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    predictions, targets, _ = make_inputs(2, 20, 32, torch.float32, seed=3)
    leaves = [x.requires_grad_() for x in (predictions, targets, torch.tensor(0.2))]

    def loss(p, t, tau):
        return local_contrastive(p, t, negatives="all", temperature=tau)[0].sum()

    plain = torch.autograd.grad(loss(*leaves), leaves)
    loss_again = torch.utils.checkpoint.checkpoint(loss, *leaves, use_reentrant=reentrant)
    loss_again.backward()
    assert all(torch.equal(x, leaf.grad) for x, leaf in zip(plain, leaves, strict=True))


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_every_isa(isa):
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        for dtype in DTYPES:
            predictions, targets, codes = make_inputs(3, 37, 70, dtype, seed=8)
            kwargs = {
                "codes": codes,
                "rng": make_rng(2),
                "sample_ids": torch.arange(3),
                "n_negatives": 30,
            }
            compare(predictions, targets, TOLERANCE[dtype], **kwargs)
    finally:
        ecgfast.set_cpu_isa(previous)


def test_same_bits_for_any_thread_count():
    predictions, targets, codes = make_inputs(9, 40, 64, torch.float32, seed=4)
    kwargs = {"codes": codes, "rng": make_rng(2), "sample_ids": torch.arange(9), "n_negatives": 30}
    weights, results = torch.ones(9, 40), []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(run(local_contrastive, predictions, targets, weights, **kwargs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def gradients(predictions, targets, kwargs, save):
    """Of the loss's weighted sum, from the op's two halves, and the softmax that was saved between them."""
    op, backward = torch.ops.ecgfast.local_contrastive, torch.ops.ecgfast.local_contrastive_backward
    inputs = (kwargs["codes"], None, kwargs["rng"], kwargs["sample_ids"], kwargs["n_negatives"], 0.1, False)
    loss, _, lse, inv_norms, weights = op(predictions, targets, *inputs, save, False)
    grad = torch.linspace(-1, 1, loss.numel()).view_as(loss).to(loss.dtype)
    return *backward(grad, predictions, targets, lse, inv_norms, weights, *inputs, False), weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "d"), [(40, 64), (130, 96)])
def test_what_is_saved_changes_no_bit(dtype, m, d):
    predictions, targets, codes = make_inputs(3, m, d, dtype, seed=4)
    kwargs = {"codes": codes, "rng": make_rng(2), "sample_ids": torch.arange(3), "n_negatives": 30}
    *made_anew, nothing = gradients(predictions, targets, kwargs, save=False)
    *saved, weights = gradients(predictions, targets, kwargs, save=True)
    assert nothing.numel() == 0
    assert all(torch.equal(x, y) for x, y in zip(made_anew, saved, strict=True))
    assert weights.shape == (3, m, m)
    softmax = weights + torch.eye(m)
    assert_close(softmax.sum(-1), torch.ones(3, m), 1e-6, "sum of the softmax")


def test_nothing_is_saved_without_need(monkeypatch):
    kept = []
    module = sys.modules["ecgfast.ops.local_contrastive"]
    real = module._call

    def spy(*args):
        output = real(*args)
        kept.append(output[-1].numel())
        return output

    monkeypatch.setattr(module, "_call", spy)
    x, long = torch.randn(2, 5, 8), torch.randn(2, 9, 8)
    local_contrastive(x, x, negatives="all")
    with torch.no_grad():
        local_contrastive(x.clone().requires_grad_(), x, negatives="all")
    local_contrastive(long.clone().requires_grad_(), long, negatives="all")
    assert kept == [0, 0, 0]
    local_contrastive(x, x.clone().requires_grad_(), negatives="all")
    assert kept[3] == 2 * 5 * 5


def test_strides_and_expanded_inputs():
    predictions, targets, _ = make_inputs(2, 12, 24, torch.float32, seed=6)
    kwargs = {"negatives": "all"}
    plain, _ = local_contrastive(predictions, targets, **kwargs)
    assert torch.equal(local_contrastive(strided(predictions), strided(targets), **kwargs)[0], plain)
    wide = predictions[:1].expand(4, -1, -1).detach().requires_grad_()
    loss, _ = local_contrastive(wide, targets[:1].expand(4, -1, -1), **kwargs)
    loss.sum().backward()
    assert torch.equal(loss[0], loss[3])
    assert torch.isfinite(wide.grad).all()


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
def test_empty(shape):
    p = torch.zeros(shape, requires_grad=True)
    t = torch.zeros(shape, requires_grad=True)
    ids = torch.arange(shape[0])
    loss, correct = local_contrastive(p, t, rng=make_rng(0), sample_ids=ids)
    loss.sum().backward()
    assert loss.shape == correct.shape == shape[:2]
    assert p.grad.shape == shape


def test_one_token_has_no_loss():
    loss, correct = local_contrastive(
        torch.randn(3, 1, 8), torch.randn(3, 1, 8), rng=make_rng(0), sample_ids=torch.arange(3)
    )
    assert torch.equal(loss, torch.zeros(3, 1))
    assert not correct.any()


def test_zero_vectors_have_finite_gradients():
    predictions, targets, _ = make_inputs(1, 6, 8, torch.float32, seed=2, repeated=False)
    predictions[0, 2] = 0
    targets[0, 3] = 0
    targets[0, 4] = 1e-12
    compare(predictions, targets, 1e-5, negatives="all")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [local_contrastive, local_contrastive_reference])
def test_vectors_as_good_as_zero_get_no_gradient(function, dtype):
    """They have no direction. Divided by 1e-8 their gradient would be 1e7, and infinite in fp16."""
    predictions, targets, _ = make_inputs(1, 6, 8, dtype, seed=2, repeated=False)
    predictions[0, 2], targets[0, 3], targets[0, 4], predictions[0, 5] = 0, 0, 1e-12, 1e-42
    weights = torch.linspace(1, 2, 6)[None]
    loss, _, *grads = run(function, predictions, targets, weights, negatives="all")
    assert torch.isfinite(loss).all()
    for grad, zero in zip(grads, ([2, 5], [3, 4]), strict=True):
        rest = [i for i in range(6) if i not in zero]
        assert not grad[0, zero].any()
        assert grad[0, rest].any(dim=1).all()
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("function", [local_contrastive, local_contrastive_reference])
def test_a_nan_is_not_hidden(function):
    predictions, targets, _ = make_inputs(1, 6, 8, torch.float32, seed=2, repeated=False)
    predictions[0, 1, 3] = torch.nan
    loss, _, grad, _ = run(function, predictions, targets, torch.ones(1, 6), negatives="all")
    assert torch.equal(loss[0].isnan(), torch.arange(6) == 1)
    assert grad[0, 1].isnan().any()
    targets[0, 4, 0] = torch.nan
    loss, *_ = run(function, predictions, targets, torch.ones(1, 6), negatives="all")
    assert loss.isnan().all()


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_norms_whose_squares_overflow(isa):
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        predictions, targets, _ = make_inputs(2, 20, 16, torch.float32, seed=2, repeated=False)
        compare(predictions * 1e20, targets, 2e-6, negatives="all")
        compare(predictions, targets * 1e20, 2e-6, negatives="all")
        compare(predictions * 1e-6, targets * 1e6, 2e-6, negatives="all")
    finally:
        ecgfast.set_cpu_isa(previous)


def test_equal_targets_are_no_negatives():
    predictions = torch.randn(1, 4, 8)
    targets = torch.randn(1, 1, 8).expand(1, 4, 8)
    loss, correct = local_contrastive(predictions, targets, negatives="all")
    assert torch.equal(loss, torch.zeros(1, 4))
    assert correct.all()


def test_gradcheck():
    predictions, targets, codes = make_inputs(2, 5, 6, torch.float64, seed=1)
    kwargs = {"codes": codes, "rng": make_rng(2), "sample_ids": torch.arange(2), "n_negatives": 7}
    torch.autograd.gradcheck(
        lambda p, t: local_contrastive(p, t, **kwargs)[0],
        (predictions.requires_grad_(), targets.requires_grad_()),
    )
    torch.autograd.gradcheck(
        lambda p, t, tau: local_contrastive(p, t, temperature=tau, **kwargs)[0],
        (predictions, targets, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    predictions, targets, codes = make_inputs(2, 9, 16, dtype, seed=1)
    predictions.requires_grad_()
    targets.requires_grad_()
    op = torch.ops.ecgfast.local_contrastive.default
    rng, ids = make_rng(1), torch.arange(2)
    torch.library.opcheck(op, (predictions, targets, codes, None, rng, ids, 10, 0.1, False, True, True))
    torch.library.opcheck(op, (predictions, targets, None, None, None, None, 10, 0.1, True, False, False))
    tau = torch.tensor(0.3, requires_grad=True)
    given = (predictions, targets, None, None, None, None, 10, 1.0, True, True, False, tau)
    torch.library.opcheck(op, given)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"predictions": torch.zeros(2, 3)},
            r"predictions must have shape \[B, M, D\], got \[2, 3\]",
        ),
        (
            {"targets": torch.zeros(2, 3, 5)},
            r"targets must have shape \[2, 3, 4\], got \[2, 3, 5\]",
        ),
        ({"targets": torch.zeros(2, 3, 4).double()}, "targets must be float32, got .* float64"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"negatives": "some"}, "negatives must be 'sampled' or 'all', got 'some'"),
        ({"rng": None}, "sampled negatives need negative_index, or rng and sample_ids"),
        ({"n_negatives": 0}, "n_negatives must be at least 1, got 0"),
        ({"sample_ids": torch.arange(3)}, r"sample_ids must have 2 entries \(B\), got 3"),
        ({"codes": torch.zeros(2, 3, 1)}, "codes must be int64, int32, .*, got .* float32"),
        ({"negative_index": torch.zeros(2, 3)}, r"negative_index must have shape"),
    ],
)
def test_bad_input(kwargs, message):
    args = {
        "predictions": torch.zeros(2, 3, 4),
        "targets": torch.zeros(2, 3, 4),
        "rng": make_rng(0),
        "sample_ids": torch.arange(2),
    } | kwargs
    for function in (local_contrastive, local_contrastive_reference):
        with pytest.raises((ValueError, TypeError), match=f"local_contrastive: {message}"):
            function(**args)


@pytest.mark.parametrize("wrong", [3, -1])
def test_index_out_of_range(wrong):
    x, index = torch.zeros(1, 3, 4), torch.tensor([[[0], [1], [wrong]]])
    for function in (local_contrastive, local_contrastive_reference):
        with pytest.raises(ValueError, match=rf"negative_index must hold tokens 0\.\.2 .*, got {wrong}"):
            function(x, x, negative_index=index)
    with pytest.raises(RuntimeError, match=r"negative_index must hold tokens 0\.\.2, got"):
        torch.ops.ecgfast.local_contrastive(x, x, None, index, None, None, 1, 0.1, False, False, False)


def test_a_compiled_loss_whose_numbers_change():
    """Temperatures, numbers of negatives and sizes that change neither break nor recompile each time."""
    torch._dynamo.reset()
    ids, rng = torch.arange(2), make_rng(3)
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def compiled(p, t, temperature, n_negatives):
        return local_contrastive(
            p, t, temperature=temperature, n_negatives=n_negatives, rng=rng, sample_ids=ids
        )[0]

    for step in range(12):
        p, t = torch.randn(2, 5 + step, 8), torch.randn(2, 5 + step, 8)
        temperature, n = 0.1 + 0.01 * step, 7 + step
        want = local_contrastive(p, t, temperature=temperature, n_negatives=n, rng=rng, sample_ids=ids)[0]
        torch.testing.assert_close(compiled(p, t, temperature, n), want)
    assert counter.frame_count <= 3
