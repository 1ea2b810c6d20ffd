"""Decoding the signal files of WFDB records in Numba: all formats of fixed width.

The numbers are those of `wfdb.rdrecord`, bit for bit. What is rare (FLAC, several samples per frame,
segments, an unknown length) is left to wfdb.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from ecgfast.data.signal.preprocess import Rejected
from ecgfast.data.wfdb.files import signal_bytes
from ecgfast.data.wfdb.header import Header, Signal

BITS = {
    **dict.fromkeys(("16", "61", "160", "516"), 16),
    **dict.fromkeys(("80", "508"), 8),
    **dict.fromkeys(("310", "311"), 10),
    **dict.fromkeys(("24", "524"), 24),
    "212": 12,
    "32": 32,
}
"""Width of a sample, by the number of the format; format 8, of differences, has none."""

_FORMATS = {"8", "16", "24", "32", "61", "80", "160", "212", "310", "311"}
_INVALID = -(2**15)  # stands for an invalid sample in memory
_NEVER = 2**40  # no sample: format 8 has no value for invalid ones
_FRAMES = 1024  # decoded at a time for one signal after the other: they stay in the cache


class _File(NamedTuple):
    name: str
    format: str
    offset: int
    members: list[int]  # its signals' numbers, in the order of their samples


def can_decode(header: Header) -> bool:
    """Whether `read_signals` takes the record."""
    signals = header.signals
    if not signals or not header.n_samples or header.rate is None:
        return False
    first: dict[str, Signal] = {}
    for signal in signals:
        head = first.setdefault(signal.file, signal)
        if (
            signal.format not in _FORMATS
            or signal.format != head.format
            or signal.per_frame != 1
            or signal.offset not in (None, head.offset)
            or abs(signal.initial) >= 2**31
        ):
            return False
    return True


def read_signals(
    folder: Path,
    header: Header,
    channels: list[int],
    factors: list[float] | None = None,
    check: bool = False,
) -> np.ndarray:
    """Signals in physical units.

    Args:
        folder: Where the signal files are; `check_files` has passed.
        header: One that `can_decode` takes.
        channels: Numbers of the signals wanted, in the order wanted.
        factors: By which each signal is multiplied after the conversion to its unit.
        check: Compare initial values and checksums with those that the header tells.

    Returns:
        float64 [len(channels), n_samples]; NaN where a sample is invalid or a late signal has none.

    Raises:
        Rejected: a file cannot be read, or has other samples than the header tells.
    """
    out = np.empty((len(channels), header.n_samples))
    factors = factors or [1.0] * len(channels)
    for file in _files(header.signals):
        places = [(row, file.members.index(c)) for row, c in enumerate(channels) if c in file.members]
        if not places:
            continue
        samples = samples_of(folder, header, file)
        signals = [header.signals[channels[row]] for row, _ in places]
        scales = [scale_of(s, factors[row]) for s, (row, _) in zip(signals, places, strict=True)]
        invalid = invalid_sample(file.format)
        if check:
            for signal, (_, column) in zip(signals, places, strict=True):
                if not signal.skew:  # what was summed of a late signal isn't known
                    initial = 0 if file.format == "8" else signal.initial  # of differences: where they begin
                    own = samples[column :: len(file.members)]
                    check_samples(own, signal.name or file.name, initial, signal.checksum, invalid)
        _scale(samples, len(file.members), np.array(places), np.array(scales), invalid, out)
        for signal, (row, _) in zip(signals, places, strict=True):
            if signal.skew:
                out[row, : -signal.skew] = out[row, signal.skew :].copy()
                out[row, -signal.skew :] = np.nan
    return out


def invalid_sample(form: str) -> int:
    """The sample that stands for an invalid one in a format; none that it has where it has none for that."""
    return -(2 ** (BITS[form] - 1)) if form in BITS else _NEVER


def check_samples(samples: np.ndarray, name: str, initial: int, checksum: int, invalid: int) -> None:
    """Compare a signal with what its header tells of it.

    Args:
        samples: Whole numbers [n].
        name: Of the signal, for people.
        initial: First sample, unless it is invalid; 0 where not told.
        checksum: Sum of all samples, modulo 2**16; 0 where not told.
        invalid: The value of samples that are invalid.

    Raises:
        Rejected: they differ.
    """
    first = int(samples[0]) if len(samples) else 0
    if initial not in (0, first) and first != invalid:
        raise Rejected(f"unreadable: {name} begins with {first}, its header says {initial}")
    if checksum == 0:
        return
    total = int(samples.sum(dtype=np.int64))
    replaced = np.count_nonzero(samples == invalid) * (_INVALID - invalid)  # as the WFDB library sums them
    if (total - checksum) % 2**16 and (total + replaced - checksum) % 2**16:
        shown = total % 2**16 if checksum >= 2**15 else (total + 2**15) % 2**16 - 2**15  # writers do either
        raise Rejected(f"unreadable: {name} has the checksum {shown}, its header says {checksum}")


def scale_of(signal: Signal, factor: float) -> tuple[float, float, float]:
    """What a sample is reduced by, divided by and multiplied with to be in the unit times `factor`.

    Where the gain divides the factor, their quotient is exact, and nothing is left to divide by.
    """
    quotient = factor / signal.gain
    if factor % signal.gain == 0 and math.isfinite(quotient):
        return signal.baseline, 1.0, quotient
    return signal.baseline, signal.gain, factor


def only_file(header: Header, channels: list[int]) -> _File | None:
    """The file that all these signals are in, none of them late; None if there is no such file."""
    files = [file for file in _files(header.signals) if not set(channels).isdisjoint(file.members)]
    late = any(header.signals[i].skew for i in channels)
    return files[0] if len(files) == 1 and not late else None


def _files(signals: list[Signal]) -> list[_File]:
    files: dict[str, _File] = {}
    for number, signal in enumerate(signals):
        file = _File(signal.file, signal.format, signal.offset or 0, [])
        files.setdefault(signal.file, file).members.append(number)
    return list(files.values())


def samples_of(folder: Path, header: Header, file: _File) -> np.ndarray:
    """The samples of a file, int16 or int32, the signals of a frame side by side."""
    n = header.n_samples * len(file.members)
    size = signal_bytes(file.format, n)
    try:
        raw = np.fromfile(os.path.join(folder, file.name), np.uint8, size, offset=file.offset)
    except OSError as error:
        raise Rejected(f"unreadable: {file.name}: {error.strerror}") from None
    if len(raw) < size:
        raise Rejected(f"cut short: {file.name} has lost bytes while it was read")
    match file.format:
        case "16":
            return raw.view("<i2").astype(np.int16, copy=False)
        case "61":
            return raw.view(">i2").astype(np.int16)
        case "160":
            return (raw.view("<u2") ^ 0x8000).view(np.int16)
        case "80":
            return raw.astype(np.int16) - 128
        case "32":
            return raw.view("<i4").astype(np.int32, copy=False)
        case "8":
            initial = [header.signals[i].initial for i in file.members]
            return _summed(raw.view(np.int8), np.array(initial, dtype=np.int32))
        case "24":
            return _unpack_24(raw, n)
        case "212":
            return _unpack_212(raw, n)
        case "310":
            return _unpack_310(raw, n)
    return _unpack_311(raw, n)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scale(
    samples: np.ndarray,
    per_frame: int,
    places: np.ndarray,
    scales: np.ndarray,
    invalid: int,
    out: np.ndarray,
) -> None:
    """The samples at place `column` of every frame into a row, for all (row, column) of `places`."""
    n = out.shape[1]
    gathered = np.empty(_FRAMES, dtype=samples.dtype)  # side by side: eight divisions at once
    for start in range(0, n, _FRAMES):
        for p in range(len(places)):
            row, column = places[p]
            baseline, divisor, factor = scales[p]
            signal = out[row, start : start + _FRAMES]
            for t in range(len(signal)):
                gathered[t] = samples[(start + t) * per_frame + column]
            for t in range(len(signal)):
                sample = gathered[t]
                signal[t] = np.nan if sample == invalid else (sample - baseline) / divisor * factor


@numba.njit(nogil=True, cache=True)
def _summed(differences: np.ndarray, initial: np.ndarray) -> np.ndarray:
    out = np.empty(len(differences), dtype=np.int32)
    for channel in range(len(initial)):
        last = initial[channel]
        for i in range(channel, len(differences), len(initial)):
            last = np.int32(last + differences[i])
            out[i] = last
    return out


@numba.njit(nogil=True, cache=True)
def _unpack_24(raw: np.ndarray, n: int) -> np.ndarray:
    out = np.empty(n, dtype=np.int32)
    for i in range(n):
        bits = np.int32(raw[3 * i]) | np.int32(raw[3 * i + 1]) << 8 | np.int32(raw[3 * i + 2]) << 16
        out[i] = (bits ^ 0x800000) - 0x800000
    return out


@numba.njit(nogil=True, cache=True)
def _unpack_212(raw: np.ndarray, n: int) -> np.ndarray:
    """Two samples in three bytes: the second byte has the high halves of both."""
    out = np.empty(n, dtype=np.int16)
    for i in range(n // 2):
        low, middle, high = np.int32(raw[3 * i]), np.int32(raw[3 * i + 1]), np.int32(raw[3 * i + 2])
        out[2 * i] = ((low | (middle & 0x0F) << 8) ^ 0x800) - 0x800
        out[2 * i + 1] = ((high | (middle & 0xF0) << 4) ^ 0x800) - 0x800
    if n % 2:
        bits = np.int32(raw[-2]) | (np.int32(raw[-1]) & 0x0F) << 8
        out[n - 1] = (bits ^ 0x800) - 0x800
    return out


@numba.njit(nogil=True, cache=True)
def _unpack_310(raw: np.ndarray, n: int) -> np.ndarray:
    """Three samples in two 16-bit words: two above their lowest bits, the third in five bits of each."""
    out = np.empty(n, dtype=np.int16)
    for i in range(n):
        at = i // 3 * 4 + (i % 3 == 1) * 2
        word = np.int32(raw[at]) | np.int32(raw[at + 1]) << 8
        bits = word >> 1 & 0x3FF
        if i % 3 == 2:
            bits = word >> 11 | np.int32(raw[at + 3]) >> 3 << 5
        out[i] = (bits ^ 0x200) - 0x200
    return out


@numba.njit(nogil=True, cache=True)
def _unpack_311(raw: np.ndarray, n: int) -> np.ndarray:
    """Three samples side by side in 32 bits."""
    out = np.empty(n, dtype=np.int16)
    for i in range(n):
        at = i // 3 * 4 + i % 3
        bits = (np.int32(raw[at]) | np.int32(raw[at + 1]) << 8) >> 2 * (i % 3) & 0x3FF
        out[i] = (bits ^ 0x200) - 0x200
    return out
