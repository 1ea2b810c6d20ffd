"""From leads as recorded to the block of a store: microvolts at 500 Hz, int16."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ecgfast.data.store import SAMPLE_RATE
from ecgfast.leads import N_LEADS, STANDARD_LEADS

MIN_SECONDS = 1.0
"""Shortest recording that a store takes."""

MIN_RATE = 50.0
"""Lowest source rate, Hz: below it no QRS complex survives."""

MAX_RATE = 100_000.0
"""Highest source rate, Hz: above it a header is damaged rather than a recording that good."""

MAX_MICROVOLTS = 32767


HELD_SECONDS = 0.1
"""Shortest run at a lead's highest or lowest value that no heart makes."""

HELD_SHARE = 0.01
"""Part of a lead that two or more such runs may make up."""

HELD_SHARE_ONCE = 0.05
"""Part of a lead that a single such run may make up."""

RAIL_SECONDS = 0.01
"""Shortest run at the end of the converter's range that saturates a lead, of two samples or more."""


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


def resample(signal: np.ndarray, rate: float) -> np.ndarray:
    """Resample to 500 Hz with a polyphase filter.

    The line through the ends is taken out meanwhile, so that an offset leaves no step there.

    Args:
        signal: One lead, floating point [n].
        rate: Its samples per second.

    Returns:
        floating point [ceil(n * 500 / rate)]; `signal` itself where the rate is 500.
    """
    if rate == SAMPLE_RATE:
        return signal
    from scipy.signal import resample_poly  # slow to load, and most sources are at 500 Hz

    ratio = Fraction(SAMPLE_RATE / rate).limit_denominator(10_000)
    return resample_poly(signal, ratio.numerator, ratio.denominator, padtype="line")


def standard_block(leads: dict[int, Lead]) -> tuple[np.ndarray, list[int]]:
    """The [12, n_samples] block of a recording, and the leads present in it.

    A constant lead beside others that are not is an electrode that was never connected: it counts
    as absent.

    Args:
        leads: By index in `STANDARD_LEADS`.

    Returns:
        Microvolts at 500 Hz, int16, as long as the shortest lead, absent leads zero; and the
        indices of the leads present, ascending.

    Raises:
        Rejected: invalid samples, a rate out of range, too short, out of int16's range, saturated
            (see `saturation`), or flat: every lead is constant.
    """
    resampled = {index: _checked(index, lead) for index, lead in leads.items()}
    n = min(len(signal) for signal in resampled.values())
    if n < MIN_SECONDS * SAMPLE_RATE:
        raise Rejected(f"too short: {n / SAMPLE_RATE:.3f} s, want {MIN_SECONDS:g} s")
    block = np.zeros((N_LEADS, n), dtype=np.int16)
    for index, signal in resampled.items():
        extreme = np.abs(signal).max()
        if extreme >= MAX_MICROVOLTS:
            raise Rejected(
                f"out of range: {STANDARD_LEADS[index]} reaches {extreme / 1000:.1f} mV, "
                f"want less than {MAX_MICROVOLTS / 1000} mV"
            )
        block[index] = np.rint(signal[:n])
    varies = (block != block[:, :1]).any(axis=1)
    if not varies.any():
        raise Rejected("flat: every lead is constant")
    block[~varies] = 0
    return block, np.flatnonzero(varies).tolist()


def saturation(lead: Lead) -> str | None:
    """Where a lead was cut off, for a reason: "5.000 mV for 1.210 s"; None if it was not.

    A lead is saturated if it stays at its highest or its lowest value in runs of `HELD_SECONDS`
    or more that make up over `HELD_SHARE` of it, or over `HELD_SHARE_ONCE` if there is only one;
    or if it stays at the end of the converter's range for `RAIL_SECONDS`. A constant lead is not.
    """
    low, high = lead.signal.min(), lead.signal.max()
    if low == high:
        return None
    for value, at_rail in ((low, low <= lead.rails[0]), (high, high >= lead.rails[1])):
        runs = _run_lengths(lead.signal == value)
        held = runs[runs >= HELD_SECONDS * lead.rate]
        share = HELD_SHARE if len(held) > 1 else HELD_SHARE_ONCE
        cut = held.sum() > share * len(lead.signal)
        if cut or (at_rail and runs.max() >= max(2, RAIL_SECONDS * lead.rate)):
            return f"{value / 1000:.3f} mV for {runs.sum() / lead.rate:.3f} s"
    return None


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of true elements."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return edges[1::2] - edges[::2]


def _checked(index: int, lead: Lead) -> np.ndarray:
    signal, rate, _ = lead
    invalid = np.count_nonzero(~np.isfinite(signal))
    if invalid:
        raise Rejected(f"invalid samples: {STANDARD_LEADS[index]} has {invalid} of {len(signal)}")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise Rejected(f"sample rate: {rate:g} Hz, want {MIN_RATE:g} to {MAX_RATE:g} Hz")
    if len(signal) < MIN_SECONDS * rate:
        raise Rejected(f"too short: {len(signal) / rate:.3f} s, want {MIN_SECONDS:g} s")
    if cut_off := saturation(lead):
        raise Rejected(f"saturated: {STANDARD_LEADS[index]} is at {cut_off}")
    return resample(signal, rate)
