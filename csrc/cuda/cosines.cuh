// What the contrastive kernels share: norms of vectors and the temperature.
#pragma once
#include "arithmetic.cuh"

namespace ecgfast::cuda {

constexpr float kNan = __builtin_nanf("");
constexpr float kMostSquares = 3.4028235e38f;

// 1 / max(norm, 1e-8), from the sum of squares of the vector times `by`; NaN for a NaN.
__device__ __forceinline__ float inverse_norm(float squares, float by = 1.0f) {
  const float norm = sqrtf(squares);
  return by / (norm < kMinNorm ? kMinNorm : norm);
}

// What the gradient through x / |x| is multiplied by. There is none where the norm was clamped: a vector as
// good as zero has no direction.
__device__ __forceinline__ float gradient_factor(float inverse_norm) {
  return inverse_norm >= 1.0f / kMinNorm ? 0.0f : inverse_norm;
}

// Of a number's inverse, or where there is a tensor of that one. What is not positive shows as NaN.
__device__ __forceinline__ float inverse_temperature(float inverse, const float* tensor) {
  if (!tensor) return inverse;
  return *tensor > 0.0f ? 1.0f / *tensor : kNan;
}

}  // namespace ecgfast::cuda
