"""`patch_embed` against its other variants."""

from benchmarks.ops.harness import benchmark_of

test_patch_embed = benchmark_of("patch_embed")
