// fp32 products on matrix tiles that multiply bf16 (AMX): every number is the sum of bf16 parts of 8 bits,
// and the products of parts that are not too small to matter are summed in fp32. Three parts and six products
// keep all 24 bits of fp32 and are as accurate as its own multiply-adds, at a multiple of their speed; two
// parts and three products keep 16 bits, enough where inputs and results are half precision.
#pragma once
#include "tile_block.h"
#include "transpose.h"

#if defined(__AVX512BF16__)

namespace ecgfast {
namespace {

template <int Parts>
struct SplitTiles {
  using Element = uint16_t;  // a part
  static constexpr int64_t kRows = 32, kColumns = 32, kDepth = 32;
  static constexpr int64_t kGroup = 8 * kRows;  // rows at a time: with a slice of B and of C they fit in L2
  static constexpr int64_t kBytes = 2 * Parts;  // of a number
  static constexpr int64_t kTile = 512;         // elements: 16 rows of 64 bytes
  static constexpr int64_t kStep = 2 * Parts * kTile;     // 32 of k, for 32 rows or columns
  static constexpr int64_t kSlice = Parts == 1 ? 8 : 16;  // steps that a slice of B is deep

  static constexpr bool kRaw = Parts == 1;  // bf16 inputs are best multiplied as they are

  static int64_t steps(int64_t k) { return (k + kDepth - 1) / kDepth; }
  static int64_t left_elements(int64_t m, int64_t k) { return (m + 31) / 32 * steps(k) * kStep; }
  static int64_t right_elements(int64_t k, int64_t n) { return left_elements(n, k); }

  static void begin() { begin_tiles(); }
  static void end() { end_tiles(); }

  struct Left {
    const uint16_t* at;  // [m / 32][steps][part][half of the rows][16][32]
    int64_t block;
  };
  static Left packed(const uint16_t* at, int64_t k) { return {at, steps(k) * kStep}; }

  // What is packed is either bf16 (for one part), or fp32 padded with zeros to whole steps and columns.

  // 32 rows, of which `valid` exist.
  template <class X>
  static void pack_left(const X* x, int64_t ld, int64_t valid, int64_t k, uint16_t* out) {
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t s = 0; s < steps(k); ++s) {
        VU parts[Parts] = {};
        if (r < valid) row_of_step(x + r * ld + s * kDepth, k - s * kDepth, parts);
        put(parts, out + s * kStep, r);
      }
  }

  static Left rows_of(const float* x, int64_t ld, int64_t m, int64_t k, uint16_t* out) {
    for (int64_t i = 0; i < m; i += kRows)
      pack_left(x + i * ld, ld, m - i, k, out + i / kRows * steps(k) * kStep);
    return packed(out, k);
  }

  // 32 rows of X [k, m] from p0 on, of which `rows` exist, as a part of X^T.
  static void pack_left_rows(const float* x, int64_t ld, int64_t p0, int64_t rows, int64_t m, int64_t k,
                             uint16_t* out) {
    for (int64_t j = 0; j < m; j += 16) {
      uint16_t* to = out + (j / kRows * steps(k) + p0 / kDepth) * kStep;
      const auto row = [&](int64_t q) { return q < rows ? load(x + q * ld + j) : VF{}; };
      VU first[16], second[16];
      if constexpr (Parts == 1) {  // rounded first, there is half as much to transpose
        for (int64_t q = 0; q < 16; ++q) pair_words(row(2 * q), row(2 * q + 1), &first[q]);
        ecgfast::transpose<uint32_t>(first);
        for (int q = 0; q < 16; ++q) put(&first[q], to, j % kRows + q);
      } else {
        for (int64_t q = 0; q < 16; ++q) {
          first[q] = bit_cast<VU>(row(q));
          second[q] = bit_cast<VU>(row(q + 16));
        }
        ecgfast::transpose<uint32_t>(first);
        ecgfast::transpose<uint32_t>(second);
        for (int q = 0; q < 16; ++q) {
          VU parts[Parts];
          split(bit_cast<VF>(first[q]), bit_cast<VF>(second[q]), parts);
          put(parts, to, j % kRows + q);
        }
      }
    }
  }

  // B = X^T: 32 rows of X, of which `valid` exist, become columns j0 to j0 + 31. B's tiles hold pairs of k.
  template <class X>
  static void pack_right(const X* x, int64_t ld, int64_t j0, int64_t valid, int64_t k, uint16_t* panels) {
    uint16_t* panel = panels + j0 / kColumns * steps(k) * kStep;
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t s = 0; s < steps(k); ++s) {
        VU words[Parts][16];
        for (int64_t q = 0; q < 16; ++q) {
          const int64_t r = half * 16 + q;
          VU row[Parts] = {};
          if (r < valid) row_of_step(x + r * ld + s * kDepth, k - s * kDepth, row);
          for (int p = 0; p < Parts; ++p) words[p][q] = row[p];
        }
        for (int p = 0; p < Parts; ++p) {
          ecgfast::transpose<uint32_t>(words[p]);
          memcpy(panel + s * kStep + (2 * p + half) * kTile, words[p], sizeof words[p]);
        }
      }
  }

  // 32 rows of B [k, n] from p0 on, of which `rows` exist.
  template <class X>
  static void pack_right_rows(const X* x, int64_t ld, int64_t p0, int64_t rows, int64_t n, int64_t k,
                              uint16_t* panels) {
    for (int64_t j = 0; j < n; j += 16) {
      uint16_t* to = panels + (j / kColumns * steps(k) + p0 / kDepth) * kStep + j % kColumns / 16 * kTile;
      const auto row = [&](int64_t q) { return q < rows ? columns_of_row(x + q * ld + j, n - j) : VF{}; };
      for (int64_t q = 0; q < 16; ++q) put_pair(row(2 * q), row(2 * q + 1), to + q * 32);
    }
  }

  // 16 columns of two consecutive rows of B.
  static inline void put_pair(VF even, VF odd, uint16_t* to) {
    VU pairs[Parts];
    pair_words(even, odd, pairs);
    for (int p = 0; p < Parts; ++p) memcpy(to + 2 * p * kTile, &pairs[p], sizeof pairs[p]);
  }

  // C[m, n] (+)= A B. The first `width` >= n columns of C may be written, and its first m rows.
  template <bool Add>
  static void multiply(int64_t m, int64_t n, int64_t k, Left a, const uint16_t* panels, float* c, int64_t ldc,
                       int64_t width) {
    const int64_t all = steps(k);
    for (int64_t s = 0; s == 0 || s < all; s += kSlice) {
      const int64_t depth = all - s < kSlice ? all - s : kSlice;
      for (int64_t j = 0; j < n; j += kColumns) {
        const uint16_t* b = panels + (j / kColumns * all + s) * kStep;
        for (int64_t i = 0; i < m; i += kRows) {
          const uint16_t* block = a.at + i / kRows * a.block + s * kStep;
          const uint16_t* ahead = b + (all + i * depth / m) * kStep;
          const int64_t lines = m > kRows ? kRows * kStep / 32 / m : 0;
          if (m - i < kRows || width - j < kColumns) {
            edge(Add || s > 0, depth, block, b, c + i * ldc + j, ldc, m - i, width - j);
          } else if (Add || s > 0) {
            tiles<true>(depth, block, b, c + i * ldc + j, ldc, ahead, lines);
          } else {
            tiles<false>(depth, block, b, c + i * ldc + j, ldc, ahead, lines);
          }
        }
      }
    }
  }

 private:
  // The parts in the upper halves of words.
  static inline void split_words(VF x, VU* parts) {
    for (int p = 0; p < Parts; ++p) {
      const VU u = bit_cast<VU>(x);
      parts[p] = (u + 0x7FFFu + (u >> 16 & 1u)) & 0xFFFF0000u;
      x -= bit_cast<VF>(parts[p]);
    }
  }

  // The parts of 16 numbers, and of 16 others beside each.
  static inline void pair_words(VF even, VF odd, VU* pairs) {
    VU e[Parts], o[Parts];
    split_words(even, e);
    split_words(odd, o);
    for (int p = 0; p < Parts; ++p) pairs[p] = e[p] >> 16 | o[p];
  }

  // 32 numbers in order.
  static inline void split(VF x, VF y, VU* parts) {
    if constexpr (Parts == 1) {
      parts[0] = in_order(x, y);
    } else {
      VU a[Parts], b[Parts];
      split_words(x, a);
      split_words(y, b);
      for (int p = 0; p < Parts; ++p) parts[p] = in_order(bit_cast<VF>(a[p]), bit_cast<VF>(b[p]));
    }
  }
  static inline VU in_order(VF x, VF y) {
    return bit_cast<VU>(_mm512_cvtne2ps_pbh(bit_cast<__m512>(y), bit_cast<__m512>(x)));
  }

  // 32 numbers of a row, of which n exist where they are not padded.
  static inline void row_of_step(const float* x, int64_t, VU* parts) { split(load(x), load(x + 16), parts); }
  static inline void row_of_step(const BFloat16* x, int64_t n, VU* parts) {
    static_assert(Parts == 1, "bf16 is its own only part");
    parts[0] = bit_cast<VU>(_mm512_maskz_loadu_epi16(n < 32 ? (1u << n) - 1 : ~0u, x));
  }

  // 16 numbers of a row, of which n exist where they are not padded.
  static inline VF columns_of_row(const float* x, int64_t) { return load(x); }
  static inline VF columns_of_row(const BFloat16* x, int64_t n) {
    const __m256i words = _mm256_maskz_loadu_epi16(n < 16 ? (1u << n) - 1 : 0xFFFFu, x);
    return bit_cast<VF>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
  }

  // 32 numbers of row r of a step.
  static inline void put(const VU* parts, uint16_t* step, int64_t r) {
    for (int p = 0; p < Parts; ++p)
      memcpy(step + (2 * p + r / 16) * kTile + r % 16 * 32, &parts[p], sizeof parts[p]);
  }

  // 32 x 32 of C. `lines` cache lines of the next slice of B are fetched per step.
  template <bool Add>
  static __attribute__((noinline)) void tiles(int64_t depth, const uint16_t* a, const uint16_t* b, float* c,
                                              int64_t ldc, const uint16_t* ahead, int64_t lines) {
    const TileOperand left{a, 32, kTile, 2 * kTile, kStep}, right{b, 32, kTile, 2 * kTile, kStep};
    tile_block<Parts, Add>(depth, left, right, c, ldc, TilesAhead{ahead, lines});
  }

  static void edge(bool add, int64_t depth, const uint16_t* a, const uint16_t* b, float* c, int64_t ldc,
                   int64_t m, int64_t n) {
    alignas(64) float block[kRows * kColumns];
    tiles<false>(depth, a, b, block, kColumns, b, 0);
    for (int64_t i = 0; i < m && i < kRows; ++i)
      for (int64_t j = 0; j < n && j < kColumns; ++j)
        c[i * ldc + j] = (add ? c[i * ldc + j] : 0.0f) + block[i * kColumns + j];
  }
};

}  // namespace
}  // namespace ecgfast

#endif
