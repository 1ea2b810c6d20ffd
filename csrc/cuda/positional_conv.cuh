// The grouped convolution over time of positional_conv, and its weight's gradient, as products on tensor
// cores, without im2col: rows of a segment lie in shared memory as [token][channel], so a shifted tap is
// another first row. Taps 8 apart use the same 8-row fragments of tokens; a warp keeps those of a run of such
// taps in registers, and an mma costs 80 bytes of shared memory rather than 210.
//
// Cost, for B segments of N tokens and E channels in groups of C: 2 B N E C K operations for each of forward,
// grad of x and grad of weight (less up to 20 % of products with the padding, of which most are left out).
// 188 GFLOP each for the paper's model and B = 128, against 60 to 170 MB moved: bound by the tensor cores.
// Weights (9 MB) come from L2 through cp.async, 13 bytes for an mma. All sums have a fixed order.
#pragma once
#include "positional_conv_pack.cuh"

namespace ecgfast::cuda::conv {

// The rows of a window of tokens that exist: others are zeros, and products with them are left out.
struct Range {
  int begin, end;
  __device__ bool meets(int first, int count) const { return first < end && first + count > begin; }
};

// Convolution: out = conv(in), both [token][channel]; a block takes two tiles of tokens and one side of
// output channels

constexpr int kConvThreads = 128;
constexpr int kUnits = 2;  // tiles of tokens of a block: two warps each
constexpr int kSumPitch = kSide + 4;

// 8-token blocks of a warp. float32 sums apart what a run adds (see kPrecise).
template <typename In>
constexpr int kTokenBlocks = kPrecise<In> ? 5 : 10;
template <typename In>
constexpr int kUnitTokens = 2 * 8 * kTokenBlocks<In>;

template <typename In>
struct ConvMemory {
  static constexpr int kWindow = (kTokenBlocks<In> + kRun) / 2 * 2;  // blocks that a warp loads for a run
  static constexpr int kRows = 8 * kTokenBlocks<In> + 7 + 8 * kWindow;
  Mma<In>* weights;  // [2][kRun][kWeightTile]; in the end each warp's sums
  Mma<In>* tokens;   // [kUnits][kRows][kSide]
  __host__ __device__ explicit ConvMemory(SharedArena& arena)
      : weights(arena.take<Mma<In>>(2 * kRun * kWeightTile)),
        tokens(arena.take<Mma<In>>(kUnits * kRows * kSide)) {}
};

template <typename In>
struct Convolution {
  Geometry g;
  Tokens<Mma<In>> in;
  const Mma<In>* weights;  // as pack_weights leaves them
  const In* bias;          // or null: out = residual + conv(in)
  const In* residual;      // [B, N, E]
  In* conv;                // [B, N, E] or null: conv(in) + bias
  In* out;                 // [B, N, E]: residual + GELU(conv(in) + bias)
  bool aligned;            // rows of a group, in residual, conv and out, are multiples of 16 bytes
};

// A block's place, and what it loads when.
template <typename In>
struct ConvTask {
  using T = Mma<In>;
  const Convolution<In>& a;
  const ConvMemory<In>& memory;
  int group, side;
  int64_t unit;  // the first of two; beyond the last are none
  int tiles;     // units of a segment

  // One step of the sum: 32 taps, one side of input channels, one pair of pieces.
  struct Pass {
    int tap, side, pair;
  };

  __device__ int passes() const { return kPairs<In> * a.g.sides() * divide_up<int>(a.g.taps, kGroup); }
  __device__ Pass pass(int n) const {
    const int groups_of_taps = divide_up<int>(a.g.taps, kGroup);
    return {n % groups_of_taps * kGroup, n / groups_of_taps % a.g.sides(), n / groups_of_taps / a.g.sides()};
  }
  __device__ bool exists(int u) const { return unit + u < a.g.batch * tiles; }
  __device__ int first_token(int u) const { return static_cast<int>((unit + u) % tiles) * kUnitTokens<In>; }
  // Of the window's rows in a pass.
  __device__ Range tokens_there(int u, const Pass& p) const {
    if (!exists(u)) return {0, 0};
    const int first = first_token(u) + p.tap - a.g.left;
    return {-first, a.g.tokens - first};
  }

  __device__ void load_tokens(const Pass& p) const {
    constexpr int kRows = ConvMemory<In>::kRows;
    const int piece = Pair::of<In>(p.pair).b, channel0 = p.side * kSide;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const Range there = tokens_there(u, p);
      const int64_t row0 = (unit + u) / tiles * a.g.tokens - there.begin;
      T* to = memory.tokens + u * kRows * kSide;
      for (int v = threadIdx.x; v < kRows * kRowPieces; v += kConvThreads) {
        const int row = v / kRowPieces, c = v % kRowPieces;
        const bool valid = row >= there.begin && row < there.end && channel0 + c * 8 < a.g.padded_channels();
        const T* from = valid ? a.in.at(piece, row0 + row, group, channel0 + c * 8) : a.in.data;
        ptx::cp_async_16(to + swizzled(row, c), from, valid);
      }
    }
  }

  // The taps tap + r, tap + r + 8, ... of a pass.
  __device__ void load_weights(const Pass& p, int r, int stage) const {
    const int taps = a.g.run_taps(p.tap), sides = a.g.sides();
    const int64_t tile =
        ((static_cast<int64_t>(group) * sides + side) * kPieces<In> + Pair::of<In>(p.pair).a) * sides +
        p.side;
    const T* from = a.weights + (tile * a.g.padded_taps() + p.tap + r * taps) * kWeightTile;
    T* to = memory.weights + stage * kRun * kWeightTile;
#pragma unroll 3
    for (int v = threadIdx.x; v < taps * kWeightTile / 8; v += kConvThreads)
      ptx::cp_async_16(to + v * 8, from + v * 8, true);
  }
};

// sums[token block][output side / 16] += the products of a run: `weights` and `tokens` are the lane's own
// addresses for ldmatrix, `there` the rows that exist, counted from the warp's first.
template <int kBlocks, typename T>
__device__ void add_run(float (&sums)[kBlocks][3][4], const T* weights, const T* tokens, int steps, int taps,
                        Range there) {
  constexpr int kWindow = (kBlocks + kRun) / 2 * 2, kHalf = (kBlocks + 1) / 2;
#pragma unroll 1
  for (int step = 0; step < steps; ++step, weights += 16, tokens += 16) {
    uint32_t window[kWindow][2];
#pragma unroll
    for (int i = 0; i < kWindow; i += 2) {
      uint32_t r[4];
      ptx::ldmatrix_x4(r, tokens + i * 8 * kSide);
      window[i][0] = r[0], window[i][1] = r[1], window[i + 1][0] = r[2], window[i + 1][1] = r[3];
    }
    uint32_t w[2][3][4];
#pragma unroll
    for (int m = 0; m < 3; ++m) ptx::ldmatrix_x4(w[0][m], weights + m * 16 * kSide);
#pragma unroll
    for (int q = 0; q < kRun; ++q) {
      if (q >= taps) break;
      if (q + 1 < kRun && q + 1 < taps) {
#pragma unroll
        for (int m = 0; m < 3; ++m)
          ptx::ldmatrix_x4(w[(q + 1) % 2][m], weights + (q + 1) * kWeightTile + m * 16 * kSide);
      }
#pragma unroll
      for (int half = 0; half < kBlocks; half += kHalf) {
        if (!there.meets(8 * (q + half), 8 * kHalf)) continue;
#pragma unroll
        for (int n = half; n < kBlocks && n < half + kHalf; ++n)
#pragma unroll
          for (int m = 0; m < 3; ++m)
            mma_step(sums[n][m], w[q % 2][m], {window[n + q][0], window[n + q][1]}, weights);
      }
    }
  }
}

// What becomes of eight channels of one token.
template <typename In>
__device__ void finish_row(const Convolution<In>& a, const float* sums, int64_t at, int channel, int count) {
  float v[8], residual[8];
  load_row(v, sums, 8, true);
  load_row(residual, a.residual + at, count, a.aligned);
  if (a.bias) {
#pragma unroll
    for (int n = 0; n < 8; ++n) v[n] += n < count ? to_float(a.bias[channel + n]) : 0.0f;
    if (a.conv) store_row(a.conv + at, v, count, a.aligned);
#pragma unroll
    for (int n = 0; n < 8; ++n) v[n] = gelu(v[n]);
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) v[n] += residual[n];
  store_row(a.out + at, v, count, a.aligned);
}

// Turns a warp's sums through shared memory, so that it reads and writes rows of channels.
template <typename In, int kBlocks = kTokenBlocks<In>>
__device__ void finish_warp(const ConvTask<In>& task, const float (&sums)[kBlocks][3][4]) {
  constexpr int kHalf = (kBlocks + 1) / 2;
  const Convolution<In>& a = task.a;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, u = warp / 2;
  const int64_t row0 = (task.unit + u) / task.tiles * a.g.tokens;
  float* stage = reinterpret_cast<float*>(task.memory.weights) + warp * kHalf * 8 * kSumPitch;
#pragma unroll
  for (int half = 0; half < kBlocks; half += kHalf) {
    const int blocks = kBlocks - half < kHalf ? kBlocks - half : kHalf;
#pragma unroll
    for (int n = 0; n < blocks; ++n)
#pragma unroll
      for (int m = 0; m < 3; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          stage[(n * 8 + lane % 4 * 2 + i % 2) * kSumPitch + m * 16 + lane / 4 + i / 2 * 8] =
              sums[half + n][m][i];
    __syncwarp();
    const int token0 = task.first_token(u) + (warp % 2 * kBlocks + half) * 8;
    for (int v = lane; v < blocks * 8 * kRowPieces; v += 32) {
      const int row = v / kRowPieces, c = v % kRowPieces * 8, channel = task.side * kSide + c;
      if (!task.exists(u) || token0 + row >= a.g.tokens || channel >= a.g.channels) continue;
      const int column = task.group * a.g.channels + channel;
      const int64_t at = (row0 + token0 + row) * a.g.width() + column;
      finish_row(a, stage + row * kSumPitch + c, at, column, min(8, a.g.channels - channel));
    }
    __syncwarp();
  }
}

template <typename In>
__global__ void __launch_bounds__(kConvThreads, 2) convolve(Convolution<In> a, int tiles, int64_t pairs) {
  using T = Mma<In>;
  constexpr int kBlocks = kTokenBlocks<In>;
  SharedArena arena;
  const ConvMemory<In> memory(arena);
  const int index = static_cast<int>(blockIdx.x / pairs);
  const ConvTask<In> task{a,    memory, index / a.g.sides(), index % a.g.sides(), blockIdx.x % pairs * kUnits,
                          tiles};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_row = warp % 2 * kBlocks * 8;
  const int lane_row = first_row + lane / 16 * 8 + lane % 8;
  const T* tokens = memory.tokens + warp / 2 * ConvMemory<In>::kRows * kSide;
  const T* weights = memory.weights + swizzled(lane % 16, lane / 16);
  float sums[kBlocks][3][4] = {};
  task.load_weights(task.pass(0), 0, 0);
#pragma unroll 1
  for (int s = 0; s < task.passes() * 8; ++s) {
    const int r = s % 8;
    const auto pass = task.pass(s / 8);
    if (r == 0) {
      __syncthreads();
      task.load_tokens(pass);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (s + 1 < task.passes() * 8) task.load_weights(task.pass((s + 1) / 8), (s + 1) % 8, (s + 1) % 2);
    const Range there = task.tokens_there(warp / 2, pass);
    const int skipped = first_row + r;
    const Range mine{there.begin - skipped, there.end - skipped};
    const int steps = divide_up<int>(min(kSide, a.g.padded_channels() - pass.side * kSide), 16);
    const T* stage = weights + s % 2 * kRun * kWeightTile;
    const T* rows = tokens + swizzled(lane_row + r, lane / 8 % 2);
    if constexpr (!kPrecise<In>) {
      add_run(sums, stage, rows, steps, a.g.run_taps(pass.tap), mine);
    } else {
      float part[kBlocks][3][4] = {};
      add_run(part, stage, rows, steps, a.g.run_taps(pass.tap), mine);
#pragma unroll
      for (int n = 0; n < kBlocks * 12; ++n) sums[n / 12][n / 4 % 3][n % 4] += part[n / 12][n / 4 % 3][n % 4];
    }
  }
  __syncthreads();
  finish_warp<In>(task, sums);
}

// Weight gradient: partial[tap][output][input] = sum over tokens of grad[t] in[t + tap - left]; a block
// takes a side of outputs, a side of inputs, four groups of taps and one place in their runs

constexpr int kGradWarps = 12;  // by group of taps, and 16 input channels
constexpr int kGradThreads = 32 * kGradWarps;
constexpr int kGradTokens = 160;  // of a stage

template <typename In>
constexpr int kGradRun = kPrecise<In> ? 2 : 4;  // taps of a warp, 8 apart
template <typename In>
constexpr int kGradTaps = 4 * 8 * kGradRun<In>;  // from the first tap of one block's set to the next one's

template <typename In>
struct GradMemory {
  static constexpr int kRows = kGradTokens + kGradTaps<In>;
  Mma<In>* grads;   // [2][kGradTokens][kSide]
  Mma<In>* tokens;  // [2][kRows][kSide]
  __host__ __device__ explicit GradMemory(SharedArena& arena)
      : grads(arena.take<Mma<In>>(2 * kGradTokens * kSide)), tokens(arena.take<Mma<In>>(2 * kRows * kSide)) {}
};

template <typename In>
struct WeightGradient {
  Geometry g;
  Tokens<Mma<In>> in, grad;
  float* partial;  // [splits][group][output side][input side][tap][kSide][kSide]
  int sets;        // of taps: blocks, times 8 places, that share the taps
  int tiles;       // stages of a segment
  int splits;
};

// A block's place.
template <typename In>
struct GradTask {
  using T = Mma<In>;
  const WeightGradient<In>& a;
  const GradMemory<In>& memory;
  int split, group, row_side, column_side;
  int tap;  // the first

  __device__ GradTask(const WeightGradient<In>& a_, const GradMemory<In>& memory_, int index)
      : a(a_), memory(memory_) {
    const int sides = a.g.sides();
    const int set = index % (8 * a.sets);
    tap = set / 8 * kGradTaps<In> + set % 8;
    index /= 8 * a.sets;
    column_side = index % sides;
    row_side = index / sides % sides;
    group = index / sides / sides % a.g.groups;
    split = index / sides / sides / a.g.groups;
  }
  __device__ int64_t begin() const { return a.g.batch * a.tiles * split / a.splits; }
  __device__ int64_t end() const { return a.g.batch * a.tiles * (split + 1) / a.splits; }

  __device__ int first_token(int64_t unit) const { return static_cast<int>(unit % a.tiles) * kGradTokens; }
  // Of the window's rows.
  __device__ Range tokens_there(int64_t unit) const {
    const int first = first_token(unit) + tap - a.g.left;
    return {-first, a.g.tokens - first};
  }

  __device__ void load(int64_t unit, Pair pair, int stage) const {
    const int64_t row0 = unit / a.tiles * a.g.tokens;
    const int first = first_token(unit);
    copy(memory.grads + stage * kGradTokens * kSide, kGradTokens, a.grad, pair.a, row0 + first,
         {0, a.g.tokens - first}, row_side);
    const Range there = tokens_there(unit);
    constexpr int kRows = GradMemory<In>::kRows;
    copy(memory.tokens + stage * kRows * kSide, kRows, a.in, pair.b, row0 - there.begin, there, column_side);
  }

 private:
  __device__ void copy(T* to, int rows, const Tokens<T>& from, int piece, int64_t row0, Range there,
                       int side) const {
#pragma unroll 2
    for (int v = threadIdx.x; v < rows * kRowPieces; v += kGradThreads) {
      const int row = v / kRowPieces, c = v % kRowPieces, channel = side * kSide + c * 8;
      const bool valid = row >= there.begin && row < there.end && channel < a.g.padded_channels();
      ptx::cp_async_16(to + swizzled(row, c), valid ? from.at(piece, row0 + row, group, channel) : from.data,
                       valid);
    }
  }
};

// sums[tap][8 inputs][16 outputs] += over the steps of 16 tokens begin .. end - 1; `grads` and `tokens` are
// the lane's own addresses for ldmatrix.
template <int kTaps, typename T>
__device__ void add_tokens(float (&sums)[kTaps][2][3][4], const T* grads, const T* tokens, int begin,
                           int end) {
  uint32_t window[kTaps + 2][4];
  const auto load = [&](int block, int row) {  // 16 rows: two blocks of the window, in two halves of inputs
    uint32_t r[4];
    ptx::ldmatrix_x4_trans(r, tokens + row * kSide);
    window[block][0] = r[0], window[block][1] = r[1], window[block + 1][0] = r[2],
    window[block + 1][1] = r[3];
  };
#pragma unroll
  for (int w = 0; w < kTaps; w += 2) load(w, begin * 16 + w * 8);
#pragma unroll 1
  for (int k = begin; k < end; ++k) {
    uint32_t g[3][4];
    load(kTaps, k * 16 + kTaps * 8);
#pragma unroll
    for (int m = 0; m < 3; ++m) ptx::ldmatrix_x4_trans(g[m], grads + k * 16 * kSide + m * 16);
#pragma unroll
    for (int q = 0; q < kTaps; ++q)
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int m = 0; m < 3; ++m) mma_step(sums[q][n][m], g[m], {window[q][n], window[q + 1][n]}, grads);
#pragma unroll
    for (int w = 0; w < kTaps; ++w) window[w][0] = window[w + 2][0], window[w][1] = window[w + 2][1];
  }
}

template <typename In>
__global__ void __launch_bounds__(kGradThreads, 1) weight_gradient(WeightGradient<In> a) {
  using T = Mma<In>;
  constexpr int kTaps = kGradRun<In>;
  SharedArena arena;
  const GradMemory<In> memory(arena);
  const GradTask<In> task(a, memory, blockIdx.x);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Neighbouring warps share the taps: warps that leave out much of the padding come to all four schedulers.
  const int row = warp / 3 * 8 * kTaps, input = warp % 3 * 16, tap = task.tap + row;
  const bool needed = tap < a.g.taps && task.column_side * kSide + input < a.g.padded_channels();
  const int lane_row = lane / 16 * 8 + lane % 8;
  const T* grads = memory.grads + swizzled(lane_row, lane / 8 % 2);
  const T* tokens = memory.tokens + swizzled(row + lane_row, lane / 8 % 2) + input;
  float sums[kTaps][2][3][4] = {};
  const int64_t begin = task.begin(), n = (task.end() - begin) * kPairs<In>;
  if (n > 0) task.load(begin, Pair::of<In>(0), 0);
#pragma unroll 1
  for (int64_t s = 0; s < n; ++s) {
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (s + 1 < n) task.load(begin + (s + 1) / kPairs<In>, Pair::of<In>((s + 1) % kPairs<In>), (s + 1) % 2);
    const int64_t unit = begin + s / kPairs<In>;
    const Range there = task.tokens_there(unit);
    const int count = min(kGradTokens, a.g.tokens - task.first_token(unit));
    const int first = max(0, there.begin - row - 8 * (kTaps - 1)) / 16;
    const int last = needed ? divide_up<int>(min(count, there.end - row), 16) : 0;
    const T* stage_grads = grads + s % 2 * kGradTokens * kSide;
    const T* stage_tokens = tokens + s % 2 * GradMemory<In>::kRows * kSide;
    if (first >= last) continue;
    if constexpr (!kPrecise<In>) {
      add_tokens(sums, stage_grads, stage_tokens, first, last);
    } else {
      float part[kTaps][2][3][4] = {};
      add_tokens(part, stage_grads, stage_tokens, first, last);
#pragma unroll
      for (int i = 0; i < kTaps * 24; ++i)
        sums[i / 24][i / 12 % 2][i / 4 % 3][i % 4] += part[i / 24][i / 12 % 2][i / 4 % 3][i % 4];
    }
  }
  if (!needed) return;
  const int sides = a.g.sides();
  const int64_t tile =
      ((static_cast<int64_t>(task.split) * a.g.groups + task.group) * sides + task.row_side) * sides +
      task.column_side;
#pragma unroll
  for (int q = 0; q < kTaps; ++q) {
    if (tap + 8 * q >= a.g.taps) break;
    float* out = a.partial + (tile * a.g.taps + tap + 8 * q) * kWeightTile;
#pragma unroll
    for (int i = 0; i < 12; ++i) {
      const int n = i / 6, m = i / 2 % 3, half = i % 2;
      store_pack(out + (m * 16 + lane / 4 + half * 8) * kSide + input + n * 8 + lane % 4 * 2,
                 Pack<float, 2>{{sums[q][n][m][half * 2], sums[q][n][m][half * 2 + 1]}});
    }
  }
}

}  // namespace ecgfast::cuda::conv
