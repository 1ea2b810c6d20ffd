"""From leads as recorded to the block of a store: microvolts at 500 Hz, int16."""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    order, signals = _at_store_rate(checked)
    if signals.shape[1] < MIN_SECONDS * SAMPLE_RATE:
        raise Rejected(f"too short: {signals.shape[1] / SAMPLE_RATE:.3f} s, want {MIN_SECONDS:g} s")
    signals = how.filtered(signals)
    block = np.zeros((N_LEADS, signals.shape[1]), dtype=np.int16)
    for index, signal in zip(order, signals, strict=True):
        extreme = max(signal.max(), -signal.min())
        if extreme >= MAX_MICROVOLTS:
            raise Rejected(
                f"out of range: {STANDARD_LEADS[index]} reaches {extreme / 1000:.1f} mV, "
                f"want less than {MAX_MICROVOLTS / 1000} mV"
            )
        block[index] = np.rint(signal)
    varies = (block != block[:, :1]).any(axis=1)
    if not varies.any():
        raise Rejected("flat: every lead is constant")
    block[~varies] = 0
    present = np.flatnonzero(varies).tolist()
    return derive_limb_leads(block, present) if how.derive_leads else (block, present)


def _at_store_rate(leads: dict[int, Lead]) -> tuple[list[int], np.ndarray]:
    """Leads resampled, and cut to the shortest: their indices and float [leads, n]."""
    alike: dict[tuple[float, int], list[int]] = {}
    for index, lead in leads.items():
        alike.setdefault((lead.rate, len(lead.signal)), []).append(index)
    groups = [
        resample(np.stack([leads[index].signal for index in members]), rate, SAMPLE_RATE)
        for (rate, _), members in alike.items()
    ]
    n = min(group.shape[1] for group in groups)
    return list(itertools.chain(*alike.values())), np.concatenate([group[:, :n] for group in groups])


def _checked(index: int, lead: Lead, how: Preprocessing) -> Lead:
    signal, rate, rails = lead
    name = STANDARD_LEADS[index]
    if not MIN_RATE <= rate <= MAX_RATE:
        raise Rejected(f"sample rate: {rate:g} Hz, want {MIN_RATE:g} to {MAX_RATE:g} Hz")
    signal = fill_gaps(signal, int(how.longest_gap * rate))
    if not np.isfinite(signal).all():
        invalid = np.count_nonzero(~np.isfinite(signal))
        raise Rejected(f"invalid samples: {name} has {invalid} of {len(signal)}")
    if len(signal) < MIN_SECONDS * rate:
        raise Rejected(f"too short: {len(signal) / rate:.3f} s, want {MIN_SECONDS:g} s")
    if found := cut_off(signal, rate, *rails):
        value, samples = found
        raise Rejected(f"saturated: {name} is at {value / 1000:.3f} mV for {samples / rate:.3f} s")
    return Lead(signal, rate, rails)
