// GELU (erf) and its derivative for the stem, whose results are summed with others of order 1. With AVX-512 a
// polynomial per interval looked up in registers: GELU within the larger of 1.5 ulp and 3e-8, so without
// the relative accuracy of small results that activations.h has, its derivative within 2e-7
// (tests/ops/test_activations.py). activations.h elsewhere.
#pragma once
#include "activations.h"
#include "gelu_table.h"

namespace ecgfast {
namespace {

#if defined(__AVX512F__)

struct GeluTable {
  VF low[6], high[6];
  GeluTable() {
    for (int d = 0; d < 6; ++d) {
      low[d] = load(kGeluTable[d]);
      high[d] = load(kGeluTable[d] + 16);
    }
  }

  // g(|x|) and, times its interval's width, g'(|x|).
  template <bool Slope>
  inline __attribute__((always_inline)) VF bump(VF x, VF& slope) const {
    constexpr float kPerUnit = 32.0f / kGeluEnd;
    const VF a = (VF)_mm512_min_ps((__m512)(abs(x) * kPerUnit), _mm512_set1_ps(31.9999f));
    const VI i = __builtin_convertvector(a, VI);
    const VF r = a - (__builtin_convertvector(i, VF) + 0.5f);
    VF c[6];
    for (int d = 0; d < 6; ++d)
      c[d] = (VF)_mm512_permutex2var_ps((__m512)low[d], (__m512i)i, (__m512)high[d]);
    VF p = c[5];
    for (int d = 4; d >= 0; --d) p = p * r + c[d];
    if constexpr (Slope) {
      VF q = c[5] * 5.0f;
      for (int d = 4; d >= 1; --d) q = q * r + c[d] * static_cast<float>(d);
      slope = q * kPerUnit;
    }
    return p;
  }

  inline __attribute__((always_inline)) VF value(VF x) const {
    VF unused;
    return (x < 0.0f ? VF{} : x) - bump<false>(x, unused);
  }
  inline __attribute__((always_inline)) VF value(VF x, VF& slope) const {
    VF d;
    const VF g = bump<true>(x, d);
    slope = x < 0.0f ? d : 1.0f - d;
    return (x < 0.0f ? VF{} : x) - g;
  }
};

#else

struct GeluTable {
  VF value(VF x) const { return gelu(x); }
  VF value(VF x, VF& slope) const {
    slope = gelu_grad(x);
    return gelu(x);
  }
};

#endif

// The functions for one accumulation type.
template <class T>
struct Gelu : GeluTable {};

template <>
struct Gelu<double> {
  Vec<double> value(Vec<double> x) const { return gelu(x); }
  Vec<double> value(Vec<double> x, Vec<double>& slope) const {
    slope = gelu_grad(x);
    return gelu(x);
  }
};

}  // namespace
}  // namespace ecgfast
