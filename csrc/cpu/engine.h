// Matrix products against packed operands, for the kernels whose weights are used many times over: in fp32 or
// fp64 by fused multiply-adds, in bf16 by the dot-product instructions or the matrix tiles of the ISA.
//
// An engine's B operand is packed in panels of kColumns columns, padded with zeros. Its A operand is
// row-major; rows and k are padded as kRowAlign and kDepthAlign say, and C has the padded rows too. Sums are
// fp32 (fp64 for fp64).
#pragma once
#include "gemm.h"
#include "tile_block.h"
#include "transpose.h"

namespace ecgfast {
namespace {

template <class T>
struct Fma {
  using El = T;
  using Panel = T;
  using Sum = T;
  static constexpr int64_t kColumns = kGemmColumns<T>;
  static constexpr int64_t kRowAlign = 1, kDepthAlign = 1;
  static constexpr int64_t kBlock = 3 * kGemmRows;
  static constexpr bool kPairs = false;

  static int64_t panel_elements(int64_t k, int64_t n) { return k * round_up(n, kColumns); }
  static T& at(T* panels, int64_t k, int64_t p, int64_t j) {
    return panels[j / kColumns * k * kColumns + p * kColumns + j % kColumns];
  }

  // Column i of a panel, from its first one on.
  static int64_t column_offset(int64_t i) { return i; }
  static void put(T* panel, Vec<T> x, Vec<T>) { store(panel, x); }
  static void clear_depth(T*, int64_t, int64_t) {}

  // value(p, j) into row p and column j.
  template <class F>
  static void pack(int64_t k, int64_t n, T* panels, F value) {
    for (int64_t j = 0; j < n; j += kColumns)
      for (int64_t p = 0; p < k; ++p)
        for (int64_t i = 0; i < kColumns; ++i) *panels++ = value(p, j + i);
  }

  static void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* panels, T* c,
                   int64_t ldc, void*) {
    strided<false>(m, n, k, a, lda, 1, panels, c, ldc);
  }

  // C[m, n] += A^T B, A being [k, m] in rows of lda.
  static void gemm_transposed(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* panels, T* c,
                              int64_t ldc, void*) {
    strided<true>(m, n, k, a, 1, lda, panels, c, ldc);
  }
  static int64_t scratch_bytes(int64_t, int64_t) { return 0; }

  static void begin() {}
  static void end() {}

 private:
  template <bool Add>
  static void strided(int64_t m, int64_t n, int64_t k, const T* a, int64_t row, int64_t col, const T* panels,
                      T* c, int64_t ldc) {
    // Rows outside: a block of A stays in the first cache while the panels stream from the second.
    for (int64_t i = 0; i < m; i += kGemmRows) {
      const int64_t rows = m - i < kGemmRows ? m - i : kGemmRows;
      for (int64_t j = 0; j < n; j += kColumns)
        ecgfast::gemm<Add>(rows, kColumns, k, a + i * row, row, col, panels + j * k, kColumns,
                           c + i * ldc + j, ldc);
    }
  }
};

#if defined(__AVX512BF16__)

// bf16 with fp32 sums. Panels hold pairs of consecutive k side by side: [n / 32][k / 2][32][2].
struct Bf16Dot {
  using El = BFloat16;
  using Panel = BFloat16;
  using Sum = float;
  static constexpr int64_t kColumns = 32;
  static constexpr int64_t kRowAlign = 32, kDepthAlign = 32;
  static constexpr int64_t kBlock = 32;
  static constexpr bool kPairs = true;

  static int64_t panel_elements(int64_t k, int64_t n) {
    return round_up(k, kDepthAlign) * round_up(n, kColumns);
  }
  static BFloat16& at(BFloat16* panels, int64_t k, int64_t p, int64_t j) {
    return panels[j / kColumns * round_up(k, kDepthAlign) * kColumns + p / 2 * 2 * kColumns +
                  j % kColumns * 2 + p % 2];
  }

  static int64_t column_offset(int64_t i) { return 2 * i; }

  // Two rows of the panels side by side, rounded to bf16.
  static void put(BFloat16* panel, VF x, VF next) {
    VU lo = bit_cast<VU>(x), hi = bit_cast<VU>(next);
    lo = (lo + 0x7FFFu + ((lo >> 16) & 1u)) >> 16;
    hi = (hi + 0x7FFFu + ((hi >> 16) & 1u)) & 0xFFFF0000u;
    const VU pairs = lo | hi;
    memcpy(panel, &pairs, sizeof pairs);
  }

  static void clear_depth(BFloat16* panels, int64_t k, int64_t n) {
    for (int64_t p = round_up(k, 2); p < round_up(k, kDepthAlign); p += 2)
      for (int64_t j = 0; j < n; j += kColumns) memset(&at(panels, k, p, j), 0, 4 * kColumns);
  }

  template <class F>
  static void pack(int64_t k, int64_t n, BFloat16* panels, F value) {
    const int64_t depth = round_up(k, kDepthAlign);
    for (int64_t j = 0; j < n; j += kColumns)
      for (int64_t p = 0; p < depth; p += 2)
        for (int64_t i = 0; i < kColumns; ++i, panels += 2) {
          from_acc(p < k ? value(p, j + i) : 0.0f, panels);
          from_acc(p + 1 < k ? value(p + 1, j + i) : 0.0f, panels + 1);
        }
  }

  static void gemm(int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t lda, const BFloat16* panels,
                   float* c, int64_t ldc, void*) {
    product<false>(m, n, k, a, lda, panels, c, ldc);
  }

  // C[m, n] += A^T B, A being [k, m] in rows of lda; `scratch` holds A^T, m and lda multiples of 16.
  static void gemm_transposed(int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t lda,
                              const BFloat16* panels, float* c, int64_t ldc, void* scratch) {
    const int64_t depth = round_up(k, kDepthAlign);
    BFloat16* left = static_cast<BFloat16*>(scratch);
    transpose(m, k, depth, a, lda, left);
    product<true>(m, n, k, left, depth, panels, c, ldc);
  }
  static int64_t scratch_bytes(int64_t m, int64_t k) { return m * round_up(k, kDepthAlign) * 2; }

  static void begin() { begin_tiles(); }
  static void end() { end_tiles(); }

 private:
  template <bool Add>
  static void product(int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t lda, const BFloat16* panels,
                      float* c, int64_t ldc) {
    k = round_up(k, kDepthAlign);
    for (int64_t i = 0; i < m; i += 32)
      for (int64_t j = 0; j < n; j += kColumns)
        block<Add>(k, a + i * lda, lda, panels + j * k, c + i * ldc + j, ldc);
  }

  static void transpose(int64_t m, int64_t k, int64_t depth, const BFloat16* a, int64_t lda, BFloat16* out) {
    for (int64_t p = 0; p < depth; p += 32)
      for (int64_t i = 0; i < m; i += 16) {
        VU r[16];
        for (int q = 0; q < 16; ++q) {
          const int64_t even = p + 2 * q;
          const VHalf zero = {};
          VHalf lo = zero, hi = zero;
          if (even < k) memcpy(&lo, a + even * lda + i, sizeof lo);
          if (even + 1 < k) memcpy(&hi, a + (even + 1) * lda + i, sizeof hi);
          r[q] = __builtin_convertvector(lo, VU) | (__builtin_convertvector(hi, VU) << 16);
        }
        ecgfast::transpose<uint32_t>(r);
        for (int q = 0; q < 16; ++q) memcpy(out + (i + q) * depth + p, &r[q], sizeof r[q]);
      }
  }

  // 32 x 32 of C.
  template <bool Add>
  static __attribute__((noinline)) void block(int64_t k, const BFloat16* a, int64_t lda, const BFloat16* b,
                                              float* c, int64_t ldc) {
    const TileOperand left{reinterpret_cast<const uint16_t*>(a), lda, 16 * lda, 0, 32};
    const TileOperand right{reinterpret_cast<const uint16_t*>(b), 64, 32, 0, 1024};
    tile_block<1, Add>(k / 32, left, right, c, ldc, TilesAhead{});
  }
};
#endif

}  // namespace
}  // namespace ecgfast
