// Checks that the CPU and CUDA sides of gather_segments share; the numbers in the tensors are not looked at.
#pragma once
#include "common.h"

namespace ecgfast {

constexpr int64_t kLeads = 12;  // of a recording in a store

inline void check_gather(const Tensor& store, const Tensor& offset, const Tensor& start,
                         const Tensor& n_samples, int64_t length, const std::optional<Tensor>& lead_index) {
  const char* op = "gather_segments: ";
  STD_TORCH_CHECK(store.dim() == 1 && store.scalar_type() == ScalarType::Short && store.is_contiguous(), op,
                  "store must be int16 [n_values], contiguous");
  for (const Tensor* t : {&offset, &start, &n_samples})
    STD_TORCH_CHECK(t->dim() == 1 && t->numel() == offset.numel() && t->scalar_type() == ScalarType::Long, op,
                    "offset, start and n_samples must be int64 [B]");
  STD_TORCH_CHECK(
      !lead_index.has_value() || (lead_index->dim() == 1 && lead_index->scalar_type() == ScalarType::Long),
      op, "lead_index must be int64 [L]");
  STD_TORCH_CHECK(length >= 0, op, "length must not be negative, got ", length);
}

}  // namespace ecgfast
