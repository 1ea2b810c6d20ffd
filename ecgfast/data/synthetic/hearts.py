"""The hearts of synthetic patients: classes of rhythm, conduction and injury, and who has which.

Every wave of a beat is a Gaussian in time with a vector in Frank's space (x to the left, y to the
feet, z to the back), after McSharry et al. (IEEE Trans Biomed Eng 50, 2003) and Sameni et al.
(EURASIP J Adv Signal Process, 2007). A wave is a row: centre and width (standard deviation) in
seconds, then x, y, z in millivolts.
"""

from dataclasses import dataclass

import numpy as np

from ecgfast.vcg import DOWER, rotation

SINUS, BRADYCARDIA, TACHYCARDIA = "426783006", "426177001", "427084000"
FIBRILLATION, PREMATURE = "164889003", "427172004"
LEFT_BLOCK, RIGHT_BLOCK, ST_ELEVATION = "164909002", "59118001", "164931005"

# P is placed from its own time before the QRS complex, T from the end of the QT interval.
_P = np.array([(-0.012, 0.020, 0.050, 0.085, -0.040), (0.014, 0.020, 0.065, 0.080, 0.040)])
_QRS = np.array(
    [
        (-0.028, 0.0080, -0.12, -0.02, -0.22),  # septum: to the right and front
        (-0.008, 0.0100, 0.75, 0.55, -0.28),  # apex and free wall of the left ventricle
        (0.010, 0.0110, 0.70, 0.62, 0.78),  # lateral wall, to the back
        (0.030, 0.0100, -0.22, -0.12, 0.36),  # base
    ]
)
_T = np.array([(-0.030, 0.055, 0.15, 0.12, -0.13), (0.020, 0.034, 0.14, 0.11, -0.13)])
_PVC = np.array(
    [
        (0.000, 0.024, -0.55, 0.75, -0.60),
        (0.045, 0.027, -0.70, 0.60, 0.80),
        (0.250, 0.060, 0.40, -0.34, 0.12),
    ]
)

# Right bundle branch block: the left ventricle as ever, then the right one, late and slowly.
_QRS_RIGHT_BLOCK = np.array(
    [
        (-0.028, 0.0085, -0.14, -0.02, -0.26),
        (-0.008, 0.0105, 0.75, 0.52, -0.15),
        (0.012, 0.0110, 0.60, 0.45, 0.50),
        (0.048, 0.0150, -0.46, 0.02, -0.50),
        (0.074, 0.0140, -0.34, -0.04, -0.36),
    ]
)
_T_RIGHT_BLOCK = np.array([(-0.010, 0.055, 0.16, 0.12, 0.06), (0.040, 0.034, 0.14, 0.11, 0.05)])

# Left bundle branch block: no septal force to the right, the left ventricle late and in two steps,
# repolarised the other way round.
_QRS_LEFT_BLOCK = np.array(
    [
        (-0.012, 0.0140, 0.34, 0.16, 0.26),
        (0.014, 0.0165, 0.80, 0.34, 0.66),
        (0.036, 0.0180, 0.00, 0.00, 0.70),  # the notch is one of the lateral leads
        (0.059, 0.0165, 0.86, 0.22, 0.52),
    ]
)
_ST_LEFT_BLOCK = np.array(
    [
        (0.115, 0.026, -0.04, -0.02, -0.07),
        (0.165, 0.035, -0.06, -0.02, -0.08),
        (0.230, 0.045, -0.07, -0.03, -0.10),
    ]
)
_T_LEFT_BLOCK = np.array([(0.000, 0.055, -0.16, -0.06, -0.18), (0.050, 0.034, -0.13, -0.05, -0.15)])


def _injury(x: float, y: float, z: float) -> np.ndarray:
    """Waves that lift the ST segment from the J point to T, to 1.4 times a vector 60 ms after it."""
    times = [(0.075, 0.025), (0.130, 0.035), (0.200, 0.045)]
    return np.array([(*time, x, y, z) for time in times])


_T_ANTERIOR = np.add(_T, (0, 0, 0.03, -0.03, -0.10))
_T_INFERIOR = np.add(_T, (0, 0, -0.04, 0.10, 0.03))


@dataclass(frozen=True, eq=False)
class Beat:
    """The waves of the ventricles in one beat, each [k, 5].

    Attributes:
        qrs: Turns with a patient's axis, as `t` does.
        t: After the end of the QT interval.
        st: Stays with its territory.
        widths: Least and greatest factor of a patient's QRS width.
    """

    qrs: np.ndarray
    t: np.ndarray
    st: np.ndarray
    widths: tuple[float, float]


_NO_WAVES = np.empty((0, 5))
_NORMAL = Beat(_QRS, _T, _NO_WAVES, (0.9, 1.15))
_LEFT_BLOCK = Beat(_QRS_LEFT_BLOCK, _T_LEFT_BLOCK, _ST_LEFT_BLOCK, (1.0, 1.12))
_RIGHT_BLOCK = Beat(_QRS_RIGHT_BLOCK, _T_RIGHT_BLOCK, _NO_WAVES, (1.0, 1.12))
_ANTERIOR = Beat(_QRS, _T_ANTERIOR, _injury(0.06, -0.075, -0.16), (0.9, 1.1))
_INFERIOR = Beat(_QRS, _T_INFERIOR, _injury(-0.05, 0.18, 0.07), (0.9, 1.1))


@dataclass(frozen=True, eq=False)
class HeartClass:
    """A class of hearts.

    Attributes:
        labels: SNOMED CT codes, as the CinC-2021 records carry them.
        share: Of patients.
        rates: Lowest and highest heart rate, beats per minute.
        beat: Of the ventricles.
        fibrillates: The atria do: no P, irregular beats.
        premature: There are premature ventricular beats.
    """

    labels: tuple[str, ...]
    share: float
    rates: tuple[float, float]
    beat: Beat = _NORMAL
    fibrillates: bool = False
    premature: bool = False


CLASSES = {
    "sinus rhythm": HeartClass((SINUS,), 0.28, (62, 95)),
    "sinus bradycardia": HeartClass((BRADYCARDIA,), 0.11, (42, 57)),
    "sinus tachycardia": HeartClass((TACHYCARDIA,), 0.11, (103, 140)),
    "atrial fibrillation": HeartClass((FIBRILLATION,), 0.11, (70, 120), fibrillates=True),
    "premature ventricular contractions": HeartClass((SINUS, PREMATURE), 0.11, (62, 90), premature=True),
    "left bundle branch block": HeartClass((SINUS, LEFT_BLOCK), 0.07, (60, 95), _LEFT_BLOCK),
    "right bundle branch block": HeartClass((SINUS, RIGHT_BLOCK), 0.07, (60, 95), _RIGHT_BLOCK),
    "anterior ST elevation": HeartClass((SINUS, ST_ELEVATION), 0.07, (65, 98), _ANTERIOR),
    "inferior ST elevation": HeartClass((SINUS, ST_ELEVATION), 0.07, (60, 92), _INFERIOR),
}
"""Every class by its name."""

_SHARES = [heart.share for heart in CLASSES.values()]


@dataclass(frozen=True, eq=False)
class Patient:
    """What stays the same in all recordings of a patient.

    Attributes:
        age: Years.
        sex: "F" or "M".
        name: Key of `CLASSES`.
        heart: The class of that name.
        heart_rate: Beats per minute.
        variability: Of the RR interval, relative.
        pr: P peak to R peak, seconds.
        qt: R peak to T peak at 60 beats per minute, seconds.
        p, qrs, st, t, pvc: Waves, [k, 5].
        leads: I, II, V1..V6 from the dipole, [8, 3].
    """

    age: int
    sex: str
    name: str
    heart: HeartClass
    heart_rate: float
    variability: float
    pr: float
    qt: float
    p: np.ndarray
    qrs: np.ndarray
    st: np.ndarray
    t: np.ndarray
    pvc: np.ndarray
    leads: np.ndarray


def draw_patient(rng: np.random.Generator) -> Patient:
    """A patient with axis, wave shapes, chest electrodes, class and heart rate of their own."""
    name = list(CLASSES)[rng.choice(len(CLASSES), p=_SHARES)]
    heart = CLASSES[name]
    axis = rotation(rng.normal(0, (0.12, 0.15, 0.30)))  # about x, y and, the frontal axis, z
    size = rng.lognormal(0, 0.18)
    p, qrs, t, pvc = (_morph(waves, rng) for waves in (_P, heart.beat.qrs, heart.beat.t, _PVC))
    for waves in (p, qrs, t, pvc):
        waves[:, 2:] = size * waves[:, 2:] @ axis.T
    qrs[:, :2] *= rng.uniform(*heart.beat.widths)
    st = heart.beat.st.copy()
    st[:, 2:] *= rng.uniform(0.9, 1.5)
    return Patient(
        age=int(np.clip(rng.normal(58, 17), 18, 95)),
        sex="FM"[rng.integers(2)],
        name=name,
        heart=heart,
        heart_rate=rng.uniform(*heart.rates),
        variability=0.20 if heart.fibrillates else rng.uniform(0.015, 0.05),
        pr=rng.uniform(0.13, 0.19),
        qt=rng.uniform(0.27, 0.33),
        p=p,
        qrs=qrs,
        st=st,
        t=t,
        pvc=pvc,
        leads=DOWER * np.concatenate([np.ones((2, 1)), rng.lognormal(0, 0.12, (6, 1))]),
    )


def _morph(waves: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patient's own form of some waves."""
    waves = waves.copy()
    waves[:, 1] *= rng.lognormal(0, 0.08, len(waves))
    waves[:, 2:] *= rng.lognormal(0, 0.15, (len(waves), 1))
    largest = np.abs(waves[:, 2:]).max(1, keepdims=True)
    waves[:, 2:] += 0.08 * largest * rng.normal(size=(len(waves), 3))
    return waves
