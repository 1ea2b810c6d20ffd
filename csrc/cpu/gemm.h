// Small dense products for tiles that lie in cache: C = A B, B and C row-major and padded to kGemmColumns
// columns, A with any strides. A register block of C is held while k runs, one row of B is loaded and one
// element of A broadcast per row.
#pragma once
#include "simd.h"

namespace ecgfast {
namespace {

template <class T>
constexpr int kGemmColumns = 2 * kLanes<T>;

#if defined(__AVX512F__)
constexpr int kGemmRows = 12;  // 24 of the 32 registers accumulate
#else
constexpr int kGemmRows = 6;  // 12 of 16
#endif

template <int R, bool Add, class T>
static inline __attribute__((always_inline)) void gemm_block(int64_t k, const T* a, int64_t row, int64_t col,
                                                             const T* b, int64_t ldb, T* c, int64_t ldc) {
  Vec<T> acc[R][2] = {};
  if constexpr (Add) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      acc[i][0] = load(c + i * ldc);
      acc[i][1] = load(c + i * ldc + kLanes<T>);
    }
  }
  for (int64_t p = 0; p < k; ++p) {
    const Vec<T> b0 = load(b + p * ldb), b1 = load(b + p * ldb + kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const T s = a[i * row + p * col];
      acc[i][0] += s * b0;
      acc[i][1] += s * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    store(c + i * ldc, acc[i][0]);
    store(c + i * ldc + kLanes<T>, acc[i][1]);
  }
}

template <int R, bool Add, class T>
static void gemm_rows(int64_t n, int64_t k, const T* a, int64_t row, int64_t col, const T* b, int64_t ldb,
                      T* c, int64_t ldc) {
  for (int64_t j = 0; j < n; j += kGemmColumns<T>) gemm_block<R, Add>(k, a, row, col, b + j, ldb, c + j, ldc);
}

template <int R, bool Add, class T>
static void gemm_rest(int64_t m, int64_t n, int64_t k, const T* a, int64_t row, int64_t col, const T* b,
                      int64_t ldb, T* c, int64_t ldc) {
  if (m == R) {
    gemm_rows<R, Add>(n, k, a, row, col, b, ldb, c, ldc);
  } else if constexpr (R > 1) {
    gemm_rest<R - 1, Add>(m, n, k, a, row, col, b, ldb, c, ldc);
  }
}

// C[m, n] = A[m, k] B[k, n], or C += A B with Add; element (i, p) of A is a[i * row + p * col]. Columns n to
// round_up(n, kGemmColumns) of B are read and of C written: they must exist.
template <bool Add = false, class T>
static void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t row, int64_t col, const T* b,
                 int64_t ldb, T* c, int64_t ldc) {
  int64_t i = 0;
  for (; i + kGemmRows <= m; i += kGemmRows)
    gemm_rows<kGemmRows, Add>(n, k, a + i * row, row, col, b, ldb, c + i * ldc, ldc);
  if (i < m) gemm_rest<kGemmRows - 1, Add>(m - i, n, k, a + i * row, row, col, b, ldb, c + i * ldc, ldc);
}

}  // namespace
}  // namespace ecgfast
