// Backward kernels of the global contrastive loss; global_contrastive.cuh says how they work.
#pragma once
#include "global_contrastive.cuh"

namespace ecgfast::cuda {

// Where the gradients of a block's similarities go.
template <typename T>
struct BlockGradients {
  const float* shares[2];  // see PreparedRows; infinite where a row has no positives
  const float* scale;      // of all elements
  T* data;                 // [rows of x[0]][pitch], zeros beyond the last column
  int64_t pitch;
  float2* moments;  // [tiles * warps] or null: sums of the elements times log2(e) s, and of the elements
};

// A block per tile, rows running fastest.
template <typename S>
__global__ void __launch_bounds__(S::threads, S::blocks)
    similarity_gradients(Similarities<typename S::Element> in, BlockGradients<typename S::Element> out) {
  using T = typename S::Element;
  SharedArena arena;
  const ProductMemory<S> memory(arena);
  const TilePlace<S> at;
  const int tiles_m = static_cast<int>(divide_up(in.x[0].rows, S::m));
  const int64_t m0 = static_cast<int64_t>(blockIdx.x % tiles_m) * S::m,
                n0 = static_cast<int64_t>(blockIdx.x / tiles_m) * S::n;
  typename S::Sums sums;
  TileProduct<S, false, false> product(memory, in.x[0], in.x[1]);
  product.start(m0, n0);
  product.finish(sums, at);
  const TileRows<T> rows(in, m0, n0, S::m, S::n);
  const float h_scale = *out.scale, similarity_scale = in.scale();
  float2 moment = {0.0f, 0.0f};
  const float *shares_a = out.shares[0] + m0, *shares_b = out.shares[1] + n0;
  T* data = out.data + m0 * out.pitch + n0;
  const int limit = static_cast<int>(min(out.pitch - n0, static_cast<int64_t>(S::n)));
#pragma unroll
  for (int first = 0; first < S::columns; first += kGroup) {
    const ColumnGroup<S> columns(rows, at, first);
    float share[kGroup];
#pragma unroll
    for (int c = 0; c < kGroup; ++c) share[c] = columns.valid(c) ? shares_b[columns.column(c)] : 0.0f;
#pragma unroll
    for (int r = 0; r < S::rows; ++r) {
      const int i = at.row(r);
      const bool valid = i < rows.count[0];
      const float scale = valid ? rows.inv_norms[0][i] * similarity_scale : 0.0f;
      const float own_share = valid ? shares_a[i] : 0.0f;
      float h[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        const float s = columns.similarity(sums, r, c, scale);
        const float sum = ptx::exp2_approximate(s - own_share) + ptx::exp2_approximate(s - share[c]);
        h[c] = columns.valid(c) ? sum * h_scale : 0.0f;
      }
      if (valid) columns.positives(i, [&](int c) { h[c] -= 2.0f * h_scale; });
      if (out.moments && valid) {
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          moment.x = fmaf(h[c], columns.similarity(sums, r, c, scale), moment.x);
          moment.y += h[c];
        }
      }
      const int side = at.side() + first * 4;
      store_row<kGroup>(data + i * out.pitch + side, limit - side, true, valid, at.lane,
                        [&](int c) { return h[c]; });
    }
  }
  if (!out.moments) return;
  moment = {warp_sum(moment.x), warp_sum(moment.y)};
  if (at.lane == 0) out.moments[blockIdx.x * (S::threads / 32) + threadIdx.x / 32] = moment;
}

// One side of a block's products: h or its transpose times the other side's unit rows.
template <typename T>
struct BlockProduct {
  Matrix<T> units;         // the other side's rows of the block
  const float* inv_norms;  // of the own rows of the block
  T* grad;                 // [own rows, D]
  float* sums;             // [own rows][pitch], or null: the block is all there is
  bool first, last;        // of the blocks that are summed
};

struct MomentMemory {
  double* sums;
  __host__ __device__ explicit MomentMemory(SharedArena& arena) : sums(arena.take<double>(3 * kRowThreads)) {}
};

struct ProductScale {
  const float *grad_loss, *saved;  // saved: pairs, scale of h
  float inv_temperature;
  const float* temperature;
  __device__ float value() const { return *grad_loss * inverse() / (saved[0] * saved[1]); }
  __device__ float inverse() const { return inverse_temperature(inv_temperature, temperature); }
};

// One block: the sum of what the tiles' warps leave, in a fixed order. The gradients of the similarities sum
// up to 0: what they do sum up to is rounding, and its part in the moments is taken out with a typical
// similarity.
__global__ void __launch_bounds__(kRowThreads)
    sum_moments(const float2* moments, int64_t n, const float* lse, int64_t rows, int64_t columns,
                ProductScale scale, double* out) {
  SharedArena arena;
  const MomentMemory memory(arena);
  double sums[3] = {0.0, 0.0, 0.0};
  for (int64_t i = threadIdx.x; i < n; i += kRowThreads) {
    sums[0] += moments[i].x;
    sums[1] += moments[i].y;
  }
  for (int64_t i = threadIdx.x; i < rows; i += kRowThreads) sums[2] += lse[i];
  for (int k = 0; k < 3; ++k) memory.sums[k * kRowThreads + threadIdx.x] = sums[k];
  __syncthreads();
  if (threadIdx.x) return;
  for (int t = 1; t < kRowThreads; ++t)
    for (int k = 0; k < 3; ++k) sums[k] += memory.sums[k * kRowThreads + t];
  const double typical =
      rows && columns ? (sums[2] / rows - log(static_cast<double>(columns))) * kLog2E : 0.0;
  *out = (sums[0] - typical * sums[1]) * scale.value() / (scale.inverse() * kLog2E);
}

template <typename S, bool kTurned>
__device__ __forceinline__ void product_tile(const ProductMemory<S>& memory,
                                             const Matrix<typename S::Element>& h,
                                             const BlockProduct<typename S::Element>& side, float scale,
                                             int tile, bool aligned) {
  using T = typename S::Element;
  const TilePlace<S> at;
  const int64_t rows = kTurned ? h.columns : h.rows;
  const int width = static_cast<int>(side.units.columns), tiles_n = divide_up<int>(width, S::n);
  const int64_t m0 = static_cast<int64_t>(tile / tiles_n) * S::m;
  const int n0 = tile % tiles_n * S::n + at.side(), limit = width - n0;
  typename S::Sums sums;
  TileProduct<S, kTurned, true> product(memory, h, side.units);
  product.start(m0, n0 - at.side());
  product.finish(sums, at);
#pragma unroll
  for (int r = 0; r < S::rows; ++r) {
    const int64_t i = m0 + at.row(r);
    const bool valid = i < rows;
    float* acc = side.sums ? side.sums + i * side.units.pitch + n0 : nullptr;
    if (acc && !side.first && valid) {
#pragma unroll
      for (int c = 0; c < S::columns; ++c) {
        const int column = at.column(c) - at.side();
        if (column < limit) sums[r / 2][c / 2][r % 2 * 2 + c % 2] += acc[column];
      }
    }
    const auto value = [&](int c) { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; };
    if (side.last) {
      const float factor = valid ? gradient_factor(side.inv_norms[i]) * scale : 0.0f;
      store_row<S::columns>(side.grad + i * width + n0, limit, aligned, valid, at.lane,
                            [&](int c) { return value(c) * factor; });
    } else {
      store_row<S::columns>(acc, limit, true, valid, at.lane, value);
    }
  }
}

// The gradients of a block's rows of a (tiles_a tiles), then of b.
template <typename S>
__global__ void __launch_bounds__(S::threads, S::blocks)
    gradient_products(Matrix<typename S::Element> h, BlockProduct<typename S::Element> a,
                      BlockProduct<typename S::Element> b, ProductScale scale, int tiles_a, bool aligned) {
  SharedArena arena;
  const ProductMemory<S> memory(arena);
  const int tile = blockIdx.x;
  if (tile < tiles_a)
    product_tile<S, false>(memory, h, a, scale.value(), tile, aligned);
  else
    product_tile<S, true>(memory, h, b, scale.value(), tile - tiles_a, aligned);
}

// Rows whose sums are complete.
template <typename T>
struct TangentRows {
  const float* sums;  // [rows][pitch]
  const T* x;         // [rows][width]
  const float* inv_norms;
  T* grad;  // [rows][width]
  int64_t rows, pitch;
  int width;
};

// The part of the sums across the rows' direction, over the rows' norms. A warp per row, those of a before
// those of b.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    tangents(TangentRows<T> a, TangentRows<T> b, ProductScale scale) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  if (row >= a.rows + b.rows) return;
  const bool of_a = row < a.rows;  // no reference to either: parameters would move to local memory
  const int64_t i = of_a ? row : row - a.rows;
  const int lane = threadIdx.x % 32, width = a.width;
  const float* sums = (of_a ? a.sums : b.sums) + i * a.pitch;
  const T* x = (of_a ? a.x : b.x) + i * width;
  T* grad = (of_a ? a.grad : b.grad) + i * width;
  const float inverse = (of_a ? a.inv_norms : b.inv_norms)[i],
              factor = gradient_factor(inverse) * scale.value();
  float radial = 0.0f;
  for (int c = lane; c < width; c += 32) radial = fmaf(sums[c], to_float(x[c]) * inverse, radial);
  radial = warp_sum(radial);
  for (int c = lane; c < width; c += 32)
    grad[c] = from_float<T>((sums[c] - radial * (to_float(x[c]) * inverse)) * factor);
}

}  // namespace ecgfast::cuda
