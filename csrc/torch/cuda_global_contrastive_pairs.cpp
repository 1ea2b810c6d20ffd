// global_contrastive_pairs on CUDA tensors: checks, allocation and launches.
#include "../cuda/global_contrastive_pairs.h"
#include "check_global_contrastive_pairs.h"
#include "cuda.h"

namespace ecgfast {
namespace {

// The inputs made contiguous and kept alive while the launches read their pointers.
struct PairsInputs {
  Tensor x[2], group[2], pairs;
  std::optional<Tensor> present[2];
  cuda::Dtype dtype;
  cuda::ContrastivePairs args{};
  cuda::PairsPlan plan;

  PairsInputs(const char* op, const Tensor& a, const std::optional<Tensor>& b, const Tensor& group_a,
              const std::optional<Tensor>& group_b, const std::optional<Tensor>& present_a,
              const std::optional<Tensor>& present_b, const Tensor& given_pairs, bool negatives,
              double number, const std::optional<Tensor>& temperature, bool tf32)
      : x{dense(a), b.has_value() ? dense(*b) : dense(a)},
        group{dense(group_a), group_b.has_value() ? dense(*group_b) : dense(group_a)},
        pairs(dense(given_pairs)),
        present{dense(present_a), b.has_value() ? dense(present_b) : dense(present_a)},
        dtype(cuda_dtype(a, op, tf32)) {
    check_pairs(a, b, group_a, group_b, present_a, present_b, given_pairs);
    for (const std::optional<Tensor>& t : {b, group_b, present_a, present_b}) check_device(op, a, t);
    check_device(op, a, group_a);
    check_device(op, a, given_pairs);
    const int64_t width = a.size(2);
    STD_TORCH_CHECK(width <= 1 << 24, op, ": takes at most 2^24 columns (D) on CUDA, got ", width);
    args.alone = !b.has_value();
    args.negatives = negatives;
    args.width = static_cast<int>(width);
    args.temperature = temperature_of(op, a, number, temperature);
    args.inv_temperature = static_cast<float>(1.0 / number);
    for (int side = 0; side < 2; ++side) {
      if (side && args.alone) x[1] = x[0];
      args.x[side] = x[side].const_data_ptr();
      args.group[side] = group[side].const_data_ptr<int64_t>();
      args.present[side] = data_or_null<bool>(present[side]);
      args.present_by_lead[side] = present[side].has_value() && present[side]->dim() == 2;
      args.leads[side] = x[side].size(0);
      args.rows[side] = x[side].size(1);
    }
    args.pairs = pairs.const_data_ptr<int64_t>();
    args.n_pairs = pairs.size(0);
    STD_TORCH_CHECK(args.n_pairs == 0 || (args.leads[0] > 0 && args.leads[1] > 0), op,
                    ": pairs holds a lead that isn't there");
    plan = cuda::plan_contrastive_pairs(args, dtype);
  }

  int64_t n_statistics() const { return (args.negatives ? 2 : 1) * args.statistics(); }
};

std::tuple<Tensor, Tensor, Tensor> global_contrastive_pairs_cuda(
    const Tensor& a, const std::optional<Tensor>& b, const Tensor& group_a,
    const std::optional<Tensor>& group_b, const std::optional<Tensor>& present_a,
    const std::optional<Tensor>& present_b, const Tensor& pairs, bool negatives, double temperature,
    bool /*detach_norm*/, bool tf32, const std::optional<Tensor>& temperature_tensor) {
  const char* op = "global_contrastive_pairs";
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const PairsInputs in(op, a, b, group_a, group_b, present_a, present_b, pairs, negatives, temperature,
                       temperature_tensor, tf32);
  Tensor loss = torch::stable::new_empty(a, {}, ScalarType::Float);
  Tensor statistics = torch::stable::new_empty(a, {in.n_statistics()}, ScalarType::Float);
  Tensor saved = torch::stable::new_empty(a, {cuda::pairs_saved_size(in.args.all_rows(), in.args.n_pairs)},
                                          ScalarType::Float);
  Tensor workspace = torch::stable::new_empty(
      a, {cuda::contrastive_pairs_workspace(in.args, in.dtype, in.plan)}, ScalarType::Byte);
  const cuda::PairsResult out{loss.mutable_data_ptr<float>(), statistics.mutable_data_ptr<float>(),
                              saved.mutable_data_ptr<float>()};
  check_launch(op, cuda::contrastive_pairs(in.args, in.dtype, in.plan, out, workspace.mutable_data_ptr(),
                                           current_stream(a)));
  return {loss, statistics, saved};
}

std::tuple<Tensor, Tensor, Tensor> global_contrastive_pairs_backward_cuda(
    const Tensor& grad_loss, const Tensor& a, const std::optional<Tensor>& b, const Tensor& group_a,
    const std::optional<Tensor>& group_b, const std::optional<Tensor>& present_a,
    const std::optional<Tensor>& present_b, const Tensor& pairs, const Tensor& lse, const Tensor& inv_norms,
    bool negatives, double temperature, bool detach_norm, bool tf32,
    const std::optional<Tensor>& temperature_tensor) {
  const char* op = "global_contrastive_pairs_backward";
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  const PairsInputs in(op, a, b, group_a, group_b, present_a, present_b, pairs, negatives, temperature,
                       temperature_tensor, tf32);
  const Tensor given[3] = {dense(grad_loss), dense(lse), dense(inv_norms)};
  const int64_t sizes[3] = {1, in.n_statistics(),
                            cuda::pairs_saved_size(in.args.all_rows(), in.args.n_pairs)};
  for (int i = 0; i < 3; ++i) {
    STD_TORCH_CHECK(given[i].numel() == sizes[i] && given[i].scalar_type() == ScalarType::Float, op,
                    ": grad_loss must be a single float32; lse and inv_norms must be what the forward pass "
                    "returned");
    check_device(op, a, given[i]);
  }
  Tensor grad_a = torch::stable::empty_like(in.x[0]);
  Tensor grad_b =
      in.args.alone ? torch::stable::new_empty(a, {0}, a.scalar_type()) : torch::stable::empty_like(in.x[1]);
  Tensor workspace = torch::stable::new_empty(
      a, {cuda::contrastive_pairs_backward_workspace(in.args, in.dtype, in.plan, detach_norm)},
      ScalarType::Byte);
  const cuda::PairsSaved from{given[0].const_data_ptr<float>(), given[1].const_data_ptr<float>(),
                              given[2].const_data_ptr<float>()};
  Tensor moments = torch::stable::new_empty(a, {temperature_tensor.has_value()}, ScalarType::Double);
  const cuda::PairsGradients out{
      {grad_a.mutable_data_ptr(), in.args.alone ? nullptr : grad_b.mutable_data_ptr()},
      temperature_tensor.has_value() ? moments.mutable_data_ptr<double>() : nullptr};
  check_launch(op, cuda::contrastive_pairs_backward(in.args, in.dtype, in.plan, from, detach_norm, out,
                                                    workspace.mutable_data_ptr(), current_stream(a)));
  return {grad_a, grad_b, moments};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CUDA, m) {
  m.impl("global_contrastive_pairs", TORCH_BOX(&ecgfast::global_contrastive_pairs_cuda));
  m.impl("global_contrastive_pairs_backward", TORCH_BOX(&ecgfast::global_contrastive_pairs_backward_cuda));
}
