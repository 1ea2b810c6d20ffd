"""`global_contrastive` against its other variants, in its three forms."""

from benchmarks.ops.harness import benchmark_of

test_global_contrastive = benchmark_of("global_contrastive")
test_nt_xent = benchmark_of("nt_xent")
test_lead_pairs = benchmark_of("lead_pairs")
