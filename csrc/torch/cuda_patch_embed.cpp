// patch_embed on CUDA tensors: checks, allocation and launches.
#include "../cuda/patch_embed.h"
#include "check_patch_embed.h"
#include "cuda.h"

namespace ecgfast {
namespace {

// The inputs, made contiguous and kept alive while the launches read their pointers.
struct StemInputs {
  Tensor signal, gn_weight, gn_bias;
  std::optional<Tensor> keep, lengths;
  std::vector<Tensor> weights, biases;
  cuda::Dtype dtype;
  cuda::StemShape shape{};
  cuda::StemInputs args{};

  StemInputs(const char* op, const Tensor& signal_, const std::optional<Tensor>& keep_,
             const std::vector<Tensor>& weights_, const Tensor& gn_weight_, const Tensor& gn_bias_,
             const std::vector<Tensor>& biases_, double eps, const std::optional<Tensor>& lengths_, bool tf32,
             const std::optional<Tensor>& eps_tensor)
      : signal(dense(signal_)),
        gn_weight(dense(gn_weight_)),
        gn_bias(dense(gn_bias_)),
        keep(dense(keep_)),
        lengths(dense(lengths_)) {
    for (const Tensor& w : weights_) weights.push_back(dense(w));
    for (const Tensor& b : biases_) biases.push_back(dense(b));
    check_stem(signal, keep, weights, gn_weight, gn_bias, biases, lengths);
    dtype = cuda_dtype(weights[0], op, tf32);
    check_device(op, signal, keep);
    check_device(op, signal, lengths);
    for (const Tensor* t : {&gn_weight, &gn_bias}) check_device(op, signal, *t);
    for (const Tensor& t : weights) check_device(op, signal, t);
    for (const Tensor& t : biases) check_device(op, signal, t);
    check_limits(op);
    shape =
        cuda::stem_shape(signal.size(0), signal.size(1), signal.size(2), weights[0].size(0), weights.size());
    args.signal = signal.const_data_ptr();
    args.signal_is_int16 = signal.scalar_type() == ScalarType::Short;
    args.keep = data_or_null<bool>(keep);
    args.lengths = data_or_null<int64_t>(lengths);
    args.gn_weight = gn_weight.const_data_ptr();
    args.gn_bias = gn_bias.const_data_ptr();
    args.eps = static_cast<float>(number_of(op, "eps", eps, eps_tensor));
    for (size_t i = 0; i < weights.size(); ++i) args.weights[i] = weights[i].const_data_ptr();
    for (size_t i = 0; i < biases.size(); ++i) args.biases[i] = biases[i].const_data_ptr();
  }

  void check_limits(const char* op) const {
    const int64_t layers = weights.size(), leads = signal.size(1);
    STD_TORCH_CHECK(layers >= 2 && leads <= cuda::kStemMaxLeads, op, ": takes at least 2 layers and at most ",
                    cuda::kStemMaxLeads, " leads on CUDA, got ", layers, " and ", leads);
    const int64_t limit = int64_t{1} << 31, channels = weights[0].size(0);
    STD_TORCH_CHECK(
        signal.size(2) < limit && signal.size(0) < limit && signal.size(0) * (signal.size(2) / 4) < limit, op,
        ": takes fewer than 2^33 samples (B * T) on CUDA, got ", signal.size(0), " * ", signal.size(2));
    STD_TORCH_CHECK(channels <= 1 << 16, op, ": takes at most 2^16 channels on CUDA, got ", channels);
  }

  bool empty() const { return shape.batch == 0 || shape.tokens == 0; }
};

std::tuple<Tensor, Tensor> patch_embed_cuda(const Tensor& signal, const std::optional<Tensor>& keep,
                                            const std::vector<Tensor>& weights, const Tensor& gn_weight,
                                            const Tensor& gn_bias, const std::vector<Tensor>& biases,
                                            double eps, const std::optional<Tensor>& lengths,
                                            bool for_backward, bool tf32,
                                            const std::optional<Tensor>& eps_tensor) {
  const char* op = "patch_embed";
  const torch::stable::accelerator::DeviceGuard guard(signal.get_device_index());
  const StemInputs in(op, signal, keep, weights, gn_weight, gn_bias, biases, eps, lengths, tf32, eps_tensor);
  const cuda::StemShape& s = in.shape;
  const Tensor& like = in.weights[0];
  const int64_t elements = cuda::stem_state_elements(s, in.dtype, for_backward);
  Tensor tokens = torch::stable::new_empty(like, {s.batch, s.tokens, s.channels});
  Tensor state = torch::stable::new_empty(like, {in.empty() && !for_backward ? 0 : elements});
  if (!in.empty())
    check_launch(op, cuda::patch_embed(s, in.args, in.dtype, state.mutable_data_ptr(), for_backward,
                                       tokens.mutable_data_ptr(), current_stream(signal)));
  return {tokens, for_backward ? state : torch::stable::new_empty(like, {0})};
}

std::vector<Tensor> patch_embed_backward_cuda(const Tensor& grad_tokens, const Tensor& signal,
                                              const std::optional<Tensor>& keep,
                                              const std::vector<Tensor>& weights, const Tensor& gn_weight,
                                              const Tensor& gn_bias, const std::vector<Tensor>& biases,
                                              double eps, const std::optional<Tensor>& lengths,
                                              const Tensor& saved, bool for_signal, bool tf32,
                                              const std::optional<Tensor>& eps_tensor) {
  const char* op = "patch_embed_backward";
  const torch::stable::accelerator::DeviceGuard guard(signal.get_device_index());
  const StemInputs in(op, signal, keep, weights, gn_weight, gn_bias, biases, eps, lengths, tf32, eps_tensor);
  const cuda::StemShape& s = in.shape;
  const Tensor grad = dense(grad_tokens), state = dense(saved);
  const ScalarType dtype = in.weights[0].scalar_type();
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == s.batch && grad.size(1) == s.tokens &&
                      grad.size(2) == s.channels && grad.scalar_type() == dtype,
                  op, ": grad_tokens must be [B, N, C] of the weights' dtype");
  STD_TORCH_CHECK(
      state.numel() == cuda::stem_state_elements(s, in.dtype, true) && state.scalar_type() == dtype, op,
      ": saved does not fit");
  STD_TORCH_CHECK(!(for_signal && in.args.signal_is_int16), op, ": an int16 signal has no gradient");
  for (const Tensor* t : {&grad, &state}) check_device(op, in.signal, *t);

  // Gradients in the order: signal (if asked for), weights, gn_weight, gn_bias, biases.
  std::vector<Tensor> grads;
  cuda::StemGradients out{};
  const auto add = [&](const Tensor& like) {
    grads.push_back(in.empty() ? torch::stable::new_zeros(like, like.sizes())
                               : torch::stable::empty_like(like));
    return grads.back().mutable_data_ptr();
  };
  if (for_signal) out.signal = add(in.signal);
  for (size_t i = 0; i < in.weights.size(); ++i) out.weights[i] = add(in.weights[i]);
  out.gn_weight = add(in.gn_weight);
  out.gn_bias = add(in.gn_bias);
  for (size_t i = 0; i < in.biases.size(); ++i) out.biases[i] = add(in.biases[i]);
  if (in.empty()) return grads;

  out.tokens = grad.const_data_ptr();
  const int64_t bytes = cuda::stem_workspace_bytes(s, in.dtype, for_signal, !in.biases.empty());
  Tensor workspace = torch::stable::new_empty(in.signal, {bytes}, ScalarType::Byte);
  check_launch(op, cuda::patch_embed_backward(s, in.args, in.dtype, state.const_data_ptr(),
                                              workspace.mutable_data_ptr(), out, current_stream(signal)));
  return grads;
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CUDA, m) {
  m.impl("patch_embed", TORCH_BOX(&ecgfast::patch_embed_cuda));
  m.impl("patch_embed_backward", TORCH_BOX(&ecgfast::patch_embed_backward_cuda));
}
