"""Polyphase resampling by a rational factor.

The filter is `scipy.signal.resample_poly`'s: a Kaiser window (beta 5) of 10 zero crossings on either side,
cut off at the lower of the two Nyquist frequencies. Here the samples are laid out by phase first, so that
every tap is a multiply-add over contiguous samples.
"""

from fractions import Fraction
from functools import lru_cache
from math import gcd

import numba
import numpy as np

from ecgfast.errors import EcgfastError

_ZERO_CROSSINGS = 10
_KAISER_BETA = 5.0
_MAX_FACTOR = 10_000
_CHUNK = 512  # outputs of one phase at a time: they stay in the first-level cache over all taps


def rational_factor(rate: float, target: float) -> tuple[int, int]:
    """(up, down) in lowest terms with target / rate = up / down; both at most 10,000.

    Raises:
        EcgfastError: a rate that is not positive and finite, or a factor beyond 10,000.
    """
    for name, value in (("rate", rate), ("target", target)):
        if not 0 < value < np.inf:
            raise EcgfastError(f"{name}: got {value} Hz, want a positive number")
    ratio = Fraction(target / rate).limit_denominator(_MAX_FACTOR)
    if not 0 < ratio.numerator <= _MAX_FACTOR:
        raise EcgfastError(f"rate: {rate:g} to {target:g} Hz is a factor beyond {_MAX_FACTOR}")
    return ratio.numerator, ratio.denominator


def resampled_length(n: int, up: int, down: int) -> int:
    """Samples that :func:`resample` makes of n: ceil(n * up / down)."""
    return -(-n * up // down)


def resample(signal: np.ndarray, rate: float, target: float = 500.0) -> np.ndarray:
    """Resample along the last axis with a zero-phase polyphase low-pass.

    Beyond its ends the signal goes on along the line through its first and last sample, so that an offset
    leaves no step there: `scipy.signal.resample_poly(..., padtype="line")`, of which this gives the numbers.

    Args:
        signal: float32 or float64 [..., n], any stride; n >= 1.
        rate: Its samples per second.
        target: Samples per second wanted.

    Returns:
        The same dtype, [..., ceil(n * target / rate)]; `signal` itself where the rates are equal.

    Raises:
        EcgfastError: rates that are not positive, an empty signal, or another dtype.
    """
    up, down = rational_factor(rate, target)
    if up == down:
        return signal
    if signal.dtype not in (np.float32, np.float64):
        raise EcgfastError(f"signal: got {signal.dtype}, want float32 or float64")
    n = signal.shape[-1] if signal.ndim else 0
    if n == 0:
        raise EcgfastError(f"signal: got shape {signal.shape}, want at least one sample")
    rows = np.ascontiguousarray(signal).reshape(-1, n)
    out = np.empty((len(rows), resampled_length(n, up, down)), dtype=signal.dtype)
    taps, before = _phases(up, down)
    _resample_rows(rows, up, down, taps.astype(signal.dtype), before, out)
    return out.reshape(*signal.shape[:-1], out.shape[-1])


@lru_cache(maxsize=16)
def _phases(up: int, down: int) -> tuple[np.ndarray, int]:
    """The low-pass, by phase.

    Output j is the sum over k of taps[j * down % up, k] * input[j * down // up + before - k]; samples outside
    the input are asked for too.

    Returns:
        float64 [up, taps per phase], and `before`.
    """
    assert gcd(up, down) == 1
    widest = max(up, down)
    half = _ZERO_CROSSINGS * widest
    at = np.arange(-half, half + 1)
    low_pass = np.sinc(at / widest) / widest * np.kaiser(2 * half + 1, _KAISER_BETA)
    low_pass *= up / low_pass.sum()
    # Tap m stands at offset m - half from the output on the finer grid; phase p has those with
    # (p + half - m) divisible by up, and reads the input at (p + half - m) / up from the output's.
    before = (up - 1 + half) // up
    per_phase = (half + up * before) // up + 1
    taps = np.zeros((up, per_phase))
    for phase in range(up):
        m = phase + half - up * (before - np.arange(per_phase))
        inside = (m >= 0) & (m <= 2 * half)
        taps[phase, inside] = low_pass[m[inside]]
    return taps, before


@numba.njit(nogil=True, cache=True)
def _resample_rows(
    rows: np.ndarray, up: int, down: int, taps: np.ndarray, before: int, out: np.ndarray
) -> None:
    n, per_phase = rows.shape[1], taps.shape[1]
    n_out = out.shape[1]
    after = per_phase - before
    # sample i lies at (i + after) % down, (i + after) // down
    width = (n + per_phase + down) // down + 2
    split = np.empty((down, width), dtype=rows.dtype)
    acc = np.empty(_CHUNK, dtype=rows.dtype)
    for r in range(rows.shape[0]):
        first = rows[r, 0]
        slope = (rows[r, n - 1] - first) / max(n - 1, 1)
        for d in range(down):
            for column in range(width):
                i = column * down + d - after
                split[d, column] = rows[r, i] if 0 <= i < n else first + slope * i
        for phase in range(min(up, n_out)):
            _one_phase(split, up, down, taps[phase * down % up], before + after, phase, acc, out[r])


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _one_phase(
    split: np.ndarray,
    up: int,
    down: int,
    taps: np.ndarray,
    shift: int,
    phase: int,
    acc: np.ndarray,
    out: np.ndarray,
) -> None:
    """Outputs phase, phase + up, ...: their inputs lie `down` apart, side by side in `split`."""
    total = (len(out) - phase + up - 1) // up
    base = phase * down // up + shift
    for start in range(0, total, _CHUNK):
        count = min(_CHUNK, total - start)
        acc[:count] = 0
        k = 0
        while k + 4 <= len(taps):
            a, b, c, d = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
            x = split[(base - k) % down, (base - k) // down + start :][:count]
            y = split[(base - k - 1) % down, (base - k - 1) // down + start :][:count]
            z = split[(base - k - 2) % down, (base - k - 2) // down + start :][:count]
            w = split[(base - k - 3) % down, (base - k - 3) // down + start :][:count]
            for i in range(count):
                acc[i] += a * x[i] + b * y[i] + c * z[i] + d * w[i]
            k += 4
        while k < len(taps):
            a = taps[k]
            x = split[(base - k) % down, (base - k) // down + start :][:count]
            for i in range(count):
                acc[i] += a * x[i]
            k += 1
        for i in range(count):
            out[phase + (start + i) * up] = acc[i]
