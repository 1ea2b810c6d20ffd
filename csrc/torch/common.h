// What the CPU and CUDA sides of the op library share: checks and small conversions on PyTorch's stable ABI.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <vector>

namespace ecgfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor dense(const Tensor& t) { return torch::stable::contiguous(t); }

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(dense(*t)) : std::nullopt;
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// A number that a kernel takes from the host: where a tensor is given, the one that lies in it. A compiled
// graph keeps a changing number in a tensor alone.
inline double number_of(const char* op, const char* name, double number,
                        const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return number;
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->numel() == 1 && tensor->scalar_type() == ScalarType::Double, op,
                  ": ", name, " that is a tensor must be a single float64 number on the CPU");
  return *tensor->const_data_ptr<double>();
}

// A loss's temperature: a number, or where a tensor is given that one, whose gradient is then wanted.
inline void check_temperature(const char* op, double number, const std::optional<Tensor>& tensor,
                              ScalarType wide) {
  if (tensor.has_value()) {
    STD_TORCH_CHECK(tensor->numel() == 1 && tensor->scalar_type() == wide, op,
                    ": a temperature that is a tensor must be a single number of the loss's dtype");
  } else {
    STD_TORCH_CHECK(number > 0, op, ": temperature must be positive, got ", number);
  }
}

// The Python functions check with better messages; these keep a direct call of torch.ops.ecgfast.* from
// reading memory that isn't there.
inline void check_local(const Tensor& predictions, const Tensor& targets, const std::optional<Tensor>& codes,
                        const std::optional<Tensor>& negative_index, const std::optional<Tensor>& rng,
                        const std::optional<Tensor>& sample_ids, int64_t n_negatives, bool use_all) {
  const char* op = "local_contrastive: ";
  STD_TORCH_CHECK(predictions.dim() == 3 && targets.dim() == 3, op,
                  "predictions and targets must be [B, M, D]");
  const int64_t b = predictions.size(0), m = predictions.size(1);
  for (int i = 0; i < 3; ++i)
    STD_TORCH_CHECK(predictions.size(i) == targets.size(i), op,
                    "predictions and targets must have the same shape");
  STD_TORCH_CHECK(predictions.scalar_type() == targets.scalar_type(), op,
                  "predictions and targets differ in dtype");
  if (codes.has_value())
    STD_TORCH_CHECK(codes->dim() == 3 && codes->size(0) == b && codes->size(1) == m &&
                        codes->scalar_type() == ScalarType::Int,
                    op, "codes must be int32 [B, M, G]");
  if (use_all) return;
  if (negative_index.has_value()) {
    const ScalarType t = negative_index->scalar_type();
    STD_TORCH_CHECK(negative_index->dim() == 3 && negative_index->size(0) == b &&
                        negative_index->size(1) == m && (t == ScalarType::Int || t == ScalarType::Long),
                    op, "negative_index must be int32 or int64 [B, M, K]");
    return;
  }
  STD_TORCH_CHECK(rng.has_value() && sample_ids.has_value(), op,
                  "needs negative_index, or rng and sample_ids");
  STD_TORCH_CHECK(rng->dim() == 1 && rng->size(0) == 2 && rng->scalar_type() == ScalarType::Long, op,
                  "rng must be int64 [2]");
  STD_TORCH_CHECK(
      sample_ids->dim() == 1 && sample_ids->size(0) == b && sample_ids->scalar_type() == ScalarType::Long, op,
      "sample_ids must be int64 [B]");
  STD_TORCH_CHECK(n_negatives >= 1, op, "n_negatives must be at least 1, got ", n_negatives);
  STD_TORCH_CHECK(n_negatives < (int64_t{1} << 31) && n_negatives < (int64_t{1} << 34) / (m > 0 ? m : 1), op,
                  "a token draws fewer than 2^31 negatives, a segment fewer than 2^34; got n_negatives ",
                  n_negatives, " for ", m, " tokens");
}

}  // namespace ecgfast
