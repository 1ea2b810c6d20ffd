"""`lead_mask` and `span_mask`, alone and one after the other, against their other variants."""

from benchmarks.ops.harness import benchmark_of

test_lead_mask = benchmark_of("lead_mask")
test_span_mask = benchmark_of("span_mask")
test_masks = benchmark_of("masks")
