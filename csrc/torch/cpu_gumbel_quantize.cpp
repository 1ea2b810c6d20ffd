// gumbel_quantize on the CPU: checks, allocation, and the split of the rows over threads.
#include <algorithm>

#include "check_gumbel_quantize.h"
#include "cpu.h"

namespace ecgfast {
namespace {

constexpr const char* kOp = "gumbel_quantize";

// The inputs made contiguous, and alive while the kernel's raw pointers are in use.
struct Inputs {
  Tensor logits, codebook;
  std::optional<Tensor> noise, ids;
  GumbelArgs args{};

  Inputs(const Tensor& logits_, const Tensor& codebook_, const Tensor& temperature,
         const std::optional<Tensor>& noise_, const std::optional<Tensor>& rng,
         const std::optional<Tensor>& ids_, bool hard)
      : logits(dense(logits_)), codebook(dense(codebook_)), noise(dense(noise_)), ids(dense(ids_)) {
    check_gumbel(logits, codebook, temperature, noise);
    GumbelArgs& a = args;
    a.G = codebook.size(0);
    a.V = codebook.size(1);
    a.W = codebook.size(2);
    a.R = logits.size(0);
    a.logits_type = dtype_of(logits, kOp);
    a.codebook_type = dtype_of(codebook, kOp);
    a.hard = hard;
    a.inv_temperature = 1.0 / scalar(temperature);
    a.logits = logits.const_data_ptr();
    a.codebook = codebook.const_data_ptr();
    a.noise = data_or_null<void>(noise);
    if (rng.has_value()) set_draw(*rng);
  }

  void set_draw(const Tensor& rng) {
    GumbelArgs& a = args;
    a.draw = true;
    a.rows_per_sample = rows_per_sample(logits, ids);
    a.sample_ids = data_or_null<int64_t>(ids);
    const Rng state(kOp, rng);
    a.seed = state.seed;
    a.step = state.step;
  }

  Tensor wide(std::vector<int64_t> shape) const {
    return torch::stable::new_empty(logits, shape, statistics_type(logits));
  }
};

// What all threads write and read.
struct Shared {
  static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  Scratch<1> memory;

  Shared(const GumbelSizes& sizes, GumbelArgs& a)
      : memory(aligned(sizes.panels) + sizes.partial * (a.logits_type == DType::f64 ? 8 : 4)) {
    a.panels = memory.get();
    a.partial = static_cast<char*>(memory.get()) + aligned(sizes.panels);
  }
};

void run(const Kernels& k, const GumbelArgs& args, const GumbelSizes& sizes, GumbelPass pass, int64_t n) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    k.gumbel_quantize(args, pass, begin, end, Scratch<>(sizes.scratch).get());
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gumbel_quantize_cpu(const Tensor& logits, const Tensor& codebook,
                                                               const Tensor& temperature,
                                                               const std::optional<Tensor>& noise,
                                                               const std::optional<Tensor>& rng,
                                                               const std::optional<Tensor>& sample_ids,
                                                               bool hard, bool keep, bool /*tf32*/) {
  const Kernels& k = kernels();
  Inputs in(logits, codebook, temperature, noise, rng, sample_ids, hard);
  GumbelArgs& a = in.args;
  const GumbelSizes sizes = k.gumbel_sizes(a, false);
  a.chunk_rows = sizes.chunk_rows;
  Tensor quantized = torch::stable::new_empty(in.codebook, {a.R, a.G * a.W});
  Tensor codes = torch::stable::new_empty(in.logits, {a.R, a.G}, ScalarType::Int);
  Tensor mean_probs = in.wide({a.G, a.V}), choice = in.wide({keep ? a.R : 0, a.G * a.V});
  const Shared shared(sizes, a);
  a.quantized = quantized.mutable_data_ptr();
  a.codes = codes.mutable_data_ptr<int32_t>();
  a.mean_probs = mean_probs.mutable_data_ptr();
  if (keep) a.choice = choice.mutable_data_ptr();
  if (sizes.panels) run(k, a, sizes, GumbelPass::pack, a.G);
  run(k, a, sizes, GumbelPass::forward, sizes.chunks);
  // So little that handing it to a thread costs more.
  k.gumbel_quantize(a, GumbelPass::mean_probs, 0, a.G, Scratch<>(sizes.scratch).get());
  return {quantized, codes, mean_probs, choice};
}

std::tuple<Tensor, Tensor> gumbel_quantize_backward_cpu(
    const std::optional<Tensor>& grad_quantized, const std::optional<Tensor>& grad_mean_probs,
    const Tensor& logits, const Tensor& codebook, const Tensor& temperature, const Tensor& codes,
    const std::optional<Tensor>& noise, const std::optional<Tensor>& rng,
    const std::optional<Tensor>& sample_ids, const Tensor& choice, bool hard, bool /*tf32*/) {
  const Kernels& k = kernels();
  Inputs in(logits, codebook, temperature, noise, rng, sample_ids, hard);
  GumbelArgs& a = in.args;
  const std::optional<Tensor> grad = dense(grad_quantized), grad_probs = dense(grad_mean_probs);
  const Tensor chosen = dense(codes), kept = dense(choice);
  check_gumbel_gradients(grad, grad_probs, in.logits, in.codebook, chosen);
  STD_TORCH_CHECK(
      kept.numel() == 0 || (kept.numel() == a.R * a.G * a.V && kept.scalar_type() == statistics_type(logits)),
      "gumbel_quantize_backward: choice must be as the forward pass gives it");
  const GumbelSizes sizes = k.gumbel_sizes(a, true);
  a.chunk_rows = sizes.chunk_rows;
  Tensor grad_logits = torch::stable::empty_like(in.logits);
  Tensor grad_codebook = torch::stable::empty_like(in.codebook);
  const Shared shared(sizes, a);
  a.grad_quantized = data_or_null<void>(grad);
  a.grad_mean_probs = data_or_null<void>(grad_probs);
  a.codes = const_cast<int32_t*>(chosen.const_data_ptr<int32_t>());
  if (kept.numel()) a.choice = const_cast<void*>(kept.const_data_ptr());
  a.grad_logits = grad_logits.mutable_data_ptr();
  a.grad_codebook = grad_codebook.mutable_data_ptr();
  run(k, a, sizes, GumbelPass::prepare_backward, sizes.prepare);
  run(k, a, sizes, GumbelPass::backward, sizes.chunks);
  run(k, a, sizes, GumbelPass::finish_backward, sizes.finish);
  return {grad_logits, grad_codebook};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("gumbel_quantize", TORCH_BOX(&ecgfast::gumbel_quantize_cpu));
  m.impl("gumbel_quantize_backward", TORCH_BOX(&ecgfast::gumbel_quantize_backward_cpu));
}
