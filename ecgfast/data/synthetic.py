"""Synthetic 12-lead electrocardiograms: a moving dipole seen through the Dower matrix.

Every wave of a beat is a Gaussian in time with a vector in Frank's space (x to the left, y to the
feet, z to the back), after McSharry et al. (IEEE Trans Biomed Eng 50, 2003) and Sameni et al.
(EURASIP J Adv Signal Process, 2007). The dipole turns and swells with respiration, is projected to
I, II and V1..V6 (Dower et al., J Electrocardiol 13, 1980), and meets baseline wander, muscle and
mains noise there. III, aVR, aVL and aVF follow from the digitised I and II, which are even
microvolts, so that Einthoven's and Goldberger's relations hold exactly.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
from tqdm import tqdm

from ecgfast.data.folders import check_creatable, partial_folder
from ecgfast.data.store import SAMPLE_RATE
from ecgfast.data.vcg import DOWER, rotation
from ecgfast.errors import EcgfastError
from ecgfast.leads import N_LEADS, STANDARD_LEADS

SINUS, BRADYCARDIA, TACHYCARDIA = "426783006", "426177001", "427084000"
FIBRILLATION, PREMATURE = "164889003", "427172004"
RHYTHMS = {
    "sinus rhythm": [SINUS],
    "sinus bradycardia": [BRADYCARDIA],
    "sinus tachycardia": [TACHYCARDIA],
    "atrial fibrillation": [FIBRILLATION],
    "premature ventricular contractions": [SINUS, PREMATURE],
}
"""SNOMED CT codes of each rhythm class, as the CinC-2021 records carry them."""

_SETTINGS = "synthetic.json"  # in a folder of synthetic records: what they were made with

_AF, _PVCS = 3, 4  # positions in RHYTHMS
_SHARES = (0.4, 0.15, 0.15, 0.15, 0.15)  # of patients with each rhythm
_HEART_RATES = ((62, 95), (42, 57), (103, 140), (70, 120), (62, 90))  # beats per minute

# A wave: centre and width (standard deviation) in seconds, then x, y, z in millivolts. P is placed
# from its own time before the QRS complex, T from the end of the QT interval.
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
        rhythm: Key of `RHYTHMS`.
        labels: SNOMED CT codes.
    """

    patient: int
    record: int
    signal: np.ndarray
    rate: int
    age: int
    sex: str
    rhythm: str
    labels: list[str]


@dataclass(frozen=True, eq=False)
class _Patient:
    """What stays the same in all recordings of a patient."""

    age: int
    sex: str
    rhythm: int
    heart_rate: float  # beats per minute
    variability: float  # of the RR interval, relative
    pr: float  # P peak to R peak, seconds
    qt: float  # R peak to T peak at 60 beats per minute, seconds
    p: np.ndarray
    qrs: np.ndarray
    t: np.ndarray
    pvc: np.ndarray
    leads: np.ndarray  # [8, 3]


def synthesize(
    n_patients: int,
    records_per_patient: int,
    seconds: float,
    seed: int,
    rate: int = SAMPLE_RATE,
) -> Iterator[SyntheticRecord]:
    """Generate recordings, patient by patient.

    A patient's axis, wave shapes, chest electrodes, rhythm class and heart rate stay the same in
    all recordings; noise, respiration and the moments of the beats differ. A record depends on
    (seed, patient, record, seconds, rate) alone.

    Raises:
        EcgfastError: an argument out of range.
    """
    counts = {"patients": n_patients, "records": records_per_patient}
    for name, value in counts.items():
        if value < 1:
            raise EcgfastError(f"{name}: got {value}, want 1 or more")
    if not 1 <= seconds <= 86_400:
        raise EcgfastError(f"seconds: got {seconds}, want 1 to 86400")
    if not 100 <= rate <= 10_000:
        raise EcgfastError(f"rate: got {rate}, want 100 to 10000")
    if seed < 0:
        raise EcgfastError(f"seed: got {seed}, want 0 or more")
    return (
        _synthesize_one(identity, patient, record, round(seconds * rate), seed, rate)
        for patient in range(n_patients)
        for identity in [_draw_patient(_generator(seed, 0, patient))]
        for record in range(records_per_patient)
    )


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _draw_patient(rng: np.random.Generator) -> _Patient:
    rhythm = int(rng.choice(len(RHYTHMS), p=_SHARES))
    axis = rotation(rng.normal(0, (0.12, 0.15, 0.30)))  # about x, y and, the frontal axis, z
    size = rng.lognormal(0, 0.18)
    morph = [_morph(waves, rng) for waves in (_P, _QRS, _T, _PVC)]
    for waves in morph:
        waves[:, 2:] = size * waves[:, 2:] @ axis.T
    width = rng.uniform(0.9, 1.15)  # of the QRS complex
    morph[1][:, :2] *= width
    return _Patient(
        age=int(np.clip(rng.normal(58, 17), 18, 95)),
        sex="FM"[rng.integers(2)],
        rhythm=rhythm,
        heart_rate=rng.uniform(*_HEART_RATES[rhythm]),
        variability=0.20 if rhythm == _AF else rng.uniform(0.015, 0.05),
        pr=rng.uniform(0.13, 0.19),
        qt=rng.uniform(0.27, 0.33),
        p=morph[0],
        qrs=morph[1],
        t=morph[2],
        pvc=morph[3],
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


def _synthesize_one(
    patient: _Patient, number: int, record: int, n: int, seed: int, rate: int
) -> SyntheticRecord:
    rng = _generator(seed, 1, number, record)
    breath = rng.uniform(0.18, 0.33)  # Hz
    dipole = np.zeros((3, n))
    _add_waves(dipole, _beat_waves(patient, n / rate, breath, rng), float(rate))
    t = np.arange(n) / rate
    if patient.rhythm == _AF:
        dipole += _fibrillation(t, rng)
    dipole = _breathe(dipole, np.sin(2 * np.pi * (breath * t + rng.random())), rng)
    independent = 1000 * (patient.leads @ dipole) + _noise(t, breath, rng)
    rhythm = list(RHYTHMS)[patient.rhythm]
    return SyntheticRecord(
        patient=number,
        record=record,
        signal=_digitise(independent),
        rate=rate,
        age=patient.age,
        sex=patient.sex,
        rhythm=rhythm,
        labels=RHYTHMS[rhythm],
    )


def _beat_waves(patient: _Patient, seconds: float, breath: float, rng: np.random.Generator) -> np.ndarray:
    """All waves of a recording, one row each: centre, width, x, y, z."""
    low, high = _HEART_RATES[patient.rhythm]
    mean = 60 / np.clip(patient.heart_rate * rng.lognormal(0, 0.03), low, high)
    times, ectopic = _beats(patient, mean, seconds, breath, rng)
    waves = []
    for i, time in enumerate(times[1:], start=1):
        if ectopic[i]:
            waves.append(_placed(patient.pvc, time, 1.0))
            continue
        # the QT interval follows the beat before, by the cube root (Fridericia)
        stretch = np.cbrt(min(times[i] - times[i - 1], 1.5))
        if patient.rhythm != _AF:
            waves.append(_placed(patient.p, time - patient.pr, 1.0))
        waves.append(_placed(patient.qrs, time, 1.0))
        waves.append(_placed(patient.t, time + patient.qt * stretch, stretch))
    return np.concatenate(waves)


def _placed(waves: np.ndarray, time: float, stretch: float) -> np.ndarray:
    placed = waves.copy()
    placed[:, :2] *= stretch
    placed[:, 0] += time
    return placed


def _beats(
    patient: _Patient, mean: float, seconds: float, breath: float, rng: np.random.Generator
) -> tuple[list[float], list[bool]]:
    """Times of the R peaks, from before the recording to after it, and which are ectopic."""
    rate_of_pvcs = rng.uniform(0.10, 0.25) if patient.rhythm == _PVCS else 0.0
    times, ectopic = [-mean * (1 + rng.random()) - 0.5], [False]
    while times[-1] < seconds + 0.5:
        if patient.rhythm == _AF:
            interval = mean * np.clip(1 + patient.variability * rng.normal(), 0.55, 1.8)
        else:
            sway = np.sin(2 * np.pi * breath * times[-1]) + 0.4 * rng.normal()
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


def _breathe(dipole: np.ndarray, breath: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn (about z and y) and swell a dipole [3, n] with the breath [n], -1 to 1."""
    about_z, about_y = rng.uniform(0.02, 0.08, 2)
    x, y, z = dipole * (1 + rng.uniform(0.01, 0.06) * breath)
    c, s = np.cos(about_z * breath), np.sin(about_z * breath)
    x, y = c * x - s * y, s * x + c * y
    c, s = np.cos(about_y * breath), np.sin(about_y * breath)
    return np.stack([c * x + s * z, y, c * z - s * x])


def _noise(t: np.ndarray, breath: float, rng: np.random.Generator) -> np.ndarray:
    """Baseline wander, mains and muscle noise of the eight independent leads, microvolts [8, n]."""
    slow = rng.uniform(0.05, 0.5, 2)
    frequencies = np.array([*slow, breath, rng.choice((50.0, 60.0))])
    amplitudes = np.array([35, 20, 30, 3]) * rng.uniform(0, 1, (8, 4))
    phases = rng.uniform(0, 2 * np.pi, (8, 4))
    angle = 2 * np.pi * np.outer(frequencies, t)
    tones = (amplitudes * np.cos(phases)) @ np.sin(angle)
    tones += (amplitudes * np.sin(phases)) @ np.cos(angle)
    white = rng.standard_normal((8, len(t) + 1), dtype=np.float32)
    tones += rng.uniform(2, 9, (8, 1)) * (0.9 * white[:, 1:] + 0.45 * white[:, :-1])
    return tones


def _digitise(independent: np.ndarray) -> np.ndarray:
    """Twelve leads in integer microvolts from I, II, V1..V6."""
    signal = np.empty((N_LEADS, independent.shape[1]), dtype=np.int16)
    signal[6:] = np.rint(independent[2:])
    one, two = 2 * np.rint(independent[:2] / 2).astype(np.int16)
    signal[0], signal[1] = one, two
    signal[2] = two - one
    signal[3] = -(one + two) // 2
    signal[4] = one - two // 2
    signal[5] = two - one // 2
    return signal


def write_synthetic(
    out: Path, *, patients: int, records: int, seconds: float, seed: int, progress: bool = True
) -> int:
    """Write synthetic recordings as a folder of WFDB records (format 16, microvolts, 500 Hz).

    Headers carry `#Age`, `#Sex`, `#Dx` (SNOMED CT), `#Patient` and `#Rhythm`. The folder is written
    beside its place and renamed when complete.

    Args:
        out: The folder to create.
        patients: Number of patients.
        records: Recordings of each patient.
        seconds: Length of each recording.
        seed: Of everything drawn.
        progress: Show a progress bar.

    Returns:
        Number of records written: 0 where `out` holds these records already.

    Raises:
        EcgfastError: an argument out of range, `out` holds anything else, or can't be replaced (the
            current directory, a mount point, a link).
    """
    generated = synthesize(patients, records, seconds, seed)
    out = Path(out)
    settings = {"patients": patients, "records": records, "seconds": seconds, "seed": seed}
    if out.exists() and not out.is_dir():
        raise EcgfastError(f"out: {out} is a file, want a folder to create")
    if out.is_dir() and any(out.iterdir()):
        if _settings_in(out) == settings:
            return 0
        raise EcgfastError(f"out: {out} is not empty, and holds other than these records")
    check_creatable(out, "out")
    partial = partial_folder(out)
    if partial.exists():
        if _settings_in(partial) is None:
            raise EcgfastError(f"out: {partial} is in the way")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    (partial / _SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    for record in tqdm(generated, total=patients * records, unit="rec", disable=not progress):
        _write_record(partial, record)
    partial.rename(out)
    return patients * records


def _settings_in(folder: Path) -> dict[str, float] | None:
    try:
        return json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_record(out: Path, record: SyntheticRecord) -> None:
    patient = f"p{record.patient:06d}"
    name = f"{patient}_r{record.record:02d}"
    folder = out / f"{record.patient // 1000:03d}"  # file systems and people dislike huge folders
    folder.mkdir(exist_ok=True)
    samples = np.ascontiguousarray(record.signal.T, dtype="<i2")
    checksums = record.signal.sum(axis=1, dtype=np.int16)
    lines = [f"{name} {N_LEADS} {record.rate} {len(samples)}"]
    lines += [
        f"{name}.dat 16 1000(0)/mV 16 0 {first} {checksum} 0 {lead}"
        for first, checksum, lead in zip(samples[0], checksums, STANDARD_LEADS, strict=True)
    ]
    lines += [
        f"#Age: {record.age}",
        f"#Sex: {'Female' if record.sex == 'F' else 'Male'}",
        f"#Dx: {','.join(record.labels)}",
        f"#Patient: {patient}",
        f"#Rhythm: {record.rhythm}",
    ]
    samples.tofile(folder / f"{name}.dat")
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
