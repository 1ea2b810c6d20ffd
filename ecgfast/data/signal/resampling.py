"""Polyphase resampling by a rational factor.

The filter is `scipy.signal.resample_poly`'s: a Kaiser window (beta 5) of 10 zero crossings on either side,
cut off at the lower of the two Nyquist frequencies. Here the samples are laid out by phase first, so that
every tap is a multiply-add over contiguous samples. A decimation leaves out the taps that are zero, and adds
samples that share a tap before they are multiplied.
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
    taps, before = phases(up, down)
    resample_rows(rows, (up, down), (taps.astype(signal.dtype), before), out)
    return out.reshape(*signal.shape[:-1], out.shape[-1])


def _low_pass(up: int, down: int) -> np.ndarray:
    """The low-pass on the finer grid, the gain of `up` in it; its middle is in the middle."""
    widest = max(up, down)
    half = _ZERO_CROSSINGS * widest
    at = np.arange(-half, half + 1)
    low_pass = np.sinc(at / widest) / widest * np.kaiser(2 * half + 1, _KAISER_BETA)
    return low_pass * (up / low_pass.sum())


@lru_cache(maxsize=16)
def phases(up: int, down: int) -> tuple[np.ndarray, int]:
    """The low-pass, by phase.

    Of a decimation (up = 1) it is half of it: from its middle to before the last tap, a zero of the sinc.
    Else output j is the sum over k of taps[j * down % up, k] * input[j * down // up + before - k]; samples
    outside the input are asked for too.

    Returns:
        float64 [up, taps per phase], and `before`.
    """
    assert gcd(up, down) == 1
    if up == 1:
        return _low_pass(up, down)[np.newaxis, _ZERO_CROSSINGS * down : -1].copy(), 0
    half = _ZERO_CROSSINGS * max(up, down)
    low_pass = _low_pass(up, down)
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
def resample_rows(
    rows: np.ndarray, factor: tuple[int, int], low_pass: tuple[np.ndarray, int], out: np.ndarray
) -> None:
    """Resample rows [..., n] by `rational_factor` into `out`, with the low-pass that `phases` gives."""
    (up, down), (taps, before) = factor, low_pass
    if up == 1:
        _decimate_rows(rows, taps[0], out)
    else:
        _resample_rows(rows, up, down, taps, before, out)


@numba.njit(nogil=True, cache=True)
def _resample_rows(
    rows: np.ndarray, up: int, down: int, taps: np.ndarray, before: int, out: np.ndarray
) -> None:
    n, per_phase = rows.shape[1], taps.shape[1]
    n_out = out.shape[1]
    after = per_phase - before
    split = np.empty((down, (n + per_phase + down) // down + 2), dtype=rows.dtype)
    acc = np.empty(_CHUNK, dtype=rows.dtype)
    for r in range(rows.shape[0]):
        _split(rows[r], after, split)
        for phase in range(min(up, n_out)):
            _one_phase(split, up, down, taps[phase * down % up], before + after, phase, acc, out[r])


@numba.njit(nogil=True, cache=True)
def _decimate_rows(rows: np.ndarray, taps: np.ndarray, out: np.ndarray) -> None:
    """Keep one sample of `down` behind a symmetric low-pass, of which taps [10 * down] are one half."""
    down = len(taps) // _ZERO_CROSSINGS
    width = out.shape[1] + 2 * _ZERO_CROSSINGS
    split = np.empty((down, width), dtype=rows.dtype)
    for r in range(rows.shape[0]):
        _split(rows[r], len(taps), split)
        for start in range(0, out.shape[1], _CHUNK):
            _decimate(split, start, taps, out[r, start : start + _CHUNK])


@numba.njit(nogil=True, cache=True)
def _split(row: np.ndarray, after: int, split: np.ndarray) -> None:
    """Lay out a row by phase: sample i at (i + after) % down, (i + after) // down."""
    n, (down, width) = len(row), split.shape
    first = row[0]
    slope = (row[n - 1] - first) / max(n - 1, 1)
    begin = min(width, -(-after // down))  # columns begin .. end have samples alone
    end = max(begin, min(width, (n + after) // down))
    for d in range(down):
        for column in range(begin):
            i = column * down + d - after
            split[d, column] = row[i] if 0 <= i < n else first + slope * i
        for column in range(end, width):
            i = column * down + d - after
            split[d, column] = row[i] if 0 <= i < n else first + slope * i
    inner = row[min(n, begin * down - after) :]
    if down == 2:  # the compiler knows how to take two apart, several at once
        even, odd = split[0, begin:end], split[1, begin:end]
        for column in range(end - begin):
            even[column] = inner[2 * column]
            odd[column] = inner[2 * column + 1]
        return
    for d in range(down):
        out = split[d, begin:end]
        for column in range(len(out)):
            out[column] = inner[column * down + d]


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _decimate(split: np.ndarray, start: int, taps: np.ndarray, out: np.ndarray) -> None:
    """Outputs from `start` on: output 0 stands at column 10 of the first phase.

    The taps at multiples of `down` but the first are zero. Of those that lie `down` apart, five at a time.
    """
    down, count = len(split), len(out)
    middle = split[0, start + _ZERO_CROSSINGS :][:count]
    for i in range(count):
        out[i] = taps[0] * middle[i]
    for d in range(1, down):
        later, earlier = split[d], split[down - d]
        for k in range(0, _ZERO_CROSSINGS, 5):
            a, b, c = taps[k * down + d], taps[(k + 1) * down + d], taps[(k + 2) * down + d]
            e, f = taps[(k + 3) * down + d], taps[(k + 4) * down + d]
            at, to = start + _ZERO_CROSSINGS + k, start + _ZERO_CROSSINGS - 1 - k
            p, q, r = later[at:][:count], later[at + 1 :][:count], later[at + 2 :][:count]
            s, t = later[at + 3 :][:count], later[at + 4 :][:count]
            u, v, w = earlier[to:][:count], earlier[to - 1 :][:count], earlier[to - 2 :][:count]
            x, y = earlier[to - 3 :][:count], earlier[to - 4 :][:count]
            for i in range(count):
                near = a * (p[i] + u[i]) + b * (q[i] + v[i]) + c * (r[i] + w[i])
                out[i] += near + e * (s[i] + x[i]) + f * (t[i] + y[i])


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
