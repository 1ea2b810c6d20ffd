// Lead masks and span masks: integer work on few numbers per segment, compiled once.
#pragma once
#include <cstdint>

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
};

void lead_mask(const LeadMaskArgs& args, int64_t begin, int64_t end);

// Marks the tokens under the spans of one segment, with more spans than the draw says until `at_least` tokens
// are covered; returns how many are. `group[t]` is 0 where covered, 1 where not, 2 where padding.
class SpanMasker {
 public:
  explicit SpanMasker(const SpanMaskArgs& args);
  ~SpanMasker();
  int64_t cover(int64_t segment, int64_t at_least);
  // Cuts the segment last covered to n tokens: their ascending indices and the mask [n_tokens].
  void cut(int64_t segment, int64_t n, int32_t* index, bool* mask);

 private:
  struct State;
  State* state_;
};

}  // namespace ecgfast
