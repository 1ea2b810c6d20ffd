// Vectors of the widest registers of the ISA this is compiled for, on the compilers' vector extensions: one
// source for SSE, AVX2, AVX-512 and, through the compiler's own lowering, any other machine.
//
// The kernels are compiled once per ISA. Everything in a header has internal linkage and no header of the C++
// library is used, so no ISA's code can be taken for another's at link time (tests/test_build.py checks the
// symbols).
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ecgfast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

constexpr int kF32Lanes = kLanes<float>;
typedef float VF __attribute__((vector_size(kVectorBytes)));
typedef int32_t VI __attribute__((vector_size(kVectorBytes)));
typedef uint32_t VU __attribute__((vector_size(kVectorBytes)));
typedef uint16_t VHalf __attribute__((vector_size(kVectorBytes / 2)));

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class T>
static inline Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
static inline void store(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof v);
}

template <class T>
static inline T reduce_add(Vec<T> v) {
  // Pairwise, in a fixed order: the sum of one row is the same wherever and whenever it is computed.
  T lanes[kLanes<T>];
  memcpy(lanes, &v, sizeof v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

template <class T>
static inline T reduce_max(Vec<T> v) {
  T lanes[kLanes<T>];
  memcpy(lanes, &v, sizeof v);
  T best = lanes[0];
  for (int i = 1; i < kLanes<T>; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

static inline float bits_to_float(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

static inline uint32_t float_to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

static inline double to_acc(double v) { return v; }
static inline float to_acc(float v) { return v; }
static inline float to_acc(BFloat16 v) { return bits_to_float(static_cast<uint32_t>(v.bits) << 16); }
static inline float to_acc(Half h) {
  const uint32_t magnitude = static_cast<uint32_t>(h.bits & 0x7FFF) << 13;
  uint32_t u = float_to_bits(bits_to_float(magnitude) * bits_to_float(0x77800000u));  // * 2^112
  if ((h.bits & 0x7C00) == 0x7C00) u |= 0x7F800000u;
  return bits_to_float(u | (static_cast<uint32_t>(h.bits & 0x8000) << 16));
}

static inline void from_acc(double v, double* out) { *out = v; }
static inline void from_acc(float v, float* out) { *out = v; }
static inline void from_acc(float v, BFloat16* out) {
  const uint32_t u = float_to_bits(v);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
static inline void from_acc(float v, Half* out) {
  uint32_t u = float_to_bits(v);
  const uint32_t sign = (u >> 16) & 0x8000u;
  u &= 0x7FFFFFFFu;
  if (u > 0x7F800000u) {
    out->bits = static_cast<uint16_t>(sign | 0x7E00u);
  } else if (u >= 0x477FF000u) {  // rounds to at least 2^16: infinity
    out->bits = static_cast<uint16_t>(sign | 0x7C00u);
  } else if (u < 0x38800000u) {  // subnormal: the addition of 0.5 rounds at the right bit
    out->bits = static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(u) + 0.5f) - 0x3F000000u));
  } else {
    out->bits = static_cast<uint16_t>(sign | ((u - 0x38000000u + 0xFFFu + ((u >> 13) & 1u)) >> 13));
  }
}

template <class In>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class In>
using Acc = typename AccOf<In>::type;

// kLanes<Acc<In>> elements as a vector of the accumulation type.
static inline VF load_acc(const float* p) { return load(p); }
static inline Vec<double> load_acc(const double* p) { return load(p); }
static inline VF load_acc(const BFloat16* p) {
  VHalf h;
  memcpy(&h, p, sizeof h);
  const VU u = __builtin_convertvector(h, VU) << 16;
  VF f;
  memcpy(&f, &u, sizeof f);
  return f;
}
static inline VF load_acc(const Half* p) {
  float f[kF32Lanes];
  for (int i = 0; i < kF32Lanes; ++i) f[i] = to_acc(p[i]);
  return load(f);
}

static inline void store_acc(float* p, VF v) { store(p, v); }
static inline void store_acc(double* p, Vec<double> v) { store(p, v); }
static inline void store_acc(BFloat16* p, VF v) {
  VU u;
  memcpy(&u, &v, sizeof u);
  const VU nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
  VU r = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  r = (nan & 0x7FC0u) | (~nan & r);
  const VHalf h = __builtin_convertvector(r, VHalf);
  memcpy(p, &h, sizeof h);
}
static inline void store_acc(Half* p, VF v) {
  float f[kF32Lanes];
  store(f, v);
  for (int i = 0; i < kF32Lanes; ++i) from_acc(f[i], p + i);
}

static inline VF blend(VI take_a, VF a, VF b) {
  VI ia, ib;
  memcpy(&ia, &a, sizeof a);
  memcpy(&ib, &b, sizeof b);
  const VI r = (take_a & ia) | (~take_a & ib);
  VF f;
  memcpy(&f, &r, sizeof f);
  return f;
}

// exp to within 1.2 ulp on [-87.3, 88.7]; 0 below, infinity above, NaN kept (measured in tests/test_simd.py).
static inline VF exp(VF x) {
  const VF low = x - x + -87.33654f, high = x - x + 88.72283f;
  VF c = blend(x < low, low, x);
  c = blend(c > high, high, c);
  // The nearest integer to x / ln 2 through the rounding of the addition of 1.5 * 2^23.
  const VF t = c * 1.44269504088896341f + 12582912.0f;
  VI n;
  memcpy(&n, &t, sizeof n);
  n -= 0x4B400000;
  const VF fn = t - 12582912.0f;
  VF r = c - fn * 0.693145751953125f;
  r = r - fn * 1.42860677e-6f;
  VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors, since n = 128 has no exponent of its own.
  const VI half = n >> 1;
  const VI e0 = (half + 127) << 23, e1 = (n - half + 127) << 23;
  VF s0, s1;
  memcpy(&s0, &e0, sizeof s0);
  memcpy(&s1, &e1, sizeof s1);
  const VF zero = x - x;  // NaN where x is NaN or infinite
  VF y = p * s0 * s1;
  y = blend(x < low, zero * 0.0f, y);
  y = blend(x > high, x - x + __builtin_inff(), y);
  y = blend(x == -__builtin_inff(), VF{} + 0.0f, y);
  y = blend(x == __builtin_inff(), VF{} + __builtin_inff(), y);
  return blend(x == x, y, x);
}

static inline Vec<double> exp(Vec<double> x) {
  double lanes[kLanes<double>];
  store(lanes, x);
  for (double& v : lanes) v = __builtin_exp(v);
  return load(lanes);
}

// Transposes a square of 32-bit words in registers: rounds of exchanging ever larger halves.
static inline void transpose_lanes(VU (&r)[kF32Lanes]) {
#pragma GCC unroll 4
  for (int step = 1; step < kF32Lanes; step *= 2) {
    VU keep, take;
    for (int l = 0; l < kF32Lanes; ++l) {
      keep[l] = static_cast<uint32_t>(l & step ? kF32Lanes + (l - step) : l);
      take[l] = static_cast<uint32_t>(l & step ? kF32Lanes + l : l + step);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kF32Lanes; ++i) {
      if (i & step) continue;
      const VU x = r[i], y = r[i + step];
      r[i] = __builtin_shuffle(x, y, keep);
      r[i + step] = __builtin_shuffle(x, y, take);
    }
  }
}

static inline float log_scalar(float x) { return __builtin_logf(x); }
static inline double log_scalar(double x) { return __builtin_log(x); }
static inline float sqrt_scalar(float x) { return __builtin_sqrtf(x); }
static inline double sqrt_scalar(double x) { return __builtin_sqrt(x); }

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace
}  // namespace ecgfast
