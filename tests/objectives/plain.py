"""Views of one segment, computed from given draws in NumPy and float64, lead by lead."""

import numpy as np

from ecgfast.objectives.augment import NoiseDraws, TurnDraws
from ecgfast.vcg import DOWER

# Where I, II and V1..V6 are among the twelve.
EIGHT = (0, 1, 6, 7, 8, 9, 10, 11)


def twelve(eight: np.ndarray) -> np.ndarray:
    """All leads [12, T] from I, II, V1..V6, by Einthoven's law and Goldberger's definitions."""
    one, two = eight[0], eight[1]
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.stack([*limb, *eight[2:]])


def plain_noise(segment: np.ndarray, draws: NoiseDraws, row: int) -> np.ndarray:
    """A segment [L, T] of the first L leads in millivolts, with the noise of a row."""
    d = NoiseDraws(*(x[row].double().numpy() if x.is_floating_point() else int(x[row]) for x in draws))
    t = np.arange(segment.shape[1])
    eight = np.zeros((8, len(t)))
    for lead in range(8):
        eight[lead] += d.mains * np.cos(2 * np.pi * d.mains_frequency * t + d.mains_phase)
        eight[lead] += d.muscle[lead] * d.muscle_noise[lead]
        for k, frequency in enumerate(d.wander_frequency):
            eight[lead] += d.wander[lead, k] * np.cos(2 * np.pi * frequency * t + d.wander_phase[k])
        eight[lead, d.shift_start : d.shift_start + d.shift_length] += d.shift[lead]
    there = segment.any(axis=1, keepdims=True)
    return (segment + twelve(eight)[: len(segment)]) * there


def plain_turned(
    segment: np.ndarray, draws: TurnDraws, row: int, *, residual: bool = True, share: float = 0.5
) -> np.ndarray:
    """A segment [12, T] with its dipole turned and stretched, and a part of each lead zeroed."""
    about_z, about_y, about_x = draws.angles[row].double().tolist()
    vectors = np.linalg.pinv(DOWER) @ segment[list(EIGHT)]
    turned = np.empty_like(vectors)
    for i, (x, y, z) in enumerate(vectors.T):
        x, y = x * np.cos(about_z) - y * np.sin(about_z), x * np.sin(about_z) + y * np.cos(about_z)
        x, z = x * np.cos(about_y) + z * np.sin(about_y), z * np.cos(about_y) - x * np.sin(about_y)
        y, z = y * np.cos(about_x) - z * np.sin(about_x), y * np.sin(about_x) + z * np.cos(about_x)
        turned[:, i] = np.array([x, y, z]) * draws.scales[row].double().numpy()
    if not segment[list(EIGHT)].any(axis=1).all():
        changed = segment.copy()
    elif residual:
        changed = segment + twelve(DOWER @ (turned - vectors))
    else:
        changed = twelve(DOWER @ turned)
    n = segment.shape[1]
    for lead, start in enumerate(draws.start[row].tolist()):
        changed[lead, [(start + i) % n for i in range(int(n * share))]] = 0
        if not segment[lead].any():
            changed[lead] = 0
    return changed
