"""Folders of made records as CinC-2021 has them: `.hea` and `.mat`, 12 leads, 10 s."""

from pathlib import Path

import numpy as np
import scipy.io

from ecgfast.leads import STANDARD_LEADS

_MAT_HEADER = 24  # bytes before the samples of `val` in a version 4 file


def write_cinc_folder(folder: Path, n_records: int, rate: int = 500, seconds: int = 10) -> Path:
    """Write records of noise that no check rejects, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    n = rate * seconds
    for i in range(n_records):
        stem = f"A{i:05d}"
        if (folder / f"{stem}.hea").exists():
            continue
        signal = np.random.default_rng(i).integers(-2000, 2000, (12, n)).astype(np.int16)
        scipy.io.savemat(folder / f"{stem}.mat", {"val": signal}, format="4")
        lines = [f"{stem} 12 {rate} {n} 12-May-2020 12:33:59"]
        lines += [f"{stem}.mat 16+{_MAT_HEADER} 1000/mV 16 0 0 0 0 {lead}" for lead in STANDARD_LEADS]
        lines += ["#Age: 61", "#Sex: Male", "#Dx: 164889003,59118001", "#Rx: Unknown", "#Hx: Unknown"]
        (folder / f"{stem}.hea").write_text("\n".join(lines) + "\n")
    return folder


def write_record(folder: Path, form: str) -> Path:
    """Write one record in format 16 or 212; its path without a suffix."""
    samples = np.random.default_rng(0).integers(-2000, 2000, (5000, 12)).astype("<i2")
    content = samples.tobytes()
    if form == "212":
        low, high = (samples.reshape(-1, 2) & 0xFFF).T
        packed = np.stack([low & 0xFF, low >> 8 | high >> 8 << 4, high & 0xFF], axis=1)
        content = packed.astype(np.uint8).tobytes()
    path = folder / f"r{form}"
    path.with_suffix(".dat").write_bytes(content)
    lines = [f"{path.name} 12 500 5000"]
    lines += [f"{path.name}.dat {form} 1000/mV 12 0 0 0 0 {lead}" for lead in STANDARD_LEADS]
    path.with_suffix(".hea").write_text("\n".join(lines) + "\n")
    return path
