"""Benchmarks of the ops: the official variant, tuned PyTorch ones and ecgfast in one interleaved run."""

from ecgfast.benchmarking.cases import CASES, VARIANTS
from ecgfast.benchmarking.report import markdown
from ecgfast.benchmarking.runner import PAGES, bench, run

__all__ = ["CASES", "PAGES", "VARIANTS", "bench", "markdown", "run"]
