#pragma once
#include "types.h"

namespace ecgfast {

// Statistics (loss, lse, inv_norms, grad_loss) are float, or double where dtype is f64.
struct LocalArgs {
  DType dtype;
  int64_t M, D;  // tokens per segment, width
  int64_t G;     // codes per token; 0 where codes is null
  int64_t K;     // negatives per token, as drawn or given; unused with use_all
  double inv_temperature;
  bool use_all;  // every other token once
  bool index_is_64;
  const void* predictions;     // [B, M, D]
  const void* targets;         // [B, M, D]
  const int32_t* codes;        // [B, M, G] or null
  const void* negative_index;  // [B, M, K] or null: draw
  int64_t seed, step;
  const int64_t* sample_ids;  // [B] where drawing
  void* loss;                 // [B, M], written forward
  bool* correct;              // [B, M], written forward
  void* lse;                  // [B, M], written forward
  void* inv_norms;            // [2, B, M], written forward, read backward
  // [B, M, M]: d loss_i / d (cosine_ij / temperature). Written forward and read backward; where null, made
  // anew.
  void* weights;
  int64_t B;
  const void* grad_loss;   // [B, M]
  void* grad_predictions;  // [B, M, D]
  void* grad_targets;      // [B, M, D]
  void* moments;  // [B, M] or null: sum_j cosine_ij times the gradient to it, for the temperature's gradient
};

}  // namespace ecgfast
