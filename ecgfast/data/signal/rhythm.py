"""The heart rate of a recording, from its QRS complexes."""

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, find_peaks, sosfiltfilt

_BAND_HZ = (8.0, 25.0)  # where a QRS complex is strong; P and T waves and wander are below, muscle is above
_QRS_S = 0.1
_REFRACTORY_S = 0.24
_T_WAVE_S = 0.4  # a peak so soon after a beat and much lower is that beat's T wave
_EDGE_S = 0.1  # where filters ring and recordings are cut
_WINDOW_S = 2.0  # holds a beat at 30 per minute
_SHARE = 0.4  # of the typical beat, from which a peak is a beat
_LOW, _HIGH = 0.28, 0.55  # the same for those who look more and less closely: they should agree
_LEAST_CONTRAST = 4.0  # of beats over what lies between them
_LEAST_BEATS = 3
_LEAST_S = 2.0


def heart_rate(signal: np.ndarray, rate: float) -> float | None:
    """Mean heart rate over a recording, or None where it can't be told.

    QRS complexes are the peaks of the energy between 8 and 25 Hz, of all leads together. The rate is that of
    the mean interval between them. It can't be told of less than three beats or 2 s, or where beats don't
    stand out: noise, flat lines, peaks of which it is uncertain whether they are beats.

    Args:
        signal: [leads, n], of the leads that are present, in any unit.
        rate: Samples per second, more than 60.

    Returns:
        Beats per minute.
    """
    if rate <= 60 or signal.shape[1] < _LEAST_S * rate:
        return None
    envelope = _envelope(np.asarray(signal, float), rate)
    if envelope is None:
        return None
    typical = _typical(envelope, rate)
    if typical < _LEAST_CONTRAST * np.quantile(envelope, 0.2):
        return None
    counts = [len(_beats(envelope, rate, share * typical)) for share in (_LOW, _HIGH)]
    beats = _beats(envelope, rate, _SHARE * typical)
    if len(beats) < _LEAST_BEATS or counts[0] - counts[1] > max(1, 0.1 * len(beats)):
        return None
    return 60.0 * rate * (len(beats) - 1) / float(beats[-1] - beats[0])


def _envelope(signal: np.ndarray, rate: float) -> np.ndarray | None:
    """Strength of the band over time, every lead with the same weight; None where all are flat."""
    band = sosfiltfilt(butter(2, _BAND_HZ, "bandpass", fs=rate, output="sos"), signal, axis=1)
    power = uniform_filter1d(band**2, max(1, round(_QRS_S * rate)), axis=1)
    strength = np.array([_typical(lead, rate) for lead in power])
    moving = strength > 0
    if not moving.any():
        return None
    return np.sqrt((power[moving] / strength[moving, None]).mean(axis=0).clip(min=0))


def _typical(envelope: np.ndarray, rate: float) -> float:
    """The median of the largest values of windows that hold a beat each."""
    n = max(1, round(len(envelope) / (_WINDOW_S * rate)))
    return float(np.median([part.max() for part in np.array_split(envelope, n)]))


def _beats(envelope: np.ndarray, rate: float, least: float) -> np.ndarray:
    """Samples of the peaks of at least this height, less those that are a T wave."""
    at, found = find_peaks(envelope, height=least, distance=max(1, round(_REFRACTORY_S * rate)))
    inside = (at >= _EDGE_S * rate) & (at < len(envelope) - _EDGE_S * rate)
    at, height = at[inside], found["peak_heights"][inside]
    kept: list[int] = []
    for i in range(len(at)):
        if kept and at[i] - at[kept[-1]] < _T_WAVE_S * rate and height[i] < 0.5 * height[kept[-1]]:
            continue
        kept.append(i)
    return at[kept]
