"""The vector functions of the CPU kernels against fp64, in units in the last place, on every ISA."""

import math

import numpy as np
import pytest
import torch

import ecgfast


def evaluate(x, function):
    return torch.ops.ecgfast.cpu_activation(x, function)


def ulps(got, want):
    """Distance to the fp64 values, in steps between the fp32 numbers there."""
    want = want.numpy()
    step = np.spacing(np.abs(want.astype(np.float32)))
    return (np.abs(got.double().numpy() - want) / step.astype(np.float64)).max()


def floats(low, high, n):
    """``n`` fp32 numbers between two positive ones, evenly spread over their bit patterns."""
    bits = np.linspace(*np.array([low, high], np.float32).view(np.int32), n).astype(np.int32)
    return torch.from_numpy(bits.view(np.float32))


@pytest.fixture(params=ecgfast.usable_cpu_isas())
def isa(request):
    previous = ecgfast.cpu_isa()
    ecgfast.set_cpu_isa(request.param)
    yield request.param
    ecgfast.set_cpu_isa(previous)


def test_exp(isa):
    x = torch.cat([-floats(1e-30, 87.336, 1 << 19), floats(1e-30, 88.722, 1 << 19)])
    x = torch.cat([x, torch.linspace(-87.336, 88.722, 1 << 19)])
    assert ulps(evaluate(x, "exp"), x.double().exp()) < 1.2


def test_exp_at_the_edges(isa):
    x = torch.tensor([0.0, -0.0, -87.4, -1e30, -math.inf, 88.8, 1e30, math.inf, math.nan, 1e-40])
    got = evaluate(x, "exp")
    want = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, math.inf, math.inf, math.inf, math.nan, 1.0])
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_exp_nonpositive(isa):
    above = torch.linspace(0, 1e-3, 1 << 10)  # by rounding
    x = torch.cat([-floats(1e-30, 87.336, 1 << 19), torch.linspace(-87.336, 0, 1 << 19), above])
    assert ulps(evaluate(x, "exp_nonpositive"), x.double().exp()) < 1.2
    edges = torch.tensor([0.0, -0.0, -1e-40, -87.4, -1e30, -math.inf, math.nan])
    want = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, math.nan])
    got = evaluate(edges, "exp_nonpositive")
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_log_table(isa):
    below_one = torch.cat(
        [floats(2.0**-126, 1 - 2.0**-24, 1 << 20), 1.0 - torch.arange(1, 1 << 14) * 2.0**-24]
    )
    assert ulps(evaluate(below_one, "log_table"), below_one.double().log()) < 3
    above = floats(1.0, 3e38, 1 << 20)
    error = (evaluate(above, "log_table").double() - above.double().log()).abs()
    assert (error <= 2.0**-23 * above.double().log().clamp(min=0.2)).all()
    assert torch.equal(evaluate(-above, "log_table"), evaluate(above, "log_table"))


def test_gumbel_noise_for_every_uniform_number(isa):
    u = (torch.arange(1 << 23, dtype=torch.float64) + 0.5) * 2.0**-23
    noise = -evaluate(evaluate(u.float(), "log_table"), "log_table")
    want = -torch.log(-torch.log(u))
    assert ((noise - want).abs() <= 3e-7 * want.abs().clamp(min=1)).all()


def test_log(isa):
    smallest, largest = 2.0**-149, float(np.finfo(np.float32).max)
    near_one = torch.cat([floats(0.5, 1.0, 1 << 19), floats(1.0, 2.0, 1 << 19)])
    x = torch.cat([floats(smallest, largest, 1 << 20), floats(smallest, 1.2e-38, 1 << 16), near_one])
    x = torch.cat([x, 1.0 - torch.arange(1, 1 << 12) * 2.0**-24])  # where log is small
    assert ulps(evaluate(x, "log"), x.double().log()) < 1
    normal = x[x >= 2.0**-126]
    assert ulps(evaluate(normal, "log_normal"), normal.double().log()) < 1


def test_log_at_the_edges(isa):
    x = torch.tensor([0.0, -0.0, 1.0, math.inf, -1.0, -1e-40, -math.inf, math.nan])
    got = evaluate(x, "log")
    want = torch.tensor([-math.inf, -math.inf, 0.0, math.inf] + [math.nan] * 4)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
