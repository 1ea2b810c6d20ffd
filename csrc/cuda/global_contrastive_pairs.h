// The global contrastive kernels over pairs of leads, as plain functions.
#pragma once
#include "dtype.h"

namespace ecgfast::cuda {

// Inputs of global_contrastive_pairs; see ecgfast/ops/global_contrastive.py. Side 0 is a, side 1 is b, which
// is a where `alone`. Contiguous.
struct ContrastivePairs {
  const void* x[2];         // [L, N, D], [L', N', D]
  const int64_t* group[2];  // [N], [N']
  const bool* present[2];   // [N] or [L, N], likewise for b; or null
  bool present_by_lead[2];  // whether they are [L, N]
  const int64_t* pairs;     // [Q, 2]; one that isn't there makes the loss NaN
  int64_t n_pairs, leads[2], rows[2];
  int width;  // D <= 2^24
  bool alone, negatives;
  float inv_temperature;
  const float* temperature;  // or null: the number above. With it the sums always keep maxima.

  int64_t statistics() const { return n_pairs * (rows[0] + rows[1]); }
  int64_t all_rows(int side) const { return side && alone ? 0 : leads[side] * rows[side]; }
  int64_t all_rows() const { return all_rows(0) + all_rows(1); }
};

// What the forward pass saves beside `statistics`: 1 / max(norm, 1e-8) of the rows (-1 where absent), of a
// and then of b; one over the positives of each pair, 0 without any; the number of pairs with positives, at
// least 1; a power of two that keeps the gradients of the similarities within float16; a typical log2(e) s.
constexpr int64_t pairs_saved_size(int64_t rows, int64_t n_pairs) { return rows + n_pairs + 3; }

struct PairsResult {
  float* loss;
  float* statistics;  // [1 or with `negatives` 2, Q, N + N']: shares (see pairs_loss); log2 sums of negatives
  float* saved;       // [pairs_saved_size]
};

struct PairsGradients {
  void* x[2];       // as the inputs; the second unused where `alone`
  double* moments;  // [1], where there is a temperature tensor: cosines times the gradients to them
};

struct PairsSaved {
  const float *grad_loss, *statistics, *saved;
};

// How the work is cut. Results differ between plans in rounding only.
struct PairsPlan {
  bool large_similarities, large_products;  // tiles; float32 in full precision has one size
  int regions[2];                           // forward: of a pair's tiles of rows and columns, a block each
  int64_t block[2];  // backward: rows of a pair whose gradients of similarities are held at a time: all of
                     // them, or a multiple of 256 (64 with small products)
  int64_t pairs;     // and so many pairs; 1 unless `block` is all rows
};

// These functions take Dtype::tf32 as well.
PairsPlan plan_contrastive_pairs(const ContrastivePairs& in, Dtype dtype);

// Bytes of device memory that the passes need beside inputs and results.
int64_t contrastive_pairs_workspace(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan);
int64_t contrastive_pairs_backward_workspace(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan,
                                             bool detach_norm);

cudaError_t contrastive_pairs(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan,
                              const PairsResult& out, void* workspace, cudaStream_t stream);
cudaError_t contrastive_pairs_backward(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan,
                                       const PairsSaved& saved, bool detach_norm, const PairsGradients& out,
                                       void* workspace, cudaStream_t stream);

}  // namespace ecgfast::cuda
