// float32 whose products are in TF32.
#pragma once
#include <cuda_runtime_api.h>

#include <type_traits>

namespace ecgfast {

// A float32 of which products take the nearest tf32; those of float are in fp32 precision.
struct Tf32 {
  float value;
  Tf32() = default;
  __host__ __device__ __forceinline__ Tf32(float x) : value(x) {}
  __host__ __device__ __forceinline__ operator float() const { return value; }
};

// The type of the elements where there are no products.
template <typename T>
using Stored = std::conditional_t<std::is_same_v<T, Tf32>, float, T>;

// Whether products are in fp32 precision. The tensor cores' accumulation truncates, so that such products are
// summed apart over a short depth: it would drift over a long one.
template <typename T>
constexpr bool kPrecise = std::is_same_v<T, float>;

}  // namespace ecgfast
