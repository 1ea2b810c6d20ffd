// Backward kernels of the global contrastive loss over pairs of leads.
//
// Launches: unit rows; then for so many pairs as are held at a time, or blocks of one pair, the gradients h
// of their similarities (global_contrastive.cuh), each times one over the positives of its pair, and the
// products with it. A tile of the products is a tile of a lead's gradient: it adds up, in their order, what
// all held pairs have to add to it. In a lead with itself h is symmetric, and doubled instead of multiplied
// twice.
#pragma once
#include "global_contrastive_pairs.cuh"

namespace ecgfast::cuda {

// The gradients of similarities that are held.
template <typename T>
struct HeldPairs {
  T* data;                // [pairs][rows][pitch], zeros beyond the last column
  int64_t pitch, stride;  // from row to row, from pair to pair
  int64_t first, n;       // pairs
};

struct PairStatistics {
  const float *shares, *negatives;  // [Q, N + N']; the latter null where the softmax goes over all
  const float *weights, *scale;     // [Q]; of all gradients
  float2* moments;  // [tiles * warps] or null: sums of the elements times log2(e) s, and of the elements
};

// A block per tile, rows running fastest, pairs slowest.
template <typename S>
__global__ void __launch_bounds__(S::threads, S::blocks)
    pair_gradients(LeadRows<typename S::Element> in, HeldPairs<typename S::Element> out,
                   PairStatistics from) {
  using T = typename S::Element;
  SharedArena arena;
  const ProductMemory<S> memory(arena);
  const TilePlace<S> at;
  const int tiles_m = static_cast<int>(divide_up(in.size[0], S::m)),
            tiles_n = static_cast<int>(divide_up(in.size[1], S::n));
  const int slot = blockIdx.x / (tiles_m * tiles_n), tile_number = blockIdx.x % (tiles_m * tiles_n);
  const int64_t m0 = static_cast<int64_t>(tile_number % tiles_m) * S::m,
                n0 = static_cast<int64_t>(tile_number / tiles_m) * S::n;
  const int64_t q = out.first + slot;
  const Pair pair = in.pairs[q];
  const Matrix<T> x = in.template rows<0>(pair), y = in.template rows<1>(pair);
  typename S::Sums sums;
  TileProduct<S, false, false> product(memory, x, y);
  product.start(m0, n0);
  product.finish(sums, at);
  const PairTile<T> tile(in, pair, m0, n0, S::m, S::n);
  const float h_scale = *from.scale * (pair.self ? 2.0f : 1.0f), similarity_scale = in.scale();
  const float positive_scale = h_scale * from.weights[q];
  float2 moment = {0.0f, 0.0f};
  const int64_t place_a = q * (in.x[0].rows + in.x[1].rows) + in.begin[0] + m0,
                place_b = q * (in.x[0].rows + in.x[1].rows) + in.x[0].rows + in.begin[1] + n0;
  const float *shares_a = from.shares + place_a, *shares_b = from.shares + place_b;
  T* data = out.data + slot * out.stride + m0 * out.pitch + n0;
  const int limit = static_cast<int>(min(out.pitch - n0, static_cast<int64_t>(S::n)));
#pragma unroll
  for (int first = 0; first < S::columns; first += kGroup) {
    const PairColumns<S> columns(tile, at, first);
    float share[kGroup];
#pragma unroll
    for (int c = 0; c < kGroup; ++c)
      share[c] = columns.present >> c & 1 ? shares_b[columns.column(c)] : kInfinity;
#pragma unroll
    for (int r = 0; r < S::rows; ++r) {
      const int i = at.row(r);
      const bool there = tile.template there<0>(i);
      const float scale = there ? tile.inv_norms[0][i] * similarity_scale : 0.0f;
      const float own_share = there ? shares_a[i] : kInfinity;
      const uint32_t taken = there ? columns.template partners<false>(i) : 0;
      float h[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        const float s = columns.similarity(sums, r, c, scale);
        const float sum = ptx::exp2_approximate(s - own_share) + ptx::exp2_approximate(s - share[c]);
        h[c] = taken >> c & 1 ? sum * h_scale : 0.0f;
      }
      const uint32_t positives = there ? columns.positives(i, taken) : 0;
      if (positives) {
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          if (!(positives >> c & 1)) continue;
          if (!from.negatives) {
            h[c] -= 2.0f * positive_scale;
          } else {
            const float s = columns.similarity(sums, r, c, scale);
            const float own = from.negatives[place_a + i],
                        other = from.negatives[place_b + columns.column(c)];
            h[c] = -positive_scale * (1.0f / (1.0f + exp2f(s - own)) + 1.0f / (1.0f + exp2f(s - other)));
          }
        }
      }
      if (from.moments && there) {
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          if (!(taken >> c & 1)) continue;
          moment.x = fmaf(h[c], columns.similarity(sums, r, c, scale), moment.x);
          moment.y += h[c];
        }
      }
      const int side = at.side() + first * 4;
      store_row<kGroup>(data + i * out.pitch + side, limit - side, true, i < tile.count[0], at.lane,
                        [&](int c) { return h[c]; });
    }
  }
  if (!from.moments) return;
  const float part = pair.self ? 0.5f : 1.0f;
  moment = {warp_sum(moment.x) * part, warp_sum(moment.y) * part};
  if (at.lane == 0)
    from.moments[static_cast<int64_t>(blockIdx.x) * (S::threads / 32) + threadIdx.x / 32] = moment;
}

struct PairsScale {
  const float *grad_loss, *scalars;  // scalars: see pairs_loss
  float inv_temperature;
  const float* temperature;
  __device__ float value() const { return *grad_loss * inverse() / (2.0f * scalars[0] * scalars[1]); }
  __device__ float inverse() const { return inverse_temperature(inv_temperature, temperature); }
};

struct PairMomentMemory {
  double* sums;
  __host__ __device__ explicit PairMomentMemory(SharedArena& arena)
      : sums(arena.take<double>(2 * kRowThreads)) {}
};

// One block: the sum of what the tiles' warps leave, in a fixed order. See sum_moments.
__global__ void __launch_bounds__(kRowThreads)
    sum_pair_moments(const float2* moments, int64_t n, PairsScale scale, double* out) {
  SharedArena arena;
  const PairMomentMemory memory(arena);
  double sums[2] = {0.0, 0.0};
  for (int64_t i = threadIdx.x; i < n; i += kRowThreads) {
    sums[0] += moments[i].x;
    sums[1] += moments[i].y;
  }
  for (int k = 0; k < 2; ++k) memory.sums[k * kRowThreads + threadIdx.x] = sums[k];
  __syncthreads();
  if (threadIdx.x) return;
  for (int t = 1; t < kRowThreads; ++t)
    for (int k = 0; k < 2; ++k) sums[k] += memory.sums[k * kRowThreads + t];
  *out = (sums[0] - static_cast<double>(scale.scalars[2]) * sums[1]) * scale.value() /
         (scale.inverse() * kLog2E);
}

// What products read and write of the leads of both sides.
template <typename T>
struct PairProducts {
  const T* units[2];  // [leads][rows][pitch]
  const float* inv_norms[2];
  T* grad[2];      // [leads][rows][width]
  float* sums[2];  // [leads][rows][pitch], or null: the launch is all there is
  int64_t rows[2], begin[2], size[2], pitch;
  int width, tiles_a;
  bool first, last;  // of the launches that are summed
};

// A block per tile of a lead's rows; those of a before those of b, which has none where it is a.
template <typename S>
__global__ void __launch_bounds__(S::threads, S::blocks)
    pair_products(PairList pairs, HeldPairs<typename S::Element> held, PairProducts<typename S::Element> in,
                  PairsScale scale, bool aligned) {
  using T = typename S::Element;
  SharedArena arena;
  const ProductMemory<S> memory(arena);
  const TilePlace<S> at;
  const bool of_b = static_cast<int>(blockIdx.x) >= in.tiles_a;
  const int tile = of_b ? blockIdx.x - in.tiles_a : blockIdx.x;
  const int64_t rows = of_b ? in.rows[1] : in.rows[0];
  const int tiles_m = static_cast<int>(divide_up(rows, S::m)), tiles_n = divide_up<int>(in.width, S::n);
  const int64_t lead = tile / (tiles_m * tiles_n);
  const int64_t m0 = static_cast<int64_t>(tile / tiles_n % tiles_m) * S::m;
  const int start = tile % tiles_n * S::n, n0 = start + at.side(), limit = in.width - n0;
  typename S::Sums sums;
  TileProduct<S, false, true>::clear(sums);
  bool touched = false;
  const Matrix<T> h{held.data, held.pitch, in.size[0], in.size[1]};
  if (!of_b && m0 >= in.begin[0] && m0 < in.begin[0] + in.size[0]) {
#pragma unroll 1
    for (int64_t slot = 0; slot < held.n; ++slot) {
      const Pair pair = pairs[held.first + slot];
      if (pair.lead[0] != lead) continue;
      const Matrix<T> left{h.data + slot * held.stride, h.pitch, h.rows, h.columns};
      const Matrix<T> units{in.units[1] + (pair.lead[1] * in.rows[1] + in.begin[1]) * in.pitch, in.pitch,
                            in.size[1], in.width};
      if (touched) __syncthreads();
      TileProduct<S, false, true> product(memory, left, units);
      product.start(m0 - in.begin[0], start);
      product.accumulate(sums, at);
      touched = true;
    }
  }
  if ((of_b || pairs.alone) && m0 >= in.begin[1] && m0 < in.begin[1] + in.size[1]) {
#pragma unroll 1
    for (int64_t slot = 0; slot < held.n; ++slot) {
      const Pair pair = pairs[held.first + slot];
      if (pair.lead[1] != lead || pair.self) continue;
      const Matrix<T> left{h.data + slot * held.stride, h.pitch, h.rows, h.columns};
      const Matrix<T> units{in.units[0] + (pair.lead[0] * in.rows[0] + in.begin[0]) * in.pitch, in.pitch,
                            in.size[0], in.width};
      if (touched) __syncthreads();
      TileProduct<S, true, true> product(memory, left, units);
      product.start(m0 - in.begin[1], start);
      product.accumulate(sums, at);
      touched = true;
    }
  }
  if (!touched && !in.first && !in.last) return;
  T* grad = of_b ? in.grad[1] : in.grad[0];
  float* to_sums = of_b ? in.sums[1] : in.sums[0];
  const float* inv_norms = of_b ? in.inv_norms[1] : in.inv_norms[0];
  const float factor_scale = scale.value();
#pragma unroll
  for (int r = 0; r < S::rows; ++r) {
    const int64_t i = lead * rows + m0 + at.row(r);
    const bool valid = m0 + at.row(r) < rows;
    float* acc = to_sums ? to_sums + i * in.pitch + n0 : nullptr;
    if (acc && !in.first && valid) {
#pragma unroll
      for (int c = 0; c < S::columns; ++c) {
        const int column = at.column(c) - at.side();
        if (column < limit) sums[r / 2][c / 2][r % 2 * 2 + c % 2] += acc[column];
      }
    }
    const auto value = [&](int c) { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; };
    if (in.last) {
      const float factor = valid ? gradient_factor(inv_norms[i]) * factor_scale : 0.0f;
      store_row<S::columns>(grad + i * in.width + n0, limit, aligned, valid, at.lane,
                            [&](int c) { return value(c) * factor; });
    } else {
      store_row<S::columns>(acc, limit, true, valid, at.lane, value);
    }
  }
}

// Rows of one side, whose sums are complete.
template <typename T>
struct CompleteRows {
  const float* sums;  // [rows][pitch]
  const T* x;         // [rows][width]
  const float* inv_norms;
  T* grad;  // [rows][width]
  int64_t rows, pitch;
  int width;
};

// The part of the sums across the rows' direction, over the rows' norms. A warp per row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) pair_tangents(CompleteRows<T> in, PairsScale scale) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  if (row >= in.rows) return;
  const int lane = threadIdx.x % 32;
  const float* sums = in.sums + row * in.pitch;
  const T* x = in.x + row * in.width;
  T* grad = in.grad + row * in.width;
  const float inverse = in.inv_norms[row], factor = gradient_factor(inverse) * scale.value();
  if (inverse == kAbsent) {  // absent, whatever it holds
    for (int c = lane; c < in.width; c += 32) grad[c] = from_float<T>(0.0f);
    return;
  }
  float radial = 0.0f;
  for (int c = lane; c < in.width; c += 32) radial = fmaf(sums[c], to_float(x[c]) * inverse, radial);
  radial = warp_sum(radial);
  for (int c = lane; c < in.width; c += 32)
    grad[c] = from_float<T>((sums[c] - radial * (to_float(x[c]) * inverse)) * factor);
}

}  // namespace ecgfast::cuda
