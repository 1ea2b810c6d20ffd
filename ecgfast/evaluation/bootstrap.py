"""Confidence intervals by drawing the test set again (Efron and Tibshirani 1993, chapter 13: percentiles).

Recordings of a patient are no independent observations, so patients are what is drawn: all recordings of one
come with it, as often as it is drawn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecgfast.errors import EcgfastError
from ecgfast.evaluation._inputs import check_groups

_BLOCK = 2**18  # counts held at a time: they and what is made of them stay in the cache


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    The draws depend on the seed and on who the patients are, and on nothing else: two models that are
    evaluated on the same recordings meet the same draws.

    Attributes:
        draws: Number of draws; 0: no intervals.
        seed: Of the draws.
        confidence: Share of draws between an interval's ends.
        by: "patient" or "record": what is drawn with replacement.
    """

    draws: int = 1000
    seed: int = 0
    confidence: float = 0.95
    by: str = "patient"

    def __post_init__(self) -> None:
        if type(self.draws) is not int or self.draws < 0:
            raise EcgfastError(f"draws: must be a whole number, 0 or more, got {self.draws!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise EcgfastError(f"seed: must be a whole number, 0 or more, got {self.seed!r}")
        if not 0 < self.confidence < 1:
            raise EcgfastError(f"confidence: must be between 0 and 1, got {self.confidence!r}")
        if self.by not in ("patient", "record"):
            raise EcgfastError(f"by: must be 'patient' or 'record', got {self.by!r}")

    def counts(self, n: int, patients: Any = None) -> Iterator[np.ndarray]:
        """How often each of n records comes in each draw.

        Args:
            n: Records.
            patients: Whole numbers or texts [n], the same for all records of a patient. Needed by "patient".

        Yields:
            int64 [draws in this block, n], `draws` rows over all blocks.

        Raises:
            EcgfastError: patients are wanted and not given, or of another length.
        """
        units = np.arange(n)
        if self.by == "patient":
            if patients is None:
                raise EcgfastError("patients: must be given for intervals by patient, or draw by='record'")
            units = check_groups("patients", patients, n)
        n_units = int(units.max()) + 1
        rng = np.random.default_rng(self.seed)
        block = max(1, _BLOCK // n)
        for first in range(0, self.draws, block):
            rows = min(block, self.draws - first)
            drawn = rng.integers(0, n_units, (rows, n_units)) + n_units * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * n_units).reshape(rows, n_units)
            yield times[:, units]

    def estimate(self, value: float, drawn: np.ndarray) -> "Estimate":
        """A value with its interval.

        Args:
            value: Of all records.
            drawn: Of the draws, NaN where the draw has none.
        """
        there = drawn[np.isfinite(drawn)]
        if not there.size:
            return Estimate(float(value), None, None, 0)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(there, [tail, 1 - tail])
        return Estimate(float(value), float(low), float(high), int(there.size))


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval.

    Attributes:
        value: Of the records themselves.
        low: The interval's lower end, None without draws.
        high: Its upper end, likewise.
        draws: Draws that it is of: those in which the value is defined.
    """

    value: float
    low: float | None = None
    high: float | None = None
    draws: int = 0

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.low is None else f" ({self.low:.3f} to {self.high:.3f})")


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is no NaN; NaN where nothing is."""
    there = np.isfinite(values)
    number = there.sum(axis=-1)
    total = np.where(there, values, 0.0).sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
