// Span masks, one thread block per sample, all in shared memory. Drawing without replacement is ordering by
// random keys; an element's place in the order is the number of smaller keys, which every thread counts for
// its own elements: N^2 comparisons, for 156 tokens some thousand cycles and few barriers, where sorting
// would take a barrier per step. Bits as in csrc/cpu/span_mask.cpp.
#pragma once
#include "../common/philox.h"
#include "shared_arena.cuh"
#include "span_mask.h"

namespace ecgfast::cuda {

constexpr int kSpanThreads = 256;
constexpr int kNeverTaken = 0x7FFFFFFF;  // the rank of a start that does not exist

struct SpanMemory {
  uint64_t* keys;   // a random key above, what it is for below
  int* rank;        // of the starts in their random order
  int* first;       // [tokens]: the smallest rank of a start whose span covers the token
  uint32_t* words;  // [tokens / 32]: the mask's bits
  int* taken;
  __host__ __device__ SpanMemory(SharedArena& arena, int tokens)
      : keys(arena.take<uint64_t>(tokens + 3)),  // the fewest starts are 3, the most tokens + 1
        rank(arena.take<int>(tokens + 3)),
        first(arena.take<int>(tokens)),
        words(arena.take<uint32_t>((tokens + 31) / 32)),
        taken(arena.take<int>(1)) {}
};

// How many of the n keys are smaller.
template <typename Key>
__device__ int count_below(const Key* keys, int n, Key key) {
  int count = 0;
#pragma unroll 4
  for (int j = 0; j < n; ++j) count += keys[j] < key;
  return count;
}

struct SpanSample {
  const SpanMask& in;
  const SpanMemory& memory;
  int64_t sample;
  int valid;

  __device__ SpanSample(const SpanMask& args, const SpanMemory& shared)
      : in(args), memory(shared), sample(blockIdx.x), valid(args.tokens) {
    if (in.lengths) {
      const int64_t length = in.lengths[sample];
      valid = length < 0 ? 0 : length < in.tokens ? static_cast<int>(length) : in.tokens;
    }
  }

  __device__ Stream stream(Purpose purpose) const {
    return make_stream(in.rng[0], in.rng[1], in.sample_ids[sample], purpose);
  }

  // The same double arithmetic as on the CPU: no sum of a rounded product, so nothing contracts.
  __device__ int n_spans() const {
    const double u = element(stream(Purpose::span_count), 0) * 0x1p-32;
    const int n = static_cast<int>(floor(in.prob * valid / static_cast<double>(in.length) + u));
    return n < 2 ? 2 : n;
  }

  // Ranks the starts and finds each token's first, which other threads may read after a barrier.
  __device__ void order_starts(int spans) const {
    const int64_t room = valid - in.length;
    const int starts = room > spans ? static_cast<int>(room) : spans + 1;
    const Stream draws = stream(Purpose::span_start);
    for (int index = threadIdx.x; index * 4 < starts; index += kSpanThreads) {
      const Words words = block(draws, index);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int start = index * 4 + n;
        if (start < starts) memory.keys[start] = static_cast<uint64_t>(words.v[n]) << 32 | start;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < starts; i += kSpanThreads)
      memory.rank[i] = count_below(memory.keys, starts, memory.keys[i]);
    __syncthreads();
    for (int t = threadIdx.x; t < in.tokens; t += kSpanThreads) {
      int first = kNeverTaken;
      const int begin = t < in.length ? 0 : t - static_cast<int>(in.length) + 1;
      for (int start = begin; start <= t && start < starts && t < valid; ++start)
        first = min(first, memory.rank[start]);
      memory.first[t] = first;
    }
  }

  // Tokens covered by the first `spans` starts, of which a thread reads those that it wrote; ends with a
  // barrier.
  __device__ int covered(int spans) const {
    int count = 0;
    for (int t = 0; t < in.tokens; t += kSpanThreads) {
      const int mine = t + static_cast<int>(threadIdx.x);
      count += __syncthreads_count(mine < in.tokens && memory.first[mine] < spans);
    }
    return count;
  }

  // How many starts cover at least that many tokens, where `spans` don't: all, if none do.
  __device__ int enough(int at_least) const {
    if (threadIdx.x == 0) *memory.taken = kNeverTaken;
    __syncthreads();
    for (int t = threadIdx.x; t < in.tokens; t += kSpanThreads) {
      const int first = memory.first[t];
      if (first != kNeverTaken && count_below(memory.first, in.tokens, first + 1) >= at_least)
        atomicMin(memory.taken, first + 1);
    }
    __syncthreads();
    return *memory.taken;
  }

  // Covered tokens first, then other valid ones, both in random order; then padding in its own.
  __device__ void order_tokens(int taken) const {
    const Stream draws = stream(Purpose::span_cut);
    for (int index = threadIdx.x; index * 4 < in.tokens; index += kSpanThreads) {
      const Words words = block(draws, index);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int t = index * 4 + n;
        if (t >= in.tokens) continue;
        const uint64_t group = t >= valid ? 2 : memory.first[t] < taken ? 0 : 1;
        const uint64_t key = group == 2 ? static_cast<uint64_t>(t) : words.v[n];
        memory.keys[t] = group << 62 | key << 30 | t;
      }
    }
    __syncthreads();
  }

  // The first `masked` tokens of the order: their mask, and their indices in ascending order.
  __device__ void write(int masked, int32_t* index, bool* mask) const {
    for (int round = 0; round < in.tokens; round += kSpanThreads) {
      const int t = round + threadIdx.x;
      const bool chosen = t < in.tokens && count_below(memory.keys, in.tokens, memory.keys[t]) < masked;
      const uint32_t word = __ballot_sync(~0u, chosen);
      if (t >= in.tokens) continue;
      mask[t] = chosen;
      if (t % 32 == 0) memory.words[t / 32] = word;
    }
    __syncthreads();
    for (int t = threadIdx.x; t < in.tokens; t += kSpanThreads) {
      const uint32_t word = memory.words[t / 32], bit = 1u << t % 32;
      if (!(word & bit)) continue;
      int place = __popc(word & (bit - 1));
      for (int w = 0; w < t / 32; ++w) place += __popc(memory.words[w]);
      index[place] = t;
    }
  }
};

__global__ void __launch_bounds__(kSpanThreads) span_mask_covered(SpanMask in, int32_t* covered) {
  SharedArena arena;
  const SpanMemory memory(arena, in.tokens);
  const SpanSample sample(in, memory);
  const int spans = sample.n_spans();
  sample.order_starts(spans);
  const int count = sample.covered(spans);
  if (threadIdx.x == 0) covered[blockIdx.x] = count;
}

__global__ void __launch_bounds__(kSpanThreads)
    span_mask_draw(SpanMask in, int masked, int32_t* index, bool* mask) {
  SharedArena arena;
  const SpanMemory memory(arena, in.tokens);
  const SpanSample sample(in, memory);
  int taken = sample.n_spans();
  sample.order_starts(taken);
  if (sample.covered(taken) < masked) taken = sample.enough(masked);
  sample.order_tokens(taken);
  sample.write(masked, index + static_cast<int64_t>(blockIdx.x) * masked,
               mask + static_cast<int64_t>(blockIdx.x) * in.tokens);
}

}  // namespace ecgfast::cuda
