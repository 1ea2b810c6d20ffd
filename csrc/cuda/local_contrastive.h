// The local contrastive kernels as plain functions.
#pragma once
#include "dtype.h"

namespace ecgfast::cuda {

// Inputs of local_contrastive; see ecgfast/ops/local_contrastive.py. All tensors contiguous.
struct LocalContrastive {
  const void* predictions;  // [B, M, D]
  const void* targets;      // [B, M, D]
  const int32_t* codes;     // [B, M, G] or null: targets are compared as vectors
  const void*
      negative_index;  // [B, M, K] or null: negatives are drawn; an index outside 0..M-1 makes the loss NaN
  bool index_is_64;    // int64 indices, else int32
  bool use_all;        // every other token once, whatever negative_index and K say
  const int64_t* rng;  // [2]: seed, step
  const int64_t* sample_ids;  // [B]
  int64_t batch;
  int tokens, width, groups, draws;  // M, D, G, K; width <= 2^24, tokens * draws < 2^31
  float inv_temperature;
  const float* temperature;  // or null: the number above
};

struct LocalContrastiveResult {
  float* loss;       // [B, M]
  bool* correct;     // [B, M]
  float* lse;        // [B, M]: the logsumexp in the loss
  float* inv_norms;  // [2, B, M]: 1 / max(norm, 1e-8) of predictions and targets
};

struct LocalContrastiveSaved {
  const float* grad_loss;  // [B, M]
  const float* lse;
  const float* inv_norms;
};

struct LocalContrastiveGradients {
  void *predictions, *targets;  // [B, M, D]
  float* moments;               // [B, M] or null: of each anchor, cosines times the gradients to them
};

// Both take Dtype::tf32 as well.
cudaError_t local_contrastive(const LocalContrastive& in, Dtype dtype, const LocalContrastiveResult& out,
                              cudaStream_t stream);
cudaError_t local_contrastive_backward(const LocalContrastive& in, Dtype dtype,
                                       const LocalContrastiveSaved& saved,
                                       const LocalContrastiveGradients& out, cudaStream_t stream);

}  // namespace ecgfast::cuda
