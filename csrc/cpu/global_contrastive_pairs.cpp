// Global contrastive loss over pairs of leads, of a batch against itself, of the rows that are present: cells
// of a block of rows against another, whose similarities a thread keeps in its cache. Compiled once per ISA.
// Similarities and their sums are made as in global_contrastive.cpp.
#include "arena.h"
#include "global_contrastive_common.h"
#include "kernels.h"

namespace ecgfast {
namespace {

constexpr int64_t kMostRows = 128;  // of a block

static int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

// `P`: the products.
template <class In, class P>
struct PairsLayout {
  using T = Acc<In>;
  using Element = typename P::Element;
  static constexpr int64_t W = P::kColumns, R = P::kRows;
  int64_t dp, ld;                                    // D padded; of a tile of similarities
  int64_t rows, cols;                                // of a block, padded
  int64_t left, left_rows, right, right_rows, cell;  // elements of a packed block, of a cell
  Element *lefts, *rights, *cells;
  T *col_max, *col_sum;

  PairsLayout(const PairsArgs& a, void* base) : dp(round_up(a.D, W)) {
    rows = round_up(least(least(P::kGroup / R * R, kMostRows), spread(a, 0)), R);
    if (rows > P::kGroup / R * R) rows = P::kGroup / R * R;
    cols = round_up(least(kMostRows, spread(a, 1)), W);
    ld = cols + 16;  // no power of two: rows of a tile fall on different cache sets
    left = P::left_elements(rows, a.D);
    right = P::right_elements(a.D, cols);
    left_rows = a.backward ? P::right_elements(rows, a.D) : 0;
    right_rows = a.backward ? P::right_elements(cols, a.D) : 0;
    cell = a.backward ? P::left_elements(cols, rows) : 0;
    Arena arena(base);
    lefts = arena.take<Element>(a.most_packed[0] * (left + left_rows));
    rights = arena.take<Element>(a.most_packed[1] * (right + right_rows));
    cells = arena.take<Element>(a.most_cells * cell);
    col_max = arena.take<T>(a.backward ? 0 : a.most_cells * cols);
    col_sum = arena.take<T>(a.backward ? 0 : a.most_cells * cols);
  }

  // A single pair is cut up, so that several threads have work and cells below a diagonal are left out.
  static int64_t spread(const PairsArgs& a, int side) {
    const int64_t part = a.n_pairs >= 8 ? a.most[side] : (a.most[side] + 7) / 8;
    return part > 32 ? part : 32;
  }
};

// One thread's scratch.
template <class In, class P>
struct PairsScratch {
  using T = Acc<In>;
  T *rows, *tile, *col_norm, *col_factor, *col_count, *col_negatives;
  typename P::Element* left;
  int32_t* col_group;
  int64_t bytes;

  PairsScratch(const PairsArgs& a, const PairsLayout<In, P>& l, void* base) {
    Arena arena(base);
    rows = arena.take<T>((l.W > l.R ? l.W : l.R) * l.dp);
    tile = arena.take<T>(l.rows * l.ld);
    left = a.backward ? arena.take<typename P::Element>(P::left_elements(l.rows, l.cols)) : nullptr;
    T** columns[4] = {&col_norm, &col_factor, &col_count, &col_negatives};
    for (T** column : columns) *column = arena.take<T>(l.cols);
    col_group = arena.take<int32_t>(l.cols);
    bytes = arena.bytes();
  }
};

template <class In, class P>
struct Pairs {
  using T = Acc<In>;
  using V = Vec<T>;
  using Index = decltype(V{} > V{});
  static constexpr bool kRounds = kSame<typename P::Element, uint16_t> && P::kRaw;
  static constexpr int64_t L = kLanes<T>, W = P::kColumns, R = P::kRows;
  const PairsArgs& a;
  PairsLayout<In, P> w;
  PairsScratch<In, P> s;
  bool bounded;
  T shift;

  Pairs(const PairsArgs& args, void* scratch)
      : a(args),
        w(args, args.workspace),
        s(args, w, scratch),
        bounded(2 * args.inv_temperature <= kMostBounded),
        shift(static_cast<T>(args.inv_temperature)) {}

  static T infinity() { return static_cast<T>(__builtin_inf()); }
  const In* x(int side, int64_t row) const {
    return static_cast<const In*>(a.x[side]) + a.source[side][row] * a.D;
  }
  T& inv_norm(int side, int64_t row) const { return static_cast<T*>(a.inv_norms[side])[row]; }
  T* sum(int side, int64_t row) const { return static_cast<T*>(a.sum[side]) + row * a.D; }
  int64_t lead_of(int side, int64_t pair) const { return a.pairs[2 * pair + side]; }
  bool is_self(int64_t pair) const { return a.alone && lead_of(0, pair) == lead_of(1, pair); }
  // Of a row of a pair's statistics.
  int64_t at(int side, int64_t pair, int64_t row) const {
    return pair * a.most[side] + row - a.lead[side][lead_of(side, pair)];
  }

  void norm(int64_t i, int64_t rows) const {
    const int side = i >= rows;
    const int64_t row = side ? i - rows : i;
    widen(x(side, row), a.D, w.dp, s.rows);
    inv_norm(side, row) = inverse_norm(s.rows, w.dp, kEps);
  }

  // One row, of length 1.
  void unit_row(int side, int64_t row, T* out) const {
    widen(x(side, row), a.D, w.dp, out);
    scale(out, inv_norm(side, row), w.dp);
  }

  // f(rows, stride) of n rows from `row` on: of length 1, or as they are where the products want them raw.
  template <class F>
  void with_rows(int side, int64_t row, int64_t n, F f) const {
    if constexpr (P::kRaw) {
      In* rows = reinterpret_cast<In*>(s.rows);
      bool adjacent = true;
      for (int64_t r = 1; r < n; ++r) adjacent &= a.source[side][row + r] == a.source[side][row] + r;
      if (adjacent) return f(x(side, row), a.D);
      for (int64_t r = 0; r < n && a.D > 0; ++r) memcpy(rows + r * a.D, x(side, row + r), sizeof(In) * a.D);
      f(static_cast<const In*>(rows), a.D);
    } else {
      for (int64_t r = 0; r < n; ++r) unit_row(side, row + r, s.rows + r * w.dp);
      f(static_cast<const T*>(s.rows), w.dp);
    }
  }

  auto* packed(int side, int64_t block) const {
    const int64_t slot = block - a.begin[side];
    return side ? w.rights + slot * (w.right + w.right_rows) : w.lefts + slot * (w.left + w.left_rows);
  }
  auto* packed_rows(int side, int64_t block) const { return packed(side, block) + (side ? w.right : w.left); }

  void pack_left(int64_t index) const {
    const int64_t number = a.begin[0] + index;
    const RowBlock& block = a.block[0][number];
    for (int64_t i = 0; i < block.size; i += R) {
      const int64_t valid = least(R, block.size - i);
      with_rows(0, block.begin + i, valid, [&](const auto* rows, int64_t ld) {
        P::pack_left(rows, ld, valid, a.D, packed(0, number) + P::left_elements(i, a.D));
        if (a.backward) P::pack_right_rows(rows, ld, i, valid, a.D, block.size, packed_rows(0, number));
      });
    }
  }

  void pack_right(int64_t index) const {
    const int64_t number = a.begin[1] + index;
    const RowBlock& block = a.block[1][number];
    for (int64_t j = 0; j < block.size; j += W) {
      const int64_t valid = least(W, block.size - j);
      with_rows(1, block.begin + j, valid, [&](const auto* rows, int64_t ld) {
        P::pack_right(rows, ld, j, valid, a.D, packed(1, number));
        if (a.backward) P::pack_right_rows(rows, ld, j, valid, a.D, block.size, packed_rows(1, number));
      });
    }
  }

  // A cell, and what of it takes part: columns from first(r) on in row r.
  struct Part {
    const Cell& cell;
    const RowBlock &left, &right;
    bool self;
    int64_t first(int64_t r) const {
      const int64_t j = left.begin + r + 1 - right.begin;
      return !self || j < 0 ? 0 : least(j, right.size);
    }
  };
  Part part(const Cell& cell) const {
    return {cell, a.block[0][cell.left], a.block[1][cell.right], is_self(cell.pair)};
  }

  // The dot products of a cell, but for columns that take no part in any row.
  void dots(const Part& p) const {
    const int64_t j = p.first(0) / W * W;
    const auto left = P::packed(packed(0, p.cell.left), a.D);
    P::template multiply<false>(round_up(p.left.size, R), p.right.size - j, a.D, left,
                                packed(1, p.cell.right) + P::right_elements(a.D, j), s.tile + j, w.ld,
                                w.ld - j);
  }

  // What a cell's columns are multiplied by, and what else they bring along.
  void describe_columns(const Part& p) const {
    const int64_t pair = p.cell.pair;
    for (int64_t j = 0; j < w.cols; ++j) {
      const bool exists = j < p.right.size;
      const int64_t row = p.right.begin + j;
      s.col_group[j] = exists ? a.group[1][row] : -1;  // equal to none
      if (P::kRaw) s.col_norm[j] = exists ? inv_norm(1, row) : T(0);
      if (!a.backward) continue;
      const double count = exists ? positives_of(a, 1, pair, row) : 0;
      s.col_factor[j] = exists ? factor(1, pair, row, count) : T(0);
      s.col_count[j] = exists ? counted(1, pair, row, count) : T(0);
      if (a.negatives)
        s.col_negatives[j] = exists ? static_cast<T>(a.lse_negatives[1][at(1, pair, row)]) : T(0);
    }
  }

  double slope_of(int64_t pair) const { return a.factor[pair] * a.inv_temperature; }
  // Of a row's softmax in the gradients: of exp(similarity - shift) where bounded, else the logsumexp.
  T factor(int side, int64_t pair, int64_t row, double count) const {
    const double lse = a.lse[side][at(side, pair, row)];
    if (!bounded) return static_cast<T>(lse);
    return static_cast<T>(slope_of(pair) * count * __builtin_exp(a.inv_temperature - lse));
  }
  // A number of positives, times the exponential of what factor() leaves away, to first order.
  T counted(int side, int64_t pair, int64_t row, double count) const {
    const double lse = a.lse[side][at(side, pair, row)];
    return static_cast<T>(count * (1.0 - (lse - static_cast<T>(lse))));
  }

  T row_scale(int64_t row) const { return P::kRaw ? shift * inv_norm(0, row) : shift; }
  V raw_scale(int64_t j) const { return P::kRaw ? load(s.col_norm + j) : V{} + T(1); }

  Index positives(int32_t group, int64_t j) const {
    if constexpr (kSame<T, float>) {
      return bit_cast<VI>(load(s.col_group + j)) == group;
    } else {
      Index same;
      for (int l = 0; l < L; ++l) same[l] = s.col_group[j + l] == group ? -1 : 0;
      return same;
    }
  }

  // f(j, similarities of row r with columns j to j + L - 1, which of them are positives), from the first
  // vector of columns that takes part; similarities that take no part are -infinity.
  template <class F>
  void for_similarities(const Part& p, int64_t r, const T* dots, F f) const {
    const int64_t row = p.left.begin + r, first = p.first(r);
    const int32_t group = a.group[0][row];
    const T by = row_scale(row);
    for (int64_t j = first / L * L; j < p.right.size; j += L) {
      V v = load(dots + j) * raw_scale(j) * by;
      Index hit = positives(group, j);
      if (j < first || j + L > p.right.size)
        for (int64_t l = 0; l < L; ++l)
          if (j + l < first || j + l >= p.right.size) {
            v[l] = -infinity();
            hit[l] = 0;
          }
      f(j, v, hit);
    }
  }

  template <class F>
  void for_cells(int64_t index, F f) const {
    for (int64_t c = a.of_block[0][index]; c < a.of_block[0][index + 1]; ++c) f(c, part(a.cells[c]));
  }

  void forward(int64_t index) const {
    for_cells(index, [&](int64_t c, const Part& p) {
      describe_columns(p);
      dots(p);
      a.negatives ? sum<true>(c, p) : sum<false>(c, p);
    });
  }

  template <bool Negatives>
  void sum(int64_t c, const Part& p) const {
    bounded ? sum_bounded<Negatives>(c, p) : sum_running<Negatives>(c, p);
  }

  T& total(int side, int64_t at) const { return static_cast<T*>(a.total[side])[at]; }
  T& max(int side, int64_t at) const { return static_cast<T*>(a.max[side])[at]; }
  T& positive(int64_t at) const { return static_cast<T*>(a.positive)[at]; }

  template <bool Negatives>
  void sum_bounded(int64_t c, const Part& p) const {
    T* col = w.col_sum + c * w.cols;
    for (int64_t j = 0; j < w.cols; ++j) col[j] = 0;
    for (int64_t r = 0; r < p.left.size; ++r) {
      V sum = {}, hits = {};
      for_similarities(p, r, s.tile + r * w.ld, [&](int64_t j, V v, Index hit) {
        V e = exp_nonpositive(v - shift);
        if constexpr (Negatives) e = hit ? V{} : e;
        sum += e;
        store(col + j, load(col + j) + e);
        hits += hit ? v : V{};
      });
      const int64_t i = at(0, p.cell.pair, p.left.begin + r);
      total(0, i) += reduce_add<T>(sum);
      positive(i) += reduce_add<T>(hits);
    }
  }

  // Of nothing the maximum is -infinity and the sum 0.
  static V from(V most) { return most == -infinity() ? V{} : most; }

  template <bool Negatives>
  void sum_running(int64_t c, const Part& p) const {
    const int64_t cols = round_up(p.right.size, L);
    for (int64_t r = 0; r < p.left.size; ++r) {
      T* row = s.tile + r * w.ld;
      V hits = {}, most = V{} - infinity(), sum = {};
      for (int64_t j = 0; j < p.first(r) / L * L; j += L) store(row + j, V{} - infinity());
      for_similarities(p, r, row, [&](int64_t j, V v, Index hit) {
        hits += hit ? v : V{};
        if constexpr (Negatives) v = hit ? V{} - infinity() : v;
        most = v > most ? v : most;
        store(row + j, v);
      });
      const T largest = reduce_max<T>(most);
      const V base = from(V{} + largest);
      for (int64_t j = 0; j < cols; j += L) sum += exp_nonpositive(load(row + j) - base);
      const int64_t i = at(0, p.cell.pair, p.left.begin + r);
      merge(max(0, i), total(0, i), largest, reduce_add<T>(sum));
      positive(i) += reduce_add<T>(hits);
    }
    for (int64_t j = 0; j < cols; j += L) {
      V most = V{} - infinity(), sum = {};
      for (int64_t r = 0; r < p.left.size; ++r) {
        const V v = load(s.tile + r * w.ld + j);
        most = v > most ? v : most;
      }
      const V base = from(most);
      for (int64_t r = 0; r < p.left.size; ++r) sum += exp_nonpositive(load(s.tile + r * w.ld + j) - base);
      store(w.col_max + c * w.cols + j, most);
      store(w.col_sum + c * w.cols + j, sum);
    }
  }

  void merge_columns(int64_t index) const {
    for (int64_t k = a.of_block[1][index]; k < a.of_block[1][index + 1]; ++k) {
      const int64_t c = a.by_right[k];
      const Part p = part(a.cells[c]);
      const T *col_max = w.col_max + c * w.cols, *col_sum = w.col_sum + c * w.cols;
      for (int64_t j = 0; j < p.right.size; ++j) {
        const int64_t i = at(1, p.cell.pair, p.right.begin + j);
        bounded ? void(total(1, i) += col_sum[j]) : merge(max(1, i), total(1, i), col_max[j], col_sum[j]);
      }
    }
  }

  static double log_add(double x, double y) {
    const double most = x > y ? x : y, less = x > y ? y : x;
    return less == -__builtin_inf() ? most : most + __builtin_log1p(__builtin_exp(less - most));
  }

  // With n the negatives of a row and p its positives: the losses sum_p log(exp(s_p) + sum_n exp(s_n)) - s_p,
  // and L so that their gradient to s_n is, as where the softmax goes over all, exp(s_n - L) times the number
  // of positives: exp(-L) is the mean over p of 1 / (exp(s_p) + sum_n exp(s_n)).
  void positives(int64_t index) const {
    const int64_t pair = index / (a.most[0] + a.most[1]), rest = index % (a.most[0] + a.most[1]);
    const int side = rest >= a.most[0];
    const int64_t lead = lead_of(side, pair), row = a.lead[side][lead] + rest - (side ? a.most[0] : 0);
    if (row >= a.lead[side][lead + 1] || (side && is_self(pair))) return;
    const int64_t* members =
        a.members[1 - side] + lead_of(1 - side, pair) * (a.n_groups + 1) + a.group[side][row];
    const double negatives = a.lse_negatives[side][at(side, pair, row)];
    T *mine = s.rows, *other = s.rows + w.dp;
    unit_row(side, row, mine);
    double loss = 0, sum = 0, least = 0, count = 0;
    for (int64_t k = members[0]; k < members[1]; ++k) {
      const int64_t p = a.order[1 - side][k];
      if (is_self(pair) && p == row) continue;
      unit_row(1 - side, p, other);
      const double v = dot(mine, other, w.dp) * a.inv_temperature, both = log_add(v, negatives);
      loss += both - v;
      // A running sum of exp(least - both).
      if (count == 0 || both < least) {
        sum *= count == 0 ? 0 : __builtin_exp(both - least);
        least = both;
      }
      sum += __builtin_exp(least - both);
      ++count;
    }
    a.terms[side][at(side, pair, row)] = loss;
    const double lse = count > 0 ? least - __builtin_log(sum / count) : 0;
    a.lse[side][at(side, pair, row)] = lse;
    if (is_self(pair)) a.lse[1][at(1, pair, row)] = lse;
  }

  void gradients(int64_t index) const {
    for_cells(index, [&](int64_t c, const Part& p) {
      describe_columns(p);
      dots(p);
      for (int64_t r = 0; r < round_up(p.left.size, R); ++r) {
        T* row = s.tile + r * w.ld;
        const int64_t first = r < p.left.size ? p.first(r) / L * L : w.ld;
        for (int64_t j = 0; j < first; ++j) row[j] = 0;
        if (r >= p.left.size) continue;
        a.negatives ? differentiate<true>(p, r, row) : differentiate<false>(p, r, row);
        for (int64_t j = round_up(p.right.size, L); j < w.ld; ++j) row[j] = 0;
      }
      multiply_slopes(c, p);
    });
  }

  // No similarity is above its logsumexp, but by rounding.
  static V softmax(V v, V lse) { return exp_nonpositive(v > lse ? V{} : v - lse); }
  // 1 / (1 + exp(v - lse)).
  static V other_part(V v, V lse) {
    const V x = v - lse, t = exp_nonpositive(x > V{} ? -x : x);
    return (x > V{} ? t : V{} + T(1)) / (t + T(1));
  }

  // A row's dot products become the gradients of the loss to them. (Unless they are of raw rows, a missing
  // factor of the norms follows in finish.)
  template <bool Negatives>
  void differentiate(const Part& p, int64_t r, T* row) const {
    const int64_t i = p.left.begin + r, pair = p.cell.pair;
    const double positives = positives_of(a, 0, pair, i);
    const T slope = static_cast<T>(slope_of(pair)), norm = P::kRaw ? inv_norm(0, i) : T(1);
    const T own = factor(0, pair, i, positives), count = slope * counted(0, pair, i, positives);
    const V own_negatives = V{} + (Negatives ? static_cast<T>(a.lse_negatives[0][at(0, pair, i)]) : T(0));
    const T typical = static_cast<T>(a.moment_shift);
    V moment = {}, left_noise = {}, right_noise = {};
    for_similarities(p, r, row, [&](int64_t j, V v, Index hit) {
      V grad;
      if (bounded) {
        grad = exp_nonpositive(v - shift) * (load(s.col_factor + j) + own);
      } else {
        grad = count * softmax(v, V{} + own) +
               slope * load(s.col_count + j) * softmax(v, load(s.col_factor + j));
      }
      if constexpr (Negatives) {
        const V parts = other_part(v, own_negatives) + other_part(v, load(s.col_negatives + j));
        grad = hit ? -slope * parts : grad;
      } else {
        grad -= hit ? V{} + 2 * slope : V{};
      }
      const Index none = v == -infinity();
      if (a.moments) moment += none ? V{} : grad * (v - typical);
      if constexpr (kRounds) {
        const V raw = raw_scale(j), square = none ? V{} : grad * grad;
        left_noise += square;
        right_noise += square * raw * raw;
      }
      store(row + j, P::kRaw ? grad * raw_scale(j) * norm : grad);
    });
    if (a.moments) a.moments[p.cell.left] += reduce_add<T>(moment);
    if constexpr (kRounds) {
      a.noise[0][p.cell.left] += static_cast<double>(norm) * norm * reduce_add<T>(left_noise);
      a.noise[1][p.cell.left] += reduce_add<T>(right_noise);
    }
  }

  // The gradients of a cell's similarities, while the cache has them: times b, and kept to be multiplied by
  // a.
  void multiply_slopes(int64_t c, const Part& p) const {
    const int64_t rows = round_up(p.left.size, R);
    const auto left = P::rows_of(s.tile, w.ld, rows, p.right.size, s.left);
    P::template multiply<true>(p.left.size, a.D, p.right.size, left, packed_rows(1, p.cell.right),
                               sum(0, p.left.begin), a.D, a.D);
    for (int64_t i = 0; i < p.left.size; i += R)
      P::pack_left_rows(s.tile + i * w.ld, w.ld, i, least(R, p.left.size - i), p.right.size, p.left.size,
                        w.cells + c * w.cell);
  }

  void products(int64_t index) const {
    for (int64_t k = a.of_block[1][index]; k < a.of_block[1][index + 1]; ++k) {
      const int64_t c = a.by_right[k];
      const Part p = part(a.cells[c]);
      const auto left = P::packed(w.cells + c * w.cell, p.left.size);
      P::template multiply<true>(p.right.size, a.D, p.left.size, left, packed_rows(0, p.cell.left),
                                 sum(1, p.right.begin), a.D, a.D);
    }
  }

  // The gradient through x / |x|, or through x / constant; none where the norm was clamped.
  void finish(int side, int64_t row) const {
    In* out = static_cast<In*>(a.grad[side]) + a.source[side][row] * a.D;
    const T* grad = sum(side, row);
    const T inverse = inv_norm(side, row);
    if (is_clamped(inverse, kEps)) {
      if (a.D > 0) memset(out, 0, sizeof(In) * a.D);
      return;
    }
    T* unit = s.rows;
    T along = 0;
    if (!a.detach_norm) {
      unit_row(side, row, unit);
      widen(grad, a.D, w.dp, s.rows + w.dp);
      along = dot(s.rows + w.dp, unit, w.dp);
    }
    const T by = P::kRaw ? T(1) : inverse;
    if constexpr (kRounds) {
      double square = 0;
      for (int64_t d = 0; d < a.D; ++d) {
        const double x = along != T(0) ? grad[d] - along * unit[d] : grad[d];
        square += x * x;
      }
      a.square[side][row] = square;
    }
    int64_t d = 0;
    for (; d + L <= a.D; d += L)
      store_acc(out + d, by * (along != T(0) ? load(grad + d) - along * load(unit + d) : load(grad + d)));
    for (; d < a.D; ++d) from_acc(by * (along != T(0) ? grad[d] - along * unit[d] : grad[d]), out + d);
  }

  template <class F>
  static void each(int64_t begin, int64_t end, F f) {
    for (int64_t i = begin; i < end; ++i) f(i);
  }

  void run(PairsPass pass, int64_t begin, int64_t end) const {
    P::begin();
    run_pass(pass, begin, end);
    P::end();
  }

  void run_pass(PairsPass pass, int64_t begin, int64_t end) const {
    const int64_t rows = a.rows;
    switch (pass) {
      case PairsPass::norms:
        return each(begin, end, [&](int64_t i) { norm(i, rows); });
      case PairsPass::pack_left:
        return each(begin, end, [&](int64_t i) { pack_left(i); });
      case PairsPass::pack_right:
        return each(begin, end, [&](int64_t i) { pack_right(i); });
      case PairsPass::forward:
        return each(begin, end, [&](int64_t i) { forward(i); });
      case PairsPass::merge_columns:
        return each(begin, end, [&](int64_t i) { merge_columns(i); });
      case PairsPass::positives:
        return each(begin, end, [&](int64_t i) { positives(i); });
      case PairsPass::gradients:
        return each(begin, end, [&](int64_t i) { gradients(i); });
      case PairsPass::products:
        return each(begin, end, [&](int64_t i) { products(i); });
      case PairsPass::finish:
        return each(begin, end, [&](int64_t i) { i < rows ? finish(0, i) : finish(1, i - rows); });
    }
  }
};

template <class In, class P>
static PairsSizes pairs_sizes(const PairsArgs& a) {
  const PairsLayout<In, P> l(a, nullptr);
  const PairsScratch<In, P> s(a, l, nullptr);
  const int64_t element = sizeof(typename P::Element), sums = a.backward ? 0 : 2 * l.cols * sizeof(Acc<In>);
  return {{l.rows, l.cols},
          {(l.left + l.left_rows) * element, (l.right + l.right_rows) * element},
          l.cell * element + sums,
          s.bytes,
          2 * a.inv_temperature <= kMostBounded,
          Pairs<In, P>::kRounds};
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

PairsSizes pairs_sizes(const PairsArgs& args) {
  return with_products(args, [&](auto in, auto products) {
    return ecgfast::pairs_sizes<decltype(in), decltype(products)>(args);
  });
}

void global_contrastive_pairs(const PairsArgs& args, PairsPass pass, int64_t begin, int64_t end,
                              void* scratch) {
  with_products(args, [&](auto in, auto products) {
    Pairs<decltype(in), decltype(products)>(args, scratch).run(pass, begin, end);
  });
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
