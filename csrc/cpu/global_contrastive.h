#pragma once
#include "types.h"

namespace ecgfast {

// One block of rows of a against one block of rows of b at a time. Index 0 is a's side (rows of the matrix of
// similarities), 1 is b's (columns). "wide" is double where dtype is f64, else float.
struct GlobalArgs {
  DType dtype;
  bool detach_norm, backward;
  int64_t N[2], D;
  double inv_temperature;
  double factor;                // of the gradient: grad_loss / (2 * number of positive pairs)
  const void* x[2];             // [N, D]
  const int32_t* group[2];      // [N]: equal numbers are positives, none is negative
  const int32_t* positives[2];  // [N]: how many the other side has
  double* lse[2];               // [N], written forward, read backward
  void* inv_norms[2];           // wide [N], written forward, read backward
  void* loss;                   // wide, written forward
  void* grad[2];                // [N, D]; grad[1] null: not wanted

  int64_t begin[2], size[2];  // the blocks worked on
  int64_t most_workspace;     // bytes that the blocks may take, unless 96 rows alone ask for more
  void* workspace;            // global_sizes().workspace bytes, shared by all threads
  void* sums;  // wide [global_sizes().sums]: forward, running sums; backward, factors of rows and columns
  void* grad_right;  // wide [N[1], D]: accumulates b's gradient; grad[1] itself where that is wide
  // [N[0]] or null: backward, clear; gets sum_j (s_ij - moment_shift) times the gradient to cosine_ij. These
  // gradients sum up to 0, so that any shift gives the same but for rounding; the best is a typical s_ij.
  double* moments;
  double moment_shift;
  // Backward, where products round the gradients of the similarities to bf16 (global_sizes().rounds):
  // the squares of what is rounded, by rows of a, as far as they enter the gradients of a and of b ([N[0]],
  // clear; the second null where b's gradient is not wanted), and of these gradients ([N]).
  double *noise[2], *square[2];
  bool precise;  // don't round them
};

// The parts of both passes, each over a range of independent pieces of work.
enum class GlobalPass : int32_t {
  norms,          // rows of a, then of b
  begin,          // one piece: clears the sums, or computes the factors
  pack_left,      // row panels of a's block
  pack_right,     // column panels of b's block
  forward,        // row panels: similarities and their sums along rows; along columns within a panel
  merge_columns,  // column panels: adds the row panels' sums along columns
  loss,           // one piece
  gradients,      // row panels: similarities, their gradients, and the gradient of a's block
  products,       // row panels' worth of columns: adds to the gradient of b
  finish_left,    // row panels of a's block: writes its gradient
  finish_right,   // column panels of b's block: writes its gradient
};

struct GlobalSizes {
  int64_t block[2];            // rows of a and of b to work on at a time
  int64_t panel[2];            // rows of a row panel, columns of a column panel
  int64_t workspace, scratch;  // bytes
  int64_t sums;                // elements of the wide type
  bool rounds;                 // see GlobalArgs::noise
};

}  // namespace ecgfast
