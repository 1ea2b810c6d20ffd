"""Reading folders of WFDB records (`.hea` with `.dat` or `.mat`) through wfdb.

The header is read here first: what it names must lie in its own folder and be as long as it says
before wfdb opens or allocates anything.
"""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfast.data.preprocess import Lead, Preprocessing, Rejected, standard_block
from ecgfast.data.store import first_line
from ecgfast.data.writer import Recording
from ecgfast.errors import EcgfastError
from ecgfast.leads import STANDARD_LEADS, find_lead

MICROVOLTS = {"v": 1e6, "mv": 1e3, "uv": 1.0, "nv": 1e-3}
"""Microvolts in one unit, by its name in lower case."""

_BYTES_PER_SAMPLE = {"8": 1, "80": 1, "16": 2, "61": 2, "160": 2, "24": 3, "32": 4} | {
    "212": 3 / 2,
    "310": 4 / 3,
    "311": 4 / 3,
}
_BITS = dict.fromkeys(("16", "61", "160", "516"), 16) | {
    **dict.fromkeys(("80", "508"), 8),
    **dict.fromkeys(("310", "311"), 10),
    **dict.fromkeys(("24", "524"), 24),
    "212": 12,
    "32": 32,
}
_MOST_COMPRESSED = 1e-4  # bytes per sample: no FLAC file holds more samples than this allows

_COUNT = r"\d{1,15}"  # more digits are damage, and int() or a product of two would fail on them
_RECORD_LINE = re.compile(
    rf"[-\w]+(?P<extension>\.\w+)?(?:/(?P<n_segments>{_COUNT}))?[ \t]+(?P<n_signals>{_COUNT})"
    rf"(?:[ \t]+[\d.]\S*(?:[ \t]+(?P<n_samples>{_COUNT})(?:[ \t].*)?)?)?"
)
_FORMAT = re.compile(
    rf"(?P<format>{_COUNT})(?:x(?P<per_frame>{_COUNT}))?(?::{_COUNT})?(?:\+(?P<offset>{_COUNT}))?"
)
_COMMENT_FIELD = r"(?:^|\s)<?{}>?\s*:\s*(\S+)"
_AGE = re.compile(_COMMENT_FIELD.format("age"), re.IGNORECASE)
_SEX = re.compile(_COMMENT_FIELD.format("(?:sex|gender)"), re.IGNORECASE)
_PATIENT = re.compile(_COMMENT_FIELD.format(r"(?:patient|subject)(?:[ _]?id)?"), re.IGNORECASE)
_DX = re.compile(r"^<?dx>?\s*:\s*(.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Header:
    """The parts of a `.hea` file that are needed before and beside wfdb.

    Attributes:
        name: Of the file, `.hea` included.
        n_segments: 0 for an ordinary record.
        n_samples: Frames per signal; 0 where the header does not say.
        lines: Of the signals or segments.
        comments: Without their `#`.
        text: The header in a form that wfdb reads.
        repaired: Whether `text` differs from the file.
    """

    name: str
    n_segments: int
    n_samples: int
    lines: list[str]
    comments: list[str]
    text: str
    repaired: bool


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
            segments.update(_segment_headers(Path(folder, name)))
        for name in names:
            if name not in segments:
                yield Path(folder, name).relative_to(source).as_posix()


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
    leads, rate = _read_leads(path, header)
    block, present = standard_block(leads, how)
    record_id = name.removesuffix(".hea")
    return Recording(
        record_id=record_id,
        patient_id=_comment(_PATIENT, header) or record_id,
        source=name,
        signal=block,
        leads=[STANDARD_LEADS[i] for i in present],
        labels=_labels(header),
        age=_age(header),
        sex=_sex(header),
        source_rate=rate,
    )


def read_header(path: Path) -> Header:
    """Read and check the form of a header.

    The record line of some sources names a file (`E00271.mat`), which wfdb does not take, nor does
    it keep the micro sign of a unit: `text` has both set right.

    Raises:
        Rejected: it cannot be read, or is no header.
    """
    try:
        original = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise Rejected(f"unreadable: {path.name}: {error.strerror}") from None
    lines = [line.strip() for line in original.splitlines()]
    comments = [line.strip(" \t#") for line in lines if line.startswith("#")]
    lines = [line for line in lines if line and not line.startswith("#")]
    form = _RECORD_LINE.fullmatch(lines[0]) if lines else None
    if form is None:
        raise Rejected(f"unreadable: {path.name} is no WFDB header")
    n_lines = int(form["n_segments"] or form["n_signals"])
    if n_lines != len(lines) - 1:
        raise Rejected(f"unreadable: {path.name} announces {n_lines} lines, has {len(lines) - 1}")
    fixed = [lines[0].replace(form["extension"] or "", "", 1)]
    fixed += [re.sub("[µμ]", "u", line) for line in lines[1:]]
    return Header(
        name=path.name,
        n_segments=int(form["n_segments"] or 0),
        n_samples=int(form["n_samples"] or 0),
        lines=fixed[1:],
        comments=comments,
        text="\n".join(fixed) + "\n",
        repaired=fixed != lines,
    )


def _segment_headers(path: Path) -> list[str]:
    try:
        header = read_header(path)
    except Rejected:
        return []
    return [f"{line.split()[0]}.hea" for line in header.lines] if header.n_segments else []


def _read_leads(path: Path, header: Header) -> tuple[dict[int, Lead], float]:
    """The standard leads, each in microvolts with its rate, and the highest of the rates."""
    if header.n_segments:
        headers = [header, *_segments(path, header)]
        channels = None
    else:
        headers = [header]
        channels = list(_channels([_signal_name(line) for line in header.lines]).values())
    single = (part for part in headers if not part.n_segments)
    files = set().union(*(_data_files(path.parent, part) for part in single))
    if not files:
        raise Rejected(f"unreadable: {header.name} names no signal file")
    record = _rdrecord(path, headers, files, channels)
    found = _channels(record.sig_name)
    if channels is not None and len(found) != len(channels):
        raise Rejected("unreadable: the signal lines are ambiguous")
    if record.units is None:
        raise Rejected("unit: it changes between the segments")
    leads = {}
    for lead, i in found.items():
        unit = record.units[i] or "mV"
        if unit.lower() not in MICROVOLTS:
            raise Rejected(f"unit: {STANDARD_LEADS[lead]} is in {unit}, want volts")
        rate = float(record.fs * (record.samps_per_frame[i] or 1))
        factor = MICROVOLTS[unit.lower()]
        rails = (factor * rail for rail in _rails(record, i))
        leads[lead] = Lead(record.e_p_signal[i] * factor, rate, tuple(rails))
    return leads, max(lead.rate for lead in leads.values())


def _rails(record: Any, i: int) -> tuple[float, float]:
    """The ends of a signal's range in its unit; infinite for a record in segments.

    They are those of the file format, half a step within: the resolution in headers is often wrong.
    The lowest number of a format stands for an invalid sample; format 8, of differences, has none.
    """
    if not getattr(record, "fmt", None) or record.fmt[i] not in _BITS:
        return -math.inf, math.inf
    highest = 2 ** (_BITS[record.fmt[i]] - 1) - 1.5
    ends = [(end - record.baseline[i]) / record.adc_gain[i] for end in (-highest, highest)]
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
            reason = first_line(error).replace(f"{folder}{os.sep}", "")
            raise Rejected(f"unreadable: {type(error).__name__}: {reason}") from error


def _link(target: Path, link: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:  # a file system or a user without symbolic links
        shutil.copyfile(target, link)


def _segments(path: Path, header: Header) -> list[Header]:
    """The headers of a multi-segment record's segments."""
    total = 0
    segments = []
    for line in header.lines:
        name, _, length = line.partition(" ")
        if name == "~":
            raise Rejected("invalid samples: the record has gaps between its segments")
        if not re.fullmatch(r"[-\w]+", name):
            raise Rejected(f"unsafe path: the header names segment {name!r}")
        if not re.fullmatch(_COUNT, length.strip()):
            raise Rejected(f"unreadable: segment {name} has no sound length")
        total += int(length)
        segments.append(read_header(path.with_name(f"{name}.hea")))
    if any(segment.n_segments for segment in segments):
        raise Rejected("unreadable: a segment is in segments itself")
    if header.n_samples not in (0, total):
        raise Rejected(f"unreadable: segments hold {total} samples, not {header.n_samples}")
    return segments


def _data_files(folder: Path, header: Header) -> set[str]:
    """Names of a record's signal files, which are there and as long as the header says."""
    per_frame: dict[str, int] = {}
    needed: dict[str, float] = {}
    for line in header.lines:
        name, *rest = line.split()[:2]
        if name == "~":  # signals of a layout header have no file
            continue
        if not re.fullmatch(r"[-\w.]+", name) or name in (".", ".."):
            raise Rejected(f"unsafe path: the header names file {name!r}")
        form = _FORMAT.fullmatch(rest[0]) if rest else None
        if form is None:
            raise Rejected(f"unreadable: {header.name} has a signal without a format")
        per_frame[name] = per_frame.get(name, 0) + int(form["per_frame"] or 1)
        size = _BYTES_PER_SAMPLE.get(form["format"], _MOST_COMPRESSED)
        needed[name] = int(form["offset"] or 0) + int(header.n_samples * per_frame[name] * size)
    for name, size in needed.items():
        try:
            present = (folder / name).stat().st_size
        except OSError as error:
            raise Rejected(f"unreadable: {name}: {error.strerror}") from None
        if present < size:
            raise Rejected(f"cut short: {name} has {present} of {size} bytes")
    return set(needed)


def _signal_name(line: str) -> str:
    """The description: what follows the eight fields of a signal line."""
    return line.split(None, 8)[8] if len(line.split(None, 8)) == 9 else ""


def _channels(names: list[str]) -> dict[int, int]:
    """Index of a standard lead -> number of its signal."""
    channels: dict[int, int] = {}
    for i, name in enumerate(names):
        lead = find_lead(re.sub(r"^(?:ecg|lead)[ _]", "", name or "", flags=re.IGNORECASE))
        if lead in channels:
            raise Rejected(f"ambiguous: two signals are lead {STANDARD_LEADS[lead]}")
        if lead is not None:
            channels[lead] = i
    if not channels:
        raise Rejected(f"no standard lead: the signals are {', '.join(map(str, names)) or 'none'}")
    return channels


def _comment(field: re.Pattern[str], header: Header) -> str | None:
    matches = (field.search(comment) for comment in header.comments)
    return next((match[1] for match in matches if match), None)


def _labels(header: Header) -> list[str]:
    matches = (_DX.search(comment) for comment in header.comments)
    codes = next((match[1] for match in matches if match), "")
    return [code.strip() for code in codes.split(",") if code.strip()]


def _age(header: Header) -> float | None:
    try:
        age = float(_comment(_AGE, header) or "nan")
    except ValueError:
        return None
    return age if math.isfinite(age) and age >= 0 else None


def _sex(header: Header) -> str | None:
    return {"f": "F", "female": "F", "m": "M", "male": "M"}.get((_comment(_SEX, header) or "").lower())
