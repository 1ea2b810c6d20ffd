// From the sums of tiles to the loss of pairs of leads; global_contrastive_pairs.cuh says how.
#pragma once
#include "global_contrastive_pairs.cuh"

namespace ecgfast::cuda {

// Of the rows of both sides of each pair, [Q, N + N'].
struct PairRowSums {
  float* above;            // log2 of the sum, less log2(e) / temperature
  float *amounts, *terms;  // with `negatives`: sums of z / (exp(s_p) + z), and of log2(exp(s_p) + z) - s_p
  float* negatives;        // with `negatives`: above, with log2(e) / temperature
  const int* counts;       // of positives that tiles found
  int* all_counts;         // of all positives
};

// A row of a side of a pair, by number.
struct PairRow {
  int64_t q, i, other;  // other: the number of row i of the other side
  int side;
  __device__ PairRow(int64_t number, int64_t rows_a, int64_t rows_b) {
    const int64_t all = rows_a + rows_b, at = number % all;
    q = number / all;
    side = at >= rows_a;
    i = side ? at - rows_a : at;
    other = q * all + (side ? i : rows_a + i);
  }
};

struct PairPartials {
  const Partial* partial[2];
  int n[2];  // of a pair's row
};

// A thread per row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    pair_logsumexps(LeadRows<T> in, PairPartials from, PairRowSums out, int64_t n) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (number >= n) return;
  const PairRow row(number, in.size[0], in.size[1]);
  const bool self = in.pairs[row.q].self;
  Partial total{kNothing, 0.0f};
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    if (side != row.side && !self) continue;
    const Partial* partial = from.partial[side] + row.q * from.n[side] * in.size[side] + row.i;
#pragma unroll 4
    for (int p = 0; p < from.n[side]; ++p) total = merge(total, partial[p * in.size[side]]);
  }
  const float scale = in.scale();
  const float above = total.y == 0.0f ? -kInfinity : (total.x - scale) + log2f(total.y);
  out.above[number] = above;
  if (out.negatives) out.negatives[number] = above + scale;
  out.all_counts[number] = out.counts[number] + (self ? out.counts[row.other] : 0);
}

// With `negatives`. A warp per row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) positive_terms(LeadRows<T> in, PairRowSums sums, int64_t n) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * (kRowThreads / 32) + threadIdx.x / 32;
  if (number >= n) return;
  const int lane = threadIdx.x % 32;
  const PairRow row(number, in.size[0], in.size[1]);
  float amount = 0.0f, terms = 0.0f;
  if (sums.all_counts[number]) {
    const Pair pair = in.pairs[row.q];
    const bool turned = row.side;
    const Matrix<T> own = turned ? in.template rows<1>(pair) : in.template rows<0>(pair),
                    others = turned ? in.template rows<0>(pair) : in.template rows<1>(pair);
    const int64_t own_lead = turned ? pair.lead[1] : pair.lead[0],
                  lead = turned ? pair.lead[0] : pair.lead[1];
    const int64_t* groups = turned ? in.group[0] : in.group[1];
    const float* inv_norms = (turned ? in.inv_norms[0] : in.inv_norms[1]) + lead * others.rows;
    const int64_t group = (turned ? in.group[1] : in.group[0])[row.i];
    const float own_scale =
        (turned ? in.inv_norms[1] : in.inv_norms[0])[own_lead * own.rows + row.i] * in.scale();
    using Element = Stored<T>;
    const Element* x = reinterpret_cast<const Element*>(own.data + row.i * own.pitch);
    const int width = static_cast<int>(own.columns);
#pragma unroll 1
    for (int64_t first = 0; first < others.rows; first += 32) {
      const int64_t j = first + lane;
      const bool positive =
          j < others.rows && groups[j] == group && inv_norms[j] != kAbsent && !(pair.self && j == row.i);
      for (unsigned found = __ballot_sync(~0u, positive); found; found &= found - 1) {
        const int64_t p = first + __ffs(found) - 1;
        const Element* other = reinterpret_cast<const Element*>(others.data + p * others.pitch);
        float product = 0.0f;
#pragma unroll 2
        for (int c = lane * kVector<Element>; c < width; c += 32 * kVector<Element>) {
          const auto left = load_pack<kVector<Element>>(x + c),
                     right = load_pack<kVector<Element>>(other + c);
#pragma unroll
          for (int k = 0; k < kVector<Element>; ++k)
            product = fmaf(to_float(left.v[k]), to_float(right.v[k]), product);
        }
        const float d = sums.negatives[number] - warp_sum(product) * inv_norms[p] * own_scale;
        terms += fmaxf(d, 0.0f) + log1pf(exp2f(-fabsf(d))) * kLog2E;
        amount += 1.0f / (1.0f + exp2f(-d));
      }
    }
  }
  if (lane) return;
  sums.amounts[number] = amount;
  sums.terms[number] = terms;
}

// Of a pair's rows; and of pairs.
struct PairTotals {
  double loss, pairs, typical, typical_rows;
  float most;

  __device__ void add(const PairTotals& o) {
    loss += o.loss;
    pairs += o.pairs;
    typical += o.typical;
    typical_rows += o.typical_rows;
    most = fmaxf(most, o.most);
  }
};

struct PairTotalsMemory {
  PairTotals* threads;
  int* last;
  __host__ __device__ explicit PairTotalsMemory(SharedArena& arena)
      : threads(arena.take<PairTotals>(kRowThreads)), last(arena.take<int>(1)) {}
};

// The sum over the block, for all threads.
__device__ inline PairTotals block_total(const PairTotals& own, const PairTotalsMemory& memory) {
  __syncthreads();
  memory.threads[threadIdx.x] = own;
  for (int half = kRowThreads / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) memory.threads[threadIdx.x].add(memory.threads[threadIdx.x + half]);
  }
  __syncthreads();
  return memory.threads[0];
}

struct PairLossInputs {
  PairList pairs;
  int64_t rows[2];
  PairRowSums sums;
  const float* positive;  // [Q][n_positive]; not with `negatives`
  int n_positive;
  PairTotals* blocks;  // [Q]
  unsigned* ticket;    // clear
  float inv_temperature;
  const float* temperature;

  __device__ float scale() const { return inverse_temperature(inv_temperature, temperature) * kLog2E; }
};

// A block per pair; the last to end sums up what they leave. `shares`, in place of `above`: log2 of a n exp(s
// - lse), less log2(e) s, negated; infinite without positives. n: the number of positives, or what takes its
// place; a: one over the number of positives of the pair.
__global__ void __launch_bounds__(kRowThreads)
    pairs_loss(PairLossInputs in, float* loss, float* weights, float* scalars) {
  SharedArena arena;
  const PairTotalsMemory memory(arena);
  const int64_t q = blockIdx.x, rows = in.rows[0] + in.rows[1];
  const Pair pair = in.pairs[q];
  const float scale = in.scale();
  const bool negatives = in.sums.terms != nullptr;
  PairTotals sums{0.0, 0.0, 0.0, 0.0, 0.0f};
  for (int64_t i = threadIdx.x; i < rows; i += kRowThreads) {
    const int64_t at = q * rows + i;
    const int count = in.sums.all_counts[at];
    if (!count) continue;
    const float above = in.sums.above[at];
    sums.loss += negatives ? static_cast<double>(in.sums.terms[at]) : static_cast<double>(above) * count;
    sums.pairs += count;
    sums.most = fmaxf(sums.most, static_cast<float>(count));
    if (above == -kInfinity) continue;
    sums.typical += static_cast<double>(above) + scale;
    sums.typical_rows += 1.0;
  }
  // Of a lead with itself the tiles have half.
  if (!negatives)
    for (int p = threadIdx.x; p < in.n_positive; p += kRowThreads)
      sums.loss -= (pair.self ? 4.0 : 2.0) * static_cast<double>(in.positive[q * in.n_positive + p]);
  sums = block_total(sums, memory);
  const double share = sums.pairs > 0.0 ? 1.0 / sums.pairs : 0.0;
  const float weight = pair.valid ? static_cast<float>(2.0 * share) : kNan;
  for (int64_t i = threadIdx.x; i < rows; i += kRowThreads) {
    const int64_t at = q * rows + i;
    const int count = in.sums.all_counts[at];
    const float amount = negatives ? in.sums.amounts[at] : static_cast<float>(count);
    in.sums.above[at] = amount == 0.0f ? kInfinity : in.sums.above[at] + scale - log2f(amount * weight);
  }
  if (threadIdx.x == 0) {
    weights[q] = weight;
    sums.loss *= pair.valid ? share * kLn2 : kNan;
    // Gradients of a lead with itself are doubled.
    sums.most *= weight * (pair.self ? 2.0f : 1.0f);
    sums.pairs = share > 0.0;
    in.blocks[q] = sums;
    __threadfence();
    *memory.last = atomicAdd(in.ticket, 1u) + 1 == gridDim.x;
  }
  __syncthreads();
  if (!*memory.last) return;
  __threadfence();
  sums = {0.0, 0.0, 0.0, 0.0, 0.0f};
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kRowThreads) sums.add(in.blocks[b]);
  sums = block_total(sums, memory);
  if (threadIdx.x) return;
  const double pairs = sums.pairs > 1.0 ? sums.pairs : 1.0;
  *loss = static_cast<float>(sums.loss / pairs);
  scalars[0] = static_cast<float>(pairs);
  scalars[1] = sums.most > 0.0f ? exp2f(floorf(log2f(16384.0f / sums.most))) : 1.0f;
  const float typical_rows = static_cast<float>(sums.typical_rows);
  scalars[2] = typical_rows > 0.0f
                   ? static_cast<float>(sums.typical) / typical_rows - log2f(static_cast<float>(in.rows[1]))
                   : 0.0f;
}

// Without pairs.
__global__ void no_pairs(float* loss, float* scalars) {
  *loss = 0.0f;
  scalars[0] = scalars[1] = 1.0f;
  scalars[2] = 0.0f;
}

}  // namespace ecgfast::cuda
