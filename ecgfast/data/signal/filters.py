"""Zero-phase filters along time: band-pass, notch, baseline removal.

Butterworth and notch sections are run forward and backward as `scipy.signal.sosfiltfilt` does, several leads
side by side: a recursion over time cannot be vectorised, over leads it can.
"""

from functools import lru_cache

import numba
import numpy as np

from ecgfast.errors import EcgfastError

NOTCH_QUALITY = 30.0
"""Centre frequency of a notch over its width at -3 dB."""


def bandpass(
    signal: np.ndarray, rate: float, low: float | None = 0.5, high: float | None = 40.0, order: int = 2
) -> np.ndarray:
    """Butterworth band-pass without phase shift, along the last axis.

    Args:
        signal: float32 or float64 [..., n]; n more than about 6 samples per order.
        rate: Samples per second.
        low: Lower cut-off in Hz at which the two passes together give -6 dB; None: a low-pass.
        high: Upper cut-off in Hz; None: a high-pass.
        order: Of the Butterworth design, run in both directions.

    Returns:
        The same shape and dtype; computed in float64.

    Raises:
        EcgfastError: cut-offs out of order or beyond rate / 2, no cut-off, a signal too short or of another
            dtype.
    """
    if not 1 <= order <= 10:
        raise EcgfastError(f"order: got {order}, want 1 to 10")
    _check_band(rate, low, high)
    return sosfiltfilt(_butterworth(order, low, high, rate), signal)


def notch(signal: np.ndarray, rate: float, frequency: float, quality: float = NOTCH_QUALITY) -> np.ndarray:
    """Take out one frequency (mains hum), without phase shift, along the last axis.

    Args:
        signal: float32 or float64 [..., n].
        rate: Samples per second.
        frequency: Hz, below rate / 2.
        quality: `frequency` over the notch's width at -3 dB.

    Returns:
        The same shape and dtype; computed in float64.

    Raises:
        EcgfastError: a frequency beyond rate / 2, a quality that is not positive, a signal too short or of
            another dtype.
    """
    _check_band(rate, frequency, None)
    if not 0 < quality < np.inf:
        raise EcgfastError(f"quality: got {quality}, want a positive number")
    return sosfiltfilt(_notch(frequency, quality, rate), signal)


def remove_baseline(signal: np.ndarray, rate: float, windows: tuple[float, ...] = (0.2, 0.6)) -> np.ndarray:
    """Subtract the baseline found by running medians one after another, along the last axis.

    The usual medians of 200 ms and 600 ms take out first the QRS complexes and P waves, then the T waves
    (de Chazal et al., IEEE Trans Biomed Eng 51, 2004). Beyond its ends the signal is repeated, as in
    `scipy.ndimage.median_filter(mode="nearest")`.

    Args:
        signal: float32 or float64 [..., n].
        rate: Samples per second.
        windows: Widths in seconds, each made an odd number of samples.

    Returns:
        The same shape and dtype.

    Raises:
        EcgfastError: a width that is not positive, a signal of another dtype.
    """
    rows = _rows(signal)
    baseline = rows
    for width in windows:
        if not 0 < width * rate < 1e6:
            raise EcgfastError(f"windows: got {width} s at {rate:g} Hz, want 1 to a million samples")
        baseline = _running_median(baseline, int(width * rate) // 2)
    return (rows - baseline).reshape(signal.shape)


def sosfiltfilt(sections: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """Run second-order sections forward and backward along the last axis.

    The numbers are those of `scipy.signal.sosfiltfilt` with its default, odd padding.

    Args:
        sections: float64 [S, 6], as `scipy.signal` designs them.
        signal: float32 or float64 [..., n]; n more than the padding, 3 * (2 S + 1) samples at most.

    Returns:
        The same shape and dtype; computed in float64.

    Raises:
        EcgfastError: a signal too short or of another dtype, or sections of another shape.
    """
    sections = np.ascontiguousarray(sections, dtype=np.float64)
    if sections.ndim != 2 or sections.shape[1] != 6:
        raise EcgfastError(f"sections: got shape {sections.shape}, want [S, 6]")
    rows = _rows(signal)
    edge = _edge(sections)
    if rows.shape[1] <= edge:
        raise EcgfastError(f"signal: got {rows.shape[1]} samples, want more than {edge} for this filter")
    out = np.empty_like(rows)
    settled = _settled(sections.tobytes())
    _filter_rows(rows, sections / sections[:, 3:4], settled, edge, out)
    return out.reshape(signal.shape)


_MOST_GROUPS = 4  # of four leads each, filtered side by side


def _rows(signal: np.ndarray) -> np.ndarray:
    if signal.dtype not in (np.float32, np.float64) or signal.ndim == 0:
        got = f"{signal.dtype} {list(signal.shape)}"
        raise EcgfastError(f"signal: got {got}, want float32 or float64 [..., n]")
    return np.ascontiguousarray(signal).reshape(-1, signal.shape[-1])


def _check_band(rate: float, low: float | None, high: float | None) -> None:
    if not 0 < rate < np.inf:
        raise EcgfastError(f"rate: got {rate} Hz, want a positive number")
    edges = [edge for edge in (low, high) if edge is not None]
    if not edges or not all(0 < edge < rate / 2 for edge in edges) or edges != sorted(set(edges)):
        got = " to ".join("none" if edge is None else f"{edge:g}" for edge in (low, high))
        raise EcgfastError(f"cut-off: got {got} Hz, want ascending, above 0 and below {rate / 2:g} Hz")


@lru_cache(maxsize=32)
def _butterworth(order: int, low: float | None, high: float | None, rate: float) -> np.ndarray:
    from scipy import signal as design  # slow to load, and filters are off by default

    kind = "bandpass" if low and high else "highpass" if low else "lowpass"
    edges = [edge for edge in (low, high) if edge is not None]
    return design.butter(order, edges if len(edges) == 2 else edges[0], kind, fs=rate, output="sos")


@lru_cache(maxsize=32)
def _notch(frequency: float, quality: float, rate: float) -> np.ndarray:
    from scipy import signal as design

    return design.tf2sos(*design.iirnotch(frequency, quality, fs=rate))


@lru_cache(maxsize=32)
def _settled(sections: bytes) -> np.ndarray:
    """`sosfilt_zi`, which takes longer than filtering a lead."""
    from scipy.signal import sosfilt_zi

    return sosfilt_zi(np.frombuffer(sections).reshape(-1, 6))


def _edge(sections: np.ndarray) -> int:
    """Samples of padding, as scipy counts them."""
    taps = 2 * len(sections) + 1
    return 3 * (taps - min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum()))


@numba.njit(nogil=True, cache=True)
def _filter_rows(
    rows: np.ndarray, sections: np.ndarray, settled: np.ndarray, edge: int, out: np.ndarray
) -> None:
    n, last = rows.shape[1], rows.shape[0] - 1
    groups = min((rows.shape[0] + 3) // 4, _MOST_GROUPS)
    x = np.empty((n + 2 * edge, groups, 4))
    state = np.empty((len(sections), groups, 2, 4))
    for first in range(0, rows.shape[0], 4 * groups):
        for g in range(groups):  # beyond the last row, that once more
            at = first + 4 * g
            r0, r1, r2, r3 = (
                rows[min(at, last)],
                rows[min(at + 1, last)],
                rows[min(at + 2, last)],
                rows[min(at + 3, last)],
            )
            _interleave(r0, r1, r2, r3, edge, x[:, g])
        _settle(x[0], settled, state)
        _run_sections(x, 0, 1, sections, state)
        _settle(x[len(x) - 1], settled, state)
        _run_sections(x, len(x) - 1, -1, sections, state)
        for g in range(groups):
            at = first + 4 * g
            for k in range(min(4, rows.shape[0] - at)):
                out[at + k] = x[edge : edge + n, g, k]


@numba.njit(nogil=True, cache=True)
def _interleave(
    r0: np.ndarray, r1: np.ndarray, r2: np.ndarray, r3: np.ndarray, edge: int, x: np.ndarray
) -> None:
    """Four rows [n] side by side in x [n + 2 edge, 4], each continued oddly about its ends."""
    n = len(r0)
    for i in range(n):
        x[edge + i, 0], x[edge + i, 1], x[edge + i, 2], x[edge + i, 3] = r0[i], r1[i], r2[i], r3[i]
    for i in range(edge):
        for k in range(4):
            x[i, k] = 2.0 * x[edge, k] - x[2 * edge - i, k]
            x[edge + n + i, k] = 2.0 * x[edge + n - 1, k] - x[edge + n - 2 - i, k]


@numba.njit(nogil=True, cache=True)
def _settle(x: np.ndarray, settled: np.ndarray, state: np.ndarray) -> None:
    """The state of sections that had this sample as input for ever."""
    for s in range(len(settled)):
        for g in range(x.shape[0]):
            for k in range(2):
                state[s, g, k] = settled[s, k] * x[g]


@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _run_sections(x: np.ndarray, first: int, step: int, sections: np.ndarray, state: np.ndarray) -> None:
    """All sections over x [n, groups, 4] in place, from sample `first` on; transposed direct form II.

    Four lanes are spelt out, all loads before all stores: so the compiler packs them into vectors, and the
    recursions of several sections and groups overlap.
    """
    i = first
    for _ in range(x.shape[0]):
        for s in range(sections.shape[0]):
            b0, b1, b2 = sections[s, 0], sections[s, 1], sections[s, 2]
            a1, a2 = sections[s, 4], sections[s, 5]
            for g in range(x.shape[1]):
                v0, v1, v2, v3 = x[i, g, 0], x[i, g, 1], x[i, g, 2], x[i, g, 3]
                p0, p1, p2, p3 = state[s, g, 0, 0], state[s, g, 0, 1], state[s, g, 0, 2], state[s, g, 0, 3]
                q0, q1, q2, q3 = state[s, g, 1, 0], state[s, g, 1, 1], state[s, g, 1, 2], state[s, g, 1, 3]
                y0, y1, y2, y3 = b0 * v0 + p0, b0 * v1 + p1, b0 * v2 + p2, b0 * v3 + p3
                p0 = b1 * v0 - a1 * y0 + q0
                p1 = b1 * v1 - a1 * y1 + q1
                p2 = b1 * v2 - a1 * y2 + q2
                p3 = b1 * v3 - a1 * y3 + q3
                q0, q1 = b2 * v0 - a2 * y0, b2 * v1 - a2 * y1
                q2, q3 = b2 * v2 - a2 * y2, b2 * v3 - a2 * y3
                x[i, g, 0], x[i, g, 1], x[i, g, 2], x[i, g, 3] = y0, y1, y2, y3
                state[s, g, 0, 0], state[s, g, 0, 1], state[s, g, 0, 2], state[s, g, 0, 3] = p0, p1, p2, p3
                state[s, g, 1, 0], state[s, g, 1, 1], state[s, g, 1, 2], state[s, g, 1, 3] = q0, q1, q2, q3
        i += step


@numba.njit(nogil=True, cache=True)
def _running_median(rows: np.ndarray, half: int) -> np.ndarray:
    """Medians of 2 * half + 1 samples around each; the end samples are repeated beyond the ends."""
    n = rows.shape[1]
    out = np.empty_like(rows)
    window = np.empty(2 * half + 1, dtype=rows.dtype)  # sorted
    for r in range(rows.shape[0]):
        row = rows[r]
        for k in range(-half, half + 1):
            window[k + half] = row[min(max(k, 0), n - 1)]
        window.sort()
        out[r, 0] = window[half]
        for i in range(1, n):
            _replace(window, row[max(i - 1 - half, 0)], row[min(i + half, n - 1)])
            out[r, i] = window[half]
    return out


@numba.njit(nogil=True, cache=True)
def _replace(window: np.ndarray, old: float, new: float) -> None:
    """Exchange one value of a sorted array for another."""
    at = np.searchsorted(window, old)
    if new >= old:
        while at + 1 < len(window) and window[at + 1] < new:
            window[at] = window[at + 1]
            at += 1
    else:
        while at > 0 and window[at - 1] > new:
            window[at] = window[at - 1]
            at -= 1
    window[at] = new
