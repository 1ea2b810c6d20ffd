// Lead masks and span masks: integer work on few numbers per segment.
#pragma once
#include <stdint.h>

namespace ecgfast {

struct LeadMaskArgs {
  const int64_t* sample_ids;
  int64_t seed, step, n_leads;
  double p;
  bool keep_one;
  bool* keep;  // [B, n_leads]
};

struct SpanMaskArgs {
  const int64_t* sample_ids;
  int64_t seed, step, n_tokens, length;
  double prob;
  const int64_t* lengths;  // [B] or null
  int64_t at_least;        // spans are added until they cover as many tokens, or all
  int64_t n_masked;
  uint64_t* covered;   // [B, span_mask_words]: a bit per token
  int64_t* n_covered;  // [B]
  int32_t* index;      // [B, n_masked]
  bool* mask;          // [B, n_tokens]
};

enum class SpanMaskPass : int32_t {
  cover,  // covered and n_covered
  cut,    // from them, index and mask
};

inline int64_t span_mask_words(int64_t n_tokens) { return (n_tokens + 63) / 64; }

}  // namespace ecgfast
