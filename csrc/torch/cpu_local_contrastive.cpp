// local_contrastive on the CPU: checks, allocation, and the split of the segments over threads.
#include "cpu.h"

namespace ecgfast {
namespace {

// The inputs of local_contrastive, made contiguous and kept alive while the kernel's raw pointers are in use.
struct LocalInputs {
  Tensor predictions, targets;
  std::optional<Tensor> codes, index, ids;
  LocalArgs args{};

  LocalInputs(const Tensor& predictions_, const Tensor& targets_, const std::optional<Tensor>& codes_,
              const std::optional<Tensor>& index_, const std::optional<Tensor>& rng,
              const std::optional<Tensor>& ids_, int64_t n_negatives, double number,
              const std::optional<Tensor>& temperature, bool use_all)
      : predictions(dense(predictions_)),
        targets(dense(targets_)),
        codes(dense(codes_)),
        index(use_all ? std::nullopt : dense(index_)),
        ids(dense(ids_)) {
    check_local(predictions, targets, codes, index, rng, ids, n_negatives, use_all);
    const Rng state("local_contrastive", rng);
    args.dtype = dtype_of(predictions, "local_contrastive");
    args.B = predictions.size(0);
    args.M = predictions.size(1);
    args.D = predictions.size(2);
    args.G = codes.has_value() ? codes->size(2) : 0;
    args.K = use_all ? 0 : index.has_value() ? index->size(2) : n_negatives;
    args.inv_temperature =
        1.0 / temperature_of("local_contrastive", number, temperature, statistics_type(predictions));
    args.use_all = use_all;
    args.index_is_64 = index.has_value() && index->scalar_type() == ScalarType::Long;
    args.predictions = predictions.const_data_ptr();
    args.targets = targets.const_data_ptr();
    args.codes = data_or_null<int32_t>(codes);
    args.negative_index = data_or_null<void>(index);
    args.seed = state.seed;
    args.step = state.step;
    args.sample_ids = data_or_null<int64_t>(ids);
    check_index();
  }

  void check_index() const {
    if (!index.has_value()) return;
    const int64_t n = args.B * args.M * args.K;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t j = args.index_is_64 ? static_cast<const int64_t*>(args.negative_index)[i]
                                         : static_cast<const int32_t*>(args.negative_index)[i];
      STD_TORCH_CHECK(j >= 0 && j < args.M, "local_contrastive: negative_index must hold tokens 0..",
                      args.M - 1, ", got ", j);
    }
  }
};

void for_segments(const LocalArgs& args, bool backward) {
  if (args.M == 0) return;
  const Kernels& k = kernels();
  const int64_t scratch = k.local_contrastive_scratch(args, backward);
  const auto kernel = backward ? k.local_contrastive_backward : k.local_contrastive;
  torch::stable::parallel_for(0, args.B, 1,
                              [&](int64_t b, int64_t e) { kernel(args, b, e, Scratch<>(scratch).get()); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> local_contrastive_cpu(
    const Tensor& predictions, const Tensor& targets, const std::optional<Tensor>& codes,
    const std::optional<Tensor>& negative_index, const std::optional<Tensor>& rng,
    const std::optional<Tensor>& sample_ids, int64_t n_negatives, double temperature, bool use_all,
    bool save_weights, bool /*tf32*/, const std::optional<Tensor>& temperature_tensor) {
  LocalInputs in(predictions, targets, codes, negative_index, rng, sample_ids, n_negatives, temperature,
                 temperature_tensor, use_all);
  LocalArgs& a = in.args;
  const ScalarType wide = statistics_type(predictions);
  Tensor loss = torch::stable::new_empty(predictions, {a.B, a.M}, wide);
  Tensor correct = torch::stable::new_empty(predictions, {a.B, a.M}, ScalarType::Bool);
  Tensor lse = torch::stable::new_empty(predictions, {a.B, a.M}, wide);
  Tensor inv_norms = torch::stable::new_empty(predictions, {2, a.B, a.M}, wide);
  const int64_t saved = save_weights ? a.M : 0;
  Tensor weights = torch::stable::new_empty(predictions, {a.B, saved, saved}, wide);
  a.weights = saved ? weights.mutable_data_ptr() : nullptr;
  a.loss = loss.mutable_data_ptr();
  a.correct = static_cast<bool*>(correct.mutable_data_ptr());
  a.lse = lse.mutable_data_ptr();
  a.inv_norms = inv_norms.mutable_data_ptr();
  for_segments(a, false);
  return {loss, correct, lse, inv_norms, weights};
}

std::tuple<Tensor, Tensor, Tensor> local_contrastive_backward_cpu(
    const Tensor& grad_loss, const Tensor& predictions, const Tensor& targets, const Tensor& lse,
    const Tensor& inv_norms, const Tensor& weights, const std::optional<Tensor>& codes,
    const std::optional<Tensor>& negative_index, const std::optional<Tensor>& rng,
    const std::optional<Tensor>& sample_ids, int64_t n_negatives, double temperature, bool use_all,
    bool /*tf32*/, const std::optional<Tensor>& temperature_tensor) {
  LocalInputs in(predictions, targets, codes, negative_index, rng, sample_ids, n_negatives, temperature,
                 temperature_tensor, use_all);
  LocalArgs& a = in.args;
  const ScalarType wide = statistics_type(predictions);
  for (const Tensor* t : {&grad_loss, &lse})
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == a.B && t->size(1) == a.M && t->scalar_type() == wide,
                    "local_contrastive_backward: grad_loss and lse must be [B, M] of the loss's dtype");
  STD_TORCH_CHECK(inv_norms.numel() == 2 * a.B * a.M && inv_norms.scalar_type() == wide,
                  "local_contrastive_backward: inv_norms must be [2, B, M] of the loss's dtype");
  STD_TORCH_CHECK(
      (weights.numel() == 0 || weights.numel() == a.B * a.M * a.M) && weights.scalar_type() == wide,
      "local_contrastive_backward: weights must be [B, M, M] of the loss's dtype, or empty");
  const Tensor grad = dense(grad_loss), saved_norms = dense(inv_norms), saved_weights = dense(weights);
  Tensor grad_predictions = torch::stable::empty_like(in.predictions);
  Tensor grad_targets = torch::stable::empty_like(in.targets);
  a.grad_loss = grad.const_data_ptr();
  a.inv_norms = const_cast<void*>(saved_norms.const_data_ptr());
  a.weights = weights.numel() ? const_cast<void*>(saved_weights.const_data_ptr()) : nullptr;
  a.grad_predictions = grad_predictions.mutable_data_ptr();
  a.grad_targets = grad_targets.mutable_data_ptr();
  const bool wanted = temperature_tensor.has_value();
  Tensor moments = torch::stable::new_empty(lse, {wanted ? a.B : 0, wanted ? a.M : 0});
  a.moments = wanted ? moments.mutable_data_ptr() : nullptr;
  for_segments(a, true);
  return {grad_predictions, grad_targets, moments};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("local_contrastive", TORCH_BOX(&ecgfast::local_contrastive_cpu));
  m.impl("local_contrastive_backward", TORCH_BOX(&ecgfast::local_contrastive_backward_cpu));
}
