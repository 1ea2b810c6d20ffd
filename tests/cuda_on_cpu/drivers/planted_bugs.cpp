// Kernels with one mistake each, for test_emulator.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/ptx.cuh"
#include "../../../csrc/cuda/shared_arena.cuh"

using namespace ecgfast;

namespace {

// Reverses a block's values through shared memory.
template <bool kBarrier>
__global__ void reverse(const float* in, float* out) {
  __shared__ float staged[64];
  staged[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = staged[63 - threadIdx.x];
}

template <bool kWait>
__global__ void copy_through_shared(const float* in, float* out) {
  SharedArena arena;
  float* staged = arena.take<float>(128);
  ptx::cp_async_16(staged + 4 * threadIdx.x, in + 4 * threadIdx.x, true);
  ptx::cp_async_commit();
  if (kWait) ptx::cp_async_wait<0>();
  __syncthreads();
  for (int n = threadIdx.x; n < 128; n += 32) out[n] = staged[127 - n];
}

// Starts to refill a buffer that other threads may still be reading.
__global__ void refill_too_early(const float* in, float* out) {
  SharedArena arena;
  float* staged = arena.take<float>(128);
  for (int round = 0; round < 2; ++round) {
    ptx::cp_async_16(staged + 4 * threadIdx.x, in + 128 * round + 4 * threadIdx.x, true);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    for (int n = threadIdx.x; n < 128; n += 32) out[128 * round + n] = staged[127 - n];
  }
}

__global__ void write_beyond_shared(int excess) {
  SharedArena arena;
  float* first = arena.take<float>(32);
  arena.take<float>(32);
  first[threadIdx.x + excess] = 1.0f;
}

__global__ void barrier_in_a_branch() {
  if (threadIdx.x % 2) __syncthreads();
}

__global__ void two_barriers_for_one() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void half_warp_shuffle(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

__global__ void shuffle_from_outside(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xFFFFu, 1.0f, 16);
}

__global__ void barrier_against_shuffle(float* out) {
  if (threadIdx.x < 16) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

__global__ void different_collectives(float* out) {
  if (threadIdx.x < 16)
    __syncwarp();
  else
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
}

// Reads static shared memory that only another block has written.
__global__ void read_last_blocks_shared(float* out) {
  __shared__ float left_over[32];
  if (blockIdx.x == 0) left_over[threadIdx.x] = 1.0f;
  out[blockIdx.x * 32 + threadIdx.x] = left_over[threadIdx.x];
}

__global__ void read_unwritten_shared(float* out) {
  SharedArena arena;
  out[threadIdx.x] = arena.take<float>(32)[threadIdx.x];
}

template <typename Kernel>
const char* run(int blocks, int threads, size_t shared, Kernel kernel) {
  return emu::message_of([&] { emu::launch(dim3(blocks), dim3(threads), shared, kernel); });
}

}  // namespace

EMU_EXPORT const char* run_reverse(const float* in, float* out, bool barrier) {
  return run(1, 64, 0, [=] { barrier ? reverse<true>(in, out) : reverse<false>(in, out); });
}
EMU_EXPORT const char* run_copy(const float* in, float* out, bool wait) {
  return run(1, 32, 512,
             [=] { wait ? copy_through_shared<true>(in, out) : copy_through_shared<false>(in, out); });
}
EMU_EXPORT const char* run_refill(const float* in, float* out) {
  return run(1, 32, 512, [=] { refill_too_early(in, out); });
}
EMU_EXPORT const char* run_write_beyond_shared(int excess) {
  return run(1, 32, 256, [=] { write_beyond_shared(excess); });
}
EMU_EXPORT const char* run_barrier_in_a_branch() { return run(1, 64, 0, barrier_in_a_branch); }
EMU_EXPORT const char* run_two_barriers_for_one() { return run(1, 64, 0, two_barriers_for_one); }
EMU_EXPORT const char* run_half_warp_shuffle(float* out) {
  return run(1, 32, 0, [=] { half_warp_shuffle(out); });
}
EMU_EXPORT const char* run_shuffle_from_outside(float* out) {
  return run(1, 32, 0, [=] { shuffle_from_outside(out); });
}
EMU_EXPORT const char* run_barrier_against_shuffle(float* out) {
  return run(1, 32, 0, [=] { barrier_against_shuffle(out); });
}
EMU_EXPORT const char* run_different_collectives(float* out) {
  return run(1, 32, 0, [=] { different_collectives(out); });
}
EMU_EXPORT const char* run_read_last_blocks_shared(float* out) {
  return run(2, 32, 0, [=] { read_last_blocks_shared(out); });
}
EMU_EXPORT const char* run_read_unwritten_shared(float* out, size_t shared) {
  return run(1, 32, shared, [=] { read_unwritten_shared(out); });
}
