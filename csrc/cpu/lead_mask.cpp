// Random lead masking. Compiled once per ISA.
#include "kernels.h"
#include "philox_vector.h"

namespace ecgfast {
namespace {

constexpr int64_t kBlocks = 256;  // that are drawn at a time, if one segment takes no more

static int64_t blocks_of(const LeadMaskArgs& a) {
  return a.n_leads / 4 + 1;  // one word more than leads: the lead to keep
}

static void keep_leads(const LeadMaskArgs& a, const uint32_t* words, uint64_t threshold, bool* keep) {
  bool any = false;
  for (int64_t l = 0; l < a.n_leads; ++l) any |= keep[l] = words[l] >= threshold;
  if (a.keep_one && !any) keep[bounded(words[a.n_leads], static_cast<uint32_t>(a.n_leads))] = true;
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

int64_t lead_mask_scratch(const LeadMaskArgs& args) {
  const int64_t n = blocks_of(args);
  return static_cast<int64_t>(sizeof(uint32_t)) * 4 * ((n > kBlocks ? n : kBlocks) + kPhiloxAtOnce);
}

void lead_mask(const LeadMaskArgs& args, int64_t begin, int64_t end, void* scratch) {
  uint32_t* words = static_cast<uint32_t*>(scratch);
  const int64_t n_blocks = blocks_of(args), most = n_blocks < kBlocks ? kBlocks / n_blocks : 1;
  // A word below the threshold masks its lead; 64 bits, since p = 1 masks every word.
  const uint64_t threshold = static_cast<uint64_t>(args.p * 4294967296.0);
  for (int64_t b = begin; b < end; b += most) {
    const int64_t n = end - b < most ? end - b : most;
    philox_samples(args.seed, args.step, Purpose::lead_mask, args.sample_ids + b, n, n_blocks, words);
    for (int64_t i = 0; i < n; ++i)
      keep_leads(args, words + 4 * n_blocks * i, threshold, args.keep + (b + i) * args.n_leads);
  }
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
