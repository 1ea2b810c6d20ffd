// Launches of the span mask kernels.
#include "launch.cuh"
#include "span_mask.cuh"

namespace ecgfast::cuda {
namespace {

size_t span_shared_bytes(const SpanMask& in) {
  SharedArena arena;
  SpanMemory memory(arena, in.tokens);
  return arena.used();
}

bool fits(const SpanMask& in) { return in.tokens <= kMaxSpanTokens && in.batch <= INT32_MAX; }

}  // namespace

cudaError_t span_mask_count(const SpanMask& in, int32_t* covered, cudaStream_t stream) {
  if (!fits(in)) return cudaErrorInvalidConfiguration;
  return launch(span_mask_covered, dim3(in.batch), dim3(kSpanThreads), span_shared_bytes(in), stream, in,
                covered);
}

cudaError_t span_mask(const SpanMask& in, int masked, int32_t* index, bool* mask, cudaStream_t stream) {
  if (!fits(in)) return cudaErrorInvalidConfiguration;
  return launch(span_mask_draw, dim3(in.batch), dim3(kSpanThreads), span_shared_bytes(in), stream, in, masked,
                index, mask);
}

}  // namespace ecgfast::cuda
