// The stem, backward: from sums per segment and per split to the gradients of the parameters and the signal.
#pragma once
#include "patch_embed_tiles.cuh"

namespace ecgfast::cuda {

constexpr int kBiasSplits = 64;

// Turns a segment's sums [parts, tap, kPatch, W], in place of the first, to its share of the gradients of
// layer 0's weights and of the norm's affine.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    stem_norm_gradient(StemShape s, StemState state, float* sums, int parts) {
  const int64_t b = blockIdx.x;
  const float* means = state.means + b * kPatch;
  const int64_t step = int64_t{kPatch} * s.width;
  float* segment = sums + b * parts * 2 * step;
  for (int c = threadIdx.x; c < s.width; c += kThreads) {
    const auto total = [&](int value) {
      float sum = 0.0f;
      for (int p = 0; p < 2 * parts; ++p) sum += segment[p * step + value * s.width + c];
      return sum;
    };
    const T* weights = packed_layer<T>(state, s, 0) + int64_t{kPatch} * c;
    const float scale = state.affine[2 * (b * s.width + c)], rstd = state.rstd[b * s.width + c];
    const float* spread = state.spread + (b * s.width + c) * kPatch;
    const float shift_gradient = total(kOnes);
    float q = sizeof(T) == 4 ? total(kNormWeight) : 0.0f, mean = 0.0f;
#pragma unroll 1
    for (int k = 0; k < 2 * s.leads; ++k) {
      const float g = total(k) - shift_gradient * means[k];
      segment[k * s.width + c] = g;
      mean = fmaf(to_float(weights[k]), means[k], mean);
      if (sizeof(T) != 4) q = fmaf(to_float(weights[k]), g, q);
    }
    if (sizeof(T) == 4) q -= shift_gradient * mean;
    q *= rstd;
#pragma unroll 1
    for (int k = 0; k < 2 * s.leads; ++k) {
      float& g = segment[k * s.width + c];
      g = scale * (g - q * rstd * spread[k]);
    }
    segment[kNormWeight * s.width + c] = q;
    segment[kNormBias * s.width + c] = shift_gradient;
  }
}

struct SignalGradientMemory {
  float* pull;   // [kPatch][kPatch]
  float* slide;  // [kPatch]
  float* means;  // [kPatch]
  __host__ __device__ explicit SignalGradientMemory(SharedArena& arena)
      : pull(arena.take<float>(kPatch * kPatch)),
        slide(arena.take<float>(kPatch)),
        means(arena.take<float>(kPatch)) {}
};

// dx = dz (scale W) for every sample that a patch covers, less sum_c scale_c s_c W_c / P + pull x in the P
// patches that the norm's statistics are of, with pull = sum_c scale_c q_c W_c W_c^T / (deviation P).
// `segment` is what stem_norm_gradient left.
template <typename T>
__device__ void signal_terms(const StemShape& s, const StemState& state, int64_t b, int valid,
                             const float* segment, const SignalGradientMemory& memory) {
  const T* weights = packed_layer<T>(state, s, 0);
  for (int v = threadIdx.x; v < kPatch * kPatch; v += kThreads) {
    const int k = v / kPatch, m = v % kPatch;
    float pull = 0.0f, slide = 0.0f;
    for (int c = 0; c < s.channels; ++c) {
      const float scale = state.affine[2 * (b * s.width + c)] / valid, w = to_float(weights[c * kPatch + k]);
      const float turn = scale * state.rstd[b * s.width + c] * segment[kNormWeight * s.width + c];
      pull = fmaf(turn * w, to_float(weights[c * kPatch + m]), pull);
      slide = fmaf(scale * segment[kNormBias * s.width + c], w, slide);
    }
    memory.pull[v] = pull;
    if (m == 0) memory.slide[k] = slide;
  }
  if (threadIdx.x < kPatch) memory.means[threadIdx.x] = state.means[b * kPatch + threadIdx.x];
}

// patch_grads: dz (scale W), [B, rows of layer 0, kPatch].
template <typename T>
__global__ void __launch_bounds__(kThreads)
    stem_grad_signal(StemShape s, StemState state, const bool* keep, const int64_t* lengths,
                     const float* sums, int parts, const float* patch_grads, T* out) {
  SharedArena arena;
  const SignalGradientMemory memory(arena);
  const int64_t b = blockIdx.x;
  const int samples = valid_samples(s, lengths, b), valid = samples / 2;
  signal_terms<T>(s, state, b, valid > 0 ? valid : 1, sums + b * parts * 2 * kPatch * s.width, memory);
  __syncthreads();
  const T* patches = static_cast<const T*>(state.patches) + b * s.patches * kPatch;
  const int rows = stem_rows(s, 0);
  for (int p = threadIdx.x; p < (s.samples + 1) / 2; p += kThreads) {
    float x[kPatch];
#pragma unroll
    for (int k = 0; k < kPatch; ++k)
      x[k] = p < s.patches ? to_float(patches[int64_t{p} * kPatch + k]) - memory.means[k] : 0.0f;
#pragma unroll 1
    for (int k = 0; k < 2 * s.leads; ++k) {
      const int lead = k / 2;
      const int64_t sample = 2 * int64_t{p} + k % 2;
      float g = 0.0f;
      if (p < s.patches && sample < samples && (!keep || keep[b * s.leads + lead])) {
        g = p < rows ? patch_grads[(b * rows + p) * kPatch + k] : 0.0f;
        if (p < valid) g -= memory.slide[k] + patch_dot(x, memory.pull + k * kPatch);
      }
      if (sample < s.samples) out[(b * s.leads + lead) * s.samples + sample] = from_float<T>(g);
    }
  }
}

// partial[blockIdx.y] = column sums of a part of the rows; 64 columns by 4 rows of threads.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    stem_bias_sums(const T* grads, int64_t rows, int width, float* partial) {
  SharedArena arena;
  float* sums = arena.take<float>(kThreads);
  const int column = blockIdx.x * 64 + threadIdx.x % 64;
  const int64_t first = rows * blockIdx.y / kBiasSplits, last = rows * (blockIdx.y + 1) / kBiasSplits;
  float sum = 0.0f;
  if (column < width)
    for (int64_t r = first + threadIdx.x / 64; r < last; r += 4) sum += to_float(grads[r * width + column]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < 64 && column < width)
    partial[int64_t{blockIdx.y} * width + column] =
        sums[threadIdx.x] + sums[threadIdx.x + 64] + sums[threadIdx.x + 128] + sums[threadIdx.x + 192];
}

struct StemSums {
  const float* segments;  // [B, parts, tap, kPatch, W]: the first of each is the segment's gradients
  int parts;
  const float* weights;  // layer 1's [first_splits, C, 2W], then every further layer's [splits, C, 2W]
  int first_splits, splits;
  const float* biases;  // [layers - 1, kBiasSplits, W]
};

__device__ inline float strided_sum(const float* x, int n, int64_t step) {
  float sum = 0.0f;
#pragma unroll 8
  for (int i = 0; i < n; ++i) sum += x[i * step];
  return sum;
}

// Layer 0 and the norm: four threads of a warp share the segments of one sum.
template <typename T>
__device__ void finish_layer0(const StemShape& s, const StemSums& in, const StemGradients& out) {
  const int64_t segment = int64_t{in.parts} * 2 * kPatch * s.width;
  const int group = threadIdx.x / 8 % 4;
  const int64_t rounded = divide_up(int64_t{kPatch} * s.width, kThreads / 4) * (kThreads / 4);
  for (int64_t v = int64_t{blockIdx.x} * (kThreads / 4) + threadIdx.x / 32 * 8 + threadIdx.x % 8; v < rounded;
       v += int64_t{gridDim.x} * (kThreads / 4)) {
    const int k = v / s.width, c = v % s.width;
    const bool inside = k < kPatch && c < s.channels;
    float sum = 0.0f;
    if (inside)
      sum = strided_sum(in.segments + group * segment + v, divide_up(s.batch - group, 4), 4 * segment);
    sum += __shfl_xor_sync(~0u, sum, 8);
    sum += __shfl_xor_sync(~0u, sum, 16);
    if (!inside || group) continue;
    if (k < 2 * s.leads)
      static_cast<T*>(out.weights[0])[int64_t{c} * 2 * s.leads + k] = from_float<T>(sum);
    else if (k == kNormWeight)
      static_cast<T*>(out.gn_weight)[c] = from_float<T>(sum);
    else if (k == kNormBias)
      static_cast<T*>(out.gn_bias)[c] = from_float<T>(sum);
  }
}

// Writes all gradients of the parameters; blockIdx.y is the layer.
template <typename T>
__global__ void __launch_bounds__(kThreads) stem_finish(StemShape s, StemSums in, StemGradients out) {
  const int layer = blockIdx.y;
  T* bias = static_cast<T*>(out.biases[layer]);
  if (bias && blockIdx.x == 0)
    for (int c = threadIdx.x; c < s.channels; c += kThreads) {
      const float* from = in.biases + (layer - 1) * int64_t{kBiasSplits} * s.width + c;
      // The norm takes any bias of layer 0 out again.
      bias[c] = from_float<T>(layer == 0 ? 0.0f : strided_sum(from, kBiasSplits, s.width));
    }
  if (layer == 0) return finish_layer0<T>(s, in, out);
  const int64_t split = int64_t{2} * s.channels * s.width;
  const int splits = layer == 1 ? in.first_splits : in.splits;
  const float* weights =
      in.weights + (layer == 1 ? 0 : (in.first_splits + (layer - 2) * int64_t{in.splits}) * split);
  T* to = static_cast<T*>(out.weights[layer]);
  for (int64_t v = int64_t{blockIdx.x} * kThreads + threadIdx.x; v < int64_t{s.channels} * s.channels;
       v += int64_t{gridDim.x} * kThreads) {
    const float* from = weights + v / s.channels * 2 * s.width + v % s.channels;
    to[2 * v] = from_float<T>(strided_sum(from, splits, split));
    to[2 * v + 1] = from_float<T>(strided_sum(from + s.width, splits, split));
  }
}

}  // namespace ecgfast::cuda
