#pragma once
#include "types.h"

namespace ecgfast {

// Layer 0 maps 2L values (lead, tap) to C channels, every further layer 2C (tap, channel) to C. Channels are
// padded to Cp = patch_embed_channels(C) in everything that is internal: `saved`, `packed`, `partials`.
struct StemArgs {
  DType dtype;  // of weights, tokens, gradients, and of the signal unless it is int16
  bool signal_is_int16;
  bool has_bias;
  int64_t B, L, T, C, n_layers, N;  // N tokens: T halved n_layers times
  double eps;
  const void* signal;          // [B, L, T]
  const bool* keep;            // [B, L] or null
  const int64_t* lengths;      // [B] or null: samples that count; the others read as zero, see stem.h
  const void* const* weights;  // n_layers of [C, Cin, 2]
  const void* const* biases;   // n_layers of [C] where has_bias
  const void* gn_weight;       // [C]
  const void* gn_bias;         // [C]
  const void* packed;          // weights in panels
  void* tokens;                // [B, N, C], written forward
  void* saved;              // [B, rows, Cp]: pre-activations of the layers 1 to n_layers - 1; null: not kept
  const void* grad_tokens;  // [B, N, C]
  void* grad_signal;        // [B, L, T] or null
  void* const* grad_weights;
  void* const* grad_biases;
  void* grad_gn_weight;
  void* grad_gn_bias;
};

struct StemSizes {
  int64_t channels;        // Cp
  int64_t saved_rows;      // of Cp values per segment
  int64_t packed_bytes;    // all layers' weights in panels
  int64_t partials_bytes;  // one chunk's sums of gradients
  int64_t forward_scratch, backward_scratch;
};

}  // namespace ecgfast
