// gather_segments on CUDA tensors. Whether the segments lie in the store is checked by the kernel: the host
// would have to wait for the numbers.
#include "../cuda/gather_segments.h"
#include "check_gather_segments.h"
#include "cuda.h"

namespace ecgfast {
namespace {

const char* const kOp = "gather_segments";

cuda::SignalType signal_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Short:
      return cuda::SignalType::int16;
    case ScalarType::Float:
      return cuda::SignalType::float32;
    case ScalarType::BFloat16:
      return cuda::SignalType::bfloat16;
    case ScalarType::Half:
      return cuda::SignalType::float16;
    case ScalarType::Double:
      return cuda::SignalType::float64;
    default:
      STD_TORCH_CHECK(false, kOp, ": dtype must be int16, float32, bfloat16, float16 or float64");
  }
}

Tensor gather_segments_cuda(const Tensor& store, const Tensor& offset, const Tensor& start,
                            const Tensor& n_samples, int64_t length, const std::optional<Tensor>& lead_index,
                            ScalarType dtype) {
  check_gather(store, offset, start, n_samples, length, lead_index);
  const cuda::SignalType type = signal_type(dtype);
  for (const Tensor* t : {&offset, &start, &n_samples}) check_device(kOp, store, *t);
  check_device(kOp, store, lead_index);
  const torch::stable::accelerator::DeviceGuard guard(store.get_device_index());
  const Tensor offsets = dense(offset), starts = dense(start), samples = dense(n_samples);
  const std::optional<Tensor> leads = dense(lead_index);
  const cuda::GatherSegments args{store.const_data_ptr<int16_t>(),
                                  offsets.const_data_ptr<int64_t>(),
                                  starts.const_data_ptr<int64_t>(),
                                  samples.const_data_ptr<int64_t>(),
                                  data_or_null<int64_t>(leads),
                                  store.numel(),
                                  offset.numel(),
                                  leads.has_value() ? leads->size(0) : kLeads,
                                  length};
  Tensor signal = torch::stable::new_empty(store, {args.batch, args.leads, length}, dtype);
  check_launch(kOp, cuda::gather_segments(args, type, signal.mutable_data_ptr(), current_stream(store)));
  return signal;
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CUDA, m) {
  m.impl("gather_segments", TORCH_BOX(&ecgfast::gather_segments_cuda));
}
