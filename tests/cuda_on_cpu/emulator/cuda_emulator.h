// Compiles CUDA kernels with the host compiler and runs them on the CPU, one fibre per CUDA thread.
//
// A driver (one translation unit, one shared library) includes this header, then the kernels' .cu file, and
// calls its launch functions; or emu::launch(grid, threads, shared_bytes, [&] { kernel(arguments); }). Blocks
// run one after another. Not modelled: the memory model beyond barriers, timing, streams.
#pragma once
#if defined(__CUDACC__)
#error "the emulator is for the host compiler"
#endif
#define ECGFAST_EMULATED 1

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.h"

#undef __shared__
#define __shared__ static thread_local
#undef __global__
#define __global__
#undef __device__
#define __device__
#undef __host__
#define __host__
#undef __constant__
#define __constant__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline
#undef __align__
#define __align__(n) __attribute__((aligned(n)))

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))

EMU_EXPORT const char* emu_set_schedule(const char* text) {
  return emu::message_of([&] { emu::schedule = emu::Schedule(text); });
}
