// Philox4x32-10 several blocks at a time: the same bits as philox.h.
#pragma once
#include "../common/philox.h"
#include "simd.h"

namespace ecgfast {
namespace {

typedef uint64_t VU64 __attribute__((vector_size(kVectorBytes)));
constexpr int kPhiloxLanes = kVectorBytes / 8;

// Low 32 bits of each 64-bit lane times a 32-bit constant.
static inline VU64 mul_wide(VU64 a, uint32_t b) {
#if defined(__AVX512F__)
  return reinterpret_cast<VU64>(
      _mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(static_cast<int64_t>(b))));
#elif defined(__AVX2__)
  return reinterpret_cast<VU64>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(static_cast<int64_t>(b))));
#elif defined(__x86_64__)
  return reinterpret_cast<VU64>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(static_cast<int64_t>(b))));
#else
  return (a & 0xFFFFFFFFull) * static_cast<uint64_t>(b);
#endif
}

// Words 4 * first to 4 * (first + n) - 1 of a stream; `out` holds 4 * round_up(n, kPhiloxLanes) words.
static void philox_fill(const Stream& s, uint32_t first, int64_t n, uint32_t* out) {
  constexpr uint64_t kLow = 0xFFFFFFFFull;
  for (int64_t i = 0; i < n; i += kPhiloxLanes) {
    VU64 c0, c1 = VU64{} + s.step, c2 = VU64{} + s.sample, c3 = VU64{} + s.purpose_sample;
    for (int l = 0; l < kPhiloxLanes; ++l) c0[l] = static_cast<uint32_t>(first + i + l);
    uint32_t key0 = s.key0, key1 = s.key1;
    for (int round = 0; round < 10; ++round) {
      const VU64 p0 = mul_wide(c0, 0xD2511F53u), p1 = mul_wide(c2, 0xCD9E8D57u);
      // What lies above 32 bits is left there: the products don't read it.
      c0 = (p1 >> 32) ^ c1 ^ static_cast<uint64_t>(key0);
      c1 = p1;
      c2 = (p0 >> 32) ^ c3 ^ static_cast<uint64_t>(key1);
      c3 = p0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const VU64 low = (c0 & kLow) | (c1 << 32), high = (c2 & kLow) | (c3 << 32);
    for (int l = 0; l < kPhiloxLanes; ++l) {
      const uint64_t pair[2] = {low[l], high[l]};
      memcpy(out + 4 * (i + l), pair, sizeof pair);
    }
  }
}

}  // namespace
}  // namespace ecgfast
