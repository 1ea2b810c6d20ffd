"""Whether a signal file of a WFDB record is what the header says, before its samples are read.

A file of another length or shape would be read as something that nobody recorded.
"""

import os
import stat
import struct

from ecgfast.data.signal.preprocess import Rejected
from ecgfast.errors import printable

FLAC = frozenset({"508", "516", "524"})
"""Formats of compressed files, which count their samples themselves."""

_MOST_COMPRESSED = 1e-4  # bytes per sample: no FLAC file holds more samples than this allows
_FLAC_START = struct.Struct(">4s4x10xQ16x")  # STREAMINFO: the rate, channels, bits and samples are in 8 bytes
_MATRIX = {30: "16", 1030: "61", 50: "80", 1050: "80", 20: "32"}
"""Format of the samples, by a MATLAB 4 file's type."""

_MATRIX_BYTES = 20  # of the matrix's description, before its name


def signal_bytes(form: str, n: int) -> int:
    """Bytes that n samples take in a file format, by its number; the least where that varies."""
    match form:
        case "8" | "80":
            return n
        case "16" | "61" | "160":
            return 2 * n
        case "24":
            return 3 * n
        case "32":
            return 4 * n
        case "212":
            return -(-3 * n // 2)
        case "310":
            return n // 3 * 4 + n % 3 * 2
        case "311":
            return n // 3 * 4 + (0, 2, 3)[n % 3]
    return int(n * _MOST_COMPRESSED)


def most_bytes(form: str, n: int) -> int:
    """Most bytes that writers make of n samples: whole groups where samples share bytes, an even number."""
    least = signal_bytes(form, n)
    match form:
        case "212":
            least = -(-n // 2) * 3
        case "310" | "311":
            least = -(-n // 3) * 4
    return least + least % 2


def frames_in_file(path: str, name: str, form: str, offset: int, per_frame: list[int], n: int) -> int:
    """Frames of a file that agrees with what the header tells of it.

    Args:
        path: Of the file.
        name: Its name, for people.
        form: Number of its format.
        offset: Bytes before its first sample.
        per_frame: Samples per frame of each of its signals.
        n: Frames that the header tells of; 0 where it doesn't.

    Returns:
        `n`, or how many there are where the header doesn't tell.

    Raises:
        Rejected: it can't be read, is longer or shorter, or is a matrix or a FLAC file of another shape.
    """
    size = file_size(path, name)
    if form in FLAC:
        if size < (needed := offset + signal_bytes(form, n * sum(per_frame))):
            raise Rejected(f"cut short: {name} has {size} of {needed} bytes or more")
        return _compressed_frames(path, name, form, offset, per_frame, n)
    samples = sum(per_frame)
    if name[-4:].casefold() == ".mat":
        n = _matrix_columns(path, name, form, offset, per_frame, n, size)
    if n == 0 and form in _SAMPLES:
        n = _SAMPLES[form](max(0, size - offset)) // max(1, samples)
    needed = offset + signal_bytes(form, n * samples)
    if size < needed:
        raise Rejected(f"cut short: {name} has {size} of {needed} bytes")
    if form in _SAMPLES and size > offset + most_bytes(form, n * samples):
        of = f"{n} samples of {len(per_frame)} signals"
        raise Rejected(f"unreadable: {name} is too long: {size} bytes, its header tells of {needed} ({of})")
    return n


def file_size(path: str | os.PathLike[str], name: str) -> int:
    """Bytes of a regular file: others may be endless, or wait for a writer.

    Raises:
        Rejected: it is no such file, or is not there.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise Rejected(f"unreadable: {printable(name)}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise Rejected(f"unreadable: {printable(name)} is no file")
    return status.st_size


_SAMPLES = {  # in so many bytes
    **dict.fromkeys(("8", "80"), lambda size: size),
    **dict.fromkeys(("16", "61", "160"), lambda size: size // 2),
    "24": lambda size: size // 3,
    "32": lambda size: size // 4,
    "212": lambda size: size * 2 // 3,
    "310": lambda size: size // 4 * 3 + size % 4 // 2,
    "311": lambda size: size // 4 * 3 + (0, 0, 1, 2)[size % 4],
}


def _matrix_columns(
    path: str, name: str, form: str, offset: int, per_frame: list[int], n: int, size: int
) -> int:
    """Samples per signal of a MATLAB file, which has a row for each signal."""
    start = _start(path, name, 128)
    if start.startswith((b"MATLAB", b"\x89HDF")):
        raise Rejected(f"unreadable: {name} is a MATLAB file of version 5 or later, want version 4")
    for order in "<>":
        if len(start) < _MATRIX_BYTES:
            break
        kind, rows, columns, imaginary, length = struct.unpack(f"{order}5i", start[:_MATRIX_BYTES])
        if kind not in _MATRIX or (kind >= 1000) != (order == ">") or min(rows, columns, length) < 0:
            continue
        data = _MATRIX_BYTES + length
        if offset == 0 and size != data + signal_bytes(_MATRIX[kind], rows * columns):
            continue  # samples that happen to look like it
        if form != _MATRIX[kind] or imaginary:
            raise Rejected(f"unreadable: {name} holds a matrix of type {kind}, its header says format {form}")
        if rows != sum(per_frame) or columns != (n or columns):
            told = f"{len(per_frame)} signals of {n or 'any number of'} samples"
            if sum(per_frame) != len(per_frame):
                told += f", {sum(per_frame)} in a frame"
            raise Rejected(
                f"unreadable: {name} has {rows} rows of {columns} samples, its header tells of {told}"
            )
        if offset != data:
            raise Rejected(f"unreadable: in {name} samples begin at byte {data}, its header says {offset}")
        return columns
    if offset:
        raise Rejected(f"unreadable: {name} is no MATLAB 4 file of samples")
    return n


def _compressed_frames(path: str, name: str, form: str, offset: int, per_frame: list[int], n: int) -> int:
    """Frames of a FLAC file, in which all signals have as many samples."""
    start = _start(path, name, offset + _FLAC_START.size)[offset:]
    if len(start) < _FLAC_START.size or not start.startswith(b"fLaC"):
        raise Rejected(f"unreadable: {name} is no FLAC file, its header says format {form}")
    _, told = _FLAC_START.unpack(start)
    channels, samples = (told >> 41 & 7) + 1, told & 2**36 - 1
    if channels != len(per_frame):
        raise Rejected(
            f"unreadable: {name} has {channels} channels, its header tells of {len(per_frame)} signals"
        )
    wanted = n * per_frame[0] or samples
    if 0 < samples < wanted:  # 0: it doesn't know
        raise Rejected(f"cut short: {name} has {samples} of {wanted} samples a channel")
    if samples > wanted:
        raise Rejected(f"unreadable: {name} is too long: {samples} samples a channel, want {wanted}")
    return n or samples // max(1, per_frame[0])


def _start(path: str, name: str, count: int) -> bytes:
    """First bytes of what is a regular file."""
    if count > 2**20:
        raise Rejected(f"unreadable: samples in {name} begin at byte {count}")
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(count)
    except OSError as error:
        raise Rejected(f"unreadable: {name}: {error.strerror}") from None
