"""The kernels behind the further forms of the global contrastive loss, against the reference in fp64."""

import pytest
import torch

import ecgfast
from ecgfast.ops import global_contrastive, global_contrastive_reference
from tests.ops.helpers import DTYPES, TOLERANCE, assert_close
from tests.ops.test_global_contrastive_forms import FORMS, make, run

# Rows of a single pair that make several blocks on both sides with odd rests, and of many pairs.
LARGE = {"n": 301, "m": 270, "d": 40}
PAIRED = {"n": 150, "m": 140, "d": 33, "leads": (4, 5)}


def compare(args, tolerance=None, **settings):
    """The op against the reference; errors are relative as in test_global_contrastive.py."""
    dtype = args["a"].dtype
    tolerance = tolerance or TOLERANCE[dtype]
    tau = settings.get("temperature", 0.1)
    inverse = 1 / float(tau)
    norms = torch.cat([x.double().norm(dim=-1).flatten() for x in (args["a"], args["b"]) if x is not None])
    longest = 1 / norms[norms > 1e-8].min().item()
    floor = inverse * longest / args["a"].shape[-2]
    if dtype == torch.float16:
        floor = max(floor, 2.0**-15)
    got = run(global_contrastive, args, **settings)
    exact = {k: v.double() if k in ("a", "b") and v is not None else v for k, v in args.items()}
    if isinstance(tau, torch.Tensor):
        settings["temperature"] = tau.double()
    want = run(global_contrastive_reference, exact, **settings)
    precise = dtype == torch.float64
    assert got["loss"].dtype == (torch.float64 if precise else torch.float32)
    # fp32 cosines are off by up to 1e-7, times 1 / temperature in the exponent.
    assert_close(got["loss"], want["loss"], 1e-12 if precise else 2e-6, "loss", inverse)
    for side in ("a", "b"):
        if args[side] is not None:
            assert got[side].dtype == dtype
            assert_close(got[side], want[side], tolerance, f"gradient of {side}", floor)
    if "temperature" in got:
        precision = 1e-12 if precise else 1e-5
        assert_close(got["temperature"], want["temperature"], precision, "of the temperature", inverse**2)


def sizes(form):
    return PAIRED if "pairs" in form else LARGE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_kernel_equals_reference(form, dtype):
    tau = torch.tensor(0.2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    compare(make(form, seed=3, dtype=dtype, **sizes(form)), temperature=tau, detach_norm=False)
    compare(make(form, seed=4, dtype=dtype, n=40, m=23, d=8))


@pytest.mark.parametrize("form", ["alone", "pairs alone absent by lead", "negatives"])
@pytest.mark.parametrize("temperature", [0.005, 0.03, 0.04, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_temperature(form, temperature, dtype):
    """Where exponentials can overflow, the sums keep maxima."""
    tolerance = None if dtype == torch.float64 else max(2e-6, 1e-6 / temperature)
    args = make(form, seed=5, dtype=dtype, n=130, m=61, d=24)
    compare(args, tolerance, temperature=temperature)
    args["a"][..., 1::2, :] = 0.1 * args["a"][..., 1::2, :] - args["a"][..., :1, :]
    compare(args, tolerance, temperature=temperature)


@pytest.mark.parametrize("isa", ecgfast.usable_cpu_isas())
def test_every_isa(isa):
    previous = ecgfast.cpu_isa()
    try:
        ecgfast.set_cpu_isa(isa)
        for form in ("alone", "pairs absent by lead negatives"):
            for dtype in DTYPES:
                for temperature in (0.02, 0.1):
                    tolerance = max(TOLERANCE[dtype], 5e-6) if dtype != torch.float64 else None
                    args = make(form, seed=8, dtype=dtype, n=103, m=85, d=41)
                    compare(args, tolerance, temperature=temperature, detach_norm=False)
    finally:
        ecgfast.set_cpu_isa(previous)


@pytest.mark.parametrize("form", ["alone", "negatives", "pairs alone absent by lead"])
def test_same_bits_for_any_thread_count(form):
    args = make(form, seed=4, dtype=torch.float32, **(sizes(form) | {"n": 500}))
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(run(global_contrastive, args))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


def test_several_batches_of_blocks():
    """More rows than are packed at a time, and more cells than a batch."""
    compare(make("alone", seed=1, dtype=torch.float32, n=900, d=1100), 5e-6)
    compare(make("pairs", seed=1, dtype=torch.float32, n=500, m=510, d=40, leads=(3, 3)), 5e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["alone", "pairs negatives"])
def test_vectors_as_good_as_zero_and_long_ones(form, dtype):
    args = make(form, seed=2, dtype=dtype)
    args["a"][..., 2, :] = 0
    args["a"][..., 5, :] = 1e-12
    compare(args, max(TOLERANCE[dtype], 1e-5))
    assert not run(global_contrastive, args)["a"][..., [2, 5], :].any()
    if dtype == torch.float32:
        args["a"][..., 1, :] *= 1e20
        compare(args, 1e-5, detach_norm=False)


@pytest.mark.parametrize("temperature", [0.02, 0.1])
@pytest.mark.parametrize("form", ["alone", "alone negatives", "pairs", "pairs absent"])
def test_a_nan_is_not_hidden(form, temperature):
    args = make(form, dtype=torch.float32, n=20, m=21)
    args["a"][..., 4, 1] = torch.nan
    if "present_a" in args:
        args["present_a"][4] = True
    for function in (global_contrastive, global_contrastive_reference):
        got = run(function, args, temperature=temperature)
        assert got["loss"].isnan()
        assert got["a"].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_features(dtype):
    args = make("alone", d=0, dtype=dtype) | {"group_a": torch.arange(9) // 3}
    got = run(global_contrastive, args)
    assert got["loss"].item() == pytest.approx(torch.tensor(8.0).log().item(), rel=1e-6)
    assert got["a"].shape == args["a"].shape


@pytest.mark.parametrize(
    "form", ["alone", "alone negatives", "pairs absent by lead", "pairs alone negatives"]
)
def test_gradcheck(form):
    args = make(form, n=5, m=4, d=3)
    for value in (0.3, 0.02):
        tau = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        leaves = [args["a"].requires_grad_(), tau]
        if args["b"] is not None:
            leaves.append(args["b"].requires_grad_())

        def loss(a, t, b=None, args=args):
            rows = {"a": a, "b": b}
            return global_contrastive(**args | rows, temperature=t, detach_norm=False)

        torch.autograd.gradcheck(loss, leaves, eps=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, n, 16, generator=g).to(dtype).requires_grad_() for n in (9, 12))
    group_a, group_b = torch.arange(9) // 2, torch.arange(12) // 2
    present = torch.rand(2, 9, generator=g) < 0.8
    pairs = torch.tensor([[0, 1], [1, 1]])
    op = torch.ops.ecgfast.global_contrastive_pairs.default
    torch.library.opcheck(op, (a, b, group_a, group_b, present, None, pairs, True, 0.1, True, False))
    tau = torch.tensor(0.2, requires_grad=True)
    torch.library.opcheck(
        op, (a, None, group_a, None, present[0], None, pairs, False, 1.0, False, False, tau)
    )


def test_strides():
    args = make("pairs absent by lead", dtype=torch.float32)
    want = global_contrastive(**args)
    swapped = {
        name: x.mT.contiguous().mT if name in ("a", "b", "present_a") else x for name, x in args.items()
    }
    assert torch.equal(global_contrastive(**swapped), want)


@pytest.mark.parametrize("form", ["alone", "pairs alone"])
def test_memory_grows_with_the_rows_alone(form):
    # 4000 x 4000 similarities would be 61 MiB; 45 pairs of 600 x 600 as many.
    args = make("alone", dtype=torch.float32, n=4000, d=8)
    if form != "alone":
        args = make("alone", dtype=torch.float32, n=600, d=8)
        args["a"] = torch.randn(10, 600, 8)
        args["pairs"] = torch.combinations(torch.arange(10))
    args["a"].requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        global_contrastive(**args).backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = now = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        peak = max(peak, now := now + e.nbytes())
    assert 0 < peak < 30 << 20
