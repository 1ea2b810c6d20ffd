// erf and the erf GELU with its derivative. The normal distribution's tail is computed as density times Mills
// ratio, so that they keep their relative accuracy where 1 + erf(x) would cancel.
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

// The logarithm of 1 / sqrt(2 pi) less that of its nearest float.
constexpr float kInvSqrt2PiRest =
    static_cast<float>(0.398942280401432678 / static_cast<double>(kInvSqrt2Pi) - 1.0);

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// a b less its rounded value, from halves whose products are exact: for where a fused multiply-add is not to
// be had.
static inline VF product_rest(VF a, VF b, VF product) {
  const VF a_upper = bit_cast<VF>(bit_cast<VI>(a) & ~0xFFF), a_lower = a - a_upper;
  const VF b_upper = bit_cast<VF>(bit_cast<VI>(b) & ~0xFFF), b_lower = b - b_upper;
  return (a_upper * b_upper - product) + a_upper * b_lower + a_lower * b_upper + a_lower * b_lower;
}

// The standard normal distribution at a >= 0. The tail and the bump are for a >= 1.
struct Normal {
  VF density, tail, bump;  // P(X > a) and a P(X > a)
};

static inline Normal normal_at(VF a) {
  const VF zero = {};
  const VI outside = a > kNormalEnd;
  a = blend(outside, zero + kNormalEnd, a);
  // a^2 in two parts, the first exact: exp doubles an error of its argument's last bit many times over.
  const VF upper = bit_cast<VF>(bit_cast<VI>(a) & ~0xFFF), lower = a - upper;
  const VF square = upper * upper, rest = lower * (a + upper);
  // exp(-(square + rest) / 2) = power (1 + r1 + q) as in exp of simd.h; no exponent here is out of range. r1
  // is exact, and the roundings of r2 are far below its last bit.
  const VF t = square * (-0.5f * 1.44269504088896341f) + 12582912.0f;
  const VF power = bit_cast<VF>((bit_cast<VI>(t) - 0x4B400000 + 127) << 23);
  const VF fn = t - 12582912.0f;
  const VF r1 = square * -0.5f - fn * 0.693145751953125f;
  const VF r2 = kInvSqrt2PiRest - rest * 0.5f - fn * 1.42860677e-6f, r = r1 + r2;
  VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const VF q = p * r * r + r2;
  // tail / density = 1 / (a + num / den), minimax to 3.0e-9 on [0.98, 12.95] with these very floats.
  VF num = a * 0.016740143299102783f + 0.12647660076618195f;
  num = num * a + 0.4516946077346802f;
  num = num * a + 0.7977957725524902f;
  VF den = a * 0.016743719577789307f + 0.12632279098033905f;
  den = den * a + 0.48800769448280334f;
  den = den * a + 1.0210179090499878f;
  den = den * a + 1.0f;
  const VF sum = den * a + num;
  // bump = density (1 - w), and w is at most 0.35: its error counts half. What rounding takes from v is kept.
  const VF w = num / sum;
  const VF v = kInvSqrt2Pi - w * kInvSqrt2Pi, first = v * r1;
  VF small = v * q + ((kInvSqrt2Pi - v) - w * kInvSqrt2Pi);
  if (!kFused) small += product_rest(v, r1, first) - product_rest(w, zero + kInvSqrt2Pi, w * kInvSqrt2Pi);
  Normal n;
  n.bump = blend(outside, zero, power * (v + (v * r1 + small)));
  n.density = blend(outside, zero, power * (kInvSqrt2Pi + kInvSqrt2Pi * (r1 + q)));
  n.tail = n.density * (den / sum);
  return n;
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

// a P(X > a) for a = |x| <= 1, with the tail as 1/2 - a (c0 - a^2 u). The product with c0's first bits is
// exact, and so is what it leaves of 1/2 where a > 1/2.
static inline VF bump_centre(VF a) {
  constexpr float c0 = 0.39892578125f, c0_rest = static_cast<float>(0.39894228011881916 - 0.39892578125);
  const VF s = a * a, upper = bit_cast<VF>(bit_cast<VI>(a) & ~0xFFF);
  VF u = s * 7.654313638171161e-06f - 0.0001134866624653515f;
  u = u * s + 0.0011863302335554065f;
  u = u * s - 0.00997332353808252f;
  u = u * s + 0.06649035994652618f;
  const VF rest = s * a * u - ((a - upper) * c0 + a * c0_rest);
  return a * (0.5f - upper * c0) + a * rest;
}

// P(X <= x) and its density; both exact to a few ulp over the whole range, NaN kept.
static inline VF normal_cdf(VF x, VF& density) {
  const VF a = abs(x);
  const Normal n = normal_at(a);
  density = n.density;
  return blend(a < 1.0f, 0.5f + normal_centre(x), blend(x < 0.0f, n.tail, 1.0f - n.tail));
}

static inline VF erf(VF x) {
  const VF a = abs(x), s = x * x;
  const VF far = 1.0f - 2.0f * normal_at(a * 1.41421356237309505f).tail;
  VF p = s * -0.0006749617967627f + 0.005114361813812134f;
  p = p * s - 0.02683463374975907f;
  p = p * s + 0.1128337680179816f;
  p = p * s - 0.3761261877972297f;
  p = p * s + 0.128379165502952f;
  return blend(a < 0.75f, x * p + x, blend(x < 0.0f, -far, far));
}

// x P(X <= x) = max(x, 0) - a P(X > a), a = |x|: within 1.7 ulp, 1.9 where there are no fused multiply-adds
// (tests/ops/test_activations.py); 0 below -12.9.
static inline VF gelu(VF x) {
  const VF a = abs(x);
  return blend(x > 0.0f, x, VF{}) - blend(a > 1.0f, normal_at(a).bump, bump_centre(a));
}

// Within 5 ulp of the larger of its two terms, which cancel near -0.75.
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
