// A block of 32 x 32 sums of products of bf16, by matrix tiles (AMX) or by the dot-product instructions.
// Every number is the sum of `Parts` parts, and the products of parts that are not too small to matter are
// summed.
#pragma once
#include "simd.h"

#if defined(__AVX512BF16__)

namespace ecgfast {
namespace {

// Which parts are multiplied, in an order in which few tiles change.
template <int Parts>
struct SplitPlan;
template <>
struct SplitPlan<3> {
  static constexpr int n = 6, left[n] = {0, 0, 1, 1, 0, 2}, right[n] = {2, 1, 1, 0, 0, 0};
};
template <>
struct SplitPlan<2> {
  static constexpr int n = 3, left[n] = {0, 0, 1}, right[n] = {1, 0, 0};
};
template <>
struct SplitPlan<1> {
  static constexpr int n = 1, left[n] = {0}, right[n] = {0};
};

// One operand in steps of 32 of k. Of the left one, 16 rows of 32 k and then 16 more make a step; of the
// right one, 16 rows of pairs of k side by side for 16 columns, and then for 16 more.
struct TileOperand {
  const uint16_t* at;
  int64_t row, half, part, step;  // elements from one to the next
};

// The slice of the right operand to come: so many cache lines of it are fetched per step.
struct TilesAhead {
  const uint16_t* at;
  int64_t lines;
  void fetch(int64_t s) const {
    for (int64_t l = 0; l < lines; ++l) __builtin_prefetch(at + (s * lines + l) * 32, 0, 2);
  }
};

static inline void begin_tiles() {
#if defined(__AMX_BF16__)
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int t = 0; t < 8; ++t) {
    config.bytes_per_row[t] = 64;
    config.rows[t] = 16;
  }
  asm volatile("" : : "m"(config));  // to GCC 12, the instruction reads no more than a pointer's 8 bytes
  _tile_loadconfig(&config);
#endif
}

static inline void end_tiles() {
#if defined(__AMX_BF16__)
  _tile_release();
#endif
}

#if defined(__AMX_BF16__)

// C (+)= A B, C in four tiles.
template <int Parts, bool Add>
static inline __attribute__((always_inline)) void tile_block(int64_t steps, TileOperand a, TileOperand b,
                                                             float* c, int64_t ldc, TilesAhead ahead) {
  using Plan = SplitPlan<Parts>;
  const int64_t c_bytes = ldc * 4, a_bytes = a.row * 2, b_bytes = b.row * 2;
  if constexpr (Add) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    _tile_loadd(2, c + 16 * ldc, c_bytes);
    _tile_loadd(3, c + 16 * ldc + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; ++s, a.at += a.step, b.at += b.step) {
#pragma GCC unroll 8
    for (int q = 0; q < Plan::n; ++q) {
      if (q == 0 || Plan::left[q] != Plan::left[q - 1]) {
        _tile_loadd(4, a.at + Plan::left[q] * a.part, a_bytes);
        _tile_loadd(5, a.at + Plan::left[q] * a.part + a.half, a_bytes);
      }
      if (q == 0 || Plan::right[q] != Plan::right[q - 1]) {
        _tile_loadd(6, b.at + Plan::right[q] * b.part, b_bytes);
        _tile_loadd(7, b.at + Plan::right[q] * b.part + b.half, b_bytes);
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    ahead.fetch(s);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  _tile_stored(2, c + 16 * ldc, c_bytes);
  _tile_stored(3, c + 16 * ldc + 16, c_bytes);
}

#else

// 8 of the 32 rows.
template <int Parts, bool Add>
static inline __attribute__((always_inline)) void tile_rows8(int64_t steps, TileOperand a, TileOperand b,
                                                             float* c, int64_t ldc, TilesAhead ahead) {
  using Plan = SplitPlan<Parts>;
  __m512 acc[8][2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    acc[i][0] = Add ? _mm512_loadu_ps(c + i * ldc) : _mm512_setzero_ps();
    acc[i][1] = Add ? _mm512_loadu_ps(c + i * ldc + 16) : _mm512_setzero_ps();
  }
  for (int64_t s = 0; s < steps; ++s, a.at += a.step, b.at += b.step) {
    for (int q = 0; q < Plan::n; ++q) {
      const uint16_t *left = a.at + Plan::left[q] * a.part, *right = b.at + Plan::right[q] * b.part;
      for (int p = 0; p < 16; ++p) {
        const __m512bh b0 = (__m512bh)_mm512_loadu_si512(right + p * b.row);
        const __m512bh b1 = (__m512bh)_mm512_loadu_si512(right + p * b.row + b.half);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          int32_t pair;
          memcpy(&pair, left + i * a.row + 2 * p, sizeof pair);
          const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
          acc[i][0] = _mm512_dpbf16_ps(acc[i][0], x, b0);
          acc[i][1] = _mm512_dpbf16_ps(acc[i][1], x, b1);
        }
      }
    }
    ahead.fetch(s);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_ps(c + i * ldc, acc[i][0]);
    _mm512_storeu_ps(c + i * ldc + 16, acc[i][1]);
  }
}

template <int Parts, bool Add>
static inline __attribute__((always_inline)) void tile_block(int64_t steps, TileOperand a, TileOperand b,
                                                             float* c, int64_t ldc, TilesAhead ahead) {
  const uint16_t *left = a.at, *next = ahead.at;
  ahead.lines /= 4;
  for (int i = 0; i < 32; i += 8) {
    a.at = left + i / 16 * a.half + i % 16 * a.row;
    ahead.at = next + steps * ahead.lines * 4 * i;
    tile_rows8<Parts, Add>(steps, a, b, c + i * ldc, ldc, ahead);
  }
}

#endif

}  // namespace
}  // namespace ecgfast

#endif
