"""Random changes of segments: mains, muscle and baseline noise, and turns of the heart's dipole.

Noise is drawn for I, II and V1..V6, and III, aVR, aVL and aVF follow, so Einthoven's and Goldberger's
relations stay as they were. Every segment has a generator of its own, seeded by (seed, epoch, sample id): the
result depends neither on the batch nor on the number of threads.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numba
import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS
from ecgfast.units import MILLIVOLTS_PER_UNIT
from ecgfast.vcg import DOWER, INDEPENDENT_LEADS, TWELVE_FROM_INDEPENDENT, rotation


class Augmentation(Protocol):
    """What `Augmenter` takes: changes one segment, float32 millivolts [12, T], in place."""

    def __call__(self, segment: np.ndarray, rate: float, rng: np.random.Generator) -> None: ...


@dataclass(frozen=True)
class PowerlineNoise:
    """Mains hum: one cosine at 50 or 60 Hz with a random phase, the same on I, II and V1..V6.

    Attributes:
        amplitude: Range of the amplitude, millivolts.
        frequencies: Of which one is drawn, Hz.
    """

    amplitude: tuple[float, float] = (0.0, 0.5)
    frequencies: tuple[float, ...] = (50.0, 60.0)

    def __post_init__(self) -> None:
        _check_range("amplitude", self.amplitude)
        if not self.frequencies or not all(f > 0 for f in self.frequencies):
            raise EcgfastError(f"frequencies: got {self.frequencies}, want positive ones")

    def __call__(self, segment: np.ndarray, rate: float, rng: np.random.Generator) -> None:
        amplitude = np.full((8, 1), rng.uniform(*self.amplitude))
        _add_tones(segment, amplitude, rng.choice(self.frequencies, 1) / rate, _phases(rng, 1))


@dataclass(frozen=True)
class EmgNoise:
    """Muscle noise: white and Gaussian, with a standard deviation drawn for each lead.

    Attributes:
        amplitude: Range of the standard deviation, millivolts.
    """

    amplitude: tuple[float, float] = (0.0, 0.5)

    def __post_init__(self) -> None:
        _check_range("amplitude", self.amplitude)

    def __call__(self, segment: np.ndarray, rate: float, rng: np.random.Generator) -> None:
        noise = rng.standard_normal((8, segment.shape[1]), dtype=np.float32)
        _add_independent(segment, noise, rng.uniform(*self.amplitude, 8))


@dataclass(frozen=True)
class BaselineWander:
    """Slow drift: a sum of cosines, scaled for each lead by a factor from N(1, 0.5).

    Attributes:
        amplitude: Range of each cosine's amplitude, millivolts.
        frequency: Range of its frequency, Hz.
        n_tones: Number of cosines.
    """

    amplitude: tuple[float, float] = (0.0, 0.5)
    frequency: tuple[float, float] = (0.01, 0.2)
    n_tones: int = 3

    def __post_init__(self) -> None:
        _check_range("amplitude", self.amplitude)
        _check_range("frequency", self.frequency)
        if self.n_tones < 1:
            raise EcgfastError(f"n_tones: got {self.n_tones}, want 1 or more")

    def __call__(self, segment: np.ndarray, rate: float, rng: np.random.Generator) -> None:
        k = self.n_tones
        amplitudes = np.outer(rng.normal(1, 0.5, 8), rng.uniform(*self.amplitude, k))
        _add_tones(segment, amplitudes, rng.uniform(*self.frequency, k) / rate, _phases(rng, k))


@dataclass(frozen=True)
class BaselineShift:
    """A step up or down, and back, drawn for each lead: an electrode that moved.

    Attributes:
        amplitude: Range of the step, millivolts.
        share: Mean part of the segment that is shifted; its standard deviation is a fifth of it.
    """

    amplitude: tuple[float, float] = (0.0, 0.25)
    share: float = 0.2

    def __post_init__(self) -> None:
        _check_range("amplitude", self.amplitude)
        if not 0 < self.share <= 1:
            raise EcgfastError(f"share: got {self.share}, want above 0, at most 1")

    def __call__(self, segment: np.ndarray, rate: float, rng: np.random.Generator) -> None:
        n = segment.shape[1]
        length = int(np.clip(rng.normal(self.share, self.share / 5), 0, 1) * n)
        start = rng.integers(0, n - length, endpoint=True)
        steps = rng.choice((-1.0, 1.0), 8) * rng.uniform(*self.amplitude)
        segment[:, start : start + length] += (TWELVE_FROM_INDEPENDENT @ steps)[:, None].astype(np.float32)


@dataclass(frozen=True)
class TurnDipole:
    """Rotate and scale the vectorcardiogram, as 3KG does (Gopal et al., ML4H 2021).

    I, II and V1..V6 give the dipole through the pseudo-inverse of Dower's matrix; what it gives back replaces
    all twelve leads. Segments in which one of the eight is zero throughout (absent) are left as they are.

    Attributes:
        angle: Largest turn about each axis, degrees.
        scale: Largest factor along each axis; drawn between 1 / scale and scale, evenly in its logarithm.
    """

    angle: float = 45.0
    scale: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.angle <= 180:
            raise EcgfastError(f"angle: got {self.angle} degrees, want 0 to 180")
        if not 1 <= self.scale < np.inf:
            raise EcgfastError(f"scale: got {self.scale}, want 1 or more")

    def __call__(self, segment: np.ndarray, rate: float, rng: np.random.Generator) -> None:
        turn = rotation(np.deg2rad(rng.uniform(-self.angle, self.angle, 3)))
        stretch = np.exp(rng.uniform(-1, 1, 3) * np.log(self.scale))
        independent = segment[list(INDEPENDENT_LEADS)]
        if not independent.any(axis=1).all():
            return
        leads = TWELVE_FROM_INDEPENDENT @ DOWER @ (stretch[:, None] * turn) @ np.linalg.pinv(DOWER)
        segment[:] = leads.astype(np.float32) @ independent


class Augmenter:
    """Applies augmentations to batches of segments.

    Args:
        augmentations: Applied in this order, each with its probability: (augmentation, probability).
        rate: Samples per second.
        seed: Of everything drawn.
        threads: Threads that share a batch.

    Raises:
        EcgfastError: a probability beyond 0 to 1, or another argument out of range.
    """

    def __init__(
        self,
        augmentations: Sequence[tuple[Augmentation, float]],
        *,
        rate: float = 500.0,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        for _, probability in augmentations:
            if not 0 <= probability <= 1:
                raise EcgfastError(f"augmentations: got probability {probability}, want 0 to 1")
        for name, value in (("rate", rate), ("threads", threads)):
            if not value > 0:
                raise EcgfastError(f"{name}: got {value}, want a positive number")
        if seed < 0:
            raise EcgfastError(f"seed: got {seed}, want 0 or more")
        self.augmentations = tuple(augmentations)
        self.rate = rate
        self.seed = seed
        self._pool = ThreadPoolExecutor(threads, "ecgfast-augment") if threads > 1 else None

    def __call__(self, signal: np.ndarray, sample_ids: np.ndarray, epoch: int = 0) -> np.ndarray:
        """Augment segments; leads that are zero throughout are absent, and stay so.

        Args:
            signal: [B, 12, T]: floating point in millivolts, or int16 microvolts.
            sample_ids: int [B], 0 or more: what tells a segment's draws from another's.
            epoch: The same segment is changed otherwise in another epoch.

        Returns:
            float32 [B, 12, T], millivolts; the input is left alone.

        Raises:
            EcgfastError: arguments of another shape or dtype.
        """
        signal, sample_ids = np.asarray(signal), np.asarray(sample_ids)
        if signal.ndim != 3 or signal.shape[1] != N_LEADS or signal.shape[2] == 0:
            raise EcgfastError(f"signal: got shape {list(signal.shape)}, want [B, 12, T]")
        if sample_ids.shape != signal.shape[:1] or sample_ids.dtype.kind not in "iu":
            got = f"{sample_ids.dtype} {list(sample_ids.shape)}"
            raise EcgfastError(f"sample_ids: got {got}, want integers [{signal.shape[0]}]")
        if signal.dtype == np.int16:
            out = signal * np.float32(MILLIVOLTS_PER_UNIT)
        elif signal.dtype.kind == "f":
            out = np.array(signal, dtype=np.float32, order="C")
        else:
            raise EcgfastError(f"signal: got {signal.dtype}, want floating point or int16")
        run = self._pool.map if self._pool else map
        list(run(lambda i: self._change(out[i], int(sample_ids[i]), epoch), range(len(out))))
        return out

    def _change(self, segment: np.ndarray, sample_id: int, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch, sample_id])
        absent = ~segment.any(axis=1)
        for augmentation, probability in self.augmentations:
            if rng.random() < probability:
                augmentation(segment, self.rate, rng)
        segment[absent] = 0


def _phases(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0, 2 * np.pi, n)


def _check_range(name: str, limits: tuple[float, float]) -> None:
    low, high = limits
    if not 0 <= low <= high < np.inf:
        raise EcgfastError(f"{name}: got {low} to {high}, want ascending, 0 or more")


def _add_tones(
    segment: np.ndarray, amplitudes: np.ndarray, frequencies: np.ndarray, phases: np.ndarray
) -> None:
    """Add cosines with amplitudes [8, K], frequencies in cycles per sample [K] and phases [K]."""
    angle = 2 * np.pi * np.outer(frequencies, np.arange(segment.shape[1])) + phases[:, None]
    weights = TWELVE_FROM_INDEPENDENT @ amplitudes
    segment += weights.astype(np.float32) @ np.cos(angle).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _add_scaled(segment: np.ndarray, noise: np.ndarray, weights: np.ndarray) -> None:
    """Segment [12, T] += weights [12, 8] @ noise [8, T], where few weights are not zero."""
    for lead in range(weights.shape[0]):
        for k in range(weights.shape[1]):
            weight = weights[lead, k]
            if weight != 0:
                for i in range(segment.shape[1]):
                    segment[lead, i] += weight * noise[k, i]


def _add_independent(segment: np.ndarray, noise: np.ndarray, amplitudes: np.ndarray) -> None:
    _add_scaled(segment, noise, (TWELVE_FROM_INDEPENDENT * amplitudes).astype(np.float32))
