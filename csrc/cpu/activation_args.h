#pragma once
#include "types.h"

namespace ecgfast {

enum class Activation : int32_t {
  erf,
  exp,
  exp_nonpositive,
  gelu,
  gelu_grad,
  stem_gelu,
  stem_gelu_grad,
  log,
  log_normal,
  log_table
};

struct ActivationArgs {
  Activation function;
  bool is_f64;
  const void* x;
  void* y;
};

}  // namespace ecgfast
