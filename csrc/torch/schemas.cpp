// The schemas of all ops, and the choice of the CPU kernels' ISA. The CUDA library only adds implementations.
#include <string>

#include "../cpu/dispatch.h"
#include "common.h"

namespace ecgfast {
namespace {

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

// SymInt, so that a compiled graph holds for any size; kernels get plain integers.
// `tf32`: CUDA kernels may take float32 in products as TF32; others don't look at it.
// `p_tensor`, `prob_tensor`, `eps_tensor`: float64 on the CPU, instead of the number; see `number_of`.
// `temperature_tensor`: instead of the number; `moments` then sum up to the cosines times the gradients to
// them, for the temperature's gradient, and are empty otherwise.
STABLE_TORCH_LIBRARY(ecgfast, m) {
  m.def(
      "lead_mask(Tensor sample_ids, SymInt n_leads, float p, Tensor rng, bool keep_one, "
      "Tensor? p_tensor=None) -> Tensor");
  m.def(
      "span_mask(Tensor sample_ids, SymInt n_tokens, float prob, SymInt length, Tensor rng, Tensor? lengths, "
      "SymInt? n_masked, Tensor? prob_tensor=None) "
      "-> (Tensor index, Tensor mask)");
  m.def(
      "local_contrastive(Tensor predictions, Tensor targets, Tensor? codes, Tensor? negative_index, Tensor? "
      "rng, "
      "Tensor? sample_ids, SymInt n_negatives, float temperature, bool use_all, bool save_weights, bool "
      "tf32, "
      "Tensor? temperature_tensor=None) "
      "-> (Tensor loss, Tensor correct, Tensor lse, Tensor inv_norms, Tensor weights)");
  m.def(
      "local_contrastive_backward(Tensor grad_loss, Tensor predictions, Tensor targets, Tensor lse, Tensor "
      "inv_norms, "
      "Tensor weights, Tensor? codes, Tensor? negative_index, Tensor? rng, Tensor? sample_ids, SymInt "
      "n_negatives, float "
      "temperature, "
      "bool use_all, bool tf32, Tensor? temperature_tensor=None) "
      "-> (Tensor grad_predictions, Tensor grad_targets, Tensor moments)");
  m.def(
      "patch_embed(Tensor signal, Tensor? keep, Tensor[] weights, Tensor gn_weight, Tensor gn_bias, Tensor[] "
      "biases, "
      "float eps, Tensor? lengths, bool for_backward, bool tf32, Tensor? eps_tensor=None) -> (Tensor tokens, "
      "Tensor saved)");
  m.def(
      "patch_embed_backward(Tensor grad_tokens, Tensor signal, Tensor? keep, Tensor[] weights, Tensor "
      "gn_weight, "
      "Tensor gn_bias, Tensor[] biases, float eps, Tensor? lengths, Tensor saved, bool for_signal, bool "
      "tf32, Tensor? eps_tensor=None) "
      "-> Tensor[]");
  m.def("patch_embed_columns(bool is_double) -> int");
  m.def(
      "positional_conv(Tensor x, Tensor weight, Tensor bias, SymInt groups, bool save, bool tf32) -> (Tensor "
      "out, Tensor "
      "conv)");
  m.def(
      "positional_conv_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor conv, SymInt groups, bool "
      "need_x, bool need_parameters, bool tf32) -> "
      "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  m.def(
      "gather_segments(Tensor store, Tensor offset, Tensor start, Tensor n_samples, SymInt length, Tensor? "
      "lead_index, ScalarType dtype) -> Tensor");
  m.def("cpu_activation(Tensor x, str name) -> Tensor");
  m.def(
      "gumbel_quantize(Tensor logits, Tensor codebook, Tensor temperature, Tensor? noise, Tensor? rng, "
      "Tensor? "
      "sample_ids, bool hard, bool keep, bool tf32) -> (Tensor quantized, Tensor codes, Tensor mean_probs, "
      "Tensor "
      "choice)");
  m.def(
      "gumbel_quantize_backward(Tensor? grad_quantized, Tensor? grad_mean_probs, Tensor logits, Tensor "
      "codebook, "
      "Tensor temperature, Tensor codes, Tensor? noise, Tensor? rng, Tensor? sample_ids, Tensor choice, bool "
      "hard, bool tf32) -> (Tensor grad_logits, Tensor grad_codebook)");
  m.def(
      "global_contrastive(Tensor a, Tensor b, Tensor group_a, Tensor group_b, float temperature, bool "
      "detach_norm, bool tf32, Tensor? temperature_tensor=None) "
      "-> (Tensor loss, Tensor lse_rows, Tensor lse_columns, Tensor inv_norms)");
  m.def(
      "global_contrastive_backward(Tensor grad_loss, Tensor a, Tensor b, Tensor group_a, Tensor group_b, "
      "Tensor "
      "lse_rows, Tensor lse_columns, Tensor inv_norms, float temperature, bool detach_norm, bool tf32, "
      "Tensor? temperature_tensor=None) -> (Tensor grad_a, Tensor grad_b, Tensor moments)");
  m.def(
      "global_contrastive_pairs(Tensor a, Tensor? b, Tensor group_a, Tensor? group_b, Tensor? present_a, "
      "Tensor? present_b, Tensor pairs, bool negatives, float temperature, bool detach_norm, bool tf32, "
      "Tensor? temperature_tensor=None) -> (Tensor loss, Tensor lse, Tensor inv_norms)");
  m.def(
      "global_contrastive_pairs_backward(Tensor grad_loss, Tensor a, Tensor? b, Tensor group_a, Tensor? "
      "group_b, Tensor? present_a, Tensor? present_b, Tensor pairs, Tensor lse, Tensor inv_norms, bool "
      "negatives, float temperature, bool detach_norm, bool tf32, Tensor? temperature_tensor=None) "
      "-> (Tensor grad_a, Tensor grad_b, Tensor moments)");
  m.def("cpu_isa() -> str");
  m.def("usable_cpu_isas() -> str");
  m.def("set_cpu_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&ecgfast::cpu_isa));
  m.impl("usable_cpu_isas", TORCH_BOX(&ecgfast::usable_cpu_isas));
  m.impl("set_cpu_isa", TORCH_BOX(&ecgfast::set_cpu_isa));
}
