// What the kernels of the global contrastive loss share: shapes of tiles, rows, groups, logsumexps under way.
#pragma once
#include "cosines.cuh"
#include "product_tiles.cuh"

namespace ecgfast::cuda {

constexpr float kMostBounded = 64.0f;  // of 2 / temperature: exp(-64) is far from underflow
constexpr int kRowThreads = 256;       // of the kernels that are not products

template <typename T>
struct GlobalShapes {
  using Similarities = Shape<T, 128, 128, 2, 2, 3, 2>;
  using Products = Shape<T, 256, 128, 4, 2, 4, 1>;
  using Small = Shape<T, 64, 64, 2, 2, 6, 2>;
};

// One row of an input, read by a warp in packs, zeros beyond its end. `aligned`: at multiples of 16 bytes.
template <typename T>
struct RowReader {
  const T* row;
  int width;
  bool aligned;

  // f(column, pack) for the lane's packs.
  template <typename F>
  __device__ void each(F f) const {
    for (int c = threadIdx.x % 32 * kVector<T>; c < width; c += 32 * kVector<T>) {
      Pack<T, kVector<T>> pack;
      if (aligned) {
        pack = load_pack<kVector<T>>(row + c);
      } else {
#pragma unroll
        for (int n = 0; n < kVector<T>; ++n) pack.v[n] = c + n < width ? row[c + n] : from_float<T>(0.0f);
      }
      f(c, pack);
    }
  }
};

// A lane's share of the squares of a row times a power of two.
template <typename T>
__device__ __forceinline__ float sum_squares(const RowReader<T>& reader, float by) {
  float squares = 0.0f;
  reader.each([&](int, const Pack<T, kVector<T>>& pack) {
#pragma unroll
    for (int n = 0; n < kVector<T>; ++n) {
      const float x = to_float(pack.v[n]) * by;
      squares = fmaf(x, x, squares);
    }
  });
  return squares;
}

// 16 bits, of which groups that are equal have the same.
__device__ __forceinline__ uint32_t group_key(int64_t group) {
  return (static_cast<uint32_t>(group) ^ static_cast<uint32_t>(group >> 32) * 0x85EBCA77u) * 0x9E3779B1u >>
         16;
}

// A thread's columns of a tile are worked on in groups of so many, to spare registers.
constexpr int kGroup = 8;

// A logsumexp under way: shift + log2(sum), in powers of two.
using Partial = float2;

__device__ inline Partial merge(const Partial& x, const Partial& y) {
  const float top = fmaxf(x.x, y.x);
  return {top, x.y * ptx::exp2_approximate(x.x - top) + y.y * ptx::exp2_approximate(y.x - top)};
}

// Tiles first .. last - 1 of a side.
struct TileRange {
  int first, last;
  __device__ TileRange(int64_t rows, int tile, int region, int regions) {
    const int64_t tiles = divide_up(rows, tile);
    first = static_cast<int>(tiles * region / regions);
    last = static_cast<int>(tiles * (region + 1) / regions);
  }
};

// Large tiles have no registers left for running maxima.
template <typename S>
constexpr bool kBoundedOnly = S::m >= 128;

}  // namespace ecgfast::cuda
