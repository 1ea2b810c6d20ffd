// lead_mask and span_mask on CUDA tensors: checks, allocation and launches.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "../cuda/lead_mask.h"
#include "../cuda/span_mask.h"
#include "check_masks.h"
#include "cuda.h"

namespace ecgfast {
namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor lead_mask_cuda(const Tensor& sample_ids, int64_t n_leads, double p, const Tensor& rng, bool keep_one,
                      const std::optional<Tensor>& p_tensor) {
  p = number_of("lead_mask", "p", p, p_tensor);
  const char* op = "lead_mask";
  check_lead_mask(sample_ids, n_leads, p, rng);
  check_device(op, sample_ids, rng);
  const DeviceGuard guard(sample_ids.get_device_index());
  const Tensor ids = dense(sample_ids), state = dense(rng);
  Tensor keep = torch::stable::new_empty(sample_ids, {ids.size(0), n_leads}, ScalarType::Bool);
  const cuda::LeadMask args{state.const_data_ptr<int64_t>(),
                            ids.const_data_ptr<int64_t>(),
                            ids.size(0),
                            n_leads,
                            static_cast<uint64_t>(p * 4294967296.0),
                            keep_one};
  check_launch(
      op, cuda::lead_mask(args, static_cast<bool*>(keep.mutable_data_ptr()), current_stream(sample_ids)));
  return keep;
}

// The fewest covered tokens of the batch. Waits for the device: the shape of the result depends on it.
int64_t fewest_covered(const cuda::SpanMask& args, const Tensor& sample_ids) {
  const char* op = "span_mask";
  if (args.batch == 0) return 0;
  Tensor covered = torch::stable::new_empty(sample_ids, {args.batch}, ScalarType::Int);
  const cudaStream_t stream = current_stream(sample_ids);
  check_launch(op, cuda::span_mask_count(args, covered.mutable_data_ptr<int32_t>(), stream));
  std::vector<int32_t> counts(args.batch);
  check_launch(op, cudaMemcpyAsync(counts.data(), covered.const_data_ptr(), counts.size() * sizeof(int32_t),
                                   cudaMemcpyDeviceToHost, stream));
  check_launch(op, cudaStreamSynchronize(stream));
  return *std::min_element(counts.begin(), counts.end());
}

std::tuple<Tensor, Tensor> span_mask_cuda(const Tensor& sample_ids, int64_t n_tokens, double prob,
                                          int64_t length, const Tensor& rng,
                                          const std::optional<Tensor>& lengths,
                                          std::optional<int64_t> n_masked,
                                          const std::optional<Tensor>& prob_tensor) {
  prob = number_of("span_mask", "prob", prob, prob_tensor);
  const char* op = "span_mask";
  check_span_mask(sample_ids, n_tokens, prob, length, rng, lengths, n_masked);
  STD_TORCH_CHECK(n_tokens <= cuda::kMaxSpanTokens, op, ": takes at most ", cuda::kMaxSpanTokens,
                  " tokens on CUDA, got ", n_tokens);
  check_device(op, sample_ids, rng);
  check_device(op, sample_ids, lengths);
  const DeviceGuard guard(sample_ids.get_device_index());
  const Tensor ids = dense(sample_ids), state = dense(rng);
  const std::optional<Tensor> valid = dense(lengths);
  const cuda::SpanMask args{state.const_data_ptr<int64_t>(),
                            ids.const_data_ptr<int64_t>(),
                            data_or_null<int64_t>(valid),
                            ids.size(0),
                            static_cast<int>(n_tokens),
                            length,
                            prob};
  const int64_t m = n_masked.has_value() ? *n_masked : fewest_covered(args, sample_ids);
  Tensor index = torch::stable::new_empty(sample_ids, {args.batch, m}, ScalarType::Int);
  Tensor mask = torch::stable::new_empty(sample_ids, {args.batch, n_tokens}, ScalarType::Bool);
  check_launch(op, cuda::span_mask(args, static_cast<int>(m), index.mutable_data_ptr<int32_t>(),
                                   static_cast<bool*>(mask.mutable_data_ptr()), current_stream(sample_ids)));
  return {index, mask};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CUDA, m) {
  m.impl("lead_mask", TORCH_BOX(&ecgfast::lead_mask_cuda));
  m.impl("span_mask", TORCH_BOX(&ecgfast::span_mask_cuda));
}
