// What both passes of patch_embed share: the kept state, tiles of patches, layer 0 on chip.
#pragma once
#include "gelu.cuh"
#include "gemm_tiles.cuh"
#include "patch_embed.h"
#include "shared_arena.cuh"

namespace ecgfast::cuda {

constexpr int kPatch = 32;  // values of a patch as it is kept: (lead, tap), zeros, and a one in the end
constexpr int kOnes = kPatch - 1;  // the place of that one
template <typename T>
constexpr int kPatchSteps = kPatch / kStepDepth<T>;

// Kept from pass to pass. Layer 0 of a segment is z = scale * (w . patch) + shift per channel.
struct StemState {
  void* patches;   // [B, P, kPatch]: masked leads zero; 4-byte types centred, see Segment
  uint32_t* held;  // [B]: a bit for each lead that is kept and not all zeros
  float* means;    // [B, kPatch]: of the patches as kept
  float* spread;   // [B, W, kPatch]: covariance of the patches as kept, times w; null without slopes
  float* affine;   // [B, W, 2]: scale, shift
  float* rstd;     // [B, W]: 1 / deviation of w . patch
  void* packed;    // weights: [W, kPatch], then [C, 2 (tap), W] for every further layer
  void* hidden;    // activations of the layers 1 .. layers - 2, [B, rows, W] each
  void* slopes;    // GELU's derivative at the layers 1 .. layers - 1 likewise, or null
};

__host__ __device__ inline int stem_rows(const StemShape& s, int layer) {
  return s.tokens << (s.layers - 1 - layer);
}

// Elements of the layers 1 .. layer - 1, [B, rows, W] each.
__host__ __device__ inline int64_t stem_elements_before(const StemShape& s, int layer) {
  return s.batch * s.width * s.tokens * ((int64_t{1} << (s.layers - 1)) - (int64_t{1} << (s.layers - layer)));
}

template <typename T>
__host__ __device__ T* of_layer(void* base, const StemShape& s, int layer) {
  return static_cast<T*>(base) + stem_elements_before(s, layer);
}

// Rows first .. of a matrix of `width` columns.
template <typename T>
__host__ __device__ Source<T> rows_from(const T* matrix, int64_t first, int64_t rows, int width) {
  return {matrix + first * width, width, static_cast<int>(rows - first), width};
}

template <typename T>
__host__ __device__ const T* packed_layer(const StemState& state, const StemShape& s, int layer) {
  const int64_t before =
      layer == 0 ? 0 : int64_t{kPatch} * s.width + (layer - 1) * int64_t{2} * s.channels * s.width;
  return static_cast<const T*>(state.packed) + before;
}

// kRows patches, or kRows channels of layer 0's weights, kPatch values each.
template <typename T, int kRows>
struct PatchTile {
  using Half = RowTile<T, kRows>;  // all of it for 16-bit types
  static constexpr int kHalves = kPatch / kDepth<T>, kSize = kHalves * Half::kSize;

  __device__ static int at(int row, int column) {
    return column / kDepth<T> * Half::kSize + Half::at(row, column % kDepth<T>);
  }
  __device__ static void load(T* tile, const Source<T>& from, int row0) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) Half::load(tile + h * Half::kSize, from, row0, h * kDepth<T>);
  }
  __device__ static void left(uint32_t (&r)[4], const T* tile, int row, int step) {
    Half::left(r, tile + step / kSteps * Half::kSize, row, step % kSteps);
  }
  // All of rows row .. row + 7, as the right operand.
  __device__ static void right(uint32_t (&r)[kPatchSteps<T>][2], const T* tile, int row) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      uint32_t half[4];
      ptx::ldmatrix_x4(half, tile + h * Half::kSize + Half::at(row + lane % 8, lane / 8 * kVector<T>));
#pragma unroll
      for (int n = 0; n < 4; ++n) r[h * kSteps + n / 2][n % 2] = half[n];
    }
  }
  // With the depth down the rows of the tile, from `row`: values column .. column + 15 on the left ...
  __device__ static void left_down(uint32_t (&r)[4], const T* tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
      ptx::ldmatrix_x4_trans(r, tile + at(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        r[n] = __float_as_uint(tile[at(row + lane % 4 + n / 2 * 4, column + lane / 4 + n % 2 * 8)]);
    }
  }
  // ... and on the right.
  __device__ static void right_down(uint32_t (&r)[4], const T* tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
      ptx::ldmatrix_x4_trans(r, tile + at(row + lane % 8 + lane / 8 % 2 * 8, column + lane / 16 * 8));
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        r[n] = __float_as_uint(tile[at(row + lane % 4 + n % 2 * 4, column + lane / 4 + n / 2 * 8)]);
    }
  }
};

// Most sets of few leads are of the first eight (limb leads, V1, V2), half of a patch: where layer 0 is made
// for layer 1 its products stop there. In stem_grad_first, which has no registers left for a second form of
// its loop, they don't.
constexpr int kHalfLeads = kPatch / 4;
template <typename T>
struct AllSteps {
  static constexpr int value = kPatchSteps<T>;
};
template <typename T>
struct HalfSteps {
  static constexpr int value = kPatchSteps<T> / 2;
};

// Calls f with the steps that the products of a segment, or of several, with these leads are made of.
template <typename T, typename F>
__device__ __forceinline__ void with_patch_steps(uint32_t held, const F& f) {
  if (held >> kHalfLeads)
    f(AllSteps<T>());
  else
    f(HalfSteps<T>());
}

// Starts the copy of scale and shift of kChannels channels from `channel` on; zeros beyond the width.
template <int kChannels>
__device__ __forceinline__ void load_affine(float* tile, const float* affine, int channel, int width) {
  const int n = 2 * threadIdx.x;
  if (n >= kChannels) return;
  const bool valid = channel + n < width;
  ptx::cp_async_16(tile + 2 * n, affine + (valid ? 2 * (channel + n) : 0), valid);
}

// Products w . patch of layer 0 for 16 patches by 8 channels, given as fragments, in so many of their steps.
template <typename T, int kCount>
__device__ __forceinline__ void products0(float (&z)[4], const uint32_t (&patches)[kPatchSteps<T>][4],
                                          const uint32_t (&weights)[kPatchSteps<T>][2]) {
#pragma unroll
  for (int n = 0; n < 4; ++n) z[n] = 0.0f;
#pragma unroll
  for (int step = 0; step < kCount; ++step)
    mma_step(z, patches[step], weights[step], static_cast<const T*>(nullptr));
}

// From products to pre-activations; `affine` begins at the first channel.
__device__ __forceinline__ void fold_norm(float (&z)[4], const float* affine) {
  const Pack<float, 4> fold = load_pack<4>(affine + threadIdx.x % 4 * 4);
#pragma unroll
  for (int n = 0; n < 4; ++n) z[n] = fmaf(z[n], fold.v[n % 2 * 2], fold.v[n % 2 * 2 + 1]);
}

template <typename T, int kCount>
__device__ __forceinline__ void layer0(float (&z)[4], const uint32_t (&patches)[kPatchSteps<T>][4],
                                       const uint32_t (&weights)[kPatchSteps<T>][2], const float* affine) {
  products0<T, kCount>(z, patches, weights);
  fold_norm(z, affine);
}

// Samples of a segment that count, and patches that the norm's statistics are of.
__device__ __forceinline__ int valid_samples(const StemShape& s, const int64_t* lengths, int64_t b) {
  if (!lengths) return s.samples;
  const int64_t length = lengths[b];
  return length < 0 ? 0 : length < s.samples ? static_cast<int>(length) : s.samples;
}

constexpr int kNormWeight = kPatch - 2;  // places beside layer 0's weights in a segment's gradients
constexpr int kNormBias = kPatch - 1;
static_assert(2 * kStemMaxLeads <= kNormWeight);

// The weights of a channel of layer 0; the place of the ones and the places beyond the leads are zero.
template <typename T>
__device__ __forceinline__ void load_patch_weights(float (&w)[kPatch], const T* weights) {
#pragma unroll
  for (int k = 0; k < kPatch; k += kVector<T>) {
    const Pack<T, kVector<T>> pack = load_pack<kVector<T>>(weights + k);
#pragma unroll
    for (int n = 0; n < kVector<T>; ++n) w[k + n] = to_float(pack.v[n]);
  }
}

// w . x over a patch's values.
__device__ __forceinline__ float patch_dot(const float (&w)[kPatch], const float* x) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kPatch; k += 4) {
    const Pack<float, 4> four = load_pack<4>(x + k);
#pragma unroll
    for (int n = 0; n < 4; ++n) sum = fmaf(w[k + n], four.v[n], sum);
  }
  return sum;
}

}  // namespace ecgfast::cuda
