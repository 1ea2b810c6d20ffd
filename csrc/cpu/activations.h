// erf and the erf GELU with its derivative. The normal distribution's tail is computed as density times Mills
// ratio, so that GELU keeps its relative accuracy where 1 + erf(x) would cancel.
#pragma once
#include "simd.h"

namespace ecgfast {
namespace {

constexpr float kInvSqrt2Pi = 0.398942280401432678f;
// Beyond it density and tail are taken as 0: they are below 3e-37, and subnormal arithmetic is slow.
constexpr float kNormalEnd = 12.9f;

// Density and tail Q(a) = P(X > a) of the standard normal distribution, a >= 0; relative errors below 3 ulp.
static inline void normal_tail(VF a, VF& density, VF& tail) {
  const VF zero = {};
  const VI outside = a > kNormalEnd;
  a = blend(outside, zero + kNormalEnd, a);
  // a^2 in two parts, the first exact: exp doubles an error of its argument's last bit many times over.
  VI bits;
  memcpy(&bits, &a, sizeof bits);
  bits &= ~0xFFF;
  VF upper;
  memcpy(&upper, &bits, sizeof upper);
  const VF square = upper * upper, rest = (a - upper) * (a + upper);
  // exp(-(square + rest) / 2) as in exp of simd.h; no exponent here is out of range.
  const VF t = square * (-0.5f * 1.44269504088896341f) + 12582912.0f;
  VI n;
  memcpy(&n, &t, sizeof n);
  n = (n - 0x4B400000 + 127) << 23;
  VF power;
  memcpy(&power, &n, sizeof power);
  const VF fn = t - 12582912.0f;
  VF r = square * -0.5f - fn * 0.693145751953125f;
  r = r - fn * 1.42860677e-6f - 0.5f * rest;
  VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  density = blend(outside, zero, p * power * kInvSqrt2Pi);
  // Mills ratio on [0, 14], minimax to 5.6e-9; all terms positive.
  VF num = a * 0.010221441267019467f + 0.10120221571374262f;
  num = num * a + 0.4573744508248726f;
  num = num * a + 1.0960409619223728f;
  num = num * a + 1.2533141441727296f;
  VF den = a * 0.010221312600657019f + 0.10120902220724794f;
  den = den * a + 0.46744001275844715f;
  den = den * a + 1.1993089360445213f;
  den = den * a + 1.6723991154110693f;
  den = den * a + 1.0f;
  tail = density * (num / den);
}

static inline VF abs(VF x) {
  VI bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7FFFFFFF;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// erf to within 2 ulp; NaN kept.
static inline VF erf(VF x) {
  const VF a = abs(x), s = x * x;
  VF density, tail;
  normal_tail(a * 1.41421356237309505f, density, tail);
  const VF far = 1.0f - 2.0f * tail;
  VF p = x;
  return blend(a < 0.75f, x * p, blend(x < 0.0f, -far, far));
}

// x P(X <= x) and its derivative, to within 4 ulp of the value and 2 ulp of 1 for the derivative, whatever x;
// 0 at -infinity, NaN kept.
static inline VF gelu(VF x) {
  VF density, tail;
  normal_tail(abs(x), density, tail);
  const VF low = VF{} - 16.0f;  // at -infinity 0 times infinity would be NaN
  return blend(x < low, low, x) * blend(x < 0.0f, tail, 1.0f - tail);
}

static inline VF gelu_grad(VF x) {
  VF density, tail;
  normal_tail(abs(x), density, tail);
  const VF cdf = blend(x < 0.0f, tail, 1.0f - tail);
  const VF a = blend(x < -16.0f, VF{}, blend(x > 16.0f, VF{}, x));  // the density is 0 there
  return cdf + a * density;
}

template <class F>
static inline Vec<double> each_lane(Vec<double> x, F f) {
  double lanes[kLanes<double>];
  store(lanes, x);
  for (double& v : lanes) v = f(v);
  return load(lanes);
}

static inline Vec<double> erf(Vec<double> x) {
  return each_lane(x, [](double v) { return __builtin_erf(v); });
}
static inline Vec<double> gelu(Vec<double> x) {
  return each_lane(x, [](double v) {
    return (v < -64.0 ? -64.0 : v) * 0.5 * __builtin_erfc(v * -0.70710678118654752440);
  });
}
static inline Vec<double> gelu_grad(Vec<double> x) {
  return each_lane(x, [](double v) {
    const double density = 0.39894228040143267794 * __builtin_exp(-0.5 * v * v);
    return 0.5 * __builtin_erfc(v * -0.70710678118654752440) + (density == 0.0 ? 0.0 : v * density);
  });
}

}  // namespace
}  // namespace ecgfast
