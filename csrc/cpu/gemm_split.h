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

  // 32 rows, of which `valid` exist, of numbers that are padded with zeros to whole steps.
  static void pack_left(const float* x, int64_t ld, int64_t valid, int64_t k, uint16_t* out) {
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t s = 0; s < steps(k); ++s) {
        const float* from = x + r * ld + s * kDepth;
        put(r < valid ? load(from) : VF{}, r < valid ? load(from + 16) : VF{}, out + s * kStep, r);
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
      VU first[16], second[16];
      for (int64_t q = 0; q < 16; ++q) {
        first[q] = q < rows ? bit_cast<VU>(load(x + q * ld + j)) : VU{};
        second[q] = q + 16 < rows ? bit_cast<VU>(load(x + (q + 16) * ld + j)) : VU{};
      }
      ecgfast::transpose<uint32_t>(first);
      ecgfast::transpose<uint32_t>(second);
      uint16_t* to = out + (j / kRows * steps(k) + p0 / kDepth) * kStep;
      for (int q = 0; q < 16; ++q) put(bit_cast<VF>(first[q]), bit_cast<VF>(second[q]), to, j % kRows + q);
    }
  }

  // B = X^T: 32 rows of X, of which `valid` exist, become columns j0 to j0 + 31. B's tiles hold pairs of k.
  static void pack_right(const float* x, int64_t ld, int64_t j0, int64_t valid, int64_t k, uint16_t* panels) {
    uint16_t* panel = panels + j0 / kColumns * steps(k) * kStep;
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t s = 0; s < steps(k); ++s) {
        VU words[Parts][16];
        for (int64_t q = 0; q < 16; ++q) {
          const int64_t r = half * 16 + q;
          const float* from = x + r * ld + s * kDepth;
          VU row[Parts];
          split(r < valid ? load(from) : VF{}, r < valid ? load(from + 16) : VF{}, row);
          for (int p = 0; p < Parts; ++p) words[p][q] = row[p];
        }
        for (int p = 0; p < Parts; ++p) {
          ecgfast::transpose<uint32_t>(words[p]);
          memcpy(panel + s * kStep + (2 * p + half) * kTile, words[p], sizeof words[p]);
        }
      }
  }

  // 32 rows of B [k, n] from p0 on, of which `rows` exist.
  static void pack_right_rows(const float* x, int64_t ld, int64_t p0, int64_t rows, int64_t n, int64_t k,
                              uint16_t* panels) {
    for (int64_t j = 0; j < n; j += 16) {
      uint16_t* to = panels + (j / kColumns * steps(k) + p0 / kDepth) * kStep + j % kColumns / 16 * kTile;
      for (int64_t q = 0; q < 16; ++q) {
        const VF even = 2 * q < rows ? load(x + 2 * q * ld + j) : VF{};
        const VF odd = 2 * q + 1 < rows ? load(x + (2 * q + 1) * ld + j) : VF{};
        put_pair(even, odd, to + q * 32);
      }
    }
  }

  // 16 columns of two consecutive rows of B.
  static inline void put_pair(VF even, VF odd, uint16_t* to) {
    VU e[Parts], o[Parts];
    split_words(even, e);
    split_words(odd, o);
    for (int p = 0; p < Parts; ++p) {
      const VU pairs = e[p] >> 16 | o[p];
      memcpy(to + 2 * p * kTile, &pairs, sizeof pairs);
    }
  }

  // C[m, n] (+)= A B. The first `width` >= n columns of C may be written, and its first m rows.
  template <bool Add>
  static void multiply(int64_t m, int64_t n, int64_t k, Left a, const uint16_t* panels, float* c, int64_t ldc,
                       int64_t width) {
    const int64_t all = steps(k);
    for (int64_t s = 0; s < all; s += kSlice) {
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

  // 32 numbers in order.
  static inline void split(VF x, VF y, VU* parts) {
    VU a[Parts], b[Parts];
    split_words(x, a);
    split_words(y, b);
    for (int p = 0; p < Parts; ++p)
      parts[p] = bit_cast<VU>(_mm512_cvtne2ps_pbh(bit_cast<__m512>(b[p]), bit_cast<__m512>(a[p])));
  }

  // 32 numbers of row r of a step.
  static inline void put(VF x, VF y, uint16_t* step, int64_t r) {
    VU parts[Parts];
    split(x, y, parts);
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
