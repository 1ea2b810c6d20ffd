// Small arithmetic and constants that several kernels and their launches share.
#pragma once
#include <stdint.h>

#include <type_traits>

namespace ecgfast {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kMinNorm = 1e-8f;   // of a vector in a cosine
constexpr float kNothing = -1e30f;  // below any similarity, and finite: differences of it stay numbers

// In 64 bits, unless 32 are known to do.
template <typename T = int64_t>
__host__ __device__ constexpr T divide_up(std::common_type_t<T> n, std::common_type_t<T> by) {
  return (n + by - 1) / by;
}

// Over a warp's lanes, for all of them.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

}  // namespace ecgfast
