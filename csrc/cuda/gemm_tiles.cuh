// Tiled products on tensor cores, by a block of 256 threads, for kernels that make an operand or consume the
// result on chip.
//
// Operands come through shared memory in chunks of 64 bytes along the depth of the product (32 elements of 16
// bits, 16 of float32), in one of two forms: a RowTile holds rows of the operand, contiguous along the depth;
// a DepthTile holds one row per depth index, for operands that lie transposed in memory. Both are free of
// bank conflicts for ldmatrix. Of a kM x kN tile, a warp owns 64 rows, as four 16-row fragments, and
// WarpTile's columns, as fragments of 8.
#pragma once
#include "mma_tiles.cuh"

namespace ecgfast {

template <typename T>
constexpr int kDepth = 4 * kVector<T>;  // of a chunk
template <typename T>
constexpr int kStepDepth = 2 * kVector<T>;  // of an mma
constexpr int kSteps = 2;                   // mmas along a chunk
constexpr int kWarps = kThreads / 32;
constexpr int kRowFragments = 4;  // of a warp

// A rectangle of a row-major matrix that begins at `data`; what lies beyond its rows and columns reads as
// zero. Rows begin at multiples of 16 bytes, and `columns` is a multiple of 16 bytes' elements.
template <typename T>
struct Source {
  const T* data;
  int pitch, rows, columns;
};

// Rows of an operand: kRows times 64 bytes, the four 16-byte vectors of a row permuted by the row.
template <typename T, int kRows>
struct RowTile {
  static constexpr int kSize = kRows * kDepth<T>;

  __device__ static int at(int row, int column) {
    return row * kDepth<T> + ((column / kVector<T>)^(row >> 1 & 3)) * kVector<T> + column % kVector<T>;
  }

  // Columns column .. of the source: the depth.
  __device__ static void load(T* tile, const Source<T>& from, int row0, int column) {
#pragma unroll
    for (int v = threadIdx.x; v < kRows * 4; v += kThreads) {
      const int row = v / 4, c = v % 4 * kVector<T>;
      const bool valid = row0 + row < from.rows && column + c < from.columns;
      const int64_t offset = valid ? static_cast<int64_t>(row0 + row) * from.pitch + column + c : 0;
      ptx::cp_async_16(tile + at(row, c), from.data + offset, valid);
    }
  }

  // The left operand of one mma: rows row .. row + 15.
  __device__ static void left(uint32_t (&r)[4], const T* tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    ptx::ldmatrix_x4(r, tile + at(row + lane % 16, (step * 2 + lane / 16) * kVector<T>));
  }

  // The right operands of two mmas: columns (rows of the tile) row .. row + 7 and row + 8 .. row + 15.
  __device__ static void right(uint32_t (&r)[4], const T* tile, int row, int step) {
    const int lane = threadIdx.x % 32;
    ptx::ldmatrix_x4(r, tile + at(row + lane % 8 + lane / 16 * 8, (step * 2 + lane / 8 % 2) * kVector<T>));
  }
};

// An operand by depth: kDepth rows of kColumns elements, padded by eight.
template <typename T, int kColumns>
struct DepthTile {
  static constexpr int kPitch = kColumns + 8, kSize = kDepth<T> * kPitch;

  __device__ static int at(int depth, int column) { return depth * kPitch + column; }

  // Rows row0 .. of the source: the depth.
  __device__ static void load(T* tile, const Source<T>& from, int row0, int column) {
    constexpr int kPerRow = kColumns / kVector<T>;
#pragma unroll
    for (int v = threadIdx.x; v < kDepth<T> * kPerRow; v += kThreads) {
      const int row = v / kPerRow, c = v % kPerRow * kVector<T>;
      const bool valid = row0 + row < from.rows && column + c < from.columns;
      const int64_t offset = valid ? static_cast<int64_t>(row0 + row) * from.pitch + column + c : 0;
      ptx::cp_async_16(tile + at(row, c), from.data + offset, valid);
    }
  }

  __device__ static void left(uint32_t (&r)[4], const T* tile, int column, int step) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
      ptx::ldmatrix_x4_trans(r, tile + at(step * 16 + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        r[n] = __float_as_uint(tile[at(step * 8 + lane % 4 + n / 2 * 4, column + lane / 4 + n % 2 * 8)]);
    }
  }

  __device__ static void right(uint32_t (&r)[4], const T* tile, int column, int step) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
      ptx::ldmatrix_x4_trans(r, tile + at(step * 16 + lane % 8 + lane / 8 % 2 * 8, column + lane / 16 * 8));
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        r[n] = __float_as_uint(tile[at(step * 8 + lane % 4 + n % 2 * 4, column + lane / 4 + n / 2 * 8)]);
    }
  }
};

// Where a warp's part of a kM x kN tile lies, and its sums: fragment (i, j) holds rows row + 16 i .. and
// columns column + 8 j .., of which a thread has rows lane / 4 and that + 8, columns lane % 4 * 2 and the
// next.
template <int kM, int kN>
struct WarpTile {
  static constexpr int kDown = kM / 64, kAcross = kWarps / kDown;
  static constexpr int kColumns = kN / kAcross, kFragments = kColumns / 8;
  static_assert(kM % 64 == 0 && kWarps % kDown == 0 && kColumns % 16 == 0);
  using Sums = float[kRowFragments][kFragments][4];

  int row = threadIdx.x / 32 % kDown * 64, column = threadIdx.x / 32 / kDown * kColumns;
};

// sums += left right over one chunk.
template <typename Left, typename Right, typename Warp, typename T>
__device__ __forceinline__ void multiply(typename Warp::Sums& sums, const Warp& warp, const T* left,
                                         const T* right) {
  constexpr int kFragments = Warp::kFragments;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[kRowFragments][4];
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) Left::left(a[i], left, warp.row + 16 * i, step);
#pragma unroll
      for (int j = 0; j < kFragments; j += 2) {
        uint32_t b[4];
        Right::right(b, right, warp.column + 8 * j, step);
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
          mma_step(sums[i][j], a[i], {b[0], b[1]}, left);
          mma_step(sums[i][j + 1], a[i], {b[2], b[3]}, left);
        }
      }
    }
  } else {
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
      uint32_t b[kFragments / 2][4];
#pragma unroll
      for (int j = 0; j < kFragments / 2; ++j) Right::right(b[j], right, warp.column + 16 * j, step);
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
        uint32_t a[4];
        Left::left(a, left, warp.row + 16 * i, step);
#pragma unroll
        for (int j = 0; j < kFragments; ++j)
          add_step(sums[i][j], a, {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]}, left);
      }
    }
  }
}

// A ring of kStages chunks: load(c) starts the copies of chunk c, use(c) has them, with a barrier before.
// Both are called in order.
template <int kStages, typename Load, typename Use>
__device__ __forceinline__ void stream(int chunks, Load load, Use use) {
#pragma unroll 1
  for (int c = 0; c < kStages - 1; ++c) {
    if (c < chunks) load(c);
    ptx::cp_async_commit();
  }
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    if (c + kStages - 1 < chunks) load(c + kStages - 1);
    ptx::cp_async_commit();
    use(c);
  }
}

// The same where an operand is made on chip: between two barriers, half of the warps of each scheduler make
// chunk c + 1 while the others multiply chunk c, and the other way round. produce(c) may read what load(c)
// brought.
template <int kStages, typename Load, typename Produce, typename Use>
__device__ __forceinline__ void stream_produced(int chunks, Load load, Produce produce, Use use) {
  static_assert(kStages >= 3);
#pragma unroll 1
  for (int c = 0; c < kStages - 1; ++c) {
    if (c < chunks) load(c);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<kStages - 2>();
  __syncthreads();
  if (chunks > 0) produce(0);
  const int first = threadIdx.x / 128;
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) {
    ptx::cp_async_wait<kStages - 3>();
    __syncthreads();
    if (c + kStages - 1 < chunks) load(c + kStages - 1);
    ptx::cp_async_commit();
#pragma unroll 1
    for (int turn = 0; turn < 2; ++turn) {
      if (turn == first)
        use(c);
      else if (c + 1 < chunks)
        produce(c + 1);
    }
  }
}

// Two floats in the element type, as they lie in memory.
__device__ __forceinline__ uint32_t pack_two(float x, float y, const __nv_bfloat16*) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ __forceinline__ uint32_t pack_two(float x, float y, const __half*) {
  const __half2 v = __floats2half2_rn(x, y);
  return *reinterpret_cast<const uint32_t*>(&v);
}

template <typename T>
__device__ __forceinline__ void store_two(T* p, float x, float y) {
  if constexpr (sizeof(T) == 2)
    *reinterpret_cast<uint32_t*>(p) = pack_two(x, y, p);
  else
    store_pack<2>(p, Pack<T, 2>{{x, y}});
}

// Of the 4 x 4 words of four neighbouring lanes, the transpose.
__device__ __forceinline__ void transpose_quad(uint32_t (&w)[4]) {
  const bool odd = threadIdx.x % 2, upper = threadIdx.x / 2 % 2;
#pragma unroll
  for (int n = 0; n < 4; n += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, odd ? w[n] : w[n + 1], 1);
    w[n] = odd ? got : w[n];
    w[n + 1] = odd ? w[n + 1] : got;
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const uint32_t got = __shfl_xor_sync(~0u, upper ? w[n] : w[n + 2], 2);
    w[n] = upper ? got : w[n];
    w[n + 2] = upper ? w[n + 2] : got;
  }
}

// One row's values of four fragments (32 columns from `column`) to memory, as far as columns < width; a
// thread gives its two of each. `aligned`: 16 bytes at a time. All lanes come here, also for rows that are
// not `valid`.
template <typename T>
__device__ __forceinline__ void store_row(T* row, int column, int width, const float (&v)[4][2], bool valid,
                                          bool aligned) {
  const int member = threadIdx.x % 4;
  if constexpr (sizeof(T) == 2) {
    uint32_t w[4];
#pragma unroll
    for (int f = 0; f < 4; ++f) w[f] = pack_two(v[f][0], v[f][1], row);
    transpose_quad(w);
    const int first = column + member * 8;
    if (!valid || first >= width) return;
    if (aligned) {
      *reinterpret_cast<uint4*>(row + first) = make_uint4(w[0], w[1], w[2], w[3]);
      return;
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const uint16_t bits = static_cast<uint16_t>(w[n / 2] >> (n % 2 * 16));
      if (first + n < width) row[first + n] = *reinterpret_cast<const T*>(&bits);
    }
  } else {
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      const int first = column + f * 8 + member * 2;
      if (!valid || first >= width) continue;
      if (aligned) {
        store_two(row + first, v[f][0], v[f][1]);
      } else {
        row[first] = v[f][0];
        if (first + 1 < width) row[first + 1] = v[f][1];
      }
    }
  }
}

// The reverse for aligned rows; zeros beyond.
template <typename T>
__device__ __forceinline__ void load_row(const T* row, int column, int width, float (&v)[4][2], bool valid) {
  const int member = threadIdx.x % 4;
  if constexpr (sizeof(T) == 2) {
    const int first = column + member * 8;
    uint4 u = make_uint4(0, 0, 0, 0);
    if (valid && first < width) u = *reinterpret_cast<const uint4*>(row + first);
    uint32_t w[4] = {u.x, u.y, u.z, u.w};
    transpose_quad(w);
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      const Pack<T, 2> pair = *reinterpret_cast<const Pack<T, 2>*>(&w[f]);
      v[f][0] = to_float(pair.v[0]);
      v[f][1] = to_float(pair.v[1]);
    }
  } else {
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      const int first = column + f * 8 + member * 2;
      const bool inside = valid && first < width;
      const Pack<T, 2> pair = inside ? load_pack<2>(row + first) : Pack<T, 2>{};
      v[f][0] = pair.v[0];
      v[f][1] = pair.v[1];
    }
  }
}

}  // namespace ecgfast
