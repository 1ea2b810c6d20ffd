// Segments cropped out of a store in device memory: a block per chunk of one lead of one segment. Nothing but
// a copy: 2 bytes in, 2 to 8 out per sample. Samples are moved in packs of 8, 4 or 1, the most that the
// addresses of a lead's source and destination allow; recordings start anywhere.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gather_segments.h"

namespace ecgfast::cuda {

constexpr int kGatherThreads = 128;
constexpr int64_t kGatherChunk = 8192;  // samples; a multiple of the packs
constexpr int64_t kStoreLeads = 12;     // of a recording

template <typename T>
__device__ T to_signal(int16_t microvolts) {
  return static_cast<T>(static_cast<float>(microvolts) * 1e-3f);
}
template <>
__device__ inline int16_t to_signal<int16_t>(int16_t microvolts) {
  return microvolts;
}
template <>
__device__ inline double to_signal<double>(int16_t microvolts) {
  return microvolts * 1e-3;
}
template <>
__device__ inline __nv_bfloat16 to_signal<__nv_bfloat16>(int16_t microvolts) {
  return __float2bfloat16(static_cast<float>(microvolts) * 1e-3f);
}
template <>
__device__ inline __half to_signal<__half>(int16_t microvolts) {
  return __float2half(static_cast<float>(microvolts) * 1e-3f);
}

template <typename T>
__device__ T bad_signal() {
  return static_cast<T>(__builtin_nanf(""));
}
template <>
__device__ inline int16_t bad_signal<int16_t>() {
  return INT16_MIN;
}
template <>
__device__ inline __nv_bfloat16 bad_signal<__nv_bfloat16>() {
  return __float2bfloat16(__builtin_nanf(""));
}
template <>
__device__ inline __half bad_signal<__half>() {
  return __float2half(__builtin_nanf(""));
}

// kCount values, moved as one where they are at most 16 bytes.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) SignalPack {
  T v[kCount];
};

template <typename T, int kCount>
__device__ bool packs_fit(const int16_t* from, const T* to) {
  return reinterpret_cast<uint64_t>(from) % alignof(SignalPack<int16_t, kCount>) == 0 &&
         reinterpret_cast<uint64_t>(to) % alignof(SignalPack<T, kCount>) == 0;
}

template <int kCount, typename T>
__device__ void copy_packs(const int16_t* __restrict__ from, T* __restrict__ to, int count) {
  const int whole = count / kCount;
#pragma unroll 4
  for (int p = threadIdx.x; p < whole; p += kGatherThreads) {
    const auto pack = reinterpret_cast<const SignalPack<int16_t, kCount>*>(from)[p];
    SignalPack<T, kCount> converted;
#pragma unroll
    for (int n = 0; n < kCount; ++n) converted.v[n] = to_signal<T>(pack.v[n]);
    reinterpret_cast<SignalPack<T, kCount>*>(to)[p] = converted;
  }
  const int rest = whole * kCount + threadIdx.x;
  if (rest < count) to[rest] = to_signal<T>(from[rest]);
}

template <typename T>
__device__ void fill(T* to, int count, T value) {
  for (int t = threadIdx.x; t < count; t += kGatherThreads) to[t] = value;
}

// Divided, not multiplied: a damaged n_samples must not overflow.
__device__ inline bool lies_in_store(const GatherSegments& in, int64_t b) {
  const int64_t offset = in.offset[b], start = in.start[b], samples = in.n_samples[b];
  return offset >= 0 && offset <= in.n_values && samples >= 0 &&
         samples <= (in.n_values - offset) / kStoreLeads && start >= 0 && in.length <= samples &&
         start <= samples - in.length;
}

template <typename T>
__device__ void gather_chunk(const GatherSegments& in, T* signal, int64_t b, int64_t l, int64_t first) {
  const int64_t lead = in.lead_index ? in.lead_index[l] : l;
  const int count = static_cast<int>(in.length - first < kGatherChunk ? in.length - first : kGatherChunk);
  T* to = signal + (b * in.leads + l) * in.length + first;
  if (lead < -1 || lead >= kStoreLeads || !lies_in_store(in, b)) return fill(to, count, bad_signal<T>());
  if (lead < 0) return fill(to, count, to_signal<T>(0));
  const int16_t* from = in.store + in.offset[b] + lead * in.n_samples[b] + in.start[b] + first;
  if (packs_fit<T, 8>(from, to)) return copy_packs<8>(from, to, count);
  if (packs_fit<T, 4>(from, to)) return copy_packs<4>(from, to, count);
  copy_packs<1>(from, to, count);
}

template <typename T>
__global__ void __launch_bounds__(kGatherThreads) gather_segments_copy(GatherSegments in, T* signal) {
  for (int64_t b = blockIdx.x; b < in.batch; b += gridDim.x)
    for (int64_t l = blockIdx.y; l < in.leads; l += gridDim.y)
      for (int64_t first = blockIdx.z * kGatherChunk; first < in.length; first += gridDim.z * kGatherChunk)
        gather_chunk(in, signal, b, l, first);
}

}  // namespace ecgfast::cuda
