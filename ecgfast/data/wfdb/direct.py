"""From the samples of a WFDB record straight to the block of a store, one lead after the other.

What `signals` and `signal.preprocess` do by way of floating-point arrays of all leads, with the same numbers,
for the records that most sources have: one file, samples of 16 bits or less, nothing to fill, filter or
reject. A lead stays in the cache over all steps.
"""

import itertools
from pathlib import Path

import numba
import numpy as np

from ecgfast.data.signal.cleaning import cut_off_lead, derive_limb_leads, shortest_runs
from ecgfast.data.signal.preprocess import (
    MAX_MICROVOLTS,
    MAX_RATE,
    MIN_RATE,
    MIN_SECONDS,
    Preprocessing,
    round_rows,
)
from ecgfast.data.signal.resampling import phases, rational_factor, resample_rows, resampled_length
from ecgfast.data.wfdb import signals as wfdb_signals
from ecgfast.data.wfdb.header import Header
from ecgfast.leads import N_LEADS
from ecgfast.units import SAMPLE_RATE

_WIDEST = 16  # bits of a sample; sums of differences have more
_FRAMES = 1024  # taken apart at a time: they stay in the cache over all leads


def direct_block(
    folder: Path, header: Header, channels: dict[int, int], factors: list[float], preprocessing: Preprocessing
) -> tuple[np.ndarray, list[int]] | None:
    """What `standard_block` makes of the record; None if it is not one of those described above.

    Args:
        folder: Where the signal file is; `check_files` has passed.
        header: One that `signals.can_decode` takes.
        channels: Index of a standard lead -> number of its signal.
        factors: Microvolts in the unit of each of these signals.
        preprocessing: Filters and repairs.

    Raises:
        Rejected: the file cannot be read.
    """
    rate, n = header.rate, header.n_samples
    if preprocessing.filters_anything or not MIN_RATE <= rate <= MAX_RATE or n < MIN_SECONDS * rate:
        return None
    up, down = rational_factor(rate, SAMPLE_RATE)
    length = resampled_length(n, up, down)
    file = wfdb_signals.only_file(header, list(channels.values()))
    if file is None or length < MIN_SECONDS * SAMPLE_RATE:
        return None
    if wfdb_signals.BITS.get(file.format, _WIDEST + 1) > _WIDEST:
        return None
    samples = wfdb_signals.samples_of(folder, header, file)
    signals = [header.signals[i] for i in channels.values()]
    scales = [wfdb_signals.scale_of(s, factor) for s, factor in zip(signals, factors, strict=True)]
    columns = [file.members.index(i) for i in channels.values()]
    block = np.zeros((N_LEADS, length), dtype=np.int16)
    varies = np.zeros(len(columns), dtype=bool)
    sound = _fill_block(
        samples.reshape(n, len(file.members)),
        np.array(columns),
        np.array(scales),
        2 ** (wfdb_signals.BITS[file.format] - 1),
        shortest_runs(rate),
        np.array([(s.initial, s.checksum) for s in signals]),
        (up, down),
        phases(up, down),
        np.array(list(channels)),
        block,
        varies,
    )
    present = sorted(itertools.compress(channels, varies))
    if not sound or not present:
        return None
    return derive_limb_leads(block, present) if preprocessing.derive_leads else (block, present)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fill_block(
    samples: np.ndarray,
    columns: np.ndarray,
    scales: np.ndarray,
    end: int,
    runs: tuple[float, float],
    told: np.ndarray,
    factor: tuple[int, int],
    low_pass: tuple[np.ndarray, int],
    indices: np.ndarray,
    block: np.ndarray,
    varies: np.ndarray,
) -> bool:
    """Fill the rows `indices` of the block; False if there is anything against a lead."""
    leads = _apart(samples, columns)
    microvolts = np.empty((1, len(samples)))
    resampled = np.empty((1, block.shape[1]))
    greatest = np.zeros(1)
    for r in range(len(leads)):
        lead = leads[r]
        lowest, highest, total = _lowest_and_highest(lead)
        if lowest == -end:  # stands for an invalid sample
            return False
        initial, checksum = told[r]
        if (initial != 0 and initial != lead[0]) or (checksum != 0 and (checksum - total) % 2**16 != 0):
            return False
        if cut_off_lead(lead, (lowest, highest), runs, 1.5 - end, end - 1.5)[1]:
            return False
        baseline, divisor, unit = scales[r]
        row = indices[r : r + 1]
        if factor[0] == factor[1] and divisor == 1 and unit == np.rint(unit):  # whole microvolts
            peak = max(abs(lowest - baseline), abs(highest - baseline)) * abs(unit)
            if not peak < MAX_MICROVOLTS:
                return False
            varies[r] = lowest < highest
            if varies[r]:
                _scale_whole(lead, np.int32(baseline), np.int32(unit), block[row[0]])
            continue
        _scale(lead, baseline, divisor, unit, microvolts[0])
        if factor[0] == factor[1]:
            round_rows(microvolts, row, block, varies[r : r + 1], greatest)
        else:
            resample_rows(microvolts, factor, low_pass, resampled)
            round_rows(resampled, row, block, varies[r : r + 1], greatest)
        if greatest[0] != 0:  # too great, or not a number
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _apart(samples: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The leads in these columns of frames, each in a row."""
    leads = np.empty((len(columns), len(samples)), samples.dtype)
    for start in range(0, len(samples), _FRAMES):
        frames = samples[start : start + _FRAMES]
        for r in range(len(columns)):
            lead, column = leads[r, start : start + _FRAMES], columns[r]
            for t in range(len(frames)):
                lead[t] = frames[t, column]
    return leads


@numba.njit(nogil=True, cache=True)
def _lowest_and_highest(lead: np.ndarray) -> tuple[int, int, int]:
    """The extremes, and the sum of all samples modulo 2**16."""
    lowest = highest = lead[0]
    total = np.int16(0)
    for i in range(len(lead)):
        sample = lead[i]
        lowest, highest = np.int16(min(lowest, sample)), np.int16(max(highest, sample))  # 32 at once
        total = np.int16(total + sample)
    return lowest, highest, total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scale(lead: np.ndarray, baseline: float, divisor: float, unit: float, out: np.ndarray) -> None:
    if divisor == 1:
        for i in range(len(lead)):
            out[i] = (lead[i] - baseline) * unit
    else:
        for i in range(len(lead)):
            out[i] = (lead[i] - baseline) / divisor * unit


@numba.njit(nogil=True, cache=True)
def _scale_whole(lead: np.ndarray, baseline: np.int32, unit: np.int32, out: np.ndarray) -> None:
    for i in range(len(lead)):
        out[i] = np.int16((np.int32(lead[i]) - baseline) * unit)
