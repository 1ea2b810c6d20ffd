"""`patch_embed` against its other variants, also by the number of leads that a segment keeps."""

from benchmarks.ops.harness import benchmark_of

test_patch_embed = benchmark_of("patch_embed")

# Kept of 12 leads, each segment others, and the only leads that there are.
test_patch_embed_12_of_12_leads = benchmark_of("patch_embed", K=12)
test_patch_embed_3_of_12_leads = benchmark_of("patch_embed", K=3)
test_patch_embed_2_of_12_leads = benchmark_of("patch_embed", K=2)
test_patch_embed_1_of_12_leads = benchmark_of("patch_embed", K=1)
test_patch_embed_6_leads = benchmark_of("patch_embed", L=6)
test_patch_embed_3_leads = benchmark_of("patch_embed", L=3)
test_patch_embed_2_leads = benchmark_of("patch_embed", L=2)
test_patch_embed_1_lead = benchmark_of("patch_embed", L=1)
