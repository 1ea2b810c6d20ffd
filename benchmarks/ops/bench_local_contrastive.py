"""`local_contrastive` against its other variants."""

from benchmarks.ops.harness import benchmark_of

test_local_contrastive = benchmark_of("local_contrastive")
test_local_contrastive_b16 = benchmark_of("local_contrastive", B=16)
