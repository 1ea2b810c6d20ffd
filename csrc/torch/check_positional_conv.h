// Checks of positional_conv's arguments that the CPU and CUDA sides share. The Python function checks with
// better messages; these keep a direct call of torch.ops.ecgfast.* from reading memory that isn't there.
#pragma once
#include "common.h"

namespace ecgfast {

inline void check_conv(const Tensor& x, const Tensor& weight, int64_t groups) {
  const char* op = "positional_conv: ";
  STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 3, op, "x must be [B, N, E], weight [E, E / groups, K]");
  const int64_t width = x.size(2);
  STD_TORCH_CHECK(groups >= 1 && width % groups == 0, op, "groups must divide E = ", width, ", got ", groups);
  STD_TORCH_CHECK(weight.size(0) == width && weight.size(1) == width / groups && weight.size(2) >= 1, op,
                  "weight must be [E, E / groups, K] = [", width, ", ", width / groups, ", K >= 1]");
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(), op, "x and weight differ in dtype");
}

inline void check_conv_bias(const Tensor& x, const Tensor& bias) {
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == x.size(2) && bias.scalar_type() == x.scalar_type(),
                  "positional_conv: bias must be [E] = [", x.size(2), "] of x's dtype");
}

inline void check_conv_saved(const Tensor& x, const Tensor& grad_out, const Tensor& conv) {
  for (const Tensor* t : {&grad_out, &conv})
    STD_TORCH_CHECK(t->numel() == x.numel() && t->scalar_type() == x.scalar_type(),
                    "positional_conv_backward: grad_out and conv must be like x; was the forward pass run "
                    "with save?");
}

}  // namespace ecgfast
