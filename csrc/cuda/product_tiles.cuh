// Products of tiles of any shape on tensor cores, for operands of any length in device memory.
//
// Both operands come through shared memory in chunks 64 bytes deep, a ring of cp.async stages with one
// barrier per chunk. A row-major operand is read along its rows; a "turned" one, whose rows lie along the
// depth of the product, is turned by ldmatrix (16 bits) or by single loads (float32). Units of 16 bytes are
// permuted within a row of shared memory so that what a warp reads together lies in different banks. bfloat16
// and float16 multiply exactly, float32 as the sum of two tf32, Tf32 as one (see mma_tiles.cuh).
#pragma once
#include "mma_tiles.cuh"
#include "shared_arena.cuh"

namespace ecgfast {

// A row-major matrix in device memory. The address and the pitch are multiples of 16 bytes, and columns up to
// the next such multiple can be read; they must be zero where the product sums over them.
template <typename T>
struct Matrix {
  const T* data;
  int64_t pitch, rows, columns;
};

// A block's tile of kM x kN, by kWarpsM x kWarpsN warps, kBlocks of them on a multiprocessor.
template <typename T, int kM, int kN, int kWarpsM, int kWarpsN, int kStages, int kBlocks>
struct Shape {
  using Element = T;
  static constexpr int m = kM, n = kN, warps_m = kWarpsM, warps_n = kWarpsN;
  static constexpr int threads = 32 * kWarpsM * kWarpsN, stages = kStages, blocks = kBlocks;
  static constexpr int vector = 16 / static_cast<int>(sizeof(T)), depth = 4 * vector;
  static constexpr int fragments_m = kM / kWarpsM / 16, fragments_n = kN / kWarpsN / 8;
  static constexpr int rows = 2 * fragments_m, columns = 2 * fragments_n;  // that a thread holds parts of
  static_assert(fragments_n % 2 == 0 && kM * 4 % threads == 0 && kN * 4 % threads == 0);
  using Sums = float[fragments_m][fragments_n][4];
};

// Where a thread's sums lie in the tile: sums[r / 2][c / 2][r % 2 * 2 + c % 2] is at row(r), column(c).
template <typename S>
struct TilePlace {
  int lane = threadIdx.x % 32;
  int warp_m = threadIdx.x / 32 % S::warps_m, warp_n = threadIdx.x / 32 / S::warps_m;

  __device__ int band() const { return warp_m * (S::m / S::warps_m); }
  __device__ int side() const { return warp_n * (S::n / S::warps_n); }
  __device__ int row(int r) const { return band() + r / 2 * 16 + r % 2 * 8 + lane / 4; }
  __device__ int column(int c) const { return side() + c / 2 * 8 + lane % 4 * 2 + c % 2; }
};

// A chunk of an operand in shared memory: kSize rows (or columns) of a tile.
template <typename T, int kSize, bool kTurned>
struct OperandChunk {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T)), kDepth = 4 * kVector;
  static constexpr int kPitch = kTurned ? kSize : kDepth, kUnits = kPitch / kVector;
  static constexpr int kPeriod = kTurned && sizeof(T) == 4 ? 4 : 8;  // of rows with the same permutation

  // Of a unit of a stored row.
  static __device__ __forceinline__ int offset(int row, int unit) {
    const int flip = !kTurned ? row / 2 % 4 : sizeof(T) == 2 ? row % 8 : row % 4 * 2;
    return row * kPitch + (unit ^ flip) * kVector;
  }

  // The 16 x (32 bytes) fragment of a left operand from row `m`, at step 0 or 1 of the chunk.
  static __device__ __forceinline__ void left(uint32_t (&a)[4], const T* chunk, int m, int step, int lane) {
    if constexpr (!kTurned) {
      ptx::ldmatrix_x4(a, chunk + offset(m + lane % 16, step * 2 + lane / 16));
    } else if constexpr (sizeof(T) == 2) {
      const int k = step * 16 + lane % 8 + lane / 16 * 8;
      ptx::ldmatrix_x4_trans(a, chunk + offset(k, m / kVector + lane / 8 % 2));
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w)
        a[w] = word(chunk, step * 8 + lane % 4 + w / 2 * 4, m + lane / 4 + w % 2 * 8);
    }
  }

  // Two (32 bytes) x 8 fragments of a right operand, side by side from column `n`.
  static __device__ __forceinline__ void right(uint32_t (&b)[4], const T* chunk, int n, int step, int lane) {
    if constexpr (!kTurned) {
      ptx::ldmatrix_x4(b, chunk + offset(n + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
    } else if constexpr (sizeof(T) == 2) {
      ptx::ldmatrix_x4_trans(b, chunk + offset(step * 16 + lane % 16, n / kVector + lane / 16));
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w)
        b[w] = word(chunk, step * 8 + lane % 4 + w % 2 * 4, n + lane / 4 + w / 2 * 8);
    }
  }

 private:
  static __device__ __forceinline__ uint32_t word(const T* chunk, int k, int x) {
    return __float_as_uint(chunk[offset(k, x / kVector) + x % kVector]);
  }
};

// Brings an operand's chunks, one after another. A thread copies every kStep-th stored row's same unit.
template <typename T, int kSize, bool kTurned, int kThreads>
class OperandLoader {
  using Chunk = OperandChunk<T, kSize, kTurned>;
  static constexpr int kUnits = Chunk::kUnits, kStep = kThreads / kUnits, kCopies = kSize * 4 / kThreads;
  static_assert(kStep % Chunk::kPeriod == 0);  // a thread's rows all have the same permutation

 public:
  // The tile's rows (turned: columns) first .. first + kSize - 1; zeros beyond the matrix.
  __device__ __forceinline__ void begin(const Matrix<T>& from, int64_t first) {
    const int row = threadIdx.x / kUnits, column = threadIdx.x % kUnits * Chunk::kVector;
    offset_ = Chunk::offset(row, threadIdx.x % kUnits);
    step_ = kStep * from.pitch;
    if constexpr (kTurned) {
      source_ = from.data + row * from.pitch + first + column;
      advance_ = Chunk::kDepth * from.pitch;
      across_ = first + column < from.columns;
      along_ = clamp(from.rows - row);
    } else {
      source_ = from.data + (first + row) * from.pitch + column;
      across_ = clamp(from.rows - first - row);
      along_ = clamp(from.columns - column);
    }
  }

  __device__ __forceinline__ void load(T* chunk) {
    const int rows = kTurned ? (across_ ? along_ : 0) : (along_ > 0 ? across_ : 0);
    const T* from = source_;
#pragma unroll
    for (int i = 0; i < kCopies; ++i, from += step_)
      ptx::cp_async_16(chunk + offset_ + i * kStep * Chunk::kPitch, from, rows > i * kStep);
    source_ += kTurned ? advance_ : Chunk::kDepth;
    along_ -= Chunk::kDepth;
  }

 private:
  static __device__ __forceinline__ int clamp(int64_t x) {
    return static_cast<int>(min(x, static_cast<int64_t>(1 << 30)));
  }

  const T* source_;
  int64_t step_, advance_;
  int offset_, across_, along_;  // rows or columns left
};

template <typename S>
struct ProductMemory {
  using T = typename S::Element;
  static constexpr int kLeft = S::m * S::depth, kStage = (S::m + S::n) * S::depth;
  T* stages;
  __host__ __device__ explicit ProductMemory(SharedArena& arena)
      : stages(arena.take<T>(S::stages * kStage)) {}
};

// The product of a tile's rows of `a` and columns of `b`: start() as soon as the ring is free, then finish().
template <typename S, bool kLeftTurned, bool kRightTurned>
class TileProduct {
  using T = typename S::Element;
  using Memory = ProductMemory<S>;
  using Left = OperandChunk<T, S::m, kLeftTurned>;
  using Right = OperandChunk<T, S::n, kRightTurned>;

 public:
  __device__ TileProduct(const Memory& memory, const Matrix<T>& a, const Matrix<T>& b)
      : memory_(memory),
        a_(a),
        b_(b),
        n_chunks_(static_cast<int>(divide_up(kLeftTurned ? a.rows : a.columns, S::depth))) {}

  // Begins to load the tile at (m, n).
  __device__ void start(int64_t m, int64_t n) {
    left_.begin(a_, m);
    right_.begin(b_, n);
#pragma unroll 1
    for (int c = 0; c < S::stages - 1; ++c) load(c, c);
  }

  // sums = the product; all threads of the block take part. The ring is free after the next barrier.
  __device__ void finish(typename S::Sums& sums, const TilePlace<S>& at) {
    clear(sums);
    accumulate(sums, at);
  }

  static __device__ __forceinline__ void clear(typename S::Sums& sums) {
#pragma unroll
    for (int n = 0; n < S::rows * S::columns; ++n)
      sums[n / 4 / S::fragments_n][n / 4 % S::fragments_n][n % 4] = 0.0f;
  }

  // As finish(), adding to sums.
  __device__ __forceinline__ void accumulate(typename S::Sums& sums, const TilePlace<S>& at) {
    int stage = 0, free = S::stages - 1;
#pragma unroll 1
    for (int c = 0; c < n_chunks_; ++c) {
      ptx::cp_async_wait<S::stages - 2>();
      __syncthreads();
      load(c + S::stages - 1, free);
      const T* chunk = memory_.stages + stage * Memory::kStage;
      if constexpr (!kPrecise<T>) {
        add(sums, chunk, at);
      } else {
        typename S::Sums part;
        clear(part);
        add(part, chunk, at);
#pragma unroll
        for (int n = 0; n < S::rows * S::columns; ++n)
          sums[n / 4 / S::fragments_n][n / 4 % S::fragments_n][n % 4] +=
              part[n / 4 / S::fragments_n][n / 4 % S::fragments_n][n % 4];
      }
      free = stage;
      stage = stage + 1 == S::stages ? 0 : stage + 1;
    }
  }

 private:
  // An empty group beyond the last chunk keeps the count of groups.
  __device__ __forceinline__ void load(int c, int stage) {
    if (c < n_chunks_) {
      T* chunk = memory_.stages + stage * Memory::kStage;
      left_.load(chunk);
      right_.load(chunk + Memory::kLeft);
    }
    ptx::cp_async_commit();
  }

  static __device__ __forceinline__ void add(typename S::Sums& sums, const T* chunk, const TilePlace<S>& at) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      uint32_t a[S::fragments_m][4], b[S::fragments_n / 2][4];
#pragma unroll
      for (int i = 0; i < S::fragments_m; ++i) Left::left(a[i], chunk, at.band() + i * 16, step, at.lane);
#pragma unroll
      for (int j = 0; j < S::fragments_n / 2; ++j)
        Right::right(b[j], chunk + Memory::kLeft, at.side() + j * 16, step, at.lane);
#pragma unroll
      for (int i = 0; i < S::fragments_m; ++i)
#pragma unroll
        for (int j = 0; j < S::fragments_n; ++j)
          mma_step(sums[i][j], a[i], {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]}, chunk);
    }
  }

  const Memory& memory_;
  const Matrix<T>&a_, &b_;
  int n_chunks_;
  OperandLoader<T, S::m, kLeftTurned, S::threads> left_;
  OperandLoader<T, S::n, kRightTurned, S::threads> right_;
};

// Sums v over the kWays lanes that differ in the bits kStride .. kStride * kWays / 2 of their number, in a
// fixed order; the w-th of them gets elements w * kCount / kWays and on, as the first of v.
template <int kWays, int kStride, int kCount>
__device__ __forceinline__ void scatter_sum(float (&v)[kCount], int lane) {
#pragma unroll
  for (int ways = kWays, count = kCount; ways > 1; ways /= 2, count /= 2) {
    const int bit = kStride * ways / 2;
    const bool upper = lane & bit;
#pragma unroll
    for (int k = 0; k < count / 2; ++k) {
      const float other = __shfl_xor_sync(~0u, upper ? v[k] : v[k + count / 2], bit);
      v[k] = (upper ? v[k + count / 2] : v[k]) + other;
    }
  }
}

// The same choice of elements, without a sum.
template <int kWays, int kStride, int kCount>
__device__ __forceinline__ void scatter(float (&v)[kCount], int lane) {
#pragma unroll
  for (int ways = kWays, count = kCount; ways > 1; ways /= 2, count /= 2)
#pragma unroll
    for (int k = 0; k < count / 2; ++k) v[k] = lane & (kStride * ways / 2) ? v[k + count / 2] : v[k];
}

// Of four lanes, lane l gets word l of each of them, in their order.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4], int lane) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = lane & bit;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int low = bit == 1 ? 2 * n : n, high = low + bit;
      const uint32_t other = __shfl_xor_sync(~0u, upper ? w[low] : w[high], bit);
      w[low] = upper ? other : w[low];
      w[high] = upper ? w[high] : other;
    }
  }
}

__device__ __forceinline__ uint32_t pack_words(float x, float y, const __nv_bfloat16*) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack_words(float x, float y, const __half*) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Writes one of a thread's rows of a tile, value(c) at column(c) for all columns below `limit`, to `row`,
// which is where column(0) of lane 0 goes. `aligned`: in vectors, and then `limit` is a multiple of theirs.
// All lanes of a warp take part; those not `valid` write nothing.
template <int kColumns, typename T, typename Value>
__device__ __forceinline__ void store_row(T* row, int limit, bool aligned, bool valid, int lane,
                                          Value value) {
  if constexpr (sizeof(T) == 2) {
    if (aligned) {
#pragma unroll
      for (int c = 0; c < kColumns; c += 8) {
        uint32_t words[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) words[n] = pack_words(value(c + 2 * n), value(c + 2 * n + 1), row);
        transpose_quad(words, lane);
        const int column = c * 4 + lane % 4 * 8;
        if (valid && column < limit) ptx::store_16(row + column, words);
      }
      return;
    }
  } else if (aligned) {
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) {
      const int column = c * 4 + lane % 4 * 2;
      if (valid && column < limit) store_pack(row + column, Pack<T, 2>{value(c), value(c + 1)});
    }
    return;
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int column = c / 2 * 8 + lane % 4 * 2 + c % 2;
    if (valid && column < limit) row[column] = from_float<T>(value(c));
  }
}

}  // namespace ecgfast
