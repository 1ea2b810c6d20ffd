// The lead mask kernel as a plain function.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>

namespace ecgfast::cuda {

// See ecgfast/ops/lead_mask.py.
struct LeadMask {
  const int64_t* rng;         // [2]: seed, step
  const int64_t* sample_ids;  // [B]
  int64_t batch, leads;       // leads < 2^30
  uint64_t threshold;         // a word below it masks its lead: p * 2^32, at most 2^32
  bool keep_one;
};

cudaError_t lead_mask(const LeadMask& in, bool* keep, cudaStream_t stream);  // keep: [B, leads]

}  // namespace ecgfast::cuda
