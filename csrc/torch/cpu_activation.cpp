// The kernels' vector functions as an op, so that tests can measure their errors on every ISA.
#include <string>

#include "cpu.h"

namespace ecgfast {
namespace {

Activation activation_named(const std::string& name) {
  if (name == "erf") return Activation::erf;
  if (name == "exp") return Activation::exp;
  if (name == "exp_nonpositive") return Activation::exp_nonpositive;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_grad") return Activation::gelu_grad;
  if (name == "stem_gelu") return Activation::stem_gelu;
  if (name == "stem_gelu_grad") return Activation::stem_gelu_grad;
  if (name == "log") return Activation::log;
  if (name == "log_normal") return Activation::log_normal;
  if (name == "log_table") return Activation::log_table;
  STD_TORCH_CHECK(false,
                  "cpu_activation: name must be erf, exp, exp_nonpositive, gelu, gelu_grad, stem_gelu, "
                  "stem_gelu_grad, log, log_normal or log_table, got '",
                  name, "'");
}

Tensor cpu_activation(const Tensor& x, std::string name) {
  const DType dtype = dtype_of(x, "cpu_activation");
  STD_TORCH_CHECK(dtype == DType::f32 || dtype == DType::f64, "cpu_activation: takes float32 or float64");
  const Tensor input = dense(x);
  Tensor output = torch::stable::empty_like(input);
  const ActivationArgs args{activation_named(name), dtype == DType::f64, input.const_data_ptr(),
                            output.mutable_data_ptr()};
  torch::stable::parallel_for(0, input.numel(), 1 << 14,
                              [&](int64_t begin, int64_t end) { kernels().activation(args, begin, end); });
  return output;
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) { m.impl("cpu_activation", TORCH_BOX(&ecgfast::cpu_activation)); }
