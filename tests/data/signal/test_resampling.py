"""Polyphase resampling against scipy's."""

import numpy as np
import pytest
from scipy.signal import resample_poly

from ecgfast.data.signal.resampling import rational_factor, resample
from ecgfast.errors import EcgfastError

RATES = (1000, 250, 257, 128, 360, 400, 512, 999, 100, 1000 / 3, 5000, 62.5, 1500, 2500)


def walk(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).cumsum(-1) + 50


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [2, 3, 17, 501, 5003])
@pytest.mark.parametrize("rate", RATES)
def test_scipys_numbers(rate, n, dtype):
    assert_scipys_numbers(walk(3, n).astype(dtype), rate)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("down", [2, 3, 5])
def test_decimation_just_beyond_one_chunk(down, beyond, dtype):
    assert_scipys_numbers(walk(2, 512 * down + beyond).astype(dtype), 500 * down)


def assert_scipys_numbers(signal, rate):
    dtype = signal.dtype
    up, down = rational_factor(rate, 500)
    want = resample_poly(signal.astype(float), up, down, axis=-1, padtype="line")
    got = resample(signal, rate)
    assert got.dtype == dtype
    assert got.shape == want.shape
    scale = np.abs(want).max()
    np.testing.assert_allclose(got / scale, want / scale, atol=1e-12 if dtype == np.float64 else 2e-6)


@pytest.mark.parametrize(("rate", "target"), [(500, 1000), (500, 125), (977, 100)])
def test_any_target(rate, target):
    signal = walk(2, 700)
    up, down = rational_factor(rate, target)
    want = resample_poly(signal, up, down, axis=-1, padtype="line")
    np.testing.assert_allclose(resample(signal, rate, target), want, atol=1e-9)


def test_strided_and_stacked_signals():
    signal = walk(2, 5, 900)[:, ::2, ::3].swapaxes(0, 1)
    want = resample_poly(signal, 2, 1, axis=-1, padtype="line")
    np.testing.assert_allclose(resample(signal, 250), want, atol=1e-10)
    one = resample(signal[0, 0], 250)
    np.testing.assert_array_equal(one, resample(signal, 250)[0, 0])


def test_a_single_sample_is_held():
    np.testing.assert_allclose(resample(np.array([[7.0], [-2.0]]), 250), [[7, 7], [-2, -2]], rtol=1e-3)


def test_same_rate_is_no_copy():
    signal = walk(2, 10)
    assert resample(signal, 500) is signal


@pytest.mark.parametrize(
    ("signal", "rate", "message"),
    [
        (np.zeros((2, 5)), 0.0, "rate: got 0.0 Hz"),
        (np.zeros((2, 5)), np.nan, "rate: got nan Hz"),
        (np.zeros((2, 5)), 1e-5, "rate: 1e-05 to 500 Hz is a factor beyond"),
        (np.zeros((2, 5), np.int16), 250.0, "signal: got int16"),
        (np.zeros((2, 0)), 250.0, "want at least one sample"),
    ],
)
def test_bad_input(signal, rate, message):
    with pytest.raises(EcgfastError, match=message):
        resample(signal, rate)
