// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011), checked in the tests against the known-answer vectors of Random123. The same source
// serves host and device, so the same (seed, purpose, sample, step, element) gives the same bits everywhere.
#pragma once
#include <stdint.h>

#if defined(__CUDACC__)
#define ECGFAST_HD __host__ __device__ __forceinline__
#else
#define ECGFAST_HD static inline __attribute__((always_inline))
#endif

namespace ecgfast {

// What a draw is for; part of the counter, so that no two uses ever share bits.
enum class Purpose : uint32_t {
  lead_mask = 1,
  span_count = 2,
  span_start = 3,
  span_cut = 4,
  negatives = 5,
  gumbel = 6,
  crop = 7,
};

struct Words {
  uint32_t v[4];
};

ECGFAST_HD Words philox4x32_10(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * counter.v[0];
    const uint64_t p1 = 0xCD9E8D57ull * counter.v[2];
    counter = Words{{static_cast<uint32_t>(p1 >> 32) ^ counter.v[1] ^ key0, static_cast<uint32_t>(p1),
                     static_cast<uint32_t>(p0 >> 32) ^ counter.v[3] ^ key1, static_cast<uint32_t>(p0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The stream of one sample at one step for one purpose. Sample ids count modulo 2^56, steps modulo 2^32.
struct Stream {
  uint32_t key0, key1, step, sample, purpose_sample;
};

ECGFAST_HD Stream make_stream(int64_t seed, int64_t step, int64_t sample, Purpose purpose) {
  const uint64_t k = static_cast<uint64_t>(seed), s = static_cast<uint64_t>(sample);
  return Stream{static_cast<uint32_t>(k), static_cast<uint32_t>(k >> 32),
                static_cast<uint32_t>(static_cast<uint64_t>(step)), static_cast<uint32_t>(s),
                (static_cast<uint32_t>(purpose) << 24) | (static_cast<uint32_t>(s >> 32) & 0x00FFFFFFu)};
}

// Block `index` holds the elements 4 * index to 4 * index + 3.
ECGFAST_HD Words block(const Stream& s, uint32_t index) {
  return philox4x32_10(Words{{index, s.step, s.sample, s.purpose_sample}}, s.key0, s.key1);
}

ECGFAST_HD uint32_t element(const Stream& s, uint32_t e) { return block(s, e >> 2).v[e & 3u]; }

// Uniform on 0..n-1 from one word; the bias, below n / 2^32, is far under anything measurable.
ECGFAST_HD uint32_t bounded(uint32_t word, uint32_t n) {
  return static_cast<uint32_t>((static_cast<uint64_t>(word) * n) >> 32);
}

}  // namespace ecgfast
