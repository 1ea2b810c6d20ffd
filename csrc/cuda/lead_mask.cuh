// Random lead masking: one warp per sample, one Philox block of four leads per lane. A few hundred bytes and
// some hundred cycles in all: a launch's own time is the bound.
#pragma once
#include "../common/philox.h"
#include "lead_mask.h"

namespace ecgfast::cuda {

constexpr int kLeadMaskThreads = 64;

__global__ void __launch_bounds__(kLeadMaskThreads) lead_mask_draw(LeadMask in, bool* keep) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * (kLeadMaskThreads / 32) + threadIdx.x / 32;
  if (sample >= in.batch) return;
  const int leads = static_cast<int>(in.leads);
  const Stream stream = make_stream(in.rng[0], in.rng[1], in.sample_ids[sample], Purpose::lead_mask);
  keep += sample * in.leads;
  bool any = false;
  for (int index = threadIdx.x % 32; index * 4 < leads; index += 32) {
    const Words words = block(stream, index);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const bool kept = words.v[n] >= in.threshold;
      if (index * 4 + n < leads) {
        keep[index * 4 + n] = kept;
        any |= kept;
      }
    }
  }
  if (!in.keep_one || __any_sync(~0u, any)) return;
  const int kept = bounded(element(stream, leads), leads);
  if (threadIdx.x % 32 == kept / 4 % 32) keep[kept] = true;  // by the lane that cleared it: in that order
}

}  // namespace ecgfast::cuda
