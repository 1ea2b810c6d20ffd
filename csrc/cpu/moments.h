// First and second moments of series of pairs, such as a segment's leads, whose patches are two samples, and
// products with those patches: in double precision, where products of floats are exact. A variance w Cov w
// may be 10^-6 of |w|^2 |x|^2 (leads that are nearly one, a step into padding), of which single precision
// leaves a tenth.
#pragma once
#include "simd.h"

namespace ecgfast {
namespace {

static inline Vec<double> load_wide(const double* p) { return load(p); }
typedef float Narrow __attribute__((vector_size(kVectorBytes / 2)));
static inline Vec<double> load_wide(const float* p) {
  Narrow v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vec<double>);
}

static inline void store_wide(double* p, Vec<double> v) { store(p, v); }
static inline void store_wide(float* p, Vec<double> v) {
  const Narrow narrow = __builtin_convertvector(v, Narrow);
  memcpy(p, &narrow, sizeof narrow);
}

// The sums of v's even and of its odd lanes, in lanes 0 and 1.
template <int Width = kLanes<double> / 2>
static inline Vec<double> add_pairs(Vec<double> v) {
  if constexpr (Width < 2) {
    return v;
  } else {
    return add_pairs<Width / 2>(v + exchange<Width, double>(v));
  }
}

// The means of the first and of the second values of n / 2 pairs, and of the squares of all; zeros of none.
template <class T>
static void pair_means(const T* x, int64_t n, double* means, double* square) {
  constexpr int64_t L = kLanes<double>;
  Vec<double> sums[4] = {}, squares[4] = {};
  int64_t t = 0;
  for (; t + 4 * L <= n; t += 4 * L)
    for (int64_t i = 0; i < 4; ++i) {
      const Vec<double> v = load_wide(x + t + i * L);
      sums[i] += v;
      squares[i] += v * v;
    }
  Vec<double> both = add_pairs((sums[0] + sums[1]) + (sums[2] + sums[3]));
  double all = reduce_add<double>((squares[0] + squares[1]) + (squares[2] + squares[3]));
  for (; t < n; ++t) {
    both[t % 2] += x[t];
    all += double(x[t]) * x[t];
  }
  for (int64_t i = 0; i < 2; ++i) means[i] = n > 0 ? both[i] * 2 / n : 0.0;
  *square = n > 0 ? all / n : 0.0;
}

constexpr int64_t kMomentRows = kVectorBytes == 64 ? 4 : 2, kMomentColumns = 2;

// Values of a series at a time: those of all series fit in the first cache.
static inline int64_t moment_chunk(int64_t series) {
  const int64_t fit = 4096 / round_up(series, kMomentRows) / 16 * 16;
  return fit < 64 ? 64 : fit > 512 ? 512 : fit;
}
static inline int64_t moment_scratch(int64_t series, int64_t chunk) {
  return round_up(series, kMomentRows) * chunk;
}

// out += the products of kMomentRows series at a and kMomentColumns at b over n values, of which `rows` and
// `columns` exist. A vector times b gives the products of like places in the pairs, times b with its pairs
// turned those of unlike ones.
static void add_moments(const double* a, const double* b, int64_t stride, int64_t n, int64_t rows,
                        int64_t columns, double* out, int64_t ldo) {
  Vec<double> like[kMomentRows][kMomentColumns] = {}, unlike[kMomentRows][kMomentColumns] = {};
  for (int64_t t = 0; t < n; t += kLanes<double>) {
    Vec<double> y[kMomentColumns], turned[kMomentColumns];
#pragma GCC unroll 2
    for (int64_t j = 0; j < kMomentColumns; ++j) {
      y[j] = load(b + j * stride + t);
      turned[j] = exchange<1, double>(y[j]);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kMomentRows; ++i) {
      const Vec<double> x = load(a + i * stride + t);
#pragma GCC unroll 2
      for (int64_t j = 0; j < kMomentColumns; ++j) {
        like[i][j] += x * y[j];
        unlike[i][j] += x * turned[j];
      }
    }
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < kMomentRows; ++i)
#pragma GCC unroll 2
    for (int64_t j = 0; j < kMomentColumns; ++j) {
      if (i >= rows || j >= columns) continue;
      const Vec<double> same = add_pairs(like[i][j]), other = add_pairs(unlike[i][j]);
      double* to = out + 2 * i * ldo + 2 * j;
      to[0] += same[0];
      to[1] += other[0];
      to[ldo] += other[1];
      to[ldo + 1] += same[1];
    }
}

// The sums over n / 2 pairs of the products of any two of the 2 * series values of a pair, in rows of ldo;
// x holds series in rows of `stride`. The sums are made of `chunk` values at a time, a multiple of 16, so
// that two series have the same ones whichever others there are. `scratch` holds moment_scratch(series,
// chunk).
template <class T>
static void second_moments(const T* x, int64_t series, int64_t stride, int64_t n, double* out, int64_t ldo,
                           int64_t chunk, double* scratch) {
  const int64_t rows = round_up(series, kMomentRows);
  for (int64_t k = 0; k < 2 * series; ++k) memset(out + k * ldo, 0, sizeof(double) * 2 * series);
  memset(scratch, 0, sizeof(double) * rows * chunk);
  for (int64_t t = 0; t < n; t += chunk) {
    const int64_t m = n - t < chunk ? n - t : chunk, padded = round_up(m, kLanes<double>);
    for (int64_t l = 0; l < series; ++l) {
      double* y = scratch + l * chunk;
      int64_t i = 0;
      for (; i + kLanes<double> <= m; i += kLanes<double>) store(y + i, load_wide(x + l * stride + t + i));
      for (; i < padded; ++i) y[i] = i < m ? double(x[l * stride + t + i]) : 0.0;
    }
    for (int64_t l = 0; l < series; l += kMomentRows)
      for (int64_t k = l; k < series; k += kMomentColumns)
        add_moments(scratch + l * chunk, scratch + k * chunk, chunk, padded, series - l, series - k,
                    out + 2 * l * ldo + 2 * k, ldo);
  }
  for (int64_t k = 0; k < 2 * series; ++k)
    for (int64_t m = 0; m < k; ++m) out[k * ldo + m] = out[m * ldo + k];
}

constexpr int64_t kProductRows = 12, kProductVectors = kVectorBytes == 64 ? 2 : 1;

// out[k][c] += sum_t x[t][k] y[t][c] for Rows of k and kProductVectors vectors of c.
template <int64_t Rows, class T>
static void add_products(const double* x, int64_t ldx, const T* y, int64_t ldy, int64_t n, double* out,
                         int64_t ldo) {
  constexpr int64_t L = kLanes<double>;
  Vec<double> sums[Rows][kProductVectors];
#pragma GCC unroll 12
  for (int64_t k = 0; k < Rows; ++k)
#pragma GCC unroll 2
    for (int64_t v = 0; v < kProductVectors; ++v) sums[k][v] = load(out + k * ldo + v * L);
  for (int64_t t = 0; t < n; ++t) {
    Vec<double> row[kProductVectors];
#pragma GCC unroll 2
    for (int64_t v = 0; v < kProductVectors; ++v) row[v] = load_wide(y + t * ldy + v * L);
#pragma GCC unroll 12
    for (int64_t k = 0; k < Rows; ++k)
#pragma GCC unroll 2
      for (int64_t v = 0; v < kProductVectors; ++v) sums[k][v] += x[t * ldx + k] * row[v];
  }
#pragma GCC unroll 12
  for (int64_t k = 0; k < Rows; ++k)
#pragma GCC unroll 2
    for (int64_t v = 0; v < kProductVectors; ++v) store(out + k * ldo + v * L, sums[k][v]);
}

// The same for `rows` of k, an even number of at most Rows.
template <int64_t Rows, class T>
static void add_some_products(int64_t rows, const double* x, int64_t ldx, const T* y, int64_t ldy, int64_t n,
                              double* out, int64_t ldo) {
  if (rows == Rows) {
    add_products<Rows>(x, ldx, y, ldy, n, out, ldo);
  } else if constexpr (Rows > 2) {
    add_some_products<Rows - 2>(rows, x, ldx, y, ldy, n, out, ldo);
  }
}

constexpr int64_t kProductBlock = 128;  // rows of x that stay in the first cache

// out [k, columns] += x^T y over n rows, for an even k and `columns` that are a multiple of 2 kLanes<double>.
// `scratch` holds kProductBlock * k.
template <class T>
static void wide_products(const T* x, int64_t ldx, int64_t k, const T* y, int64_t columns, int64_t n,
                          double* out, double* scratch) {
  for (int64_t t = 0; t < n; t += kProductBlock) {
    const int64_t m = n - t < kProductBlock ? n - t : kProductBlock;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < k; ++j) scratch[i * k + j] = x[(t + i) * ldx + j];
    for (int64_t c = 0; c < columns; c += kProductVectors * kLanes<double>)
      for (int64_t j = 0; j < k; j += kProductRows)
        add_some_products<kProductRows>(k - j < kProductRows ? k - j : kProductRows, scratch + j, k,
                                        y + t * columns + c, columns, m, out + j * columns + c, columns);
  }
}

}  // namespace
}  // namespace ecgfast
