"""The heart's dipole (vectorcardiogram) and the leads it gives."""

import numpy as np

from ecgfast.leads import STANDARD_LEADS

INDEPENDENT_LEADS = tuple(
    STANDARD_LEADS.index(name) for name in ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
)
"""The leads of which the other four are sums."""

DOWER = np.array(
    [
        (0.632, -0.235, 0.059),
        (0.235, 1.066, -0.132),
        (-0.515, 0.157, -0.917),
        (0.044, 0.164, -1.387),
        (0.882, 0.098, -1.277),
        (1.213, 0.127, -0.601),
        (1.125, 0.127, -0.086),
        (0.831, 0.076, 0.230),
    ]
)
"""I, II, V1..V6 from x (left), y (to the feet), z (to the back); Dower et al., J Electrocardiol 13, 1980."""

TWELVE_FROM_INDEPENDENT = np.zeros((12, 8))
"""All leads from I, II, V1..V6, by Einthoven's law and Goldberger's definitions."""
TWELVE_FROM_INDEPENDENT[INDEPENDENT_LEADS, range(8)] = 1
TWELVE_FROM_INDEPENDENT[2:6, :2] = [(-1, 1), (-0.5, -0.5), (1, -0.5), (-0.5, 1)]


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] about x, then y, then z, by angles in radians."""
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a] = np.sin(angle)
        turn[a, b] = -turn[b, a]
        turned = turn @ turned
    return turned
