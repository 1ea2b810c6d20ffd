// Dense products whose second operand is packed into panels: for B [k, n], panel j holds the columns
// j * kGemmColumns to (j + 1) * kGemmColumns - 1, row after row, zeros past n. A slice of a panel stays in
// the L1 cache while all rows of A pass over it.
#pragma once
#include "gemm.h"
#include "rows.h"

namespace ecgfast {
namespace {

constexpr int64_t kGemmDepth = 384;  // rows of a slice

template <class T>
static inline int64_t packed_size(int64_t k, int64_t n) {
  return k * round_up(n, kGemmColumns<T>);
}

// Columns [0, n) of rows [p0, p0 + rows) of B, row-major, into the panels of a product of depth k.
template <class T>
static void pack_rows(const T* b, int64_t ldb, int64_t p0, int64_t rows, int64_t n, int64_t k, T* panels) {
  constexpr int64_t W = kGemmColumns<T>;
  for (int64_t p = 0; p < rows; ++p)
    for (int64_t j = 0; j < n; j += W)
      widen(b + p * ldb + j, n - j < W ? n - j : W, W, panels + j * k + (p0 + p) * W);
}

// B = X^T: rows [j0, j0 + cols) of X [., k] (row-major) become columns. j0 is a multiple of kGemmColumns.
template <class T>
static void pack_transposed(const T* x, int64_t ldx, int64_t j0, int64_t cols, int64_t k, T* panels) {
  constexpr int64_t W = kGemmColumns<T>, kTile = 16;
  for (int64_t j = 0; j < cols; j += W) {
    T* panel = panels + (j0 + j) * k;
    const int64_t valid = cols - j < W ? cols - j : W;
    for (int64_t p0 = 0; p0 < k; p0 += kTile) {
      const int64_t p1 = p0 + kTile < k ? p0 + kTile : k;
      for (int64_t l = 0; l < W; ++l)
        for (int64_t p = p0; p < p1; ++p) panel[p * W + l] = l < valid ? x[(j + l) * ldx + p] : T(0);
    }
  }
}

// X^T as a first operand, in blocks of kGemmRows: its part from `rows` rows of X [depth, cols] from p0 on.
template <class T>
static void pack_left_transposed(const T* x, int64_t ldx, int64_t p0, int64_t rows, int64_t cols,
                                 int64_t depth, T* blocks) {
  for (int64_t p = 0; p < rows; ++p)
    for (int64_t j = 0; j < cols; j += kGemmRows) {
      const T* from = x + p * ldx + j;
      T* to = blocks + j * depth + (p0 + p) * kGemmRows;
      if (cols - j >= kGemmRows) {
        memcpy(to, from, sizeof(T) * kGemmRows);
      } else {
        for (int64_t l = 0; l < kGemmRows; ++l) to[l] = l < cols - j ? from[l] : T(0);
      }
    }
}

// The first operand of a product: either row-major with rows `ld` apart, or (ld == 0) in blocks of kGemmRows
// rows `block` apart, each of them transposed, which is the fastest to read.
template <class T>
struct Left {
  const T* at;
  int64_t block, ld;
};

template <class T>
static Left<T> row_major(const T* at, int64_t ld) {
  return {at, kGemmRows * ld, ld};
}

template <class T>
static Left<T> row_blocks(const T* at, int64_t k) {
  return {at, kGemmRows * k, 0};
}

// The elements of R rows in column p of a row block. A row's address is one of few pointers plus a multiple
// of ld that an instruction can hold: R pointers would not fit in the registers.
template <int R, bool Blocked, class T>
struct Column {
  const T* at[Blocked ? 1 : (R + 2) / 3];
  int64_t ld;

  inline __attribute__((always_inline)) explicit Column(const Left<T>& a) : ld(a.ld) {
    for (int i = 0; i < static_cast<int>(sizeof at / sizeof at[0]); ++i) at[i] = a.at + 3 * i * a.ld;
  }
  inline __attribute__((always_inline)) T operator[](int i) const {
    return Blocked ? at[0][i] : at[i / 3][i % 3 * ld];
  }
  inline __attribute__((always_inline)) void next() {
    for (const T*& p : at) p += Blocked ? kGemmRows : 1;
  }
};

// The next slice of B, to be fetched into the L2 cache meanwhile: all row blocks of a slice share the work,
// else the first one of the next slice would wait for memory. For the same reason they fetch the next panel
// of C.
template <class T>
struct Ahead {
  const T* at;
  int64_t step;  // per element of the sum
};

// C[R, kGemmColumns] (+)= A[R, k] B[k, kGemmColumns], one row block by one panel.
template <int R, bool Add, bool Blocked, class T>
static inline __attribute__((always_inline)) void packed_block(int64_t k, const Left<T>& a, const T* b, T* c,
                                                               int64_t ldc, Ahead<T> ahead) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[R][2] = {};
  if constexpr (Add) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      acc[i][0] = load(c + i * ldc);
      acc[i][1] = load(c + i * ldc + L);
    }
  }
  for (int i = 0; i < R; ++i) {
    __builtin_prefetch(c + i * ldc + 2 * L, 0, 2);
    __builtin_prefetch(c + i * ldc + 3 * L, 0, 2);
  }
  Column<R, Blocked, T> column(a);
  for (int64_t p = 0; p < k; ++p, b += kGemmColumns<T>, column.next()) {
    __builtin_prefetch(ahead.at + p * ahead.step, 0, 2);
    const Vec<T> b0 = load(b), b1 = load(b + L);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const T s = column[i];
      acc[i][0] += s * b0;
      acc[i][1] += s * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    store(c + i * ldc, acc[i][0]);
    store(c + i * ldc + L, acc[i][1]);
  }
}

template <int R, bool Add, bool Blocked, class T>
static void packed_rest(int64_t m, int64_t k, const Left<T>& a, const T* b, T* c, int64_t ldc) {
  if (m == R) {
    packed_block<R, Add, Blocked>(k, a, b, c, ldc, Ahead<T>{b, 0});
  } else if constexpr (R > 1) {
    packed_rest<R - 1, Add, Blocked>(m, k, a, b, c, ldc);
  }
}

// Never inlined: the register allocation of its loops is what the speed is made of.
template <bool Add, bool Blocked, class T>
static __attribute__((noinline)) void packed_rows(int64_t m, int64_t k, Left<T> a, const T* b, const T* next,
                                                  T* c, int64_t ldc) {
  Ahead<T> ahead{next, m >= kGemmRows ? kGemmColumns<T> / (m / kGemmRows) : 0};
  for (; m >= kGemmRows; m -= kGemmRows, a.at += a.block, c += kGemmRows * ldc, ahead.at += k * ahead.step)
    packed_block<kGemmRows, Add, Blocked>(k, a, b, c, ldc, ahead);
  if (m > 0) packed_rest<kGemmRows - 1, Add, Blocked>(m, k, a, b, c, ldc);
}

// One panel: C[m, kGemmColumns] (+)= A[m, k] B[k, kGemmColumns]; `next` is the slice of B to come.
template <bool Add, class T>
static void packed_panel(int64_t m, int64_t k, const Left<T>& a, const T* b, const T* next, T* c,
                         int64_t ldc) {
  a.ld ? packed_rows<Add, false>(m, k, a, b, next, c, ldc) : packed_rows<Add, true>(m, k, a, b, next, c, ldc);
}

// The same for the panel's first n columns alone: nothing is written past them.
template <bool Add, class T>
static void packed_edge(int64_t m, int64_t n, int64_t k, Left<T> a, const T* b, T* c, int64_t ldc) {
  constexpr int64_t W = kGemmColumns<T>;
  alignas(64) T block[kGemmRows * W];
  for (; m > 0; m -= kGemmRows, a.at += a.block, c += kGemmRows * ldc) {
    const int64_t rows = m < kGemmRows ? m : kGemmRows;
    packed_panel<false>(rows, k, a, b, b, block, W);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] = (Add ? c[i * ldc + j] : T(0)) + block[i * W + j];
  }
}

template <bool Add, class T>
static void packed_slice(int64_t m, int64_t width, int64_t k, const Left<T>& a, const T* b, const T* next,
                         T* c, int64_t ldc) {
  if (width >= kGemmColumns<T>) {
    packed_panel<Add>(m, k, a, b, next, c, ldc);
  } else {
    packed_edge<Add>(m, width, k, a, b, c, ldc);
  }
}

// C[m, n] = A[m, k] B[k, n], or C += A B with Add. The first `width` >= n columns of C may be written.
// The sum over k has the same order whatever m and n are.
template <bool Add = false, class T>
static void gemm_packed(int64_t m, int64_t n, int64_t k, Left<T> a, const T* panels, T* c, int64_t ldc,
                        int64_t width) {
  constexpr int64_t W = kGemmColumns<T>;
  for (int64_t p = 0; p == 0 || p < k; p += kGemmDepth) {
    const int64_t depth = k - p < kGemmDepth ? k - p : kGemmDepth;
    for (int64_t j = 0; j < n; j += W) {
      const T* b = panels + j * k + p * W;
      if (Add || p > 0) {
        packed_slice<true>(m, width - j, depth, a, b, b + k * W, c + j, ldc);
      } else {
        packed_slice<false>(m, width - j, depth, a, b, b + k * W, c + j, ldc);
      }
    }
    a.at += kGemmDepth * (a.ld ? 1 : kGemmRows);
  }
}

}  // namespace
}  // namespace ecgfast
