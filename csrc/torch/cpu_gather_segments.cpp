// gather_segments on the CPU: checks every segment against the store, then copies rows in parallel.
#include "check_gather_segments.h"
#include "cpu.h"

namespace ecgfast {
namespace {

const char* const kOp = "gather_segments: ";

void check_segments(const GatherArgs& a, int64_t batch, int64_t n_values) {
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t offset = a.offset[b], start = a.start[b], samples = a.n_samples[b];
    // Divided, not multiplied: a damaged n_samples must not overflow.
    STD_TORCH_CHECK(
        offset >= 0 && offset <= n_values && samples >= 0 && samples <= (n_values - offset) / kLeads, kOp,
        "segment ", b, ": a recording of ", kLeads, " x ", samples, " values at offset ", offset,
        " must lie in the store's ", n_values, " values");
    STD_TORCH_CHECK(start >= 0 && a.length <= samples && start <= samples - a.length, kOp, "segment ", b,
                    ": start must lie in 0..n_samples - length = ", samples, " - ", a.length, ", got ",
                    start);
  }
  for (int64_t l = 0; a.lead_index && l < a.n_leads; ++l)
    STD_TORCH_CHECK(a.lead_index[l] >= -1 && a.lead_index[l] < kLeads, kOp, "lead_index must hold -1..",
                    kLeads - 1, ", got ", a.lead_index[l]);
}

Tensor gather_segments_cpu(const Tensor& store, const Tensor& offset, const Tensor& start,
                           const Tensor& n_samples, int64_t length, const std::optional<Tensor>& lead_index,
                           ScalarType dtype) {
  check_gather(store, offset, start, n_samples, length, lead_index);
  const int64_t batch = offset.numel();
  const Tensor offsets = dense(offset), starts = dense(start), samples = dense(n_samples);
  const std::optional<Tensor> leads = dense(lead_index);
  GatherArgs args{};
  args.n_leads = leads.has_value() ? leads->size(0) : kLeads;
  Tensor signal = torch::stable::new_empty(store, {batch, args.n_leads, length}, dtype);
  args.raw = dtype == ScalarType::Short;
  if (!args.raw) args.dtype = dtype_of(signal, "gather_segments");
  args.length = length;
  args.store = store.const_data_ptr<int16_t>();
  args.offset = offsets.const_data_ptr<int64_t>();
  args.start = starts.const_data_ptr<int64_t>();
  args.n_samples = samples.const_data_ptr<int64_t>();
  args.lead_index = data_or_null<int64_t>(leads);
  args.signal = signal.mutable_data_ptr();
  check_segments(args, batch, store.numel());
  torch::stable::parallel_for(0, batch * args.n_leads, 16, [&](int64_t begin, int64_t end) {
    kernels().gather_segments(args, begin, end);
  });
  return signal;
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("gather_segments", TORCH_BOX(&ecgfast::gather_segments_cpu));
}
