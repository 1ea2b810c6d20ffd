// Global contrastive loss between two batches, streamed: a block of rows of a against a block of rows of b at
// a time, so that memory does not grow with the N x N matrix of similarities. Compiled once per ISA.
//
// Cosines lie in [-1, 1]. Where exp(2 / temperature) is far from overflow, every similarity is taken relative
// to their bound 1 / temperature, and one exponential serves its row and its column; else the sums keep
// running maxima.
#include "arena.h"
#include "global_contrastive_common.h"
#include "kernels.h"

namespace ecgfast {
namespace {

constexpr int64_t kMostRows = 11 * 96;  // of a block: a thread's tile is as wide

static int64_t blocks_of(int64_t n, int64_t most, int64_t multiple) {
  const int64_t count = n > most ? (n + most - 1) / most : 1;
  return round_up((n + count - 1) / count, multiple);
}

// `P`: the products.
template <class In, class P>
struct Layout {
  using T = Acc<In>;
  using Element = typename P::Element;
  static constexpr int64_t W = P::kColumns, R = P::kRows;
  static constexpr bool kWide = kSame<In, T>;  // gradients are accumulated where they belong
  int64_t rows, cols, dp, ld;  // of a block, padded; D padded; of a thread's tile of similarities
  Element *left, *left_rows, *right, *right_rows;
  Element* slopes;  // the transposed gradients of the similarities
  T *grad_left, *col_max, *col_sum;
  T *col_norm, *col_factor, *col_count;  // of the columns of the block, zeros past them
  int32_t* col_group;
  int64_t bytes;

  Layout(const GlobalArgs& a, void* base) : dp(round_up(a.D, W)) {
    int64_t most = 96;
    while (most < kMostRows && size(a, most + 96) <= a.most_workspace) most += 96;
    rows = blocks_of(a.N[0], most, R);
    cols = blocks_of(a.N[1], most, W);
    ld = cols + 16;  // no power of two: rows of a tile fall on different cache sets
    Arena arena(base);
    left = arena.take<Element>(P::left_elements(rows, a.D));
    right = arena.take<Element>(P::right_elements(a.D, cols));
    left_rows = a.backward ? arena.take<Element>(P::right_elements(rows, a.D)) : nullptr;
    right_rows = a.backward ? arena.take<Element>(P::right_elements(cols, a.D)) : nullptr;
    slopes = a.backward && a.grad_right ? arena.take<Element>(P::left_elements(cols, rows)) : nullptr;
    grad_left = a.backward && !kWide ? arena.take<T>(rows * dp) : nullptr;
    col_max = a.backward ? nullptr : arena.take<T>(rows / R * cols);
    col_sum = a.backward ? nullptr : arena.take<T>(rows / R * cols);
    col_norm = P::kRaw ? arena.take<T>(cols) : nullptr;
    col_factor = a.backward ? arena.take<T>(cols) : nullptr;
    col_count = a.backward ? arena.take<T>(cols) : nullptr;
    col_group = arena.take<int32_t>(cols);
    bytes = arena.bytes();
  }

  // Of a block of n by n.
  int64_t size(const GlobalArgs& a, int64_t n) const {
    const int64_t each = sizeof(T), packed = P::kBytes * dp;
    return n * (a.backward ? 4 * packed + (kWide ? 0 : dp * each) + P::kBytes * n
                           : 2 * packed + 2 * n / R * each);
  }
};

// One thread's scratch.
template <class In, class P>
struct Scratch {
  Acc<In>*rows, *tile;
  typename P::Element* left;
  int64_t bytes;

  Scratch(const GlobalArgs& a, const Layout<In, P>& l, void* base) {
    Arena arena(base);
    rows = arena.take<Acc<In>>((l.W > l.R ? l.W : l.R) * l.dp);
    tile = arena.take<Acc<In>>(P::kGroup * l.ld);
    left = a.backward ? arena.take<typename P::Element>(P::left_elements(P::kGroup, l.cols)) : nullptr;
    bytes = arena.bytes();
  }
};

template <class In, class P>
struct Contrast {
  using T = Acc<In>;
  using V = Vec<T>;
  using Index = decltype(V{} > V{});
  static constexpr bool kRounds = kSame<typename P::Element, uint16_t> && P::kRaw;
  static constexpr int64_t L = kLanes<T>, W = P::kColumns, R = P::kRows;
  const GlobalArgs& a;
  Layout<In, P> w;
  Scratch<In, P> s;
  bool bounded;
  T shift;

  Contrast(const GlobalArgs& args, void* scratch)
      : a(args),
        w(args, args.workspace),
        s(args, w, scratch),
        bounded(2 * args.inv_temperature <= kMostBounded),
        shift(static_cast<T>(args.inv_temperature)) {}

  const In* x(int side, int64_t i) const { return static_cast<const In*>(a.x[side]) + i * a.D; }
  T* inv_norm(int side) const { return static_cast<T*>(a.inv_norms[side]); }
  T lse(int side, int64_t i) const { return static_cast<T>(a.lse[side][i]); }
  // A number of positives, times the exponential of what lse() leaves away, to first order.
  double positives_of(int side, int64_t i) const {
    return a.positives[side][i] * (1.0 - (a.lse[side][i] - lse(side, i)));
  }
  // Forward: maxima and sums of exponentials of each side, and each row's sum over positives.
  // Backward: factors of exp(s - shift) where bounded.
  T* sums(int side) const { return static_cast<T*>(a.sums) + (side ? a.N[0] : 0); }
  T* maxima(int side) const { return sums(side) + a.N[0] + a.N[1]; }
  T* positive_sums() const { return sums(0) + 2 * (a.N[0] + a.N[1]); }
  static int64_t sum_size(const GlobalArgs& a) { return 3 * a.N[0] + 2 * a.N[1]; }

  static int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

  void norm(int64_t i) const {
    const int side = i >= a.N[0];
    const int64_t row = side ? i - a.N[0] : i;
    widen(x(side, row), a.D, w.dp, s.rows);
    inv_norm(side)[row] = inverse_norm(s.rows, w.dp, kEps);
  }

  void start() const {
    for (int side = 0; side < 2; ++side)
      for (int64_t i = 0; i < a.N[side]; ++i) {
        if (a.backward) {
          sums(side)[i] = static_cast<T>(gradient_scale() * a.positives[side][i] *
                                         __builtin_exp(a.inv_temperature - a.lse[side][i]));
          continue;
        }
        sums(side)[i] = 0;
        maxima(side)[i] = bounded ? shift : -static_cast<T>(__builtin_inf());
        if (side == 0) positive_sums()[i] = 0;
      }
  }
  double gradient_scale() const { return a.factor * a.inv_temperature; }

  // f(rows, stride) of n rows of a block, from row `i` on: of length 1, or as they are where the products
  // want them raw.
  template <class F>
  void with_rows(int side, int64_t i, int64_t n, F f) const {
    if constexpr (P::kRaw) {
      f(x(side, i), a.D);
    } else {
      for (int64_t r = 0; r < n; ++r) {
        widen(x(side, i + r), a.D, w.dp, s.rows + r * w.dp);
        scale(s.rows + r * w.dp, inv_norm(side)[i + r], w.dp);
      }
      f(s.rows, w.dp);
    }
  }

  void pack_left(int64_t panel) const {
    const int64_t i = panel * R, valid = least(R, a.size[0] - i);
    with_rows(0, a.begin[0] + i, valid, [&](const auto* rows, int64_t ld) {
      P::pack_left(rows, ld, valid, a.D, w.left + P::left_elements(i, a.D));
      if (a.backward) P::pack_right_rows(rows, ld, i, valid, a.D, a.size[0], w.left_rows);
    });
    if (a.backward && a.D > 0) memset(grad_left(i), 0, sizeof(T) * valid * grad_left_stride());
  }

  void pack_right(int64_t panel) const {
    const int64_t j = panel * W, valid = least(W, a.size[1] - j);
    with_rows(1, a.begin[1] + j, valid, [&](const auto* rows, int64_t ld) {
      P::pack_right(rows, ld, j, valid, a.D, w.right);
      if (a.backward) P::pack_right_rows(rows, ld, j, valid, a.D, a.size[1], w.right_rows);
    });
    for (int64_t c = j; c < j + W; ++c) describe_column(c, c < a.size[1]);
  }

  void describe_column(int64_t c, bool exists) const {
    const int64_t j = a.begin[1] + c;
    w.col_group[c] = exists ? a.group[1][j] : -1;  // equal to none
    if (P::kRaw) w.col_norm[c] = exists ? inv_norm(1)[j] : T(0);
    if (!a.backward) return;
    w.col_factor[c] = exists ? (bounded ? sums(1)[j] : lse(1, j)) : T(0);
    if (!bounded) w.col_count[c] = exists ? static_cast<T>(positives_of(1, j)) : T(0);
  }

  // Dot products of `panels` row panels from `panel` on with the whole block of b.
  void dots(int64_t panel, int64_t panels, T* out) const {
    const auto left = P::packed(w.left + P::left_elements(panel * R, a.D), a.D);
    P::template multiply<false>(panels * R, a.size[1], a.D, left, w.right, out, w.ld, w.ld);
  }

  // f(panel, panels): groups of row panels, or of column panels counted in rows of a product.
  template <class F>
  static void for_groups(int64_t begin, int64_t end, F f) {
    for (int64_t p = begin; p < end; p += P::kGroup / R) f(p, least(P::kGroup / R, end - p));
  }

  void forward(int64_t begin, int64_t end) const {
    for_groups(begin, end, [&](int64_t panel, int64_t panels) {
      dots(panel, panels, s.tile);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t rows = least(R, a.size[0] - (panel + p) * R);
        T* tile = s.tile + p * R * w.ld;
        bounded ? sum_bounded(panel + p, tile, rows) : sum_running(panel + p, tile, rows);
      }
    });
  }

  int64_t padded_columns() const { return round_up(a.size[1], L); }

  // What dot products with row i of the block are multiplied by, beside raw_scale, for similarities.
  T row_scale(int64_t i) const { return P::kRaw ? shift * inv_norm(0)[a.begin[0] + i] : shift; }
  V raw_scale(int64_t j) const { return P::kRaw ? load(w.col_norm + j) : V{} + T(1); }

  // f(j, similarities of row i with columns j to j + L - 1); of columns that do not exist they are -infinity.
  template <class F>
  void for_similarities(int64_t i, const T* dots, F f) const {
    const T by = row_scale(i);
    int64_t j = 0;
    for (; j + L <= a.size[1]; j += L) f(j, load(dots + j) * raw_scale(j) * by);
    if (j == a.size[1]) return;
    V last = load(dots + j) * raw_scale(j) * by;
    for (int64_t l = a.size[1] - j; l < L; ++l) last[l] = -static_cast<T>(__builtin_inf());
    f(j, last);
  }

  // Where the groups of L columns equal the row's.
  Index positives(int32_t group, int64_t j) const {
    if constexpr (kSame<T, float>) {
      return bit_cast<VI>(load(w.col_group + j)) == group;
    } else {
      Index same;
      for (int l = 0; l < L; ++l) same[l] = w.col_group[j + l] == group ? -1 : 0;
      return same;
    }
  }

  void sum_bounded(int64_t panel, const T* tile, int64_t rows) const {
    T* col = w.col_sum + panel * w.cols;
    memset(col, 0, sizeof(T) * padded_columns());
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = a.begin[0] + panel * R + r;
      const int32_t group = a.group[0][i];
      V sum = {}, positive = {};
      for_similarities(panel * R + r, tile + r * w.ld, [&](int64_t j, V v) {
        const V e = exp_nonpositive(v - shift);
        sum += e;
        store(col + j, load(col + j) + e);
        positive += positives(group, j) ? v : V{};
      });
      sums(0)[i] += reduce_add<T>(sum);
      positive_sums()[i] += reduce_add<T>(positive);
    }
  }

  void sum_running(int64_t panel, T* tile, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) {
      T* row = tile + r * w.ld;
      for_similarities(panel * R + r, row, [&](int64_t j, V v) { store(row + j, v); });
    }
    T *col_max = w.col_max + panel * w.cols, *col_sum = w.col_sum + panel * w.cols;
    for (int64_t j = 0; j < padded_columns(); j += L) {
      V most = load(tile + j), sum = {};
      for (int64_t r = 1; r < rows; ++r) {
        const V v = load(tile + r * w.ld + j);
        most = v > most ? v : most;
      }
      for (int64_t r = 0; r < rows; ++r) sum += exp_nonpositive(load(tile + r * w.ld + j) - most);
      store(col_max + j, most);
      store(col_sum + j, sum);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = a.begin[0] + panel * R + r;
      const T* row = tile + r * w.ld;
      V most = load(row), sum = {}, positive = {};
      for (int64_t j = L; j < padded_columns(); j += L) most = load(row + j) > most ? load(row + j) : most;
      const T max = reduce_max<T>(most);
      for (int64_t j = 0; j < padded_columns(); j += L) {
        sum += exp_nonpositive(load(row + j) - max);
        positive += positives(a.group[0][i], j) ? load(row + j) : V{};
      }
      merge(maxima(0)[i], sums(0)[i], max, reduce_add<T>(sum));
      positive_sums()[i] += reduce_add<T>(positive);
    }
  }

  void merge_columns(int64_t panel) const {
    const int64_t j0 = panel * W, j1 = least(j0 + W, a.size[1]), row_panels = (a.size[0] + R - 1) / R;
    for (int64_t p = 0; p < row_panels; ++p) {
      const T *col_max = w.col_max + p * w.cols, *col_sum = w.col_sum + p * w.cols;
      for (int64_t j = j0; j < j1; ++j) {
        if (bounded) {
          sums(1)[a.begin[1] + j] += col_sum[j];
        } else {
          merge(maxima(1)[a.begin[1] + j], sums(1)[a.begin[1] + j], col_max[j], col_sum[j]);
        }
      }
    }
  }

  void loss() const {
    double total = 0, pairs = 0;
    for (int side = 0; side < 2; ++side)
      for (int64_t i = 0; i < a.N[side]; ++i) {
        a.lse[side][i] = maxima(side)[i] + __builtin_log(static_cast<double>(sums(side)[i]));
        const double n = a.positives[side][i];
        if (n > 0) total += n * a.lse[side][i];
        pairs += n;  // both sides: twice the number of pairs
      }
    for (int64_t i = 0; i < a.N[0]; ++i) total -= 2.0 * positive_sums()[i];
    *static_cast<T*>(a.loss) = static_cast<T>(total / (pairs > 2 ? pairs : 2));
  }

  void gradients(int64_t begin, int64_t end) const {
    for_groups(begin, end, [&](int64_t panel, int64_t panels) {
      dots(panel, panels, s.tile);
      for (int64_t r = 0; r < panels * R; ++r) {
        T* row = s.tile + r * w.ld;
        const int64_t i = panel * R + r;
        if (i < a.size[0]) a.moments ? differentiate_row<true>(i, row) : differentiate_row<false>(i, row);
        const int64_t valid = i < a.size[0] ? a.size[1] : 0;  // the rest is padding of the products
        memset(row + valid, 0, sizeof(T) * (w.ld - valid));
      }
      multiply_slopes(panel, panels);
    });
  }

  // A row's dot products become the gradients of the loss to them. (Unless they are of raw rows, a missing
  // factor of the norms follows in finish_row.)
  template <bool Moments>
  void differentiate_bounded(int64_t block_row, T* row) const {
    const int64_t i = a.begin[0] + block_row;
    const T own = sums(0)[i], hit = static_cast<T>(-2 * gradient_scale()), by = row_scale(block_row);
    const T norm = P::kRaw ? inv_norm(0)[i] : T(1);
    const T typical = static_cast<T>(a.moment_shift);
    V moment = {};
    Noise error;
    for (int64_t j = 0; j < a.size[1]; j += L) {
      const V raw = raw_scale(j), v = load(row + j) * raw * by, e = exp_nonpositive(v - shift);
      const V grad = e * (load(w.col_factor + j) + own) + (positives(a.group[0][i], j) ? V{} + hit : V{});
      if constexpr (Moments) moment += existing(j, grad * (v - typical));
      if constexpr (kRounds) error.add(grad, raw, existing(j, V{} + T(1)));
      store(row + j, P::kRaw ? grad * raw * norm : grad);
    }
    note(i, norm, error);
    if constexpr (Moments) a.moments[i] += reduce_add<T>(moment);
  }

  // No similarity is above its logsumexp, but by rounding.
  static V softmax(V v, V lse) { return exp_nonpositive(v > lse ? V{} : v - lse); }

  template <bool Moments>
  void differentiate(int64_t block_row, T* row) const {
    const int64_t i = a.begin[0] + block_row;
    const T scale = static_cast<T>(gradient_scale()),
            own = static_cast<T>(gradient_scale() * positives_of(0, i));
    const T by = row_scale(block_row), norm = P::kRaw ? inv_norm(0)[i] : T(1);
    const T typical = static_cast<T>(a.moment_shift);
    V moment = {};
    Noise error;
    for (int64_t j = 0; j < a.size[1]; j += L) {
      const V raw = raw_scale(j), v = load(row + j) * raw * by;
      const V of_row = softmax(v, V{} + lse(0, i)), of_column = softmax(v, load(w.col_factor + j));
      const V hit = positives(a.group[0][i], j) ? V{} + T(2) : V{};
      const V grad = own * of_row + scale * (load(w.col_count + j) * of_column - hit);
      if constexpr (Moments) moment += existing(j, grad * (v - typical));
      if constexpr (kRounds) error.add(grad, raw, existing(j, V{} + T(1)));
      store(row + j, P::kRaw ? grad * raw * norm : grad);
    }
    note(i, norm, error);
    if constexpr (Moments) a.moments[i] += reduce_add<T>(moment);
  }

  // The squares of a row's gradients of cosines, and of those that b's rows get.
  struct Noise {
    V left = {}, right = {};
    void add(V grad, V raw, V exists) {
      const V square = grad * grad * exists;
      left += square;
      right += square * raw * raw;
    }
  };
  void note(int64_t i, T norm, const Noise& error) const {
    if constexpr (kRounds) {
      a.noise[0][i] += static_cast<double>(norm) * norm * reduce_add<T>(error.left);
      if (a.noise[1]) a.noise[1][i] += reduce_add<T>(error.right);
    }
  }

  // The lanes of columns j to j + L - 1 that exist, the others 0.
  V existing(int64_t j, V v) const {
    for (int64_t l = a.size[1] - j; l < L; ++l) v[l] = 0;
    return v;
  }

  template <bool Moments>
  void differentiate_row(int64_t block_row, T* row) const {
    bounded ? differentiate_bounded<Moments>(block_row, row) : differentiate<Moments>(block_row, row);
  }

  // Where the gradient of the block's row i accumulates.
  T* grad_left(int64_t i) const {
    return w.kWide ? static_cast<T*>(a.grad[0]) + (a.begin[0] + i) * a.D : w.grad_left + i * w.dp;
  }
  int64_t grad_left_stride() const { return w.kWide ? a.D : w.dp; }

  // The gradients of the similarities, while the cache has them: times b, and kept to be multiplied by a.
  void multiply_slopes(int64_t panel, int64_t panels) const {
    const auto left = P::rows_of(s.tile, w.ld, panels * R, a.size[1], s.left);
    const int64_t rows = least(panels * R, a.size[0] - panel * R), ld = grad_left_stride();
    P::template multiply<true>(rows, a.D, a.size[1], left, w.right_rows, grad_left(panel * R), ld, ld);
    if (!a.grad_right) return;
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t i = (panel + p) * R;
      P::pack_left_rows(s.tile + p * R * w.ld, w.ld, i, least(R, a.size[0] - i), a.size[1], a.size[0],
                        w.slopes);
    }
  }

  void products(int64_t begin, int64_t end) const {
    for_groups(begin, end, [&](int64_t panel, int64_t panels) {
      const int64_t j = panel * R, cols = least(panels * R, a.size[1] - j);
      const auto left = P::packed(w.slopes + P::left_elements(j, a.size[0]), a.size[0]);
      T* grad = static_cast<T*>(a.grad_right) + (a.begin[1] + j) * a.D;
      P::template multiply<true>(cols, a.D, a.size[0], left, w.left_rows, grad, a.D, a.D);
    });
  }

  // The gradient through x / |x|, or through x / constant; none where the norm was clamped.
  void finish_row(int side, int64_t i, const T* grad) const {
    In* out = static_cast<In*>(a.grad[side]) + i * a.D;
    const T inverse = inv_norm(side)[i];
    if (is_clamped(inverse, kEps)) {
      if (a.D > 0) memset(out, 0, sizeof(In) * a.D);
      return;
    }
    T* unit = s.rows;
    T along = 0;
    if (!a.detach_norm) {
      widen(x(side, i), a.D, w.dp, unit);
      scale(unit, inverse, w.dp);
      T* padded = s.rows + w.dp;
      widen(grad, a.D, w.dp, padded);
      along = dot(padded, unit, w.dp);
    }
    const T by = P::kRaw ? T(1) : inverse;
    if constexpr (kRounds) {
      double square = 0;
      for (int64_t d = 0; d < a.D; ++d) {
        const double x = along != T(0) ? grad[d] - along * unit[d] : grad[d];
        square += x * x;
      }
      a.square[side][i] = square;
    }
    int64_t d = 0;
    for (; d + L <= a.D; d += L)
      store_acc(out + d, by * (along != T(0) ? load(grad + d) - along * load(unit + d) : load(grad + d)));
    for (; d < a.D; ++d) from_acc(by * (along != T(0) ? grad[d] - along * unit[d] : grad[d]), out + d);
  }

  void finish_left(int64_t panel) const {
    for (int64_t i = panel * R; i < least(panel * R + R, a.size[0]); ++i)
      finish_row(0, a.begin[0] + i, grad_left(i));
  }

  void finish_right(int64_t panel) const {
    for (int64_t j = panel * W; j < least(panel * W + W, a.size[1]); ++j)
      finish_row(1, a.begin[1] + j, static_cast<const T*>(a.grad_right) + (a.begin[1] + j) * a.D);
  }

  template <class F>
  static void each(int64_t begin, int64_t end, F f) {
    for (int64_t i = begin; i < end; ++i) f(i);
  }

  void run(GlobalPass pass, int64_t begin, int64_t end) const {
    P::begin();
    run_pass(pass, begin, end);
    P::end();
  }

  void run_pass(GlobalPass pass, int64_t begin, int64_t end) const {
    switch (pass) {
      case GlobalPass::norms:
        return each(begin, end, [&](int64_t i) { norm(i); });
      case GlobalPass::begin:
        return start();
      case GlobalPass::pack_left:
        return each(begin, end, [&](int64_t i) { pack_left(i); });
      case GlobalPass::pack_right:
        return each(begin, end, [&](int64_t i) { pack_right(i); });
      case GlobalPass::forward:
        return forward(begin, end);
      case GlobalPass::merge_columns:
        return each(begin, end, [&](int64_t i) { merge_columns(i); });
      case GlobalPass::loss:
        return loss();
      case GlobalPass::gradients:
        return gradients(begin, end);
      case GlobalPass::products:
        return products(begin, end);
      case GlobalPass::finish_left:
        return each(begin, end, [&](int64_t i) { finish_left(i); });
      case GlobalPass::finish_right:
        return each(begin, end, [&](int64_t i) { finish_right(i); });
    }
  }
};

template <class In, class P>
static GlobalSizes sizes(const GlobalArgs& a) {
  using C = Contrast<In, P>;
  const Layout<In, P> l(a, nullptr);
  const Scratch<In, P> s(a, l, nullptr);
  return {{l.rows, l.cols}, {l.R, l.W}, l.bytes, s.bytes, C::sum_size(a), C::kRounds};
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

GlobalSizes global_sizes(const GlobalArgs& args) {
  return with_products(args,
                       [&](auto in, auto products) { return sizes<decltype(in), decltype(products)>(args); });
}

void global_contrastive(const GlobalArgs& args, GlobalPass pass, int64_t begin, int64_t end, void* scratch) {
  with_products(args, [&](auto in, auto products) {
    Contrast<decltype(in), decltype(products)>(args, scratch).run(pass, begin, end);
  });
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
