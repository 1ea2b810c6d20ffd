// The interface between the op library and the kernels that are compiled once per ISA: raw pointers and
// sizes, nothing of the C++ library, nothing of torch.
#pragma once
#include <stdint.h>

#include "../common/philox.h"
#include "activation_args.h"
#include "gather_segments.h"
#include "global_contrastive.h"
#include "global_contrastive_pairs.h"
#include "gumbel_quantize.h"
#include "local_contrastive.h"
#include "masks.h"
#include "patch_embed.h"
#include "positional_conv.h"
#include "types.h"

namespace ecgfast {

// *_scratch: bytes of scratch that one thread needs. Where begin and end are taken, the segments [begin, end)
// are done. patch_embed_backward: the gradients of its segments are summed into `partials`;
// patch_embed_finish adds the sums of n_chunks such calls for the channels [begin, end).

// Of products, which bf16 and tile instructions compute where an ISA has them.
#define ECGFAST_PRODUCT_KERNELS(X)                                                              \
  X(GlobalSizes, global_sizes, (const GlobalArgs& args))                                        \
  X(void, global_contrastive,                                                                   \
    (const GlobalArgs& args, GlobalPass pass, int64_t begin, int64_t end, void* scratch))       \
  X(PairsSizes, pairs_sizes, (const PairsArgs& args))                                           \
  X(void, global_contrastive_pairs,                                                             \
    (const PairsArgs& args, PairsPass pass, int64_t begin, int64_t end, void* scratch))         \
  X(GumbelSizes, gumbel_sizes, (const GumbelArgs& args, bool backward))                         \
  X(void, gumbel_quantize,                                                                      \
    (const GumbelArgs& args, GumbelPass pass, int64_t begin, int64_t end, void* scratch))       \
  X(StemSizes, patch_embed_sizes, (const StemArgs& args))                                       \
  X(void, patch_embed_pack, (const StemArgs& args, bool backward, int64_t layer, void* packed)) \
  X(void, patch_embed, (const StemArgs& args, int64_t begin, int64_t end, void* scratch))       \
  X(void, patch_embed_backward,                                                                 \
    (const StemArgs& args, int64_t begin, int64_t end, void* partials, void* scratch))          \
  X(void, patch_embed_finish,                                                                   \
    (const StemArgs& args, const void* partials, int64_t n_chunks, int64_t begin, int64_t end,  \
     void* scratch))

// Of vector arithmetic alone: the same for all ISAs with registers of one width.
#define ECGFAST_VECTOR_KERNELS(X)                                                                         \
  X(void, activation, (const ActivationArgs& args, int64_t begin, int64_t end))                           \
  X(void, gather_segments, (const GatherArgs& args, int64_t begin, int64_t end))                          \
  X(int64_t, lead_mask_scratch, (const LeadMaskArgs& args))                                               \
  X(void, lead_mask, (const LeadMaskArgs& args, int64_t begin, int64_t end, void* scratch))               \
  X(int64_t, local_contrastive_scratch, (const LocalArgs& args, bool backward))                           \
  X(void, local_contrastive, (const LocalArgs& args, int64_t begin, int64_t end, void* scratch))          \
  X(void, local_contrastive_backward, (const LocalArgs& args, int64_t begin, int64_t end, void* scratch)) \
  X(int64_t, positional_conv_units, (const ConvArgs& args))                                               \
  X(int64_t, positional_conv_scratch, (const ConvArgs& args))                                             \
  X(void, positional_conv, (const ConvArgs& args, int64_t begin, int64_t end, void* scratch))             \
  X(void, positional_conv_backward, (const ConvArgs& args, int64_t begin, int64_t end, void* scratch))    \
  X(int64_t, span_mask_scratch, (const SpanMaskArgs& args))                                               \
  X(void, span_mask, (const SpanMaskArgs& args, SpanMaskPass pass, int64_t begin, int64_t end, void* scratch))

#define ECGFAST_KERNELS(X) ECGFAST_PRODUCT_KERNELS(X) ECGFAST_VECTOR_KERNELS(X)

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
