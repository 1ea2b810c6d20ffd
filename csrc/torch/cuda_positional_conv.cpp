// positional_conv on CUDA tensors: checks, allocation and launches.
#include "../cuda/positional_conv.h"
#include "check_positional_conv.h"
#include "cuda.h"

namespace ecgfast {
namespace {

// The inputs, made contiguous and kept alive while the launches read their pointers.
struct ConvInputs {
  Tensor x, weight;
  cuda::Dtype dtype;
  cuda::PositionalConv args{};

  ConvInputs(const char* op, const Tensor& x_, const Tensor& weight_, int64_t groups, bool tf32)
      : x(dense(x_)), weight(dense(weight_)), dtype(cuda_dtype(x, op, tf32)) {
    check_conv(x, weight, groups);
    check_device(op, x, weight);
    const int64_t limit = int64_t{1} << 24;
    for (int64_t size : {x.size(1), x.size(2), weight.size(2)})
      STD_TORCH_CHECK(size <= limit, op, ": takes at most 2^24 tokens, channels and taps on CUDA, got ",
                      size);
    args.x = x.const_data_ptr();
    args.weight = weight.const_data_ptr();
    args.batch = x.size(0);
    args.tokens = static_cast<int>(x.size(1));
    args.width = static_cast<int>(x.size(2));
    args.groups = static_cast<int>(groups);
    args.kernel = static_cast<int>(weight.size(2));
  }

  bool empty() const { return x.numel() == 0; }
};

Tensor workspace(const Tensor& like, size_t bytes) {
  return torch::stable::new_empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

std::tuple<Tensor, Tensor> positional_conv_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                int64_t groups, bool save, bool tf32) {
  const char* op = "positional_conv";
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const ConvInputs in(op, x, weight, groups, tf32);
  check_conv_bias(in.x, bias);
  check_device(op, in.x, bias);
  const Tensor dense_bias = dense(bias);
  Tensor out = torch::stable::empty_like(in.x);
  Tensor conv = save ? torch::stable::empty_like(in.x) : torch::stable::new_empty(in.x, {0});
  if (in.empty()) return {out, conv};
  Tensor space = workspace(in.x, cuda::positional_conv_workspace(in.args, in.dtype));
  check_launch(op, cuda::positional_conv(in.args, in.dtype, dense_bias.const_data_ptr(),
                                         out.mutable_data_ptr(), save ? conv.mutable_data_ptr() : nullptr,
                                         space.mutable_data_ptr(), current_stream(in.x)));
  return {out, conv};
}

std::tuple<Tensor, Tensor, Tensor> positional_conv_backward_cuda(const Tensor& grad_out, const Tensor& x,
                                                                 const Tensor& weight, const Tensor& conv,
                                                                 int64_t groups, bool need_x,
                                                                 bool need_parameters, bool tf32) {
  const char* op = "positional_conv_backward";
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const ConvInputs in(op, x, weight, groups, tf32);
  const Tensor &like = in.x, grad = dense(grad_out), saved = dense(conv);
  check_conv_saved(like, grad, saved);
  for (const Tensor* t : {&grad, &saved}) check_device(op, like, *t);
  Tensor grad_x = need_x ? torch::stable::empty_like(like) : torch::stable::new_empty(like, {0});
  Tensor grad_weight =
      need_parameters ? torch::stable::empty_like(in.weight) : torch::stable::new_empty(like, {0});
  Tensor grad_bias = torch::stable::new_empty(like, {need_parameters ? like.size(2) : 0});
  if (in.empty()) return {grad_x, torch::stable::fill_(grad_weight, 0), torch::stable::fill_(grad_bias, 0)};
  const size_t bytes = cuda::positional_conv_backward_workspace(in.args, in.dtype, need_x, need_parameters);
  Tensor space = workspace(like, bytes);
  const cuda::PositionalConvGradients gradients{grad.const_data_ptr(), saved.const_data_ptr(),
                                                need_x ? grad_x.mutable_data_ptr() : nullptr,
                                                need_parameters ? grad_weight.mutable_data_ptr() : nullptr,
                                                need_parameters ? grad_bias.mutable_data_ptr() : nullptr};
  check_launch(op, cuda::positional_conv_backward(in.args, in.dtype, gradients, space.mutable_data_ptr(),
                                                  current_stream(like)));
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CUDA, m) {
  m.impl("positional_conv", TORCH_BOX(&ecgfast::positional_conv_cuda));
  m.impl("positional_conv_backward", TORCH_BOX(&ecgfast::positional_conv_backward_cuda));
}
