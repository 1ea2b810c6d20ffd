"""The global contrastive loss: kernel against reference, over dtypes, shapes, ISAs and thread counts."""

import math

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import ecgfast
from ecgfast.ops import global_contrastive, global_contrastive_reference
from tests.ops.helpers import DTYPES, TOLERANCE, assert_close, generator, strided


def make_inputs(n, m, d, dtype, seed, n_groups=None):
    g = generator(seed)
    n_groups = n_groups or max(1, n // 2)
    a = torch.randn(n, d, generator=g, dtype=torch.float64) * 3
    b = torch.randn(m, d, generator=g, dtype=torch.float64)
    group_a = torch.randint(0, n_groups, (n,), generator=g) - 2**40
    group_b = torch.randint(0, n_groups, (m,), generator=g) - 2**40
    return a.to(dtype), b.to(dtype), group_a, group_b


def run(function, a, b, group_a, group_b, **kwargs):
    x, y = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    tau = kwargs.get("temperature")
    if isinstance(tau, torch.Tensor):
        kwargs["temperature"] = tau = tau.detach().clone().requires_grad_()
    loss = function(x, y, group_a, group_b, **kwargs)
    (loss * 3).backward()
    return loss, x.grad, y.grad, *([tau.grad] if isinstance(tau, torch.Tensor) else [])


def compare(a, b, group_a, group_b, tolerance=None, device="cpu", **kwargs):
    """The op on a device against the reference in fp64. Errors are relative to the largest value, or to
    what fp32 rounds where values cancel: similarities of the size 1 / temperature, and their gradients."""
    tolerance = tolerance or TOLERANCE[a.dtype]
    inverse = 1 / float(kwargs.get("temperature", 0.1))
    norms = torch.cat([x.double().norm(dim=1) for x in (a, b)])
    longest = 1 / norms[norms > 1e-8].min().item()
    floor = inverse * longest / max(len(a), len(b))
    if a.dtype == torch.float16:
        floor = max(floor, 2.0**-15)  # smaller ones have fewer bits
    learnable = isinstance(kwargs.get("temperature"), torch.Tensor)
    if learnable:
        kwargs["temperature"] = kwargs["temperature"].to(device)
    got = run(global_contrastive, *(t.to(device) for t in (a, b, group_a, group_b)), **kwargs)
    got = [t.cpu() for t in got]
    if learnable:
        kwargs["temperature"] = kwargs["temperature"].double().cpu()
    want = run(global_contrastive_reference, a.double(), b.double(), group_a, group_b, **kwargs)
    assert got[0].dtype == (torch.float64 if a.dtype == torch.float64 else torch.float32)
    assert got[1].dtype == got[2].dtype == a.dtype
    assert_close(got[0], want[0], 1e-12 if a.dtype == torch.float64 else 2e-6, "loss", inverse)
    assert_close(got[1], want[1], tolerance, "gradient of a", floor)
    assert_close(got[2], want[2], tolerance, "gradient of b", floor)
    if learnable:
        precision = 1e-12 if a.dtype == torch.float64 else 1e-5
        assert_close(got[3], want[3], precision, "gradient of the temperature", inverse**2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 1), (2, 2, 3), (7, 5, 33), (64, 64, 768), (37, 130, 20), (200, 97, 65)]
)
@pytest.mark.parametrize("detach_norm", [True, False])
def test_kernel_equals_reference(dtype, n, m, d, detach_norm):
    compare(*make_inputs(n, m, d, dtype, seed=n + d), detach_norm=detach_norm)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_blocks(dtype):
    # More rows than a block holds on both sides, with an odd rest.
    compare(*make_inputs(1301, 1250, 24, dtype, seed=1, n_groups=400), detach_norm=False)


def test_wide_half_precision_rows_need_no_sums_of_the_whole_batch():
    # 1100 x 4096 fp32 sums pass the limit: b's gradient is computed in a pass of its own.
    a, b, group_a, group_b = make_inputs(60, 1100, 4096, torch.bfloat16, seed=2)
    compare(a, b, group_a, group_b, detach_norm=False)


@pytest.mark.parametrize("temperature", [0.005, 0.03, 0.04, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_temperature(temperature, dtype):
    a, b, group_a, group_b = make_inputs(70, 61, 40, dtype, seed=3)
    # fp32 cosines are off by up to 1e-7, times 1 / temperature in the exponent.
    tolerance = None if dtype == torch.float64 else max(2e-6, 1e-6 / temperature)
    compare(a, b, group_a, group_b, tolerance, temperature=temperature)
    # Far apart: rows whose largest similarity lies far below the bound.
    b = -a[:61] + 0.1 * b
    compare(a, b, group_a, group_b, tolerance, temperature=temperature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.02, 0.1, 20.0])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 8), (7, 5, 33), (103, 85, 41), (1301, 1250, 24)])
def test_a_learnable_temperature(dtype, value, n, m, d):
    """Also beside several blocks of both sides."""
    inputs = make_inputs(n, m, d, dtype, seed=n)
    tau = torch.tensor(value, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = None if dtype == torch.float64 else max(TOLERANCE[dtype], 1e-6 / value)
    compare(*inputs, tolerance, temperature=tau, detach_norm=n % 2 == 0)


def test_a_learnable_temperature_where_b_has_a_pass_of_its_own():
    a, b, group_a, group_b = make_inputs(60, 1100, 4096, torch.bfloat16, seed=2)
    compare(a, b, group_a, group_b, temperature=torch.tensor(0.1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_temperature_that_is_a_tensor_gives_the_same_as_a_number(dtype):
    inputs = make_inputs(40, 30, 24, dtype, seed=3)
    plain = run(global_contrastive, *inputs, temperature=0.125)
    for kind in DTYPES:
        *same, grad = run(global_contrastive, *inputs, temperature=torch.tensor(0.125, dtype=kind))
        assert grad.dtype == kind
        assert all(torch.equal(x, y) for x, y in zip(plain, same, strict=True))


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive(value):
    x, groups = torch.randn(4, 8), torch.arange(4)
    for function in (global_contrastive, global_contrastive_reference):
        for tau in (value, torch.tensor(value), torch.nn.Parameter(torch.tensor(value))):
            with pytest.raises(ValueError, match="global_contrastive: temperature must be positive, got"):
                function(x, x, groups, groups, temperature=tau)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    a, b, group_a, group_b = make_inputs(20, 20, 16, torch.float32, seed=4)
    leaves = [x.requires_grad_() for x in (a, b, torch.tensor(0.2))]

    def loss(x, y, tau):
        return global_contrastive(x, y, group_a, group_b, temperature=tau)

    plain = torch.autograd.grad(loss(*leaves), leaves)
    torch.utils.checkpoint.checkpoint(loss, *leaves, use_reentrant=reentrant).backward()
    assert all(torch.equal(x, leaf.grad) for x, leaf in zip(plain, leaves, strict=True))


def test_a_compiled_loss_whose_temperature_changes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(global_contrastive, backend=counter, fullgraph=True, dynamic=True)
    for step in range(12):
        inputs = make_inputs(5 + step, 6 + step, 8, torch.float32, seed=step)
        want = global_contrastive(*inputs, temperature=0.1 + 0.01 * step)
        torch.testing.assert_close(compiled(*inputs, temperature=0.1 + 0.01 * step), want)
    assert counter.frame_count <= 3


def test_pairs_all_positive_and_none():
    a, b, _, _ = make_inputs(20, 20, 16, torch.float32, seed=4)
    compare(a, b, torch.arange(20), torch.arange(20))
    compare(a, b, torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.int64))
    compare(a, b, torch.arange(20), torch.arange(20) + 20)
    loss, grad_a, _ = run(global_contrastive, a, b, torch.arange(20), torch.arange(20) + 20)
    assert loss == 0
    assert torch.equal(grad_a, torch.zeros(20, 16))


def test_aligned_pairs_have_nearly_no_loss():
    a, _, _, _ = make_inputs(50, 50, 64, torch.float32, seed=5)
    compare(a, 2 * a, torch.arange(50), torch.arange(50), temperature=0.05)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    n=st.integers(1, 110),
    m=st.integers(1, 110),
    d=st.integers(1, 70),
    detach_norm=st.booleans(),
    temperature=st.sampled_from([0.02, 0.1, 0.7]),
)
def test_any_shape(n, m, d, detach_norm, temperature):
    inputs = make_inputs(n, m, d, torch.float32, seed=7)
    compare(*inputs, 1e-5, detach_norm=detach_norm, temperature=temperature)


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_every_isa(isa):
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        for dtype in DTYPES:
            for temperature in (0.02, 0.1):
                tolerance = max(TOLERANCE[dtype], 5e-6) if dtype != torch.float64 else None
                inputs = make_inputs(103, 85, 41, dtype, seed=8)
                compare(*inputs, tolerance, temperature=temperature, detach_norm=False)
    finally:
        ecgfast.set_cpu_isa(previous)


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_same_bits_for_any_thread_count(temperature):
    inputs = make_inputs(300, 1200, 40, torch.float32, seed=4)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(run(global_contrastive, *inputs, temperature=temperature))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_strides_and_expanded_inputs():
    a, b, group_a, group_b = make_inputs(12, 15, 24, torch.float32, seed=6)
    plain = global_contrastive(a, b, group_a, group_b)
    assert torch.equal(global_contrastive(strided(a), strided(b), group_a, group_b), plain)
    wide = a[:1].expand(12, -1).detach().requires_grad_()
    global_contrastive(wide, b, group_a[:1].expand(12), strided(group_b)).backward()
    assert torch.isfinite(wide.grad).all()


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_empty(n, m):
    a, b = torch.randn(n, 8, requires_grad=True), torch.randn(m, 8, requires_grad=True)
    loss = global_contrastive(a, b, torch.arange(n), torch.arange(m))
    loss.backward()
    assert loss == 0
    assert torch.equal(a.grad, torch.zeros(n, 8))
    assert torch.equal(b.grad, torch.zeros(m, 8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_features(dtype):
    inputs = make_inputs(40, 40, 32, torch.float32, seed=3)
    run(global_contrastive, *(x.to(dtype) if x.is_floating_point() else x for x in inputs))  # in the scratch
    a, b = (torch.zeros(n, 0, dtype=dtype, requires_grad=True) for n in (5, 3))
    loss = global_contrastive(a, b, torch.arange(5), torch.arange(3))
    loss.backward()
    torch.testing.assert_close(loss.item(), (3 * math.log(3) + 3 * math.log(5)) / 6)
    assert a.grad.shape == a.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.02, 0.1])
@pytest.mark.parametrize("detach_norm", [True, False])
def test_vectors_as_good_as_zero_get_no_gradient(dtype, temperature, detach_norm):
    """They have no direction. Divided by 1e-8 their gradient would be 7e7, and infinite in fp16."""
    a, b, group_a, group_b = make_inputs(9, 9, 8, dtype, seed=2)
    a[2], b[3], b[4], a[5] = 0, 0, 1e-12, 1e-42
    settings = {"temperature": temperature, "detach_norm": detach_norm}
    compare(a, b, group_a, group_b, max(TOLERANCE[dtype], 1e-5), **settings)
    for function in (global_contrastive, global_contrastive_reference):
        loss, *grads = run(function, a, b, group_a, group_b, **settings)
        assert torch.isfinite(loss)
        for grad, zero in zip(grads, ([2, 5], [3, 4]), strict=True):
            rest = [i for i in range(9) if i not in zero]
            assert not grad[zero].any()
            assert grad[rest].any(dim=1).all()
            assert torch.isfinite(grad).all()


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_a_nan_is_not_hidden(temperature):
    a, b, group_a, group_b = make_inputs(9, 9, 8, torch.float32, seed=2)
    b[4, 1] = torch.nan
    for function in (global_contrastive, global_contrastive_reference):
        loss, _, grad = run(function, a, b, group_a, group_b, temperature=temperature)
        assert loss.isnan()
        assert grad[4].isnan().any()


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_norms_whose_squares_overflow(isa):
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        a, b, group_a, group_b = make_inputs(20, 20, 16, torch.float32, seed=2)
        for detach_norm in (True, False):
            compare(a * 1e20, b, group_a, group_b, detach_norm=detach_norm)
            compare(a * 1e20, b * 1e20, group_a, group_b, detach_norm=detach_norm)
            compare(a * 1e-6, b * 1e6, group_a, group_b, detach_norm=detach_norm)
    finally:
        ecgfast.set_cpu_isa(previous)


def test_memory_does_not_grow_with_the_matrix():
    # 6000 x 6000 similarities would be 137 MiB; what is allocated beside inputs and gradients is blocks.
    a, b, group_a, group_b = make_inputs(6000, 6000, 8, torch.float32, seed=1)
    a.requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        global_contrastive(a, b, group_a, group_b).backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = now = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        peak = max(peak, now := now + e.nbytes())
    assert 0 < peak < 40 << 20


def test_gradcheck():
    a, b, group_a, group_b = make_inputs(6, 5, 4, torch.float64, seed=1, n_groups=3)
    torch.autograd.gradcheck(
        lambda x, y: global_contrastive(x, y, group_a, group_b, detach_norm=False),
        (a.requires_grad_(), b.requires_grad_()),
    )
    for value in (0.3, 0.02):
        tau = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(
            lambda x, y, t: global_contrastive(x, y, group_a, group_b, temperature=t, detach_norm=False),
            (a, b, tau),
            eps=1e-7,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    a, b, group_a, group_b = make_inputs(9, 12, 16, dtype, seed=1)
    op = torch.ops.ecgfast.global_contrastive.default
    torch.library.opcheck(op, (a.requires_grad_(), b.requires_grad_(), group_a, group_b, 0.1, True, True))
    tau = torch.tensor(0.2, requires_grad=True)
    torch.library.opcheck(op, (a, b, group_a, group_b, 1.0, True, False, tau))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"a": torch.zeros(4)}, r"a must have shape \[N, D\], got \[4\]"),
        ({"b": torch.zeros(5, 2)}, r"b must have shape \[\?, 3\], got \[5, 2\]"),
        ({"b": torch.zeros(5, 3).double()}, "b must be float32, got .* float64"),
        ({"a": torch.zeros(4, 3).long()}, "a must be float32, .* got .* int64"),
        ({"group_a": torch.arange(5)}, r"group_a must have shape \[4\], got \[5\]"),
        ({"group_b": torch.zeros(5)}, "group_b must be int64, int32, .*, got .* float32"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_bad_input(kwargs, message):
    args = {
        "a": torch.zeros(4, 3),
        "b": torch.zeros(5, 3),
        "group_a": torch.arange(4),
        "group_b": torch.arange(5),
    } | kwargs
    for function in (global_contrastive, global_contrastive_reference):
        with pytest.raises((ValueError, TypeError), match=f"global_contrastive: {message}"):
            function(**args)


@pytest.mark.parametrize("name", ["a", "b"])
def test_bad_input_under_autocast(name):
    rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 3), name: np.zeros((4, 3), np.float32)}
    for function in (global_contrastive, global_contrastive_reference):
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(TypeError, match=f"^global_contrastive: {name} must be a tensor, got ndarray$"),
        ):
            function(**rows, group_a=torch.arange(4), group_b=torch.arange(4))


CUDA_SHAPES = [
    # n, m, d
    (1, 1, 1),
    (7, 5, 33),  # rows that are not aligned
    (64, 64, 768),
    (200, 97, 65),
    (1301, 1250, 24),
    (2900, 2700, 768),  # large tiles
    (9000, 300, 64),  # two blocks of a's rows
    (300, 9000, 64),  # of b's
]


@pytest.mark.cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m", "d"), CUDA_SHAPES)
@pytest.mark.parametrize("detach_norm", [True, False])
def test_on_cuda(dtype, n, m, d, detach_norm):
    inputs = make_inputs(n, m, d, dtype, seed=n + d)
    compare(*inputs, max(TOLERANCE[dtype], 5e-6), "cuda", detach_norm=detach_norm)
    on_cuda = [t.cuda() for t in inputs]
    once, again = (run(global_contrastive, *on_cuda, detach_norm=detach_norm) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))


@pytest.mark.cuda
@pytest.mark.cuda
@pytest.mark.parametrize("temperature", [0.005, 0.03, 0.04, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [70, 1500])
def test_any_temperature_on_cuda(temperature, dtype, n):
    a, b, group_a, group_b = make_inputs(n, n, 40, dtype, seed=3)
    b[: n // 2] = -a[: n // 2]
    tolerance = max(TOLERANCE[dtype], 5e-6, 1e-6 / temperature)
    compare(a, b, group_a, group_b, tolerance, "cuda", temperature=temperature)


@pytest.mark.cuda
@pytest.mark.cuda
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_empty_on_cuda(n, m):
    a, b = (torch.randn(rows, 8, device="cuda", requires_grad=True) for rows in (n, m))
    loss = global_contrastive(a, b, *(torch.arange(rows, device="cuda") for rows in (n, m)))
    loss.backward()
    assert loss == 0
    assert not a.grad.any()
    assert not b.grad.any()


@pytest.mark.cuda
@pytest.mark.cuda
def test_memory_on_cuda_does_not_grow_with_the_matrix():
    # 40,000 x 40,000 similarities would be 6 GiB; a block of them is 128 MiB.
    inputs = [t.cuda() for t in make_inputs(40000, 40000, 64, torch.bfloat16, seed=1)]
    x, y = (t.requires_grad_() for t in inputs[:2])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    global_contrastive(x, y, *inputs[2:]).backward()
    assert torch.cuda.max_memory_allocated() - before < 200 << 20


@pytest.mark.cuda
@pytest.mark.cuda
def test_devices_must_agree():
    a, b, group_a, group_b = make_inputs(5, 4, 8, torch.float32, seed=1)
    with pytest.raises(ValueError, match="global_contrastive: b is on cpu"):
        global_contrastive(a.cuda(), b, group_a, group_b)
