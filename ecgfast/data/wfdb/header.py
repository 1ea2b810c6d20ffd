"""Headers of WFDB records: the `.hea` files, as the standard has them and as they are found.

What a header names is checked here, before any signal file is opened: it must lie in the header's own folder
and be as long as the header says.
"""

import math
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ecgfast.data.signal.preprocess import Rejected
from ecgfast.data.wfdb.files import file_size, frames_in_file
from ecgfast.data.wfdb.files import signal_bytes as signal_bytes  # of formats, as headers number them
from ecgfast.errors import printable

MAX_HEADER_BYTES = 2**24
"""Longest header that is read: that of a year in segments of a minute."""

_COUNT = r"\d{1,15}"  # more digits are damage, and int() or a product of two would fail on them
_RECORD_LINE = re.compile(
    rf"[-\w]+(?P<extension>\.\w+)?(?:/(?P<n_segments>{_COUNT}))?[ \t]+(?P<n_signals>{_COUNT})"
    rf"(?:[ \t]+(?P<rate>[\d.]\S*)(?:[ \t]+(?P<n_samples>{_COUNT})(?P<date>[ \t].*)?)?)?"
)
_RATE = re.compile(r"\d{1,15}\.?\d{0,15}(?=/|$)")  # what follows it counts, for other programs
_FORMAT = re.compile(
    rf"(?P<format>{_COUNT})(?:x(?P<per_frame>{_COUNT}))?(?::(?P<skew>{_COUNT}))?(?:\+(?P<offset>{_COUNT}))?"
)
_GAIN = rf"(-?{_COUNT}(?:\.\d{{0,15}})?(?:e[+-]?\d{{1,3}})?)(?:\((-?{_COUNT})\))?(?:/([\w^?%/-]*))?"
_DETAILS = (  # resolution, zero, initial value, checksum, block size: all may be left out from the end
    rf"(?:[ \t]+{_COUNT}(?:[ \t]+(-?{_COUNT})(?:[ \t]+(-?{_COUNT})"
    rf"(?:[ \t]+(-?{_COUNT})(?:[ \t]+{_COUNT})?)?)?)?)?"
)
_SIGNAL_LINE = re.compile(  # the lines in whose reading no two programs differ
    rf"([-\w]+(?:\.\w*)?)[ \t]+({_COUNT})(?:x({_COUNT}))?(?::({_COUNT}))?(?:\+({_COUNT}))?"
    rf"(?:[ \t]+{_GAIN}{_DETAILS}(?:[ \t]+([^ \t\d-][^\t]*))?)?",
    re.ASCII,
)
_SEGMENTED = re.compile(r"\S*/")
_FOLDERS = re.compile(r"(?:[-\w]+(?:\.[-\w]+)*/)+(?=[-\w])")  # before a name, as PTB-XL+ has them
_DEFAULT_GAIN = 200.0  # of a header that has none, or 0


class Signal(NamedTuple):
    """One signal as its line tells.

    Attributes:
        file: Name of the signal file.
        format: Number of the file format.
        per_frame: Samples per frame.
        skew: Frames by which the signal is late in the file.
        offset: Bytes before the first sample; None where the line does not say.
        gain: Digital units per physical unit.
        baseline: Digital value of physical zero.
        unit: Physical unit.
        initial: Value of the first sample; 0 also where the line does not say.
        checksum: Sum of all samples, modulo 2**16; 0 also where the line does not say.
        name: Description, the lead's name in electrocardiograms.
    """

    file: str
    format: str
    per_frame: int
    skew: int
    offset: int | None
    gain: float
    baseline: int
    unit: str
    initial: int
    checksum: int
    name: str


@dataclass(frozen=True)
class Header:
    """A header of sound form.

    Attributes:
        name: Of the file, `.hea` included.
        n_segments: 0 for an ordinary record.
        rate: Frames per second; None where it is absent or of a form that is left to wfdb.
        n_samples: Frames per signal; 0 where the header does not say.
        lines: Of the signals or segments.
        comments: Without their `#`.
        text: The header in a form that wfdb reads.
        repaired: Whether `text` differs from the file.
    """

    name: str
    n_segments: int
    rate: float | None
    n_samples: int
    lines: list[str]
    comments: list[str]
    text: str
    repaired: bool

    @cached_property
    def signals(self) -> list[Signal] | None:
        """The signals of an ordinary record; None if a line is of a form that is left to wfdb."""
        signals = [_signal(line) for line in self.lines] if not self.n_segments else [None]
        return None if None in signals else signals


def read_header(path: Path) -> Header:
    """Read and check the form of a header.

    The record line of some sources names a file (`E00271.mat`), or has a date that is none, which wfdb does
    not take, nor does it keep the micro sign of a unit: `text` has them set right. Names of files and records
    with folders, which were those of whoever wrote the header, mean what lies beside the header.

    Raises:
        Rejected: it cannot be read, or is no header.
    """
    return parse_header(path.name, _read_text(path, MAX_HEADER_BYTES))


def parse_header(name: str, original: str) -> Header:
    """The header in a text.

    Raises:
        Rejected: it is no header.
    """
    lines = [line.strip() for line in original.splitlines()]
    comments = [line.strip(" \t#") for line in lines if line.startswith("#")]
    lines = [line for line in lines if line and not line.startswith("#")]
    bare = _without_folders(lines) if any("/" in line.partition(" ")[0] for line in lines) else lines
    form = _RECORD_LINE.fullmatch(bare[0]) if bare else None
    if form is None:
        raise Rejected(f"unreadable: {name} is no WFDB header")
    n_lines = int(form["n_segments"] or form["n_signals"])
    if n_lines != len(lines) - 1:
        raise Rejected(f"unreadable: {name} announces {n_lines} lines, has {len(lines) - 1}")
    first = bare[0].replace(form["extension"] or "", "", 1)
    fixed = [first.removesuffix(form["date"] or ""), *bare[1:]]
    if not original.isascii():
        fixed[1:] = [re.sub("[µμ]", "u", line) for line in fixed[1:]]
    return Header(
        name=name,
        n_segments=int(form["n_segments"] or 0),
        rate=_rate(form["rate"]),
        n_samples=int(form["n_samples"] or 0),
        lines=fixed[1:],
        comments=comments,
        text="\n".join(fixed) + "\n",
        repaired=fixed != lines,
    )


def segment_headers(path: str) -> list[str]:
    """Names of the headers of a multi-segment record's segments; none for other records, or no header."""
    try:
        start = _read_text(path, MAX_HEADER_BYTES, 4096)
        lines = (line.strip() for line in start.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        if first and not _SEGMENTED.match(first):
            return []
        header = read_header(Path(path))
    except Rejected:
        return []
    return [f"{line.split()[0]}.hea" for line in header.lines] if header.n_segments else []


def read_segments(path: Path, header: Header) -> list[Header]:
    """The headers of a multi-segment record's segments.

    Raises:
        Rejected: one is absent, elsewhere, in segments itself or shorter than the record says.
    """
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
        segment = read_header(path.with_name(f"{name}.hea"))
        if segment.n_segments:
            raise Rejected("unreadable: a segment is in segments itself")
        if int(length) > _most_frames(path.parent, segment):
            raise Rejected(f"cut short: segment {name} has fewer than {int(length)} samples")
        segments.append(segment)
    if header.n_samples not in (0, total):
        raise Rejected(f"unreadable: segments hold {total} samples, not {header.n_samples}")
    return segments


def _without_folders(lines: list[str]) -> list[str]:
    """The lines with bare names; `name/3`, a record in segments, stays where it has so many."""
    bare = [_FOLDERS.sub("", line, count=1) if _FOLDERS.match(line) else line for line in lines]
    last = lines[0].split()[0].rpartition("/")[2] if lines else ""
    if last.isdigit():
        of_segments = all(len(line.split()) == 2 for line in lines[1:])
        if of_segments or last.lstrip("0") == str(len(lines) - 1):
            bare[0] = lines[0]
    return bare


def check_files(folder: Path, header: Header, absent: frozenset[str] = frozenset()) -> set[str]:
    """Names of an ordinary record's signal files, which are as long and of the shape that the header says.

    Args:
        folder: Where they are.
        header: The header.
        absent: Files that need not be there.

    Raises:
        Rejected: they are not, or lie elsewhere.
    """
    return set(_frames(folder, header, absent))


def with_length(folder: Path, header: Header) -> Header:
    """An ordinary record's header with the number of samples that its files have, where it tells none.

    Files that are not there don't count: `check_files` judges them.

    Raises:
        Rejected: as `check_files`.
    """
    if header.n_samples or header.n_segments:
        return header
    frames = _frames(folder, header, absent_files(folder, header))
    if not frames or not (n := next(iter(frames.values()))):
        return header
    first, _, rest = header.text.partition("\n")
    fields = first.split()
    if len(fields) > 2:  # without a rate, a number would be taken for one
        first = " ".join([*fields[:3], str(n), *fields[4:]])
    return replace(header, n_samples=n, text=f"{first}\n{rest}", repaired=True)


def _frames(folder: Path, header: Header, absent: frozenset[str]) -> dict[str, int]:
    """Frames in each signal file, see `check_files`."""
    first: dict[str, Signal | _Layout] = {}
    per_frame: dict[str, list[int]] = {}
    layouts = [layout for layout in _layouts(header) if layout.file not in absent]
    for layout in layouts:  # a file's format and offset are those of its first signal
        first.setdefault(layout.file, layout)
        per_frame.setdefault(layout.file, []).append(layout.per_frame)
    frames = {}
    for name, layout in first.items():
        path, offset = os.path.join(folder, name), layout.offset or 0
        frames[name] = frames_in_file(path, name, layout.format, offset, per_frame[name], header.n_samples)
    if len(set(frames.values())) > 1:
        told = ", ".join(f"{count} in {name}" for name, count in frames.items())
        raise Rejected(f"unreadable: the signal files differ in length: {told}")
    for layout in layouts:  # the samples that a late signal lacks at its end would be made up
        if layout.skew > frames[layout.file]:
            raise Rejected(f"unreadable: a signal in {layout.file} is late by all its samples")
    return frames


def has_files(header: Header) -> bool:
    """Whether there are signals in files: those of a layout have none."""
    return bool(_layouts(header))


def absent_files(folder: Path, header: Header) -> frozenset[str]:
    """Those of an ordinary record's signal files that are not there, or are links to nothing."""
    names = {layout.file for layout in _layouts(header)}
    return frozenset(name for name in names if not os.path.exists(os.path.join(folder, name)))


def _read_text(path: str | Path, limit: int, count: int = -1) -> str:
    name = printable(os.path.basename(path))
    try:
        size = file_size(path, name)  # not of a pipe, for whose writer we would wait
        if size > limit:
            raise Rejected(f"unreadable: {name} is no WFDB header: it has {size} bytes")
        with open(path, "rb", buffering=0) as file:
            return file.read(count).decode("utf-8", "replace")
    except OSError as error:
        raise Rejected(f"unreadable: {name}: {error.strerror}") from None


class _Layout(NamedTuple):
    """Where a signal lies in its file."""

    file: str
    format: str
    per_frame: int
    skew: int
    offset: int


def _layouts(header: Header) -> list[Signal] | list[_Layout]:
    """Of the signals that have a file; those of a layout header have none."""
    if header.signals is not None:
        return header.signals
    layouts = []
    for line in header.lines:
        name, *rest = line.split(None, 2)[:2]
        if name == "~":
            continue
        if not re.fullmatch(r"[-\w.]+", name) or name in (".", ".."):
            raise Rejected(f"unsafe path: the header names file {name!r}")
        form = _FORMAT.fullmatch(rest[0]) if rest else None
        if form is None:
            raise Rejected(f"unreadable: {header.name} has a signal without a format")
        numbers = (int(form["per_frame"] or 1), int(form["skew"] or 0), int(form["offset"] or 0))
        layouts.append(_Layout(name, form["format"], *numbers))
    return layouts


def _most_frames(folder: Path, header: Header) -> int:
    """Frames that a segment can have: as its header says, else as its smallest file allows."""
    files = {layout.file for layout in _layouts(header)}
    sizes = [header.n_samples or file_size(os.path.join(folder, name), name) for name in files]
    return min(sizes, default=0)


def _rate(text: str | None) -> float | None:
    form = _RATE.match(text or "")
    if form is None:
        return None
    rate = float(form[0])
    whole = float(int(rate))
    return whole if round(rate, 8) == whole else rate


def _signal(line: str) -> Signal | None:
    form = _SIGNAL_LINE.fullmatch(line)
    if form is None:
        return None
    file, number, per_frame, skew, offset, gain, baseline, unit, zero, initial, checksum, name = form.groups()
    gain = float(gain or 0) or _DEFAULT_GAIN
    if not math.isfinite(gain):
        return None
    return Signal(
        file=file,
        format=number,
        per_frame=int(per_frame or 1),
        skew=int(skew or 0),
        offset=None if offset is None else int(offset),
        gain=gain,
        baseline=int(baseline or zero or 0),
        unit=unit or "mV",
        initial=int(initial or 0),
        checksum=int(checksum or 0),
        name=name or "",
    )
