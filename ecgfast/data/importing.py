"""Importing a folder of records into a store."""

import hashlib
import itertools
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ecgfast.data.folders import partial_folder
from ecgfast.data.preprocess import Preprocessing, Rejected
from ecgfast.data.readers import Outcome, read_in_order
from ecgfast.data.store import SAMPLE_RATE, STORE_FORMAT, STORE_VERSION
from ecgfast.data.wfdb_source import find_records, read_recording
from ecgfast.data.writer import Recording, StoreWriter, finished_store
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS


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
    preprocessing: Preprocessing | None = None,
    workers: int = 1,
    progress: bool = True,
) -> PrepareReport:
    """Import all WFDB records below a folder into a new store.

    Leads are found by name, converted to microvolts and resampled to 500 Hz; a record that cannot
    be taken is noted in the store's `rejected.csv` with its reason. An interrupted import goes on
    where it stopped when it is run again, and ends in the same bytes as an uninterrupted one.

    Args:
        source: The folder with `.hea` files, at any depth.
        store: The folder to create. A finished store of the same source and settings is left as it
            is; whether a record's contents changed since is not looked at, only the names.
        preprocessing: Filters and repairs; none by default.
        workers: Processes that read records, this one included. They are forked on Linux; elsewhere more than
            one need the main module importable (`if __name__ == "__main__":` in scripts).
        progress: Show a progress bar.

    Raises:
        EcgfastError: `source` is absent, has no records or none that can be taken; `store` is
            something else, of another source or can't be replaced (the current directory, a mount
            point, a link); another import into it runs; the disk is full.
    """
    source, store = Path(source), Path(store)
    how = preprocessing or Preprocessing()
    if workers < 1:
        raise EcgfastError(f"workers: got {workers}, want 1 or more")
    settings, n_records = _settings(source, how)
    report = _finished(store, settings)
    if report is not None and not partial_folder(store).exists():
        return report
    with StoreWriter(store, settings) as writer:
        # finished just now by another import, or by one that was killed before it tidied up
        report = _finished(store, settings)
        if report is not None:
            writer.discard()
            return report
        names = itertools.islice(find_records(source), writer.n_done, None)
        bar = tqdm(total=n_records, initial=writer.n_done, unit="rec", disable=not progress)
        with bar:
            read = partial(_outcome, source, how)
            for outcome in read_in_order(read, names, workers, writer.lock):
                if isinstance(outcome, Recording):
                    writer.add(outcome)
                else:
                    writer.reject(*outcome)
                bar.update()
        if writer.n_imported == 0:
            writer.discard()
            raise EcgfastError(
                f"source: none of the {n_records} records in {source} can be taken: "
                f"{_describe(writer.rejected)}"
            )
        writer.finish()
        return PrepareReport(
            store=store,
            n_imported=writer.n_imported,
            n_rejected=writer.n_rejected,
            rejected=dict(writer.rejected),
            nothing_to_do=False,
        )


def _describe(counts: dict[str, int]) -> str:
    """Counts in one line, the largest first: "flat 3, unreadable 1"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)


def _settings(source: Path, how: Preprocessing) -> tuple[dict[str, Any], int]:
    """What the store is made from and how, and the number of records."""
    if not source.is_dir():
        raise EcgfastError(f"source: no such folder: {source}")
    n_records = 0
    names = hashlib.sha256()
    for n_records, name in enumerate(find_records(source), start=1):  # noqa: B007
        names.update(os.fsencode(name) + b"\n")
    if n_records == 0:
        raise EcgfastError(f"source: no WFDB record (.hea file) in {source}")
    return {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "sample_rate": SAMPLE_RATE,
        "unit": "microvolt",
        "leads": list(STANDARD_LEADS),
        "preprocessing": how.describe(),
        "provenance": {
            "importer": "wfdb",
            "source": str(source.resolve()),
            "n_records": n_records,
            "names_sha256": names.hexdigest(),
        },
    }, n_records


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


def _outcome(source: Path, how: Preprocessing, name: str) -> Outcome:
    try:
        return read_recording(source, name, how)
    except Rejected as rejected:
        return name, str(rejected)
