// Checks of patch_embed's inputs on all devices. The Python function checks with better messages; these keep
// a direct call of torch.ops.ecgfast.* from reading memory that isn't there.
#pragma once
#include "common.h"

namespace ecgfast {

inline void check_stem(const Tensor& signal, const std::optional<Tensor>& keep,
                       const std::vector<Tensor>& weights, const Tensor& gn_weight, const Tensor& gn_bias,
                       const std::vector<Tensor>& biases, const std::optional<Tensor>& lengths) {
  const char* op = "patch_embed: ";
  STD_TORCH_CHECK(!weights.empty(), op, "weights must hold at least one layer");
  const Tensor& first = weights[0];
  const ScalarType dtype = first.scalar_type();
  STD_TORCH_CHECK(first.dim() == 3 && first.size(2) == 2 && first.size(0) >= 1, op,
                  "weights[0] must be [C, L, 2]");
  const int64_t c = first.size(0);
  STD_TORCH_CHECK(signal.dim() == 3 && signal.size(1) == first.size(1) && signal.size(1) >= 1, op,
                  "signal must be [B, L, T]");
  STD_TORCH_CHECK(signal.scalar_type() == dtype || signal.scalar_type() == ScalarType::Short, op,
                  "signal must be int16 or of the weights' dtype");
  for (size_t i = 1; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    STD_TORCH_CHECK(
        w.dim() == 3 && w.size(0) == c && w.size(1) == c && w.size(2) == 2 && w.scalar_type() == dtype, op,
        "weights[", i, "] must be [C, C, 2] of one dtype");
  }
  STD_TORCH_CHECK(weights.size() < 32, op, "takes at most 31 layers");
  STD_TORCH_CHECK(gn_weight.numel() == c && gn_bias.numel() == c && gn_weight.scalar_type() == dtype &&
                      gn_bias.scalar_type() == dtype,
                  op, "gn_weight and gn_bias must be [C]");
  STD_TORCH_CHECK(biases.empty() || biases.size() == weights.size(), op,
                  "biases must be one per layer or none");
  for (const Tensor& b : biases)
    STD_TORCH_CHECK(b.numel() == c && b.scalar_type() == dtype, op, "biases must be [C]");
  STD_TORCH_CHECK(
      !keep.has_value() || (keep->dim() == 2 && keep->size(0) == signal.size(0) &&
                            keep->size(1) == signal.size(1) && keep->scalar_type() == ScalarType::Bool),
      op, "keep must be bool [B, L]");
  STD_TORCH_CHECK(!lengths.has_value() || (lengths->dim() == 1 && lengths->size(0) == signal.size(0) &&
                                           lengths->scalar_type() == ScalarType::Long),
                  op, "lengths must be int64 [B]");
}

}  // namespace ecgfast
