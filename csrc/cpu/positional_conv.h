#pragma once
#include "fft_plan.h"
#include "types.h"

namespace ecgfast {

// x + GELU(conv(x)) through the frequency domain. A row is a piece of a sequence: its outputs (backward: its
// inputs) are [s * segment, (s + 1) * segment) of the sequence, s = row % segments. The accumulation type is
// float, or double where dtype is f64.
struct ConvArgs {
  DType dtype;
  int64_t B, N, groups;
  int64_t C;                      // channels per group, both in and out
  int64_t kernel;                 // taps per channel pair in memory
  int64_t first_tap, taps, left;  // the taps that reach any element, and how far the first one reaches back
  int64_t segment, segments;
  int64_t row_chunk;  // rows whose spectra are held at a time
  FftPlan plan;
  const void* x;         // [B, N, E]
  const void* weight;    // [E, C, kernel]
  const void* bias;      // [E]
  void* out;             // [B, N, E], written forward
  void* conv;            // [B, N, E] convolution with bias: written forward unless null, read backward
  const void* grad_out;  // [B, N, E]
  void* grad_x;          // [B, N, E] or null
  void* grad_weight;     // [E, C, kernel] or null
  void* grad_bias;       // [E] or null
};

}  // namespace ecgfast
