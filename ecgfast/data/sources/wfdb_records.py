"""Reading folders of WFDB records (`.hea` with `.dat` or `.mat`).

Formats of fixed width are decoded by `data.wfdb`; what is rare goes through wfdb, after the same checks.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.data.signal.plausibility import MICROVOLTS, find_unit
from ecgfast.data.signal.preprocess import Lead, Leads, Preprocessing, Rejected, standard_block
from ecgfast.data.sources.folders import walk_folders
from ecgfast.data.store.recording import Recording
from ecgfast.data.wfdb import signals as wfdb_signals
from ecgfast.data.wfdb.comments import read_comments
from ecgfast.data.wfdb.direct import direct_block
from ecgfast.data.wfdb.header import (
    Header,
    absent_files,
    check_files,
    has_files,
    read_header,
    read_segments,
    segment_headers,
    with_length,
)
from ecgfast.errors import EcgfastError, one_line
from ecgfast.leads import OWN_NAMES, STANDARD_LEADS, LeadNames, shown_name

_NO_RAILS = (-math.inf, math.inf)
_SHORT = 1024  # characters of a record's names: the cache would keep the long ones of damaged headers


def find_records(source: Path) -> Iterator[str]:
    """Paths of all headers below `source`, relative to it, in a fixed order.

    Headers that are a segment of another record are left out.

    Raises:
        EcgfastError: a folder cannot be listed.
    """
    for folder, files in walk_folders(source):
        names = [name for name in files if name.endswith(".hea")]
        segments: set[str] = set()
        for name in names:
            segments.update(segment_headers(os.path.join(source, folder, name)))
        prefix = f"{folder}/" if folder else ""
        yield from (prefix + name for name in names if name not in segments)


def read_recording(source: Path, name: str, preprocessing: Preprocessing) -> Recording:
    """Read one record of a source.

    Args:
        source: The folder with all records.
        name: Path of the header below it.
        preprocessing: Filters and repairs.

    Raises:
        Rejected: the record cannot be taken, with the reason.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Rejected("unreadable: the file name is not UTF-8") from None
    path = source / name
    header = with_length(path.parent, read_header(path))
    if wfdb_signals.can_decode(header):
        names, rate = [signal.name for signal in header.signals], header.rate
        block, present = _decoded(path.parent, header, preprocessing)
    else:
        leads, names, rate = _through_wfdb(path, header, preprocessing)
        block, present = standard_block(leads, preprocessing)
    told = read_comments(header.comments)
    return Recording(
        record_id=name.removesuffix(".hea"),
        patient_id=told.patient_id,
        source=name,
        signal=block,
        leads=[STANDARD_LEADS[i] for i in present],
        labels=list(told.labels),
        age=told.age,
        sex=told.sex,
        source_rate=rate,
        unused=_unused(names, preprocessing),
        warnings=(*told.warnings, *_missing(path.parent, header, names, preprocessing)),
    )


def _decoded(folder: Path, header: Header, preprocessing: Preprocessing) -> tuple[np.ndarray, list[int]]:
    """The block and the leads present, without wfdb."""
    channels = _channels([signal.name for signal in header.signals], preprocessing.names)
    _check_files(folder, header, channels)
    signals = [header.signals[i] for i in channels.values()]
    factors = [_factor(lead, signal.unit) for lead, signal in zip(channels, signals, strict=True)]
    direct = direct_block(folder, header, channels, factors, preprocessing)
    if direct is not None:
        return direct
    microvolts = wfdb_signals.read_signals(folder, header, list(channels.values()), factors, check=True)
    rails = [_rails(s.format, s.baseline, s.gain, f) for s, f in zip(signals, factors, strict=True)]
    return standard_block([Leads(list(channels), microvolts, header.rate, np.array(rails))], preprocessing)


def _check_files(folder: Path, header: Header, channels: dict[int, int]) -> set[str]:
    """`check_files`, but for files that are not there and have none of these signals."""
    try:
        return check_files(folder, header)
    except Rejected:
        absent = absent_files(folder, header)
        wanted = {header.lines[i].split(None, 1)[0] for i in channels.values()}
        if not absent or absent & wanted:
            raise
    return check_files(folder, header, absent)


def _through_wfdb(
    path: Path, header: Header, preprocessing: Preprocessing
) -> tuple[dict[int, Lead], list[str], float]:
    """The standard leads, each in microvolts with its rate; the names of all signals; the highest rate."""
    if header.n_segments:
        parts = [(part, check_files(path.parent, part)) for part in read_segments(path, header)]
        headers = [header, *(part for part, _ in parts)]
        wanted = None
        files = set().union(*(files for _, files in parts))
    else:
        headers = [header]
        names = [_signal_name(line) for line in header.lines]
        channels = _channels(names, preprocessing.names)
        wanted = list(channels.values())
        files = _check_files(path.parent, header, channels)
    if not files:
        raise Rejected(f"unreadable: {header.name} names no signal file")
    record = _rdrecord(path, headers, files, wanted)
    if wanted is None:
        names = [name or "" for name in record.sig_name]
        channels = _channels(names, preprocessing.names)
    elif [name or "" for name in record.sig_name] != [names[i] for i in wanted]:
        raise Rejected("unreadable: the signal lines are ambiguous")
    else:
        channels = {lead: place for place, lead in enumerate(channels)}
    if record.units is None:
        raise Rejected("unit: it changes between the segments")
    formats = getattr(record, "fmt", None)  # a record in segments has none
    leads = {}
    for lead, i in channels.items():
        factor = _factor(lead, record.units[i] or "mV")
        rate = float(record.fs * (record.samps_per_frame[i] or 1))
        rails = _rails(formats[i], record.baseline[i], record.adc_gain[i], factor) if formats else _NO_RAILS
        leads[lead] = Lead(record.e_p_signal[i] * factor, rate, rails)
    return leads, names, max(lead.rate for lead in leads.values())


def _factor(lead: int, unit: str) -> float:
    """Microvolts in a signal's unit."""
    found = find_unit(unit)
    if found is None:
        raise Rejected(f"unit: {STANDARD_LEADS[lead]} is in {unit}, want volts")
    return MICROVOLTS[found]


@lru_cache(maxsize=1024)
def _rails(form: str, baseline: int, gain: float, factor: float) -> tuple[float, float]:
    """The ends of a signal's range in microvolts; infinite where the format has none.

    They are those of the file format, half a step within: the resolution in headers is often wrong.
    The lowest number of a format stands for an invalid sample.
    """
    if form not in wfdb_signals.BITS:
        return _NO_RAILS
    highest = 2 ** (wfdb_signals.BITS[form] - 1) - 1.5
    ends = [factor * ((end - baseline) / gain) for end in (-highest, highest)]
    return min(ends), max(ends)


def _rdrecord(path: Path, headers: list[Header], files: set[str], channels: list[int] | None) -> Any:
    """The `wfdb.Record` with each signal at its own rate, in physical units, its samples checked."""
    import wfdb  # loads pandas: only for those who import records

    folder = path.parent.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        if any(header.repaired for header in headers):
            for name in files:
                _link(folder / name, Path(scratch, name))
            for header in headers:
                Path(scratch, header.name).write_text(header.text, encoding="utf-8")
            folder = Path(scratch)

        def read(header: Header, physical: bool) -> Any:
            name = str(folder / header.name.removesuffix(".hea"))
            return wfdb.rdrecord(name, channels=channels, smooth_frames=False, physical=physical)

        try:
            if len(headers) > 1:
                for part in filter(has_files, headers[1:]):
                    _check_samples(read(part, physical=False))
                return read(headers[0], physical=True)
            record = read(headers[0], physical=False)
            _check_samples(record)
            record.dac(expanded=True, inplace=True)
            return record
        except Rejected:
            raise
        except Exception as error:  # a damaged record makes wfdb raise anything, bare Exception too
            reason = one_line(error).replace(f"{folder}{os.sep}", "")
            if not reason.startswith(kind := type(error).__name__):  # `one_line` names some
                reason = f"{kind}: {reason}"
            raise Rejected(f"unreadable: {reason}") from error


def _check_samples(record: Any) -> None:
    """Compare a digital record with the initial values and checksums that its header tells."""
    for i, samples in enumerate(record.e_d_signal or ()):
        if not (record.skew and record.skew[i]):  # what was summed of a late signal isn't known
            form = record.fmt[i]
            initial = 0 if form == "8" else record.init_value[i] or 0
            name = record.sig_name[i] or record.file_name[i]
            invalid = wfdb_signals.invalid_sample(form)
            wfdb_signals.check_samples(samples, name, initial, record.checksum[i] or 0, invalid)


def _link(target: Path, link: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:  # a file system or a user without symbolic links
        shutil.copyfile(target, link)


def _signal_name(line: str) -> str:
    """The description: what follows the eight fields of a signal line."""
    return line.split(None, 8)[8] if len(line.split(None, 8)) == 9 else ""


def _channels(names: list[str], rule: LeadNames = OWN_NAMES) -> dict[int, int]:
    """Index of a standard lead -> number of its signal."""
    find = _cached_channels if sum(map(len, names)) <= _SHORT else _cached_channels.__wrapped__
    return dict(find(tuple(names), rule))


@lru_cache(maxsize=256)  # most records of a source have the same
def _cached_channels(names: tuple[str, ...], rule: LeadNames) -> dict[int, int]:
    try:
        found = rule.find(names)
    except EcgfastError as error:
        raise Rejected(str(error)) from None
    return {lead: i for i, lead in enumerate(found) if lead is not None}


def _unused(names: list[str], preprocessing: Preprocessing) -> tuple[str, ...]:
    """Names of the signals that are no standard lead, for people."""
    taken = set(_channels(names, preprocessing.names).values())
    return tuple(shown_name(name) for i, name in enumerate(names) if i not in taken)


def _missing(folder: Path, header: Header, names: list[str], preprocessing: Preprocessing) -> Iterator[str]:
    """Warnings of files that are not there; that none of the leads is in them, `_check_files` has seen."""
    if header.n_segments or len(_channels(names, preprocessing.names)) == len(names):
        return
    for file in sorted(absent_files(folder, header)):
        own = zip(header.lines, names, strict=True)
        told = ", ".join(shown_name(name) for line, name in own if line.split(None, 1)[0] == file)
        yield f"missing file: {file}, of {told}"
