// The checks of global_contrastive that its CPU and CUDA sides share. The Python function checks with better
// messages; these keep a direct call of torch.ops.ecgfast.* from reading memory that isn't there.
#pragma once
#include "common.h"

namespace ecgfast {

inline void check_global(const Tensor& a, const Tensor& b, const Tensor& group_a, const Tensor& group_b) {
  const char* op = "global_contrastive: ";
  STD_TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(1), op,
                  "a and b must be [N, D] and [N', D]");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, "a and b differ in dtype");
  const Tensor *rows[2] = {&a, &b}, *groups[2] = {&group_a, &group_b};
  for (int side = 0; side < 2; ++side) {
    const int64_t n = rows[side]->size(0);
    STD_TORCH_CHECK(n < (int64_t{1} << 31), op, "takes fewer than 2^31 rows");
    STD_TORCH_CHECK(groups[side]->dim() == 1 && groups[side]->size(0) == n &&
                        groups[side]->scalar_type() == ScalarType::Long,
                    op, "group_a and group_b must be int64 [N] and [N']");
  }
}

}  // namespace ecgfast
