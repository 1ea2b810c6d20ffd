// Warp and PTX primitives by themselves, for test_primitives.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/ptx.cuh"

using namespace ecgfast;

namespace {

using Mma = void (*)(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]);

// Registers as [lane][register].
template <Mma kMma>
const char* run_mma(const uint32_t* a, const uint32_t* b, float* c) {
  return emu::message_of([&] {
    emu::launch(dim3(1), dim3(32), 0, [&] {
      uint32_t left[4], right[2];
      float sum[4];
      std::memcpy(left, a + threadIdx.x * 4, sizeof(left));
      std::memcpy(right, b + threadIdx.x * 2, sizeof(right));
      std::memcpy(sum, c + threadIdx.x * 4, sizeof(sum));
      kMma(sum, left, right);
      std::memcpy(c + threadIdx.x * 4, sum, sizeof(sum));
    });
  });
}

}  // namespace

EMU_EXPORT const char* mma_bf16(const uint32_t* a, const uint32_t* b, float* c) {
  return run_mma<ptx::mma_m16n8k16_bf16>(a, b, c);
}
EMU_EXPORT const char* mma_f16(const uint32_t* a, const uint32_t* b, float* c) {
  return run_mma<ptx::mma_m16n8k16_f16>(a, b, c);
}
EMU_EXPORT const char* mma_tf32(const uint32_t* a, const uint32_t* b, float* c) {
  return run_mma<ptx::mma_m16n8k8_tf32>(a, b, c);
}
EMU_EXPORT const char* to_tf32(const float* x, uint32_t* y, int n) {
  return emu::message_of([&] {
    for (int i = 0; i < n; ++i) y[i] = ptx::to_tf32(x[i]);
  });
}

// Lane l's row begins at memory + offsets[l] bytes.
EMU_EXPORT const char* ldmatrix(const char* memory, const int* offsets, bool transposed, uint32_t* words) {
  return emu::message_of([&] {
    emu::launch(dim3(1), dim3(32), 0, [&] {
      uint32_t r[4];
      (transposed ? ptx::ldmatrix_x4_trans : ptx::ldmatrix_x4)(r, memory + offsets[threadIdx.x]);
      std::memcpy(words + threadIdx.x * 4, r, sizeof(r));
    });
  });
}

// words[l] turns to lane l's share of the transposed matrix.
EMU_EXPORT const char* transpose(uint32_t* words) {
  return emu::message_of([&] {
    emu::launch(dim3(1), dim3(32), 0, [&] { words[threadIdx.x] = ptx::transpose_8x8(words[threadIdx.x]); });
  });
}

// All shuffles, votes and reductions of one value per lane: out[lane][operation].
EMU_EXPORT const char* warp_operations(const int* in, int* out) {
  return emu::message_of([&] {
    emu::launch(dim3(1), dim3(32), 0, [&] {
      const int x = in[threadIdx.x];
      int* o = out + threadIdx.x * 9;
      o[0] = __shfl_sync(~0u, x, 5);
      o[1] = __shfl_sync(~0u, x, 5, 8);
      o[2] = __shfl_xor_sync(~0u, x, 6);
      o[3] = __shfl_down_sync(~0u, x, 3, 16);
      o[4] = __shfl_up_sync(~0u, x, 3, 16);
      o[5] = static_cast<int>(__ballot_sync(~0u, x > 0));
      o[6] = __any_sync(~0u, x > 1000) + 2 * __all_sync(~0u, x > -1000);
      o[7] = static_cast<int>(__reduce_add_sync(~0u, static_cast<unsigned>(x)));
      o[8] = threadIdx.x < 7 ? __shfl_xor_sync(0x7Fu, x, threadIdx.x < 6) : 0;
    });
  });
}

// Barriers that vote, and atomics, over 100 threads.
EMU_EXPORT const char* block_operations(int* votes, int* sum) {
  return emu::message_of([&] {
    emu::launch(dim3(1), dim3(10, 10), 0, [&] {
      const int n = threadIdx.y * blockDim.x + threadIdx.x;
      const int any = __syncthreads_or(n == 3), all = __syncthreads_and(n != 3),
                count = __syncthreads_count(n < 42);
      if (n == 99) votes[0] = any, votes[1] = all, votes[2] = count;
      atomicAdd(&sum[0], n);
      atomicMax(&sum[1], n);
      atomicMin(&sum[2], n);
      atomicOr(&sum[3], 1 << n % 8);
    });
  });
}
