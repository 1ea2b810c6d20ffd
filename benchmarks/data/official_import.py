"""What fairseq-signals' `preprocess_physionet2021` does to a folder of CinC-2021 records, written again.

Per record: label, age, sex and rate from fixed lines of the header by linecache, the whole record by
`wfdb.rdrecord` for its gains, the samples by `scipy.io.loadmat`, and one `.mat` file of float64 per 5 s.
The original leaves records of another rate than 500 Hz out; `resample` asks for what it would take to keep
them, `scipy.signal.resample_poly`.
"""

import linecache
import math
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import scipy.io
import wfdb
from scipy.signal import resample_poly

RATE = 500
SECONDS = 5


def import_folder(
    source: Path,
    target: Path,
    classes: list[set[str]],
    *,
    workers: int = 1,
    resample: bool = False,
) -> None:
    """Import all records of a folder into `.mat` files in `target`, a folder that is there.

    Args:
        source: The folder with `.hea` and `.mat` files.
        target: Where the segments go.
        classes: Diagnosis codes of each label.
        workers: Processes.
        resample: Take records of other rates than 500 Hz too.
    """
    paths = sorted(str(path) for path in source.glob("**/*.mat"))
    size = math.ceil(len(paths) / workers)
    chunks = [paths[i : i + size] for i in range(0, len(paths), size)]
    patients = {Path(path).stem: i for i, path in enumerate(paths)}
    with Pool(workers) as pool:
        pool.map(partial(import_records, target, patients, classes, resample), chunks)


def import_records(
    target: Path, patients: dict[str, int], classes: list[set[str]], resample: bool, paths: list[str]
) -> None:
    """Import the records of these `.mat` files."""
    for path in paths:
        stem = path.removesuffix(".mat")
        header = f"{stem}.hea"
        codes = set(linecache.getline(header, 16).replace(",", " ").split()[1:])
        label = np.array([bool(codes & accepted) for accepted in classes])
        try:
            age = int(linecache.getline(header, 14).split()[1])
        except ValueError:
            age = 0
        sex = 0 if linecache.getline(header, 15).split()[1] == "Male" else 1
        rate = int(linecache.getline(header, 1).split()[2])
        if rate != RATE and not resample:
            continue
        gains = np.array(wfdb.rdrecord(stem).adc_gain)[:, None]
        signal = scipy.io.loadmat(stem)["val"]
        if np.isnan(signal).any():
            continue
        signal = signal / gains
        if rate != RATE:
            signal = resample_poly(signal, RATE, rate, axis=1)
        name = Path(stem).name
        patient = patients[name]
        step = SECONDS * RATE
        for i in range(signal.shape[1] // step):
            segment = {
                "age": age,
                "sex": sex,
                "label": label,
                "patient_id": patient,
                "curr_sample_rate": RATE,
                "feats": signal[:, i * step : (i + 1) * step],
            }
            scipy.io.savemat(target / f"{name}_{i}.mat", segment)
