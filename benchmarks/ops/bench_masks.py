"""`lead_mask` and `span_mask` against its other forms."""

from benchmarks.ops.harness import benchmark_of

test_masks = benchmark_of("masks")
