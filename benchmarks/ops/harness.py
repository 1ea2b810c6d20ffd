"""Makes a pytest-benchmark test of a case of ``ecgfast.benchmarking``."""

import os
from collections.abc import Callable

import pytest

from ecgfast.benchmarking import CASES, VARIANTS
from ecgfast.benchmarking.cases import merge_sizes, variants_of
from ecgfast.benchmarking.worker import Subject

# BENCH_QUICK=1: tiny sizes, to see that everything runs.
_QUICK = os.environ.get("BENCH_QUICK") == "1"


def benchmark_of(op: str, **sizes: int) -> Callable[..., None]:
    """A test that times every variant of `op`, for each dtype and pass, at the case's or the given sizes."""

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("dtype", CASES[op].dtypes)
    @pytest.mark.parametrize("pass_", CASES[op].passes)
    def test(benchmark, pass_, dtype, variant):
        found = variants_of(op)
        if variant not in found:
            pytest.skip(f"{op} has no variant {variant}")
        chosen = merge_sizes(op, None if _QUICK else sizes, _QUICK)
        subject = Subject(op, chosen, dtype, pass_ == "forward_backward", "cpu")
        benchmark.group = f"{op} {dtype} {pass_}"
        subject(found[variant])  # compiles, fills caches
        benchmark(subject, found[variant])

    return test
