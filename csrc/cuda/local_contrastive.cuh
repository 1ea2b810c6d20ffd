// Local contrastive loss, forward and backward: one launch each, one thread block per 64 tokens of a segment
// (and side, backward). With x the rows of a tile of "own" tokens and y those of a tile of "other" tokens,
// the block forms x y^T on tensor cores from raw rows, scales it to cosines by the inverse norms, and counts
// in shared memory how often a token of one tile drew one of the other; nothing of this leaves the chip. M
// and D are unbounded: tiles of others come one after another, rows in chunks of 64 columns through a ring of
// cp.async stages.
//
// Forward: own = predictions, other = targets; a running logsumexp per row.
// Backward: with w_ij = grad_i / temperature * (n_ij exp(s_ij - lse_i) - [i == j]), where the positive counts
// once,
//   grad of p_i = tangent(sum_j w_ij t_j / |t_j|) / |p_i|, and grad of t_j likewise with the roles exchanged.
// The draws are made anew from their counters. All sums have a fixed order: the result is deterministic.
#pragma once
#include "../common/philox.h"
#include "cosines.cuh"
#include "local_contrastive.h"
#include "mma_tiles.cuh"
#include "shared_arena.cuh"

namespace ecgfast::cuda {

constexpr uint32_t kExcluded = ~0u;  // in place of a count: drawn, but with the positive's target
constexpr int kGroupChunks =
    2;  // chunks of output columns that a backward block holds in registers at a time

// 64 KiB for all dtypes: with the rest, within the 99 KiB of sm_86, sm_89 and sm_120.
template <typename T>
constexpr int kStages = 8 / static_cast<int>(sizeof(T));

// Tokens first .. first + count - 1 of a segment, at most kTile.
struct Span {
  int first, count;
};

__host__ __device__ inline int n_tiles(int tokens) { return divide_up<int>(tokens, kTile); }

__device__ inline Span tile_span(int tile, int tokens) {
  return {tile * kTile, min(kTile, tokens - tile * kTile)};
}

template <typename T>
__device__ Rows<T> tile_rows(const void* matrix, const LocalContrastive& in, int segment, Span span,
                             bool aligned) {
  const int64_t first = static_cast<int64_t>(segment) * in.tokens + span.first;
  return {static_cast<const T*>(matrix) + first * in.width, span.count, in.width, aligned};
}

// Shared memory that both passes use.
template <typename T>
struct TileMemory {
  T* chunks;  // kStages pairs (x, y)
  uint32_t*
      counts;  // [kTile][kPitch<float>]: draws by (own, other); backward turns them into weights in place
  uint32_t *own_key, *other_key;
  float *own_scale, *other_scale;  // inverse norms
  __host__ __device__ explicit TileMemory(SharedArena& arena)
      : chunks(arena.take<T>(2 * kStages<T> * kChunkSize<T>)),
        counts(arena.take<uint32_t>(kTile * kPitch<float>)),
        own_key(arena.take<uint32_t>(kTile)),
        other_key(arena.take<uint32_t>(kTile)),
        own_scale(arena.take<float>(kTile)),
        other_scale(arena.take<float>(kTile)) {}

  __device__ T* x(int stage) const { return chunks + 2 * stage * kChunkSize<T>; }
  __device__ T* y(int stage) const { return chunks + (2 * stage + 1) * kChunkSize<T>; }
};

// The ring of stages that brings the chunks of two row tiles.
template <typename T>
class ChunkRing {
 public:
  __device__ ChunkRing(const TileMemory<T>& memory, const Rows<T>& x, const Rows<T>& y)
      : memory_(memory), x_(x), y_(y), n_chunks_(divide_up<int>(x.width, kTile)) {}

  __device__ void start() const {
#pragma unroll 1
    for (int c = 0; c < kStages<T>; ++c) load(c);
  }

  // Calls use(x, y) for every chunk, after a barrier each time; all threads take part.
  template <typename Use>
  __device__ void each(Use use) const {
#pragma unroll 1
    for (int c = 0; c < n_chunks_; ++c) {
      ptx::cp_async_wait<kStages<T> - 1>();
      __syncthreads();
      use(memory_.x(c % kStages<T>), memory_.y(c % kStages<T>));
      if (c + kStages<T> < n_chunks_) __syncthreads();
      load(c + kStages<T>);
    }
  }

 private:
  // An empty group beyond the last chunk keeps the count of groups.
  __device__ void load(int c) const {
    if (c < n_chunks_) {
      load_chunk(memory_.x(c % kStages<T>), x_, c * kTile);
      load_chunk(memory_.y(c % kStages<T>), y_, c * kTile);
    }
    ptx::cp_async_commit();
  }

  const TileMemory<T>& memory_;
  const Rows<T>&x_, &y_;
  int n_chunks_;
};

// What tells tokens apart at little cost: equal targets have equal keys.
__device__ inline uint32_t code_key(const LocalContrastive& in, int64_t token) {
  return in.groups ? static_cast<uint32_t>(in.codes[token * in.groups]) : 0;
}

// Whether two tokens have the same target.
template <typename T>
__device__ bool same_target(const LocalContrastive& in, int64_t a, int64_t b) {
  if (in.codes) {
    for (int g = 0; g < in.groups; ++g)
      if (in.codes[a * in.groups + g] != in.codes[b * in.groups + g]) return false;
    return true;
  }
  const T* targets = static_cast<const T*>(in.targets);
  for (int d = 0; d < in.width; ++d)
    if (to_float(targets[a * in.width + d]) != to_float(targets[b * in.width + d])) return false;
  return true;
}

// Counts the draws that tokens of `anchors` make of tokens of `drawn`, at counts[anchor * step + other *
// other_step]. Begins and ends without a barrier but has one inside. A given index that is no token marks its
// anchor in `invalid`.
__device__ inline void count_draws(const LocalContrastive& in, int segment, Span anchors, Span drawn,
                                   uint32_t* counts, int step, int other_step, uint32_t* invalid) {
  for (int v = threadIdx.x; v < kTile * kTile; v += kThreads) {
    const int i = v / kTile, j = v % kTile;
    const bool others =
        in.use_all && i < anchors.count && j < drawn.count && anchors.first + i != drawn.first + j;
    counts[i * step + j * other_step] = others;
  }
  __syncthreads();
  const auto add = [&](int anchor, uint32_t token) {
    const uint32_t j = token - static_cast<uint32_t>(drawn.first);
    if (j < static_cast<uint32_t>(drawn.count)) atomicAdd(&counts[anchor * step + j * other_step], 1u);
  };
  if (in.use_all) return;
  const uint32_t draws = in.draws, tokens = in.tokens;
  const uint32_t begin = anchors.first * draws,
                 end = begin + anchors.count * draws;  // of the segment's elements
  if (in.negative_index) {
    const int64_t base = static_cast<int64_t>(segment) * tokens * draws;
    for (uint32_t e = begin + threadIdx.x; e < end; e += kThreads) {
      const int64_t token = in.index_is_64 ? static_cast<const int64_t*>(in.negative_index)[base + e]
                                           : static_cast<const int32_t*>(in.negative_index)[base + e];
      const int anchor = e / draws - anchors.first;
      if (token >= 0 && token < tokens)
        add(anchor, static_cast<uint32_t>(token));
      else if (invalid)
        atomicOr(&invalid[anchor], 1u);
    }
  } else if (tokens > 1) {
    const Stream stream = make_stream(in.rng[0], in.rng[1], in.sample_ids[segment], Purpose::negatives);
    for (uint32_t index = begin / 4 + threadIdx.x; index * 4 < end; index += kThreads) {
      const Words words = block(stream, index);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const uint32_t e = index * 4 + n;
        if (e < begin || e >= end) continue;
        const uint32_t anchor = e / draws, j = bounded(words.v[n], tokens - 1);
        add(anchor - anchors.first, j + (j >= anchor));
      }
    }
  }
}

// Marks the draws whose target is the positive's. Needs the keys and counts of the tile to be complete.
template <typename T>
__device__ void exclude_equal(const LocalContrastive& in, int64_t token0, Span own, Span other,
                              const TileMemory<T>& memory) {
  const int j = threadIdx.x % kTile;
  if (j >= other.count) return;
  const uint32_t key = memory.other_key[j];
#pragma unroll 1
  for (int i = threadIdx.x / kTile; i < own.count; i += kThreads / kTile) {
    if (memory.own_key[i] != key) continue;
    uint32_t& count = memory.counts[i * kPitch<float> + j];
    if (count && same_target<T>(in, token0 + own.first + i, token0 + other.first + j)) count = kExcluded;
  }
}

// Of one row: the running logsumexp of the positive and the negatives, the extremes of the draws.
struct RowState {
  float shift = kNothing, sum = 0.0f;
  float most = -kInfinity, least = kInfinity;

  __device__ void merge(const RowState& o) {
    const float top = fmaxf(shift, o.shift);
    sum = sum * expf(shift - top) + o.sum * expf(o.shift - top);
    shift = top;
    most = fmaxf(most, o.most);
    least = fminf(least, o.least);
  }
};

__device__ inline RowState shuffle_xor(const RowState& s, int lanes) {
  RowState r;
  r.shift = __shfl_xor_sync(~0u, s.shift, lanes);
  r.sum = __shfl_xor_sync(~0u, s.sum, lanes);
  r.most = __shfl_xor_sync(~0u, s.most, lanes);
  r.least = __shfl_xor_sync(~0u, s.least, lanes);
  return r;
}

template <typename T>
struct ForwardMemory : TileMemory<T> {
  float* positive;    // s_ii
  uint32_t* invalid;  // rows with a negative index that is no token
  RowState* partial;  // [2][kTile]: of the two halves of a row
  __host__ __device__ explicit ForwardMemory(SharedArena& arena)
      : TileMemory<T>(arena),
        positive(arena.take<float>(kTile)),
        invalid(arena.take<uint32_t>(kTile)),
        partial(arena.take<RowState>(2 * kTile)) {}
};

// Adds to `sum` the squares of a thread's share of the chunks: two threads per row, of x first, then of y.
template <typename T>
__device__ void add_squares(float& sum, const T* x, const T* y) {
  const int row = threadIdx.x / 2 % kTile;
  const T* share = (threadIdx.x < 2 * kTile ? x : y) + row * kPitch<T> + threadIdx.x % 2 * (kTile / 2);
#pragma unroll
  for (int c = 0; c < kTile / 2; c += kVector<T>) {
    const Pack<T, kVector<T>> pack = load_pack<kVector<T>>(share + c);
#pragma unroll
    for (int n = 0; n < kVector<T>; ++n) sum = fmaf(to_float(pack.v[n]), to_float(pack.v[n]), sum);
  }
}

// Turns the sums of squares into the scales in shared memory.
template <typename T>
__device__ void store_scales(const TileMemory<T>& memory, float sum) {
  sum += __shfl_xor_sync(~0u, sum, 1);
  if (threadIdx.x % 2) return;
  const int row = threadIdx.x / 2 % kTile;
  (threadIdx.x < 2 * kTile ? memory.own_scale : memory.other_scale)[row] =
      sum > kMostSquares ? kNan : inverse_norm(sum);
}

// Puts the keys of a tile's targets into shared memory. With the own tile, also the keys of the own tokens,
// and the norms into the result.
template <typename T>
__device__ void store_keys(const LocalContrastive& in, int64_t token0, Span other, bool is_own,
                           const TileMemory<T>& memory, float* inv_norms) {
  const int i = threadIdx.x;
  if (i >= other.count) return;
  const int64_t token = token0 + other.first + i;
  const uint32_t key = in.codes ? code_key(in, token) : __float_as_uint(memory.other_scale[i]);
  memory.other_key[i] = key;
  if (!is_own) return;
  memory.own_key[i] = key;
  inv_norms[token] = memory.own_scale[i];
  inv_norms[in.batch * in.tokens + token] = memory.other_scale[i];
}

// Adds one tile of others to the states of the thread's rows row() and row() + 8.
template <typename T>
__device__ void add_tile(RowState (&states)[2], const float (&sums)[kFragments][4], float inv_temperature,
                         Span own, Span other, const ForwardMemory<T>& memory, const Place& at) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = at.row() + half * 8;
    if (i >= own.count) continue;
    RowState state;
    float s[2 * kFragments], count[2 * kFragments];
#pragma unroll
    for (int n = 0; n < 2 * kFragments; ++n) {
      const int j = at.column(n / 2) + n % 2;
      s[n] = sums[n / 2][half * 2 + n % 2] * (memory.own_scale[i] * memory.other_scale[j]) * inv_temperature;
      const uint32_t drawn = memory.counts[i * kPitch<float> + j];
      const bool positive = own.first + i == other.first + j, negative = drawn != 0 && drawn != kExcluded;
      if (positive) memory.positive[i] = s[n];
      if (negative) state.most = fmaxf(state.most, s[n]);
      if (drawn) state.least = fminf(state.least, negative ? s[n] : -kInfinity);
      count[n] = positive ? 1.0f : negative ? static_cast<float>(drawn) : 0.0f;
      if (count[n] != 0.0f) state.shift = fmaxf(state.shift, s[n]);
    }
#pragma unroll
    for (int n = 0; n < 2 * kFragments; ++n)
      if (count[n] != 0.0f) state.sum += count[n] * expf(s[n] - state.shift);
    states[half].merge(state);
  }
}

// Joins the states of a row's eight threads and writes the row's results.
template <typename T>
__device__ void finish_rows(RowState (&states)[2], int64_t token0, Span own, const ForwardMemory<T>& memory,
                            const Place& at, const LocalContrastiveResult& out) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    states[half].merge(shuffle_xor(states[half], 1));
    states[half].merge(shuffle_xor(states[half], 2));
    if (at.lane % 4 == 0) memory.partial[at.half * kTile + at.row() + half * 8] = states[half];
  }
  __syncthreads();
  const int i = threadIdx.x;
  if (i >= own.count) return;
  RowState row = memory.partial[i];
  row.merge(memory.partial[kTile + i]);
  const int64_t token = token0 + own.first + i;
  const float positive = memory.positive[i], log_sum = logf(row.sum);
  const float bad = memory.invalid[i] ? kNan : 0.0f;
  out.loss[token] = row.shift - positive + log_sum + bad;
  out.lse[token] = row.shift + log_sum + bad;
  out.correct[token] = positive >= row.most && !(positive <= row.least);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    local_contrastive_forward(LocalContrastive in, LocalContrastiveResult out, bool aligned) {
  SharedArena arena;
  const ForwardMemory<T> memory(arena);
  const Place at;
  const int tiles = n_tiles(in.tokens), own_tile = blockIdx.x % tiles;
  const int segment = blockIdx.x / tiles;
  const int64_t token0 = static_cast<int64_t>(segment) * in.tokens;
  const Span own = tile_span(own_tile, in.tokens);
  const Rows<T> x = tile_rows<T>(in.predictions, in, segment, own, aligned);
  RowState states[2];
  const float inverse = inverse_temperature(in.inv_temperature, in.temperature);
  if (threadIdx.x < kTile) memory.invalid[threadIdx.x] = 0;
  // The own tile comes first: it gives the norms of the own targets, which tell equal vectors from others.
  for (int t = 0; t < tiles; ++t) {
    const Span other = tile_span((own_tile + t) % tiles, in.tokens);
    const Rows<T> y = tile_rows<T>(in.targets, in, segment, other, aligned);
    const ChunkRing<T> ring(memory, x, y);
    __syncthreads();
    ring.start();
    count_draws(in, segment, own, other, memory.counts, kPitch<float>, 1, t == 0 ? memory.invalid : nullptr);
    float sums[kFragments][4] = {}, squares = 0.0f;
    ring.each([&](const T* x_chunk, const T* y_chunk) {
      add_gram(sums, x_chunk, y_chunk, at);
      add_squares(squares, x_chunk, y_chunk);
    });
    store_scales(memory, squares);
    __syncthreads();
    store_keys(in, token0, other, t == 0, memory, out.inv_norms);
    __syncthreads();
    exclude_equal(in, token0, own, other, memory);
    __syncthreads();
    add_tile(states, sums, inverse, own, other, memory, at);
  }
  finish_rows(states, token0, own, memory, at, out);
}

template <typename T>
struct BackwardMemory : TileMemory<T> {
  float *lse, *grad;       // of the tile that holds the anchors
  float* radial;           // [2][kTile]: of the two halves of a row
  float* inv_temperature;  // one number, here because registers are short
  __host__ __device__ explicit BackwardMemory(SharedArena& arena)
      : TileMemory<T>(arena),
        lse(arena.take<float>(kTile)),
        grad(arena.take<float>(kTile)),
        radial(arena.take<float>(2 * kTile)),
        inv_temperature(arena.take<float>(1)) {}
};

// One block's part: the gradient of `own` rows, predictions (the anchors of the draws) or targets.
template <typename T, bool kOwnIsAnchor>
struct BackwardTask {
  const LocalContrastive& in;
  const LocalContrastiveSaved& saved;
  const BackwardMemory<T>& memory;
  int segment;
  int64_t token0;
  Span own;
  Rows<T> x;
  Place at;

  // Puts w_ij / (|other| temperature) into the counts' place, own tokens down, and, the first time, adds w_ij
  // cos_ij / temperature to the rows' radial sums. Leaves the last stages of the ring in shared memory.
  __device__ void weigh(Span other, const Rows<T>& y, float (&radial)[2], bool first) const {
    const ChunkRing<T> ring(memory, x, y);
    const Span anchors = kOwnIsAnchor ? own : other, drawn = kOwnIsAnchor ? other : own;
    __syncthreads();
    ring.start();
    load_statistics(other, anchors);
    count_draws(in, segment, anchors, drawn, memory.counts, kOwnIsAnchor ? kPitch<float> : 1,
                kOwnIsAnchor ? 1 : kPitch<float>, nullptr);
    float sums[kFragments][4] = {};
    ring.each([&](const T* x_chunk, const T* y_chunk) { add_gram(sums, x_chunk, y_chunk, at); });
    exclude_equal(in, token0, own, other, memory);
    __syncthreads();
    const float inverse = *memory.inv_temperature;
#pragma unroll
    for (int n = 0; n < 4 * kFragments; ++n) {
      const int fragment = n / 4, half = n % 4 / 2;
      const int row = at.row() + half * 8, column = at.column(fragment) + n % 2;
      // Rounded as in the forward pass: where nothing was drawn, the exponential below is exactly one.
      const float logit =
          sums[fragment][n % 4] * (memory.own_scale[row] * memory.other_scale[column]) * inverse;
      uint32_t& place = memory.counts[row * kPitch<float> + column];
      const float w = weight(row, column, other, place, logit);
      radial[half] += first ? w * logit : 0.0f;
      place = __float_as_uint(w * inverse * memory.other_scale[column]);
    }
    __syncthreads();
  }

  // Keys, scales and the anchors' statistics of both tiles; zeros beyond the segment.
  __device__ void load_statistics(Span other, Span anchors) const {
    const int64_t n_tokens = in.batch * in.tokens;
    const float* own_norms = saved.inv_norms + (kOwnIsAnchor ? 0 : n_tokens);
    const float* other_norms = saved.inv_norms + (kOwnIsAnchor ? n_tokens : 0);
    const int n = threadIdx.x % kTile;
    const int64_t own_token = token0 + own.first + n, other_token = token0 + other.first + n;
    const int64_t anchor = token0 + anchors.first + n;
    switch (threadIdx.x / kTile) {
      case 0:
        memory.own_scale[n] = n < own.count ? own_norms[own_token] : 0.0f;
        memory.own_key[n] = n < own.count ? key(own_token) : 0;
        break;
      case 1:
        memory.other_scale[n] = n < other.count ? other_norms[other_token] : 0.0f;
        memory.other_key[n] = n < other.count ? key(other_token) : 0;
        break;
      case 2:
        memory.lse[n] = n < anchors.count ? saved.lse[anchor] : 0.0f;
        memory.grad[n] = n < anchors.count ? saved.grad_loss[anchor] : 0.0f;
        break;
    }
  }

  __device__ uint32_t key(int64_t token) const {
    return in.codes ? code_key(in, token) : __float_as_uint(saved.inv_norms[in.batch * in.tokens + token]);
  }

  // w_ij for an own and an other token; i is the one that is an anchor.
  __device__ float weight(int row, int column, Span other, uint32_t count, float logit) const {
    if (row >= own.count || column >= other.count) return 0.0f;
    const bool positive = own.first + row == other.first + column;
    if (!positive && (count == 0 || count == kExcluded)) return 0.0f;
    const int anchor = kOwnIsAnchor ? row : column;
    const float p = expf(logit - memory.lse[anchor]);
    return memory.grad[anchor] * (positive ? p - 1.0f : static_cast<float>(count) * p);
  }

  // Adds the weights times chunks first .. first + kGroupChunks - 1 of y. The ring still holds them if all of
  // y fits in it.
  __device__ void add_group(float (&grads)[kGroupChunks][kFragments][4], const Rows<T>& y, int first) const {
    const int n_chunks = divide_up<int>(in.width, kTile);
    const bool resident = n_chunks <= kStages<T>;
    static_assert(kGroupChunks <= 2 * kStages<T>, "the ring's buffers hold a group");
    if (!resident) {
      __syncthreads();
      for (int c = 0; c < kGroupChunks && first + c < n_chunks; ++c)
        load_chunk(memory.chunks + c * kChunkSize<T>, y, (first + c) * kTile);
      ptx::cp_async_commit();
      ptx::cp_async_wait<0>();
      __syncthreads();
    }
    const float* weights = reinterpret_cast<const float*>(memory.counts);
#pragma unroll
    for (int c = 0; c < kGroupChunks; ++c)
      if (first + c < n_chunks)
        add_product(grads[c], weights, resident ? memory.y(first + c) : memory.chunks + c * kChunkSize<T>,
                    y.count, at);
  }

  // The own rows of the gradient.
  __device__ T* gradient(const LocalContrastiveGradients& out) const {
    return static_cast<T*>(kOwnIsAnchor ? out.predictions : out.targets) + (token0 + own.first) * in.width;
  }

  // Out of shared memory, where join() left them, so that no register holds them until the end.
  __device__ void write_moments(float* moments) const {
    const int row = threadIdx.x;
    if (row >= own.count) return;
    moments[token0 + own.first + row] = in.width > 0 ? memory.radial[row] + memory.radial[kTile + row] : 0.0f;
  }

  // Takes out of float32 gradients what rounding left along the own vectors: where tokens are alike, the
  // gradients are small beside the sums that they are differences of.
  __device__ void straighten(float* grad) const {
    __syncthreads();
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < own.count; row += kThreads / 32) {
      float* own_grad = grad + row * in.width;
      const float* vector = reinterpret_cast<const float*>(x.data) + row * in.width;
      const float scale = memory.own_scale[row];
      float along = 0.0f;
      for (int c = lane; c < in.width; c += 32) along = fmaf(own_grad[c], vector[c] * scale, along);
      along = warp_sum(along) * scale;
      for (int c = lane; c < in.width; c += 32) own_grad[c] -= along * vector[c];
    }
  }

  // Sums the rows' radial parts over the threads that share a row.
  __device__ void join(float (&radial)[2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      radial[half] += __shfl_xor_sync(~0u, radial[half], 1);
      radial[half] += __shfl_xor_sync(~0u, radial[half], 2);
      if (at.lane % 4 == 0) memory.radial[at.half * kTile + at.row() + half * 8] = radial[half];
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = at.row() + half * 8;
      radial[half] = memory.radial[row] + memory.radial[kTile + row];
    }
  }

  // grad = (sum - radial x / |x|) / |x|
  __device__ void write(T* grad, const float (&sums)[kFragments][4], int column,
                        const float (&radial)[2]) const {
    column += at.half * 32 + at.lane % 4 * 8;
    const int count = min(8, in.width - column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = at.row() + half * 8;
      if (row >= own.count || count <= 0) continue;
      const float factor = gradient_factor(memory.own_scale[row]), back = radial[half] * factor;
      const int offset = row * in.width + column;
      const auto value = [&](T from, int n) {
        return from_float<T>((sums[n % 4][half * 2 + n / 4] - back * to_float(from)) * factor);
      };
      if (x.aligned && count == 8) {
#pragma unroll
        for (int v = 0; v < 8; v += kVector<T>) {
          Pack<T, kVector<T>> pack = load_pack<kVector<T>>(x.data + offset + v);
#pragma unroll
          for (int n = 0; n < kVector<T>; ++n) pack.v[n] = value(pack.v[n], v + n);
          store_pack(grad + offset + v, pack);
        }
      } else {
#pragma unroll
        for (int n = 0; n < 8; ++n)
          if (n < count) grad[offset + n] = value(x.data[offset + n], n);
      }
    }
  }
};

template <typename T, bool kOwnIsAnchor>
__device__ void backward_tile(const LocalContrastive& in, const LocalContrastiveSaved& saved,
                              const BackwardMemory<T>& memory, int segment, int tile,
                              const LocalContrastiveGradients& out, bool aligned) {
  const int tiles = n_tiles(in.tokens), n_chunks = divide_up<int>(in.width, kTile);
  const int64_t token0 = static_cast<int64_t>(segment) * in.tokens;
  const Span own = tile_span(tile, in.tokens);
  const Rows<T> x = tile_rows<T>(kOwnIsAnchor ? in.predictions : in.targets, in, segment, own, aligned);
  // Before the sums exist: a division needs many registers.
  if (threadIdx.x == 0) *memory.inv_temperature = inverse_temperature(in.inv_temperature, in.temperature);
  const BackwardTask<T, kOwnIsAnchor> task{in, saved, memory, segment, token0, own, x, Place()};
  float radial[2] = {};
  for (int first = 0; first < n_chunks; first += kGroupChunks) {
    float grads[kGroupChunks][kFragments][4] = {};
    for (int t = 0; t < tiles; ++t) {
      const Span other = tile_span(t, in.tokens);
      const Rows<T> y = tile_rows<T>(kOwnIsAnchor ? in.targets : in.predictions, in, segment, other, aligned);
      // The weights of a single tile serve all groups of columns.
      if (first == 0 || tiles > 1) task.weigh(other, y, radial, first == 0);
      task.add_group(grads, y, first);
    }
    if (first == 0) task.join(radial);
#pragma unroll
    for (int c = 0; c < kGroupChunks; ++c)
      task.write(task.gradient(out), grads[c], (first + c) * kTile, radial);
  }
  if (kOwnIsAnchor && out.moments) task.write_moments(out.moments);
  if constexpr (std::is_same_v<T, float>) task.straighten(task.gradient(out));
}

// Blocks: segment, tile, side (predictions, targets), the last running fastest.
template <typename T>
__global__ void __launch_bounds__(kThreads,
                                  kPrecise<T> ? 1 : 2)  // float32 splits operands: more registers
    local_contrastive_backward(LocalContrastive in, LocalContrastiveSaved saved,
                               LocalContrastiveGradients out, bool aligned) {
  SharedArena arena;
  const BackwardMemory<T> memory(arena);
  const int tiles = n_tiles(in.tokens), tile = blockIdx.x / 2 % tiles;
  const int segment = blockIdx.x / 2 / tiles;
  if (blockIdx.x % 2 == 0)
    backward_tile<T, true>(in, saved, memory, segment, tile, out, aligned);
  else
    backward_tile<T, false>(in, saved, memory, segment, tile, out, aligned);
}

}  // namespace ecgfast::cuda
