// Gumbel quantisation, forward: one pass over the logits, then a small kernel that adds the blocks' sums of
// probabilities in a fixed order.
//
// Half a warp has one row of one group, a lane up to five packs of four columns at a time: 320 entries are
// one tile and stay in registers. Cost per logit: 2 bytes (bfloat16) and some 45 instructions (a quarter of a
// Philox block, two logarithms, an exponential, the largest and the sum), which at 7936 x 640 is 3 us of an
// H200's memory and 7 us of its instruction issue: the arithmetic bounds it.
#pragma once
#include "gumbel_rows.cuh"
#include "shared_arena.cuh"

namespace ecgfast::cuda {

constexpr int kHalfWarp = 16;
constexpr int kForwardStride = kHalfWarp * kPack, kForwardTile = kForwardStride * kPacks;
constexpr int kMeanColumns = 32, kMeanSlices = 8;

// Sums of probabilities: one row of shared memory per half-warp, whose lanes own their columns.
struct ForwardSums {
  float* sums;
  __host__ __device__ ForwardSums(SharedArena& arena, int entries, int half_warps)
      : sums(arena.take<float>(half_warps * entries)) {}
};

// What a lane, and then all of a half-warp, knows of a row.
struct GumbelState {
  float best = kNoLogit;           // the largest noisy logit
  int code = 0;                    // where it is first
  float top = kLeastTop, sum = 0;  // of exp(logit - top)

  __device__ void offer(float noisy, int column) {
    if (noisy > best) {
      best = noisy;
      code = column;
    }
  }

  // The same result in all lanes; `top` of the lane itself comes back.
  __device__ float join() {
    const float own_top = top;
#pragma unroll
    for (int lanes = 1; lanes < kHalfWarp; lanes *= 2) {
      const float other = __shfl_xor_sync(~0u, best, lanes);
      const int place = __shfl_xor_sync(~0u, code, lanes);
      if (other > best || (other == best && place < code)) {
        best = other;
        code = place;
      }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
    }
    sum *= ptx::exp2_approximate((own_top - top) * kLog2E);
#pragma unroll
    for (int lanes = 1; lanes < kHalfWarp; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    return own_top;
  }
};

// One row of one group, by half a warp.
template <typename L>
struct ForwardRow {
  const GumbelQuantize& in;
  uint32_t row;
  int group, lane;  // 0..15

  // Adds a tile to the lane's state and leaves exp(logit - state.top) in x.
  __device__ void scan(RowPacks& x, GumbelState& state, const RowNoise& noise, int column) const {
    load_logits<kForwardStride, L>(x, in, row, group, column);
    const float top = largest(x, state.top);
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      const int at = column + j * kForwardStride;
      if (at >= in.entries) continue;
      const Pack<float, kPack> drawn = noise.pack(at);
#pragma unroll
      for (int n = 0; n < kPack; ++n) state.offer(x[j][n] + drawn.v[n], at + n);
    }
    state.sum *= ptx::exp2_approximate((state.top - top) * kLog2E);
    state.top = top;
    exponentiate(x, top, kLog2E);
#pragma unroll
    for (int j = 0; j < kPacks; ++j)
#pragma unroll
      for (int n = 0; n < kPack; ++n) state.sum += x[j][n];
  }

  __device__ void add(const RowPacks& x, float scale, float* sums, int column, bool first) const {
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      const int at = column + j * kForwardStride;
      if (at >= in.entries) continue;
      Pack<float, kPack> total = first ? Pack<float, kPack>{} : load_pack<kPack>(sums + at);
#pragma unroll
      for (int n = 0; n < kPack; ++n) total.v[n] = fmaf(x[j][n], scale, total.v[n]);
      store_pack(sums + at, total);
    }
  }

  // The code, with the row's probabilities added to the sums; a row that is not `live` adds zeros.
  __device__ int choose(float* sums, bool live, bool first) const {
    const RowNoise noise(in, row, group);
    const int column = lane * kPack;
    RowPacks x;
    GumbelState state;
#pragma unroll 1
    for (int tile = 0; tile < in.entries; tile += kForwardTile) scan(x, state, noise, tile + column);
    const float own_top = state.join();
    const float scale = live ? ptx::exp2_approximate((own_top - state.top) * kLog2E) / state.sum : 0.0f;
    if (in.entries <= kForwardTile) {
      add(x, scale, sums, column, first);
    } else {
#pragma unroll 1
      for (int tile = 0; tile < in.entries; tile += kForwardTile) {
        load_logits<kForwardStride, L>(x, in, row, group, tile + column);
        exponentiate(x, own_top, kLog2E);
        add(x, scale, sums, tile + column, first);
      }
    }
    return state.code;
  }

  // Copies the entry of `bytes` bytes, a multiple of 2.
  __device__ void copy_entry(const GumbelResult& out, int code, int64_t bytes, bool whole_vectors) const {
    const char* from = static_cast<const char*>(in.codebook) + (group * in.entries + code) * bytes;
    char* to = static_cast<char*>(out.quantized) + (static_cast<int64_t>(row) * in.groups + group) * bytes;
    if (whole_vectors) {
      for (int64_t b = lane * 16; b < bytes; b += kHalfWarp * 16)
        *reinterpret_cast<uint4*>(to + b) = *reinterpret_cast<const uint4*>(from + b);
    } else {
      for (int64_t b = lane * 2; b < bytes; b += kHalfWarp * 2)
        *reinterpret_cast<uint16_t*>(to + b) = *reinterpret_cast<const uint16_t*>(from + b);
    }
  }
};

// Blocks: chunk of rows, group.
template <typename L>
__global__ void __launch_bounds__(kThreads, 3)
    gumbel_forward(GumbelQuantize in, GumbelResult out, int chunk_rows, int64_t entry_bytes,
                   bool whole_vectors) {
  SharedArena arena;
  const int half_warps = blockDim.x / kHalfWarp, half = threadIdx.x / kHalfWarp;
  const int group = blockIdx.y;
  const ForwardSums memory(arena, in.entries, half_warps);
#pragma unroll 1
  for (int i = 0; i < chunk_rows; i += half_warps) {
    const uint32_t row = blockIdx.x * chunk_rows + i + half;
    const bool live = row < in.rows;
    const ForwardRow<L> task{in, live ? row : in.rows - 1, group, static_cast<int>(threadIdx.x % kHalfWarp)};
    const int code = task.choose(memory.sums + half * in.entries, live, i == 0);
    if (!live) continue;
    if (task.lane == 0) out.codes[static_cast<int64_t>(row) * in.groups + group] = code;
    task.copy_entry(out, code, entry_bytes, whole_vectors);
  }
  __syncthreads();
  float* partial = out.partial + (static_cast<int64_t>(blockIdx.x) * in.groups + group) * in.entries;
  for (int v = threadIdx.x; v < in.entries; v += blockDim.x) {
    float sum = 0.0f;
    for (int h = 0; h < half_warps; ++h) sum += memory.sums[h * in.entries + v];
    partial[v] = sum;
  }
}

// mean_probs from the blocks' sums: a block for 32 columns, its warps each with every eighth chunk.
__global__ void __launch_bounds__(kMeanColumns* kMeanSlices)
    gumbel_mean(const float* partial, float* mean_probs, int chunks, int columns, uint32_t rows) {
  SharedArena arena;
  float* sums = arena.take<float>(kMeanColumns * kMeanSlices);
  const int lane = threadIdx.x % kMeanColumns, slice = threadIdx.x / kMeanColumns;
  const int column = blockIdx.x * kMeanColumns + lane;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 8
    for (int chunk = slice; chunk < chunks; chunk += kMeanSlices)
      sum += partial[static_cast<int64_t>(chunk) * columns + column];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0 || column >= columns) return;
  for (int s = 1; s < kMeanSlices; ++s) sum += sums[s * kMeanColumns + lane];
  mean_probs[column] = sum / static_cast<float>(rows ? rows : 1);
}

}  // namespace ecgfast::cuda
