// Launches of kernels, the same source for the GPU and for the emulator of the tests.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "arithmetic.cuh"
#include "dtype.h"
#include "shared_arena.cuh"
#include "tf32.cuh"

namespace ecgfast::cuda {

// The dynamic shared memory of a kernel whose arrays `Memory` lays out.
template <typename Memory>
size_t shared_bytes() {
  SharedArena arena;
  Memory memory(arena);
  return arena.used();
}

// Whether all of the addresses and byte counts are multiples of 16.
template <typename... Values>
bool multiples_of_16(Values... values) {
  return ((uint64_t)values | ... | 0) % 16 == 0;
}

// Calls f with a null pointer of the element type.
template <typename F>
cudaError_t with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::float32:
      return f(static_cast<float*>(nullptr));
    case Dtype::bfloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case Dtype::float16:
      return f(static_cast<__half*>(nullptr));
    case Dtype::tf32:
      break;
  }
  return cudaErrorInvalidValue;
}

// The same for kernels whose products may be in TF32.
template <typename F>
cudaError_t with_product_dtype(Dtype dtype, F f) {
  return dtype == Dtype::tf32 ? f(static_cast<Tf32*>(nullptr)) : with_dtype(dtype, f);
}

// Launches kernel(arguments...); an empty grid is no launch. An error is returned and not left behind in the
// runtime.
template <typename... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), dim3 grid, dim3 threads, size_t shared, cudaStream_t stream,
                   const std::common_type_t<Arguments>&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
#if defined(ECGFAST_EMULATED)
  (void)stream;
  emu::launch(grid, threads, shared, [&] { kernel(arguments...); });
  return cudaSuccess;
#else
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) {
    cudaGetLastError();
    return error;
  }
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  const cudaError_t launched = cudaLaunchKernel(kernel, grid, threads, pointers, shared, stream);
  cudaGetLastError();
  return launched;
#endif
}

}  // namespace ecgfast::cuda
