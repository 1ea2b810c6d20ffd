#pragma once
#include "types.h"

namespace ecgfast {

enum class Activation : int32_t { erf, exp, gelu, gelu_grad, log, log_normal, exp_nonpositive, log_table };

struct ActivationArgs {
  Activation function;
  bool is_f64;
  const void* x;
  void* y;
};

}  // namespace ecgfast
