// patch_embed on the CPU: checks, allocation, and the split of the segments over threads.
#include <algorithm>

#include "check_patch_embed.h"
#include "cpu.h"

namespace ecgfast {
namespace {

// The inputs, made contiguous and kept alive while the kernel's raw pointers are in use.
struct StemInputs {
  Tensor signal, gn_weight, gn_bias;
  std::optional<Tensor> keep, lengths;
  std::vector<Tensor> weights, biases;
  std::vector<const void*> weight_data, bias_data;
  StemArgs args{};

  StemInputs(const Tensor& signal_, const std::optional<Tensor>& keep_, const std::vector<Tensor>& weights_,
             const Tensor& gn_weight_, const Tensor& gn_bias_, const std::vector<Tensor>& biases_, double eps,
             const std::optional<Tensor>& lengths_, const std::optional<Tensor>& eps_tensor)
      : signal(dense(signal_)),
        gn_weight(dense(gn_weight_)),
        gn_bias(dense(gn_bias_)),
        keep(dense(keep_)),
        lengths(dense(lengths_)) {
    for (const Tensor& w : weights_) weights.push_back(dense(w));
    for (const Tensor& b : biases_) biases.push_back(dense(b));
    check_stem(signal, keep, weights, gn_weight, gn_bias, biases, lengths);
    args.dtype = dtype_of(weights[0], "patch_embed");
    args.signal_is_int16 = signal.scalar_type() == ScalarType::Short;
    args.has_bias = !biases.empty();
    args.B = signal.size(0);
    args.L = signal.size(1);
    args.T = signal.size(2);
    args.C = weights[0].size(0);
    args.n_layers = static_cast<int64_t>(weights.size());
    args.N = args.T >> args.n_layers;
    args.eps = number_of("patch_embed", "eps", eps, eps_tensor);
    args.signal = signal.const_data_ptr();
    args.keep = data_or_null<bool>(keep);
    args.lengths = data_or_null<int64_t>(lengths);
    args.gn_weight = gn_weight.const_data_ptr();
    args.gn_bias = gn_bias.const_data_ptr();
    for (const Tensor& w : weights) weight_data.push_back(w.const_data_ptr());
    for (const Tensor& b : biases) bias_data.push_back(b.const_data_ptr());
    args.weights = weight_data.data();
    args.biases = bias_data.data();
  }
};

Tensor packed_weights(const Kernels& k, StemInputs& in, const StemSizes& sizes, bool backward) {
  Tensor packed = torch::stable::new_empty(in.signal, {sizes.packed_bytes + 64}, ScalarType::Byte);
  auto at = reinterpret_cast<uintptr_t>(packed.mutable_data_ptr());
  void* aligned = reinterpret_cast<void*>((at + 63) / 64 * 64);
  torch::stable::parallel_for(1, in.args.n_layers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t layer = begin; layer < end; ++layer) k.patch_embed_pack(in.args, backward, layer, aligned);
  });
  in.args.packed = aligned;
  return packed;
}

std::tuple<Tensor, Tensor> patch_embed_cpu(const Tensor& signal, const std::optional<Tensor>& keep,
                                           const std::vector<Tensor>& weights, const Tensor& gn_weight,
                                           const Tensor& gn_bias, const std::vector<Tensor>& biases,
                                           double eps, const std::optional<Tensor>& lengths,
                                           bool for_backward, bool /*tf32*/,
                                           const std::optional<Tensor>& eps_tensor) {
  StemInputs in(signal, keep, weights, gn_weight, gn_bias, biases, eps, lengths, eps_tensor);
  StemArgs& a = in.args;
  const Kernels& k = kernels();
  const StemSizes sizes = k.patch_embed_sizes(a);
  Tensor tokens = torch::stable::new_empty(in.weights[0], {a.B, a.N, a.C});
  Tensor saved =
      torch::stable::new_empty(in.weights[0], {for_backward ? a.B : 0, sizes.saved_rows, sizes.channels});
  if (a.B == 0 || a.N == 0) return {tokens, saved};
  const Tensor packed = packed_weights(k, in, sizes, false);
  a.tokens = tokens.mutable_data_ptr();
  a.saved = for_backward ? saved.mutable_data_ptr() : nullptr;
  torch::stable::parallel_for(0, a.B, 1, [&](int64_t begin, int64_t end) {
    k.patch_embed(a, begin, end, Scratch<>(sizes.forward_scratch).get());
  });
  return {tokens, saved};
}

// Segments whose gradients are summed by one thread: a number that depends on the batch alone, so that the
// sums are the same for any number of threads.
int64_t chunks_of(int64_t batch) { return std::min<int64_t>(batch, std::max<int64_t>(8, batch / 8)); }

std::vector<Tensor> patch_embed_backward_cpu(const Tensor& grad_tokens, const Tensor& signal,
                                             const std::optional<Tensor>& keep,
                                             const std::vector<Tensor>& weights, const Tensor& gn_weight,
                                             const Tensor& gn_bias, const std::vector<Tensor>& biases,
                                             double eps, const std::optional<Tensor>& lengths,
                                             const Tensor& saved, bool for_signal, bool /*tf32*/,
                                             const std::optional<Tensor>& eps_tensor) {
  StemInputs in(signal, keep, weights, gn_weight, gn_bias, biases, eps, lengths, eps_tensor);
  StemArgs& a = in.args;
  const Kernels& k = kernels();
  StemSizes sizes = k.patch_embed_sizes(a);
  const Tensor grad = dense(grad_tokens), kept = dense(saved);
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(0) == a.B && grad.size(1) == a.N && grad.size(2) == a.C &&
                      grad.scalar_type() == in.weights[0].scalar_type(),
                  "patch_embed_backward: grad_tokens must be [B, N, C] of the weights' dtype");
  STD_TORCH_CHECK(
      kept.numel() == a.B * sizes.saved_rows * sizes.channels &&
          kept.scalar_type() == in.weights[0].scalar_type(),
      "patch_embed_backward: saved does not fit; were the kernels' ISA changed between the passes?");
  STD_TORCH_CHECK(!(for_signal && a.signal_is_int16),
                  "patch_embed_backward: an int16 signal has no gradient");

  // Gradients in the order: signal (if asked for), weights, gn_weight, gn_bias, biases.
  std::vector<Tensor> grads;
  const bool empty = a.B == 0 || a.N == 0;
  const auto add = [&](const Tensor& like) {
    grads.push_back(empty ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::empty_like(like));
    return grads.back().mutable_data_ptr();
  };
  if (for_signal) a.grad_signal = add(in.signal);
  std::vector<void*> weight_grads, bias_grads;
  for (const Tensor& w : in.weights) weight_grads.push_back(add(w));
  a.grad_gn_weight = add(in.gn_weight);
  a.grad_gn_bias = add(in.gn_bias);
  for (const Tensor& b : in.biases) bias_grads.push_back(add(b));
  if (empty) return grads;

  a.grad_weights = weight_grads.data();
  a.grad_biases = bias_grads.data();
  a.grad_tokens = grad.const_data_ptr();
  a.saved = const_cast<void*>(kept.const_data_ptr());
  const Tensor packed = packed_weights(k, in, sizes, true);
  sizes = k.patch_embed_sizes(a);
  const int64_t n_chunks = chunks_of(a.B);
  Tensor partials = torch::stable::new_empty(in.signal, {n_chunks * sizes.partials_bytes}, ScalarType::Byte);
  char* sums = static_cast<char*>(partials.mutable_data_ptr());
  torch::stable::parallel_for(0, n_chunks, 1, [&](int64_t first, int64_t last) {
    const Scratch scratch(sizes.backward_scratch);
    for (int64_t c = first; c < last; ++c)
      k.patch_embed_backward(a, a.B * c / n_chunks, a.B * (c + 1) / n_chunks, sums + c * sizes.partials_bytes,
                             scratch.get());
  });
  torch::stable::parallel_for(0, a.C, 16, [&](int64_t first, int64_t last) {
    k.patch_embed_finish(a, sums, n_chunks, first, last, Scratch<>(sizes.forward_scratch).get());
  });
  return grads;
}

// Channels are padded to a multiple of this in what the forward pass saves: a shape that depends on the ISA.
int64_t patch_embed_columns(bool is_double) {
  StemArgs args{};
  args.dtype = is_double ? DType::f64 : DType::f32;
  args.C = args.L = args.n_layers = args.N = 1;
  args.T = 2;
  return kernels().patch_embed_sizes(args).channels;
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("patch_embed", TORCH_BOX(&ecgfast::patch_embed_cpu));
  m.impl("patch_embed_backward", TORCH_BOX(&ecgfast::patch_embed_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CompositeExplicitAutograd, m) {
  m.impl("patch_embed_columns", TORCH_BOX(&ecgfast::patch_embed_columns));
}
