#pragma once
#include "types.h"

namespace ecgfast {

// "wide" is double where logits_type is f64, else float.
struct GumbelArgs {
  DType logits_type, codebook_type;
  bool hard;
  int64_t R, G, V, W;  // rows, groups, entries per group, width of an entry
  int64_t chunk_rows;  // GumbelSizes::chunk_rows
  double inv_temperature;
  const void* logits;    // [R, G*V]
  const void* codebook;  // [G, V, W]
  const void* noise;     // wide [R, G*V] or null
  bool draw;             // the noise, where none is given
  int64_t seed, step;
  const int64_t* sample_ids;  // [R / rows_per_sample], or null: all rows are of sample 0
  int64_t rows_per_sample;
  // wide [R, G*V] or null: exp((y - max y) / temperature), y the noisy logits of a row's group. The forward
  // pass keeps it for the backward pass, which draws and computes it again where it isn't there.
  void* choice;
  void* panels;                 // the codebook (soft forward) or its transpose (backward), packed
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
  pack,        // per group: the codebook into panels, for the soft form
  forward,     // per chunk of rows: quantized, codes, partial sums of the probabilities
  mean_probs,  // per group
  // Pieces of GumbelSizes::prepare: the codebook's transpose into panels and, if hard, its gradient.
  prepare_backward,
  backward,  // per chunk of rows: grad_logits and, unless hard, partial sums for the codebook
  // Pieces of GumbelSizes::finish: the codebook's gradient, if not done yet.
  finish_backward,
};

struct GumbelSizes {
  // Rows are worked on in chunks that follow from the sizes alone, so that sums don't depend on the threads.
  int64_t chunk_rows, chunks;
  int64_t scratch;          // bytes of a thread
  int64_t panels;           // bytes
  int64_t partial;          // elements of the wide type
  int64_t prepare, finish;  // pieces of work before and after the rows of the backward pass
};

}  // namespace ecgfast
