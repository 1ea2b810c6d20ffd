"""Synthetic 12-lead electrocardiograms: a moving dipole seen through the Dower matrix.

The waves of a patient's beats (`hearts.py`) are put on the beats of a recording. The dipole turns
and swells with respiration, is projected to I, II and V1..V6 (Dower et al., J Electrocardiol 13,
1980), and meets baseline wander, muscle and mains noise there. III, aVR, aVL and aVF follow from
the digitised I and II, which are even microvolts, so that Einthoven's and Goldberger's relations
hold exactly.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numba
import numpy as np

from ecgfast.data.synthetic.hearts import Patient, draw_patient
from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS
from ecgfast.units import SAMPLE_RATE, UNITS_PER_MILLIVOLT

_CHUNK = 16  # records a worker makes at once
_IN_FLIGHT = 3  # chunks per worker that are being made or wait to be taken

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class SyntheticRecord:
    """One generated recording.

    Attributes:
        patient: Patient number.
        record: Number of the recording, from 0 for each patient.
        signal: Microvolts, int16 [12, n], leads in standard order.
        rate: Samples per second.
        age: Years.
        sex: "F" or "M".
        heart: Key of `CLASSES`.
        labels: SNOMED CT codes.
    """

    patient: int
    record: int
    signal: np.ndarray
    rate: int
    age: int
    sex: str
    heart: str
    labels: list[str]


@dataclass(frozen=True)
class Recipe:
    """Which recordings to make; they are counted patient by patient.

    Raises:
        EcgfastError: an argument out of range.
    """

    patients: int
    records: int  # of each patient
    seconds: float
    seed: int
    rate: int = SAMPLE_RATE

    def __post_init__(self) -> None:
        for name in ("patients", "records"):
            if getattr(self, name) < 1:
                raise EcgfastError(f"{name}: got {getattr(self, name)}, want 1 or more")
        if not 1 <= self.seconds <= 86_400:
            raise EcgfastError(f"seconds: got {self.seconds}, want 1 to 86400")
        if not 100 <= self.rate <= 10_000:
            raise EcgfastError(f"rate: got {self.rate}, want 100 to 10000")
        if self.seed < 0:
            raise EcgfastError(f"seed: got {self.seed}, want 0 or more")

    def make(self, which: range) -> Iterator[SyntheticRecord]:
        """Some of the recordings."""
        for number, group in itertools.groupby(which, lambda i: i // self.records):
            patient = draw_patient(_generator(self.seed, 0, number))
            for i in group:
                yield _record(patient, number, i % self.records, self)


def synthesize(
    n_patients: int,
    records_per_patient: int,
    seconds: float,
    seed: int,
    rate: int = SAMPLE_RATE,
) -> Iterator[SyntheticRecord]:
    """Generate recordings, patient by patient.

    A patient's axis, wave shapes, chest electrodes, class and heart rate stay the same in
    all recordings; noise, respiration and the moments of the beats differ. A record depends on
    (seed, patient, record, seconds, rate) alone.

    Raises:
        EcgfastError: an argument out of range.
    """
    recipe = Recipe(n_patients, records_per_patient, seconds, seed, rate)
    return recipe.make(range(n_patients * records_per_patient))


def map_chunks(work: Callable[[range], _Result], which: range, workers: int) -> Iterator[_Result]:
    """`work` on chunks of `which` by some threads: results in order, few of them in memory.

    Most of the making of a record happens outside the interpreter's lock, so threads do.
    """
    chunks = (which[i : i + _CHUNK] for i in range(0, len(which), _CHUNK))
    if workers == 1:
        yield from map(work, chunks)
        return
    pending: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for chunk in chunks:
            pending.append(pool.submit(work, chunk))
            if len(pending) == _IN_FLIGHT * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _record(patient: Patient, number: int, record: int, recipe: Recipe) -> SyntheticRecord:
    rng = _generator(recipe.seed, 1, number, record)
    n = round(recipe.seconds * recipe.rate)
    breath = rng.uniform(0.18, 0.33)  # Hz
    dipole = np.zeros((3, n))
    _add_waves(dipole, _beat_waves(patient, n / recipe.rate, breath, rng), float(recipe.rate))
    if patient.heart.fibrillates:
        dipole += _fibrillation(np.arange(n) / recipe.rate, rng)
    breathing = np.array([breath, rng.random(), *rng.uniform(0.02, 0.08, 2), rng.uniform(0.01, 0.06)])
    _breathe(dipole, breathing, float(recipe.rate))
    tones = _draw_tones(breath, rng)
    white = rng.standard_normal((8, n + 1), dtype=np.float32)
    muscle = rng.uniform(2, 9, 8)  # microvolts
    signal = _record_leads(
        dipole, UNITS_PER_MILLIVOLT * patient.leads, *tones, white, muscle, float(recipe.rate)
    )
    return SyntheticRecord(
        patient=number,
        record=record,
        signal=signal,
        rate=recipe.rate,
        age=patient.age,
        sex=patient.sex,
        heart=patient.name,
        labels=list(patient.heart.labels),
    )


def _beat_waves(patient: Patient, seconds: float, breath: float, rng: np.random.Generator) -> np.ndarray:
    """All waves of a recording, one row each: centre, width, x, y, z."""
    low, high = patient.heart.rates
    mean = 60 / min(max(patient.heart_rate * rng.lognormal(0, 0.03), low), high)
    times, ectopic = _beats(patient, mean, seconds, breath, rng)
    at, premature = np.array(times), np.array(ectopic)
    usual = np.flatnonzero(~premature[1:]) + 1
    # the QT interval follows the beat before, by the cube root (Fridericia)
    stretch = np.cbrt(np.minimum(at[usual] - at[usual - 1], 1.5))
    one = np.ones(1)
    waves = [
        _placed(patient.qrs, at[usual], one),
        _placed(patient.st, at[usual], stretch),
        _placed(patient.t, at[usual] + patient.qt * stretch, stretch),
        _placed(patient.pvc, at[premature], one),
    ]
    if not patient.heart.fibrillates:
        waves.append(_placed(patient.p, at[usual] - patient.pr, one))
    return np.concatenate(waves)


def _placed(waves: np.ndarray, times: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Waves [k, 5] at each of some times."""
    placed = np.tile(waves, (len(times), 1, 1))
    placed[..., :2] *= stretch[:, None, None]
    placed[..., 0] += times[:, None]
    return placed.reshape(-1, 5)


def _beats(
    patient: Patient, mean: float, seconds: float, breath: float, rng: np.random.Generator
) -> tuple[list[float], list[bool]]:
    """Times of the R peaks, from before the recording to after it, and which are ectopic."""
    rate_of_pvcs = rng.uniform(0.10, 0.25) if patient.heart.premature else 0.0
    times, ectopic = [-mean * (1 + rng.random()) - 0.5], [False]
    while times[-1] < seconds + 0.5:
        if patient.heart.fibrillates:
            interval = mean * min(max(1 + patient.variability * rng.normal(), 0.55), 1.8)
        else:
            sway = math.sin(2 * math.pi * breath * times[-1]) + 0.4 * rng.normal()
            interval = mean * (1 + patient.variability * sway)
        pvc = not ectopic[-1] and rng.random() < rate_of_pvcs
        # the label must be seen: the first beat well inside is ectopic if none was before it
        if rate_of_pvcs and not any(ectopic) and times[-1] + interval > seconds / 2:
            pvc = True
        if pvc:
            interval *= rng.uniform(0.55, 0.68)
        elif ectopic[-1]:  # compensatory pause
            interval = 2 * mean - (times[-1] - times[-2])
        times.append(times[-1] + interval)
        ectopic.append(pvc)
    return times, ectopic


@numba.njit(nogil=True, cache=True)
def _add_waves(dipole: np.ndarray, waves: np.ndarray, rate: float) -> None:
    """Add Gaussians [centre, width, x, y, z] to a dipole [3, n] where they are not negligible."""
    n = dipole.shape[1]
    for w in range(waves.shape[0]):
        centre, width = waves[w, 0], waves[w, 1]
        first = max(0, int(np.ceil((centre - 4.5 * width) * rate)))
        last = min(n, int((centre + 4.5 * width) * rate) + 1)
        for i in range(first, last):
            z = (i / rate - centre) / width
            g = np.exp(-0.5 * z * z)
            dipole[0, i] += g * waves[w, 2]
            dipole[1, i] += g * waves[w, 3]
            dipole[2, i] += g * waves[w, 4]


def _fibrillation(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fibrillatory waves at 4.5 to 8 Hz, largest in V1: dipole in millivolts [3, n]."""
    drift = 0.6 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.4) * t + rng.random()))
    phase = 2 * np.pi * (rng.uniform(4.5, 8.0) * t + rng.random()) + drift
    swell = 1 + 0.35 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.7) * t + rng.random()))
    wave = swell * (np.sin(phase) + 0.35 * np.sin(2 * phase + 1.0))
    return rng.uniform(0.03, 0.07) * np.outer((-0.35, 0.55, -0.8), wave)


@numba.njit(nogil=True, cache=True)
def _breathe(dipole: np.ndarray, breathing: np.ndarray, rate: float) -> None:
    """Turn (about z and y) and swell a dipole [3, n] with the breath, a sine of -1 to 1.

    `breathing`: frequency in Hz, phase in turns, both greatest angles, greatest growth.
    """
    frequency, phase, about_z, about_y, growth = breathing
    for i in range(dipole.shape[1]):
        breath = np.sin(2 * np.pi * (frequency * i / rate + phase))
        swell = 1 + growth * breath
        x, y, z = swell * dipole[0, i], swell * dipole[1, i], swell * dipole[2, i]
        # angles below 0.08: the series' next terms are below 2e-6
        angle = about_z * breath
        c, s = 1 - angle * angle / 2, angle - angle * angle * angle / 6
        x, y = c * x - s * y, s * x + c * y
        angle = about_y * breath
        c, s = 1 - angle * angle / 2, angle - angle * angle * angle / 6
        dipole[0, i], dipole[1, i], dipole[2, i] = c * x + s * z, y, c * z - s * x


def _draw_tones(breath: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Baseline wander and mains: frequencies in Hz [4]; sine and cosine parts, microvolts [8, 8]."""
    frequencies = np.array([*rng.uniform(0.05, 0.5, 2), breath, rng.choice((50.0, 60.0))])
    amplitudes = np.array([35, 20, 30, 3]) * rng.uniform(0, 1, (8, 4))
    phases = rng.uniform(0, 2 * np.pi, (8, 4))
    return frequencies, np.concatenate([amplitudes * np.cos(phases), amplitudes * np.sin(phases)], axis=1)


@numba.njit(nogil=True, cache=True)
def _record_leads(
    dipole: np.ndarray,
    leads: np.ndarray,
    frequencies: np.ndarray,
    parts: np.ndarray,
    white: np.ndarray,
    muscle: np.ndarray,
    rate: float,
) -> np.ndarray:
    """Twelve leads in integer microvolts [12, n] from a dipole [3, n], tones and white noise."""
    n = dipole.shape[1]
    signal = np.empty((N_LEADS, n), dtype=np.int16)
    block = 512  # short enough for the first cache
    tones = np.empty((8, block))
    for start in range(0, n, block):
        m = min(block, n - start)
        for k in range(4):
            _sine_and_cosine(tones[k], tones[4 + k], frequencies[k], start, m, rate)
        for lead in range(8):
            a, b, c = leads[lead, 0], leads[lead, 1], leads[lead, 2]
            p, v, w = parts[lead], muscle[lead] * 0.9, muscle[lead] * 0.45
            row = lead if lead < 2 else lead + 4
            grain = 2.0 if lead < 2 else 1.0
            for i in range(m):
                j = start + i
                value = a * dipole[0, j] + b * dipole[1, j] + c * dipole[2, j]
                value += v * white[lead, j + 1] + w * white[lead, j]
                value += p[0] * tones[0, i] + p[1] * tones[1, i] + p[2] * tones[2, i] + p[3] * tones[3, i]
                value += p[4] * tones[4, i] + p[5] * tones[5, i] + p[6] * tones[6, i] + p[7] * tones[7, i]
                signal[row, j] = np.int16(grain * np.rint(value / grain))
    _add_sums(signal)
    return signal


@numba.njit(nogil=True, cache=True)
def _sine_and_cosine(
    sine: np.ndarray, cosine: np.ndarray, frequency: float, start: int, m: int, rate: float
) -> None:
    """Sine and cosine of a tone from sample `start` on, by turning."""
    step = 2 * np.pi * frequency / rate
    s, c = np.sin(step * start), np.cos(step * start)
    turn_s, turn_c = np.sin(step), np.cos(step)
    for i in range(m):
        sine[i], cosine[i] = s, c
        s, c = s * turn_c + c * turn_s, c * turn_c - s * turn_s


@numba.njit(nogil=True, cache=True)
def _add_sums(signal: np.ndarray) -> None:
    """III, aVR, aVL and aVF [2..5] from I and II [0, 1], which are even."""
    for i in range(signal.shape[1]):
        one, two = np.int32(signal[0, i]), np.int32(signal[1, i])
        signal[2, i] = two - one
        signal[3, i] = -((one + two) // 2)
        signal[4, i] = one - two // 2
        signal[5, i] = two - one // 2
