// patch_embed on the device: stems of 2 to kStemMaxLayers layers and at most kStemMaxLeads leads.
#pragma once
#include "dtype.h"

namespace ecgfast::cuda {

constexpr int kStemMaxLayers = 31;
constexpr int kStemMaxLeads = 15;

// A segment has P = T / 2 patches (two samples of every lead) and N * 2^(layers - 1 - l) rows after layer l.
struct StemShape {
  int64_t batch;
  int leads, samples, channels, layers;
  int patches, tokens;  // P, N
  int width;            // W: channels of a row as it is kept, a multiple of 8; those beyond C are zero
};

StemShape stem_shape(int64_t batch, int64_t leads, int64_t samples, int64_t channels, int64_t layers);

// All tensors contiguous, of one dtype but for an int16 signal.
struct StemInputs {
  const void* signal;  // [B, L, T], mV or int16 uV
  bool signal_is_int16;
  const bool* keep;                     // [B, L] or null
  const int64_t* lengths;               // [B] or null: samples that count; the others read as zero
  const void* weights[kStemMaxLayers];  // [C, L, 2], then [C, C, 2]
  const void* biases[kStemMaxLayers];   // [C] or all null
  const void *gn_weight, *gn_bias;      // [C]
  float eps;
};

struct StemGradients {
  const void* tokens;  // [B, N, C]: of the result
  void* signal;        // or null
  void* weights[kStemMaxLayers];
  void* biases[kStemMaxLayers];
  void *gn_weight, *gn_bias;
};

// What a pass keeps for later kernels, in elements of the dtype; the backward pass needs that of a forward
// pass with slopes.
int64_t stem_state_elements(const StemShape& shape, Dtype dtype, bool slopes);
// What the backward pass needs besides, in bytes. Its sums are split to fill about `blocks` thread blocks at
// a time. They depend on it in their last bits, so that it is a constant, not the device's size.
constexpr int kStemBlocks = 256;
int64_t stem_workspace_bytes(const StemShape& shape, Dtype dtype, bool for_signal, bool has_bias,
                             int blocks = kStemBlocks);

// No dtype lowers the precision of the norm's statistics.
cudaError_t patch_embed(const StemShape& shape, const StemInputs& in, Dtype dtype, void* state, bool slopes,
                        void* tokens, cudaStream_t stream);
cudaError_t patch_embed_backward(const StemShape& shape, const StemInputs& in, Dtype dtype, const void* state,
                                 void* workspace, const StemGradients& grads, cudaStream_t stream,
                                 int blocks = kStemBlocks);

}  // namespace ecgfast::cuda
