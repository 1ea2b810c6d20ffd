// log|x| of normal numbers for the hot loops. With AVX-512 an interval's logarithm and reciprocal are looked
// up in registers, elsewhere it is that of simd.h.
#pragma once
#include "simd.h"

namespace ecgfast {
namespace {

#if defined(__AVX512F__)

// |x| = 2^e m, m in [3/4, 3/2); m lies in one of 16 intervals, told by its upper bits, whose reciprocal c
// makes r = m c - 1 small: log|x| = e ln 2 - log c + log(1 + r). c is 1 below 1, where log is small: there
// the result is within 2 ulp, above 1 within 2 ulp or 2e-8.
class LogTable {
 public:
  LogTable() {
    for (int i = 0; i < 16; ++i) {
      const float middle = 1.0f + (static_cast<float>(i) + 0.5f) / 16.0f;
      reciprocal_[i] = i == 15 ? 1.0f : (i < 8 ? 1.0f : 2.0f) / middle;
      log_[i] = static_cast<float>(-__builtin_log(reciprocal_[i]));
    }
  }

  inline __attribute__((always_inline)) VF operator()(VF x) const {
    const __m512 v = (__m512)x;
    const __m512 m = _mm512_getmant_ps(v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
    const VF e = (VF)_mm512_getexp_ps(v) - (VF)_mm512_getexp_ps(m);
    const __m512i i = _mm512_srli_epi32(_mm512_castps_si512(v), 19);  // its lower four bits count
    // Looked up before the arithmetic: a sanitizer's check between a product and its sum would keep them
    // unfused.
    const VF reciprocal = (VF)_mm512_permutexvar_ps(i, (__m512)reciprocal_);
    const VF log = (VF)_mm512_permutexvar_ps(i, (__m512)log_);
    const VF r = (VF)m * reciprocal - 1.0f;
    const VF near = e * 0.69314718056f + log;
    VF p = r * -0.25023038f + 0.33349523f;
    p = p * r - 0.49999994f;
    return r * (p * r + 1.0f) + near;
  }
  Vec<double> operator()(Vec<double> x) const { return log(x < 0.0 ? -x : x); }

 private:
  VF reciprocal_, log_;
};

#else

struct LogTable {
  VF operator()(VF x) const { return log_normal(bit_cast<VF>(bit_cast<VU>(x) & 0x7FFFFFFFu)); }
  Vec<double> operator()(Vec<double> x) const { return log(x < 0.0 ? -x : x); }
};

#endif

}  // namespace
}  // namespace ecgfast
