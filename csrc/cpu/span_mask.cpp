// Span masks. Sets of tokens are bits, and drawing without replacement is finding the bound that as many
// random words as wanted lie below: nothing is sorted. Compiled once per ISA.
#include "arena.h"
#include "kernels.h"
#include "philox_vector.h"

namespace ecgfast {
namespace {

constexpr int64_t kSegments = 64;  // whose counts of spans are drawn at a time

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline uint64_t less(VU a, VU b) {
#if defined(__AVX512F__)
  return _mm512_cmplt_epu32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#elif defined(__AVX2__)
  return static_cast<uint64_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(a < b)));
#elif defined(__x86_64__)
  return static_cast<uint64_t>(_mm_movemask_ps(reinterpret_cast<__m128>(a < b)));
#else
  uint64_t bits = 0;
  for (int l = 0; l < kF32Lanes; ++l) bits |= static_cast<uint64_t>(a[l] < b[l]) << l;
  return bits;
#endif
}

// Which of 64 words lie below a bound of at most 2^32.
static inline uint64_t below(const uint32_t* words, uint64_t bound) {
  if (bound >> 32) return ~uint64_t{0};
  const VU bounds = VU{} + static_cast<uint32_t>(bound);
  uint64_t bits = 0;
  for (int i = 0; i < 64; i += kF32Lanes) bits |= less(load(words + i), bounds) << i;
  return bits;
}

// The bits of [64 * word, 64 * word + 63] that are below n.
static inline uint64_t first(int64_t n, int64_t word) {
  const int64_t rest = n - 64 * word;
  return rest >= 64 ? ~uint64_t{0} : rest > 0 ? (uint64_t{1} << rest) - 1 : 0;
}

static inline int64_t count(uint64_t bits) { return __builtin_popcountll(bits); }

// Those of `from` with the k smallest words (of equal words the first ones) are added to `chosen`; k is at
// most their number.
static void choose(const uint32_t* words, const uint64_t* from, int64_t n_words, int64_t k,
                   uint64_t* chosen) {
  // No more than k lie below `low` and no fewer below `high`.
  uint64_t low = 0, high = uint64_t{1} << 32;
  int64_t n_low = 0, n_high = 0;
  for (int64_t w = 0; w < n_words; ++w) n_high += count(from[w]);
  if (n_high == k) low = high, n_low = n_high;
  for (int round = 1; n_low < k && high - low > 1; ++round) {
    // The words are uniform, so that few rounds suffice; halving bounds their number whatever they are.
    const uint64_t ahead = static_cast<uint64_t>(2 * (k - n_low) + 1), all = 2 * (n_high - n_low + 1);
    uint64_t bound = low + (round % 4 ? (high - low) * ahead / all : (high - low) / 2);
    bound = bound <= low ? low + 1 : bound >= high ? high - 1 : bound;
    int64_t n = 0;
    for (int64_t w = 0; w < n_words; ++w) n += count(from[w] & below(words + 64 * w, bound));
    if (n <= k) {
      low = bound, n_low = n;
    } else {
      high = bound, n_high = n;
    }
  }
  for (int64_t w = 0; w < n_words; ++w) {
    const uint64_t lower = below(words + 64 * w, low);
    chosen[w] |= from[w] & lower;
    for (uint64_t equal = n_low < k ? from[w] & ~lower & below(words + 64 * w, low + 1) : 0;
         equal && n_low < k; equal &= equal - 1, ++n_low)
      chosen[w] |= equal & (~equal + 1);
  }
}

// Every bit is followed by `length` - 1 others.
static void spread(uint64_t* bits, int64_t n_words, int64_t length) {
  length = smaller(length, 64 * n_words);
  for (int64_t done = 1, by; done < length; done += by) {
    by = smaller(done, length - done);
    const int64_t words = by / 64, rest = by % 64;
    for (int64_t w = n_words - 1; w >= words; --w) {
      uint64_t from = bits[w - words] << rest;
      if (rest && w > words) from |= bits[w - words - 1] >> (64 - rest);
      bits[w] |= from;
    }
  }
}

// One thread's scratch. Where few tokens are valid, spans may start behind the last one.
struct Scratch {
  int64_t n_words;
  uint32_t *words, *counts;
  uint64_t *from, *chosen;
  int64_t bytes;

  Scratch(const SpanMaskArgs& a, void* base) : n_words(span_mask_words(a.n_tokens + 2)) {
    Arena arena(base);
    words = arena.take<uint32_t>(64 * n_words + kPhiloxSlack);
    counts = arena.take<uint32_t>(4 * (kSegments + kPhiloxAtOnce));
    from = arena.take<uint64_t>(n_words);
    chosen = arena.take<uint64_t>(n_words);
    bytes = arena.bytes();
  }
};

struct SpanMasker {
  const SpanMaskArgs& a;
  Scratch w;

  SpanMasker(const SpanMaskArgs& args, void* base) : a(args), w(args, base) {}

  int64_t n_words() const { return span_mask_words(a.n_tokens); }
  int64_t valid(int64_t b) const {
    return a.lengths ? larger(0, smaller(a.lengths[b], a.n_tokens)) : a.n_tokens;
  }

  void draw(int64_t b, Purpose purpose, int64_t n) const {
    philox_fill(make_stream(a.seed, a.step, a.sample_ids[b], purpose), 0, (n + 3) / 4, w.words);
  }

  // The tokens under the first n of the starts, in their random order; returns how many there are.
  int64_t cover(int64_t n, int64_t n_starts, int64_t n_valid, uint64_t* covered) const {
    for (int64_t i = 0; i < w.n_words; ++i) w.from[i] = first(n_starts, i);
    memset(w.chosen, 0, sizeof(uint64_t) * w.n_words);
    choose(w.words, w.from, w.n_words, n, w.chosen);
    spread(w.chosen, w.n_words, a.length);
    int64_t n_covered = 0;
    for (int64_t i = 0; i < n_words(); ++i) n_covered += count(covered[i] = w.chosen[i] & first(n_valid, i));
    return n_covered;
  }

  void cover_segment(int64_t b, uint32_t word) const {
    const int64_t n_valid = valid(b);
    const double u = word * 0x1p-32;
    const double expected = a.prob * static_cast<double>(n_valid) / static_cast<double>(a.length) + u;
    const int64_t n_spans = larger(2, static_cast<int64_t>(expected));
    const int64_t n_starts = larger(n_valid - a.length, n_spans + 1);
    draw(b, Purpose::span_start, n_starts);
    uint64_t* covered = a.covered + b * n_words();
    a.n_covered[b] = cover(n_spans, n_starts, n_valid, covered);
    if (a.n_covered[b] >= a.at_least) return;
    // The fewest starts that cover enough.
    int64_t too_few = n_spans, enough = n_starts;
    while (enough - too_few > 1) {
      const int64_t n = (too_few + enough) / 2;
      (cover(n, n_starts, n_valid, covered) < a.at_least ? too_few : enough) = n;
    }
    a.n_covered[b] = cover(enough, n_starts, n_valid, covered);
  }

  void cover(int64_t begin, int64_t end) const {
    for (int64_t b = begin; b < end; b += kSegments) {
      const int64_t n = smaller(end - b, kSegments);
      philox_samples(a.seed, a.step, Purpose::span_count, a.sample_ids + b, n, 1, w.counts);
      for (int64_t i = 0; i < n; ++i) cover_segment(b + i, w.counts[4 * i]);
    }
  }

  // Covered tokens in random order, then other valid ones in theirs, then padding: the first n_masked.
  void cut_segment(int64_t b) const {
    const int64_t n = n_words(), n_valid = valid(b), n_covered = a.n_covered[b], wanted = a.n_masked;
    const uint64_t* covered = a.covered + b * n;
    if (wanted >= n_valid) {
      for (int64_t i = 0; i < n; ++i) w.chosen[i] = first(wanted, i);
    } else {
      draw(b, Purpose::span_cut, a.n_tokens);
      const bool some = wanted <= n_covered;
      for (int64_t i = 0; i < n; ++i) {
        w.from[i] = some ? covered[i] : first(n_valid, i) & ~covered[i];
        w.chosen[i] = some ? 0 : covered[i];
      }
      choose(w.words, w.from, n, some ? wanted : wanted - n_covered, w.chosen);
    }
    write(w.chosen, a.index + b * wanted, a.mask + b * a.n_tokens);
  }

  // Bits t to t + 7 in a byte each.
  static uint64_t eight(const uint64_t* bits, int64_t t) {
    uint64_t bytes = (bits[t / 64] >> t % 64 & 0xFF) * 0x0101010101010101u & 0x8040201008040201u;
    bytes = (bytes + 0x7F7F7F7F7F7F7F7Fu) >> 7 & 0x0101010101010101u;
    return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? bytes : __builtin_bswap64(bytes);
  }

  void write(const uint64_t* bits, int32_t* index, bool* mask) const {
    int64_t t = 0;
    for (; t + 8 <= a.n_tokens; t += 8) {
      const uint64_t bytes = eight(bits, t);
      memcpy(mask + t, &bytes, sizeof bytes);
    }
    const uint64_t bytes = t < a.n_tokens ? eight(bits, t) : 0;
    memcpy(mask + t, &bytes, static_cast<size_t>(a.n_tokens - t));
    for (int64_t i = 0; i < n_words(); ++i)
      for (uint64_t rest = bits[i]; rest; rest &= rest - 1)
        *index++ = static_cast<int32_t>(64 * i + __builtin_ctzll(rest));
  }
};

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

int64_t span_mask_scratch(const SpanMaskArgs& args) { return Scratch(args, nullptr).bytes; }

void span_mask(const SpanMaskArgs& args, SpanMaskPass pass, int64_t begin, int64_t end, void* scratch) {
  const SpanMasker masker(args, scratch);
  if (pass == SpanMaskPass::cover) return masker.cover(begin, end);
  for (int64_t b = begin; b < end; ++b) masker.cut_segment(b);
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
