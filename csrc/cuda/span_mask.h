// The span mask kernel as plain functions.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>

namespace ecgfast::cuda {

// What fits in the shared memory of every architecture; ecgfast/ops/span_mask.py knows it too.
constexpr int64_t kMaxSpanTokens = 4096;

// See ecgfast/ops/span_mask.py.
struct SpanMask {
  const int64_t* rng;         // [2]: seed, step
  const int64_t* sample_ids;  // [B]
  const int64_t* lengths;     // [B] or null: all tokens are valid
  int64_t batch;
  int tokens;      // N, at most kMaxSpanTokens
  int64_t length;  // of a span
  double prob;
};

// How many tokens each sample's spans cover, [B].
cudaError_t span_mask_count(const SpanMask& in, int32_t* covered, cudaStream_t stream);

// Masks cut to `masked` tokens: index [B, masked] ascending and mask [B, N].
cudaError_t span_mask(const SpanMask& in, int masked, int32_t* index, bool* mask, cudaStream_t stream);

}  // namespace ecgfast::cuda
