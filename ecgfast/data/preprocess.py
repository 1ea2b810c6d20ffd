"""From leads as recorded to the block of a store: microvolts at 500 Hz, int16."""

from fractions import Fraction

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


def standard_block(leads: dict[int, tuple[np.ndarray, float]]) -> np.ndarray:
    """The [12, n_samples] block of a recording.

    Args:
        leads: By index in `STANDARD_LEADS`: a lead in microvolts and its samples per second.

    Returns:
        Microvolts at 500 Hz, int16, as long as the shortest lead; absent leads zero.

    Raises:
        Rejected: invalid samples, a rate out of range, too short, out of int16's range, or flat.
    """
    resampled = {index: _checked(index, *lead) for index, lead in leads.items()}
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
    if (block == block[:, :1]).all():
        raise Rejected("flat: every lead is constant")
    return block


def _checked(index: int, signal: np.ndarray, rate: float) -> np.ndarray:
    invalid = np.count_nonzero(~np.isfinite(signal))
    if invalid:
        raise Rejected(f"invalid samples: {STANDARD_LEADS[index]} has {invalid} of {len(signal)}")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise Rejected(f"sample rate: {rate:g} Hz, want {MIN_RATE:g} to {MAX_RATE:g} Hz")
    if len(signal) < MIN_SECONDS * rate:
        raise Rejected(f"too short: {len(signal) / rate:.3f} s, want {MIN_SECONDS:g} s")
    return resample(signal, rate)
