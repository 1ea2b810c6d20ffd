// erf and the erf GELU with its derivative. The normal distribution's tail is computed as density times Mills
// ratio, so that GELU keeps its relative accuracy where 1 + erf(x) would cancel.
#pragma once
#include "simd.h"

namespace ecgfast {
namespace {

constexpr float kInvSqrt2Pi = 0.398942280401432678f;
// Beyond it density and tail are taken as 0: they are below 3e-37, and subnormal arithmetic is slow.
constexpr float kNormalEnd = 12.9f;

static inline VF abs(VF x) {
  VI bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0x7FFFFFFF;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Density and tail P(X > a) of the standard normal distribution; the tail for a >= 1.
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
  // tail / density = 1 / (a + num / den), minimax on [1, 13]. Both terms of the divisor hold the same den, so
  // its rounding errors nearly cancel.
  VF num = a * 0.019286335379489095f + 0.13686127125114472f;
  num = num * a + 0.4738997948847002f;
  num = num * a + 0.7976797605043545f;
  VF den = a * 0.019288337295572916f + 0.13676466164678266f;
  den = den * a + 0.5144623965283246f;
  den = den * a + 1.0482645117515985f;
  den = den * a + 1.0f;
  tail = density * (den / (den * a + num));
}

// P(X <= x) - 1/2 for |x| <= 1, minimax to 7.1e-10.
static inline VF normal_centre(VF x) {
  const VF s = x * x;
  VF p = s * -7.654313638171161e-06f + 0.0001134866624653515f;
  p = p * s - 0.0011863302335554065f;
  p = p * s + 0.00997332353808252f;
  p = p * s - 0.06649035994652618f;
  p = p * s + 0.39894228011881916f;
  return x * p;
}

// P(X <= x) and its density; both exact to a few ulp over the whole range, NaN kept.
static inline VF normal_cdf(VF x, VF& density) {
  VF tail;
  const VF a = abs(x);
  normal_tail(a, density, tail);
  return blend(a < 1.0f, 0.5f + normal_centre(x), blend(x < 0.0f, tail, 1.0f - tail));
}

static inline VF erf(VF x) {
  const VF a = abs(x), s = x * x;
  VF density, tail;
  normal_tail(a * 1.41421356237309505f, density, tail);
  const VF far = 1.0f - 2.0f * tail;
  VF p = s * -0.0006749617967627f + 0.005114361813812134f;
  p = p * s - 0.02683463374975907f;
  p = p * s + 0.1128337680179816f;
  p = p * s - 0.3761261877972297f;
  p = p * s + 0.128379165502952f;
  return blend(a < 0.75f, x * p + x, blend(x < 0.0f, -far, far));
}

// x P(X <= x): within 1.6 ulp for x > 0, 3 for x > -1, 5 below (tests/ops/test_activations.py); 0 at
// -infinity.
static inline VF gelu(VF x) {
  VF density;
  const VF cdf = normal_cdf(x, density);
  const VF low = VF{} - 16.0f;  // at -infinity 0 times infinity would be NaN
  return blend(x < low, low, x) * cdf;
}

static inline VF gelu_grad(VF x) {
  VF density;
  const VF cdf = normal_cdf(x, density);
  const VF zero = {};
  return cdf + blend(abs(x) > 16.0f, zero, x) * density;
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
