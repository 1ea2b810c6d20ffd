"""`global_contrastive` against its other variants."""

from benchmarks.ops.harness import benchmark_of

test_global_contrastive = benchmark_of("global_contrastive")
