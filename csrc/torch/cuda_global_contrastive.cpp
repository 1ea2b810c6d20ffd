// global_contrastive on CUDA tensors: checks, allocation and launches.
#include "../cuda/global_contrastive.h"
#include "check_global_contrastive.h"
#include "cuda.h"

namespace ecgfast {
namespace {

// The inputs made contiguous and kept alive while the launches read their pointers.
struct GlobalInputs {
  Tensor x[2], group[2];
  cuda::Dtype dtype;
  cuda::GlobalContrastive args{};
  cuda::GlobalPlan plan;

  GlobalInputs(const char* op, const Tensor& a, const Tensor& b, const Tensor& group_a, const Tensor& group_b,
               double number, const std::optional<Tensor>& temperature, bool tf32)
      : x{dense(a), dense(b)}, group{dense(group_a), dense(group_b)}, dtype(cuda_dtype(a, op, tf32)) {
    check_global(a, b, group_a, group_b);
    for (const Tensor* t : {&b, &group_a, &group_b}) check_device(op, a, *t);
    const int64_t width = a.size(1);
    STD_TORCH_CHECK(width <= 1 << 24, op, ": takes at most 2^24 columns (D) on CUDA, got ", width);
    args.width = static_cast<int>(width);
    args.temperature = temperature_of(op, a, number, temperature);
    args.inv_temperature = static_cast<float>(1.0 / number);
    for (int side = 0; side < 2; ++side) {
      args.x[side] = x[side].const_data_ptr();
      args.group[side] = group[side].const_data_ptr<int64_t>();
      args.rows[side] = x[side].size(0);
    }
    plan = cuda::plan_global_contrastive(args, dtype);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> global_contrastive_cuda(
    const Tensor& a, const Tensor& b, const Tensor& group_a, const Tensor& group_b, double temperature, bool,
    bool tf32, const std::optional<Tensor>& temperature_tensor) {
  const char* op = "global_contrastive";
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const GlobalInputs in(op, a, b, group_a, group_b, temperature, temperature_tensor, tf32);
  const int64_t n[2] = {in.args.rows[0], in.args.rows[1]};
  Tensor loss = torch::stable::new_empty(a, {}, ScalarType::Float);
  Tensor lse[2] = {torch::stable::new_empty(a, {n[0]}, ScalarType::Float),
                   torch::stable::new_empty(a, {n[1]}, ScalarType::Float)};
  Tensor saved = torch::stable::new_empty(a, {cuda::global_saved_size(n[0] + n[1])}, ScalarType::Float);
  Tensor workspace = torch::stable::new_empty(
      a, {cuda::global_contrastive_workspace(in.args, in.dtype, in.plan)}, ScalarType::Byte);
  const cuda::GlobalResult out{loss.mutable_data_ptr<float>(),
                               {lse[0].mutable_data_ptr<float>(), lse[1].mutable_data_ptr<float>()},
                               saved.mutable_data_ptr<float>()};
  check_launch(op, cuda::global_contrastive(in.args, in.dtype, in.plan, out, workspace.mutable_data_ptr(),
                                            current_stream(a)));
  return {loss, lse[0], lse[1], saved};
}

std::tuple<Tensor, Tensor, Tensor> global_contrastive_backward_cuda(
    const Tensor& grad_loss, const Tensor& a, const Tensor& b, const Tensor& group_a, const Tensor& group_b,
    const Tensor& lse_rows, const Tensor& lse_columns, const Tensor& saved, double temperature,
    bool detach_norm, bool tf32, const std::optional<Tensor>& temperature_tensor) {
  const char* op = "global_contrastive_backward";
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const GlobalInputs in(op, a, b, group_a, group_b, temperature, temperature_tensor, tf32);
  const int64_t n[2] = {in.args.rows[0], in.args.rows[1]};
  const Tensor given[4] = {dense(grad_loss), dense(lse_rows), dense(lse_columns), dense(saved)};
  const int64_t sizes[4] = {1, n[0], n[1], cuda::global_saved_size(n[0] + n[1])};
  for (int i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(given[i].numel() == sizes[i] && given[i].scalar_type() == ScalarType::Float, op,
                    ": grad_loss must be a single float32; lse_rows, lse_columns and inv_norms must be what "
                    "the forward pass returned");
    check_device(op, a, given[i]);
  }
  Tensor grad_a = torch::stable::empty_like(in.x[0]), grad_b = torch::stable::empty_like(in.x[1]);
  Tensor workspace = torch::stable::new_empty(
      a, {cuda::global_contrastive_backward_workspace(in.args, in.dtype, in.plan, detach_norm)},
      ScalarType::Byte);
  const cuda::GlobalSaved from{given[0].const_data_ptr<float>(),
                               {given[1].const_data_ptr<float>(), given[2].const_data_ptr<float>()},
                               given[3].const_data_ptr<float>()};
  Tensor moments = torch::stable::new_empty(a, {temperature_tensor.has_value()}, ScalarType::Double);
  const cuda::GlobalGradients out{
      {grad_a.mutable_data_ptr(), grad_b.mutable_data_ptr()},
      temperature_tensor.has_value() ? moments.mutable_data_ptr<double>() : nullptr};
  check_launch(op, cuda::global_contrastive_backward(in.args, in.dtype, in.plan, from, detach_norm, out,
                                                     workspace.mutable_data_ptr(), current_stream(a)));
  return {grad_a, grad_b, moments};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CUDA, m) {
  m.impl("global_contrastive", TORCH_BOX(&ecgfast::global_contrastive_cuda));
  m.impl("global_contrastive_backward", TORCH_BOX(&ecgfast::global_contrastive_backward_cuda));
}
