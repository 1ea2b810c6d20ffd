// Launches of the local contrastive kernels.
#include "local_contrastive.cuh"

namespace ecgfast::cuda {
namespace {

template <typename Memory>
size_t shared_bytes() {
  SharedArena arena;
  Memory memory(arena);
  return arena.used();
}

// Whether rows can be read 16 bytes at a time.
template <typename T>
bool rows_aligned(const LocalContrastive& in, std::initializer_list<const void*> more = {}) {
  uintptr_t bits = in.width * sizeof(T) | reinterpret_cast<uintptr_t>(in.predictions) |
                   reinterpret_cast<uintptr_t>(in.targets);
  for (const void* p : more) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16 == 0;
}

template <typename Kernel, typename... Arguments>
cudaError_t launch(Kernel kernel, int64_t blocks, size_t shared, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) {
    cudaGetLastError();  // an architecture without a kernel image fails here; the error is returned, not left
                         // behind
    return error;
  }
  kernel<<<static_cast<unsigned>(blocks), kThreads, shared, stream>>>(arguments...);
  return cudaGetLastError();
}

template <typename T>
cudaError_t forward(const LocalContrastive& in, const LocalContrastiveResult& out, cudaStream_t stream) {
  return launch(local_contrastive_forward<T>, in.batch * n_tiles(in.tokens), shared_bytes<ForwardMemory<T>>(),
                stream, in, out, rows_aligned<T>(in));
}

template <typename T>
cudaError_t backward(const LocalContrastive& in, const LocalContrastiveSaved& saved, void* grad_predictions,
                     void* grad_targets, cudaStream_t stream) {
  return launch(local_contrastive_backward<T>, 2 * in.batch * n_tiles(in.tokens),
                shared_bytes<BackwardMemory<T>>(), stream, in, saved, static_cast<T*>(grad_predictions),
                static_cast<T*>(grad_targets), rows_aligned<T>(in, {grad_predictions, grad_targets}));
}

}  // namespace

cudaError_t local_contrastive(const LocalContrastive& in, Dtype dtype, const LocalContrastiveResult& out,
                              cudaStream_t stream) {
  switch (dtype) {
    case Dtype::float32:
      return forward<float>(in, out, stream);
    case Dtype::bfloat16:
      return forward<__nv_bfloat16>(in, out, stream);
    case Dtype::float16:
      return forward<__half>(in, out, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t local_contrastive_backward(const LocalContrastive& in, Dtype dtype,
                                       const LocalContrastiveSaved& saved, void* grad_predictions,
                                       void* grad_targets, cudaStream_t stream) {
  switch (dtype) {
    case Dtype::float32:
      return backward<float>(in, saved, grad_predictions, grad_targets, stream);
    case Dtype::bfloat16:
      return backward<__nv_bfloat16>(in, saved, grad_predictions, grad_targets, stream);
    case Dtype::float16:
      return backward<__half>(in, saved, grad_predictions, grad_targets, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ecgfast::cuda
