"""From leads as recorded to the block of a store: microvolts at 500 Hz, int16."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np

from ecgfast.data import filters
from ecgfast.data.cleaning import cut_off, derive_limb_leads, fill_gaps
from ecgfast.data.resampling import resample
from ecgfast.data.store import SAMPLE_RATE
from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS, STANDARD_LEADS

MIN_SECONDS = 1.0
"""Shortest recording that a store takes."""

MIN_RATE = 50.0
"""Lowest source rate, Hz: below it no QRS complex survives."""

MAX_RATE = 100_000.0
"""Highest source rate, Hz: above it a header is damaged rather than a recording that good."""

MAX_MICROVOLTS = 32767


class Lead(NamedTuple):
    """One lead as recorded.

    Attributes:
        signal: Microvolts, floating point [n].
        rate: Samples per second.
        rails: Lowest and highest microvolts that the converter can tell, where known.
    """

    signal: np.ndarray
    rate: float
    rails: tuple[float, float] = (-np.inf, np.inf)


class Rejected(Exception):
    """A record that a store cannot take; the message is the reason, `kind: details`."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a recording beyond microvolts at 500 Hz; by default nothing.

    Attributes:
        bandpass: Cut-offs in Hz of a zero-phase Butterworth filter (second order, both ways); 0 as the
            first: a low-pass. See `filters.bandpass`.
        notch: Mains frequency in Hz to take out, see `filters.notch`.
        baseline: Subtract the baseline that running medians find, see `filters.remove_baseline`.
        derive_leads: Compute absent III, aVR, aVL, aVF from I and II.
        longest_gap: Seconds of invalid samples (NaN) that are bridged by a line; a record with a longer gap
            is rejected.

    Raises:
        EcgfastError: cut-offs out of order or beyond 250 Hz, a negative gap.
    """

    bandpass: tuple[float, float] | None = None
    notch: float | None = None
    baseline: bool = False
    derive_leads: bool = False
    longest_gap: float = 0.0

    def __post_init__(self) -> None:
        limit = SAMPLE_RATE / 2
        if self.bandpass is not None:
            low, high = self.bandpass
            if not 0 <= low < high < limit:
                raise EcgfastError(
                    f"bandpass: got {low:g} to {high:g} Hz, want ascending, 0 or more and below {limit:g}"
                )
        if self.notch is not None and not 0 < self.notch < limit:
            raise EcgfastError(f"notch: got {self.notch:g} Hz, want above 0 and below {limit:g}")
        if not 0 <= self.longest_gap < np.inf:
            raise EcgfastError(f"longest_gap: got {self.longest_gap} s, want 0 or more")

    def describe(self) -> dict[str, Any]:
        """For `store.json`."""
        steps: list[Any] = []
        if self.bandpass is not None:
            steps.append({"bandpass": list(self.bandpass), "order": _ORDER, "zero_phase": True})
        if self.notch is not None:
            steps.append({"notch": self.notch, "quality": filters.NOTCH_QUALITY, "zero_phase": True})
        if self.baseline:
            steps.append({"baseline": "running medians of 0.2 s and 0.6 s"})
        return {
            "resampling": "polyphase",
            "filters": steps,
            "derived_leads": ["III", "aVR", "aVL", "aVF"] if self.derive_leads else [],
            "longest_gap_seconds": self.longest_gap,
            "min_seconds": MIN_SECONDS,
        }

    @property
    def has_filters(self) -> bool:
        """Whether `filtered` does anything."""
        return self.bandpass is not None or self.notch is not None or self.baseline

    def filtered(self, signal: np.ndarray) -> np.ndarray:
        """The filters asked for, on leads at 500 Hz, floating point [..., n]."""
        if self.bandpass is not None:
            low, high = self.bandpass
            signal = filters.bandpass(signal, SAMPLE_RATE, low or None, high, _ORDER)
        if self.notch is not None:
            signal = filters.notch(signal, SAMPLE_RATE, self.notch)
        return filters.remove_baseline(signal, SAMPLE_RATE) if self.baseline else signal


_ORDER = 2


def standard_block(
    leads: dict[int, Lead], how: Preprocessing = Preprocessing()
) -> tuple[np.ndarray, list[int]]:
    """The [12, n_samples] block of a recording, and the leads present in it.

    A constant lead beside others that are not is an electrode that was never connected: it counts
    as absent.

    Args:
        leads: By index in `STANDARD_LEADS`.
        how: Filters and repairs.

    Returns:
        Microvolts at 500 Hz, int16, as long as the shortest lead, absent leads zero; and the
        indices of the leads present, ascending.

    Raises:
        Rejected: invalid samples, a rate out of range, too short, out of int16's range, saturated (see
            `cleaning.cut_off`), or flat: every lead is constant.
    """
    checked = {index: _checked(index, lead, how) for index, lead in leads.items()}
    signals = _at_store_rate(checked)
    n = min(map(len, signals.values()))
    if n < MIN_SECONDS * SAMPLE_RATE:
        raise Rejected(f"too short: {n / SAMPLE_RATE:.3f} s, want {MIN_SECONDS:g} s")
    rows = [signal[:n] for signal in signals.values()]
    if how.has_filters:
        rows = how.filtered(np.stack(rows))
    block = np.zeros((N_LEADS, n), dtype=np.int16)
    present = []
    for index, signal in zip(signals, rows, strict=True):
        fits, varies = _round(signal, block[index])
        if not fits:
            raise Rejected(
                f"out of range: {STANDARD_LEADS[index]} reaches {np.abs(signal).max() / 1000:.1f} mV, "
                f"want less than {MAX_MICROVOLTS / 1000} mV"
            )
        if varies:
            present.append(index)
        else:
            block[index] = 0
    if not present:
        raise Rejected("flat: every lead is constant")
    present.sort()
    return derive_limb_leads(block, present) if how.derive_leads else (block, present)


def _at_store_rate(leads: dict[int, Lead]) -> dict[int, np.ndarray]:
    """The leads resampled, those of one rate and length together."""
    alike: dict[tuple[float, int], list[int]] = {}
    for index, lead in leads.items():
        alike.setdefault((lead.rate, len(lead.signal)), []).append(index)
    signals = {index: lead.signal for index, lead in leads.items()}
    for (rate, _), members in alike.items():
        if rate != SAMPLE_RATE:
            together = np.stack([signals[index] for index in members])
            signals.update(zip(members, resample(together, rate, SAMPLE_RATE), strict=True))
    return signals


@numba.njit(nogil=True, cache=True)
def _round(signal: np.ndarray, out: np.ndarray) -> tuple[bool, bool]:
    """Round into int16: whether the signal fits, and whether it then varies."""
    beyond = differ = 0
    for i in range(len(signal)):
        beyond += not abs(signal[i]) < MAX_MICROVOLTS
    if beyond:
        return False, True
    for i in range(len(signal)):
        out[i] = np.int16(np.rint(signal[i]))
    for i in range(len(out)):
        differ += out[i] != out[0]
    return True, differ > 0


def _checked(index: int, lead: Lead, how: Preprocessing) -> Lead:
    signal, rate, rails = lead
    name = STANDARD_LEADS[index]
    if not MIN_RATE <= rate <= MAX_RATE:
        raise Rejected(f"sample rate: {rate:g} Hz, want {MIN_RATE:g} to {MAX_RATE:g} Hz")
    recorded, signal = signal, fill_gaps(signal, int(how.longest_gap * rate))
    if signal is not recorded and not np.isfinite(signal).all():  # itself where nothing is missing
        invalid = np.count_nonzero(~np.isfinite(signal))
        raise Rejected(f"invalid samples: {name} has {invalid} of {len(signal)}")
    if len(signal) < MIN_SECONDS * rate:
        raise Rejected(f"too short: {len(signal) / rate:.3f} s, want {MIN_SECONDS:g} s")
    if found := cut_off(signal, rate, *rails):
        value, samples = found
        raise Rejected(f"saturated: {name} is at {value / 1000:.3f} mV for {samples / rate:.3f} s")
    return Lead(signal, rate, rails)
