"""From leads as recorded to the block of a store: microvolts at 500 Hz, int16."""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np

from ecgfast.data.signal import filters
from ecgfast.data.signal.cleaning import cut_offs, derive_limb_leads, fill_gaps
from ecgfast.data.signal.plausibility import lead_amplitudes
from ecgfast.data.signal.resampling import resample
from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS, OWN_NAMES, STANDARD_LEADS, LeadNames
from ecgfast.units import SAMPLE_RATE, UNITS_PER_MILLIVOLT

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


class Leads(NamedTuple):
    """Several leads recorded alike.

    Attributes:
        indices: In `STANDARD_LEADS`.
        signals: Microvolts, floating point [leads, n].
        rate: Samples per second.
        rails: Lowest and highest microvolts that the converter can tell, [leads, 2]; infinite where unknown.
    """

    indices: list[int]
    signals: np.ndarray
    rate: float
    rails: np.ndarray


class Rejected(Exception):
    """A record that a store cannot take; the message is the reason, `kind: details`.

    Attributes:
        amplitude: Typical peak-to-peak millivolts, where the reason may be a wrong scale.
    """

    def __init__(self, reason: str, amplitude: float | None = None) -> None:
        super().__init__(reason)
        self.amplitude = amplitude


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
        names: Which signals are which leads, beside those that standard names tell.

    Raises:
        EcgfastError: cut-offs out of order or beyond 250 Hz, a negative gap.
    """

    bandpass: tuple[float, float] | None = None
    notch: float | None = None
    baseline: bool = False
    derive_leads: bool = False
    longest_gap: float = 0.0
    names: LeadNames = OWN_NAMES

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

    @property
    def filters_anything(self) -> bool:
        """Whether it changes what `filtered` is given."""
        return self.bandpass is not None or self.notch is not None or self.baseline

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
            **self.names.describe(),
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
    leads: dict[int, Lead] | list[Leads], preprocessing: Preprocessing = Preprocessing()
) -> tuple[np.ndarray, list[int]]:
    """The [12, n_samples] block of a recording, and the leads present in it.

    A constant lead beside others that are not is an electrode that was never connected: it counts
    as absent.

    Args:
        leads: By index in `STANDARD_LEADS`, or in groups.
        preprocessing: Filters and repairs.

    Returns:
        Microvolts at 500 Hz, int16, as long as the shortest lead, absent leads zero; and the
        indices of the leads present, ascending.

    Raises:
        Rejected: invalid samples, a rate out of range, too short, out of int16's range, saturated (see
            `cleaning.cut_off`), or flat: every lead is constant.
    """
    groups = [_resampled(_checked(group, preprocessing)) for group in _grouped(leads)]
    n = min(group.signals.shape[1] for group in groups)
    if n < MIN_SECONDS * SAMPLE_RATE:
        raise Rejected(f"too short: {n / SAMPLE_RATE:.3f} s, want {MIN_SECONDS:g} s")
    block = np.zeros((N_LEADS, n), dtype=np.int16)
    present: list[int] = []
    for group in groups:
        signals = preprocessing.filtered(group.signals[:, :n])
        varies, greatest = np.zeros(len(signals), dtype=bool), np.zeros(len(signals))
        round_rows(signals, np.array(group.indices), block, varies, greatest)
        for index, extreme in zip(group.indices, greatest, strict=True):
            if extreme >= MAX_MICROVOLTS:
                raise Rejected(
                    f"out of range: {STANDARD_LEADS[index]} reaches {extreme / UNITS_PER_MILLIVOLT:.1f} mV, "
                    f"want less than {MAX_MICROVOLTS / UNITS_PER_MILLIVOLT} mV",
                    _amplitude(groups),
                )
        present += itertools.compress(group.indices, varies)
    if not present:
        if not (unrounded := _amplitude(groups)):
            raise Rejected("flat: every lead is constant")
        raise Rejected("flat: no lead varies by a microvolt", unrounded)
    present.sort()
    return derive_limb_leads(block, present) if preprocessing.derive_leads else (block, present)


def _amplitude(groups: list[Leads]) -> float:
    """Typical peak-to-peak millivolts of the leads that vary, before they are rounded; 0 if none does."""
    found = np.concatenate([lead_amplitudes(group.signals) for group in groups])
    return float(np.median(found[found > 0])) / UNITS_PER_MILLIVOLT if (found > 0).any() else 0.0


def _grouped(leads: dict[int, Lead] | list[Leads]) -> list[Leads]:
    if isinstance(leads, list):
        return leads
    alike: dict[tuple[float, int], list[int]] = {}
    for index, lead in leads.items():
        alike.setdefault((lead.rate, len(lead.signal)), []).append(index)
    return [
        Leads(
            members,
            np.stack([leads[index].signal for index in members]),
            rate,
            np.array([leads[index].rails for index in members], dtype=np.float64),
        )
        for (rate, _), members in alike.items()
    ]


def _resampled(leads: Leads) -> Leads:
    return leads._replace(signals=resample(leads.signals, leads.rate, SAMPLE_RATE), rate=float(SAMPLE_RATE))


def _checked(leads: Leads, preprocessing: Preprocessing) -> Leads:
    """The leads with short gaps filled, if there is nothing else against them."""
    indices, signals, rate, rails = leads
    if not MIN_RATE <= rate <= MAX_RATE:
        raise Rejected(f"sample rate: {rate:g} Hz, want {MIN_RATE:g} to {MAX_RATE:g} Hz")
    values, samples = cut_offs(signals, rate, rails)
    if samples.min() < 0 and preprocessing.longest_gap:
        signals = fill_gaps(signals, int(preprocessing.longest_gap * rate))
        values, samples = cut_offs(signals, rate, rails)
    n = signals.shape[1]
    for index, signal, value, count in zip(indices, signals, values, samples, strict=True):
        if count < 0:
            invalid = np.count_nonzero(~np.isfinite(signal))
            raise Rejected(f"invalid samples: {STANDARD_LEADS[index]} has {invalid} of {n}")
        if n < MIN_SECONDS * rate:
            raise Rejected(f"too short: {n / rate:.3f} s, want {MIN_SECONDS:g} s")
        if count:
            name, seconds = STANDARD_LEADS[index], count / rate
            told = f"saturated: {name} is at {value / UNITS_PER_MILLIVOLT:.3f} mV for {seconds:.3f} s"
            raise Rejected(told, _amplitude([leads]) or None)
    return leads._replace(signals=signals)


@numba.njit(nogil=True, cache=True)
def round_rows(
    signals: np.ndarray, indices: np.ndarray, block: np.ndarray, varies: np.ndarray, greatest: np.ndarray
) -> None:
    """Round signals into rows of an int16 block; note which vary there, and the peaks of those too great.

    What does not vary or fit stays zero.
    """
    for r in range(len(signals)):
        signal, out = signals[r], block[indices[r]]
        beyond = differ = 0  # counted in loops of their own: many samples at once
        for i in range(len(signal)):
            beyond += not abs(signal[i]) < MAX_MICROVOLTS
        if beyond:
            greatest[r] = np.max(np.abs(signal))
            continue
        for i in range(len(signal)):
            out[i] = np.int16(np.rint(signal[i]))
        for i in range(len(out)):
            differ += out[i] != out[0]
        varies[r] = differ > 0
        if differ == 0:
            out[:] = 0
