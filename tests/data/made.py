"""Small WFDB folders made by hand."""

import csv
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


def write_csv(path: Path, rows):
    """Write mappings with the same keys as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def ptbxl_row(ecg_id, **values):
    """A row of `ptbxl_database.csv`, in the columns of version 1.0.3 that matter and some that don't."""
    folder = f"{ecg_id // 1000 * 1000:05d}"
    return {
        "ecg_id": ecg_id,
        "patient_id": "15709.0",
        "age": "56.0",
        "sex": 1,
        "height": "",
        "report": "sinusrhythmus periphere niederspannung, sonst normal",
        "scp_codes": "{'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}",
        "strat_fold": 3,
        "filename_lr": f"records100/{folder}/{ecg_id:05d}_lr",
        "filename_hr": f"records500/{folder}/{ecg_id:05d}_hr",
    } | values


def write_ptbxl(folder: Path, rows, rates=(100, 500)):
    """A folder in the shape of PTB-XL; the records of rows with safe paths are written."""
    write_csv(folder / "ptbxl_database.csv", rows)
    (folder / "scp_statements.csv").write_text(",description\nNORM,normal ECG\n")
    for row in rows:
        for rate, column in ((100, "filename_lr"), (500, "filename_hr")):
            if rate in rates and ".." not in row[column] and row[column][0] != "/":
                write_record(folder / row[column], sines(10 * rate, rate=rate), rate=rate)


MIMIC_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")


def mimic_row(subject, study, **values):
    """A row of MIMIC-IV-ECG's `record_list.csv`."""
    return {
        "subject_id": subject,
        "study_id": study,
        "file_name": study,
        "ecg_time": "2180-07-23 08:44:00",
        "path": f"files/p{subject // 10000}/p{subject}/s{study}/{study}",
    } | values


def write_mimic(folder: Path, rows):
    """A folder in the shape of MIMIC-IV-ECG, aVF before aVL, every record of `sines`."""
    write_csv(folder / "record_list.csv", rows)
    order = [STANDARD_LEADS.index(lead) for lead in MIMIC_LEADS]
    for row in rows:
        signal = sines()[order]
        write_record(folder / row["path"], signal, leads=MIMIC_LEADS, gain="1000.0(0)/mV")
