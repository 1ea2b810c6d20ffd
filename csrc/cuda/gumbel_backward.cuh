// Gumbel quantisation with a hard choice, backward, in one launch whose blocks have one of two tasks.
//
// Logits: a block has 32 rows of a group. With c the group's entries, g a row's gradient, y its noisy logits
// over the temperature, x its logits and m the gradient of mean_probs,
//   grad = p (s - p.s) / temperature + q (m - q.m) / R,  p = softmax(y), s = c g, q = softmax(x).
// s comes from tensor cores, rows and entries passing through a ring of cp.async stages while the noise is
// drawn again; a warp has 16 rows and a quarter of the 320 entries of a tile. s and exp(y) stay in registers,
// so up to 320 entries are done in one go; with more, tiles are computed twice, first for the sums. Entries
// lie in shared memory in an order that gives each thread four neighbouring columns of two mma fragments: one
// Philox block, one vector of logits. Per logit 6 bytes and some 70 instructions: at 7936 x 640 in bfloat16,
// 4 us of an H200's memory and 12 us of its instruction issue, which bounds it.
//
// Codebook: a block adds up the gradients of the rows that chose one of 4 entries, 128 columns of them, found
// by reading all codes of the group. The order of the sum follows from the codes alone. These blocks come
// first and run beside the others, waiting for memory where those compute.
#pragma once
#include "gumbel_rows.cuh"
#include "shared_arena.cuh"

namespace ecgfast::cuda {

constexpr int kTileRows = 32, kQuarters = 4, kTileColumns = 320;
constexpr int kQuarterColumns = kTileColumns / kQuarters;
constexpr int kBackwardStride = 16;  // columns from one pack of a thread to the next
constexpr int kBackwardStages = 3;
static_assert(kPacks * kBackwardStride == kQuarterColumns, "a thread's packs span its warp's columns");

constexpr int kEntriesPerBlock = 4, kEntryColumns = 128;

__host__ __device__ inline uint32_t codebook_parts(const GumbelQuantize& in) {
  return divide_up<int>(in.width, kEntryColumns);
}

// Blocks of a group for the codebook's gradient; they come before those for its rows.
__host__ __device__ inline uint32_t codebook_blocks(const GumbelQuantize& in) {
  return divide_up<int>(in.entries, kEntriesPerBlock) * codebook_parts(in);
}

// Two blocks need more shared memory than a multiprocessor of sm_80, 86, 89 or 120 has, so there one may take
// all registers; everywhere with float32 entries, which are split or rounded.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ / 100 == 9 || __CUDA_ARCH__ / 100 == 10)
template <typename T>
constexpr int kBackwardBlocks = sizeof(T) == 2 ? 2 : 1;
#else
template <typename T>
constexpr int kBackwardBlocks = 1;
#endif

// A stage holds 64 bytes of each row, padded to an odd multiple of 16 so that ldmatrix meets no bank twice.
template <typename T>
constexpr int kDepth = 64 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kStagePitch = 80 / static_cast<int>(sizeof(T));

// A sum of 2^((x - top) * factor), and of the same times a gradient.
struct SoftSum {
  float top = kLeastTop, sum = 0.0f, dot = 0.0f;

  __device__ void merge(const SoftSum& other, float factor) {
    const float most = fmaxf(top, other.top);
    const float scale = ptx::exp2_approximate((top - most) * factor);
    const float other_scale = ptx::exp2_approximate((other.top - most) * factor);
    sum = sum * scale + other.sum * other_scale;
    dot = dot * scale + other.dot * other_scale;
    top = most;
  }
};

template <typename T>
struct LogitsMemory {
  T* stages;       // [kBackwardStages][kTileRows + kTileColumns][kStagePitch]
  SoftSum *y, *x;  // [kQuarters][kTileRows]: of noisy logits and of logits
  __host__ __device__ explicit LogitsMemory(SharedArena& arena)
      : stages(arena.take<T>(kBackwardStages * (kTileRows + kTileColumns) * kStagePitch<T>)),
        y(arena.take<SoftSum>(kQuarters * kTileRows)),
        x(arena.take<SoftSum>(kQuarters * kTileRows)) {}

  __device__ T* rows(int stage) const { return stages + stage * (kTileRows + kTileColumns) * kStagePitch<T>; }
  __device__ T* entries(int stage) const { return rows(stage) + kTileRows * kStagePitch<T>; }
};

// Where entry v of a tile lies: of each 16, thread q of a quad has columns 2q, 2q + 1 of two fragments of 8,
// and with this order entries 4q .. 4q + 3.
__device__ __forceinline__ int entry_place(int v) {
  return v / 16 * 16 + v % 4 / 2 * 8 + v % 16 / 4 * 2 + v % 2;
}

// Sums of the products of a warp: fragment f of pack j holds, at [n], row n / 2 * 8, column 2f + n % 2.
using Products = float[kPacks][2][4];

// What a thread has of its rows row() and row() + 8.
template <typename L, typename T>
class LogitsTask {
 public:
  __device__ LogitsTask(const GumbelQuantize& in, const GumbelGradients& gradients,
                        const LogitsMemory<T>& memory, bool rows_aligned)
      : in_(in),
        gradients_(gradients),
        memory_(memory),
        rows_aligned_(rows_aligned),
        factor_(kLog2E / *in.temperature) {}

  // Each tile once for the sums and once more to be written; a single one does with one step.
  __device__ void run() {
    const int tiles = divide_up<int>(in_.entries, kTileColumns), steps = tiles > 1 ? 2 * tiles : 1;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const bool summing = step < tiles;
      const int tile = summing ? step : step - tiles;
#pragma unroll 1
      for (int i = 0; i < 2 && summing && gradients_.grad_mean_probs; ++i) add_mean(tile, i);
      if (gradients_.grad_quantized)
        compute(tile, summing);
      else
        clear();
      if (step == tiles - 1) __syncthreads();  // the sums are complete
      if (summing && tiles > 1) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) weigh(i);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        __syncwarp();  // keeps the compiler from loading both rows at once, for which registers lack
        write(tile, i);
      }
    }
  }

 private:
  __device__ static int group() { return blockIdx.y; }
  __device__ uint32_t row0() const { return (blockIdx.x - codebook_blocks(in_)) * kTileRows; }
  __device__ static int warp() { return threadIdx.x / 32; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int local_row(int i) { return warp() % 2 * 16 + lane() / 4 + i * 8; }
  __device__ uint32_t row(int i) const { return min(row0() + local_row(i), in_.rows - 1); }
  __device__ static int column(int tile) {
    return tile * kTileColumns + warp() / 2 * kQuarterColumns + lane() % 4 * kPack;
  }

  // Starts copying columns depth .. depth + kDepth - 1 of the gradients' rows and of the tile's entries.
  __device__ void load_stage(int tile, int chunk) const {
    if (chunk * kDepth<T> < in_.width) {
      const int stage = chunk % kBackwardStages, depth = chunk * kDepth<T>, v0 = tile * kTileColumns;
      const T* grad = static_cast<const T*>(gradients_.grad_quantized) +
                      (static_cast<int64_t>(row0()) * in_.groups + group()) * in_.width;
      const T* codebook = static_cast<const T*>(in_.codebook) +
                          (static_cast<int64_t>(group()) * in_.entries + v0) * in_.width;
      const int rows = static_cast<int>(min(static_cast<uint32_t>(kTileRows), in_.rows - row0()));
      copy<kTileRows>(memory_.rows(stage), grad, rows, static_cast<int64_t>(in_.groups) * in_.width, depth,
                      [](int r) { return r; });
      copy<kTileColumns>(memory_.entries(stage), codebook, min(kTileColumns, in_.entries - v0), in_.width,
                         depth, entry_place);
    }
    ptx::cp_async_commit();  // an empty group beyond the last chunk keeps the count
  }

  // kRows rows, zeros beyond `count` and beyond the width.
  template <int kRows, typename Place>
  __device__ void copy(T* to, const T* from, int count, int64_t pitch, int depth, Place place) const {
    constexpr int kPerRow = kDepth<T> / kVector<T>;
    if (rows_aligned_) {
#pragma unroll 1
      for (int v = threadIdx.x; v < kRows * kPerRow; v += kThreads) {
        const int r = v / kPerRow, c = v % kPerRow * kVector<T>;
        const bool valid = r < count && depth + c < in_.width;
        ptx::cp_async_16(to + place(r) * kStagePitch<T> + c, valid ? from + r * pitch + depth + c : from,
                         valid);
      }
    } else {
#pragma unroll 1
      for (int v = threadIdx.x; v < kRows * kDepth<T>; v += kThreads) {
        const int r = v / kDepth<T>, c = v % kDepth<T>;
        const bool valid = r < count && depth + c < in_.width;
        to[place(r) * kStagePitch<T> + c] = valid ? from[r * pitch + depth + c] : from_float<T>(0.0f);
      }
    }
  }

  // Leaves the exponentials of a tile's noisy logits in y_ and the products in s_; the first time adds to the
  // sums.
  __device__ void compute(int tile, bool summing) {
    __syncthreads();  // the ring's last readers are done
#pragma unroll 1
    for (int chunk = 0; chunk < kBackwardStages; ++chunk) load_stage(tile, chunk);
#pragma unroll
    for (int i = 0; i < 2; ++i) draw(tile, i);
    multiply_all(tile);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float top = summing ? top_of_row(y_[i]) : own_sum(memory_.y, i).top;
      exponentiate(y_[i], top, factor_);
      if (!summing) continue;
      SoftSum sum{top};
#pragma unroll
      for (int j = 0; j < kPacks; ++j)
#pragma unroll
        for (int n = 0; n < kPack; ++n) {
          sum.sum += y_[i][j][n];
          sum.dot = fmaf(y_[i][j][n], product(i, j, n), sum.dot);
        }
      add_to(memory_.y, sum, i, factor_, tile);
    }
  }

  // A tile's noisy logits.
  __device__ void draw(int tile, int i) {
    load_logits<kBackwardStride, L>(y_[i], in_, row(i), group(), column(tile));
    const RowNoise noise(in_, row(i), group());
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      const int at = column(tile) + j * kBackwardStride;
      const Pack<float, kPack> drawn = at < in_.entries ? noise.pack(at) : Pack<float, kPack>{};
#pragma unroll
      for (int n = 0; n < kPack; ++n) y_[i][j][n] += drawn.v[n];
    }
  }

  __device__ void multiply_all(int tile) {
#pragma unroll
    for (int j = 0; j < kPacks; ++j)
#pragma unroll
      for (int n = 0; n < 8; ++n) s_[j][n / 4][n % 4] = 0.0f;
    const int chunks = divide_up<int>(in_.width, kDepth<T>);
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::cp_async_wait<kBackwardStages - 1>();
      __syncthreads();
      multiply(chunk % kBackwardStages);
      if (chunk + kBackwardStages < chunks) __syncthreads();
      load_stage(tile, chunk + kBackwardStages);
    }
  }

  // Adds the products of one stage.
  __device__ void multiply(int stage) {
    constexpr int kStep = 32 / sizeof(T), kSteps = kDepth<T> / kStep;
    const T* a_row =
        memory_.rows(stage) + (warp() % 2 * 16 + lane() % 16) * kStagePitch<T> + lane() / 16 * (kStep / 2);
    const T* b_row = memory_.entries(stage) +
                     (warp() / 2 * kQuarterColumns + lane() % 8 + lane() / 16 * 8) * kStagePitch<T> +
                     lane() / 8 % 2 * (kStep / 2);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t a[4];
      ptx::ldmatrix_x4(a, a_row + k * kStep);
#pragma unroll
      for (int j = 0; j < kPacks; ++j) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, b_row + j * 16 * kStagePitch<T> + k * kStep);
#pragma unroll
        for (int f = 0; f < 2; ++f) add_step(s_[j][f], a, {b[2 * f], b[2 * f + 1]}, a_row);
      }
    }
  }

  __device__ float product(int i, int j, int n) const { return s_[j][n / 2][i * 2 + n % 2]; }

  // The largest of the four threads that share a row.
  __device__ static float top_of_row(const RowPacks& x) {
    float top = largest(x, kLeastTop);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    return fmaxf(top, __shfl_xor_sync(~0u, top, 2));
  }

  // That of this warp's share of a row.
  __device__ static SoftSum& own_sum(SoftSum* sums, int i) {
    return sums[warp() / 2 * kTileRows + local_row(i)];
  }

  // Adds the sum of a tile, of which each of the four threads has a part, to those of the tiles before.
  __device__ void add_to(SoftSum* sums, SoftSum sum, int i, float factor, int tile) const {
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
      sum.sum += __shfl_xor_sync(~0u, sum.sum, lanes);
      sum.dot += __shfl_xor_sync(~0u, sum.dot, lanes);
    }
    if (lane() % 4 != 0) return;
    SoftSum& place = own_sum(sums, i);
    if (tile > 0) sum.merge(place, factor);
    place = sum;
  }

  // The same over the logits, with the gradient of mean_probs.
  __device__ void add_mean(int tile, int i) {
    RowPacks x, grad;
    load_logits<kBackwardStride, L>(x, in_, row(i), group(), column(tile));
    load_mean_gradient(grad, tile);
    SoftSum sum{top_of_row(x)};
    exponentiate(x, sum.top, kLog2E);
#pragma unroll
    for (int j = 0; j < kPacks; ++j)
#pragma unroll
      for (int n = 0; n < kPack; ++n) {
        sum.sum += x[j][n];
        sum.dot = fmaf(x[j][n], grad[j][n], sum.dot);
      }
    add_to(memory_.x, sum, i, kLog2E, tile);
  }

  __device__ void load_mean_gradient(RowPacks& grad, int tile) const {
    const float* row = gradients_.grad_mean_probs + group() * in_.entries;
    load_packs<kBackwardStride>(grad, row, column(tile), in_.entries, 0.0f);
  }

  // The sum of a row over all warps.
  __device__ SoftSum total(const SoftSum* sums, int i, float factor) const {
    SoftSum sum = sums[local_row(i)];
#pragma unroll
    for (int q = 1; q < kQuarters; ++q) sum.merge(sums[q * kTileRows + local_row(i)], factor);
    return sum;
  }

  __device__ void clear() {
#pragma unroll
    for (int j = 0; j < kPacks; ++j)
#pragma unroll
      for (int n = 0; n < kPack; ++n) y_[0][j][n] = y_[1][j][n] = s_[j][0][n] = s_[j][1][n] = 0.0f;
  }

  // Turns y_ into the part of the gradient that comes through the choice.
  __device__ void weigh(int i) {
    if (!gradients_.grad_quantized) return;
    const SoftSum sum = total(memory_.y, i, factor_);
    const float mean = sum.dot / sum.sum;
    const float to_total = ptx::exp2_approximate((own_sum(memory_.y, i).top - sum.top) * factor_);
    const float scale = to_total / sum.sum * (factor_ * kLn2);
#pragma unroll
    for (int j = 0; j < kPacks; ++j)
#pragma unroll
      for (int n = 0; n < kPack; ++n) y_[i][j][n] *= (product(i, j, n) - mean) * scale;
  }

  __device__ void write(int tile, int i) {
    if (gradients_.grad_mean_probs) add_mean_part(y_[i], tile, i);
    L* to = static_cast<L*>(gradients_.grad_logits) + row_offset(in_, row(i), group());
    if (row0() + local_row(i) < in_.rows) store_packs<kBackwardStride>(y_[i], to, column(tile), in_.entries);
  }

  __device__ void add_mean_part(RowPacks& grad, int tile, int i) const {
    RowPacks x, of_mean;
    load_logits<kBackwardStride, L>(x, in_, row(i), group(), column(tile));
    load_mean_gradient(of_mean, tile);
    const SoftSum sum = total(memory_.x, i, kLog2E);
    const float mean = sum.dot / sum.sum, scale = 1.0f / (sum.sum * static_cast<float>(in_.rows));
    exponentiate(x, sum.top, kLog2E);
#pragma unroll
    for (int j = 0; j < kPacks; ++j)
#pragma unroll
      for (int n = 0; n < kPack; ++n) grad[j][n] = fmaf(x[j][n] * scale, of_mean[j][n] - mean, grad[j][n]);
  }

  const GumbelQuantize& in_;
  const GumbelGradients& gradients_;
  const LogitsMemory<T>& memory_;
  bool rows_aligned_;
  float factor_;   // of noisy logits in exponents of 2
  RowPacks y_[2];  // noisy logits over the temperature, then their exponentials
  Products s_;
};

constexpr int kScans = 8, kBlockWarps = kThreads / 32;
constexpr int kScanRows = kScans * kThreads;

struct CodebookMemory {
  uint32_t* list;  // [kScanRows]: rows that chose the block's entries: row * kEntriesPerBlock + entry
  int* counts;     // [kScans * kBlockWarps + 1]: of each ballot, then where it begins in the list
  float* partial;  // [kBlockWarps][kEntriesPerBlock][kEntryColumns]
  __host__ __device__ explicit CodebookMemory(SharedArena& arena)
      : list(arena.take<uint32_t>(kScanRows)),
        counts(arena.take<int>(kScans * kBlockWarps + 1)),
        partial(arena.take<float>(kBlockWarps * kEntriesPerBlock * kEntryColumns)) {}
};

template <typename T>
struct CodebookTask {
  const GumbelQuantize& in;
  const GumbelGradients& gradients;
  const CodebookMemory& memory;
  int group, entry0, column;  // the thread's first of four columns
  bool aligned;

  __device__ CodebookTask(const GumbelQuantize& in_, const GumbelGradients& gradients_,
                          const CodebookMemory& memory_, bool rows_aligned)
      : in(in_), gradients(gradients_), memory(memory_), aligned(rows_aligned) {
    const int parts = codebook_parts(in), task = blockIdx.x;
    column = task % parts * kEntryColumns + threadIdx.x % 32 * 4;
    entry0 = task / parts * kEntriesPerBlock;
    group = blockIdx.y;
  }

  __device__ void run() const {
    float sums[kEntriesPerBlock][4] = {};
    if (gradients.grad_quantized) {
#pragma unroll 1
      for (uint32_t first = 0; first < in.rows; first += kScanRows) add_rows(sums, list_rows(first), first);
    }
    write(sums);
  }

  // Lists the rows first .. first + kScanRows - 1 that chose one of the entries, in order; returns how many.
  // All have read the last list at the first barrier, before the second of which nothing is listed.
  __device__ int list_rows(uint32_t first) const {
    const int warp = threadIdx.x / 32;
    const uint32_t before = (1u << threadIdx.x % 32) - 1;
    uint32_t entry[kScans], found[kScans];
#pragma unroll
    for (int k = 0; k < kScans; ++k) {
      const uint32_t row = first + k * kThreads + threadIdx.x;
      entry[k] =
          row < in.rows ? gradients.codes[static_cast<int64_t>(row) * in.groups + group] - entry0 : ~0u;
    }
#pragma unroll
    for (int k = 0; k < kScans; ++k) {
      found[k] = __ballot_sync(~0u, entry[k] < kEntriesPerBlock);
      if (before == 0) memory.counts[k * kBlockWarps + warp] = __popc(found[k]);
    }
    __syncthreads();
    add_counts();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kScans; ++k)
      if (entry[k] < kEntriesPerBlock)
        memory.list[memory.counts[k * kBlockWarps + warp] + __popc(found[k] & before)] =
            (k * kThreads + threadIdx.x) * kEntriesPerBlock + entry[k];
    __syncthreads();
    return memory.counts[kScans * kBlockWarps];
  }

  // Turns the counts into sums of those before, by the first warp.
  __device__ void add_counts() const {
    static_assert(kScans * kBlockWarps == 64, "two counts per lane");
    if (threadIdx.x >= 32) return;
    const int lane = threadIdx.x;
    const int mine = memory.counts[2 * lane], next = memory.counts[2 * lane + 1];
    int sum = mine + next;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int other = __shfl_up_sync(~0u, sum, lanes);
      if (lane >= lanes) sum += other;
    }
    memory.counts[2 * lane] = sum - next - mine;
    memory.counts[2 * lane + 1] = sum - next;
    if (lane == 31) memory.counts[64] = sum;
  }

  // Adds the gradients of the listed rows, every eighth in a warp; four loads are under way at a time.
  __device__ void add_rows(float (&sums)[kEntriesPerBlock][4], int count, uint32_t first) const {
    constexpr int kLoads = 4;
    const int count4 = min(4, in.width - column);
#pragma unroll 1
    for (int at = threadIdx.x / 32; at < count; at += kLoads * kBlockWarps) {
      float grad[kLoads][4];
      uint32_t entry[kLoads];
#pragma unroll
      for (int n = 0; n < kLoads; ++n) {
        const int item = at + n * kBlockWarps;
        const uint32_t listed = item < count ? memory.list[item] : ~0u;
        entry[n] = item < count ? listed % kEntriesPerBlock : ~0u;
        load(grad[n], first + listed / kEntriesPerBlock, item < count ? count4 : 0);
      }
#pragma unroll
      for (int n = 0; n < kLoads; ++n)
#pragma unroll
        for (int e = 0; e < kEntriesPerBlock; ++e)
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[e][c] += entry[n] == e ? grad[n][c] : 0.0f;
    }
  }

  __device__ void load(float (&grad)[4], uint32_t row, int count) const {
    const T* from = static_cast<const T*>(gradients.grad_quantized) +
                    (static_cast<int64_t>(row) * in.groups + group) * in.width + column;
    if (aligned && count > 0) {
      const Pack<T, 4> pack = load_pack<4>(from);
#pragma unroll
      for (int c = 0; c < 4; ++c) grad[c] = to_float(pack.v[c]);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c) grad[c] = c < count ? to_float(from[c]) : 0.0f;
    }
  }

  // Adds the warps' sums in their order.
  __device__ void write(const float (&sums)[kEntriesPerBlock][4]) const {
    float* mine = memory.partial + threadIdx.x / 32 * kEntriesPerBlock * kEntryColumns + threadIdx.x % 32 * 4;
#pragma unroll
    for (int e = 0; e < kEntriesPerBlock; ++e)
#pragma unroll
      for (int c = 0; c < 4; ++c) mine[e * kEntryColumns + c] = sums[e][c];
    __syncthreads();
    const int column0 = column - static_cast<int>(threadIdx.x % 32) * 4;
    for (int n = threadIdx.x; n < kEntriesPerBlock * kEntryColumns; n += kThreads) {
      const int entry = entry0 + n / kEntryColumns, at = column0 + n % kEntryColumns;
      if (entry >= in.entries || at >= in.width) continue;
      float sum = 0.0f;
      for (int w = 0; w < kBlockWarps; ++w) sum += memory.partial[w * kEntriesPerBlock * kEntryColumns + n];
      T* to = static_cast<T*>(gradients.grad_codebook);
      to[(static_cast<int64_t>(group) * in.entries + entry) * in.width + at] = from_float<T>(sum);
    }
  }
};

// Blocks: those for the codebook, then tiles of rows; group.
template <typename L, typename T>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<T>)
    gumbel_backward(GumbelQuantize in, GumbelGradients gradients, bool rows_aligned) {
  SharedArena arena;
  if (blockIdx.x < codebook_blocks(in)) {
    const CodebookMemory memory(arena);
    CodebookTask<T>(in, gradients, memory, rows_aligned).run();
  } else {
    const LogitsMemory<T> memory(arena);
    LogitsTask<L, T>(in, gradients, memory, rows_aligned).run();
  }
}

}  // namespace ecgfast::cuda
