// Checks that the CPU and CUDA sides of gumbel_quantize share.
#pragma once
#include <algorithm>

#include "common.h"

namespace ecgfast {

inline ScalarType gumbel_wide(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_gumbel(const Tensor& logits, const Tensor& codebook, const Tensor& temperature,
                         const std::optional<Tensor>& noise) {
  const char* op = "gumbel_quantize";
  STD_TORCH_CHECK(codebook.dim() == 3 && codebook.size(0) >= 1 && codebook.size(1) >= 1, op,
                  ": codebook must be [G, V, D/G] with entries");
  const int64_t columns = codebook.size(0) * codebook.size(1);
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) == columns, op, ": logits must be [R, G*V]");
  STD_TORCH_CHECK(codebook.size(1) < (int64_t{1} << 30), op,
                  ": codebook must have fewer than 2^30 entries per group");
  STD_TORCH_CHECK(temperature.numel() == 1, op, ": temperature must be a single number");
  STD_TORCH_CHECK(
      !noise.has_value() || (noise->dim() == 2 && noise->size(0) == logits.size(0) &&
                             noise->size(1) == columns && noise->scalar_type() == gumbel_wide(logits)),
      op, ": noise must be float32 [R, G*V], float64 for float64 logits");
}

// The rows of each sample, for drawing; at least 1.
inline int64_t rows_per_sample(const Tensor& logits, const std::optional<Tensor>& sample_ids) {
  const char* op = "gumbel_quantize";
  const int64_t rows = logits.size(0);
  int64_t per_sample = rows;
  if (sample_ids.has_value()) {
    STD_TORCH_CHECK(sample_ids->dim() == 1 && sample_ids->scalar_type() == ScalarType::Long, op,
                    ": sample_ids must be int64 [B]");
    const int64_t samples = sample_ids->size(0);
    STD_TORCH_CHECK(samples ? rows % samples == 0 : rows == 0, op,
                    ": logits must have equally many rows per sample");
    per_sample = samples ? rows / samples : 1;
  }
  per_sample = std::max<int64_t>(per_sample, 1);
  STD_TORCH_CHECK(per_sample < (int64_t{1} << 34) / logits.size(1), op,
                  ": a sample draws fewer than 2^34 numbers");
  return per_sample;
}

inline void check_gumbel_gradients(const std::optional<Tensor>& grad_quantized,
                                   const std::optional<Tensor>& grad_mean_probs, const Tensor& logits,
                                   const Tensor& codebook, const Tensor& codes) {
  const char* op = "gumbel_quantize_backward";
  const int64_t rows = logits.size(0), groups = codebook.size(0);
  STD_TORCH_CHECK(
      !grad_quantized.has_value() || (grad_quantized->numel() == rows * groups * codebook.size(2) &&
                                      grad_quantized->scalar_type() == codebook.scalar_type()),
      op, ": grad_quantized must be [R, D] of the codebook's dtype");
  STD_TORCH_CHECK(!grad_mean_probs.has_value() || (grad_mean_probs->numel() == groups * codebook.size(1) &&
                                                   grad_mean_probs->scalar_type() == gumbel_wide(logits)),
                  op, ": grad_mean_probs must be [G, V] of mean_probs' dtype");
  STD_TORCH_CHECK(codes.numel() == rows * groups && codes.scalar_type() == ScalarType::Int, op,
                  ": codes must be int32 [R, G]");
}

}  // namespace ecgfast
