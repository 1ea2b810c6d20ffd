// Products of 64-row tiles on tensor cores, by a block of 256 threads.
//
// Rows of a matrix come through shared memory in chunks of 64 columns, padded so that eight rows of a 16-byte
// column lie in different banks. Of a 64 x 64 tile, warp w owns rows 16 * (w % 4) .. + 15 and columns 32 * (w
// / 4) .. + 31, as four 16 x 8 fragments. bfloat16 and float16 multiply exactly in m16n8k16; float32 is split
// into two tf32 terms, of which the product of the two low ones is dropped (2^-22 relative); Tf32 is rounded.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "arithmetic.cuh"
#include "ptx.cuh"
#include "tf32.cuh"

namespace ecgfast {

constexpr int kTile = 64;
constexpr int kThreads = 256;
constexpr int kMaxWidth = 1 << 24;
constexpr int kFragments = 4;  // of a warp, side by side

template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // elements of 16 bytes

// Elements from one row of a chunk to the next.
template <typename T>
constexpr int kPitch = kTile + kVector<T>;
template <typename T>
constexpr int kChunkSize = kTile * kPitch<T>;

// What a thread holds of a tile: rows row() and row() + 8, columns column(f) and column(f) + 1 of each
// fragment. Element n of a fragment lies at row() + n / 2 * 8, column(f) + n % 2.
struct Place {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int band = warp % 4 * 16, half = warp / 4;

  __device__ int row() const { return band + lane / 4; }
  __device__ int column(int fragment) const { return half * 32 + fragment * 8 + lane % 4 * 2; }
};

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// N elements at an address that is a multiple of their size.
template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <int N, typename T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Tf32 x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ Tf32 from_float<Tf32>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half(x);
}

// Up to kTile rows of a row-major matrix, of at most kMaxWidth columns so that 32-bit offsets reach them.
// `aligned`: rows begin at multiples of 16 bytes.
template <typename T>
struct Rows {
  const T* data;
  int count, width;
  bool aligned;
};

// Copies columns column .. column + 63 of up to 64 rows to shared memory, zeros beyond the matrix. Without
// cp.async where rows are not aligned. To be followed by cp_async_commit, cp_async_wait and a barrier.
template <typename T>
__device__ void load_chunk(T* chunk, const Rows<T>& rows, int column) {
  constexpr int kPerRow = kTile / kVector<T>;
  if (rows.aligned) {
    for (int v = threadIdx.x; v < kTile * kPerRow; v += kThreads) {
      const int row = v / kPerRow, c = v % kPerRow * kVector<T>;
      const bool valid = row < rows.count && column + c < rows.width;
      const int from = valid ? row * rows.width + column + c : 0;
      ptx::cp_async_16(chunk + row * kPitch<T> + c, rows.data + from, valid);
    }
  } else {
#pragma unroll 4
    for (int v = threadIdx.x; v < kTile * kTile; v += kThreads) {
      const int row = v / kTile, c = v % kTile;
      const bool valid = row < rows.count && column + c < rows.width;
      chunk[row * kPitch<T> + c] = valid ? rows.data[row * rows.width + column + c] : from_float<T>(0.0f);
    }
  }
}

// A float32 as the sum of two tf32.
struct Split {
  uint32_t high, low;
  __device__ __forceinline__ explicit Split(float x) {
    high = ptx::to_tf32(x);
    low = ptx::to_tf32(x - __uint_as_float(high));
  }
};

// c += a b in fp32 precision.
__device__ __forceinline__ void mma_split(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Split a0(__uint_as_float(a[0])), a1(__uint_as_float(a[1])), a2(__uint_as_float(a[2])),
      a3(__uint_as_float(a[3])), b0(__uint_as_float(b[0])), b1(__uint_as_float(b[1]));
  const uint32_t a_high[4] = {a0.high, a1.high, a2.high, a3.high},
                 a_low[4] = {a0.low, a1.low, a2.low, a3.low};
  const uint32_t b_high[2] = {b0.high, b1.high}, b_low[2] = {b0.low, b1.low};
  ptx::mma_m16n8k8_tf32(c, a_low, b_high);
  ptx::mma_m16n8k8_tf32(c, a_high, b_low);
  ptx::mma_m16n8k8_tf32(c, a_high, b_high);
}

// The words of a fragment of float32, rounded to tf32.
template <int N>
struct Rounded {
  uint32_t words[N];
  __device__ __forceinline__ explicit Rounded(const uint32_t (&w)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) words[n] = ptx::to_tf32(__uint_as_float(w[n]));
  }
};

// One step of 32 bytes along the rows of both operands.
__device__ __forceinline__ void mma_step(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         const __nv_bfloat16*) {
  ptx::mma_m16n8k16_bf16(c, a, b);
}
__device__ __forceinline__ void mma_step(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         const __half*) {
  ptx::mma_m16n8k16_f16(c, a, b);
}
__device__ __forceinline__ void mma_step(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         const float*) {
  mma_split(c, a, b);
}
__device__ __forceinline__ void mma_step(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         const Tf32*) {
  ptx::mma_m16n8k8_tf32(c, Rounded(a).words, Rounded(b).words);
}

// sums += a b; float32 as a sum apart, see kPrecise.
template <typename T>
__device__ __forceinline__ void add_step(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                         const T* type) {
  if constexpr (kPrecise<T>) {
    float part[4] = {};
    mma_step(part, a, b, type);
#pragma unroll
    for (int n = 0; n < 4; ++n) sums[n] += part[n];
  } else {
    mma_step(sums, a, b, type);
  }
}

// sums += x y^T over the 64 columns of the chunks x and y. A chunk is summed apart and added as a whole: the
// tensor cores' accumulation truncates, and would drift over a long row.
template <typename T>
__device__ void add_gram(float (&sums)[kFragments][4], const T* x, const T* y, const Place& at) {
  constexpr int kStep = 32 / sizeof(T);
  float part[kFragments][4] = {};
  const T* a_row = x + (at.band + at.lane % 16) * kPitch<T> + at.lane / 16 * (kStep / 2);
  const T* b_row =
      y + (at.half * 32 + at.lane % 8 + at.lane / 16 * 8) * kPitch<T> + at.lane / 8 % 2 * (kStep / 2);
#pragma unroll 2
  for (int k = 0; k < kTile; k += kStep) {
    uint32_t a[4], b[2][4];
    ptx::ldmatrix_x4(a, a_row + k);
    ptx::ldmatrix_x4(b[0], b_row + k);
    ptx::ldmatrix_x4(b[1], b_row + 16 * kPitch<T> + k);
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
      mma_step(part[f], a, {b[f / 2][f % 2 * 2], b[f / 2][f % 2 * 2 + 1]}, x);
  }
#pragma unroll
  for (int f = 0; f < kFragments; ++f)
#pragma unroll
    for (int n = 0; n < 4; ++n) sums[f][n] += part[f][n];
}

// sums += w y for the 64 x 64 float tile w (pitch kPitch<float>) and the chunk y, over the first `depth` rows
// of y. In tf32, which holds a bfloat16 or float16 exactly; w is rounded to tf32, but split for
// float32. Here column c of a warp's 32 is column c / 4 of fragment c % 4, so that a thread reads 4 and holds
// 8 consecutive ones: sums[f][n] is column 8 * (lane % 4) + f + n % 2 * 4.
template <typename T>
__device__ void add_product(float (&sums)[kFragments][4], const float* w, const T* y, int depth,
                            const Place& at) {
  const float* a_row = w + (at.band + at.lane % 16) * kPitch<float> + at.lane / 16 * 4;
  const T* b_row = y + at.lane % 4 * kPitch<T> + at.half * 32 + at.lane / 4 * 4;
#pragma unroll 2
  for (int k = 0; k < depth; k += 8) {
    uint32_t a[4];
    ptx::ldmatrix_x4(a, a_row + k);
    const Pack<T, 4> upper = load_pack<4>(b_row + k * kPitch<T>),
                     lower = load_pack<4>(b_row + (k + 4) * kPitch<T>);
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int n = 0; n < 4; ++n) a[n] = ptx::to_tf32(__uint_as_float(a[n]));
    }
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const uint32_t b[2] = {__float_as_uint(to_float(upper.v[f])), __float_as_uint(to_float(lower.v[f]))};
      if constexpr (sizeof(T) == 2)
        ptx::mma_m16n8k8_tf32(sums[f], a, b);
      else
        mma_step(sums[f], a, b, y);
    }
  }
}

}  // namespace ecgfast
