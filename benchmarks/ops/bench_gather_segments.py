"""`gather_segments` against its other variants."""

from benchmarks.ops.harness import benchmark_of

test_gather_segments = benchmark_of("gather_segments")
