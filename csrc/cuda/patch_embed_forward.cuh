// The stem, forward. The GroupNorm after layer 0 needs no pass over its output: with mu and Cov the mean and
// covariance of a segment's patches, channel c has mean w_c mu and variance w_c Cov w_c. One light kernel
// reads the signal, keeps it as patches in the compute dtype and turns the norm into a scale and a shift per
// segment and channel. Layers 0 and 1 are one product whose left operand, gelu(layer 0), is made
// on chip chunk by chunk; as kernel = stride, all further layers are plain products of rows of 2W (tap,
// channel).
//
// At the paper's size (B = 128, T = 2500, C = 256, bf16): 38.6 GFLOP in the products and 2 in making layer 0,
// 77 M GELUs at about 14 instructions, 8 MB of signal and 10 MB of patches, and 41 + 20 + 10 MB of
// activations written, twice that where slopes are kept. Bound by the tensor cores' mma.sync rate as long as
// the GELUs run beside them: the two halves of the warps make and multiply in turn.
#pragma once
#include "patch_embed_tiles.cuh"

namespace ecgfast::cuda {

// Rewrites the weights as the products read them: blockIdx.y is the layer.
template <typename T>
__global__ void __launch_bounds__(kThreads) stem_pack(StemShape s, StemInputs in, StemState state) {
  const int layer = blockIdx.y, row_size = layer == 0 ? kPatch : 2 * s.width;
  const int64_t rows = layer == 0 ? s.width : s.channels;
  const T* from = static_cast<const T*>(in.weights[layer]);
  T* to = const_cast<T*>(packed_layer<T>(state, s, layer));
  const int inputs = layer == 0 ? s.leads : s.channels;
  for (int64_t v = int64_t{blockIdx.x} * kThreads + threadIdx.x; v < rows * row_size;
       v += int64_t{gridDim.x} * kThreads) {
    const int64_t row = v / row_size;
    const int place = v % row_size;
    const int input = layer == 0 ? place / 2 : place % s.width,
              tap = layer == 0 ? place % 2 : place / s.width;
    const bool inside = row < s.channels && input < inputs;
    to[v] = inside ? from[(row * inputs + input) * 2 + tap] : from_float<T>(0.0f);
  }
}

// The variance w Cov w of leads that are nearly one, or of a step into padding, may be 10^-6 of |w|^2 |x|^2:
// the moments have to be of more than fp32 precision. Every value is the sum of three slices, integers of 8
// bits in units of the largest value of its lead / 128, / 2^15 and / 2^23. Slices are exact in bfloat16, and
// so are the tensor cores' sums of the larger products, which stay below 2^24 units for 2^10 patches of a
// warp. Products are summed by their size apart and added up in double precision. This is 54 mma for 16
// patches, 0.7 GFLOP at the paper's size. The quadratic forms then take 0.6 thousand multiply-adds in double
// precision for a channel, 19 million: 2 us where doubles have half the rate of floats, 30 us of about 1100
// for both passes where they have 1/64 of it.
constexpr int kStatisticsWarps = 8;
constexpr int kStatisticsThreads = 32 * kStatisticsWarps;
constexpr int kPairs = kPatch / 4;       // (lead, tap) pairs of a lane
constexpr int kSlices = 3, kLevels = 4;  // products of slices i and j are of level i + j, at most 3
constexpr int kMomentTiles = 6;  // of 16 x 8 on or above the diagonal of the moments, in two rows of tiles
constexpr int kMoments = kPatch * kPatch;

template <typename T>
struct StatisticsMemory {
  using SliceTile = PatchTile<__nv_bfloat16, 16>;
  double* covariance;     // [kPatch][kPatch]
  double* means;          // [kPatch]: of the patches as kept
  float* sums;            // [kStatisticsWarps][kPatch][kPatch]
  T* tiles;               // 16 patches per warp
  __nv_bfloat16* slices;  // of 16 patches per warp: [kStatisticsWarps][kSlices]
  float* offsets;         // [kPatch]: what is taken off the signal
  float* inverses;        // [kPatch / 2]: 1 / unit of a lead's first slice
  bool* held;             // [kPatch / 2]: leads that are kept and not all zeros
  __host__ __device__ explicit StatisticsMemory(SharedArena& arena)
      : covariance(arena.take<double>(kMoments)),
        means(arena.take<double>(kPatch)),
        sums(arena.take<float>(kStatisticsWarps * kMoments)),
        tiles(arena.take<T>(kStatisticsWarps * PatchTile<T, 16>::kSize)),
        slices(arena.take<__nv_bfloat16>(kStatisticsWarps * kSlices * SliceTile::kSize)),
        offsets(arena.take<float>(kPatch)),
        inverses(arena.take<float>(kPatch / 2)),
        held(arena.take<bool>(kPatch / 2)) {}
};

// One segment's signal. It is kept less the means that are more than twice the deviation, for sums of large
// offsets would be less exact; with smaller ones padding stays zero and has no rounding errors. A signal of a
// 16-bit float type is kept as it is, which is exact where a difference would be rounded.
template <typename T>
struct Segment {
  const StemShape& s;
  const StemInputs& in;
  int64_t b;
  int samples, valid;  // that count; patches of the statistics

  __device__ Segment(const StemShape& shape, const StemInputs& inputs, int64_t segment)
      : s(shape),
        in(inputs),
        b(segment),
        samples(valid_samples(shape, inputs.lengths, segment)),
        valid(samples / 2) {}

  __device__ bool kept(int lead) const { return lead < s.leads && (!in.keep || in.keep[b * s.leads + lead]); }
  __device__ bool exact() const { return sizeof(T) == 2 && !in.signal_is_int16; }

  // Both samples of a patch, in mV.
  __device__ float2 pair(int lead, int patch) const {
    const int64_t at = (b * s.leads + lead) * s.samples + 2 * static_cast<int64_t>(patch);
    float2 x;
    if (in.signal_is_int16) {
      const int16_t* from = static_cast<const int16_t*>(in.signal) + at;
      x = make_float2(from[0] * 1e-3f, from[1] * 1e-3f);
    } else {
      const T* from = static_cast<const T*>(in.signal) + at;
      x = make_float2(to_float(from[0]), to_float(from[1]));
    }
    return make_float2(2 * patch < samples ? x.x : 0.0f, 2 * patch + 1 < samples ? x.y : 0.0f);
  }
};

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

// The power of two that makes 64 to 128 of a number by multiplication.
__device__ __forceinline__ float to_slices(float largest) {
  const float power = __uint_as_float(__float_as_uint(largest) & 0x7F800000u);
  return largest > 1e-30f ? 64.0f / power : 1.0f;
}

// Means of the kept leads' even and odd samples where they are to be taken off, and scales; a warp per lead.
// A lead that holds nothing but zeros is as good as masked: what is not a number is in no maximum but in the
// sum of squares, and an odd sample after the valid patches is in neither.
template <typename T>
__device__ void signal_scales(const Segment<T>& segment, const StatisticsMemory<T>& memory) {
  const int lane = threadIdx.x % 32;
  for (int lead = threadIdx.x / 32; lead < kPatch / 2; lead += kStatisticsWarps) {
    float even = 0.0f, odd = 0.0f, square = 0.0f, high = -kInfinity, low = -kInfinity;
    const bool kept = segment.kept(lead) && segment.valid > 0;
    if (kept) {
#pragma unroll 8
      for (int p = lane; p < segment.valid; p += 32) {
        const float2 x = segment.pair(lead, p);
        even += x.x;
        odd += x.y;
        square = fmaf(x.x, x.x, fmaf(x.y, x.y, square));
        high = fmaxf(high, fmaxf(x.x, x.y));
        low = fmaxf(low, fmaxf(-x.x, -x.y));
      }
    }
    even = warp_sum(even);
    odd = warp_sum(odd);
    square = warp_sum(square);
    high = warp_max(high);
    low = warp_max(low);
    const float by = kept ? 1.0f / segment.valid : 0.0f;
    even *= by;
    odd *= by;
    if (segment.exact() || 2.5f * (even * even + odd * odd) <= 2.0f * square * by) even = odd = 0.0f;
    const float largest = fmaxf(high - fminf(even, odd), low + fmaxf(even, odd));
    const int last = segment.samples / 2;
    const bool zeros = square == 0.0f && high <= 0.0f && low <= 0.0f &&
                       !(segment.kept(lead) && segment.samples % 2 && last < segment.s.patches &&
                         segment.pair(lead, last).x != 0.0f);
    if (lane < 2) memory.offsets[2 * lead + lane] = lane ? odd : even;
    if (lane == 0) memory.held[lead] = segment.kept(lead) && !zeros;
    if (lane == 0) memory.inverses[lead] = kept ? to_slices(largest) : 1.0f;
  }
}

// A lane's share of one patch: leads lane / 16, lane / 16 + 2, ...; the last pair is (0, 1).
template <typename T>
__device__ __forceinline__ void fetch(float2 (&x)[kPairs], const Segment<T>& segment, uint32_t held,
                                      const float* offsets, int patch) {
  const bool inside = patch < segment.s.patches;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    const int lead = threadIdx.x / 16 % 2 + 2 * n;
    x[n] = make_float2(0.0f, 0.0f);
    if (inside && held >> lead & 1) {
      const float2 raw = segment.pair(lead, patch);
      x[n] = make_float2(to_float(from_float<T>(raw.x - offsets[2 * lead])),
                         to_float(from_float<T>(raw.y - offsets[2 * lead + 1])));
    }
    if (lead == kOnes / 2) x[n].y = inside ? 1.0f : 0.0f;
  }
}

// The next slice of what is left of a number, times `scale`.
__device__ __forceinline__ float next_slice(float& left, float scale) {
  const float slice = rintf(left);
  left = (left - slice) * 256.0f;
  return slice * scale;
}

using MomentSums = float[kLevels][kMomentTiles][4];

// sums += the products of 16 patches' slices, in the first half and the place of the ones alone if kHalf.
template <typename T, bool kHalf>
__device__ __forceinline__ void add_slices(MomentSums& sums, const __nv_bfloat16* slices) {
  using Tile = typename StatisticsMemory<T>::SliceTile;
  uint32_t a[kSlices][2][4], b[kSlices][2][4];
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice)
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      Tile::left_down(a[slice][n], slices + slice * Tile::kSize, 0, 16 * n);
      Tile::right_down(b[slice][n], slices + slice * Tile::kSize, 0, 16 * n);
    }
#pragma unroll
  for (int p = 0; p < kSlices; ++p)
#pragma unroll
    for (int q = 0; q < kSlices; ++q)
#pragma unroll
      for (int tile = 0; tile < kMomentTiles; ++tile) {
        if (kHalf && (tile == 2 || tile == 4)) continue;
        const int column = tile < 4 ? tile : tile - 2, level = p + q < kLevels ? p + q : kLevels - 1;
        ptx::mma_m16n8k16_bf16(sums[level][tile], a[p][tile / 4],
                               {b[q][column / 2][column % 2 * 2], b[q][column / 2][column % 2 * 2 + 1]});
      }
}

// Writes the patches to memory and adds up the second moments of the valid ones, 16 patches of a warp at a
// time. If kHalf, no lead after the first eight is held.
template <typename T, bool kHalf>
__device__ __forceinline__ void make_patches(MomentSums& sums, const Segment<T>& segment,
                                             const StatisticsMemory<T>& memory, uint32_t held, T* patches) {
  using Tile = PatchTile<T, 16>;
  using SliceTile = typename StatisticsMemory<T>::SliceTile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T* tile = memory.tiles + warp * Tile::kSize;
  __nv_bfloat16* slices = memory.slices + warp * kSlices * SliceTile::kSize;
  if (kHalf) {  // the other leads' places stay zero
    for (int n = lane; n < Tile::kSize; n += 32) tile[n] = from_float<T>(0.0f);
    for (int n = lane; n < kSlices * SliceTile::kSize; n += 32) slices[n] = __float2bfloat16(0.0f);
    __syncwarp();
  }
  float2 x[kPairs];
  fetch(x, segment, held, memory.offsets, warp * 16 + lane % 16);
#pragma unroll 1
  for (int first = warp * 16; first < segment.s.patches; first += kStatisticsWarps * 16) {
    const bool valid = first + lane % 16 < segment.valid;
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      if (kHalf && n >= kPairs / 2 && n < kPairs - 1) continue;
      const int place = lane / 16 * 2 + 4 * n;
      store_two(tile + Tile::at(lane % 16, place), x[n].x, x[n].y);
      const float by = memory.inverses[place / 2];
      float even = valid ? x[n].x * by : 0.0f, odd = valid ? x[n].y * by : 0.0f, scale = 1.0f;
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice, scale *= 1.0f / 256) {
        const float upper = next_slice(even, scale);
        store_two(slices + slice * SliceTile::kSize + SliceTile::at(lane % 16, place), upper,
                  next_slice(odd, scale));
      }
    }
    fetch(x, segment, held, memory.offsets, first + kStatisticsWarps * 16 + lane % 16);
    __syncwarp();
    add_slices<T, kHalf>(sums, slices);
    constexpr int kPerRow = kPatch / kVector<T>;
#pragma unroll
    for (int v = lane; v < 16 * kPerRow; v += 32) {
      const int row = v / kPerRow, c = v % kPerRow * kVector<T>;
      if (first + row < segment.s.patches)  // as one vector: the compiler stores a Pack in four parts here
        *reinterpret_cast<uint4*>(patches + (first + row) * int64_t{kPatch} + c) =
            *reinterpret_cast<const uint4*>(tile + Tile::at(row, c));
    }
    __syncwarp();
  }
}

// Adds up the warps' sums and makes means and covariance of them.
template <typename T>
__device__ void centre_moments(const MomentSums& sums, const Segment<T>& segment,
                               const StatisticsMemory<T>& memory) {
  constexpr int kEach = kMoments / kStatisticsThreads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  double totals[kEach] = {};
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
#pragma unroll
    for (int tile = 0; tile < kMomentTiles; ++tile)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int row = tile / 4 * 16 + lane / 4 + n / 2 * 8;
        const int column = (tile < 4 ? tile : tile - 2) * 8 + lane % 4 * 2 + n % 2;
        memory.sums[warp * kMoments + row * kPatch + column] = sums[level][tile][n];
      }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int v = threadIdx.x + i * kStatisticsThreads, row = v / kPatch, column = v % kPatch;
      const int at = row >= 16 && column < 16 ? column * kPatch + row : v;
      for (int w = 0; w < kStatisticsWarps; ++w) totals[i] += memory.sums[w * kMoments + at];
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int v = threadIdx.x + i * kStatisticsThreads, row = v / kPatch, column = v % kPatch;
    const double by = static_cast<double>(memory.inverses[row / 2]) * memory.inverses[column / 2];
    totals[i] /= by * (segment.valid > 0 ? segment.valid : 1);
    if (row == kOnes) memory.means[column] = totals[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int v = threadIdx.x + i * kStatisticsThreads;
    memory.covariance[v] = totals[i] - memory.means[v / kPatch] * memory.means[v % kPatch];
  }
  __syncthreads();
}

// w . row over the values of the leads held, four leads at a time.
__device__ __forceinline__ double wide_dot(const float (&w)[kPatch], const double* row, uint32_t held) {
  double sum = 0.0;
#pragma unroll
  for (int k = 0; k < kPatch; k += 8)
    if (held >> k / 2 & 15)
#pragma unroll
      for (int n = 0; n < 8; ++n) sum = fma(static_cast<double>(w[k + n]), row[k + n], sum);
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kStatisticsThreads)
    stem_statistics(StemShape s, StemInputs in, StemState state) {
  SharedArena arena;
  const StatisticsMemory<T> memory(arena);
  const int64_t b = blockIdx.x;
  const Segment<T> segment(s, in, b);
  signal_scales(segment, memory);
  __syncthreads();
  MomentSums sums = {};
  const int lane = threadIdx.x % 32;
  const uint32_t held = __ballot_sync(~0u, lane < kOnes / 2 && memory.held[lane % (kPatch / 2)]);
  if (threadIdx.x == 0) state.held[b] = held;
  T* patches = static_cast<T*>(state.patches) + b * s.patches * kPatch;
  if (held >> kHalfLeads)
    make_patches<T, false>(sums, segment, memory, held, patches);
  else
    make_patches<T, true>(sums, segment, memory, held, patches);
  centre_moments(sums, segment, memory);
  if (threadIdx.x < kPatch)
    state.means[b * kPatch + threadIdx.x] = static_cast<float>(memory.means[threadIdx.x]);
  for (int c = threadIdx.x; c < s.width; c += kStatisticsThreads) {
    const T* weights = packed_layer<T>(state, s, 0) + int64_t{kPatch} * c;
    float w[kPatch];
    double variance = 0.0;
    load_patch_weights(w, weights);
#pragma unroll 1
    for (int k = 0; k < 2 * s.leads; ++k) {
      if (!(held >> k / 2 & 1)) {
        if (state.spread) state.spread[(b * s.width + c) * kPatch + k] = 0.0f;
        continue;
      }
      const double spread = wide_dot(w, memory.covariance + k * kPatch, held);
      variance = fma(static_cast<double>(to_float(weights[k])), spread, variance);
      if (state.spread) state.spread[(b * s.width + c) * kPatch + k] = static_cast<float>(spread);
    }
    const double mean = wide_dot(w, memory.means, held);
    const bool real = c < s.channels;
    const double rstd = real ? 1.0 / sqrt((variance < 0.0 ? 0.0 : variance) + in.eps) : 0.0;
    const double scale = real ? to_float(static_cast<const T*>(in.gn_weight)[c]) * rstd : 0.0;
    const double bias = real ? to_float(static_cast<const T*>(in.gn_bias)[c]) : 0.0;
    state.rstd[b * s.width + c] = static_cast<float>(rstd);
    store_pack<2>(state.affine + 2 * (b * s.width + c),
                  Pack<float, 2>{{static_cast<float>(scale), static_cast<float>(bias - scale * mean)}});
  }
}

// Where a layer's activations go: rows of `width` values, of which those beyond `channels` are zero.
struct LayerOutput {
  void* values;
  void* slopes;  // rows of W, or null
  const void* bias;
  int channels, width, slopes_width;
  bool aligned;  // rows of values begin at multiples of 16 bytes
};

// gelu(sums + bias) for rows first + 0 .. count - 1 of the output and columns `column` .. of the tile.
template <typename T, typename Warp>
__device__ __forceinline__ void write_activations(const typename Warp::Sums& sums, const Warp& warp,
                                                  const LayerOutput& out, int64_t first, int count,
                                                  int column) {
  const int lane = threadIdx.x % 32;
  const T* biases = static_cast<const T*>(out.bias);
#pragma unroll
  for (int j = 0; j < Warp::kFragments; j += 4) {
    const int column0 = column + warp.column + 8 * j;
    float bias[4][2];
#pragma unroll
    for (int f = 0; f < 4; ++f)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int c = column0 + 8 * f + lane % 4 * 2 + n;
        bias[f][n] = biases && c < out.channels ? to_float(biases[c]) : 0.0f;
      }
#pragma unroll
    for (int i = 0; i < 2 * kRowFragments; ++i) {
      const int row = warp.row + 8 * i + lane / 4;
      float values[4][2], slopes[4][2];
#pragma unroll
      for (int f = 0; f < 4; ++f)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const Activation a = gelu_and_slope<T>(sums[i / 2][j + f][i % 2 * 2 + n] + bias[f][n]);
          values[f][n] = a.value;
          slopes[f][n] = a.slope;
        }
      const bool valid = row < count;
      store_row(static_cast<T*>(out.values) + (first + row) * out.width, column0, out.width, values, valid,
                out.aligned);
      if (out.slopes)
        store_row(static_cast<T*>(out.slopes) + (first + row) * out.slopes_width, column0, out.slopes_width,
                  slopes, valid, true);
    }
  }
}

template <typename T>
constexpr int kFirstColumns = sizeof(T) == 2 ? 256 : 128;
constexpr int kFirstRows = 128, kFirstStages = 4;

template <typename T>
struct FirstMemory {
  using Made = RowTile<T, kFirstRows>;
  using Weights = RowTile<T, kFirstColumns<T>>;
  using Weights0 = PatchTile<T, kDepth<T>>;
  T* made;        // [2]: gelu(layer 0)
  T* weights;     // [kFirstStages]
  T* weights0;    // [kFirstStages]
  float* affine;  // [kFirstStages][kDepth][2]
  __host__ __device__ explicit FirstMemory(SharedArena& arena)
      : made(arena.take<T>(2 * Made::kSize)),
        weights(arena.take<T>(kFirstStages * Weights::kSize)),
        weights0(arena.take<T>(kFirstStages * Weights0::kSize)),
        affine(arena.take<float>(kFirstStages * 2 * kDepth<T>)) {}
};

// A warp's 16 rows of layer 1 are pairs of patches: their fragments, as the left operand of layer 0, by tap.
template <typename T>
__device__ __forceinline__ void load_patch_fragments(uint32_t (&r)[2][kPatchSteps<T>][4], const T* patches,
                                                     int row, int rows) {
  constexpr int kWords = kPatch * sizeof(T) / 4;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(patches);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int tap = 0; tap < 2; ++tap)
#pragma unroll
    for (int step = 0; step < kPatchSteps<T>; ++step)
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int at = row + lane / 4 + n % 2 * 8;
        const int64_t word = (2 * int64_t{at} + tap) * kWords + step * 8 + n / 2 * 4 + lane % 4;
        r[tap][step][n] = at < rows ? words[word] : 0;
      }
}

// Layers 0 and 1: a block makes kFirstRows rows of a segment by kFirstColumns channels.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) stem_first(StemShape s, StemState state, LayerOutput out) {
  using Memory = FirstMemory<T>;
  using Warp = WarpTile<kFirstRows, kFirstColumns<T>>;
  SharedArena arena;
  const Memory memory(arena);
  const Warp warp;
  const int rows = stem_rows(s, 1), across = divide_up(s.channels, kFirstColumns<T>);
  const int down = divide_up(rows, kFirstRows);
  const int64_t b = blockIdx.x / across / down;
  const int row0 = blockIdx.x / across % down * kFirstRows, column0 = blockIdx.x % across * kFirstColumns<T>;
  const int per_tap = divide_up(s.width, kDepth<T>);
  const T* weights = packed_layer<T>(state, s, 1);
  const Source<T> weights0{packed_layer<T>(state, s, 0), kPatch, s.width, kPatch};
  const float* affine = state.affine + 2 * b * s.width;
  const int warp_rows = threadIdx.x / 32 * 16;
  const uint32_t held = state.held[b];
  uint32_t patches[2][kPatchSteps<T>][4];
  load_patch_fragments(patches, static_cast<const T*>(state.patches) + b * s.patches * kPatch,
                       row0 + warp_rows, rows);

  const auto load = [&](int c) {
    const int tap = c >= per_tap, channel = (c - tap * per_tap) * kDepth<T>, stage = c % kFirstStages;
    Memory::Weights::load(memory.weights + stage * Memory::Weights::kSize,
                          {weights + tap * s.width, 2 * s.width, s.channels, s.width}, column0, channel);
    Memory::Weights0::load(memory.weights0 + stage * Memory::Weights0::kSize, weights0, channel);
    load_affine<kDepth<T>>(memory.affine + stage * 2 * kDepth<T>, affine, channel, s.width);
  };
  const auto make = [&](int c, auto steps) {
    const int stage = c % kFirstStages, lane = threadIdx.x % 32;
    T* made = memory.made + c % 2 * Memory::Made::kSize;
    const bool second = c >= per_tap;
    uint32_t a[kPatchSteps<T>][4];
#pragma unroll
    for (int n = 0; n < 4 * kPatchSteps<T>; ++n)
      a[n / 4][n % 4] = second ? patches[1][n / 4][n % 4] : patches[0][n / 4][n % 4];
#pragma unroll
    for (int channel = 0; channel < kDepth<T>; channel += 8) {
      uint32_t w[kPatchSteps<T>][2];
      float z[4];
      Memory::Weights0::right(w, memory.weights0 + stage * Memory::Weights0::kSize, channel);
      layer0<T, decltype(steps)::value>(z, a, w, memory.affine + 2 * (stage * kDepth<T> + channel));
#pragma unroll
      for (int n = 0; n < 2; ++n)
        store_two(made + Memory::Made::at(warp_rows + lane / 4 + 8 * n, channel + lane % 4 * 2),
                  gelu<T>(z[2 * n]), gelu<T>(z[2 * n + 1]));
    }
  };
  const auto produce = [&](int c) { with_patch_steps<T>(held, [&](auto steps) { make(c, steps); }); };
  typename Warp::Sums sums = {};
  stream_produced<kFirstStages>(2 * per_tap, load, produce, [&](int c) {
    multiply<typename Memory::Made, typename Memory::Weights>(
        sums, warp, memory.made + c % 2 * Memory::Made::kSize,
        memory.weights + c % kFirstStages * Memory::Weights::kSize);
  });
  write_activations<T>(sums, warp, out, b * rows + row0, rows - row0, column0);
}

constexpr int kLayerStages = 3;

template <typename T>
struct LayerMemory {
  using Tile = RowTile<T, 128>;
  T *left, *right;  // [kLayerStages]
  __host__ __device__ explicit LayerMemory(SharedArena& arena)
      : left(arena.take<T>(kLayerStages * Tile::kSize)), right(arena.take<T>(kLayerStages * Tile::kSize)) {}
};

// A layer from 2 up: 128 rows by 128 channels of gelu(hidden weights^T + bias).
template <typename T>
__global__ void __launch_bounds__(kThreads, kPrecise<T> ? 1 : 2)
    stem_layer(StemShape s, StemState state, int layer, LayerOutput out) {
  using Tile = typename LayerMemory<T>::Tile;
  using Warp = WarpTile<128, 128>;
  SharedArena arena;
  const LayerMemory<T> memory(arena);
  const Warp warp;
  const int across = divide_up(s.channels, 128);
  const int64_t rows = s.batch * stem_rows(s, layer), row0 = blockIdx.x / across * int64_t{128};
  const int column0 = blockIdx.x % across * 128;
  const Source<T> hidden = rows_from<T>(of_layer<T>(state.hidden, s, layer - 1), row0, rows, 2 * s.width);
  const Source<T> weights{packed_layer<T>(state, s, layer), 2 * s.width, s.channels, 2 * s.width};
  typename Warp::Sums sums = {};
  stream<kLayerStages>(
      divide_up(2 * s.width, kDepth<T>),
      [&](int c) {
        Tile::load(memory.left + c % kLayerStages * Tile::kSize, hidden, 0, c * kDepth<T>);
        Tile::load(memory.right + c % kLayerStages * Tile::kSize, weights, column0, c * kDepth<T>);
      },
      [&](int c) {
        multiply<Tile, Tile>(sums, warp, memory.left + c % kLayerStages * Tile::kSize,
                             memory.right + c % kLayerStages * Tile::kSize);
      });
  write_activations<T>(sums, warp, out, row0, hidden.rows, column0);
}

}  // namespace ecgfast::cuda
