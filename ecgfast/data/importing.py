"""Importing a folder of records into a store."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ecgfast.data.arrays import array_recording, fields_of
from ecgfast.data.folders import partial_folder
from ecgfast.data.preprocess import Preprocessing, Rejected
from ecgfast.data.readers import Outcome, read_in_order
from ecgfast.data.sources import Item, Source, open_source
from ecgfast.data.store import SAMPLE_RATE, STORE_FORMAT, STORE_VERSION
from ecgfast.data.writer import Recording, StoreWriter, finished_store
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS

_LISTED = 10_000  # most records that are kept in memory, not listed again


@dataclass(frozen=True)
class PrepareReport:
    """What an import did; `str()` of it is a summary in one line.

    Attributes:
        store: The store's folder.
        n_imported: Recordings in the store.
        n_rejected: Records that were not taken; `rejected.csv` names them with their reasons.
        rejected: How many records were rejected, by kind of reason.
        nothing_to_do: The store was there already, made from the same source in the same way.
    """

    store: Path
    n_imported: int
    n_rejected: int
    rejected: dict[str, int]
    nothing_to_do: bool

    def __str__(self) -> str:
        counts = f"{self.n_imported} recordings"
        if self.n_rejected:
            counts += f", {self.n_rejected} rejected ({_describe(self.rejected)})"
        if self.nothing_to_do:
            return f"{self.store}: nothing to do, the store is complete: {counts}"
        return f"{self.store}: imported {counts}"


def prepare(
    source: str | Path,
    store: str | Path,
    *,
    form: str = "auto",
    preprocessing: Preprocessing | None = None,
    workers: int = 1,
    progress: bool = True,
) -> PrepareReport:
    """Import a folder of records into a new store.

    Leads are found by name, converted to microvolts and resampled to 500 Hz; a record that cannot
    be taken is noted in the store's `rejected.csv` with its reason. An interrupted import goes on
    where it stopped when it is run again, and ends in the same bytes as an uninterrupted one.

    Args:
        source: The folder, in one of the formats of `ecgfast.data.sources.FORMATS`.
        store: The folder to create. A finished store of the same source and settings is left as it
            is; whether a record's contents changed since is not looked at, only the names.
        form: Name of the format; "auto" finds it by looking at the folder.
        preprocessing: Filters and repairs; none by default.
        workers: Processes that read records, this one included. They are forked on Linux; elsewhere more than
            one need the main module importable (`if __name__ == "__main__":` in scripts).
        progress: Show a progress bar.

    Raises:
        EcgfastError: `source` is absent, is not of the format, has no records or none that can be taken;
            `store` is something else, of another source or can't be replaced (the current directory, a mount
            point, a link); another import into it runs; the disk is full.
    """
    folder, store = Path(source), Path(store)
    how = preprocessing or Preprocessing()
    if workers < 1:
        raise EcgfastError(f"workers: got {workers}, want 1 or more")
    opened = open_source(folder, form)
    settings, listed, n_records = _settings(opened, how)
    report = _finished(store, settings)
    if report is not None and not partial_folder(store).exists():
        return report
    with StoreWriter(store, settings) as writer:
        # finished just now by another import, or by one that was killed before it tidied up
        report = _finished(store, settings)
        if report is not None:
            writer.discard()
            return report
        items = itertools.islice(listed or opened.items(), writer.n_done, None)
        bar = tqdm(total=n_records, initial=writer.n_done, unit="rec", disable=not progress)
        with bar:
            read = partial(_outcome, opened, how)
            for outcome in read_in_order(read, items, workers, writer.lock):
                _write(writer, outcome)
                bar.update()
        return _complete(writer, f"source: none of the {n_records} records in {folder}")


def write_store(
    records: Iterable[Any],
    store: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
) -> PrepareReport:
    """Write recordings that are NumPy arrays into a new store, one after another.

    A recording is a mapping or an object with

    - signal: [leads, n_samples], floating point in millivolts or int16 in microvolts;
    - rate: samples per second;
    - leads: names of the leads, standard ones; all twelve in the standard order where it has none;
    - record_id: unique; its number, from 0, where it has none;
    - patient_id: the same for all recordings of a patient; the record id where it has none;
    - labels, age (years), sex (F or M), fold (a whole number): None, NaN or left out where unknown.

    A recording that can't be taken is noted in the store's `rejected.csv` with its reason. An interrupted
    write leaves no store, and begins anew: what the records were isn't known afterwards.

    Args:
        records: The recordings; gone through once, and not kept.
        store: The folder to create.
        preprocessing: Filters and repairs; none by default.

    Raises:
        EcgfastError: a recording has no signal, no rate or a field of another name; none can be taken;
            `store` is there already or can't be created; another import into it runs; the disk is full.
    """
    store = Path(store)
    how = preprocessing or Preprocessing()
    settings = store_description(how, {"importer": "arrays"})
    if finished_store(store, settings) is not None:
        raise EcgfastError(f"store: {store} is there already, want a folder to create")
    ids: set[str] = set()
    with StoreWriter(store, settings, resume=False) as writer:
        try:
            for i, record in enumerate(records):
                _write(writer, _read_array(fields_of(record), i, how, ids))
        except BaseException:
            writer.discard()
            raise
        return _complete(writer, f"records: none of {writer.n_done}")


def _read_array(given: dict[str, Any], i: int, how: Preprocessing, ids: set[str]) -> Outcome:
    name = str(given.get("record_id", i))
    try:
        recording = array_recording(given, name, how)
    except Rejected as rejected:
        return name, str(rejected)
    if name in ids:
        return name, "ambiguous: an earlier record has this id"
    ids.add(name)
    return recording


def _write(writer: StoreWriter, outcome: Outcome) -> None:
    if isinstance(outcome, Recording):
        writer.add(outcome)
    else:
        writer.reject(*outcome)


def _complete(writer: StoreWriter, none: str) -> PrepareReport:
    """Finish the store, or discard it and raise an error that begins with `none` if it is empty."""
    if writer.n_imported == 0:
        writer.discard()
        raise EcgfastError(f"{none} can be taken: {_describe(writer.rejected)}")
    writer.finish()
    return PrepareReport(
        store=writer.path,
        n_imported=writer.n_imported,
        n_rejected=writer.n_rejected,
        rejected=dict(writer.rejected),
        nothing_to_do=False,
    )


def _describe(counts: dict[str, int]) -> str:
    """Counts in one line, the largest first: "flat 3, unreadable 1"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


def _settings(source: Source, how: Preprocessing) -> tuple[dict[str, Any], list[Item], int]:
    """What the store is made from and how; the records, none if they are many; and their number."""
    n_records = 0
    digest = hashlib.sha256()
    listed: list[Item] = []
    for n_records, item in enumerate(source.items(), start=1):
        digest.update(os.fsencode(item.name) + json.dumps(item[1:]).encode() + b"\n")
        if n_records <= _LISTED:
            listed.append(item)
    if n_records == 0:
        raise EcgfastError(f"source: no records in {source.folder}")
    provenance = {
        "importer": source.form,
        "source": str(source.folder.resolve()),
        "n_records": n_records,
        "records_sha256": digest.hexdigest(),
    }
    return store_description(how, provenance), listed if n_records <= _LISTED else [], n_records


def store_description(how: Preprocessing, provenance: dict[str, Any]) -> dict[str, Any]:
    """What `store.json` says besides the counts."""
    return {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "sample_rate": SAMPLE_RATE,
        "unit": "microvolt",
        "leads": list(STANDARD_LEADS),
        "preprocessing": how.describe(),
        "provenance": provenance,
    }


def _finished(store: Path, settings: dict[str, Any]) -> PrepareReport | None:
    found = finished_store(store, settings)
    if found is None:
        return None
    return PrepareReport(
        store=store,
        n_imported=found["n_recordings"],
        n_rejected=found["n_rejected"],
        rejected=found["rejected"],
        nothing_to_do=True,
    )


def _outcome(source: Source, how: Preprocessing, item: Item) -> Outcome:
    if item.refused:
        return item.name, item.refused
    try:
        return source.read(item, how)
    except Rejected as rejected:
        return item.name, str(rejected)
