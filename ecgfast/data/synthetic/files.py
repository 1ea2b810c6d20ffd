"""Synthetic recordings on disk: as WFDB records, or in a store at once."""

import json
import shutil
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.data.progress import Progress
from ecgfast.data.signal.preprocess import Preprocessing
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import store_description
from ecgfast.data.store.writer import StoreWriter, finished_store
from ecgfast.data.synthetic.records import Recipe, SyntheticRecord, map_chunks
from ecgfast.errors import EcgfastError
from ecgfast.files import check_creatable, move_into_place, partial_path
from ecgfast.leads import N_LEADS, STANDARD_LEADS
from ecgfast.units import UNITS_PER_MILLIVOLT

_SETTINGS = "synthetic.json"  # in a folder of synthetic records: what they were made with
_GENERATION = 2  # of the generator: a new one makes other records of the same settings


def write_synthetic(
    out: str | Path,
    *,
    patients: int,
    records: int,
    seconds: float,
    seed: int,
    workers: int = 1,
    progress: bool = True,
) -> int:
    """Write synthetic recordings as a folder of WFDB records (format 16, microvolts, 500 Hz).

    Headers carry `#Age`, `#Sex`, `#Dx` (SNOMED CT), `#Patient` and `#Class`. The folder is written
    beside its place and renamed when complete.

    Args:
        out: The folder to create.
        patients: Number of patients.
        records: Recordings of each patient.
        seconds: Length of each recording.
        seed: Of everything drawn.
        workers: Threads; the files do not depend on their number.
        progress: Show a progress bar.

    Returns:
        Number of records written: 0 where `out` holds these records already.

    Raises:
        EcgfastError: an argument out of range, `out` holds anything else, or can't be replaced (the
            current directory, a mount point, a link).
    """
    _check_workers(workers)
    recipe = Recipe(patients, records, seconds, seed)
    out = Path(out)
    settings = _describe(recipe)
    if out.exists() and not out.is_dir():
        raise EcgfastError(f"out: {out} is a file, want a folder to create")
    if out.is_dir() and any(out.iterdir()):
        if _settings_in(out) == settings:
            return 0
        raise EcgfastError(f"out: {out} is not empty, and holds other than these records")
    check_creatable(out, "out")
    partial = partial_path(out)
    if partial.exists():
        if _settings_in(partial) is None:
            raise EcgfastError(f"out: {partial} is in the way")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    (partial / _SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    which = range(patients * records)
    with Progress("writing", len(which), shown=progress) as bar:
        for written in map_chunks(bind(_write_records, partial, recipe), which, workers):
            bar.update(written)
    move_into_place(partial, out, durable=False)
    return len(which)


def synthetic_store(
    store: str | Path,
    *,
    patients: int,
    records: int,
    seconds: float,
    seed: int,
    workers: int = 1,
    progress: bool = True,
) -> int:
    """Write synthetic recordings into a new store, as `prepare` would from a folder of them.

    An interrupted run goes on where it stopped when it is run again, and ends in the same bytes.

    Args:
        store: The store's folder, absent or empty.
        patients, records, seconds, seed, workers, progress: As for `write_synthetic`.

    Returns:
        Number of records written: 0 where `store` holds these records already.

    Raises:
        EcgfastError: an argument out of range, `store` holds anything else or can't be replaced,
            another run writes it, or the disk is full.
    """
    _check_workers(workers)
    recipe = Recipe(patients, records, seconds, seed)
    store = Path(store)
    settings = store_description(Preprocessing(), {"importer": "synthetic"} | _describe(recipe))
    if finished_store(store, settings) is not None and not partial_path(store).exists():
        return 0
    with StoreWriter(store, settings) as writer:
        # finished just now by another run, or by one that was killed before it tidied up
        if finished_store(store, settings) is not None:
            writer.discard()
            return 0
        which = range(writer.n_done, patients * records)
        with Progress("writing", which.stop, initial=which.start, shown=progress) as bar:
            for chunk in map_chunks(bind(_recordings, recipe), which, workers):
                for recording in chunk:
                    writer.add(recording)
                bar.update(len(chunk))
        writer.finish()
    return patients * records


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise EcgfastError(f"workers: got {workers}, want 1 or more")


def _describe(recipe: Recipe) -> dict[str, Any]:
    settings = {name: getattr(recipe, name) for name in ("patients", "records", "seconds", "seed")}
    return settings | {"generation": _GENERATION}


def _settings_in(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _names(record: SyntheticRecord) -> tuple[str, str, str]:
    """Of the patient, of the record and of its folder."""
    patient = f"p{record.patient:06d}"
    # file systems and people dislike huge folders
    return patient, f"{patient}_r{record.record:02d}", f"{record.patient // 1000:03d}"


def _recordings(recipe: Recipe, which: range) -> list[Recording]:
    recordings = []
    for record in recipe.make(which):
        patient, name, folder = _names(record)
        recordings.append(
            Recording(
                record_id=f"{folder}/{name}",
                patient_id=patient,
                source=f"{folder}/{name}.hea",
                signal=record.signal,
                leads=list(STANDARD_LEADS),
                labels=record.labels,
                age=float(record.age),
                sex=record.sex,
                source_rate=float(record.rate),
            )
        )
    return recordings


def _write_records(out: Path, recipe: Recipe, which: range) -> int:
    for record in recipe.make(which):
        _write_record(out, record)
    return len(which)


def _write_record(out: Path, record: SyntheticRecord) -> None:
    patient, name, below = _names(record)
    folder = out / below
    folder.mkdir(exist_ok=True)
    samples = np.ascontiguousarray(record.signal.T, dtype="<i2")
    checksums = record.signal.sum(axis=1, dtype=np.int16)
    lines = [f"{name} {N_LEADS} {record.rate} {len(samples)}"]
    lines += [
        f"{name}.dat 16 {UNITS_PER_MILLIVOLT}(0)/mV 16 0 {first} {checksum} 0 {lead}"
        for first, checksum, lead in zip(samples[0], checksums, STANDARD_LEADS, strict=True)
    ]
    lines += [
        f"#Age: {record.age}",
        f"#Sex: {'Female' if record.sex == 'F' else 'Male'}",
        f"#Dx: {','.join(record.labels)}",
        f"#Patient: {patient}",
        f"#Class: {record.heart}",
    ]
    samples.tofile(folder / f"{name}.dat")
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
