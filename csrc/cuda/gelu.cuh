// GELU (erf) and its derivative.
#pragma once
#include "mma_tiles.cuh"

namespace ecgfast {

// The distribution function of the normal distribution. For float32 to its precision; for the 16-bit types,
// as all elements' GELU must cost less than the products beside it, a polynomial whose error in x * Phi(x) is
// below 8e-5 (minimax with Phi(4.2) = 1), a fraction of a 16-bit activation's rounding.
template <typename T>
__device__ __forceinline__ float normal_distribution(float x) {
  if constexpr (sizeof(T) == 4) {
    return 0.5f + 0.5f * erff(x * 0.70710678f);
  } else {
    const float u = fminf(fmaxf(x, -4.2f), 4.2f), t = u * u;
    float p = -9.017746645812439e-10f;
    p = fmaf(p, t, 7.941486167876575e-08f);
    p = fmaf(p, t, -3.0379719877451867e-06f);
    p = fmaf(p, t, 6.689126947728147e-05f);
    p = fmaf(p, t, -9.506619790402773e-04f);
    p = fmaf(p, t, 9.298248325763110e-03f);
    p = fmaf(p, t, -6.552824290700240e-02f);
    p = fmaf(p, t, 3.984659082574826e-01f);
    return fmaf(u, p, 0.5f);
  }
}

struct Activation {
  float value, slope;
};

template <typename T>
__device__ __forceinline__ float gelu(float x) {
  return x * normal_distribution<T>(x);
}

template <typename T>
__device__ __forceinline__ Activation gelu_and_slope(float x) {
  const float p = normal_distribution<T>(x), density = 0.39894228f * __expf(-0.5f * x * x);
  return {x * p, fmaf(x, density, p)};
}

}  // namespace ecgfast
