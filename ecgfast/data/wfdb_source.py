"""Reading folders of WFDB records (`.hea` with `.dat` or `.mat`).

Formats of fixed width are decoded by `wfdb_signals`; what is rare goes through wfdb, after the same checks.
"""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ecgfast.data import wfdb_signals
from ecgfast.data.preprocess import Lead, Leads, Preprocessing, Rejected, standard_block
from ecgfast.data.values import identity, labels_of, sex_of, years
from ecgfast.data.wfdb_direct import direct_block
from ecgfast.data.wfdb_header import Header, check_files, read_header, read_segments, segment_headers
from ecgfast.data.writer import Recording
from ecgfast.errors import EcgfastError, one_line
from ecgfast.leads import STANDARD_LEADS, find_lead

MICROVOLTS = {"v": 1e6, "mv": 1e3, "uv": 1.0, "nv": 1e-3}
"""Microvolts in one unit, by its name in lower case."""

_COMMENT_FIELD = r"(?:^|\s)<?{}>?\s*:\s*(\S+)"
_AGE = re.compile(_COMMENT_FIELD.format("age"), re.IGNORECASE)
_SEX = re.compile(_COMMENT_FIELD.format("(?:sex|gender)"), re.IGNORECASE)
_PATIENT = re.compile(_COMMENT_FIELD.format(r"(?:patient|subject)(?:[ _]?id)?"), re.IGNORECASE)
_DX = re.compile(r"^<?dx>?\s*:\s*(.*)$", re.IGNORECASE)
_NO_RAILS = (-math.inf, math.inf)
_SHORT = 64  # characters of a signal's name: the cache would keep the long ones of damaged headers


def find_records(source: Path) -> Iterator[str]:
    """Paths of all headers below `source`, relative to it, in a fixed order.

    Headers that are a segment of another record are left out.

    Raises:
        EcgfastError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise EcgfastError(f"source: can't list {error.filename}: {error.strerror}") from error

    for folder, folders, files in os.walk(source, onerror=refuse):
        folders.sort()
        names = sorted(name for name in files if name.endswith(".hea"))
        segments: set[str] = set()
        for name in names:
            segments.update(segment_headers(os.path.join(folder, name)))
        below = Path(folder).relative_to(source).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name for name in names if name not in segments)


def read_recording(source: Path, name: str, how: Preprocessing) -> Recording:
    """Read one record of a source.

    Args:
        source: The folder with all records.
        name: Path of the header below it.
        how: Filters and repairs.

    Raises:
        Rejected: the record cannot be taken, with the reason.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Rejected("unreadable: the file name is not UTF-8") from None
    path = source / name
    header = read_header(path)
    if wfdb_signals.can_decode(header):
        (block, present), rate = _decoded(path.parent, header, how), header.rate
    else:
        leads, rate = _through_wfdb(path, header)
        block, present = standard_block(leads, how)
    warnings: list[str] = []
    recording = Recording(
        record_id=name.removesuffix(".hea"),
        patient_id=identity(_comment(_PATIENT, header), warnings),
        source=name,
        signal=block,
        leads=[STANDARD_LEADS[i] for i in present],
        labels=labels_of(_codes(header), warnings),
        age=years(_comment(_AGE, header), warnings),
        sex=sex_of(_comment(_SEX, header), warnings),
        source_rate=rate,
    )
    return replace(recording, warnings=tuple(warnings))


def _decoded(folder: Path, header: Header, how: Preprocessing) -> tuple[np.ndarray, list[int]]:
    """The block and the leads present, without wfdb."""
    channels = _channels([signal.name for signal in header.signals])
    check_files(folder, header)
    signals = [header.signals[i] for i in channels.values()]
    factors = [_factor(lead, signal.unit) for lead, signal in zip(channels, signals, strict=True)]
    direct = direct_block(folder, header, channels, factors, how)
    if direct is not None:
        return direct
    microvolts = wfdb_signals.read_signals(folder, header, list(channels.values()), factors)
    rails = [_rails(s.format, s.baseline, s.gain, f) for s, f in zip(signals, factors, strict=True)]
    return standard_block([Leads(list(channels), microvolts, header.rate, np.array(rails))], how)


def _through_wfdb(path: Path, header: Header) -> tuple[dict[int, Lead], float]:
    """The standard leads, each in microvolts with its rate, and the highest of the rates."""
    if header.n_segments:
        headers = [header, *read_segments(path, header)]
        channels = None
    else:
        headers = [header]
        channels = list(_channels([_signal_name(line) for line in header.lines]).values())
    single = (part for part in headers if not part.n_segments)
    files = set().union(*(check_files(path.parent, part) for part in single))
    if not files:
        raise Rejected(f"unreadable: {header.name} names no signal file")
    record = _rdrecord(path, headers, files, channels)
    found = _channels(record.sig_name)
    if channels is not None and len(found) != len(channels):
        raise Rejected("unreadable: the signal lines are ambiguous")
    if record.units is None:
        raise Rejected("unit: it changes between the segments")
    formats = getattr(record, "fmt", None)  # a record in segments has none
    leads = {}
    for lead, i in found.items():
        factor = _factor(lead, record.units[i] or "mV")
        rate = float(record.fs * (record.samps_per_frame[i] or 1))
        rails = _rails(formats[i], record.baseline[i], record.adc_gain[i], factor) if formats else _NO_RAILS
        leads[lead] = Lead(record.e_p_signal[i] * factor, rate, rails)
    return leads, max(lead.rate for lead in leads.values())


def _factor(lead: int, unit: str) -> float:
    """Microvolts in a signal's unit."""
    if unit.lower() not in MICROVOLTS:
        raise Rejected(f"unit: {STANDARD_LEADS[lead]} is in {unit}, want volts")
    return MICROVOLTS[unit.lower()]


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
    """The `wfdb.Record` with each signal at its own rate, in physical units."""
    import wfdb  # loads pandas: only for those who import records

    folder = path.parent.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        if any(header.repaired for header in headers):
            for name in files:
                _link(folder / name, Path(scratch, name))
            for header in headers:
                Path(scratch, header.name).write_text(header.text, encoding="utf-8")
            folder = Path(scratch)
        try:
            return wfdb.rdrecord(str(folder / path.stem), channels=channels, smooth_frames=False)
        except Exception as error:  # a damaged record makes wfdb raise anything, bare Exception too
            reason = one_line(error).replace(f"{folder}{os.sep}", "")
            raise Rejected(f"unreadable: {type(error).__name__}: {reason}") from error


def _link(target: Path, link: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:  # a file system or a user without symbolic links
        shutil.copyfile(target, link)


def _signal_name(line: str) -> str:
    """The description: what follows the eight fields of a signal line."""
    return line.split(None, 8)[8] if len(line.split(None, 8)) == 9 else ""


def _channels(names: list[str]) -> dict[int, int]:
    """Index of a standard lead -> number of its signal."""
    channels: dict[int, int] = {}
    for i, name in enumerate(names):
        find = _short_lead if len(name or "") <= _SHORT else _lead
        lead = find(name or "")
        if lead in channels:
            raise Rejected(f"ambiguous: two signals are lead {STANDARD_LEADS[lead]}")
        if lead is not None:
            channels[lead] = i
    if not channels:
        raise Rejected(f"no standard lead: the signals are {', '.join(map(str, names)) or 'none'}")
    return channels


def _lead(name: str) -> int | None:
    return find_lead(re.sub(r"^(?:ecg|lead)[ _]", "", name, flags=re.IGNORECASE))


_short_lead = lru_cache(maxsize=1024)(_lead)


def _comment(field: re.Pattern[str], header: Header) -> str | None:
    matches = (field.search(comment) for comment in header.comments)
    return next((match[1] for match in matches if match), None)


def _codes(header: Header) -> list[str]:
    matches = (_DX.search(comment) for comment in header.comments)
    return next((match[1] for match in matches if match), "").split(",")
