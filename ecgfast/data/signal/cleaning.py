"""Small repairs and checks of leads: gaps, scale, cut-off samples, leads that follow from others."""

import numba
import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS, STANDARD_LEADS

HELD_SECONDS = 0.1
"""Shortest run at a lead's highest or lowest value that no heart makes."""

HELD_SHARE = 0.01
"""Part of a lead that two or more such runs may make up."""

HELD_SHARE_ONCE = 0.05
"""Part of a lead that a single such run may make up."""

CUT_SECONDS = 0.01
"""Shortest run at a lead's highest or lowest value, of `CUT_SAMPLES` or more, that may be a cut-off wave."""

CUT_SAMPLES = 3
"""Fewest samples of such a run: two alike are as often the top of a sharp wave."""

CUT_STEPS = 4.5
"""Of a lead's smallest step: at a cut-off wave it falls off by more on both sides. Round tops do by less.

Among 19,000 highest and lowest values of real leads, recorded at 360 to 1000 Hz, and of the same in 255 to
65,535 levels at 100 to 1000 Hz, none has two such runs."""

RAIL_JUMP = 0.1
"""Part of a lead's range by which it leaves a single such run that saturates it, at the converter's end.

The largest of real leads is 0.03."""

_DERIVED = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
"""Weights of I and II, by Einthoven's law and Goldberger's definitions."""


def fill_gaps(signal: np.ndarray, longest: int) -> np.ndarray:
    """Replace runs of non-finite samples by the line between their neighbours, along the last axis.

    A run at an end takes its one neighbour's value; a run longer than `longest` stays as it is.

    Args:
        signal: float32 or float64 [..., n].
        longest: Samples of the longest run that is filled, 0 or more.

    Returns:
        A filled copy; `signal` itself where nothing is missing.

    Raises:
        EcgfastError: another dtype, or a negative length.
    """
    _check_float(signal)
    if longest < 0:
        raise EcgfastError(f"longest: got {longest} samples, want 0 or more")
    if _all_finite(signal.ravel()):
        return signal
    filled = np.array(signal, order="C")
    _fill_rows(filled.reshape(-1, signal.shape[-1]), longest)
    return filled


def standardize(signal: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Z-score every lead over time, then clip: (x - mean) / standard deviation.

    Args:
        signal: float32 or float64 [..., n], finite.
        limit: Clip to -limit .. limit standard deviations; None: no clipping.

    Returns:
        The same shape and dtype; a constant lead becomes zero.

    Raises:
        EcgfastError: another dtype, or a limit that is not positive.
    """
    _check_float(signal)
    if limit is not None and not limit > 0:
        raise EcgfastError(f"limit: got {limit}, want a positive number")
    out = np.array(signal, order="C")
    if out.size:
        _standardize_rows(out.reshape(-1, signal.shape[-1]), np.inf if limit is None else limit)
    return out


def derive_limb_leads(block: np.ndarray, present: list[int]) -> tuple[np.ndarray, list[int]]:
    """Add those of III, aVR, aVL and aVF that are absent where I and II are present.

    Args:
        block: [12, n], absent leads zero; microvolts as int16, or floating point.
        present: Indices of the leads present.

    Returns:
        A block with the leads added, rounded where it is int16, and all leads present, ascending. An int16
        lead that would overflow is left absent.
    """
    one, two = STANDARD_LEADS.index("I"), STANDARD_LEADS.index("II")
    if block.shape[0] != N_LEADS or not {one, two} <= set(present):
        return block, present
    block, found = block.copy(), set(present)
    for name, (a, b) in _DERIVED.items():
        lead = STANDARD_LEADS.index(name)
        if lead in found:
            continue
        derived = a * block[one].astype(np.float64) + b * block[two]
        if block.dtype == np.int16:
            derived = np.rint(derived)
            if np.abs(derived).max(initial=0) > np.iinfo(np.int16).max:
                continue
        block[lead] = derived
        found.add(lead)
    return block, sorted(found)


def cut_off(
    signal: np.ndarray, rate: float, low: float = -np.inf, high: float = np.inf
) -> tuple[float, int] | None:
    """Where one lead saturates: the value it is cut off at, and for how many samples; None if nowhere.

    A lead saturates if it stays at its highest or its lowest value in runs of `HELD_SECONDS` or more that
    make up over `HELD_SHARE` of it, or over `HELD_SHARE_ONCE` if there is only one; or if waves are cut off
    there: the lead stays at the value for `CUT_SECONDS` and leaves it in a jump on either side, twice or
    more, or once by over `RAIL_JUMP` of its range at the end of the converter's. That a value is the end of
    the range says nothing by itself: writers of files scale leads to fill it. A constant lead does not
    saturate.

    Args:
        signal: float32 or float64 [n], finite.
        rate: Samples per second.
        low: Lowest value that the converter can tell, where known.
        high: Highest.
    """
    value, samples = cut_off_lead(signal, _extremes(signal), shortest_runs(rate), low, high)
    return (value, samples) if samples else None


def cut_offs(signals: np.ndarray, rate: float, rails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`cut_off` of several leads at once.

    Args:
        signals: float32 or float64 [leads, n], rows without gaps between their samples.
        rate: Samples per second.
        rails: Lowest and highest value that the converter can tell, float64 [leads, 2].

    Returns:
        Values, and how many samples are at them: 0 in a lead that does not saturate, -1 in one that has
        samples that are not finite.
    """
    values, samples = np.zeros(len(signals)), np.zeros(len(signals), dtype=np.int64)
    if signals.shape[1]:
        _cut_off_rows(signals, shortest_runs(rate), rails, values, samples)
    return values, samples


def shortest_runs(rate: float) -> tuple[float, float]:
    """Samples of the shortest runs that count: of those held, and of those cut off."""
    return HELD_SECONDS * rate, max(float(CUT_SAMPLES), CUT_SECONDS * rate)


def _check_float(signal: np.ndarray) -> None:
    if signal.dtype not in (np.float32, np.float64) or signal.ndim == 0:
        got = f"{signal.dtype} {list(signal.shape)}"
        raise EcgfastError(f"signal: got {got}, want float32 or float64 [..., n]")


@numba.njit(nogil=True, cache=True)
def _fill_rows(rows: np.ndarray, longest: int) -> None:
    n = rows.shape[1]
    for r in range(rows.shape[0]):
        i = 0
        while i < n:
            if np.isfinite(rows[r, i]):
                i += 1
                continue
            start = i
            while i < n and not np.isfinite(rows[r, i]):
                i += 1
            if i - start > longest or i - start == n:
                continue
            left = rows[r, start - 1] if start > 0 else rows[r, i]
            right = rows[r, i] if i < n else left
            for k in range(start, i):
                rows[r, k] = left + (right - left) * (k - start + 1) / (i - start + 1)


@numba.njit(nogil=True, cache=True)
def _standardize_rows(rows: np.ndarray, limit: float) -> None:
    n = rows.shape[1]
    for r in range(rows.shape[0]):
        row = rows[r]
        total = 0.0
        for i in range(n):
            total += row[i]
        mean = total / n
        squares = 0.0
        for i in range(n):
            squares += (row[i] - mean) ** 2
        deviation = np.sqrt(squares / n)
        # what is left of a constant lead is rounding
        scale = 1.0 / deviation if deviation > 1e-6 * abs(mean) and deviation > 0 else 0.0
        for i in range(n):
            row[i] = min(max((row[i] - mean) * scale, -limit), limit)


@numba.njit(nogil=True, cache=True)
def cut_off_lead(
    signal: np.ndarray,
    extremes: tuple[float, float],
    runs: tuple[float, float],
    low: float,
    high: float,
) -> tuple[float, int]:
    """The value at which a lead is cut off, and the samples there: 0 if it is not.

    See `cut_off`; the signal may be whole numbers, `runs` are the `shortest_runs`.
    """
    n = len(signal)
    bottom, top = extremes
    held_run, cut_run = runs
    if bottom == top:
        return bottom, 0
    shortest = int(np.ceil(min(held_run, cut_run)))
    at_bottom, at_top = _have_three(signal, bottom, top)
    for value, three, at_rail in ((bottom, at_bottom, bottom <= low), (top, at_top, top >= high)):
        if (shortest >= CUT_SAMPLES and not three) or not _has_run(signal, value, shortest):
            continue
        total, held, n_held = _runs_at(signal, value, held_run)
        share = HELD_SHARE if n_held > 1 else HELD_SHARE_ONCE
        if held > share * n:
            return value, total
        n_cuts, jump = _cuts_at(signal, value, cut_run)
        if n_cuts > 1 or (at_rail and jump > RAIL_JUMP * (float(top) - float(bottom))):
            return value, total
    return bottom, 0


@numba.njit(nogil=True, cache=True)
def _cut_off_rows(
    rows: np.ndarray,
    runs: tuple[float, float],
    rails: np.ndarray,
    values: np.ndarray,
    samples: np.ndarray,
) -> None:
    for r in range(len(rows)):
        if _all_finite(rows[r]):
            extremes = _extremes(rows[r])
            values[r], samples[r] = cut_off_lead(rows[r], extremes, runs, rails[r, 0], rails[r, 1])
        else:
            samples[r] = -1


@numba.njit(nogil=True, cache=True)
def _extremes(signal: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value of a signal [n], n >= 1, that has no NaN."""
    a = b = c = d = e = f = g = h = signal[0]  # four chains: a single one waits for every comparison
    n = len(signal) - len(signal) % 4
    for i in range(0, n, 4):
        w, x, y, z = signal[i], signal[i + 1], signal[i + 2], signal[i + 3]
        a, b, c, d = min(a, w), min(b, x), min(c, y), min(d, z)
        e, f, g, h = max(e, w), max(f, x), max(g, y), max(h, z)
    for i in range(n, len(signal)):
        a, e = min(a, signal[i]), max(e, signal[i])
    return min(min(a, b), min(c, d)), max(max(e, f), max(g, h))


@numba.njit(nogil=True, cache=True)
def _all_finite(values: np.ndarray) -> bool:
    bad = 0  # counted, not returned early: eight at once
    for i in range(len(values)):
        bad += not abs(values[i]) < np.inf
    return bad == 0


@numba.njit(nogil=True, cache=True)
def _have_three(signal: np.ndarray, bottom: float, top: float) -> tuple[bool, bool]:
    """Whether three samples in a row are at either value, which few leads have: 32 are looked at at once."""
    low, high = signal.dtype.type(bottom), signal.dtype.type(top)
    at_bottom = at_top = False
    for i in range(len(signal) - 2):
        a, b, c = signal[i], signal[i + 1], signal[i + 2]
        at_bottom |= (a == low) & (b == low) & (c == low)
        at_top |= (a == high) & (b == high) & (c == high)
    return at_bottom, at_top


@numba.njit(nogil=True, cache=True)
def _has_run(signal: np.ndarray, value: float, length: int) -> bool:
    """Whether there is a run at a value of this length: every such run is met by looking once a length."""
    step = max(1, length)
    for at in range(step - 1, len(signal), step):
        if signal[at] == value:
            start, end = at, at + 1
            while start > 0 and signal[start - 1] == value:
                start -= 1
            while end < len(signal) and signal[end] == value:
                end += 1
            if end - start >= length:
                return True
    return False


@numba.njit(nogil=True, cache=True)
def _runs_at(signal: np.ndarray, value: float, held_run: float) -> tuple[int, int, int]:
    """Samples at a value, and samples and number of its runs of `held_run` or more."""
    total = held = n_held = run = 0
    for i in range(len(signal) + 1):
        if i < len(signal) and signal[i] == value:
            run += 1
            continue
        total += run
        if run > 0 and run >= held_run:
            held += run
            n_held += 1
        run = 0
    return total, held, n_held


@numba.njit(nogil=True, cache=True)
def _cuts_at(signal: np.ndarray, value: float, cut_run: float) -> tuple[int, float]:
    """Number of the runs of `cut_run` or more at a value that are left in a jump, and the largest jump."""
    n = len(signal)
    least = np.inf
    for i in range(1, n):
        step = abs(float(signal[i]) - float(signal[i - 1]))
        if 0 < step < least:
            least = step
    number = run = 0
    largest = 0.0
    for i in range(n + 1):
        if i < n and signal[i] == value:
            run += 1
            continue
        if run > 0 and run >= cut_run:
            after = abs(float(signal[i]) - value) if i < n else np.inf  # the record may begin or end with it
            before = abs(float(signal[i - run - 1]) - value) if i > run else np.inf
            jump = min(before, after)
            if jump > CUT_STEPS * least:
                number += 1
                largest = max(largest, jump)
        run = 0
    return number, largest
