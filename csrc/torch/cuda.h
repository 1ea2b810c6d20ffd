// What the CUDA sides of the ops share: the stream, the dtype, checks. Nothing here waits for the device.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>

#include "../cuda/dtype.h"
#include "common.h"

namespace ecgfast {

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

inline cuda::Dtype cuda_dtype(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return cuda::Dtype::float32;
    case ScalarType::BFloat16:
      return cuda::Dtype::bfloat16;
    case ScalarType::Half:
      return cuda::Dtype::float16;
    default:
      STD_TORCH_CHECK(false, op, ": takes float32, bfloat16 or float16 on CUDA");
  }
}

// That of an op whose kernels have products: `tf32` is for float32 alone.
inline cuda::Dtype cuda_dtype(const Tensor& t, const char* op, bool tf32) {
  const cuda::Dtype dtype = cuda_dtype(t, op);
  return tf32 && dtype == cuda::Dtype::float32 ? cuda::Dtype::tf32 : dtype;
}

inline void check_device(const char* op, const Tensor& first, const std::optional<Tensor>& t) {
  STD_TORCH_CHECK(!t.has_value() || (t->is_cuda() && t->get_device_index() == first.get_device_index()), op,
                  ": all tensors must be on one CUDA device");
}

// The values of a temperature that is a tensor, for the kernels to read.
inline const float* temperature_of(const char* op, const Tensor& like, double number,
                                   const std::optional<Tensor>& tensor) {
  check_temperature(op, number, tensor, ScalarType::Float);
  check_device(op, like, tensor);
  return data_or_null<float>(tensor);
}

}  // namespace ecgfast
