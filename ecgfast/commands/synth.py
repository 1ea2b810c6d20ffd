"""`ecgfast synth`: synthetic records."""

import os
from pathlib import Path

from ecgfast._outputs import check_space
from ecgfast.commands.arguments import Argument, count
from ecgfast.leads import N_LEADS
from ecgfast.units import SAMPLE_RATE


def synth(
    out: Argument[Path],
    patients: int = 100,
    records: int = 2,
    seconds: float = 10.0,
    seed: int = 0,
    workers: int = 0,
    into_store: bool = False,
) -> None:
    """Write synthetic 12-lead records (WFDB, 500 Hz) to try things out without data.

    Args:
        out: New or empty folder for the records (.hea and .dat files) or the store; left alone if
            it holds these very records.
        patients: Number of patients, each with a heart of their own.
        records: Recordings of each patient.
        seconds: Length of a recording in seconds.
        seed: Same seed, same records.
        workers: Threads that make records; 0: one per core.
        into_store: Write a store, as `ecgfast prepare` does, and no files of single records.
    """
    from ecgfast.data import synthetic_store, write_synthetic

    if not out.exists():  # else it may hold them already
        check_space("patients", patients * records * seconds * SAMPLE_RATE * N_LEADS * 2, out)
    written = (synthetic_store if into_store else write_synthetic)(
        out,
        patients=patients,
        records=records,
        seconds=seconds,
        seed=seed,
        workers=workers or os.cpu_count() or 1,
    )
    what = f"{count(patients * records, 'record')} of {count(patients, 'patient')}, {seconds:g} s each"
    print(f"{out}: {what}" if written else f"{out}: nothing to do, it holds {what}")
