// lead_mask and span_mask on the CPU.
#include <algorithm>

#include "../cpu/masks.h"
#include "cpu.h"

namespace ecgfast {
namespace {

Tensor lead_mask_cpu(const Tensor& sample_ids, int64_t n_leads, double p, const Tensor& rng, bool keep_one) {
  check_ids("lead_mask", sample_ids);
  STD_TORCH_CHECK(n_leads >= 1 && p >= 0 && p <= 1, "lead_mask: n_leads must be positive and p in [0, 1]");
  const Tensor ids = dense(sample_ids);
  const Rng state("lead_mask", rng);
  Tensor keep = torch::stable::new_empty(sample_ids, {ids.size(0), n_leads}, ScalarType::Bool);
  const LeadMaskArgs args{ids.const_data_ptr<int64_t>(),
                          state.seed,
                          state.step,
                          n_leads,
                          p,
                          keep_one,
                          static_cast<bool*>(keep.mutable_data_ptr())};
  torch::stable::parallel_for(0, ids.size(0), 1024, [&](int64_t b, int64_t e) { lead_mask(args, b, e); });
  return keep;
}

std::tuple<Tensor, Tensor> span_mask_cpu(const Tensor& sample_ids, int64_t n_tokens, double prob,
                                         int64_t length, const Tensor& rng,
                                         const std::optional<Tensor>& lengths,
                                         std::optional<int64_t> n_masked) {
  check_ids("span_mask", sample_ids);
  STD_TORCH_CHECK(n_tokens >= 1 && n_tokens < (1 << 30), "span_mask: n_tokens must lie in 1..2^30, got ",
                  n_tokens);
  STD_TORCH_CHECK(length >= 1 && prob >= 0 && prob <= 1,
                  "span_mask: length must be positive and prob in [0, 1]");
  STD_TORCH_CHECK(!n_masked.has_value() || (*n_masked >= 1 && *n_masked <= n_tokens),
                  "span_mask: n_masked must lie in 1..n_tokens");
  const Tensor ids = dense(sample_ids);
  const std::optional<Tensor> valid = dense(lengths);
  const int64_t batch = ids.size(0);
  STD_TORCH_CHECK(!valid.has_value() || (valid->dim() == 1 && valid->size(0) == batch &&
                                         valid->scalar_type() == ScalarType::Long),
                  "span_mask: lengths must be int64 [B]");
  const Rng state("span_mask", rng);
  const SpanMaskArgs args{ids.const_data_ptr<int64_t>(), state.seed, state.step, n_tokens, length, prob,
                          data_or_null<int64_t>(valid)};
  int64_t m = n_masked.value_or(batch ? n_tokens : 0);
  if (!n_masked.has_value()) {
    SpanMasker masker(args);
    for (int64_t b = 0; b < batch; ++b) m = std::min(m, masker.cover(b, 0));
  }
  const int64_t at_least = n_masked.value_or(0);
  Tensor index = torch::stable::new_empty(sample_ids, {batch, m}, ScalarType::Int);
  Tensor mask = torch::stable::new_empty(sample_ids, {batch, n_tokens}, ScalarType::Bool);
  int32_t* out = index.mutable_data_ptr<int32_t>();
  bool* out_mask = static_cast<bool*>(mask.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, 16, [&](int64_t begin, int64_t end) {
    SpanMasker masker(args);
    for (int64_t b = begin; b < end; ++b) {
      masker.cover(b, at_least);
      masker.cut(b, m, out + b * m, out_mask + b * n_tokens);
    }
  });
  return {index, mask};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("lead_mask", TORCH_BOX(&ecgfast::lead_mask_cpu));
  m.impl("span_mask", TORCH_BOX(&ecgfast::span_mask_cpu));
}
