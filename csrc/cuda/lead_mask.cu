// Launch of the lead mask kernel.
#include "launch.cuh"
#include "lead_mask.cuh"

namespace ecgfast::cuda {

cudaError_t lead_mask(const LeadMask& in, bool* keep, cudaStream_t stream) {
  constexpr int kSamples = kLeadMaskThreads / 32;
  const int64_t blocks = divide_up(in.batch, kSamples);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch(lead_mask_draw, dim3(blocks), dim3(kLeadMaskThreads), 0, stream, in, keep);
}

}  // namespace ecgfast::cuda
