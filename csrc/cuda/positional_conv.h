// The positional convolution's kernels as plain functions.
#pragma once
#include <stddef.h>

#include "dtype.h"

namespace ecgfast::cuda {

// Inputs of positional_conv; see ecgfast/ops/positional_conv.py. All tensors contiguous.
struct PositionalConv {
  const void* x;       // [B, N, E]
  const void* weight;  // [E, E / groups, K]
  int64_t batch;
  int tokens, width, groups, kernel;  // N, E, groups, K, all at least 1
};

struct PositionalConvGradients {
  const void* grad_out;  // [B, N, E]
  const void* conv;      // [B, N, E]: the convolution with bias, of the forward pass
  void* grad_x;          // [B, N, E] or null
  void* grad_weight;     // [E, E / groups, K] or null, together with grad_bias
  void* grad_bias;       // [E]
};

// Bytes of device memory that a call needs, at an address that is a multiple of 256. For 16-bit dtypes and
// channels per group that are multiples of 48: forward the weight once; backward the weight, x, at most
// max(1, 128 / blocks) times the weight in float32, and 1/32 of x. float32 takes 1.5 bytes (in TF32 1) for
// each byte of these (and of x, forward); other numbers of channels are rounded up to 16 (x) and 48
// (weights).
size_t positional_conv_workspace(const PositionalConv& in, Dtype dtype);
size_t positional_conv_backward_workspace(const PositionalConv& in, Dtype dtype, bool need_x,
                                          bool need_parameters);

// These functions take Dtype::tf32 as well. `conv` may be null.
cudaError_t positional_conv(const PositionalConv& in, Dtype dtype, const void* bias, void* out, void* conv,
                            void* workspace, cudaStream_t stream);
cudaError_t positional_conv_backward(const PositionalConv& in, Dtype dtype,
                                     const PositionalConvGradients& gradients, void* workspace,
                                     cudaStream_t stream);

}  // namespace ecgfast::cuda
