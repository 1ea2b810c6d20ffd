// What the kernels as plain functions share. These headers take raw device pointers, sizes and a stream: no
// PyTorch headers here or in the .cu files, so that they compile in seconds.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>

namespace ecgfast::cuda {

enum class Dtype { float32, bfloat16, float16 };

}  // namespace ecgfast::cuda
