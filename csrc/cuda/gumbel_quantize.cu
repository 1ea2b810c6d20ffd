// Launches of the Gumbel quantisation kernels.
#include "gumbel_backward.cuh"
#include "gumbel_forward.cuh"
#include "launch.cuh"

namespace ecgfast::cuda {
namespace {

constexpr int64_t kMostChunks = 1024;
constexpr int64_t kSumBytes = 64 << 10;  // of shared memory for a block's sums of probabilities

// Half-warps of a forward block: as many as have room for their sums; whole warps.
int forward_half_warps(const GumbelQuantize& in) {
  const int64_t room = kSumBytes / (in.entries * static_cast<int64_t>(sizeof(float)));
  const int64_t most = kThreads / kHalfWarp;
  return static_cast<int>(room >= most ? most : room < 2 ? 2 : room / 2 * 2);
}

// Rows of a forward block: two per half-warp, more where that would make more than kMostChunks blocks.
int64_t forward_rows(const GumbelQuantize& in) {
  const int64_t least = 2 * forward_half_warps(in), all = least * kMostChunks;
  return least * (in.rows > all ? divide_up(in.rows, all) : 1);
}

int64_t forward_chunks(const GumbelQuantize& in) { return divide_up(in.rows, forward_rows(in)); }

bool fits(const GumbelQuantize& in) {
  return in.entries % kPack == 0 && in.entries <= kMaxGumbelEntries && in.rows <= INT32_MAX;
}

// Calls f with null pointers of the two types: equal ones, or entries of float32 or Tf32.
template <typename F>
cudaError_t with_dtypes(Dtype logits, Dtype codebook, F f) {
  return with_dtype(logits, [&](auto* element) {
    if (logits == codebook) return f(element, element);
    if (codebook == Dtype::float32) return f(element, static_cast<float*>(nullptr));
    if (codebook == Dtype::tf32) return f(element, static_cast<Tf32*>(nullptr));
    return cudaErrorInvalidValue;
  });
}

}  // namespace

int64_t gumbel_partial_size(const GumbelQuantize& in) { return forward_chunks(in) * in.groups * in.entries; }

cudaError_t gumbel_quantize(const GumbelQuantize& in, int codebook_bytes, const GumbelResult& out,
                            cudaStream_t stream) {
  if (!fits(in)) return cudaErrorInvalidValue;
  const int half_warps = forward_half_warps(in);
  const int64_t chunks = forward_chunks(in), entry_bytes = static_cast<int64_t>(in.width) * codebook_bytes;
  const int columns = in.groups * in.entries;
  SharedArena arena;
  const ForwardSums sums(arena, in.entries, half_warps);
  const cudaError_t error = with_dtype(in.logits_type, [&](auto* element) {
    using L = std::remove_pointer_t<decltype(element)>;
    return launch(gumbel_forward<L>, dim3(chunks, in.groups), dim3(half_warps * kHalfWarp), arena.used(),
                  stream, in, out, static_cast<int>(forward_rows(in)), entry_bytes,
                  multiples_of_16(entry_bytes, in.codebook, out.quantized));
  });
  if (error != cudaSuccess) return error;
  return launch(gumbel_mean, dim3(divide_up<int>(columns, kMeanColumns)), dim3(kMeanColumns * kMeanSlices),
                kMeanColumns * kMeanSlices * sizeof(float), stream, out.partial, out.mean_probs,
                static_cast<int>(chunks), columns, in.rows);
}

cudaError_t gumbel_quantize_backward(const GumbelQuantize& in, Dtype codebook_type,
                                     const GumbelGradients& gradients, cudaStream_t stream) {
  if (!fits(in)) return cudaErrorInvalidValue;
  const dim3 blocks(codebook_blocks(in) + divide_up<uint32_t>(in.rows, kTileRows), in.groups);
  return with_dtypes(in.logits_type, codebook_type, [&](auto* logit, auto* entry) {
    using L = std::remove_pointer_t<decltype(logit)>;
    using T = std::remove_pointer_t<decltype(entry)>;
    const bool rows_aligned = multiples_of_16(in.width * sizeof(T), in.codebook, gradients.grad_quantized);
    const size_t logits = shared_bytes<LogitsMemory<T>>(), codebook = shared_bytes<CodebookMemory>();
    return launch(gumbel_backward<L, T>, blocks, dim3(kThreads), logits > codebook ? logits : codebook,
                  stream, in, gradients, rows_aligned);
  });
}

}  // namespace ecgfast::cuda
