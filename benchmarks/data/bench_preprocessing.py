"""Resampling, filters and medians of 10 s of 12 leads: ours against scipy.

python -m benchmarks.data.bench_preprocessing FOLDER --json out.json --markdown out.md
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal as sp
from scipy.ndimage import median_filter

from benchmarks.data.harness import compare, main, row
from ecgfast.data.signal import filters
from ecgfast.data.signal.resampling import resample

_RATE = 500


def measure(folder: Path, turns: int) -> tuple[list[dict[str, Any]], str]:
    """A row per step."""
    rng = np.random.default_rng(0)
    slow, fast = rng.normal(size=(12, 10 * _RATE)), rng.normal(size=(12, 20 * _RATE))
    band = sp.butter(2, [0.5, 40], "bandpass", fs=_RATE, output="sos")
    notch = sp.tf2sos(*sp.iirnotch(50, filters.NOTCH_QUALITY, fs=_RATE))

    def medians() -> np.ndarray:
        short = median_filter(slow, (1, round(0.2 * _RATE) | 1), mode="nearest")
        return slow - median_filter(short, (1, round(0.6 * _RATE) | 1), mode="nearest")

    steps = {
        "resample 12 x 10,000, 1000 to 500 Hz": (
            lambda: sp.resample_poly(fast, 1, 2, axis=1, padtype="line"),
            lambda: resample(fast, 1000, 500),
        ),
        "band-pass 12 x 5,000, second order, both ways": (
            lambda: sp.sosfiltfilt(band, slow),
            lambda: filters.bandpass(slow, _RATE, 0.5, 40, 2),
        ),
        "notch 12 x 5,000, both ways": (
            lambda: sp.sosfiltfilt(notch, slow),
            lambda: filters.notch(slow, _RATE, 50),
        ),
        "baseline by two medians, 12 x 5,000": (medians, lambda: filters.remove_baseline(slow, _RATE)),
    }
    rows = []
    for what, (official, own) in steps.items():
        times = compare({"official": official, "ecgfast": own}, turns, calls=5)
        rows.append(row(what, times, "official", "ecgfast"))
    about = (
        "Median time per call on one core, float64, 5 calls of each variant in turn; official: "
        "`resample_poly`, `sosfiltfilt`, `median_filter` of scipy."
    )
    return rows, about


if __name__ == "__main__":
    main("Preprocessing", measure)
