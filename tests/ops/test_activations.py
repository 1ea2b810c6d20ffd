"""The kernels' vector functions against fp64, in units of the last place, on every ISA."""

import platform

import numpy as np
import pytest
import torch
from scipy import special, stats

import ecgfast


def gelu(x):
    return x * 0.5 * special.erfc(-x / np.sqrt(2))


def gelu_grad(x):
    return 0.5 * special.erfc(-x / np.sqrt(2)) + x * stats.norm.pdf(x)


EXACT = {"erf": special.erf, "exp": np.exp, "gelu": gelu, "gelu_grad": gelu_grad}
# Below it a result may be 0: the tail of the normal distribution ends at 12.9, exp at the normal numbers.
TINY = {"erf": 0.0, "exp": 1.2e-38, "gelu": 5e-36, "gelu_grad": 5e-36}
ULPS = {"erf": 2.1, "exp": 1.2, "gelu": 1.8, "gelu_grad": 5.0}
# Every product is rounded where there are no fused multiply-adds.
ULPS_UNFUSED = ULPS | {"gelu": 2.0}


@pytest.fixture(params=ecgfast.usable_cpu_isas())
def isa(request):
    previous = ecgfast.cpu_isa()
    ecgfast.set_cpu_isa(request.param)
    yield request.param
    ecgfast.set_cpu_isa(previous)


def evaluate(name, x):
    return torch.ops.ecgfast.cpu_activation(torch.from_numpy(x), name).numpy()


def points():
    rng = np.random.default_rng(0)
    linear = [rng.uniform(-r, r, 500_000) for r in (1, 2, 4, 15, 100)]
    powers = 10.0 ** rng.uniform(-40, 38, 100_000) * rng.choice([-1, 1], 100_000)
    return np.concatenate([*linear, powers, [0.0, -0.0, 0.75, -0.75, 12.9, -12.9]]).astype(np.float32)


@pytest.mark.parametrize("name", EXACT)
def test_float32_is_accurate_everywhere(name, isa):
    x = points()
    with np.errstate(over="ignore", under="ignore"):
        want = EXACT[name](x.astype(np.float64))
        reachable = np.abs(want) < np.finfo(np.float32).max
        x, want = x[reachable], want[reachable]
        got = evaluate(name, x).astype(np.float64)
        ulp = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    if name == "gelu_grad":  # it has zeros: the error is that of its larger term
        ulp = np.maximum(ulp, np.spacing(np.abs(x * stats.norm.pdf(x)).astype(np.float32)))
    error = np.maximum(np.abs(got - want) - TINY[name], 0) / ulp
    worst = int(error.argmax())
    print(f"{name} on {isa}: {error[worst]:.2f} ulp at {x[worst]!r}")
    unfused = isa == "baseline" and platform.machine() in ("x86_64", "AMD64")
    assert error[worst] <= (ULPS_UNFUSED if unfused else ULPS)[name]


def test_the_stems_gelu_is_accurate_beside_one(isa):
    """Its table has absolute accuracy: 1.5 ulp of the result or 3e-8, 2e-7 for the derivative."""
    x = points()
    x = np.concatenate([x[np.abs(x) < 1e30], np.linspace(-6.2, 6.2, 1 << 20, dtype=np.float32)])
    exact = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        want, slope = gelu(exact), gelu_grad(exact)
    ulp = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    assert (np.abs(evaluate("stem_gelu", x) - want) / np.maximum(1.5 * ulp, 3e-8)).max() <= 1
    assert np.abs(evaluate("stem_gelu_grad", x) - slope).max() <= 2e-7


@pytest.mark.parametrize("name", EXACT)
def test_float64_is_accurate(name, isa):
    x = np.linspace(-20, 20, 10_001)
    np.testing.assert_allclose(evaluate(name, x), EXACT[name](x), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "at_minus_infinity", "at_infinity"),
    [("erf", -1, 1), ("exp", 0, np.inf), ("gelu", 0, np.inf), ("gelu_grad", 0, 1)],
)
def test_special_values(name, at_minus_infinity, at_infinity, dtype, isa):
    x = np.array([-np.inf, np.inf, np.nan, 1e38, -1e38], dtype=dtype)
    got = evaluate(name, x)
    np.testing.assert_array_equal(got[:3], [at_minus_infinity, at_infinity, np.nan])
    assert not np.isnan(got[3:]).any()


def test_bad_input():
    with pytest.raises(
        RuntimeError,
        match=r"cpu_activation: name must be erf, exp, .* or log_table, got 'tanh'",
    ):
        evaluate("tanh", np.zeros(3, np.float32))
    with pytest.raises(RuntimeError, match="cpu_activation: takes float32 or float64"):
        torch.ops.ecgfast.cpu_activation(torch.zeros(3, dtype=torch.bfloat16), "erf")
