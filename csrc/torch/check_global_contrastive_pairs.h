// The checks of global_contrastive_pairs that its CPU and CUDA sides share. The Python function checks with
// better messages; these keep a direct call of torch.ops.ecgfast.* from reading memory that isn't there.
#pragma once
#include "common.h"

namespace ecgfast {

// One side: x [L, N, D], group [N], present [N] or [L, N].
inline void check_side(const Tensor& x, const Tensor& group, const std::optional<Tensor>& present) {
  const char* op = "global_contrastive_pairs: ";
  STD_TORCH_CHECK(x.dim() == 3, op, "a and b must be [L, N, D] and [L', N', D]");
  STD_TORCH_CHECK(x.size(0) < (int64_t{1} << 31) && x.size(1) < (int64_t{1} << 31), op,
                  "takes fewer than 2^31 leads and rows");
  STD_TORCH_CHECK(group.dim() == 1 && group.size(0) == x.size(1) && group.scalar_type() == ScalarType::Long,
                  op, "group_a and group_b must be int64 [N] and [N']");
  if (!present.has_value()) return;
  const Tensor& p = *present;
  STD_TORCH_CHECK(p.scalar_type() == ScalarType::Bool && p.dim() >= 1 && p.dim() <= 2 &&
                      p.size(p.dim() - 1) == x.size(1) && (p.dim() == 1 || p.size(0) == x.size(0)),
                  op, "present_a and present_b must be bool, [N] or [L, N]");
}

inline void check_pairs(const Tensor& a, const std::optional<Tensor>& b, const Tensor& group_a,
                        const std::optional<Tensor>& group_b, const std::optional<Tensor>& present_a,
                        const std::optional<Tensor>& present_b, const Tensor& pairs) {
  const char* op = "global_contrastive_pairs: ";
  check_side(a, group_a, present_a);
  STD_TORCH_CHECK(pairs.dim() == 2 && pairs.size(1) == 2 && pairs.scalar_type() == ScalarType::Long, op,
                  "pairs must be int64 [Q, 2]");
  STD_TORCH_CHECK(b.has_value() == group_b.has_value() && (b.has_value() || !present_b.has_value()), op,
                  "group_b and present_b belong to b");
  if (!b.has_value()) return;
  check_side(*b, *group_b, present_b);
  STD_TORCH_CHECK(b->size(2) == a.size(2) && b->scalar_type() == a.scalar_type(), op,
                  "a and b differ in D or dtype");
}

}  // namespace ecgfast
