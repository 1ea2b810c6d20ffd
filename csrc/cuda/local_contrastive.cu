// Launches of the local contrastive kernels.
#include "launch.cuh"
#include "local_contrastive.cuh"

namespace ecgfast::cuda {
namespace {

// Whether rows can be read 16 bytes at a time.
template <typename T>
bool rows_aligned(const LocalContrastive& in) {
  return multiples_of_16(in.width * sizeof(T), in.predictions, in.targets);
}

}  // namespace

cudaError_t local_contrastive(const LocalContrastive& in, Dtype dtype, const LocalContrastiveResult& out,
                              cudaStream_t stream) {
  const int64_t blocks = in.batch * n_tiles(in.tokens);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return with_product_dtype(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return launch(local_contrastive_forward<T>, dim3(blocks), dim3(kThreads),
                  shared_bytes<ForwardMemory<T>>(), stream, in, out, rows_aligned<T>(in));
  });
}

cudaError_t local_contrastive_backward(const LocalContrastive& in, Dtype dtype,
                                       const LocalContrastiveSaved& saved,
                                       const LocalContrastiveGradients& out, cudaStream_t stream) {
  const int64_t blocks = 2 * in.batch * n_tiles(in.tokens);
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return with_product_dtype(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const bool aligned = rows_aligned<T>(in) && multiples_of_16(out.predictions, out.targets);
    return launch(local_contrastive_backward<T>, dim3(blocks), dim3(kThreads),
                  shared_bytes<BackwardMemory<T>>(), stream, in, saved, out, aligned);
  });
}

}  // namespace ecgfast::cuda
