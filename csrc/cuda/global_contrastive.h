// The global contrastive kernels as plain functions.
#pragma once
#include "dtype.h"

namespace ecgfast::cuda {

// Inputs of global_contrastive; see ecgfast/ops/global_contrastive.py. Side 0 is a, side 1 is b. Contiguous.
struct GlobalContrastive {
  const void* x[2];         // [N, D], [N', D]
  const int64_t* group[2];  // [N], [N']
  int64_t rows[2];          // N, N', each below 2^31
  int width;                // D <= 2^24
  float inv_temperature;
  const float* temperature;  // or null: the number above. With it the sums always keep maxima.
};

// What the forward pass saves: 1 / max(norm, 1e-8) of the rows of a, then of b; for each of them how many
// positives the other side has; the number of pairs of both sides, at least 2; a power of two that keeps the
// gradients of the similarities within float16.
constexpr int64_t global_saved_size(int64_t rows) { return 2 * rows + 2; }

struct GlobalResult {
  float* loss;
  float* lse[2];  // [N], [N']
  float* saved;   // [global_saved_size(N + N')]
};

struct GlobalGradients {
  void* x[2];       // [N, D], [N', D]
  double* moments;  // [1], where there is a temperature tensor: cosines times the gradients to them
};

struct GlobalSaved {
  const float* grad_loss;
  const float* lse[2];
  const float* saved;
};

// How the work is cut. Results differ between plans in rounding only.
struct GlobalPlan {
  bool large_similarities, large_products;  // tiles; float32 in full precision has one size
  int regions[2];                           // forward: of tiles of rows and of columns, a block each
  int64_t block[2];  // backward: rows of a and of b whose gradients of similarities are held at a time
};

// These functions take Dtype::tf32 as well.
GlobalPlan plan_global_contrastive(const GlobalContrastive& in, Dtype dtype);

// Bytes of device memory that the passes need beside inputs and results: forward, 0.5 KiB per row of either
// side at most, and a copy of rows that are not at multiples of 16 bytes; backward, see BackwardWorkspace.
int64_t global_contrastive_workspace(const GlobalContrastive& in, Dtype dtype, const GlobalPlan& plan);
int64_t global_contrastive_backward_workspace(const GlobalContrastive& in, Dtype dtype,
                                              const GlobalPlan& plan, bool detach_norm);

cudaError_t global_contrastive(const GlobalContrastive& in, Dtype dtype, const GlobalPlan& plan,
                               const GlobalResult& out, void* workspace, cudaStream_t stream);
cudaError_t global_contrastive_backward(const GlobalContrastive& in, Dtype dtype, const GlobalPlan& plan,
                                        const GlobalSaved& saved, bool detach_norm,
                                        const GlobalGradients& out, void* workspace, cudaStream_t stream);

}  // namespace ecgfast::cuda
