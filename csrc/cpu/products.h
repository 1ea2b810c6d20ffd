// Products of large matrices in blocks, both operands packed: the same interface over multiply-adds and over
// matrix tiles. A first operand ("left") is packed in panels of kRows rows, a second one ("right") in panels
// of kColumns columns; kDepth divides the padded depth of rows that are packed.
#pragma once
#include "gemm_packed.h"
#include "gemm_split.h"

namespace ecgfast {
namespace {

template <class T>
struct MultiplyAdd {
  using Element = T;
  using Left = ecgfast::Left<T>;
  static constexpr int64_t kRows = kGemmRows, kColumns = kGemmColumns<T>, kDepth = 1;
  static constexpr int64_t kGroup = 8 * kRows;  // rows to multiply at a time: their part of C stays in L2
  static constexpr int64_t kBytes = sizeof(T);  // of a number
  static constexpr bool kRaw = false;           // whether inputs are best multiplied as they are

  static int64_t left_elements(int64_t m, int64_t k) { return round_up(m, kRows) * k; }
  static int64_t right_elements(int64_t k, int64_t n) { return round_up(n, kColumns) * k; }

  static void begin() {}
  static void end() {}

  static Left packed(const T* at, int64_t k) { return row_blocks(at, k); }

  static void pack_left(const T* x, int64_t ld, int64_t valid, int64_t k, T* out) {
    for (int64_t p = 0; p < k; ++p)
      for (int64_t r = 0; r < kRows; ++r) out[p * kRows + r] = r < valid ? x[r * ld + p] : T(0);
  }
  static Left rows_of(const T* x, int64_t ld, int64_t, int64_t, T*) { return row_major(x, ld); }
  static void pack_left_rows(const T* x, int64_t ld, int64_t p0, int64_t rows, int64_t m, int64_t k, T* out) {
    pack_left_transposed(x, ld, p0, rows, m, k, out);
  }
  static void pack_right(const T* x, int64_t ld, int64_t j0, int64_t valid, int64_t k, T* panels) {
    pack_transposed(x, ld, j0, valid, k, panels);
  }
  static void pack_right_rows(const T* x, int64_t ld, int64_t p0, int64_t rows, int64_t n, int64_t k,
                              T* panels) {
    pack_rows(x, ld, p0, rows, n, k, panels);
  }

  template <bool Add>
  static void multiply(int64_t m, int64_t n, int64_t k, Left a, const T* panels, T* c, int64_t ldc,
                       int64_t width) {
    gemm_packed<Add>(m, n, k, a, panels, c, ldc, width);
  }
};

// The fastest products for inputs of one dtype.
template <class In>
struct ProductsOf {
  using type = MultiplyAdd<Acc<In>>;
};
#if defined(__AMX_BF16__)
template <>
struct ProductsOf<float> {
  using type = SplitTiles<3>;
};
template <>
struct ProductsOf<Half> {
  using type = SplitTiles<3>;  // two parts would do for the results, but not where these cancel
};
#endif
#if defined(__AVX512BF16__)
template <>
struct ProductsOf<BFloat16> {
  using type = SplitTiles<1>;
};
#endif

}  // namespace
}  // namespace ecgfast
