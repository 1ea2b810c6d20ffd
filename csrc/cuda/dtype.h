// What the kernels as plain functions share. These headers take raw device pointers, sizes and a stream: no
// PyTorch headers here or in the .cu files, so that they compile in seconds.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>

namespace ecgfast::cuda {

// tf32 is float32 in memory, of which products take what TF32 holds; only ops that say so take it.
enum class Dtype { float32, bfloat16, float16, tf32 };

inline int size_of(Dtype dtype) { return dtype == Dtype::float32 || dtype == Dtype::tf32 ? 4 : 2; }

}  // namespace ecgfast::cuda
