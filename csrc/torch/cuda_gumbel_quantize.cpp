// gumbel_quantize on CUDA tensors, with a hard choice: checks, allocation and launches. The noise is drawn
// again in the backward pass, so nothing is kept for it.
#include "../cuda/gumbel_quantize.h"
#include "check_gumbel_quantize.h"
#include "cuda.h"

namespace ecgfast {
namespace {

constexpr const char* kOp = "gumbel_quantize";

// Contiguous, at an address that the kernels' vectors can start at.
Tensor aligned(const Tensor& t) {
  const Tensor c = dense(t);
  return reinterpret_cast<uint64_t>(c.const_data_ptr()) % 16 ? torch::stable::clone(c) : c;
}

std::optional<Tensor> aligned(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(aligned(*t)) : std::nullopt;
}

// The kernels take entries of the logits' dtype or float32; others become float32 on their way.
Tensor taken(const Tensor& t, const Tensor& logits) {
  const bool as_is = t.scalar_type() == ScalarType::Float || t.scalar_type() == logits.scalar_type();
  return as_is ? dense(t) : dense(torch::stable::to(t, ScalarType::Float));
}

// The inputs as the kernels want them, and alive while they are launched.
struct GumbelInputs {
  Tensor logits, codebook, temperature;
  std::optional<Tensor> noise, rng, ids;
  cuda::GumbelQuantize args{};

  GumbelInputs(const Tensor& logits_, const Tensor& codebook_, const Tensor& temperature_,
               const std::optional<Tensor>& noise_, const std::optional<Tensor>& rng_,
               const std::optional<Tensor>& ids_, bool hard)
      : logits(aligned(logits_)),
        codebook(dense(codebook_)),
        temperature(temperature_),
        noise(aligned(noise_)),
        rng(dense(rng_)),
        ids(dense(ids_)) {
    check_gumbel(logits, codebook, temperature, noise);
    for (const Tensor* t : {&codebook, &temperature}) check_device(kOp, logits, *t);
    for (const std::optional<Tensor>* t : {&noise, &rng, &ids}) check_device(kOp, logits, *t);
    STD_TORCH_CHECK(hard, kOp, ": has no kernel for the soft choice on CUDA");
    STD_TORCH_CHECK(temperature.scalar_type() == ScalarType::Float, kOp, ": temperature must be float32");
    STD_TORCH_CHECK(
        !rng.has_value() || (rng->dim() == 1 && rng->size(0) == 2 && rng->scalar_type() == ScalarType::Long),
        kOp, ": rng must be int64 [2]");
    const int64_t rows = logits.size(0), groups = codebook.size(0), entries = codebook.size(1);
    STD_TORCH_CHECK(entries % 4 == 0 && entries <= cuda::kMaxGumbelEntries, kOp,
                    ": takes a multiple of 4 of at most ", cuda::kMaxGumbelEntries,
                    " entries per group on CUDA, got ", entries);
    STD_TORCH_CHECK(rows < (int64_t{1} << 31) && groups < 65536 && codebook.size(2) <= 1 << 24, kOp,
                    ": takes fewer than 2^31 rows and 2^16 groups and at most 2^24 columns on CUDA");
    cuda_dtype(codebook, kOp);
    args.logits = logits.const_data_ptr();
    args.codebook = codebook.const_data_ptr();
    args.temperature = temperature.const_data_ptr<float>();
    args.noise = data_or_null<float>(noise);
    args.rng = data_or_null<int64_t>(rng);
    args.sample_ids = data_or_null<int64_t>(ids);
    args.rows = static_cast<uint32_t>(rows);
    args.rows_per_sample = static_cast<uint32_t>(rng.has_value() ? rows_per_sample(logits, ids) : 1);
    args.groups = static_cast<int>(groups);
    args.entries = static_cast<int>(entries);
    args.width = static_cast<int>(codebook.size(2));
    args.logits_type = cuda_dtype(logits, kOp);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> gumbel_quantize_cuda(const Tensor& logits, const Tensor& codebook,
                                                                const Tensor& temperature,
                                                                const std::optional<Tensor>& noise,
                                                                const std::optional<Tensor>& rng,
                                                                const std::optional<Tensor>& sample_ids,
                                                                bool hard, bool keep, bool /*tf32*/) {
  STD_TORCH_CHECK(!keep, kOp, ": keeps nothing for the backward pass on CUDA");
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const GumbelInputs in(logits, codebook, temperature, noise, rng, sample_ids, hard);
  const int64_t rows = in.args.rows, groups = in.args.groups, entries = in.args.entries;
  const auto floats = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(in.logits, shape, ScalarType::Float);
  };
  Tensor quantized = torch::stable::new_empty(in.codebook, {rows, groups * in.args.width});
  Tensor codes = torch::stable::new_empty(in.logits, {rows, groups}, ScalarType::Int);
  Tensor mean_probs = floats({groups, entries}), partial = floats({cuda::gumbel_partial_size(in.args)});
  const cuda::GumbelResult out{quantized.mutable_data_ptr(), codes.mutable_data_ptr<int32_t>(),
                               mean_probs.mutable_data_ptr<float>(), partial.mutable_data_ptr<float>()};
  const int bytes = in.codebook.scalar_type() == ScalarType::Float ? 4 : 2;
  check_launch(kOp, cuda::gumbel_quantize(in.args, bytes, out, current_stream(logits)));
  return {quantized, codes, mean_probs, floats({0, groups * entries})};
}

std::tuple<Tensor, Tensor> gumbel_quantize_backward_cuda(
    const std::optional<Tensor>& grad_quantized, const std::optional<Tensor>& grad_mean_probs,
    const Tensor& logits, const Tensor& codebook, const Tensor& temperature, const Tensor& codes,
    const std::optional<Tensor>& noise, const std::optional<Tensor>& rng,
    const std::optional<Tensor>& sample_ids, const Tensor&, bool hard, bool tf32) {
  const char* op = "gumbel_quantize_backward";
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  check_gumbel_gradients(grad_quantized, grad_mean_probs, logits, codebook, codes);
  const GumbelInputs in(logits, taken(codebook, logits), temperature, noise, rng, sample_ids, hard);
  const std::optional<Tensor> grad =
      grad_quantized.has_value() ? std::optional<Tensor>(taken(*grad_quantized, logits)) : std::nullopt;
  const std::optional<Tensor> grad_probs = aligned(grad_mean_probs);
  const Tensor chosen = dense(codes);
  check_device(op, logits, grad);
  check_device(op, logits, grad_probs);
  check_device(op, logits, chosen);
  Tensor grad_logits = torch::stable::empty_like(in.logits);
  Tensor grad_codebook = torch::stable::empty_like(in.codebook);
  const cuda::GumbelGradients gradients{data_or_null<void>(grad), data_or_null<float>(grad_probs),
                                        chosen.const_data_ptr<int32_t>(), grad_logits.mutable_data_ptr(),
                                        grad_codebook.mutable_data_ptr()};
  // What became float32 on its way is exact in TF32.
  const bool same = in.codebook.scalar_type() == codebook.scalar_type();
  check_launch(op, cuda::gumbel_quantize_backward(in.args, cuda_dtype(in.codebook, op, tf32 || !same),
                                                  gradients, current_stream(logits)));
  return {grad_logits, same ? grad_codebook : torch::stable::to(grad_codebook, codebook.scalar_type())};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CUDA, m) {
  m.impl("gumbel_quantize", TORCH_BOX(&ecgfast::gumbel_quantize_cuda));
  m.impl("gumbel_quantize_backward", TORCH_BOX(&ecgfast::gumbel_quantize_backward_cuda));
}
