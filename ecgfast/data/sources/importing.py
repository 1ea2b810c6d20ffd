"""Importing a folder of records into a store."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ecgfast.data.progress import Progress
from ecgfast.data.signal.plausibility import typical_advice
from ecgfast.data.signal.preprocess import Preprocessing, Rejected
from ecgfast.data.sources import Item, Source, open_source
from ecgfast.data.sources.arrays import array_recording, fields_of, judged, told_with_advice
from ecgfast.data.sources.readers import Outcome, read_in_order
from ecgfast.data.store.reasons import Reasons, counts_of, read_reasons
from ecgfast.data.store.recording import Recording
from ecgfast.data.store.store import store_description
from ecgfast.data.store.writer import StoreWriter, finished_store
from ecgfast.data.values import text_of
from ecgfast.errors import EcgfastError
from ecgfast.files import partial_path
from ecgfast.leads import OWN_NAMES

_SHOWN_NAMES = 8  # of signals that were not taken
_LISTED = 32_768  # most records that are kept in memory, not listed again


@dataclass(frozen=True)
class PrepareReport:
    """What an import did; `str()` of it is a summary: a line, and one for each sort of reason.

    Attributes:
        store: The store's folder.
        n_imported: Recordings in the store.
        n_rejected: Records that were not taken; `rejected.csv` names them with their reasons.
        rejected: How many records were rejected, by kind of reason.
        nothing_to_do: The store was there already, made from the same source in the same way.
        warnings: What is odd about recordings that were taken, by kind; `warnings.csv` names them.
        without: Recordings of unknown patient, age and sex, and without a label.
        unused: Recordings by name of a signal that was not taken, since it is no standard lead.
        amplitude: Typical peak-to-peak millivolts: the recordings' median; None if it wasn't looked at.
        examples: The most frequent reasons, then the warnings, whole, each with a record.
    """

    store: Path
    n_imported: int
    n_rejected: int
    rejected: dict[str, int]
    nothing_to_do: bool
    warnings: dict[str, int] = field(default_factory=dict)
    without: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    amplitude: float | None = None
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.n_imported} recordings"]
        if self.n_rejected:
            parts.append(f"{self.n_rejected} rejected ({counts_of(self.rejected)})")
        if self.warnings:
            parts.append(f"{sum(self.warnings.values())} warnings ({counts_of(self.warnings)})")
        if lacking := {name: count for name, count in self.without.items() if count}:
            parts.append(f"without {counts_of(lacking)}")
        if self.unused:
            parts.append(f"signals not taken: {_names(self.unused)}")
        if self.amplitude is not None:
            advice = typical_advice(self.amplitude, self.n_imported)
            parts.append(f"typically {self.amplitude:g} mV peak to peak{advice}")
        if self.nothing_to_do:
            told = f"{self.store}: nothing to do, the store is complete: {', '.join(parts)}"
        else:
            told = f"{self.store}: imported {', '.join(parts)}"
        return "\n  ".join([told, *self.examples])


def prepare(
    source: str | Path,
    store: str | Path,
    *,
    format: str = "auto",
    unit: str | None = None,
    preprocessing: Preprocessing | None = None,
    workers: int = 1,
    progress: bool = True,
) -> PrepareReport:
    """Import a folder of records into a new store.

    Leads are found by name, converted to microvolts and resampled to 500 Hz; a record that cannot
    be taken is noted in the store's `rejected.csv` with its reason (in `STORE.rejected.csv` if none can), and
    what is odd about one that is taken in `warnings.csv`. An interrupted import goes on where it stopped when
    it is run again, and ends in the same bytes as an uninterrupted one.

    Args:
        source: The folder, in one of the formats of `ecgfast.data.sources.FORMATS`.
        store: The folder to create. A finished store of the same source and settings is left as it
            is; whether a record's contents changed since is not looked at, only the names.
        format: Name of the format; "auto" finds it by looking at the folder.
        unit: V, mV, uV or nV, for a format whose files tell no unit (npy, code15); None: its usual one.
        preprocessing: Filters and repairs; none by default.
        workers: Processes that read records, this one included. They are forked on Linux; elsewhere more than
            one need the main module importable (`if __name__ == "__main__":` in scripts).
        progress: Show how far it is: a bar on a terminal, elsewhere a line every half a minute.

    Raises:
        EcgfastError: `source` is absent, is not of the format, has no records or none that can be taken;
            `store` is something else, of another source or can't be replaced (the current directory, a mount
            point, a link); another import into it runs; the disk is full.
    """
    folder, store = Path(source), Path(store)
    preprocessing = preprocessing or Preprocessing()
    if workers < 1:
        raise EcgfastError(f"workers: got {workers}, want 1 or more")
    opened = open_source(folder, format, unit)
    if preprocessing.names != OWN_NAMES and not opened.takes_names:
        raise EcgfastError(f"names: must be left out for format {opened.format}, whose leads are known")
    settings, listed, n_records = _settings(opened, preprocessing, progress)
    report = _finished(store, settings)
    if report is not None and not partial_path(store).exists():
        return report
    with StoreWriter(store, settings) as writer:
        # finished just now by another import, or by one that was killed before it tidied up
        report = _finished(store, settings)
        if report is not None:
            writer.discard()
            return report
        items = itertools.islice(listed or opened.items(), writer.n_done, None)
        with Progress("importing", n_records, initial=writer.n_done, shown=progress) as bar:
            read = partial(_outcome, opened, preprocessing)
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
    """Write recordings that are arrays into a new store, one after another.

    A recording is a mapping or an object with

    - signal: [leads, n_samples], floating point in millivolts or int16 in microvolts, or any real numbers
      with a unit or a gain; of NumPy, PyTorch (from any device) or another library, or a data frame whose
      columns are leads; masked samples are missing ones;
    - rate: samples per second;
    - unit: V, mV, uV or nV;
    - gain: counts of a converter in one unit (in one mV where no unit is given), for all leads or for each;
      where it is missing (NaN), whole numbers without a unit are refused;
    - leads: names of the signals, one a standard lead or more, the others are told in the summary; where it
      has none, those that the preprocessing's names give by position, else all twelve in the standard order;
    - record_id: unique; its number, from 0, where it has none;
    - patient_id: the same for all recordings of a patient; where it has none, the patient is like no other;
    - labels, age (years), sex (F or M), fold (a whole number).

    What is None, NaN, NA, NaT, masked, "" or "nan" is unknown, as what is left out. So is what can't be
    understood, such as an age of "old": it costs nothing but itself, and is noted in the store's
    `warnings.csv`, as is an amplitude that no ECG has. A recording that can't be taken is noted in
    `rejected.csv` with its reason; where none can, that list is kept as `STORE.rejected.csv`. An interrupted
    write leaves no store, and starts over: what the records were isn't known afterwards.

    Args:
        records: The recordings; gone through once, and not kept.
        store: The folder to create.
        preprocessing: Filters and repairs; none by default.

    Raises:
        EcgfastError: `records` is a table or a mapping; a recording has no signal, no rate or a field of
            another name; none can be taken; `store` is there already or can't be created; another import into
            it runs; the disk is full.
    """
    store = Path(store)
    preprocessing = preprocessing or Preprocessing()
    settings = store_description(preprocessing, {"importer": "arrays"})
    if finished_store(store, settings) is not None:
        raise EcgfastError(f"store: {store} is there already, want a folder to create")
    if isinstance(records, Mapping | str) or hasattr(records, "columns"):
        cure = "records.to_dict('records')" if hasattr(records, "to_dict") else "[records]"
        kind = type(records).__name__
        raise EcgfastError(f"records: must be an iterable of recordings, got one {kind}; pass {cure}")
    ids: set[str] = set()
    with StoreWriter(store, settings, resume=False) as writer:
        try:
            for i, record in enumerate(records):
                _write(writer, _read_array(fields_of(record), i, preprocessing, ids))
        except BaseException:
            writer.discard()
            raise
        return _complete(writer, f"records: none of {writer.n_done}")


def _read_array(given: dict[str, Any], i: int, preprocessing: Preprocessing, ids: set[str]) -> Outcome:
    given_id = given.get("record_id", i)
    name = text_of(given_id) or str(given_id)
    try:
        recording = array_recording(given, name, preprocessing)
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
    """Finish the store; if it is empty, keep why, discard it and raise an error that begins with `none`."""
    if writer.n_imported == 0:
        told = f"{none} can be taken"
        if writer.n_rejected:
            counts, sorts = counts_of(writer.rejected.kinds), "; ".join(writer.rejected.told())
            told += f": {counts}; such as {sorts}; all are listed in {writer.keep_rejected()}"
        writer.discard()
        raise EcgfastError(told)
    writer.finish()
    return PrepareReport(
        store=writer.path,
        n_imported=writer.n_imported,
        n_rejected=writer.n_rejected,
        rejected=dict(writer.rejected.kinds),
        nothing_to_do=False,
        warnings=dict(writer.warnings.kinds),
        without=dict(writer.without),
        unused=dict(writer.unused),
        amplitude=writer.amplitude,
        examples=_examples(writer.rejected, writer.warnings),
    )


def _names(counts: dict[str, int]) -> str:
    """Signals by name, the most frequent first: "MLII (48 records), RESP (3)"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    unit = " record" if ordered[0][1] == 1 else " records"
    shown = [f"{name} ({count}{unit if i == 0 else ''})" for i, (name, count) in enumerate(ordered)]
    rest = len(shown) - _SHOWN_NAMES
    return ", ".join(shown[:_SHOWN_NAMES] + ([f"{rest} more in store.json"] if rest > 0 else []))


def _examples(rejected: Reasons, warnings: Reasons) -> tuple[str, ...]:
    refusals = [f"rejected: {text}" for text in rejected.told()]
    return (*refusals, *(f"warning: {text}" for text in warnings.told()))


def _settings(
    source: Source, preprocessing: Preprocessing, progress: bool
) -> tuple[dict[str, Any], list[Item], int]:
    """What the store is made from and how; the records, none if they are many; and their number."""
    n_records = 0
    digest = hashlib.sha256()
    listed: list[Item] = []
    with Progress("listing", shown=progress) as bar:
        n_rows = 0

        def seen() -> None:
            nonlocal n_rows
            n_rows += 1
            bar.update()

        for n_records, item in enumerate(source.items(seen), start=1):
            digest.update(os.fsencode(item.name) + _told(item) + b"\n")
            if n_records <= _LISTED:
                listed.append(item)
            if n_records > n_rows:  # those of a table's rows are counted
                bar.update()
    if n_records == 0:
        raise EcgfastError(f"source: no records in {source.folder}")
    provenance = {
        "importer": source.format,
        "source": str(source.folder.resolve()),
        "n_records": n_records,
        "records_sha256": digest.hexdigest(),
    }
    if source.unit is not None:
        provenance["unit"] = source.unit
    return store_description(preprocessing, provenance), listed if n_records <= _LISTED else [], n_records


def _told(item: Item) -> bytes:
    """What is told of a record, for the digest: of warnings, which stores once hadn't, only what there is."""
    about, told = item.about._asdict(), item.about.warnings
    del about["warnings"]
    return json.dumps([list(about.values()), *item[2:], *([told] if told else [])]).encode()


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
        warnings=found.get("warnings", {}),
        without=found.get("without", {}),
        unused=found.get("unused_signals", {}),
        amplitude=found.get("amplitude_mv"),
        examples=_examples(read_reasons(store / "rejected.csv"), read_reasons(store / "warnings.csv")),
    )


def _outcome(source: Source, preprocessing: Preprocessing, item: Item) -> Outcome:
    if item.refused:
        return item.name, item.refused
    try:
        recording = source.read(item, preprocessing)
    except Rejected as rejected:
        return item.name, told_with_advice(rejected, None)
    except Exception as error:
        error.add_note(f"while reading {item.name} of {source.folder}")  # no traceback does
        raise
    return recording if recording.amplitude is not None else judged(recording, None)
