// The ops' schemas, and the CPU side: checks, allocation, and the split of the work over threads.
#include <cstdlib>
#include <memory>
#include <string>

#include "../cpu/dispatch.h"
#include "../cpu/masks.h"
#include "common.h"

namespace ecgfast {
namespace {

// Scratch of the calling thread: kept from call to call, since fresh pages cost as much as the arithmetic.
// What passes kKept bytes is given back after use.
class Scratch {
 public:
  static constexpr int64_t kKept = int64_t{8} << 20;

  explicit Scratch(int64_t bytes) {
    if (bytes > kKept) {
      own_.reset(allocate(bytes));
      data_ = own_.get();
      return;
    }
    thread_local std::unique_ptr<void, decltype(&std::free)> kept(nullptr, &std::free);
    thread_local int64_t size = 0;
    if (bytes > size) {
      kept.reset(allocate(bytes));
      size = bytes;
    }
    data_ = kept.get();
  }
  void* get() const { return data_; }

 private:
  static void* allocate(int64_t bytes) {
    void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) throw std::bad_alloc();
    return p;
  }
  std::unique_ptr<void, decltype(&std::free)> own_{nullptr, &std::free};
  void* data_ = nullptr;
};

struct Rng {
  int64_t seed = 0, step = 0;
  explicit Rng(const std::optional<Tensor>& rng) {
    if (!rng.has_value()) return;
    const Tensor c = dense(*rng);
    seed = c.const_data_ptr<int64_t>()[0];
    step = c.const_data_ptr<int64_t>()[1];
  }
};

void check_draw(const char* op, const Tensor& rng, const Tensor& sample_ids) {
  STD_TORCH_CHECK(rng.dim() == 1 && rng.size(0) == 2 && rng.scalar_type() == ScalarType::Long, op,
                  ": rng must be int64 [2]");
  STD_TORCH_CHECK(sample_ids.dim() == 1 && sample_ids.scalar_type() == ScalarType::Long, op,
                  ": sample_ids must be int64 [B]");
}

Tensor lead_mask_cpu(const Tensor& sample_ids, int64_t n_leads, double p, const Tensor& rng, bool keep_one) {
  check_draw("lead_mask", rng, sample_ids);
  STD_TORCH_CHECK(n_leads >= 1 && p >= 0 && p <= 1, "lead_mask: n_leads must be positive and p in [0, 1]");
  const Tensor ids = dense(sample_ids);
  const Rng state(rng);
  Tensor keep = torch::stable::new_empty(sample_ids, {ids.size(0), n_leads}, ScalarType::Bool);
  const LeadMaskArgs args{ids.const_data_ptr<int64_t>(),
                          state.seed,
                          state.step,
                          n_leads,
                          p,
                          keep_one,
                          static_cast<bool*>(keep.mutable_data_ptr())};
  torch::stable::parallel_for(0, ids.size(0), 1024, [&](int64_t b, int64_t e) { lead_mask(args, b, e); });
  return keep;
}

std::tuple<Tensor, Tensor> span_mask_cpu(const Tensor& sample_ids, int64_t n_tokens, double prob,
                                         int64_t length, const Tensor& rng,
                                         const std::optional<Tensor>& lengths,
                                         std::optional<int64_t> n_masked) {
  check_draw("span_mask", rng, sample_ids);
  STD_TORCH_CHECK(n_tokens >= 1 && n_tokens < (1 << 30), "span_mask: n_tokens must lie in 1..2^30, got ",
                  n_tokens);
  STD_TORCH_CHECK(length >= 1 && prob >= 0 && prob <= 1,
                  "span_mask: length must be positive and prob in [0, 1]");
  STD_TORCH_CHECK(!n_masked.has_value() || (*n_masked >= 1 && *n_masked <= n_tokens),
                  "span_mask: n_masked must lie in 1..n_tokens");
  const Tensor ids = dense(sample_ids);
  const std::optional<Tensor> valid = dense(lengths);
  const int64_t batch = ids.size(0);
  STD_TORCH_CHECK(!valid.has_value() || (valid->dim() == 1 && valid->size(0) == batch &&
                                         valid->scalar_type() == ScalarType::Long),
                  "span_mask: lengths must be int64 [B]");
  const Rng state(rng);
  const SpanMaskArgs args{ids.const_data_ptr<int64_t>(), state.seed, state.step, n_tokens, length, prob,
                          data_or_null<int64_t>(valid)};
  int64_t m = n_masked.value_or(batch ? n_tokens : 0);
  if (!n_masked.has_value()) {
    SpanMasker masker(args);
    for (int64_t b = 0; b < batch; ++b) m = std::min(m, masker.cover(b, 0));
  }
  const int64_t at_least = n_masked.value_or(0);
  Tensor index = torch::stable::new_empty(sample_ids, {batch, m}, ScalarType::Int);
  Tensor mask = torch::stable::new_empty(sample_ids, {batch, n_tokens}, ScalarType::Bool);
  int32_t* out = index.mutable_data_ptr<int32_t>();
  bool* out_mask = static_cast<bool*>(mask.mutable_data_ptr());
  torch::stable::parallel_for(0, batch, 16, [&](int64_t begin, int64_t end) {
    SpanMasker masker(args);
    for (int64_t b = begin; b < end; ++b) {
      masker.cover(b, at_least);
      masker.cut(b, m, out + b * m, out_mask + b * n_tokens);
    }
  });
  return {index, mask};
}

DType dtype_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::Double:
      return DType::f64;
    default:
      STD_TORCH_CHECK(false, op, ": takes float32, bfloat16, float16 or float64");
  }
}

ScalarType statistics_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The inputs of local_contrastive, made contiguous and kept alive while the kernel's raw pointers are in use.
struct LocalInputs {
  Tensor predictions, targets;
  std::optional<Tensor> codes, index, ids;
  LocalArgs args{};

  LocalInputs(const Tensor& predictions_, const Tensor& targets_, const std::optional<Tensor>& codes_,
              const std::optional<Tensor>& index_, const std::optional<Tensor>& rng,
              const std::optional<Tensor>& ids_, int64_t n_negatives, double temperature, bool use_all)
      : predictions(dense(predictions_)),
        targets(dense(targets_)),
        codes(dense(codes_)),
        index(use_all ? std::nullopt : dense(index_)),
        ids(dense(ids_)) {
    check_local(predictions, targets, codes, index, rng, ids, n_negatives, temperature, use_all);
    const Rng state(rng);
    args.dtype = dtype_of(predictions, "local_contrastive");
    args.B = predictions.size(0);
    args.M = predictions.size(1);
    args.D = predictions.size(2);
    args.G = codes.has_value() ? codes->size(2) : 0;
    args.K = use_all ? 0 : index.has_value() ? index->size(2) : n_negatives;
    args.inv_temperature = 1.0 / temperature;
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

using LocalKernel = void (*)(const LocalArgs&, int64_t, int64_t, void*);

void for_segments(const LocalArgs& args, bool backward, LocalKernel kernel) {
  if (args.M == 0) return;
  const int64_t scratch = kernels().local_contrastive_scratch(args, backward);
  torch::stable::parallel_for(0, args.B, 1,
                              [&](int64_t b, int64_t e) { kernel(args, b, e, Scratch(scratch).get()); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> local_contrastive_cpu(
    const Tensor& predictions, const Tensor& targets, const std::optional<Tensor>& codes,
    const std::optional<Tensor>& negative_index, const std::optional<Tensor>& rng,
    const std::optional<Tensor>& sample_ids, int64_t n_negatives, double temperature, bool use_all) {
  LocalInputs in(predictions, targets, codes, negative_index, rng, sample_ids, n_negatives, temperature,
                 use_all);
  LocalArgs& a = in.args;
  const ScalarType wide = statistics_type(predictions);
  Tensor loss = torch::stable::new_empty(predictions, {a.B, a.M}, wide);
  Tensor correct = torch::stable::new_empty(predictions, {a.B, a.M}, ScalarType::Bool);
  Tensor lse = torch::stable::new_empty(predictions, {a.B, a.M}, wide);
  Tensor inv_norms = torch::stable::new_empty(predictions, {2, a.B, a.M}, wide);
  a.loss = loss.mutable_data_ptr();
  a.correct = static_cast<bool*>(correct.mutable_data_ptr());
  a.lse = lse.mutable_data_ptr();
  a.inv_norms = inv_norms.mutable_data_ptr();
  for_segments(a, false, kernels().local_contrastive);
  return {loss, correct, lse, inv_norms};
}

std::tuple<Tensor, Tensor> local_contrastive_backward_cpu(
    const Tensor& grad_loss, const Tensor& predictions, const Tensor& targets, const Tensor& lse,
    const Tensor& inv_norms, const std::optional<Tensor>& codes, const std::optional<Tensor>& negative_index,
    const std::optional<Tensor>& rng, const std::optional<Tensor>& sample_ids, int64_t n_negatives,
    double temperature, bool use_all) {
  LocalInputs in(predictions, targets, codes, negative_index, rng, sample_ids, n_negatives, temperature,
                 use_all);
  LocalArgs& a = in.args;
  const ScalarType wide = statistics_type(predictions);
  for (const Tensor* t : {&grad_loss, &lse})
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == a.B && t->size(1) == a.M && t->scalar_type() == wide,
                    "local_contrastive_backward: grad_loss and lse must be [B, M] of the loss's dtype");
  STD_TORCH_CHECK(inv_norms.numel() == 2 * a.B * a.M && inv_norms.scalar_type() == wide,
                  "local_contrastive_backward: inv_norms must be [2, B, M] of the loss's dtype");
  const Tensor grad = dense(grad_loss), saved_lse = dense(lse), saved_norms = dense(inv_norms);
  Tensor grad_predictions = torch::stable::empty_like(in.predictions);
  Tensor grad_targets = torch::stable::empty_like(in.targets);
  a.grad_loss = grad.const_data_ptr();
  a.lse = const_cast<void*>(saved_lse.const_data_ptr());
  a.inv_norms = const_cast<void*>(saved_norms.const_data_ptr());
  a.grad_predictions = grad_predictions.mutable_data_ptr();
  a.grad_targets = grad_targets.mutable_data_ptr();
  for_segments(a, true, kernels().local_contrastive_backward);
  return {grad_predictions, grad_targets};
}

std::string cpu_isa() { return kernels().isa; }

std::string usable_cpu_isas() {
  std::string names;
  for (const std::string& isa : usable_isas()) names += (names.empty() ? "" : ";") + isa;
  return names;
}

void set_cpu_isa(std::string name) {
  STD_TORCH_CHECK(set_isa(name), "set_cpu_isa: '", name, "' is none of the usable ISAs: ", usable_cpu_isas());
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY(ecgfast, m) {
  m.def("lead_mask(Tensor sample_ids, int n_leads, float p, Tensor rng, bool keep_one) -> Tensor");
  m.def(
      "span_mask(Tensor sample_ids, int n_tokens, float prob, int length, Tensor rng, Tensor? lengths, int? "
      "n_masked) "
      "-> (Tensor index, Tensor mask)");
  m.def(
      "local_contrastive(Tensor predictions, Tensor targets, Tensor? codes, Tensor? negative_index, Tensor? "
      "rng, "
      "Tensor? sample_ids, int n_negatives, float temperature, bool use_all) "
      "-> (Tensor loss, Tensor correct, Tensor lse, Tensor inv_norms)");
  m.def(
      "local_contrastive_backward(Tensor grad_loss, Tensor predictions, Tensor targets, Tensor lse, Tensor "
      "inv_norms, "
      "Tensor? codes, Tensor? negative_index, Tensor? rng, Tensor? sample_ids, int n_negatives, float "
      "temperature, "
      "bool use_all) -> (Tensor grad_predictions, Tensor grad_targets)");
  m.def("cpu_isa() -> str");
  m.def("usable_cpu_isas() -> str");
  m.def("set_cpu_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("lead_mask", TORCH_BOX(&ecgfast::lead_mask_cpu));
  m.impl("span_mask", TORCH_BOX(&ecgfast::span_mask_cpu));
  m.impl("local_contrastive", TORCH_BOX(&ecgfast::local_contrastive_cpu));
  m.impl("local_contrastive_backward", TORCH_BOX(&ecgfast::local_contrastive_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&ecgfast::cpu_isa));
  m.impl("usable_cpu_isas", TORCH_BOX(&ecgfast::usable_cpu_isas));
  m.impl("set_cpu_isa", TORCH_BOX(&ecgfast::set_cpu_isa));
}
