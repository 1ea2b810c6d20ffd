"""Benchmarks of the ops: the official form, tuned PyTorch and ecgfast in one interleaved run.

The other forms live in the repository's ``benchmarks/baselines``; an installed wheel measures ecgfast alone.
"""

from ecgfast.benchmarking.cases import CASES
from ecgfast.benchmarking.report import markdown
from ecgfast.benchmarking.runner import PAGES, VARIANTS, bench, run

__all__ = ["CASES", "PAGES", "VARIANTS", "bench", "markdown", "run"]
