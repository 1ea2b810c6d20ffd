// What the Gumbel quantisation kernels share: a thread's packs of four neighbouring columns of a row, and the
// noise for them. One Philox block serves a pack, and nothing of the noise is ever stored: drawing it twice
// costs some 30 instructions per element, writing and reading it 8 bytes.
#pragma once
#include "../common/philox.h"
#include "gumbel_quantize.h"
#include "mma_tiles.cuh"

namespace ecgfast::cuda {

constexpr float kNoLogit = -kInfinity;
constexpr float kLeastTop = -1e20f;  // below any logit that matters, and finite: differences stay numbers
constexpr int kPacks = 5;            // of a thread in a tile
constexpr int kPack = 4;             // columns

// A thread's share of a row: columns column + pack * stride .. + 3 of each pack.
using RowPacks = float[kPacks][kPack];

// x becomes exp(x - top) for factor kLog2E. The difference comes first: x and top may be large and alike.
__device__ __forceinline__ void exponentiate(RowPacks& x, float top, float factor) {
#pragma unroll
  for (int j = 0; j < kPacks; ++j)
#pragma unroll
    for (int n = 0; n < kPack; ++n) x[j][n] = ptx::exp2_approximate((x[j][n] - top) * factor);
}

__device__ __forceinline__ float largest(const RowPacks& x, float top) {
#pragma unroll
  for (int j = 0; j < kPacks; ++j)
#pragma unroll
    for (int n = 0; n < kPack; ++n) top = fmaxf(top, x[j][n]);
  return top;
}

// -log(-log(u)) for u = (top 23 bits + 1/2) / 2^23. Near u = 1, where the largest noise comes from, log(u)
// is u - 1 times a polynomial (1.2e-7 relative, degree 6 on 0.75..1): the hardware's logarithm is
// only good to 2^-22 absolute there.
__device__ __forceinline__ float gumbel_noise(uint32_t word) {
  const float u = __uint_as_float(0x3F800000u | word >> 9) - (1.0f - 0x1p-24f), w = 1.0f - u;
  float series = 0.333775371f;
  series = fmaf(series, w, 0.0896206349f);
  series = fmaf(series, w, 0.214224279f);
  series = fmaf(series, w, 0.248693839f);
  series = fmaf(series, w, 0.33338955f);
  series = fmaf(series, w, 0.499999106f);
  series = fmaf(series, w, 1.0f);
  const float rate = u < 0.75f ? -kLn2 * ptx::log2_approximate(u) : series * w;
  return -kLn2 * ptx::log2_approximate(rate);
}

// The element at which a row's group begins.
__device__ __forceinline__ int64_t row_offset(const GumbelQuantize& in, uint32_t row, int group) {
  return (static_cast<int64_t>(row) * in.groups + group) * in.entries;
}

// The noise of one row and group.
struct RowNoise {
  const GumbelQuantize& in;
  uint32_t row;
  int group;
  uint32_t first = 0;  // Philox block
  Stream stream = {};

  __device__ __forceinline__ RowNoise(const GumbelQuantize& in_, uint32_t row_, int group_)
      : in(in_), row(row_), group(group_) {
    if (in.noise || !in.rng) return;
    const uint32_t sample = row / in.rows_per_sample, within = row - sample * in.rows_per_sample;
    stream = make_stream(in.rng[0], in.rng[1], in.sample_ids ? in.sample_ids[sample] : 0, Purpose::gumbel);
    first = (within * in.groups + group) * static_cast<uint32_t>(in.entries / kPack);
  }

  // That of the pack at a column below V; zero if there is none.
  __device__ __forceinline__ Pack<float, kPack> pack(int column) const {
    Pack<float, kPack> noise = {};
    if (in.noise) {
      noise = load_pack<kPack>(in.noise + row_offset(in, row, group) + column);
    } else if (in.rng) {
      const Words words = block(stream, first + column / kPack);
#pragma unroll
      for (int n = 0; n < kPack; ++n) noise.v[n] = gumbel_noise(words.v[n]);
    }
    return noise;
  }
};

// The packs that begin below `entries`; the others become `beyond`.
template <int kStride, typename T>
__device__ __forceinline__ void load_packs(RowPacks& x, const T* row, int column, int entries, float beyond) {
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    const int at = column + j * kStride;
    const bool inside = at < entries;
    const Pack<T, kPack> pack = inside ? load_pack<kPack>(row + at) : Pack<T, kPack>{};
#pragma unroll
    for (int n = 0; n < kPack; ++n) x[j][n] = inside ? to_float(pack.v[n]) : beyond;
  }
}

template <int kStride, typename T>
__device__ __forceinline__ void store_packs(const RowPacks& x, T* row, int column, int entries) {
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    const int at = column + j * kStride;
    Pack<T, kPack> pack;
#pragma unroll
    for (int n = 0; n < kPack; ++n) pack.v[n] = from_float<T>(x[j][n]);
    if (at < entries) store_pack(row + at, pack);
  }
}

template <int kStride, typename L>
__device__ __forceinline__ void load_logits(RowPacks& x, const GumbelQuantize& in, uint32_t row, int group,
                                            int column) {
  const L* logits = static_cast<const L*>(in.logits) + row_offset(in, row, group);
  load_packs<kStride>(x, logits, column, in.entries, kNoLogit);
}

}  // namespace ecgfast::cuda
