// The positional convolution's geometry, and what its products need done before and after them: 16-bit
// pieces of the operands in the order in which they are read, and the sums of partial gradients.
//
// float32 is cut into three bfloat16 pieces, which hold it exactly; of their products, the six above 2^-24 of
// the largest are summed, at the same price as three products of two tf32 terms. Tf32 is cut into two, of
// whose products three are summed, for half of that: an error of 2^-13 at most, where rounding to tf32 makes
// 2^-10.
#pragma once
#include "mma_tiles.cuh"
#include "positional_conv.h"
#include "shared_arena.cuh"

namespace ecgfast::cuda::conv {

constexpr int kSide = 48;         // channels of a tile of weights, both in and out
constexpr int kRowPieces = 6;     // of 16 bytes, in a row of so many channels
constexpr int kRun = 4;           // taps of a run, which are 8 apart
constexpr int kGroup = 8 * kRun;  // taps of 8 runs that begin side by side
constexpr int kWeightTile = kSide * kSide;

template <typename In>
struct MmaElement {
  using Type = In;
};
template <>
struct MmaElement<float> {
  using Type = __nv_bfloat16;
};
template <>
struct MmaElement<Tf32> {
  using Type = __nv_bfloat16;
};
template <typename In>
using Mma = typename MmaElement<In>::Type;
template <typename In>
constexpr int kPieces = sizeof(In) == 2 ? 1
                        : kPrecise<In>  ? 3
                                        : 2;
template <typename In>
constexpr int kPairs = kPieces<In> * (kPieces<In> + 1) / 2;

// The n-th product of pieces to sum: the smallest come first.
struct Pair {
  int a, b;
  template <typename In>
  __device__ static Pair of(int n) {
    if (kPairs<In> == 1) return {0, 0};
    if (kPairs<In> == 3) return {0x001 >> 4 * n & 0xF, 0x010 >> 4 * n & 0xF};
    return {0x001012 >> 4 * n & 0xF, 0x010210 >> 4 * n & 0xF};
  }
};

// out[t] = sum_j in[t + j - left] w[first + j] over the taps j that reach any token.
struct Geometry {
  int64_t batch;
  int tokens, groups, channels;  // channels of a group
  int kernel;                    // taps in memory
  int first, taps, left;

  explicit Geometry(const PositionalConv& in)
      : batch(in.batch),
        tokens(in.tokens),
        groups(in.groups),
        channels(in.width / in.groups),
        kernel(in.kernel) {
    const int centre = kernel / 2;
    first = centre < tokens ? 0 : centre - (tokens - 1);
    const int end = kernel - centre < tokens ? kernel : centre + tokens;
    taps = end - first;
    left = centre - first;
  }

  __host__ __device__ int width() const { return groups * channels; }
  __host__ __device__ int padded_channels() const { return divide_up<int>(channels, 16) * 16; }
  __host__ __device__ int padded_width() const { return groups * padded_channels(); }
  __host__ __device__ int sides() const { return divide_up<int>(channels, kSide); }
  __host__ __device__ int padded_taps() const { return divide_up<int>(taps, 8) * 8; }
  // Taps of each run of the group of taps that begins with `tap`.
  __host__ __device__ int run_taps(int tap) const {
    return taps - tap < kGroup ? divide_up<int>(taps - tap, 8) : kRun;
  }
  __host__ __device__ int64_t rows() const { return batch * tokens; }
  __host__ __device__ int64_t weight_tiles() const {
    return static_cast<int64_t>(groups) * sides() * sides() * padded_taps();
  }
};

// 16-bit pieces of a [B, N, groups, channels] tensor whose channels are padded to multiples of 16.
template <typename T>
struct Tokens {
  const T* data;
  int64_t piece, token;  // elements from one piece or token to the next
  int group;

  __device__ const T* at(int p, int64_t row, int g, int channel) const {
    return data + p * piece + row * token + g * group + channel;
  }
};

// Where a piece of 16 bytes of a row of kSide channels lies, in elements. Eight rows that follow each other
// lie in different banks, and so they do 8 rows or 2 pieces on.
__host__ __device__ constexpr int swizzled(int row, int piece) {
  return row * kSide + (piece ^ (row >> 2 & 1)) * 8;
}

// The next piece of `rest`, which becomes what remains. float32 is truncated, so that nothing overflows and
// the remainder is exact.
template <typename In>
__device__ Mma<In> take_piece(float& rest) {
  if constexpr (kPieces<In> == 1) {
    return from_float<In>(rest);
  } else {
    const bool finite = (__float_as_uint(rest) & 0x7F800000u) != 0x7F800000u;
    const float piece = finite ? __uint_as_float(__float_as_uint(rest) & 0xFFFF0000u) : rest;
    rest = finite ? rest - piece : 0.0f;
    return __float2bfloat16(piece);
  }
}

// Stores the pieces of eight values, `stride` elements apart. `v` is used up.
template <typename In>
__device__ void store_pieces(Mma<In>* out, int64_t stride, float (&v)[8]) {
#pragma unroll
  for (int p = 0; p < kPieces<In>; ++p) {
    Pack<Mma<In>, 8> pack;
#pragma unroll
    for (int n = 0; n < 8; ++n) pack.v[n] = take_piece<In>(v[n]);
    store_pack(out + p * stride, pack);
  }
}

__device__ inline float normal_cdf(float v) { return 0.5f * (1.0f + erff(v * 0.70710678118654752f)); }
__device__ inline float gelu(float v) { return v * normal_cdf(v); }
__device__ inline float gelu_slope(float v) {
  return normal_cdf(v) + v * 0.3989422804014327f * expf(-0.5f * v * v);
}

// N consecutive elements of a row, of which the first `count` exist; 16 bytes at a time if `aligned`.
template <int N, typename T>
__device__ void load_row(float (&v)[N], const T* row, int count, bool aligned) {
  if (aligned) {
#pragma unroll
    for (int n = 0; n < N; n += kVector<T>) {
      const Pack<T, kVector<T>> pack = load_pack<kVector<T>>(row + n);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) v[n + i] = to_float(pack.v[i]);
    }
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] = n < count ? to_float(row[n]) : 0.0f;
  }
}

template <int N, typename T>
__device__ void store_row(T* row, const float (&v)[N], int count, bool aligned) {
  if (aligned) {
#pragma unroll
    for (int n = 0; n < N; n += kVector<T>) {
      Pack<T, kVector<T>> pack;
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) pack.v[i] = from_float<T>(v[n + i]);
      store_pack(row + n, pack);
    }
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (n < count) row[n] = from_float<T>(v[n]);
  }
}

constexpr int kPackThreads = 256;
constexpr int kPackRows = 64;      // tokens of a block
constexpr int kPackColumns = 256;  // padded channels of a block, eight for each thread

// What a thread of pack_tokens turns one row's eight channels into: x, or with `conv` x times GELU's slope.
template <typename In>
struct TokenSource {
  const In* x;
  const In* conv;  // or null
  bool aligned;    // all rows, of all groups, are multiples of 16 bytes

  __device__ void load(float (&v)[8], int64_t at, int count) const {
    load_row(v, x + at, count, aligned);
    if (!conv) return;
    float c[8];
    load_row(c, conv + at, count, aligned);
#pragma unroll
    for (int n = 0; n < 8; ++n) v[n] = n < count ? v[n] * gelu_slope(c[n]) : 0.0f;
  }
};

struct PackMemory {
  float* sums;  // [8][kPackColumns]
  __host__ __device__ explicit PackMemory(SharedArena& arena) : sums(arena.take<float>(8 * kPackColumns)) {}
};

// Writes the pieces, and with `sums` the block's sum of each padded channel to sums[blockIdx.x][channel].
template <typename In>
__global__ void __launch_bounds__(kPackThreads)
    pack_tokens(Geometry g, TokenSource<In> in, Mma<In>* out, float* sums) {
  SharedArena arena;
  const PackMemory memory(arena);
  const int lane = threadIdx.x % 32, column = blockIdx.y * kPackColumns + lane * 8;
  const int group = column / g.padded_channels(), channel = column % g.padded_channels();
  const int count = column < g.padded_width() ? min(8, g.channels - channel) : 0;
  const int64_t piece = g.rows() * g.padded_width();
  float total[8] = {};
#pragma unroll 4
  for (int r = threadIdx.x / 32; r < kPackRows; r += kPackThreads / 32) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kPackRows + r;
    if (row >= g.rows() || column >= g.padded_width()) continue;
    float v[8] = {};
    if (count > 0) in.load(v, row * g.width() + group * g.channels + channel, count);
#pragma unroll
    for (int n = 0; n < 8; ++n) total[n] += v[n];
    store_pieces<In>(out + row * g.padded_width() + column, piece, v);
  }
  if (!sums) return;
#pragma unroll
  for (int n = 0; n < 8; ++n) memory.sums[threadIdx.x / 32 * kPackColumns + lane * 8 + n] = total[n];
  __syncthreads();
  const int mine = blockIdx.y * kPackColumns + threadIdx.x;
  if (mine >= g.padded_width()) return;
  float sum = 0.0f;
#pragma unroll
  for (int n = 0; n < 8; ++n) sum += memory.sums[n * kPackColumns + threadIdx.x];
  sums[static_cast<int64_t>(blockIdx.x) * g.padded_width() + mine] = sum;
}

// The bias's gradient: the sum over the blocks of pack_tokens. 32 channels for a block, eight threads each.
template <typename In>
__global__ void __launch_bounds__(kPackThreads)
    sum_bias(Geometry g, const float* sums, int64_t blocks, In* grad_bias) {
  SharedArena arena;
  const PackMemory memory(arena);
  const int lane = threadIdx.x % 32, column = blockIdx.x * 32 + lane;
  float sum = 0.0f;
  if (column < g.padded_width()) {
#pragma unroll 8
    for (int64_t b = threadIdx.x / 32; b < blocks; b += 8) sum += sums[b * g.padded_width() + column];
  }
  memory.sums[threadIdx.x] = sum;
  __syncthreads();
  const int group = column / g.padded_channels(), channel = column % g.padded_channels();
  if (threadIdx.x >= 32 || group >= g.groups || channel >= g.channels) return;
#pragma unroll
  for (int n = 1; n < 8; ++n) sum += memory.sums[n * 32 + lane];
  grad_bias[group * g.channels + channel] = from_float<In>(sum);
}

constexpr int kWeightThreads = 192;
constexpr int kWeightTaps = 32;  // brought through shared memory at a time

struct WeightMemory {
  float* taps;  // [kSide][kWeightTaps + 1]
  __host__ __device__ explicit WeightMemory(SharedArena& arena)
      : taps(arena.take<float>(kSide * (kWeightTaps + 1))) {}
};

// Where tap j of a tile's taps comes in the order of the runs.
__device__ inline int run_order(const Geometry& g, int j) {
  const int begin = j / kGroup * kGroup;
  return begin + j % 8 * g.run_taps(begin) + (j - begin) / 8;
}

// Cuts the weights into pieces and puts them into tiles [row][column], swizzled, zeros beyond the channels
// and taps: of [group][row side][piece][column side][run order]. Rows are output channels, columns input
// channels; `flip` exchanges them and reverses the taps. A block takes one row of tiles.
template <typename In>
__global__ void __launch_bounds__(kWeightThreads, 1)
    pack_weights(Geometry g, const In* weight, bool flip, Mma<In>* out) {
  SharedArena arena;
  const WeightMemory memory(arena);
  const int sides = g.sides();
  const int row = blockIdx.x % kSide, column_side = blockIdx.x / kSide % sides;
  const int row_side = blockIdx.x / kSide / sides % sides, group = blockIdx.x / kSide / sides / sides;
  const int m = row_side * kSide + row;
  const int64_t group0 = static_cast<int64_t>(group) * g.channels;
  for (int tap0 = 0; tap0 < g.padded_taps(); tap0 += kWeightTaps) {
    // All loads before the stores: they take their time together.
    In values[kSide * kWeightTaps / kWeightThreads];
#pragma unroll
    for (int i = 0; i < kSide * kWeightTaps / kWeightThreads; ++i) {
      const int v = threadIdx.x + i * kWeightThreads;
      const int c = column_side * kSide + v / kWeightTaps, j = tap0 + v % kWeightTaps;
      const bool exists = m < g.channels && c < g.channels && j < g.taps;
      const int64_t from = (group0 + (flip ? c : m)) * g.channels + (flip ? m : c);
      values[i] =
          exists ? weight[from * g.kernel + g.first + (flip ? g.taps - 1 - j : j)] : from_float<In>(0.0f);
    }
#pragma unroll
    for (int i = 0; i < kSide * kWeightTaps / kWeightThreads; ++i) {
      const int v = threadIdx.x + i * kWeightThreads;
      memory.taps[v / kWeightTaps * (kWeightTaps + 1) + v % kWeightTaps] = to_float(values[i]);
    }
    __syncthreads();
    for (int v = threadIdx.x; v < kWeightTaps * kRowPieces; v += kWeightThreads) {
      const int j = tap0 + v % kWeightTaps, chunk = v / kWeightTaps;
      if (j >= g.padded_taps()) continue;
      float columns[8];
#pragma unroll
      for (int n = 0; n < 8; ++n)
        columns[n] = memory.taps[(chunk * 8 + n) * (kWeightTaps + 1) + v % kWeightTaps];
      const int64_t tile =
          (static_cast<int64_t>(group) * sides + row_side) * kPieces<In> * sides + column_side;
      const int64_t at = (tile * g.padded_taps() + run_order(g, j)) * kWeightTile;
      store_pieces<In>(out + at + swizzled(row, chunk),
                       static_cast<int64_t>(sides) * g.padded_taps() * kWeightTile, columns);
    }
    __syncthreads();
  }
}

// The weight's gradient: the sum over the splits of partial[split][group][output side][input side][tap], each
// [output][input] channel. A block takes one output channel and one side of inputs.
template <typename In>
__global__ void __launch_bounds__(kWeightThreads, 1)
    sum_weights(Geometry g, const float* partial, int splits, In* grad_weight) {
  SharedArena arena;
  const WeightMemory memory(arena);
  const int sides = g.sides(), side = blockIdx.x % sides;
  const int row = blockIdx.x / sides, group = row / g.channels, channel = row % g.channels;
  const int64_t tile = (static_cast<int64_t>(group) * sides + channel / kSide) * sides + side;
  const int64_t split = static_cast<int64_t>(g.groups) * sides * sides * g.taps * kWeightTile;
  const int count = min(kSide, g.channels - side * kSide);
  const float* from = partial + tile * g.taps * kWeightTile + channel % kSide * kSide;
  In* to = grad_weight + (static_cast<int64_t>(row) * g.channels + side * kSide) * g.kernel;
  for (int tap0 = 0; tap0 < g.kernel; tap0 += kWeightTaps) {
#pragma unroll 4
    for (int v = threadIdx.x; v < kSide * kWeightTaps; v += kWeightThreads) {
      const int i = v % kSide, j = tap0 + v / kSide - g.first;
      float sum = 0.0f;
      if (i < count && j >= 0 && j < g.taps)
        for (int s = 0; s < splits; ++s) sum += from[s * split + static_cast<int64_t>(j) * kWeightTile + i];
      memory.taps[i * (kWeightTaps + 1) + v / kSide] = sum;
    }
    __syncthreads();
    for (int v = threadIdx.x; v < kSide * kWeightTaps; v += kWeightThreads) {
      const int i = v / kWeightTaps, tap = tap0 + v % kWeightTaps;
      if (i < count && tap < g.kernel)
        to[static_cast<int64_t>(i) * g.kernel + tap] =
            from_float<In>(memory.taps[i * (kWeightTaps + 1) + v % kWeightTaps]);
    }
    __syncthreads();
  }
}

}  // namespace ecgfast::cuda::conv
