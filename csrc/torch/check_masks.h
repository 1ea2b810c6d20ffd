// Checks that the CPU and CUDA sides of lead_mask and span_mask share.
#pragma once
#include "common.h"

namespace ecgfast {

inline void check_draw(const char* op, const Tensor& sample_ids, const Tensor& rng) {
  STD_TORCH_CHECK(sample_ids.dim() == 1 && sample_ids.scalar_type() == ScalarType::Long, op,
                  ": sample_ids must be int64 [B]");
  STD_TORCH_CHECK(rng.dim() == 1 && rng.size(0) == 2 && rng.scalar_type() == ScalarType::Long, op,
                  ": rng must be int64 [2]");
}

inline void check_lead_mask(const Tensor& sample_ids, int64_t n_leads, double p, const Tensor& rng) {
  check_draw("lead_mask", sample_ids, rng);
  STD_TORCH_CHECK(n_leads >= 1 && n_leads < (1 << 30) && p >= 0 && p <= 1,
                  "lead_mask: n_leads must lie in 1..2^30 and p in [0, 1]");
}

inline void check_span_mask(const Tensor& sample_ids, int64_t n_tokens, double prob, int64_t length,
                            const Tensor& rng, const std::optional<Tensor>& lengths,
                            std::optional<int64_t> n_masked) {
  check_draw("span_mask", sample_ids, rng);
  STD_TORCH_CHECK(n_tokens >= 1 && n_tokens < (1 << 30), "span_mask: n_tokens must lie in 1..2^30, got ",
                  n_tokens);
  STD_TORCH_CHECK(length >= 1 && prob >= 0 && prob <= 1,
                  "span_mask: length must be positive and prob in [0, 1]");
  STD_TORCH_CHECK(!n_masked.has_value() || (*n_masked >= 1 && *n_masked <= n_tokens),
                  "span_mask: n_masked must lie in 1..n_tokens");
  STD_TORCH_CHECK(!lengths.has_value() || (lengths->dim() == 1 && lengths->size(0) == sample_ids.size(0) &&
                                           lengths->scalar_type() == ScalarType::Long),
                  "span_mask: lengths must be int64 [B]");
}

}  // namespace ecgfast
