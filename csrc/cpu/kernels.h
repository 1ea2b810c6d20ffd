// The interface between the op library and the kernels that are compiled once per ISA: raw pointers and
// sizes, nothing of the C++ library, nothing of torch.
#pragma once
#include <stdint.h>

#include "../common/philox.h"

namespace ecgfast {

enum class DType : int32_t { f32, bf16, f16, f64 };

// Statistics (loss, lse, inv_norms, grad_loss) are float, or double where dtype is f64.
struct LocalArgs {
  DType dtype;
  int64_t M, D;  // tokens per segment, width
  int64_t G;     // codes per token; 0 where codes is null
  int64_t K;     // negatives per token, as drawn or given; unused with use_all
  double inv_temperature;
  bool use_all;  // every other token once
  bool index_is_64;
  const void* predictions;     // [B, M, D]
  const void* targets;         // [B, M, D]
  const int32_t* codes;        // [B, M, G] or null
  const void* negative_index;  // [B, M, K] or null: draw
  int64_t seed, step;
  const int64_t* sample_ids;  // [B] where drawing
  void* loss;                 // [B, M], written forward
  bool* correct;              // [B, M], written forward
  void* lse;                  // [B, M], written forward, read backward
  void* inv_norms;            // [2, B, M], written forward, read backward
  int64_t B;
  const void* grad_loss;   // [B, M]
  void* grad_predictions;  // [B, M, D]
  void* grad_targets;      // [B, M, D]
};

// philox_fill: blocks first_block to first_block + n_blocks of a stream.
// *_scratch: bytes of scratch that one thread needs. The others do the segments [begin, end).
#define ECGFAST_KERNELS(X)                                                                              \
  X(void, philox_fill, (const Stream& stream, uint32_t first_block, int64_t n_blocks, uint32_t* words)) \
  X(int64_t, local_contrastive_scratch, (const LocalArgs& args, bool backward))                         \
  X(void, local_contrastive, (const LocalArgs& args, int64_t begin, int64_t end, void* scratch))        \
  X(void, local_contrastive_backward, (const LocalArgs& args, int64_t begin, int64_t end, void* scratch))

struct Kernels {
  const char* isa;
#define ECGFAST_POINTER(result, name, args) result(*name) args;
  ECGFAST_KERNELS(ECGFAST_POINTER)
#undef ECGFAST_POINTER
};

#define ECGFAST_DECLARE(result, name, args) result name args;

// philox_fill writes whole vectors: its output holds this many words more than asked for.
constexpr int64_t kPhiloxSlack = 32;

}  // namespace ecgfast
