"""Zero-phase filters against scipy's."""

import numpy as np
import pytest
from scipy import ndimage
from scipy import signal as oracle

from ecgfast.data.signal.filters import bandpass, notch, remove_baseline, sosfiltfilt
from ecgfast.errors import EcgfastError

TOLERANCE = {np.float64: 1e-8, np.float32: 1e-5}


def walk(*shape: int, dtype: type = np.float64) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape).cumsum(-1) + 50).astype(dtype)


def close(got: np.ndarray, want: np.ndarray, dtype: type) -> None:
    assert got.dtype == dtype
    assert got.shape == want.shape
    scale = np.abs(want).max()
    np.testing.assert_allclose(got / scale, want / scale, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [40, 501, 5000])
@pytest.mark.parametrize("rows", [1, 3, 4, 12, 16, 17, 35])
def test_bandpass(rows, n, dtype):
    signal = walk(rows, n, dtype=dtype)
    for order in (1, 2, 3):
        sections = oracle.butter(order, [0.5, 40], "bandpass", fs=500, output="sos")
        want = oracle.sosfiltfilt(sections, signal.astype(float))
        close(bandpass(signal, 500, order=order), want, dtype)


@pytest.mark.parametrize(
    ("low", "high", "kind", "edges"), [(0.67, None, "highpass", 0.67), (None, 100.0, "lowpass", 100)]
)
def test_one_cut_off(low, high, kind, edges):
    signal = walk(5, 800)
    sections = oracle.butter(2, edges, kind, fs=500, output="sos")
    close(bandpass(signal, 500, low, high), oracle.sosfiltfilt(sections, signal), np.float64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("frequency", [50.0, 60.0])
def test_notch(frequency, dtype):
    signal = walk(12, 2500, dtype=dtype)
    sections = oracle.tf2sos(*oracle.iirnotch(frequency, 30, fs=500))
    close(notch(signal, 500, frequency), oracle.sosfiltfilt(sections, signal.astype(float)), dtype)


def test_notch_takes_the_hum_and_leaves_the_rest():
    t = np.arange(5000) / 500
    beat, hum = np.sin(2 * np.pi * 8 * t), np.sin(2 * np.pi * 50 * t)
    left = notch((beat + hum)[None], 500, 50.0)[0]
    assert np.abs(left - beat)[500:-500].max() < 0.01


def test_sections_that_are_not_normalised_and_shapes():
    signal = walk(2, 3, 400).swapaxes(0, 1)[:, :, ::2]
    sections = 2 * oracle.ellip(5, 0.5, 40, 0.1, output="sos")
    want = oracle.sosfiltfilt(sections / 2, signal)
    close(sosfiltfilt(sections, signal), want, np.float64)
    close(sosfiltfilt(sections, signal[0, 0]), want[0, 0], np.float64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [1, 2, 50, 301, 1200])
def test_baseline_is_two_running_medians(n, dtype):
    signal = walk(3, n, dtype=dtype)
    want = signal
    for width in (101, 301):
        want = ndimage.median_filter(want, size=(1, width), mode="nearest")
    np.testing.assert_array_equal(remove_baseline(signal, 500), signal - want)


def test_baseline_with_many_equal_samples():
    signal = np.random.default_rng(2).integers(-2, 3, (4, 600)).astype(float)
    want = signal - ndimage.median_filter(signal, size=(1, 51), mode="nearest")
    np.testing.assert_array_equal(remove_baseline(signal, 500, (0.1,)), want)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: bandpass(x, 500, 40, 0.5), "cut-off: got 40 to 0.5 Hz"),
        (lambda x: bandpass(x, 500, None, None), "cut-off: got none to none Hz"),
        (lambda x: bandpass(x, 500, 0.5, 250), "below 250 Hz"),
        (lambda x: bandpass(x, 0, 0.5, 40), "rate: got 0 Hz"),
        (lambda x: bandpass(x, 500, order=0), "order: got 0"),
        (lambda x: bandpass(x[:, :15], 500), "got 15 samples, want more than 15"),
        (lambda x: bandpass(x.astype(np.int16), 500), "signal: got int16"),
        (lambda x: notch(x, 500, 300), "cut-off: got 300"),
        (lambda x: notch(x, 500, 50, quality=0), "quality: got 0"),
        (lambda x: remove_baseline(x, 500, (0.0,)), "windows: got 0.0 s"),
        (lambda x: sosfiltfilt(np.ones((2, 5)), x), "sections: got shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(EcgfastError, match=message):
        call(walk(2, 100))
