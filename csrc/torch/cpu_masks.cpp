// lead_mask and span_mask on the CPU.
#include <algorithm>

#include "check_masks.h"
#include "cpu.h"

namespace ecgfast {
namespace {

// Segments that take longer than to hand them to another thread.
constexpr int64_t kLeadSegments = 1024, kSpanSegments = 32;

Tensor lead_mask_cpu(const Tensor& sample_ids, int64_t n_leads, double p, const Tensor& rng, bool keep_one,
                     const std::optional<Tensor>& p_tensor) {
  p = number_of("lead_mask", "p", p, p_tensor);
  check_lead_mask(sample_ids, n_leads, p, rng);
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
  const Kernels& k = kernels();
  const int64_t scratch = k.lead_mask_scratch(args);
  torch::stable::parallel_for(0, ids.size(0), kLeadSegments, [&](int64_t begin, int64_t end) {
    k.lead_mask(args, begin, end, Scratch<>(scratch).get());
  });
  return keep;
}

std::tuple<Tensor, Tensor> span_mask_cpu(const Tensor& sample_ids, int64_t n_tokens, double prob,
                                         int64_t length, const Tensor& rng,
                                         const std::optional<Tensor>& lengths,
                                         std::optional<int64_t> n_masked,
                                         const std::optional<Tensor>& prob_tensor) {
  prob = number_of("span_mask", "prob", prob, prob_tensor);
  check_span_mask(sample_ids, n_tokens, prob, length, rng, lengths, n_masked);
  const Tensor ids = dense(sample_ids);
  const std::optional<Tensor> valid = dense(lengths);
  const int64_t batch = ids.size(0);
  const Rng state("span_mask", rng);
  const int64_t words = span_mask_words(n_tokens);
  std::vector<uint64_t> covered(batch * words);
  std::vector<int64_t> n_covered(batch);
  SpanMaskArgs args{};
  args.sample_ids = ids.const_data_ptr<int64_t>();
  args.seed = state.seed;
  args.step = state.step;
  args.n_tokens = n_tokens;
  args.length = length;
  args.prob = prob;
  args.lengths = data_or_null<int64_t>(valid);
  args.at_least = n_masked.value_or(0);
  args.covered = covered.data();
  args.n_covered = n_covered.data();
  const Kernels& k = kernels();
  const int64_t scratch = k.span_mask_scratch(args);
  const auto run = [&](SpanMaskPass first, SpanMaskPass last) {
    torch::stable::parallel_for(0, batch, kSpanSegments, [&](int64_t begin, int64_t end) {
      const Scratch memory(scratch);
      k.span_mask(args, first, begin, end, memory.get());
      if (last != first) k.span_mask(args, last, begin, end, memory.get());
    });
  };
  if (!n_masked.has_value()) run(SpanMaskPass::cover, SpanMaskPass::cover);
  args.n_masked = n_masked.has_value() ? *n_masked
                  : batch              ? *std::min_element(n_covered.begin(), n_covered.end())
                                       : 0;
  Tensor index = torch::stable::new_empty(sample_ids, {batch, args.n_masked}, ScalarType::Int);
  Tensor mask = torch::stable::new_empty(sample_ids, {batch, n_tokens}, ScalarType::Bool);
  args.index = index.mutable_data_ptr<int32_t>();
  args.mask = static_cast<bool*>(mask.mutable_data_ptr());
  run(n_masked.has_value() ? SpanMaskPass::cover : SpanMaskPass::cut, SpanMaskPass::cut);
  return {index, mask};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("lead_mask", TORCH_BOX(&ecgfast::lead_mask_cpu));
  m.impl("span_mask", TORCH_BOX(&ecgfast::span_mask_cpu));
}
