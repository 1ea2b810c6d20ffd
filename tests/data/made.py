"""Small WFDB folders made by hand."""

from pathlib import Path

import numpy as np

from ecgfast.leads import STANDARD_LEADS


def sines(n=5000, leads=12, rate=500):
    """Distinct microvolt signals, int16 [leads, n]."""
    t = np.arange(n) / rate
    waves = [400 * np.sin(2 * np.pi * (1 + 0.3 * i) * t) + 10 * i for i in range(leads)]
    return np.rint(waves).astype(np.int16)


def write_record(
    path: Path,
    signal=None,
    *,
    leads=STANDARD_LEADS,
    gain="1000(0)/mV",
    rate=500,
    comments=(),
    record_name=None,
    file_name=None,
    newline="\n",
):
    """Write `path`.hea and `path`.dat (format 16) with signal int16 [leads, n]."""
    signal = sines() if signal is None else np.asarray(signal, dtype="<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    file_name = file_name or f"{path.name}.dat"
    lines = [f"{record_name or path.name} {len(signal)} {rate} {signal.shape[1]}"]
    lines += [
        f"{file_name} 16 {gain} 16 0 {row[0]} 0 0 {lead}" for row, lead in zip(signal, leads, strict=True)
    ]
    lines += [f"#{comment}" for comment in comments]
    text = newline.join(lines) + newline
    path.with_name(f"{path.name}.hea").write_bytes(text.encode())
    signal.T.tofile(path.with_name(f"{path.name}.dat"))
