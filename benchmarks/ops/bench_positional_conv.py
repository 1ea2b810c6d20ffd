"""`positional_conv` against its other variants."""

from benchmarks.ops.harness import benchmark_of

test_positional_conv = benchmark_of("positional_conv")
