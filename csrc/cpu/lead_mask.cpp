#include <vector>

#include "dispatch.h"
#include "masks.h"

namespace ecgfast {

void lead_mask(const LeadMaskArgs& a, int64_t begin, int64_t end) {
  // A word below the threshold masks its lead; 64 bits, since p = 1 masks every word.
  const uint64_t threshold = static_cast<uint64_t>(a.p * 4294967296.0);
  const int64_t n_blocks = a.n_leads / 4 + 1;  // one word more than leads: the lead to keep
  std::vector<uint32_t> words(4 * n_blocks + kPhiloxSlack);
  for (int64_t b = begin; b < end; ++b) {
    kernels().philox_fill(make_stream(a.seed, a.step, a.sample_ids[b], Purpose::lead_mask), 0, n_blocks,
                          words.data());
    bool* keep = a.keep + b * a.n_leads;
    bool any = false;
    for (int64_t l = 0; l < a.n_leads; ++l) any |= keep[l] = words[l] >= threshold;
    if (a.keep_one && !any) keep[bounded(words[a.n_leads], static_cast<uint32_t>(a.n_leads))] = true;
  }
}

}  // namespace ecgfast
