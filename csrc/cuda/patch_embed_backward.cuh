// The stem, backward. The forward pass kept each layer's activations and the derivatives of its GELUs in the
// compute dtype, so that from layer 1 up only products are left: with dz the gradient of a layer's
// pre-activations, dz below = (dz weights) * slopes, and the weights' gradient is dz^T (activations below),
// split over blocks along the rows and added up in a fixed order.
//
// Layer 0 is made anew on chip, for the 1250 x 256 values of a segment never leave it: stem_grad_first turns
// dz of layer 1 into that of layer 0 and that at once into sums over the segment, dz^T (patches, 1); and
// stem_grad_weight_first makes gelu(layer 0) as the right operand of layer 1's weight gradient. From the
// segment's sums G = sum dz x^T (x centred), s = sum dz and q = sum dz zhat follow the norm's gradients:
// dW = scale (G - q W Cov / deviation), and q and s for its affine. Where gradients are of 4 bytes q is
// summed beside G, since in w . G most may cancel.
//
// At the paper's size (see patch_embed_forward.cuh): 77 GFLOP in the products, about 0.4 GB of traffic.
#pragma once
#include "patch_embed_tiles.cuh"

namespace ecgfast::cuda {

// Gradients of the last layer's pre-activations, rows of W, zero beyond the channels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    stem_grad_last(StemShape s, StemState state, const T* grad_tokens, T* out, bool aligned) {
  const int per_row = s.width / kVector<T>;
  const T* slopes = of_layer<T>(state.slopes, s, s.layers - 1);
  const int64_t n = s.batch * s.tokens * per_row;
  for (int64_t v = int64_t{blockIdx.x} * kThreads + threadIdx.x; v < n; v += int64_t{gridDim.x} * kThreads) {
    const int64_t row = v / per_row;
    const int column = v % per_row * kVector<T>;
    const T* from = grad_tokens + row * s.channels + column;
    Pack<T, kVector<T>> grad, slope = load_pack<kVector<T>>(slopes + row * s.width + column);
    if (aligned && column < s.channels) {
      grad = load_pack<kVector<T>>(from);
    } else {
#pragma unroll
      for (int k = 0; k < kVector<T>; ++k)
        grad.v[k] = column + k < s.channels ? from[k] : from_float<T>(0.0f);
    }
#pragma unroll
    for (int k = 0; k < kVector<T>; ++k)
      grad.v[k] = from_float<T>(to_float(grad.v[k]) * to_float(slope.v[k]));
    store_pack<kVector<T>>(out + row * s.width + column, grad);
  }
}

constexpr int kGradStages = 3;

template <typename T>
struct InputGradientMemory {
  using Left = RowTile<T, 128>;
  using Right = DepthTile<T, 128>;
  T *left, *right;  // [kGradStages]
  __host__ __device__ explicit InputGradientMemory(SharedArena& arena)
      : left(arena.take<T>(kGradStages * Left::kSize)), right(arena.take<T>(kGradStages * Right::kSize)) {}
};

// out = (grads weights) * slopes, with grads [rows, width], weights [depth, columns], the rest [rows,
// columns].
template <typename T>
struct InputGradient {
  const T* grads;
  int64_t rows;
  int width;
  Source<T> weights;
  const T* slopes;  // null: out is float and has no factor
  void* out;
};

template <typename T>
__device__ __forceinline__ void write_input_gradient(const float (&v)[4][2], const InputGradient<T>& in,
                                                     int64_t row, int column, bool valid) {
  const int columns = in.weights.columns;
  const int64_t first = row * columns;
  if (!in.slopes) {
    store_row(static_cast<float*>(in.out) + first, column, columns, v, valid, true);
    return;
  }
  float d[4][2];
  load_row(in.slopes + first, column, columns, d, valid);
#pragma unroll
  for (int f = 0; f < 4; ++f)
#pragma unroll
    for (int n = 0; n < 2; ++n) d[f][n] *= v[f][n];
  store_row(static_cast<T*>(in.out) + first, column, columns, d, valid, true);
}

template <typename T>
__device__ void grad_input(const InputGradient<T>& in, int block) {
  using Memory = InputGradientMemory<T>;
  using Warp = WarpTile<128, 128>;
  SharedArena arena;
  const Memory memory(arena);
  const Warp warp;
  const int across = divide_up(in.weights.columns, 128), column0 = block % across * 128;
  const int64_t row0 = block / across * int64_t{128};
  const Source<T> grads = rows_from(in.grads, row0, in.rows, in.width);
  typename Warp::Sums sums = {};
  stream<kGradStages>(
      divide_up(in.weights.rows, kDepth<T>),
      [&](int c) {
        Memory::Left::load(memory.left + c % kGradStages * Memory::Left::kSize, grads, 0, c * kDepth<T>);
        Memory::Right::load(memory.right + c % kGradStages * Memory::Right::kSize, in.weights, c * kDepth<T>,
                            column0);
      },
      [&](int c) {
        multiply<typename Memory::Left, typename Memory::Right>(
            sums, warp, memory.left + c % kGradStages * Memory::Left::kSize,
            memory.right + c % kGradStages * Memory::Right::kSize);
      });
#pragma unroll
  for (int j = 0; j < Warp::kFragments; j += 4)
#pragma unroll
    for (int i = 0; i < 2 * kRowFragments; ++i) {
      const int row = warp.row + 8 * i + threadIdx.x % 32 / 4;
      float v[4][2];
#pragma unroll
      for (int f = 0; f < 4; ++f)
#pragma unroll
        for (int n = 0; n < 2; ++n) v[f][n] = sums[i / 2][j + f][i % 2 * 2 + n];
      write_input_gradient(v, in, row0 + row, column0 + warp.column + 8 * j, row < grads.rows);
    }
}

// partial[split] = grads^T activations over the split's rows: [channels, columns].
template <typename T>
struct WeightGradient {
  const T *grads, *activations;  // [rows, width], [rows, columns]
  int64_t rows;
  int width, columns, channels, splits;
  float* partial;
};

template <typename T>
struct WeightGradientMemory {
  using Tile = DepthTile<T, 128>;
  T *left, *right;  // [kGradStages]
  __host__ __device__ explicit WeightGradientMemory(SharedArena& arena)
      : left(arena.take<T>(kGradStages * Tile::kSize)), right(arena.take<T>(kGradStages * Tile::kSize)) {}
};

// A tile's sums to rows row0 .. of [rows, pitch], as far as columns < width.
template <typename Warp>
__device__ __forceinline__ void write_sums(const typename Warp::Sums& sums, const Warp& warp, float* out,
                                           int64_t pitch, int row0, int rows, int column0, int width) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2 * kRowFragments; ++i)
#pragma unroll
    for (int j = 0; j < Warp::kFragments; ++j) {
      const int row = row0 + warp.row + 8 * i + lane / 4,
                column = column0 + warp.column + 8 * j + lane % 4 * 2;
      if (row < rows && column < width)
        store_two(out + row * pitch + column, sums[i / 2][j][i % 2 * 2], sums[i / 2][j][i % 2 * 2 + 1]);
    }
}

template <typename T>
__device__ void grad_weight(const WeightGradient<T>& in, int block) {
  using Tile = typename WeightGradientMemory<T>::Tile;
  using Warp = WarpTile<128, 128>;
  SharedArena arena;
  const WeightGradientMemory<T> memory(arena);
  const Warp warp;
  const int across = divide_up(in.columns, 128), tiles = across * divide_up(in.channels, 128);
  const int split = block / tiles, tile = block % tiles;
  const int row0 = tile / across * 128, column0 = tile % across * 128;
  const int64_t chunks = divide_up(in.rows, kDepth<T>);
  const int64_t first = chunks * split / in.splits, last = chunks * (split + 1) / in.splits;
  const Source<T> grads = rows_from(in.grads, first * kDepth<T>, in.rows, in.width);
  const Source<T> activations = rows_from(in.activations, first * kDepth<T>, in.rows, in.columns);
  typename Warp::Sums sums = {};
  stream<kGradStages>(
      last - first,
      [&](int c) {
        Tile::load(memory.left + c % kGradStages * Tile::kSize, grads, c * kDepth<T>, row0);
        Tile::load(memory.right + c % kGradStages * Tile::kSize, activations, c * kDepth<T>, column0);
      },
      [&](int c) {
        multiply<Tile, Tile>(sums, warp, memory.left + c % kGradStages * Tile::kSize,
                             memory.right + c % kGradStages * Tile::kSize);
      });
  write_sums(sums, warp, in.partial + split * int64_t{in.columns} * in.channels, in.columns, row0,
             in.channels, column0, in.columns);
}

// Both products of a layer's gradients in one launch, since a layer alone does not fill the device evenly;
// the long ones come first.
template <typename T>
__global__ void __launch_bounds__(kThreads, kPrecise<T> ? 1 : 2)
    stem_grad_layer(WeightGradient<T> weight, int weight_blocks, InputGradient<T> input) {
  const int block = blockIdx.x;
  if (block < weight_blocks)
    grad_weight(weight, block);
  else
    grad_input(input, block - weight_blocks);
}

template <typename T>
constexpr int kFirstGradChannels = sizeof(T) == 2 ? 256 : 128;
constexpr int kMadeStages = 4;

template <typename T>
struct FirstWeightMemory {
  using Left = DepthTile<T, kFirstGradChannels<T>>;
  using Made = DepthTile<T, 128>;
  using Patches = PatchTile<T, kDepth<T>>;
  T* left;        // [kMadeStages]: gradients of layer 1
  T* patches;     // [kMadeStages]
  float* affine;  // [kMadeStages][128][2]
  T* made;        // [2]: gelu(layer 0)
  __host__ __device__ explicit FirstWeightMemory(SharedArena& arena)
      : left(arena.take<T>(kMadeStages * Left::kSize)),
        patches(arena.take<T>(kMadeStages * Patches::kSize)),
        affine(arena.take<float>(kMadeStages * 2 * 128)),
        made(arena.take<T>(2 * Made::kSize)) {}
};

// The right operand of layer 0 for 8 channels from `channel` on, from memory; zeros beyond the width.
template <typename T>
__device__ __forceinline__ void load_weights0(uint32_t (&w)[kPatchSteps<T>][2], const T* weights, int channel,
                                              int width) {
  constexpr int kWords = kPatch * sizeof(T) / 4;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(weights);
  const int c = channel + threadIdx.x % 32 / 4;
#pragma unroll
  for (int step = 0; step < kPatchSteps<T>; ++step)
#pragma unroll
    for (int n = 0; n < 2; ++n)
      w[step][n] = c < width ? words[int64_t{c} * kWords + step * 8 + n * 4 + threadIdx.x % 4] : 0;
}

// A block sums over the segments of its split, for kFirstGradChannels output channels by 128 inputs of one
// tap.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    stem_grad_weight_first(StemShape s, StemState state, const T* grads, int splits, float* partial) {
  using Memory = FirstWeightMemory<T>;
  using Warp = WarpTile<kFirstGradChannels<T>, 128>;
  constexpr int kBands = kDepth<T> / 16,
                kMadeColumns = 128 * kBands / kWarps;  // a warp makes 16 x kMadeColumns
  SharedArena arena;
  const Memory memory(arena);
  const Warp warp;
  const int slices = divide_up(s.width, 128),
            tiles = 2 * slices * divide_up(s.channels, kFirstGradChannels<T>);
  const int split = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int tap = tile % 2, column0 = tile / 2 % slices * 128,
            row0 = tile / 2 / slices * kFirstGradChannels<T>;
  const int64_t segment0 = s.batch * split / splits, segments = s.batch * (split + 1) / splits - segment0;
  const int rows = stem_rows(s, 1), per_segment = divide_up(rows, kDepth<T>);
  const int band = threadIdx.x / 32 % kBands * 16, made_column = threadIdx.x / 32 / kBands * kMadeColumns;
  uint32_t weights0[kMadeColumns / 8][kPatchSteps<T>][2];
#pragma unroll
  for (int n = 0; n < kMadeColumns / 8; ++n)
    load_weights0(weights0[n], packed_layer<T>(state, s, 0), column0 + made_column + 8 * n, s.width);

  const auto load = [&](int c) {
    const int64_t b = segment0 + c / per_segment;
    const int row = c % per_segment * kDepth<T>, stage = c % kMadeStages;
    const T* patches = static_cast<const T*>(state.patches) + (b * s.patches + tap) * kPatch;
    Memory::Left::load(memory.left + stage * Memory::Left::kSize,
                       {grads + b * rows * s.width, s.width, rows, s.width}, row, row0);
    Memory::Patches::load(memory.patches + stage * Memory::Patches::kSize,
                          {patches, 2 * kPatch, rows, kPatch}, row);
    load_affine<128>(memory.affine + stage * 256, state.affine + 2 * b * s.width, column0, s.width);
  };
  uint32_t held = 0;  // in any of the segments
  for (int64_t i = 0; i < segments; ++i) held |= state.held[segment0 + i];
  const auto make = [&](int c, auto steps) {
    const int stage = c % kMadeStages, lane = threadIdx.x % 32;
    T* made = memory.made + c % 2 * Memory::Made::kSize;
    uint32_t patches[kPatchSteps<T>][4];
#pragma unroll
    for (int step = 0; step < kPatchSteps<T>; ++step)
      Memory::Patches::left(patches[step], memory.patches + stage * Memory::Patches::kSize, band, step);
#pragma unroll
    for (int n = 0; n < kMadeColumns / 8; ++n) {
      const int column = made_column + 8 * n;
      float z[4];
      layer0<T, decltype(steps)::value>(z, patches, weights0[n], memory.affine + 2 * (stage * 128 + column));
#pragma unroll
      for (int k = 0; k < 2; ++k)
        store_two(made + Memory::Made::at(band + lane / 4 + 8 * k, column + lane % 4 * 2), gelu<T>(z[2 * k]),
                  gelu<T>(z[2 * k + 1]));
    }
  };
  const auto produce = [&](int c) { with_patch_steps<T>(held, [&](auto steps) { make(c, steps); }); };
  typename Warp::Sums sums = {};
  stream_produced<kMadeStages>(segments * per_segment, load, produce, [&](int c) {
    multiply<typename Memory::Left, typename Memory::Made>(
        sums, warp, memory.left + c % kMadeStages * Memory::Left::kSize,
        memory.made + c % 2 * Memory::Made::kSize);
  });
  write_sums(sums, warp, partial + split * int64_t{2} * s.width * s.channels + tap * s.width, 2 * s.width,
             row0, s.channels, column0, s.width);
}

template <typename T>
constexpr int kFirstGradStages = sizeof(T) == 2 ? 3 : 2;
template <typename T>
constexpr int kFirstInputColumns = sizeof(T) == 2 ? 128 : 64;  // channels of a block

// Blocks of a multiprocessor, where its shared memory holds two and the compiler fits them into the
// registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int kFirstGradBlocks = 2;
#else
constexpr int kFirstGradBlocks = 1;
#endif

template <typename T>
struct FirstInputMemory {
  using Left = RowTile<T, 128>;
  static constexpr int kColumns = kFirstInputColumns<T>;
  using Right = DepthTile<T, kColumns>;
  using Patches = PatchTile<T, 128>;
  using Weights0 = PatchTile<T, kColumns>;
  T *left, *right;  // [kFirstGradStages]
  T* patches;       // of the row tile
  T* weights0;      // of the block's channels
  float* affine;    // [kColumns][2]
  float* sums;      // [2][kPatch][kColumns]: dz^T (patches, 1) of the upper and the lower warps
  float* staged;    // for float32: the sums of a row tile
  __host__ __device__ explicit FirstInputMemory(SharedArena& arena)
      : left(arena.take<T>(kFirstGradStages<T> * Left::kSize)),
        right(arena.take<T>(kFirstGradStages<T> * Right::kSize)),
        patches(arena.take<T>(Patches::kSize)),
        weights0(arena.take<T>(Weights0::kSize)),
        affine(arena.take<float>(2 * kColumns)),
        sums(arena.take<float>(2 * kPatch * kColumns)),
        staged(arena.take<float>(sizeof(T) == 4 ? 128 * kColumns : 0)) {}
  // Pairs of channels of neighbouring values lie in different banks.
  __device__ static int at(int value, int channel) { return value * kColumns + (channel ^ value % 4 * 8); }
};

// A fragment of 16 rows by 8 columns as the right operand of products down its rows.
template <typename T>
__device__ __forceinline__ void down_rows(uint32_t (&b)[16 / kStepDepth<T>][2], const float (&d)[4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    if constexpr (sizeof(T) == 2) {
      if (n < 2)
        b[0][n] = ptx::transpose_8x8(pack_two(d[2 * n], d[2 * n + 1], static_cast<const T*>(nullptr)));
    } else {
      const int source = (lane % 4 + n % 2 * 4) * 4 + lane / 8;
      const float even = __shfl_sync(~0u, d[n / 2 * 2], source),
                  odd = __shfl_sync(~0u, d[n / 2 * 2 + 1], source);
      b[n / 2][n % 2] = __float_as_uint(lane / 4 % 2 ? odd : even);
    }
  }
}

// What one block of stem_grad_first works on.
struct FirstInputTask {
  int b, part, tap, column0;
  int first_tile, last_tile;  // of 128 rows

  __device__ FirstInputTask(const StemShape& s, int parts, int columns) {
    const int slices = divide_up(s.width, columns), tiles = divide_up(stem_rows(s, 1), 128);
    const int block = blockIdx.x / (2 * slices);
    tap = blockIdx.x % 2;
    column0 = blockIdx.x / 2 % slices * columns;
    b = block / parts;
    part = block % parts;
    first_tile = static_cast<int64_t>(tiles) * part / parts;
    last_tile = static_cast<int64_t>(tiles) * (part + 1) / parts;
  }
};

// Chunk after chunk of row tile after row tile.
struct Walk {
  int row, depth = 0;

  __device__ explicit Walk(int first) : row(first) {}
  __device__ void advance(int chunks) {
    const bool next = ++depth == chunks;
    row += next ? 128 : 0;
    depth = next ? 0 : depth;
  }
};

// A thread's sums, put away to leave the registers to what comes next: 16-bit types round them, float32 moves
// them to shared memory, [fragments][kThreads] fours.
template <typename T, typename Warp, bool kWide = sizeof(T) == 4>
struct PutAway {
  Pack<T, 2> pairs[kRowFragments][Warp::kFragments][2];

  __device__ PutAway(const typename Warp::Sums& sums, float*) {
#pragma unroll
    for (int n = 0; n < kRowFragments * Warp::kFragments * 2; ++n) {
      const float* from = &sums[n / 2 / Warp::kFragments][n / 2 % Warp::kFragments][n % 2 * 2];
      store_two(pairs[n / 2 / Warp::kFragments][n / 2 % Warp::kFragments][n % 2].v, from[0], from[1]);
    }
  }
  __device__ void get(float (&v)[4], int i, int j) const {
#pragma unroll
    for (int n = 0; n < 4; ++n) v[n] = to_float(pairs[i][j][n / 2].v[n % 2]);
  }
};

template <typename T, typename Warp>
struct PutAway<T, Warp, true> {
  float* own;

  __device__ PutAway(const typename Warp::Sums& sums, float* staged) : own(staged + 4 * threadIdx.x) {
#pragma unroll
    for (int n = 0; n < kRowFragments * Warp::kFragments; ++n) {
      const float* from = sums[n / Warp::kFragments][n % Warp::kFragments];
      store_pack<4>(own + n * 4 * kThreads, Pack<float, 4>{{from[0], from[1], from[2], from[3]}});
    }
  }
  __device__ void get(float (&v)[4], int i, int j) const {
    const Pack<float, 4> four = load_pack<4>(own + (i * Warp::kFragments + j) * 4 * kThreads);
#pragma unroll
    for (int n = 0; n < 4; ++n) v[n] = four.v[n];
  }
};

// From the gradients of layer 0's activations, of the warp's part of a row tile, to those of its
// pre-activations, and on to their sums with the patches. For the signal, `scaled`, of rows [2 taps, W], gets
// the former times the norm's scale.
template <typename T, bool kForSignal, typename Warp>
__device__ __forceinline__ void finish_row_tile(const PutAway<T, Warp>& grads, const Warp& warp,
                                                const FirstInputMemory<T>& memory, T* scaled, int rows,
                                                int columns, int width) {
  constexpr int kDown = 16 / kStepDepth<T>;
  constexpr int kUnroll = sizeof(T) == 2 ? kRowFragments : 1,
                kUnrollColumns = sizeof(T) == 2 ? Warp::kFragments : 1;
  using Memory = FirstInputMemory<T>;
  using Patches = typename Memory::Patches;
  const int lane = threadIdx.x % 32;
  float* sums = memory.sums + warp.row / 64 * kPatch * Memory::kColumns;
#pragma unroll kUnrollColumns
  for (int j = 0; j < Warp::kFragments; ++j) {
    const int channel = warp.column + 8 * j, c = channel + lane % 4 * 2;
    uint32_t w[kPatchSteps<T>][2];
    Memory::Weights0::right(w, memory.weights0, channel);
    float g[2][4] = {}, q[2] = {};
#pragma unroll kUnroll
    for (int i = 0; i < kRowFragments; ++i) {
      const int row = warp.row + 16 * i;
      uint32_t a[kPatchSteps<T>][4], right[kDown][2];
#pragma unroll
      for (int step = 0; step < kPatchSteps<T>; ++step) Patches::left(a[step], memory.patches, row, step);
      float d[4], grad[4];
      grads.get(grad, i, j);
      products0<T, kPatchSteps<T>>(d, a, w);
      const float products[4] = {d[0], d[1], d[2], d[3]};
      fold_norm(d, memory.affine + 2 * channel);
#pragma unroll
      for (int n = 0; n < 4; ++n) d[n] = gelu_and_slope<T>(d[n]).slope * grad[n];
      if constexpr (sizeof(T) == 4)
#pragma unroll
        for (int n = 0; n < 4; ++n) q[n % 2] = fmaf(d[n], products[n], q[n % 2]);
      down_rows<T>(right, d);
#pragma unroll
      for (int down = 0; down < kDown; ++down)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t left[4];
          Patches::left_down(left, memory.patches, row + down * kStepDepth<T>, 16 * m);
          mma_step(g[m], left, right[down], memory.patches);
        }
      __syncwarp();  // keeps the compiler from loading ahead more than the registers hold
      if constexpr (kForSignal) {
        const Pack<float, 4> affine = load_pack<4>(memory.affine + 2 * c);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int r = row + lane / 4 + 8 * n;
          if (r < rows && c < columns)
            store_two(scaled + (2 * r * width + c), d[2 * n] * affine.v[0], d[2 * n + 1] * affine.v[2]);
        }
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) q[n] += __shfl_xor_sync(~0u, q[n], lanes);
        if (lane / 4 == kNormWeight % 8) g[1][2 + n] = q[n];  // at a place of zeros in the patches
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float* at = sums + memory.at(n / 2 * 16 + n % 2 * 8 + lane / 4, c);
      at[0] += g[n / 2][n % 2 * 2];
      at[1] += g[n / 2][n % 2 * 2 + 1];
    }
  }
}

// Row tiles of one part of a segment by kFirstInputColumns channels of one tap; sums is [B, parts, tap,
// kPatch, W].
template <typename T, bool kForSignal>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 && !kForSignal ? kFirstGradBlocks : 1)
    stem_grad_first(StemShape s, StemState state, const T* grads, int parts, float* sums_out, T* scaled) {
  using Memory = FirstInputMemory<T>;
  using Warp = WarpTile<128, Memory::kColumns>;
  constexpr int kStages = kFirstGradStages<T>, kColumns = Memory::kColumns;
  SharedArena arena;
  const Memory memory(arena);
  const Warp warp;
  const FirstInputTask task(s, parts, kColumns);
  const int rows = stem_rows(s, 1), chunks = divide_up(s.channels, kDepth<T>);
  const int64_t row0 = int64_t{task.b} * rows;
  for (int n = threadIdx.x; n < 2 * kPatch * kColumns; n += kThreads) memory.sums[n] = 0.0f;
  Memory::Weights0::load(memory.weights0, {packed_layer<T>(state, s, 0), kPatch, s.width, kPatch},
                         task.column0);
  load_affine<kColumns>(memory.affine, state.affine + int64_t{2} * task.b * s.width, task.column0, s.width);

  Walk loading{task.first_tile * 128}, using_{task.first_tile * 128};
  const auto load = [&](int c) {
    const Source<T> from{grads + row0 * s.width, s.width, rows, s.width};
    const Source<T> weights{packed_layer<T>(state, s, 1) + task.tap * s.width, 2 * s.width, s.channels,
                            s.width};
    Memory::Left::load(memory.left + c % kStages * Memory::Left::kSize, from, loading.row,
                       loading.depth * kDepth<T>);
    Memory::Right::load(memory.right + c % kStages * Memory::Right::kSize, weights, loading.depth * kDepth<T>,
                        task.column0);
    loading.advance(chunks);
  };
  typename Warp::Sums sums = {};
  stream<kStages>((task.last_tile - task.first_tile) * chunks, load, [&](int c) {
    if (using_.depth == 0) {  // the barrier before has freed the last row tile's patches
      const T* patches =
          static_cast<const T*>(state.patches) + (int64_t{task.b} * s.patches + task.tap) * kPatch;
      Memory::Patches::load(memory.patches, {patches, 2 * kPatch, rows, kPatch}, using_.row);
      ptx::cp_async_commit();
    }
    multiply<typename Memory::Left, typename Memory::Right>(
        sums, warp, memory.left + c % kStages * Memory::Left::kSize,
        memory.right + c % kStages * Memory::Right::kSize);
    const int row = using_.row;
    using_.advance(chunks);
    if (using_.depth != 0) return;
    const PutAway<T, Warp> put_away(sums, memory.staged);
    ptx::cp_async_wait<0>();
    __syncthreads();
    T* out = kForSignal ? scaled + ((row0 + row) * 2 + task.tap) * s.width + task.column0 : nullptr;
    finish_row_tile<T, kForSignal>(put_away, warp, memory, out, rows - row, s.width - task.column0, s.width);
#pragma unroll
    for (int n = 0; n < kRowFragments * Warp::kFragments * 4; ++n)
      sums[n / (4 * Warp::kFragments)][n / 4 % Warp::kFragments][n % 4] = 0.0f;
  });
  __syncthreads();
  float* out = sums_out + ((int64_t{task.b} * parts + task.part) * 2 + task.tap) * kPatch * s.width;
  for (int v = threadIdx.x; v < kPatch * kColumns; v += kThreads) {
    const int value = v / kColumns, c = v % kColumns, at = Memory::at(value, c);
    if (task.column0 + c < s.width)
      out[value * s.width + task.column0 + c] = memory.sums[at] + memory.sums[kPatch * kColumns + at];
  }
}

}  // namespace ecgfast::cuda
