// Global contrastive loss, forward and backward, without an N x N' matrix. Similarities are s = cos /
// temperature, positives the pairs of one group.
//
// Forward, three launches: inverse norms; tiles of similarities, summed along rows and columns as they are
// made, to one (shift, sum) per row or column and region of tiles; logsumexps and the loss from these.
//
// Backward: with n_i, n_j the rows' and columns' numbers of positives,
//   h_ij = n_i exp(s_ij - lse_i) + n_j exp(s_ij - lse_j) - 2 [same group],
//   grad of a_i = f / |a_i| * tangent(sum_j h_ij u_j),  f = grad_loss / (temperature * 2 * pairs),
// u the unit rows of b; and of b_j likewise with the columns. Launches: unit rows; then for each block of
// rows and columns (8192 x 8192 for 16-bit inputs) h, written in the inputs' dtype, and both products with
// it; with the true norm one more, the tangents, for each block of rows.
//
// What it costs, in products of 2 N N' D operations, which bound the time: forward 1, backward 3. For N = N'
// = 32,768 and D = 768, a product is 1.65 TFLOP. The alternatives for the backward pass: keeping h of 128
// rows on chip takes 2 + 2 D / 128 = 14, as its similarities are made anew for each 128 columns of either
// gradient that fit in registers; holding whole rows and then whole columns of h takes 4, without sums over
// blocks; whole rows alone, 3, but the columns' products are then only 64 MiB / 2 N = 1024 deep and spend
// half their time on adding to sums in memory. At a depth of 8192 that is 1 / 16. h itself moves 3 x 128 MiB
// through memory per block, 0.1 ms beside 0.3 TFLOP. A tile of 128 x 128 similarities reads 16 KiB from the
// L2 cache per MFLOP, one of 256 x 128 products 12 KiB: at 400 TFLOP/s, 6.2 and 4.7 TB/s. At N = 64 launches
// bound it.
//
// All sums have a fixed order: results are the same bits every time.
#pragma once
#include "global_contrastive.h"
#include "global_contrastive_tiles.cuh"

namespace ecgfast::cuda {

// What the first launch of a pass makes of the rows of both sides; null: not wanted.
struct PreparedRows {
  float* inv_norms;              // [N + N'], written
  const float* known_inv_norms;  // or read
  void *copies[2], *units[2];    // rows, rows of length 1, `pitch` elements apart with zeros in between
  int64_t pitch;
  const float *lse[2], *positives;  // [N], [N']; numbers of them, [N + N']
  float* shares;                    // [N + N']: log2 of n exp(s - lse), less log2(e) s, negated
  int* counts;                      // [N + N'], cleared
  unsigned* ticket;                 // cleared
};

// A warp per row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    prepare_rows(GlobalContrastive in, PreparedRows out, bool aligned) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  if (out.ticket && blockIdx.x == 0 && threadIdx.x == 0) *out.ticket = 0;
  if (row >= in.rows[0] + in.rows[1]) return;
  const int side = row >= in.rows[0];
  const int64_t i = side ? row - in.rows[0] : row;
  const void* x = side ? in.x[1] : in.x[0];
  const RowReader<T> reader{static_cast<const T*>(x) + i * in.width, in.width, aligned};
  float inverse;
  if (out.known_inv_norms) {
    inverse = out.known_inv_norms[row];
  } else {
    float by = 1.0f, squares = warp_sum(sum_squares(reader, by));
    if (squares > kMostSquares) {
      by = 0x1p-70f;
      squares = warp_sum(sum_squares(reader, by));
    }
    inverse = inverse_norm(squares, by);
  }
  T* copy = static_cast<T*>(side ? out.copies[1] : out.copies[0]);
  T* unit = static_cast<T*>(side ? out.units[1] : out.units[0]);
  if (copy || unit)
    reader.each([&](int c, Pack<T, kVector<T>> pack) {
      if (copy) store_pack(copy + i * out.pitch + c, pack);
      if (!unit) return;
#pragma unroll
      for (int n = 0; n < kVector<T>; ++n) pack.v[n] = from_float<T>(to_float(pack.v[n]) * inverse);
      store_pack(unit + i * out.pitch + c, pack);
    });
  if (threadIdx.x % 32) return;
  if (out.inv_norms) out.inv_norms[row] = inverse;
  if (out.shares) out.shares[row] = (side ? out.lse[1] : out.lse[0])[i] * kLog2E - log2f(out.positives[row]);
  if (out.counts) out.counts[row] = 0;
}

// Rows of both sides whose similarities a launch makes.
template <typename T>
struct Similarities {
  Matrix<T> x[2];
  const int64_t* group[2];
  const float* inv_norms[2];
  float inv_temperature;
  const float* temperature;

  // From a cosine to log2(e) s: exponentials are powers of two.
  __device__ float scale() const { return inverse_temperature(inv_temperature, temperature) * kLog2E; }
};

// The rows of both sides that a tile covers.
template <typename T>
struct TileRows {
  const int64_t* group[2];
  const float* inv_norms[2];
  int count[2];

  __device__ __forceinline__ TileRows(const Similarities<T>& in, int64_t m0, int64_t n0, int m, int n)
      : group{in.group[0] + m0, in.group[1] + n0},
        inv_norms{in.inv_norms[0] + m0, in.inv_norms[1] + n0},
        count{static_cast<int>(min(in.x[0].rows - m0, static_cast<int64_t>(m))),
              static_cast<int>(min(in.x[1].rows - n0, static_cast<int64_t>(n)))} {}
};

template <typename S>
struct ColumnGroup {
  static_assert(S::columns % kGroup == 0 && kGroup % 2 == 0);
  using T = typename S::Element;
  const TileRows<T>& rows;
  const TilePlace<S>& at;
  int first;
  float scale[kGroup];
  uint32_t keys[kGroup / 2];  // two in a word, to spare registers

  __device__ __forceinline__ ColumnGroup(const TileRows<T>& rows_, const TilePlace<S>& at_, int first_)
      : rows(rows_), at(at_), first(first_) {
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      scale[c] = valid(c) ? rows.inv_norms[1][column(c)] : 0.0f;
      const uint32_t key = valid(c) ? group_key(rows.group[1][column(c)]) : 0;
      keys[c / 2] = c % 2 ? keys[c / 2] | key << 16 : key;
    }
  }

  __device__ __forceinline__ int column(int c) const { return at.column(first + c); }
  __device__ __forceinline__ bool valid(int c) const { return column(c) < rows.count[1]; }

  // With the row's scale: log2(e) s.
  __device__ __forceinline__ float similarity(const typename S::Sums& sums, int r, int c,
                                              float row_scale) const {
    return sums[r / 2][(first + c) / 2][r % 2 * 2 + c % 2] * scale[c] * row_scale;
  }

  // Calls f(c) for the columns that are positives of the tile's row i.
  template <typename F>
  __device__ __forceinline__ void positives(int i, F f) const {
    const int64_t group = rows.group[0][i];
    const uint32_t own = group_key(group) * 0x00010001u;
    uint32_t zeros = 0;  // the high bits of halves of words that are equal, and perhaps of some beside them
#pragma unroll
    for (int c = 0; c < kGroup / 2; ++c) {
      const uint32_t difference = keys[c] ^ own;
      zeros |= (difference - 0x00010001u) & ~difference;
    }
    if (!(zeros & 0x80008000u)) return;
#pragma unroll
    for (int c = 0; c < kGroup; ++c)
      if (valid(c) && rows.group[1][column(c)] == group) f(c);
  }
};

struct ForwardSums {
  Partial* partial[2];  // [column regions * warps_n][N], [row regions * warps_m][N']
  float*
      positive;  // [blocks * warps]: sums of the positives' similarities less 1 / temperature, times log2(e)
  int* counts;   // [N + N'], clear: gets the numbers of positives
  int regions[2];
};

// One tile's similarities, added to the sums of its rows and columns.
template <typename S>
struct ForwardTile {
  using T = typename S::Element;
  using Sums = typename S::Sums;
  const TileRows<T>& rows;
  const TilePlace<S>& at;
  float scale;                      // of all similarities
  Partial *row_sums, *column_sums;  // of the tile and the thread's warp
  int *row_counts, *column_counts;  // of the tile
  bool first_column, first_row;     // of tiles in the region

  // With kBounded no maxima are needed: no similarity exceeds 1 / temperature.
  template <bool kBounded>
  __device__ __forceinline__ void add(const Sums& sums, float& positive) const {
    float row_shift[S::rows], row_sum[S::rows];
#pragma unroll
    for (int r = 0; r < S::rows; ++r) {
      row_shift[r] = kBounded ? scale : kNothing;
      row_sum[r] = 0.0f;
    }
    if constexpr (!kBounded) row_maxima(sums, row_shift);
#pragma unroll
    for (int first = 0; first < S::columns; first += kGroup)
      add_group<kBounded>(sums, ColumnGroup<S>(rows, at, first), row_shift, row_sum, positive);
    scatter_sum<4, 1>(row_sum, at.lane);
    scatter<4, 1>(row_shift, at.lane);
#pragma unroll
    for (int k = 0; k < S::rows / 4; ++k) {
      const int i = at.row(at.lane % 4 * (S::rows / 4) + k);
      if (i < rows.count[0]) store(row_sums + i, {row_shift[k], row_sum[k]}, first_column);
    }
  }

 private:
  template <bool kBounded>
  __device__ __forceinline__ void add_group(const Sums& sums, const ColumnGroup<S>& columns,
                                            const float (&row_shift)[S::rows], float (&row_sum)[S::rows],
                                            float& positive) const {
    float shift[kGroup], sum[kGroup] = {};
#pragma unroll
    for (int c = 0; c < kGroup; ++c) shift[c] = kBounded ? scale : kNothing;
    if constexpr (!kBounded) column_maxima(sums, columns, shift);
#pragma unroll
    for (int r = 0; r < S::rows; ++r) {
      const int i = at.row(r);
      if (i >= rows.count[0]) continue;
      const float row_scale = rows.inv_norms[0][i] * scale;
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        const float s = columns.similarity(sums, r, c, row_scale);
        const float e = columns.valid(c) ? ptx::exp2_approximate(s - row_shift[r]) : 0.0f;
        row_sum[r] += e;
        sum[c] += kBounded ? e : ptx::exp2_approximate(s - shift[c]);
      }
      int n = 0;
      columns.positives(i, [&](int c) {
        positive += columns.similarity(sums, r, c, row_scale) - scale;
        atomicAdd(&column_counts[columns.column(c)], 1);
        ++n;
      });
      if (n) atomicAdd(&row_counts[i], n);
    }
    scatter_sum<8, 4>(sum, at.lane);
    scatter<8, 4>(shift, at.lane);
    const int j = columns.column(at.lane / 4);
    if (j < rows.count[1]) store(column_sums + j, {shift[0], sum[0]}, first_row);
  }

  __device__ __forceinline__ void row_maxima(const Sums& sums, float (&most)[S::rows]) const {
#pragma unroll
    for (int first = 0; first < S::columns; first += kGroup) {
      const ColumnGroup<S> columns(rows, at, first);
#pragma unroll
      for (int r = 0; r < S::rows; ++r) {
        const float row_scale = at.row(r) < rows.count[0] ? rows.inv_norms[0][at.row(r)] * scale : 0.0f;
#pragma unroll
        for (int c = 0; c < kGroup; ++c)
          if (columns.valid(c)) most[r] = fmaxf(most[r], columns.similarity(sums, r, c, row_scale));
      }
    }
#pragma unroll
    for (int r = 0; r < S::rows; ++r)
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2)
        most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], lanes));
  }

  __device__ __forceinline__ void column_maxima(const Sums& sums, const ColumnGroup<S>& columns,
                                                float (&most)[kGroup]) const {
#pragma unroll
    for (int r = 0; r < S::rows; ++r) {
      if (at.row(r) >= rows.count[0]) continue;
      const float row_scale = rows.inv_norms[0][at.row(r)] * scale;
#pragma unroll
      for (int c = 0; c < kGroup; ++c) most[c] = fmaxf(most[c], columns.similarity(sums, r, c, row_scale));
    }
#pragma unroll
    for (int c = 0; c < kGroup; ++c)
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2)
        most[c] = fmaxf(most[c], __shfl_xor_sync(~0u, most[c], lanes));
  }

  // A thread meets the same rows and columns in every tile that shares them: it alone writes their sums.
  static __device__ __forceinline__ void store(Partial* to, Partial partial, bool first) {
    *to = first ? partial : merge(*to, partial);
  }
};

// A block per region of tiles.
template <typename S>
__global__ void __launch_bounds__(S::threads, S::blocks)
    similarity_sums(Similarities<typename S::Element> in, ForwardSums out, [[maybe_unused]] bool bounded) {
  SharedArena arena;
  const ProductMemory<S> memory(arena);
  const TilePlace<S> at;
  const int region_m = blockIdx.x / out.regions[1], region_n = blockIdx.x % out.regions[1];
  const TileRange m(in.x[0].rows, S::m, region_m, out.regions[0]);
  const TileRange n(in.x[1].rows, S::n, region_n, out.regions[1]);
  Partial* row_sums = out.partial[0] + (region_n * S::warps_n + at.warp_n) * in.x[0].rows;
  Partial* column_sums = out.partial[1] + (region_m * S::warps_m + at.warp_m) * in.x[1].rows;
  TileProduct<S, false, false> product(memory, in.x[0], in.x[1]);
  const int tiles_n = n.last - n.first, tiles = (m.last - m.first) * tiles_n;
  const auto start = [&](int t) {
    product.start(static_cast<int64_t>(m.first + t / tiles_n) * S::m,
                  static_cast<int64_t>(n.first + t % tiles_n) * S::n);
  };
  const float scale = in.scale();
  float positive = 0.0f;
  start(0);
#pragma unroll 1
  for (int t = 0; t < tiles; ++t) {
    typename S::Sums sums;
    product.finish(sums, at);
    const int tile_m = m.first + t / tiles_n, tile_n = n.first + t % tiles_n;
    if (t + 1 < tiles) {
      __syncthreads();
      start(t + 1);
    }
    const int64_t m0 = static_cast<int64_t>(tile_m) * S::m, n0 = static_cast<int64_t>(tile_n) * S::n;
    const TileRows<typename S::Element> rows(in, m0, n0, S::m, S::n);
    const ForwardTile<S> tile{rows,
                              at,
                              scale,
                              row_sums + m0,
                              column_sums + n0,
                              out.counts + m0,
                              out.counts + in.x[0].rows + n0,
                              tile_n == n.first,
                              tile_m == m.first};
    if constexpr (kBoundedOnly<S>)
      tile.template add<true>(sums, positive);
    else
      bounded ? tile.template add<true>(sums, positive) : tile.template add<false>(sums, positive);
  }
  positive = warp_sum(positive);
  if (at.lane == 0) out.positive[blockIdx.x * (S::threads / 32) + threadIdx.x / 32] = positive;
}

// Of the rows of both sides: count * lse, counts, the largest count.
struct LossSums {
  double loss, pairs;
  int most;

  __device__ void add(const LossSums& o) {
    loss += o.loss;
    pairs += o.pairs;
    most = max(most, o.most);
  }
};

struct LossMemory {
  LossSums* warps;
  int* last;
  __host__ __device__ explicit LossMemory(SharedArena& arena)
      : warps(arena.take<LossSums>(kRowThreads / 32)), last(arena.take<int>(1)) {}
};

// The sum over the block, for thread 0. To be called again only after a barrier.
__device__ inline LossSums block_sum(LossSums sums, const LossMemory& memory) {
  for (int lanes = 16; lanes; lanes /= 2) {
    LossSums other;
    other.loss = __shfl_xor_sync(~0u, sums.loss, lanes);
    other.pairs = __shfl_xor_sync(~0u, sums.pairs, lanes);
    other.most = __shfl_xor_sync(~0u, sums.most, lanes);
    sums.add(other);
  }
  if (threadIdx.x % 32 == 0) memory.warps[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kRowThreads / 32; ++w) sums.add(memory.warps[w]);
  return sums;
}

struct LossInputs {
  int64_t rows[2];
  const Partial* partial[2];
  int n_partial[2], n_positive;
  const float* positive;
  const int* counts;
  LossSums* blocks;  // one per block
  unsigned* ticket;  // clear
  float inv_temperature;
  const float* temperature;

  __device__ float scale() const { return inverse_temperature(inv_temperature, temperature) * kLog2E; }
};

// A thread per row of either side; the last block to end sums up what the blocks leave.
__global__ void __launch_bounds__(kRowThreads) global_loss(LossInputs in, GlobalResult out) {
  SharedArena arena;
  const LossMemory memory(arena);
  const int64_t rows = in.rows[0] + in.rows[1];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  LossSums sums{0.0, 0.0, 0};
  if (row < rows) {
    const int side = row >= in.rows[0];
    const int64_t i = side ? row - in.rows[0] : row;
    const Partial* partial = (side ? in.partial[1] : in.partial[0]) + i;
    const int64_t pitch = side ? in.rows[1] : in.rows[0];
    const int n = side ? in.n_partial[1] : in.n_partial[0];
    Partial total{kNothing, 0.0f};
#pragma unroll 4
    for (int p = 0; p < n; ++p) total = merge(total, partial[p * pitch]);
    const float lse = (total.x + log2f(total.y)) * kLn2;
    const int count = in.counts[row];
    (side ? out.lse[1] : out.lse[0])[i] = lse;
    out.saved[rows + row] = static_cast<float>(count);
    // Less log2(e) / temperature, as the positives: where pairs are aligned, little is left of both.
    const double above = static_cast<double>(total.x - in.scale()) + log2f(total.y);
    if (count) sums = {above * kLn2 * count, static_cast<double>(count), count};
  }
  sums = block_sum(sums, memory);
  if (threadIdx.x == 0) {
    in.blocks[blockIdx.x] = sums;
    __threadfence();
    *memory.last = atomicAdd(in.ticket, 1u) + 1 == gridDim.x;
  }
  __syncthreads();
  if (!*memory.last) return;
  __threadfence();
  sums = {0.0, 0.0, 0};
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kRowThreads) sums.add(in.blocks[b]);
  for (int p = threadIdx.x; p < in.n_positive; p += kRowThreads)
    sums.loss -= 2.0 * kLn2 * static_cast<double>(in.positive[p]);
  sums = block_sum(sums, memory);
  if (threadIdx.x) return;
  const double pairs = sums.pairs > 2.0 ? sums.pairs : 2.0;
  *out.loss = static_cast<float>(sums.loss / pairs);
  out.saved[2 * rows] = static_cast<float>(pairs);
  out.saved[2 * rows + 1] = exp2f(floorf(log2f(16384.0f / static_cast<float>(max(sums.most, 1)))));
}

}  // namespace ecgfast::cuda
