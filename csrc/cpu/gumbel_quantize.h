#pragma once
#include "types.h"

namespace ecgfast {

// "wide" is double where logits_type is f64, else float.
struct GumbelArgs {
  DType logits_type, codebook_type;
  bool hard;
  int64_t R, G, V, W;  // rows, groups, entries per group, width of an entry
  int64_t chunk_rows;  // rows are worked on in chunks that depend on the sizes alone
  double inv_temperature;
  const void* logits;    // [R, G*V]
  const void* codebook;  // [G, V, W]
  const void* noise;     // wide [R, G*V] or null
  bool draw;             // the noise, where none is given
  int64_t seed, step;
  const int64_t* sample_ids;  // [R / rows_per_sample], or null: all rows are of sample 0
  int64_t rows_per_sample;
  void* panels;                 // wide: the codebook (soft forward) or its transpose (backward), packed
  void* partial;                // wide: per chunk, what is summed over rows
  void* quantized;              // [R, G*W]
  int32_t* codes;               // [R, G]
  void* mean_probs;             // wide [G, V]
  const void* grad_quantized;   // [R, G*W] or null
  const void* grad_mean_probs;  // wide [G, V] or null
  void* grad_logits;            // [R, G*V]
  void* grad_codebook;          // [G, V, W]
};

// The parts of the forward and backward pass, each over a range of independent pieces of work.
enum class GumbelPass : int32_t {
  pack,               // per group: the codebook into panels
  pack_transposed,    // the same, transposed
  forward,            // per chunk of rows: quantized, codes, partial sums of the probabilities
  mean_probs,         // per group
  backward,           // per chunk of rows: grad_logits and, unless hard, partial sums for the codebook
  codebook_backward,  // per group and kGumbelEntries entries
};
constexpr int64_t kGumbelEntries = 32;

struct GumbelSizes {
  int64_t scratch;          // bytes of a thread
  int64_t panels, partial;  // elements of the wide type
};

}  // namespace ecgfast
