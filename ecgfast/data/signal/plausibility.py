"""Whether a recording's amplitude is that of an ECG, or that of one in another unit."""

from functools import lru_cache

import numba
import numpy as np

from ecgfast.units import SAMPLE_RATE, UNITS_PER_MILLIVOLT

LEAST_MILLIVOLTS = 0.05
"""Typical peak-to-peak amplitude below which a recording is warned of: the least of real ones is 0.3 mV."""

MOST_MILLIVOLTS = 20.0
"""The same above: the greatest of real recordings, noisy ones, is 11 mV."""

MICROVOLTS = {"V": 1e6, "mV": 1e3, "uV": 1.0, "nV": 1e-3}
"""Microvolts in one unit."""

_TYPICAL = (0.3, 4.0)  # millivolts, of many recordings together: sources of real ones have 0.8 to 1.5
_MANY = 10
_NAMES = {"V": "volts", "mV": "millivolts", "uV": "microvolts", "nV": "nanovolts"}
_USUAL = (0.2, 5.0)  # millivolts
_WINDOW = 3 * SAMPLE_RATE // 2  # samples that hold a QRS complex at 40 beats a minute and above


@lru_cache(maxsize=256)  # twelve signals of a record have one
def find_unit(text: str) -> str | None:
    """The key of `MICROVOLTS` that a unit is, whatever its case and its sign for micro, or None."""
    plain = text.strip().replace("\u00b5", "u").replace("\u03bc", "u").casefold()
    return next((unit for unit in MICROVOLTS if unit.casefold() == plain), None)


def lead_amplitudes(block: np.ndarray) -> np.ndarray:
    """Typical peak-to-peak amplitude of each lead: the median over windows of 1.5 s.

    A beat is in nearly every window, a spike or an artefact in few, and wander is slow.

    Args:
        block: Microvolts at 500 Hz [leads, n], n >= 1.

    Returns:
        Microvolts, float64 [leads].
    """
    window = min(_WINDOW, block.shape[1])
    ranges = np.empty((len(block), block.shape[1] // window))
    _ranges(block, window, ranges)
    ranges.sort(axis=1)
    return ranges[:, ranges.shape[1] // 2]


def amplitude(block: np.ndarray, present: list[int]) -> float:
    """Typical peak-to-peak millivolts of a recording: the median of its leads' amplitudes.

    Args:
        block: Microvolts at 500 Hz [12, n], n >= 1.
        present: Indices of the leads present, one or more.
    """
    leads = lead_amplitudes(block)
    return sorted(leads[i] for i in present)[len(present) // 2] / UNITS_PER_MILLIVOLT


def scale_advice(millivolts: float, unit: str | None) -> str | None:
    """What may be wrong with a recording of this amplitude; None where it is plausible.

    Args:
        millivolts: Its `amplitude`.
        unit: In which unit it was read (a key of `MICROVOLTS`), None where the file itself told.
    """
    if LEAST_MILLIVOLTS <= millivolts <= MOST_MILLIVOLTS:
        return None
    told = f"median peak-to-peak amplitude {millivolts:{'.0f' if millivolts >= 10 else '.2g'}} mV"
    if unit is None:
        return f"{told}, usual is about 1 mV: is the gain or the unit in its header right?"
    for other, microvolts in MICROVOLTS.items():
        if _USUAL[0] <= millivolts * microvolts / MICROVOLTS[unit] <= _USUAL[1]:
            return f"{told}: {_NAMES[other]}? pass unit={other!r} (--unit {other})"
    return f"{told}, usual is about 1 mV: counts of a converter? pass its gain, in counts per mV"


def typical_advice(millivolts: float, n: int) -> str:
    """What may be wrong with `n` recordings of this median amplitude, for the end of a line; "" if nothing.

    A converter's counts at 200 per mV that are taken for microvolts are no more absurd than a weak heart, one
    by one: together they are.
    """
    if n < _MANY or _TYPICAL[0] <= millivolts <= _TYPICAL[1]:
        return ""
    return " (usual is about 1 mV: is the unit or the gain right, were they standardized?)"


@numba.njit(nogil=True, cache=True)
def _ranges(block: np.ndarray, window: int, ranges: np.ndarray) -> None:
    for r in range(ranges.shape[0]):
        for w in range(ranges.shape[1]):
            part = block[r, w * window : (w + 1) * window]
            low = high = part[0]
            for i in range(window):
                low, high = min(low, part[i]), max(high, part[i])
            ranges[r, w] = float(high) - float(low)
