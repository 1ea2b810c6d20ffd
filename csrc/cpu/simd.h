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
  // For loads and stores at any address: the compilers split a memcpy of a whole register in two.
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
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
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}

template <class T>
static inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}

// Lane i ^ Width in lane i.
template <int Width, class T>
static inline Vec<T> exchange(Vec<T> v) {
#if defined(__clang__)
  Vec<T> out;
  for (int i = 0; i < kLanes<T>; ++i) out[i] = v[i ^ Width];
  return out;
#else
  decltype(v > v) from;
  for (int i = 0; i < kLanes<T>; ++i) from[i] = i ^ Width;
  return __builtin_shuffle(v, from);
#endif
}

// Pairwise, in a fixed order: the sum of one row is the same wherever and whenever it is computed.
template <class T, int Width = kLanes<T> / 2>
static inline T reduce_add(Vec<T> v) {
  if constexpr (Width == 0) {
    return v[0];
  } else {
    return reduce_add<T, Width / 2>(v + exchange<Width, T>(v));
  }
}

template <class T, int Width = kLanes<T> / 2>
static inline T reduce_max(Vec<T> v) {
  if constexpr (Width == 0) {
    return v[0];
  } else {
    const Vec<T> other = exchange<Width, T>(v);
    return reduce_max<T, Width / 2>(other > v ? other : v);
  }
}

template <class To, class From>
static inline To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From), "bits are kept");
  To r;
  memcpy(&r, &v, sizeof r);
  return r;
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
  return bit_cast<VF>(__builtin_convertvector(h, VU) << 16);
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

static inline VF blend(VI take_a, VF a, VF b) { return take_a ? a : b; }

// exp(x - n ln 2) for the integers n nearest to x / ln 2.
static inline VF exp_fraction(VF x, VF n) {
  VF r = x - n * 0.693145751953125f;
  r = r - n * 1.42860677e-6f;
  VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * r * r + r + 1.0f;
}

// exp to within 1.2 ulp on [-87.3, 88.7]; 0 below, infinity above, NaN kept (measured in
// tests/ops/test_simd.py).
static inline VF exp(VF x) {
  const VF low = VF{} - 87.33654f, high = VF{} + 88.72283f;
  VF c = blend(x < low, low, x);
  c = blend(c > high, high, c);
  // The nearest integer to x / ln 2 through the rounding of the addition of 1.5 * 2^23.
  const VF t = c * 1.44269504088896341f + 12582912.0f;
  const VI n = bit_cast<VI>(t) - 0x4B400000;
  const VF fn = t - 12582912.0f;
  const VF p = exp_fraction(c, fn);
  // 2^n in two factors, since n = 128 has no exponent of its own.
  const VI half = n >> 1;
  VF y = p * bit_cast<VF>((half + 127) << 23) * bit_cast<VF>((n - half + 127) << 23);
  y = blend(x < low, VF{}, y);
  return blend(x > high, VF{} + __builtin_inff(), y);
}

// exp of numbers that are not positive but by rounding, to within 1.2 ulp; 0 below -87.3, NaN kept. For the
// terms of softmax.
#if defined(__AVX512F__)
// As 2^(n / 16) e^r with |r| <= ln 2 / 32; the powers' sixteenths are looked up in a register.
static inline VF exp_nonpositive(VF x) {
  const VF powers = {1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                     1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                     1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
  const VF t = x * 23.0831206542234f + 12582912.0f;
  const VF sixteenths = t - 12582912.0f;
  VF r = x - sixteenths * 0.0433216989f;
  r = r + sixteenths * 1.1904090e-10f;
  const VF power = (VF)_mm512_permutexvar_ps((__m512i)bit_cast<VI>(t), (__m512)powers);
  VF p = r * 1.66666667e-1f + 0.5f;
  p = p * r + 1.0f;
  const __m512 y = (__m512)(power * (p * r) + power);
  // Not "x >= low": NaN is kept.
  const __mmask16 near = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.33654f), _CMP_NLT_UQ);
  return (VF)_mm512_maskz_scalef_ps(near, y, (__m512)(sixteenths * 0.0625f));
}
#else
static inline VF exp_nonpositive(VF x) {
  const VF low = VF{} - 87.33654f;
  const VF c = blend(low > x, low, x);
  const VF t = c * 1.44269504088896341f + 12582912.0f;
  const VF fn = t - 12582912.0f;
  const VF p = exp_fraction(c, fn);
  const VF y = p * bit_cast<VF>((bit_cast<VI>(t) << 23) + 0x3F800000);
  return blend(x < low, VF{}, y);
}
#endif

// log of positive normal numbers to within 1 ulp: x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), where f
// is exact, so that results near 0 are as accurate as others.
static inline VF log_normal(VF x) {
  const VU bits = bit_cast<VU>(x);
  const VI e = bit_cast<VI>(bits - 0x3F3504F3u) >> 23;
  const VF f = bit_cast<VF>(bits - (bit_cast<VU>(e) << 23)) - 1.0f, fe = __builtin_convertvector(e, VF);
  const VF z = f * f;
  VF p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const VF tail = p * f * z - fe * 2.12194440e-4f - z * 0.5f;
  return (f + tail) + fe * 0.693359375f;
}

// log to within 1 ulp, subnormals included; -infinity at 0, NaN below.
static inline VF log(VF x) {
  const VI tiny = x < 0x1p-126f;
  VF y = log_normal(blend(tiny, x * 0x1p25f, x));
  y = blend(tiny, y - 17.328679514f, y);
  y = blend(x < __builtin_inff(), y, x);  // infinity and NaN are their own
  y = blend(x == 0.0f, VF{} - __builtin_inff(), y);
  return blend(x < 0.0f, VF{} + __builtin_nanf(""), y);
}

static inline Vec<double> exp(Vec<double> x) {
  double lanes[kLanes<double>];
  store(lanes, x);
  for (double& v : lanes) v = __builtin_exp(v);
  return load(lanes);
}

static inline Vec<double> exp_nonpositive(Vec<double> x) { return exp(x); }

static inline Vec<double> log(Vec<double> x) {
  double lanes[kLanes<double>];
  store(lanes, x);
  for (double& v : lanes) v = __builtin_log(v);
  return load(lanes);
}
static inline Vec<double> log_normal(Vec<double> x) { return log(x); }

static inline float log_scalar(float x) { return __builtin_logf(x); }
static inline double log_scalar(double x) { return __builtin_log(x); }
static inline float sqrt_scalar(float x) { return __builtin_sqrtf(x); }
static inline double sqrt_scalar(double x) { return __builtin_sqrt(x); }

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace
}  // namespace ecgfast
