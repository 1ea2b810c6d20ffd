"""Random views of segments, drawn on the signal's device.

A row's draws follow from (seed, step) and its sample id alone (`ecgfast.ops.random`): they depend neither on
the batch that it is in, nor on ranks or threads. `ecgfast.data.signal.augment` has the same noises in NumPy.

Noises are drawn for I, II and V1..V6; the other leads are sums of those, so that Einthoven's and Goldberger's
relations stay as they were; the eight need not be among a signal's leads.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, lead_indices
from ecgfast.ops._dispatch import full_precision, wide
from ecgfast.ops.random import Purpose, bounded, normal_from_words, uniform_from_words, words
from ecgfast.units import MILLIVOLTS_PER_UNIT, SAMPLE_RATE
from ecgfast.vcg import DOWER, INDEPENDENT_LEADS, TWELVE_FROM_INDEPENDENT

N_INDEPENDENT = len(INDEPENDENT_LEADS)
N_WANDER = 3
"""Cosines of baseline wander, as in FS."""


def in_millivolts(signal: Tensor) -> Tensor:
    """The signal in millivolts, fp32 (fp64 for fp64), from floating point or int16 microvolts."""
    if signal.dtype == torch.int16:
        return signal.float() * MILLIVOLTS_PER_UNIT
    return signal.to(wide(signal.dtype))


def present_leads(signal: Tensor, lengths: Tensor | None = None) -> Tensor:
    """[B, L] bool: leads that are not zero throughout, before the segment's length."""
    there = signal != 0
    if lengths is not None:
        there = there & (torch.arange(signal.shape[2], device=signal.device) < lengths[:, None, None])
    return there.any(-1)


class NoiseDraws(NamedTuple):
    """What is drawn for noises of B rows of T samples; an amplitude of 0 is no noise.

    Attributes:
        mains: [B], amplitude of the mains hum, millivolts.
        mains_frequency: [B], cycles per sample.
        mains_phase: [B], radians.
        muscle: [B, 8], standard deviation of each independent lead's muscle noise, millivolts.
        muscle_noise: [B, 8, T], standard normal.
        wander: [B, 8, K], amplitude of each lead's K slow cosines, millivolts.
        wander_frequency: [B, K], cycles per sample.
        wander_phase: [B, K], radians.
        shift: [B, 8], step of each lead, millivolts.
        shift_start: [B] int64, first sample that is shifted.
        shift_length: [B] int64.
    """

    mains: Tensor
    mains_frequency: Tensor
    mains_phase: Tensor
    muscle: Tensor
    muscle_noise: Tensor
    wander: Tensor
    wander_frequency: Tensor
    wander_phase: Tensor
    shift: Tensor
    shift_start: Tensor
    shift_length: Tensor


class NoiseConfig(NamedTuple):
    """How much noise `draw_noise` draws.

    Attributes:
        amplitude: largest amplitude, millivolts.
        mains, muscle, wander, shift: probability of each noise.
        subtract_shift: draw the shift's step as FS does, +-1 minus the amplitude rather than times it.
    """

    amplitude: float = 0.1
    mains: float = 1.0
    muscle: float = 1.0
    wander: float = 1.0
    shift: float = 1.0
    subtract_shift: bool = False


def draw_noise(
    rng: Tensor,
    sample_ids: Tensor,
    n_samples: int,
    config: NoiseConfig,
    lengths: Tensor | None = None,
) -> NoiseDraws:
    """Draws for rows of `n_samples` (T), of which the first `lengths` [B] belong to the segment.

    Source: FS, `data/ecg/augmentations.py`: mains at 50 or 60 Hz, the same in all leads; white muscle noise
    with a standard deviation for each lead; three cosines of 0.01 to 0.2 Hz with a factor for each lead from
    N(1, 0.5); a step up or down of each lead, over a part of the segment that is N(0.2, 0.04) long.
    """
    n, k = N_INDEPENDENT, N_WANDER
    # One stream for the scalars: adding a draw at its end leaves those before it as they are.
    counts = {
        "apply": 4,
        "mains": 3,
        "muscle": n,
        "wander": 3 * k,
        "wander_lead": 2 * n,
        "shift": 2,
        "shift_lead": n,
        "shift_length": 2,
    }
    word = words(rng, sample_ids, Purpose.AUGMENT, sum(counts.values()))
    drawn = dict(zip(counts, word.split(list(counts.values()), dim=1), strict=True))
    uniform = {name: uniform_from_words(part) for name, part in drawn.items()}
    probabilities = (config.mains, config.muscle, config.wander, config.shift)
    mains, muscle, wander, shift = (
        (u < p).float() for u, p in zip(uniform["apply"].unbind(1), probabilities, strict=True)
    )
    amplitude, frequency, phase = uniform["mains"].unbind(1)
    tones, speed, turn = uniform["wander"].view(-1, 3, k).unbind(1)
    factor = 1 + 0.5 * normal_from_words(drawn["wander_lead"])
    step, start = uniform["shift"].unbind(1)
    sign = torch.where(uniform["shift_lead"] < 0.5, -1.0, 1.0)
    step = (config.amplitude * step)[:, None]
    steps = sign - step if config.subtract_shift else sign * step
    room = torch.full_like(sample_ids, n_samples) if lengths is None else lengths
    room = room.long()
    share = 0.2 * (1 + 0.2 * normal_from_words(drawn["shift_length"]).squeeze(1))
    length = (share.clamp(0, 1) * room).long()
    noise = words(rng, sample_ids, Purpose.MUSCLE_NOISE, 2 * n * n_samples)
    return NoiseDraws(
        mains=mains * config.amplitude * amplitude,
        mains_frequency=torch.where(frequency < 0.5, 50.0, 60.0) / SAMPLE_RATE,
        mains_phase=2 * math.pi * phase,
        muscle=(muscle * config.amplitude)[:, None] * uniform["muscle"],
        muscle_noise=normal_from_words(noise).view(-1, n, n_samples),
        wander=(wander * config.amplitude)[:, None, None] * factor[..., None] * tones[:, None],
        wander_frequency=(0.01 + 0.19 * speed) / SAMPLE_RATE,
        wander_phase=2 * math.pi * turn,
        shift=shift[:, None] * steps,
        shift_start=(start * (room - length + 1)).long(),
        shift_length=length,
    )


def add_noise(signal: Tensor, draws: NoiseDraws, mix: Tensor) -> Tensor:
    """[B, L, T] in millivolts, with noise; `mix` [L, 8] makes the leads from I, II and V1..V6."""
    t = torch.arange(signal.shape[2], device=signal.device)

    def tones(frequency: Tensor, phase: Tensor) -> Tensor:
        return torch.cos(2 * math.pi * frequency[..., None] * t + phase[..., None])

    with full_precision(signal):
        noise = draws.muscle[..., None] * draws.muscle_noise
        noise = noise + (draws.mains[:, None] * tones(draws.mains_frequency, draws.mains_phase))[:, None]
        noise = noise + draws.wander @ tones(draws.wander_frequency, draws.wander_phase)
        start, end = draws.shift_start, draws.shift_start + draws.shift_length
        shifted = (t >= start[:, None]) & (t < end[:, None])
        noise = noise + draws.shift[..., None] * shifted[:, None]
        return signal + mix.to(signal.dtype) @ noise.to(signal.dtype)


class TurnDraws(NamedTuple):
    """What is drawn to turn and stretch the dipole of B rows, and to zero parts of their L leads.

    Attributes:
        angles: [B, 3], radians about z, then y, then x, axes that do not turn with it.
        scales: [B, 3], factors along x, y, z, after the turn.
        start: [B, L] int64, first sample of each lead that is zeroed.
    """

    angles: Tensor
    scales: Tensor
    start: Tensor


def draw_turn(
    rng: Tensor,
    sample_ids: Tensor,
    n_leads: int,
    n_samples: int,
    *,
    angle: float,
    scale: float,
    lengths: Tensor | None = None,
) -> TurnDraws:
    """Angles from U(-angle, angle) degrees, scales from U(1, scale), and where each lead is zeroed."""
    word = words(rng, sample_ids, Purpose.AUGMENT, 6 + n_leads)
    uniform = uniform_from_words(word[:, :6])
    room = n_samples if lengths is None else lengths.long()[:, None]
    return TurnDraws(
        angles=(2 * uniform[:, :3] - 1) * math.radians(angle),
        scales=1 + (scale - 1) * uniform[:, 3:],
        start=bounded(word[:, 6:], room),
    )


def turn_matrix(draws: TurnDraws) -> Tensor:
    """[B, 3, 3]: what a dipole (x, y, z) is multiplied by."""
    z, y, x = draws.angles.unbind(1)
    turned = _about(0, x) @ _about(1, y) @ _about(2, z)
    return draws.scales[..., None] * turned


def _about(axis: int, angle: Tensor) -> Tensor:
    """Rotations [B, 3, 3] about an axis."""
    cos, sin, one = angle.cos(), angle.sin(), torch.ones_like(angle)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    rows = [[torch.zeros_like(angle)] * 3 for _ in range(3)]
    rows[axis][axis], rows[a][a], rows[b][b], rows[b][a], rows[a][b] = one, cos, cos, sin, -sin
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def turn_dipole(
    signal: Tensor, matrix: Tensor, leads: "LeadSystem", *, residual: bool, present: Tensor
) -> Tensor:
    """Segments with another dipole.

    I, II and V1..V6 (x) give the dipole v = D^+ x, with D Dower's matrix; all leads follow from D M v, or,
    with what no dipole explains kept, from x + D (M - 1) v. Rows without all eight stay as they are.

    Args:
        signal: [B, L, T], millivolts.
        matrix: M, [B, 3, 3].
        leads: of the signal.
        residual: keep what the dipole does not explain: then M = 1 changes nothing. False: what comes back
            has rank 3, as in the public code.
        present: [B, L] bool.
    """
    back, forth = _constant(_FROM_DIPOLE, signal), _constant(_TO_DIPOLE, signal)
    eight = torch.stack([signal[:, place] for place in leads.places], 1)
    with full_precision(signal):
        change = matrix.to(signal.dtype)
        if residual:
            change = change - torch.eye(3, dtype=signal.dtype, device=signal.device)
        turned = (leads.mix(signal) @ back @ change @ forth) @ eight
        if residual:
            turned = signal + turned
    whole = torch.stack([present[:, place] for place in leads.places]).all(0)
    return torch.where(whole[:, None, None], turned, signal)


def zero_parts(signal: Tensor, start: Tensor, share: float, lengths: Tensor | None = None) -> Tensor:
    """Each lead without a contiguous `share` of its samples from `start` [B, L] on; it wraps at the end."""
    n = signal.shape[2]
    room = torch.full_like(start[:, :1], n) if lengths is None else lengths.long()[:, None]
    count = (room * share).long()
    since = (torch.arange(n, device=signal.device) - start[..., None]) % room[..., None]
    return signal.masked_fill(since < count[..., None], 0)


class LeadSystem(NamedTuple):
    """How leads follow from I, II and V1..V6.

    Attributes:
        weights: [L][8], of the eight in each lead.
        places: where I, II and V1..V6 are among the leads; empty where one isn't there.
    """

    weights: tuple[tuple[float, ...], ...]
    places: tuple[int, ...]

    def mix(self, signal: Tensor) -> Tensor:
        """`weights` as [L, 8], of the signal's dtype and on its device."""
        return _constant(self.weights, signal)


def _constant(rows: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.tensor(rows, dtype=like.dtype, device=like.device)
    return _kept(rows, like.dtype, like.device)


# Constants stay on the device: a copy from the host at every step would make it wait.
@lru_cache(maxsize=64)
def _kept(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=dtype, device=device)


_FROM_DIPOLE = tuple(map(tuple, DOWER.tolist()))
_TO_DIPOLE = tuple(map(tuple, np.linalg.pinv(DOWER).tolist()))


def lead_system(names: Sequence[str], *, dipole: bool = False) -> LeadSystem:
    """The system of named leads.

    Raises:
        EcgfastError: `dipole`, and one of the leads that give the dipole is not there.
    """
    rows = lead_indices(names)
    there = set(INDEPENDENT_LEADS) <= set(rows)
    places = tuple(rows.index(lead) for lead in INDEPENDENT_LEADS) if there else ()
    weights = tuple(map(tuple, TWELVE_FROM_INDEPENDENT[rows].tolist()))
    system = LeadSystem(weights, places)
    if dipole and not system.places:
        want = ", ".join(STANDARD_LEADS[lead] for lead in INDEPENDENT_LEADS)
        raise EcgfastError(f"leads: must have {want}, which give the heart's dipole, got {', '.join(names)}")
    return system


# As torch.compiler.assume_constant_result does, without importing the compiler.
lead_system._dynamo_marked_constant = True  # type: ignore[attr-defined]
