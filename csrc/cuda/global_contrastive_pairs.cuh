// Global contrastive loss over pairs of leads, of a batch against itself, of the rows that are present: the
// forward kernels. They work as those of global_contrastive.cuh, with the pairs as a further dimension and a
// mask over each tile.
//
// Pairs lie in device memory, so that the host doesn't know which leads they name, nor which is a lead with
// itself. In such a pair the forward pass makes the similarities above the diagonal alone: a row's sum is
// that of its row and that of its column. Rows that are absent cost as much as others.
//
// With `negatives` the sums leave positives out. Where a row's positives are p and z is the sum over its
// negatives, its terms are log(exp(s_p) + z) - s_p, and the gradient to the similarity of a negative n is
// exp(s_n) / z * sum_p z / (exp(s_p) + z): that of the other form with this sum for the number of positives.
// These few cosines are made once more, one by one.
//
// Launches: inverse norms; tiles of similarities; logsumexps; with `negatives` the terms of positives; a
// block per pair for its loss, of which the last sums up all. All sums have a fixed order.
#pragma once
#include "global_contrastive_pairs.h"
#include "global_contrastive_tiles.cuh"

namespace ecgfast::cuda {

constexpr float kAbsent = -1.0f;  // an inverse norm of a row that takes no part

struct Pair {
  int64_t lead[2];
  bool self, valid;
};

struct PairList {
  const int64_t* pairs;
  int64_t leads[2];
  bool alone;

  // One that isn't there reads lead 0.
  __device__ Pair operator[](int64_t q) const {
    const int64_t a = pairs[2 * q], b = pairs[2 * q + 1];
    const bool valid = a >= 0 && a < leads[0] && b >= 0 && b < leads[1];
    if (!valid) return {{0, 0}, alone, false};
    return {{a, b}, alone && a == b, true};
  }
};

// What the first launch of a pass makes of the rows; null: not wanted.
struct PreparedPairs {
  float* inv_norms;              // of all rows of a, then b; written
  const float* known_inv_norms;  // or read
  void *copies[2], *units[2];    // rows, rows of length 1, `pitch` elements apart; absent ones are zeros
  int64_t pitch;
  Partial* partial;  // [n_partial], cleared
  int64_t n_partial;
  int* counts;  // [n_counts], cleared
  int64_t n_counts;
  unsigned* ticket;  // cleared
};

// A warp per row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    prepare_pairs(ContrastivePairs in, PreparedPairs out, bool aligned) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kRowThreads;
  for (int64_t i = thread; i < out.n_partial; i += threads) out.partial[i] = {kNothing, 0.0f};
  for (int64_t i = thread; i < out.n_counts; i += threads) out.counts[i] = 0;
  if (out.ticket && thread == 0) *out.ticket = 0;
  const int64_t row = thread / 32, rows_a = in.leads[0] * in.rows[0];
  if (row >= rows_a + (in.alone ? 0 : in.leads[1] * in.rows[1])) return;
  const int side = row >= rows_a;
  const int64_t i = side ? row - rows_a : row, rows = side ? in.rows[1] : in.rows[0];
  const bool* present = side ? in.present[1] : in.present[0];
  const bool by_lead = side ? in.present_by_lead[1] : in.present_by_lead[0];
  const bool there = !present || present[by_lead ? i : i % rows];
  const void* x = side ? in.x[1] : in.x[0];
  const RowReader<T> reader{static_cast<const T*>(x) + i * in.width, in.width, aligned};
  float inverse = kAbsent;
  if (out.known_inv_norms) {
    inverse = out.known_inv_norms[row];
  } else if (there) {
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
#pragma unroll
      for (int n = 0; n < kVector<T>; ++n) pack.v[n] = there ? pack.v[n] : from_float<T>(0.0f);
      if (copy) store_pack(copy + i * out.pitch + c, pack);
      if (!unit) return;
#pragma unroll
      for (int n = 0; n < kVector<T>; ++n) pack.v[n] = from_float<T>(to_float(pack.v[n]) * inverse);
      store_pack(unit + i * out.pitch + c, pack);
    });
  if (threadIdx.x % 32 == 0 && out.inv_norms) out.inv_norms[row] = inverse;
}

// The rows of both sides, of all leads.
template <typename T>
struct LeadRows {
  Matrix<T> x[2];  // its rows are those of one lead
  const int64_t* group[2];
  const float* inv_norms[2];
  int64_t begin[2], size[2];  // the rows of each lead that a launch works on
  PairList pairs;
  bool negatives;
  float inv_temperature;
  const float* temperature;

  // From a cosine to log2(e) s: exponentials are powers of two.
  __device__ float scale() const { return inverse_temperature(inv_temperature, temperature) * kLog2E; }

  template <int kSide>
  __device__ __forceinline__ Matrix<T> rows(const Pair& pair) const {
    Matrix<T> m = x[kSide];
    m.data += (pair.lead[kSide] * m.rows + begin[kSide]) * m.pitch;
    m.rows = size[kSide];
    return m;
  }
};

constexpr int kNoDiagonal = -(1 << 30) - (1 << 29);

// What of a pair's rows a tile covers.
template <typename T>
struct PairTile {
  const int64_t* group[2];
  const float* inv_norms[2];
  int count[2];
  int diagonal;  // in a lead with itself: the column of row 0's similarity to itself
  bool negatives;

  __device__ __forceinline__ PairTile(const LeadRows<T>& in, const Pair& pair, int64_t m0, int64_t n0, int m,
                                      int n)
      : count{static_cast<int>(min(in.size[0] - m0, static_cast<int64_t>(m))),
              static_cast<int>(min(in.size[1] - n0, static_cast<int64_t>(n)))},
        negatives(in.negatives) {
    const int64_t first[2] = {in.begin[0] + m0, in.begin[1] + n0};
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      group[side] = in.group[side] + first[side];
      inv_norms[side] = in.inv_norms[side] + pair.lead[side] * in.x[side].rows + first[side];
    }
    diagonal = pair.self ? static_cast<int>(first[0] - first[1]) : kNoDiagonal;
  }

  template <int kSide>
  __device__ __forceinline__ bool there(int i) const {
    return i < count[kSide] && inv_norms[kSide][i] != kAbsent;
  }
};

// A group of a thread's columns. Sets of them are bits.
template <typename S>
struct PairColumns {
  using T = typename S::Element;
  const PairTile<T>& tile;
  const TilePlace<S>& at;
  int first;
  float scale[kGroup];
  uint32_t keys[kGroup / 2];  // two in a word, to spare registers
  uint32_t present = 0;

  __device__ __forceinline__ PairColumns(const PairTile<T>& tile_, const TilePlace<S>& at_, int first_)
      : tile(tile_), at(at_), first(first_) {
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      const bool there = tile.template there<1>(column(c));
      scale[c] = there ? tile.inv_norms[1][column(c)] : 0.0f;
      const uint32_t key = there ? group_key(tile.group[1][column(c)]) : 0;
      keys[c / 2] = c % 2 ? keys[c / 2] | key << 16 : key;
      present |= there ? 1u << c : 0u;
    }
  }

  __device__ __forceinline__ int column(int c) const { return at.column(first + c); }

  // With the row's scale: log2(e) s.
  __device__ __forceinline__ float similarity(const typename S::Sums& sums, int r, int c,
                                              float row_scale) const {
    return sums[r / 2][(first + c) / 2][r % 2 * 2 + c % 2] * scale[c] * row_scale;
  }

  // Those that take part with row i; with kAbove those above the diagonal alone.
  template <bool kAbove>
  __device__ __forceinline__ uint32_t partners(int i) const {
    const int own = i + tile.diagonal - column(0);  // columns of the group are at 0, 1, 8, 9, ..
    if (own < 0 || (!kAbove && own >= kGroup * 4)) return present;
    const int below = min(own / 8 * 2 + min(own % 8, 2), kGroup);  // columns before it
    const uint32_t own_bit = own % 8 < 2 && own < kGroup * 4 ? 1u << below : 0u;
    return present & ~(kAbove ? ((1u << below) - 1) | own_bit : own_bit);
  }

  // Those among them that are positives of row i.
  __device__ __forceinline__ uint32_t positives(int i, uint32_t among) const {
    const int64_t group = tile.group[0][i];
    const uint32_t own = group_key(group) * 0x00010001u;
    uint32_t zeros = 0;  // the high bits of halves of words that are equal, and perhaps of some beside them
#pragma unroll
    for (int c = 0; c < kGroup / 2; ++c) {
      const uint32_t difference = keys[c] ^ own;
      zeros |= (difference - 0x00010001u) & ~difference;
    }
    if (!(zeros & 0x80008000u)) return 0;
    uint32_t found = 0;
#pragma unroll
    for (int c = 0; c < kGroup; ++c)
      if ((among >> c & 1) && tile.group[1][column(c)] == group) found |= 1u << c;
    return found;
  }
};

struct PairSums {
  Partial* partial[2];  // [Q][column regions * warps_n][N], [Q][row regions * warps_m][N']
  float* positive;  // [Q][blocks * warps]: sums of the positives' similarities less 1 / temperature, times
                    // log2(e)
  int* counts;      // [Q, N + N'], clear: gets the numbers of positives
  int regions[2];
};

// One tile's similarities, added to the sums of its rows and columns.
template <typename S>
struct PairForwardTile {
  using T = typename S::Element;
  using Sums = typename S::Sums;
  const PairTile<T>& tile;
  const TilePlace<S>& at;
  float scale;                      // of all similarities
  Partial *row_sums, *column_sums;  // of the tile and the thread's warp
  int *row_counts, *column_counts;  // of the tile

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
      add_group<kBounded>(sums, PairColumns<S>(tile, at, first), row_shift, row_sum, positive);
    scatter_sum<4, 1>(row_sum, at.lane);
    scatter<4, 1>(row_shift, at.lane);
#pragma unroll
    for (int k = 0; k < S::rows / 4; ++k) {
      const int i = at.row(at.lane % 4 * (S::rows / 4) + k);
      if (i < tile.count[0]) row_sums[i] = merge(row_sums[i], {row_shift[k], row_sum[k]});
    }
  }

 private:
  // The columns that row i's sum takes.
  __device__ __forceinline__ uint32_t summed(const PairColumns<S>& columns, int i,
                                             uint32_t& positives) const {
    const uint32_t partners = columns.template partners<true>(i);
    positives = columns.positives(i, partners);
    return tile.negatives ? partners & ~positives : partners;
  }

  template <bool kBounded>
  __device__ __forceinline__ void add_group(const Sums& sums, const PairColumns<S>& columns,
                                            const float (&row_shift)[S::rows], float (&row_sum)[S::rows],
                                            float& positive) const {
    float shift[kGroup], sum[kGroup] = {};
#pragma unroll
    for (int c = 0; c < kGroup; ++c) shift[c] = kBounded ? scale : kNothing;
    if constexpr (!kBounded) column_maxima(sums, columns, shift);
#pragma unroll
    for (int r = 0; r < S::rows; ++r) {
      const int i = at.row(r);
      if (!tile.template there<0>(i)) continue;
      const float row_scale = tile.inv_norms[0][i] * scale;
      uint32_t positives;
      const uint32_t taken = summed(columns, i, positives);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        const float s = columns.similarity(sums, r, c, row_scale);
        const bool takes = taken >> c & 1;
        const float e = takes ? ptx::exp2_approximate(s - row_shift[r]) : 0.0f;
        row_sum[r] += e;
        if constexpr (kBounded)
          sum[c] += e;
        else
          sum[c] += takes ? ptx::exp2_approximate(s - shift[c]) : 0.0f;
      }
      if (!positives) continue;
#pragma unroll
      for (int c = 0; c < kGroup; ++c)
        if (positives >> c & 1) {
          positive += columns.similarity(sums, r, c, row_scale) - scale;
          atomicAdd(&column_counts[columns.column(c)], 1);
        }
      atomicAdd(&row_counts[i], __popc(positives));
    }
    scatter_sum<8, 4>(sum, at.lane);
    scatter<8, 4>(shift, at.lane);
    const int j = columns.column(at.lane / 4);
    if (j < tile.count[1]) column_sums[j] = merge(column_sums[j], {shift[0], sum[0]});
  }

  __device__ __forceinline__ void row_maxima(const Sums& sums, float (&most)[S::rows]) const {
#pragma unroll
    for (int first = 0; first < S::columns; first += kGroup) {
      const PairColumns<S> columns(tile, at, first);
#pragma unroll
      for (int r = 0; r < S::rows; ++r) {
        if (!tile.template there<0>(at.row(r))) continue;
        const float row_scale = tile.inv_norms[0][at.row(r)] * scale;
        uint32_t positives;
        const uint32_t taken = summed(columns, at.row(r), positives);
#pragma unroll
        for (int c = 0; c < kGroup; ++c)
          if (taken >> c & 1) most[r] = fmaxf(most[r], columns.similarity(sums, r, c, row_scale));
      }
    }
#pragma unroll
    for (int r = 0; r < S::rows; ++r)
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2)
        most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], lanes));
  }

  __device__ __forceinline__ void column_maxima(const Sums& sums, const PairColumns<S>& columns,
                                                float (&most)[kGroup]) const {
#pragma unroll
    for (int r = 0; r < S::rows; ++r) {
      if (!tile.template there<0>(at.row(r))) continue;
      const float row_scale = tile.inv_norms[0][at.row(r)] * scale;
      uint32_t positives;
      const uint32_t taken = summed(columns, at.row(r), positives);
#pragma unroll
      for (int c = 0; c < kGroup; ++c)
        if (taken >> c & 1) most[c] = fmaxf(most[c], columns.similarity(sums, r, c, row_scale));
    }
#pragma unroll
    for (int c = 0; c < kGroup; ++c)
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2)
        most[c] = fmaxf(most[c], __shfl_xor_sync(~0u, most[c], lanes));
  }
};

// A block per pair and region of tiles.
template <typename S>
__global__ void __launch_bounds__(S::threads, S::blocks)
    pair_sums(LeadRows<typename S::Element> in, PairSums out, [[maybe_unused]] bool bounded) {
  static_assert(S::m == S::n);
  SharedArena arena;
  const ProductMemory<S> memory(arena);
  const TilePlace<S> at;
  const int regions = out.regions[0] * out.regions[1];
  const int64_t q = blockIdx.x / regions;
  const int region_m = blockIdx.x % regions / out.regions[1], region_n = blockIdx.x % out.regions[1];
  const Pair pair = in.pairs[q];
  const TileRange m(in.size[0], S::m, region_m, out.regions[0]);
  const TileRange n(in.size[1], S::n, region_n, out.regions[1]);
  const int64_t rows = in.size[0], columns = in.size[1];
  Partial* row_sums = out.partial[0] + ((q * out.regions[1] + region_n) * S::warps_n + at.warp_n) * rows;
  Partial* column_sums =
      out.partial[1] + ((q * out.regions[0] + region_m) * S::warps_m + at.warp_m) * columns;
  int* counts = out.counts + q * (rows + columns);
  const Matrix<typename S::Element> x = in.template rows<0>(pair), y = in.template rows<1>(pair);
  TileProduct<S, false, false> product(memory, x, y);
  const int tiles_n = n.last - n.first, tiles = (m.last - m.first) * tiles_n;
  // The first tile from t on with a similarity above the diagonal of a lead with itself.
  const auto next = [&](int t) {
    while (pair.self && t < tiles && n.first + t % tiles_n < m.first + t / tiles_n) ++t;
    return t;
  };
  const auto start = [&](int t) {
    product.start(static_cast<int64_t>(m.first + t / tiles_n) * S::m,
                  static_cast<int64_t>(n.first + t % tiles_n) * S::n);
  };
  const float scale = in.scale();
  float positive = 0.0f;
  int t = next(0);
  if (t < tiles) start(t);
#pragma unroll 1
  while (t < tiles) {
    typename S::Sums sums;
    product.finish(sums, at);
    const int64_t m0 = static_cast<int64_t>(m.first + t / tiles_n) * S::m,
                  n0 = static_cast<int64_t>(n.first + t % tiles_n) * S::n;
    t = next(t + 1);
    if (t < tiles) {
      __syncthreads();
      start(t);
    }
    const PairTile<typename S::Element> covered(in, pair, m0, n0, S::m, S::n);
    const PairForwardTile<S> tile{covered,           at, scale, row_sums + m0, column_sums + n0, counts + m0,
                                  counts + rows + n0};
    if constexpr (kBoundedOnly<S>)
      tile.template add<true>(sums, positive);
    else
      bounded ? tile.template add<true>(sums, positive) : tile.template add<false>(sums, positive);
  }
  positive = warp_sum(positive);
  if (at.lane == 0)
    out.positive[static_cast<int64_t>(blockIdx.x) * (S::threads / 32) + threadIdx.x / 32] = positive;
}

}  // namespace ecgfast::cuda
