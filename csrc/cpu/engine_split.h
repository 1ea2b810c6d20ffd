// The engine for fp32 on matrix tiles, and the choice of an engine. Activations stay fp32 and are split on
// their way into a product: a block of them at a time, while it is in the first cache.
#pragma once
#include "engine.h"
#include "gemm_split.h"

namespace ecgfast {
namespace {

#if defined(__AMX_BF16__)

template <int Parts>
struct SplitEngine {
  using Tiles = SplitTiles<Parts>;
  using El = float;
  using Panel = uint16_t;
  using Sum = float;
  static constexpr int64_t kColumns = Tiles::kColumns;
  static constexpr int64_t kRowAlign = Tiles::kRows, kDepthAlign = Tiles::kDepth;
  static constexpr int64_t kBlock = 256;
  static constexpr bool kPairs = true;

  static int64_t panel_elements(int64_t k, int64_t n) { return Tiles::right_elements(k, n); }

  // The first part; p is even.
  static uint16_t& at(uint16_t* panels, int64_t k, int64_t p, int64_t j) {
    return panels[(j / kColumns * Tiles::steps(k) + p / kDepthAlign) * Tiles::kStep +
                  column_offset(j % kColumns) + p % kDepthAlign * 16];
  }
  static int64_t column_offset(int64_t i) { return i / 16 * Tiles::kTile + i % 16 * 2; }
  static void put(uint16_t* panel, VF x, VF next) { Tiles::put_pair(x, next, panel); }

  static void clear_depth(uint16_t* panels, int64_t k, int64_t n) {
    for (int64_t p = round_up(k, 2); p < round_up(k, kDepthAlign); p += 2)
      for (int64_t j = 0; j < n; j += 16) put(&at(panels, k, p, j), VF{}, VF{});
  }

  template <class F>
  static void pack(int64_t k, int64_t n, uint16_t* panels, F value) {
    float x[kDepthAlign][kColumns];
    for (int64_t j = 0; j < n; j += kColumns)
      for (int64_t p = 0; p < k; p += kDepthAlign) {
        for (int64_t q = 0; q < kDepthAlign; ++q)
          for (int64_t i = 0; i < kColumns; ++i) x[q][i] = p + q < k ? value(p + q, j + i) : 0.0f;
        Tiles::pack_right_rows(x[0], kColumns, p, kDepthAlign, kColumns, k, &at(panels, k, 0, j));
      }
  }

  static void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const uint16_t* panels,
                   float* c, int64_t ldc, void* scratch) {
    m = round_up(m, kRowAlign);
    Tiles::template multiply<false>(m, n, k, Tiles::rows_of(a, lda, m, k, static_cast<uint16_t*>(scratch)),
                                    panels, c, ldc, n);
  }

  // C[m, n] += A^T B, A being [k, m] in rows of lda.
  static void gemm_transposed(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                              const uint16_t* panels, float* c, int64_t ldc, void* scratch) {
    uint16_t* left = static_cast<uint16_t*>(scratch);
    for (int64_t p = 0; p < k; p += kDepthAlign)
      Tiles::pack_left_rows(a + p * lda, lda, p, k - p, m, k, left);
    Tiles::template multiply<true>(m, n, k, Tiles::packed(left, k), panels, c, ldc, n);
  }
  static int64_t scratch_bytes(int64_t m, int64_t k) { return 2 * Tiles::left_elements(m, k); }

  static void begin() { Tiles::begin(); }
  static void end() { Tiles::end(); }
};

#endif

// The engine for inputs of one dtype, and the one for products of few k, which do not repay a split.
template <class In>
struct EngineOf {
  using type = Fma<Acc<In>>;
  using shallow = type;
};
#if defined(__AVX512BF16__)
template <>
struct EngineOf<BFloat16> {
  using type = Bf16Dot;
  using shallow = type;
};
#endif
#if defined(__AMX_BF16__)
template <>
struct EngineOf<float> {
  using type = SplitEngine<3>;
  using shallow = Fma<float>;
};
template <>
struct EngineOf<Half> {
  using type = SplitEngine<2>;
  using shallow = Fma<float>;
};
#endif

}  // namespace
}  // namespace ecgfast
