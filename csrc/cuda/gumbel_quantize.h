// The Gumbel quantisation kernels as plain functions.
#pragma once
#include "dtype.h"

namespace ecgfast::cuda {

// What a block's sums of probabilities in shared memory allow; V is also a multiple of 4, so that a Philox
// block's four draws are of one row and group. ecgfast/ops/gumbel_quantize.py knows both.
constexpr int64_t kMaxGumbelEntries = 8192;

// Inputs of gumbel_quantize with a hard choice; see ecgfast/ops/gumbel_quantize.py. All tensors contiguous;
// logits, noise and the gradients of logits and mean_probs at multiples of 16 bytes.
struct GumbelQuantize {
  const void* logits;    // [R, G*V]
  const void* codebook;  // [G, V, W]
  const float* temperature;
  const float* noise;              // [R, G*V] or null
  const int64_t* rng;              // [2]: seed, step, or null: no noise unless given
  const int64_t* sample_ids;       // [R / rows_per_sample] or null: all rows are of sample 0
  uint32_t rows, rows_per_sample;  // below 2^31; rows_per_sample is positive
  int groups, entries, width;      // G, V <= kMaxGumbelEntries, W
  Dtype logits_type;
};

struct GumbelResult {
  void* quantized;    // [R, G*W], of the codebook's type
  int32_t* codes;     // [R, G]
  float* mean_probs;  // [G, V]
  float* partial;     // workspace of gumbel_partial_size() floats
};

struct GumbelGradients {
  const void* grad_quantized;    // [R, G*W], of the codebook's type, or null
  const float* grad_mean_probs;  // [G, V] or null
  const int32_t* codes;          // [R, G]
  void* grad_logits;             // [R, G*V]
  void* grad_codebook;           // [G, V, W]
};

// At most 1024 * G * V.
int64_t gumbel_partial_size(const GumbelQuantize& in);

cudaError_t gumbel_quantize(const GumbelQuantize& in, int codebook_bytes, const GumbelResult& out,
                            cudaStream_t stream);  // codebook_bytes: of one element
// `codebook_type` may be Dtype::tf32.
cudaError_t gumbel_quantize_backward(const GumbelQuantize& in, Dtype codebook_type,
                                     const GumbelGradients& gradients, cudaStream_t stream);

}  // namespace ecgfast::cuda
