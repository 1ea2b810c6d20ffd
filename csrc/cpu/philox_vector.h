// Philox4x32-10 several blocks at a time: the same bits as philox.h.
#pragma once
#include "../common/philox.h"
#include "transpose.h"

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

// The upper half of each lane in its lower half; the other half is anything. By a shuffle, since shifts
// compete with the products for a port.
static inline VU64 upper_half(VU64 a) {
#if defined(__clang__)
  return a >> 32;
#else
  VU from;
  for (int l = 0; l < kF32Lanes; ++l) from[l] = static_cast<uint32_t>(l | 1);
  return bit_cast<VU64>(__builtin_shuffle(bit_cast<VU>(a), from));
#endif
}

// One counter per lane, and what becomes of it.
struct PhiloxLanes {
  VU64 c0, c1, c2, c3;
};

// Several at a time: one alone would wait for its multiplications.
constexpr int kPhiloxChains = kVectorBytes == 64 ? 4 : 2;  // as many as the registers hold

template <int Chains>
static inline __attribute__((always_inline)) void philox_rounds(uint32_t key0, uint32_t key1,
                                                                PhiloxLanes (&c)[Chains], uint32_t* out) {
  constexpr uint64_t kLow = 0xFFFFFFFFull;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    for (PhiloxLanes& q : c) {
      const VU64 p0 = mul_wide(q.c0, 0xD2511F53u), p1 = mul_wide(q.c2, 0xCD9E8D57u);
      // What lies above 32 bits is anything: the products don't read it.
      q.c0 = upper_half(p1) ^ q.c1 ^ static_cast<uint64_t>(key0);
      q.c1 = p1;
      q.c2 = upper_half(p0) ^ q.c3 ^ static_cast<uint64_t>(key1);
      q.c3 = p0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (const PhiloxLanes& q : c) {
    Vec<double> blocks[2];
    interleave<double>(bit_cast<Vec<double>>((q.c0 & kLow) | (q.c1 << 32)),
                       bit_cast<Vec<double>>((q.c2 & kLow) | (q.c3 << 32)), blocks[0], blocks[1]);
    memcpy(out, blocks, sizeof blocks);
    out += 4 * kPhiloxLanes;
  }
}

// Chains * kPhiloxLanes blocks of a stream.
template <int Chains>
static inline __attribute__((always_inline)) void philox_blocks(const Stream& s, uint32_t first,
                                                                uint32_t* out) {
  PhiloxLanes c[Chains];
  VU64 lane;
  for (int l = 0; l < kPhiloxLanes; ++l) lane[l] = static_cast<uint64_t>(l);
  for (int q = 0; q < Chains; ++q)
    c[q] = {lane + (first + static_cast<uint32_t>(q * kPhiloxLanes)), VU64{} + s.step, VU64{} + s.sample,
            VU64{} + s.purpose_sample};
  philox_rounds<Chains>(s.key0, s.key1, c, out);
}

// Words 4 * first to 4 * (first + n) - 1 of a stream; `out` holds 4 * round_up(n, kPhiloxLanes) words.
static void philox_fill(const Stream& s, uint32_t first, int64_t n, uint32_t* out) {
  int64_t i = 0;
  for (; n - i > (kPhiloxChains - 1) * kPhiloxLanes; i += kPhiloxChains * kPhiloxLanes)
    philox_blocks<kPhiloxChains>(s, first + static_cast<uint32_t>(i), out + 4 * i);
  for (; i < n; i += kPhiloxLanes) philox_blocks<1>(s, first + static_cast<uint32_t>(i), out + 4 * i);
}

// The same for few blocks of many samples: words 0 to 4 * n_blocks - 1 of each of n samples, one after the
// other; `out` holds 4 * round_up(n * n_blocks, kPhiloxAtOnce) words.
constexpr int kPhiloxAtOnce = kPhiloxChains * kPhiloxLanes;
static void philox_samples(int64_t seed, int64_t step, Purpose purpose, const int64_t* samples, int64_t n,
                           int64_t n_blocks, uint32_t* out) {
  Stream s{};
  for (int64_t i = 0, block = 0; i < n; out += 4 * kPhiloxAtOnce) {
    uint64_t counters[3][kPhiloxAtOnce];
    for (int l = 0; l < kPhiloxAtOnce; ++l) {
      if (i < n) s = make_stream(seed, step, samples[i], purpose);
      counters[0][l] = static_cast<uint64_t>(block);
      counters[1][l] = s.sample;
      counters[2][l] = s.purpose_sample;
      if (++block == n_blocks) block = 0, ++i;
    }
    PhiloxLanes c[kPhiloxChains];
    for (int q = 0; q < kPhiloxChains; ++q) {
      const int64_t at = q * kPhiloxLanes;
      c[q] = {load(counters[0] + at), VU64{} + s.step, load(counters[1] + at), load(counters[2] + at)};
    }
    philox_rounds<kPhiloxChains>(s.key0, s.key1, c, out);
  }
}

}  // namespace
}  // namespace ecgfast
