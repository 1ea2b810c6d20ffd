// local_contrastive on CUDA tensors: checks, allocation and launches.
#include "../cuda/local_contrastive.h"
#include "cuda.h"

namespace ecgfast {
namespace {

// The inputs of local_contrastive, made contiguous and kept alive while the launch reads their pointers.
struct LocalInputs {
  Tensor predictions, targets;
  std::optional<Tensor> codes, index, rng, ids;
  cuda::Dtype dtype;
  cuda::LocalContrastive args{};

  LocalInputs(const char* op, const Tensor& predictions_, const Tensor& targets_,
              const std::optional<Tensor>& codes_, const std::optional<Tensor>& index_,
              const std::optional<Tensor>& rng_, const std::optional<Tensor>& ids_, int64_t n_negatives,
              double number, const std::optional<Tensor>& temperature, bool use_all, bool tf32)
      : predictions(dense(predictions_)),
        targets(dense(targets_)),
        codes(dense(codes_)),
        index(use_all ? std::nullopt : dense(index_)),
        rng(dense(rng_)),
        ids(dense(ids_)),
        dtype(cuda_dtype(predictions, op, tf32)) {
    check_local(predictions, targets, codes, index, rng, ids, n_negatives, use_all);
    check_device(op, predictions, targets);
    for (const std::optional<Tensor>* t : {&codes, &index, &rng, &ids}) check_device(op, predictions, *t);
    const int64_t tokens = predictions.size(1), width = predictions.size(2);
    const int64_t groups = codes.has_value() ? codes->size(2) : 0;
    const int64_t draws = use_all ? 0 : index.has_value() ? index->size(2) : n_negatives;
    const int64_t limit = int64_t{1} << 31;
    STD_TORCH_CHECK(width <= 1 << 24, op, ": takes at most 2^24 columns (D) on CUDA, got ", width);
    STD_TORCH_CHECK(tokens < limit && draws < limit && tokens * draws < limit && groups < limit, op,
                    ": takes fewer than 2^31 draws (M * K) in a segment on CUDA, got ", tokens, " * ", draws);
    args.predictions = predictions.const_data_ptr();
    args.targets = targets.const_data_ptr();
    args.codes = data_or_null<int32_t>(codes);
    args.negative_index = data_or_null<void>(index);
    args.index_is_64 = index.has_value() && index->scalar_type() == ScalarType::Long;
    args.use_all = use_all;
    args.rng = data_or_null<int64_t>(rng);
    args.sample_ids = data_or_null<int64_t>(ids);
    args.batch = predictions.size(0);
    args.tokens = static_cast<int>(tokens);
    args.width = static_cast<int>(width);
    args.groups = static_cast<int>(groups);
    args.draws = static_cast<int>(draws);
    args.temperature = temperature_of(op, predictions, number, temperature);
    args.inv_temperature = static_cast<float>(1.0 / number);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> local_contrastive_cuda(
    const Tensor& predictions, const Tensor& targets, const std::optional<Tensor>& codes,
    const std::optional<Tensor>& negative_index, const std::optional<Tensor>& rng,
    const std::optional<Tensor>& sample_ids, int64_t n_negatives, double temperature, bool use_all,
    bool /*save_weights*/, bool tf32, const std::optional<Tensor>& temperature_tensor) {
  const char* op = "local_contrastive";
  const torch::stable::accelerator::DeviceGuard guard(predictions.get_device_index());
  const LocalInputs in(op, predictions, targets, codes, negative_index, rng, sample_ids, n_negatives,
                       temperature, temperature_tensor, use_all, tf32);
  const int64_t b = in.args.batch, m = in.args.tokens;
  Tensor loss = torch::stable::new_empty(predictions, {b, m}, ScalarType::Float);
  Tensor correct = torch::stable::new_empty(predictions, {b, m}, ScalarType::Bool);
  Tensor lse = torch::stable::new_empty(predictions, {b, m}, ScalarType::Float);
  Tensor inv_norms = torch::stable::new_empty(predictions, {2, b, m}, ScalarType::Float);
  const cuda::LocalContrastiveResult out{loss.mutable_data_ptr<float>(),
                                         static_cast<bool*>(correct.mutable_data_ptr()),
                                         lse.mutable_data_ptr<float>(), inv_norms.mutable_data_ptr<float>()};
  check_launch(op, cuda::local_contrastive(in.args, in.dtype, out, current_stream(predictions)));
  // The backward kernels make the weights anew.
  return {loss, correct, lse, inv_norms, torch::stable::new_empty(loss, {b, 0, 0})};
}

std::tuple<Tensor, Tensor, Tensor> local_contrastive_backward_cuda(
    const Tensor& grad_loss, const Tensor& predictions, const Tensor& targets, const Tensor& lse,
    const Tensor& inv_norms, const Tensor& /*weights*/, const std::optional<Tensor>& codes,
    const std::optional<Tensor>& negative_index, const std::optional<Tensor>& rng,
    const std::optional<Tensor>& sample_ids, int64_t n_negatives, double temperature, bool use_all, bool tf32,
    const std::optional<Tensor>& temperature_tensor) {
  const char* op = "local_contrastive_backward";
  const torch::stable::accelerator::DeviceGuard guard(predictions.get_device_index());
  const LocalInputs in(op, predictions, targets, codes, negative_index, rng, sample_ids, n_negatives,
                       temperature, temperature_tensor, use_all, tf32);
  const int64_t b = in.args.batch, m = in.args.tokens;
  for (const Tensor* t : {&grad_loss, &lse})
    STD_TORCH_CHECK(
        t->dim() == 2 && t->size(0) == b && t->size(1) == m && t->scalar_type() == ScalarType::Float, op,
        ": grad_loss and lse must be float32 [B, M]");
  STD_TORCH_CHECK(inv_norms.numel() == 2 * b * m && inv_norms.scalar_type() == ScalarType::Float, op,
                  ": inv_norms must be float32 [2, B, M]");
  for (const Tensor* t : {&grad_loss, &lse, &inv_norms}) check_device(op, predictions, *t);
  const Tensor grad = dense(grad_loss), saved_lse = dense(lse), saved_norms = dense(inv_norms);
  Tensor grad_predictions = torch::stable::empty_like(in.predictions);
  Tensor grad_targets = torch::stable::empty_like(in.targets);
  const cuda::LocalContrastiveSaved saved{grad.const_data_ptr<float>(), saved_lse.const_data_ptr<float>(),
                                          saved_norms.const_data_ptr<float>()};
  const bool wanted = temperature_tensor.has_value();
  Tensor moments = torch::stable::new_empty(lse, {wanted ? b : 0, wanted ? m : 0});
  const cuda::LocalContrastiveGradients out{grad_predictions.mutable_data_ptr(),
                                            grad_targets.mutable_data_ptr(),
                                            wanted ? moments.mutable_data_ptr<float>() : nullptr};
  check_launch(op,
               cuda::local_contrastive_backward(in.args, in.dtype, saved, out, current_stream(predictions)));
  return {grad_predictions, grad_targets, moments};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CUDA, m) {
  m.impl("local_contrastive", TORCH_BOX(&ecgfast::local_contrastive_cuda));
  m.impl("local_contrastive_backward", TORCH_BOX(&ecgfast::local_contrastive_backward_cuda));
}
