"""`gumbel_quantize` against its other variants."""

from benchmarks.ops.harness import benchmark_of

test_gumbel_quantize = benchmark_of("gumbel_quantize")
