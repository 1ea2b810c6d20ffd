#pragma once
#include "types.h"

namespace ecgfast {

// The loss over pairs of leads. The rows that are present are numbered through, lead after lead, and cut into
// blocks of one lead; a cell is a block of rows of a's side against one of b's side for one pair. Index 0 is
// a's side (left), 1 is b's (right). "wide" is double where dtype is f64, else float.
struct RowBlock {
  int64_t lead, begin, size;  // its rows are [begin, begin + size)
};

struct Cell {
  int64_t left, right, pair;  // blocks
};

struct PairsArgs {
  DType dtype;
  bool detach_norm, backward;
  bool alone;      // b is a: in a pair of a lead with itself, cells hold the similarities above the diagonal
  bool negatives;  // each positive against the negatives alone
  bool precise;    // don't round the gradients of the similarities
  int64_t D, n_groups;
  int64_t rows;     // of a's side that are present
  int64_t n_pairs;  // Q
  double inv_temperature;
  const void* x[2];           // [., D]
  const int64_t* source[2];   // of a present row: its number among all rows of x
  const int32_t* group[2];    // of a present row
  const int64_t* lead[2];     // the first row of each lead, and the end
  const int64_t* members[2];  // [L, n_groups + 1]: where each group's part of `order` begins
  const int64_t* order[2];    // rows, sorted by lead and group
  const int64_t* pairs;       // [Q, 2]
  const RowBlock* block[2];
  int64_t most[2];             // rows of a lead: the stride of a pair's statistics
  void* inv_norms[2];          // wide, of each row
  double* lse[2];              // [Q, most]: log(sum exp(s)); with `negatives`, what takes its place
  double* lse_negatives[2];    // [Q, most], with `negatives`: log(sum exp(s)) of the negatives
  double* terms[2];            // [Q, most], forward with `negatives`: a row's losses
  const double* factor;        // [Q], backward: of the gradient
  double moment_shift;         // backward: see GlobalArgs
  double *moments, *noise[2];  // [left blocks] or null; see GlobalArgs
  double* square[2];           // of each row
  void* grad[2];               // [., D]
  void* sum[2];                // wide [rows, D]: accumulates; sum[1] is sum[0] where b is a

  // Forward: of rows and of columns.
  void *total[2], *max[2];  // wide [Q, most]
  void* positive;           // wide [Q, most[0]]: a row's sum of similarities to positives

  // What is worked on: blocks that are packed, and of these a batch of cells, sorted by left block.
  int64_t begin[2], size[2];
  const Cell* cells;
  const int64_t* of_block[2];  // where each packed block's part of `cells` and of `by_right` begins
  const int64_t* by_right;     // cells of the batch, by right block
  int64_t most_packed[2], most_cells;
  void* workspace;
};

enum class PairsPass : int32_t {
  norms,      // rows, a's and then b's
  pack_left,  // blocks
  pack_right,
  forward,        // left blocks: the similarities of their cells and their sums
  merge_columns,  // right blocks: adds the sums along columns
  positives,      // [pairs, rows of a, rows of b]: sums over positives, with `negatives`
  gradients,      // left blocks: gradients of similarities, and what they add to a's side
  products,       // right blocks: what they add to b's side
  finish,         // rows: a's, and b's where b isn't a
};

struct PairsSizes {
  int64_t block[2];   // the most rows of a block
  int64_t packed[2];  // bytes of a packed block
  int64_t cell;       // bytes of a cell
  int64_t scratch;    // bytes of a thread
  bool bounded;       // 1 / temperature is subtracted from similarities before the exponential
  bool rounds;        // see GlobalArgs::noise
};

// How many positives a row of a pair has on the other side.
inline int64_t positives_of(const PairsArgs& a, int side, int64_t pair, int64_t row) {
  const int64_t *leads = a.pairs + 2 * pair, other = leads[1 - side];
  const int64_t* at = a.members[1 - side] + other * (a.n_groups + 1) + a.group[side][row];
  return at[1] - at[0] - (a.alone && leads[0] == leads[1]);
}

}  // namespace ecgfast
