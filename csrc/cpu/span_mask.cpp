#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "masks.h"

namespace ecgfast {

struct SpanMasker::State {
  SpanMaskArgs args;
  int64_t valid = 0;
  std::vector<uint32_t> words;
  std::vector<uint64_t> keys;  // a random key above, what it is for below: sorting draws without replacement
  std::vector<uint8_t> group;

  // Words 0..n-1 of one purpose.
  const uint32_t* draw(int64_t segment, Purpose purpose, int64_t n) {
    const int64_t n_blocks = (n + 3) / 4;
    words.resize(std::max<size_t>(words.size(), 4 * n_blocks + kPhiloxSlack));
    const Stream stream = make_stream(args.seed, args.step, args.sample_ids[segment], purpose);
    kernels().philox_fill(stream, 0, n_blocks, words.data());
    return words.data();
  }
};

SpanMasker::SpanMasker(const SpanMaskArgs& args) : state_(new State{args, 0, {}, {}, {}}) {}
SpanMasker::~SpanMasker() { delete state_; }

int64_t SpanMasker::cover(int64_t segment, int64_t at_least) {
  State& s = *state_;
  const SpanMaskArgs& a = s.args;
  s.valid = a.lengths ? std::clamp<int64_t>(a.lengths[segment], 0, a.n_tokens) : a.n_tokens;
  s.group.assign(a.n_tokens, 2);
  std::fill_n(s.group.begin(), s.valid, uint8_t{1});

  const double u = s.draw(segment, Purpose::span_count, 1)[0] * 0x1p-32;
  const double expected = a.prob * static_cast<double>(s.valid) / static_cast<double>(a.length) + u;
  const int64_t n_spans = std::max<int64_t>(2, static_cast<int64_t>(std::floor(expected)));
  const int64_t n_starts = std::max(s.valid - a.length, n_spans + 1);

  const uint32_t* words = s.draw(segment, Purpose::span_start, n_starts);
  s.keys.resize(n_starts);
  for (int64_t i = 0; i < n_starts; ++i)
    s.keys[i] = static_cast<uint64_t>(words[i]) << 32 | static_cast<uint64_t>(i);
  std::partial_sort(s.keys.begin(), s.keys.begin() + n_spans, s.keys.end());

  int64_t covered = 0;
  for (int64_t k = 0; k < n_starts && (k < n_spans || covered < at_least); ++k) {
    if (k == n_spans) std::sort(s.keys.begin() + n_spans, s.keys.end());
    const int64_t start = static_cast<uint32_t>(s.keys[k]);
    for (int64_t t = start; t < s.valid && t - start < a.length; ++t) {
      covered += s.group[t];
      s.group[t] = 0;
    }
  }
  return covered;
}

void SpanMasker::cut(int64_t segment, int64_t n, int32_t* index, bool* mask) {
  State& s = *state_;
  const int64_t n_tokens = s.args.n_tokens;
  const uint32_t* words = s.draw(segment, Purpose::span_cut, n_tokens);
  std::vector<uint64_t>& order = s.keys;
  order.resize(n_tokens);
  // Covered tokens first, then other valid ones, both in random order; then padding in its own.
  for (int64_t t = 0; t < n_tokens; ++t) {
    const uint64_t key = s.group[t] == 2 ? static_cast<uint64_t>(t) : words[t];
    // 2 bits of group, 32 of key, 30 of index: n_tokens stays below 2^30.
    order[t] = static_cast<uint64_t>(s.group[t]) << 62 | key << 30 | static_cast<uint64_t>(t);
  }
  if (n < n_tokens) std::nth_element(order.begin(), order.begin() + n, order.end());
  std::memset(mask, 0, n_tokens);
  for (int64_t k = 0; k < n; ++k) mask[order[k] & 0x3FFFFFFFu] = true;
  for (int64_t t = 0; t < n_tokens; ++t)
    if (mask[t]) *index++ = static_cast<int32_t>(t);
}

}  // namespace ecgfast
