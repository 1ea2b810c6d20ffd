// The rest of the CUDA C++ environment that kernels use: built-in variables, barriers, atomics, intrinsics.
#pragma once
#include <cmath>

#include "warp.h"

#define threadIdx (::emu::block.current().thread)
#define blockIdx (::emu::block_index)
#define blockDim (::emu::block_size)
#define gridDim (::emu::grid_size)

// The call's place in the source comes in as default arguments.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emu::block.barrier(false, {file, line});
}
inline int __syncthreads_or(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return emu::block.barrier(vote != 0, {file, line}).any;
}
inline int __syncthreads_and(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return emu::block.barrier(vote != 0, {file, line}).all;
}
inline int __syncthreads_count(int vote, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return emu::block.barrier(vote != 0, {file, line}).count;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emu {

// Fibres change only where they wait, so a plain read and write is atomic.
template <typename T, typename Change>
T read_modify_write(T* address, Change change) {
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace emu

template <typename T>
T atomicAdd(T* p, T v) {
  return emu::read_modify_write(p, [=](T old) { return static_cast<T>(old + v); });
}
template <typename T>
T atomicMax(T* p, T v) {
  return emu::read_modify_write(p, [=](T old) { return std::max(old, v); });
}
template <typename T>
T atomicMin(T* p, T v) {
  return emu::read_modify_write(p, [=](T old) { return std::min(old, v); });
}
template <typename T>
T atomicOr(T* p, T v) {
  return emu::read_modify_write(p, [=](T old) { return old | v; });
}
template <typename T>
T atomicExch(T* p, T v) {
  return emu::read_modify_write(p, [=](T) { return v; });
}
template <typename T>
T atomicCAS(T* p, T expected, T v) {
  return emu::read_modify_write(p, [=](T old) { return old == expected ? v : old; });
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
using std::max;
using std::min;
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}

namespace emu {

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace emu

inline unsigned __float_as_uint(float x) { return emu::bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emu::bits<float>(x); }
inline int __float_as_int(float x) { return emu::bits<int>(x); }
inline float __int_as_float(int x) { return emu::bits<float>(x); }
