// Local contrastive loss, one segment at a time: the segment's cosines are one small product, a draw is a
// count. The inputs are not normalised: their norms scale the M x M matrices. Compiled once per ISA.
#include "arena.h"
#include "gemm.h"
#include "kernels.h"
#include "philox_vector.h"
#include "rows.h"
#include "transpose.h"

namespace ecgfast {
namespace {

constexpr int64_t kRowBlock = 96;
constexpr int64_t kDrawRows =
    8;  // rows drawn at a time: they share no block of the random stream with others
constexpr double kEps = 1e-8;

// Scratch of one thread; all rows padded for gemm.
template <class T>
struct Scratch {
  int64_t rows, dp, mp;
  bool direct;  // the inputs are read where they lie: of type T, and no row needs padding
  T *p, *t, *tt, *s, *draws, *inv_t;
  T *others, *shift, *positive, *inv_total;  // of a block's rows
  T *by_row = nullptr, *dp_rows = nullptr, *dt = nullptr;
  int32_t *counts, *kinds, *hashes;
  uint32_t* words;
  int64_t bytes;

  Scratch(const LocalArgs& a, bool backward, void* base) {
    Arena arena(base);
    rows = a.M < kRowBlock ? a.M : kRowBlock;
    dp = round_up(a.D, kGemmColumns<T>);
    mp = round_up(a.M, kGemmColumns<T>);
    direct = (a.dtype == DType::f32 || a.dtype == DType::f64) && dp == a.D;
    p = arena.take<T>(direct ? 0 : rows * dp);
    t = arena.take<T>(direct ? 0 : a.M * dp);
    s = arena.take<T>(rows * mp);
    inv_t = arena.take<T>(mp);
    const int64_t column = round_up(rows, kLanes<T>);
    others = arena.take<T>(column);
    shift = arena.take<T>(column);
    positive = arena.take<T>(column);
    inv_total = arena.take<T>(column);
    if (!backward || !a.weights) {
      tt = arena.take<T>(dp * mp);
      draws = arena.take<T>(mp);
      counts = arena.take<int32_t>(mp);
      kinds = arena.take<int32_t>(mp);
      hashes = arena.take<int32_t>(mp);
      const bool draws_them = !a.use_all && !a.negative_index;
      words = arena.take<uint32_t>(draws_them ? kDrawRows * a.K + 8 + kPhiloxSlack : 0);
    }
    if (backward) {
      by_row = arena.take<T>(rows * mp);
      dp_rows = arena.take<T>(rows * dp);
      dt = arena.take<T>(a.M * dp);
    }
    bytes = arena.bytes();
  }
};

// y[d, ldy] is the transpose of x[m, d], zeros beyond m; d and ldy are multiples of the vectors' lanes.
template <class T>
static void transpose_rows(const T* x, int64_t m, int64_t d, T* y, int64_t ldy) {
  constexpr int V = kLanes<T>;
  for (int64_t i0 = 0; i0 < ldy; i0 += V)
    for (int64_t j0 = 0; j0 < d; j0 += V) {
      Vec<T> square[V] = {};
      for (int i = 0; i < V && i0 + i < m; ++i) square[i] = load(x + (i0 + i) * d + j0);
      transpose<T>(square);
      for (int j = 0; j < V; ++j) store(y + (j0 + j) * ldy + i0, square[j]);
    }
}

template <class In>
struct Segment {
  using T = Acc<In>;
  const LocalArgs& a;
  int64_t b;
  bool for_backward;
  Scratch<T>& w;

  const In* row(const void* base, int64_t i) const {
    return static_cast<const In*>(base) + (b * a.M + i) * a.D;
  }
  In* row(void* base, int64_t i) const { return static_cast<In*>(base) + (b * a.M + i) * a.D; }
  T& stat(const void* base, int64_t i) const {
    return const_cast<T*>(static_cast<const T*>(base))[b * a.M + i];
  }
  T& inv_norm(int which, int64_t i) const {
    return stat(static_cast<const T*>(a.inv_norms) + which * a.B * a.M, i);
  }
  T* weights(int64_t i) const { return static_cast<T*>(a.weights) + (b * a.M + i) * a.M; }

  // Rows [i0, i0 + n) of an input as T, dp apart and zero past D.
  const T* rows_of(const void* base, int64_t i0, int64_t n, T* copy) const {
    if constexpr (kSame<In, T>)
      if (w.direct) return row(base, i0);
    for (int64_t i = 0; i < n; ++i) widen(row(base, i0 + i), a.D, w.dp, copy + i * w.dp);
    return copy;
  }

  bool same(int64_t i, int64_t j) const {
    if (a.codes) {
      const int32_t *x = a.codes + (b * a.M + i) * a.G, *y = a.codes + (b * a.M + j) * a.G;
      for (int64_t g = 0; g < a.G; ++g)
        if (x[g] != y[g]) return false;
      return true;
    }
    const In *x = row(a.targets, i), *y = row(a.targets, j);
    for (int64_t d = 0; d < a.D; ++d)
      if (to_acc(x[d]) != to_acc(y[d])) return false;
    return true;
  }

  // kinds[j] is the first token whose target equals j's. Hashes of what is compared spare most comparisons.
  void find_kinds() const {
    for (int64_t j = 0; j < a.M; ++j) {
      w.hashes[j] = hash(j);
      int64_t i = 0;
      while (i < j && !(w.hashes[i] == w.hashes[j] && same(i, j))) ++i;
      w.kinds[j] = static_cast<int32_t>(i);
    }
    for (int64_t j = a.M; j < w.mp; ++j) w.kinds[j] = -1;
  }

  int32_t hash(int64_t j) const {
    uint32_t h = 0;
    if (a.codes) {
      for (int64_t g = 0; g < a.G; ++g)
        h = h * 0x9E3779B1u + static_cast<uint32_t>(a.codes[(b * a.M + j) * a.G + g]);
    } else if (a.D > 0) {
      const float first = static_cast<float>(to_acc(row(a.targets, j)[0])) + 0.0f;  // -0 equals 0
      h = float_to_bits(first);
    }
    return static_cast<int32_t>(h);
  }

  void count_draws(int64_t i) const {
    if (a.negative_index) {
      const int64_t at = (b * a.M + i) * a.K;
      for (int64_t k = 0; k < a.K; ++k)
        ++w.counts[a.index_is_64 ? static_cast<const int64_t*>(a.negative_index)[at + k]
                                 : static_cast<const int32_t*>(a.negative_index)[at + k]];
      return;
    }
    if (a.M < 2) return;
    if (i % kDrawRows == 0) draw(i);
    const uint32_t* drawn = w.words + i % kDrawRows * a.K;
    for (int64_t k = 0; k < a.K; ++k) ++w.counts[drawn[k]];
  }

  // The negatives of the rows from i on, kDrawRows of them; i is a multiple of kDrawRows.
  void draw(int64_t i) const {
    const int64_t n = a.M - i < kDrawRows ? a.M - i : kDrawRows, first = i * a.K / 4;
    const Stream stream = make_stream(a.seed, a.step, a.sample_ids[b], Purpose::negatives);
    philox_fill(stream, static_cast<uint32_t>(first), (n * a.K + 3) / 4, w.words);
    const uint32_t others = static_cast<uint32_t>(a.M - 1);
    for (int64_t r = 0; r < n; ++r) {
      const uint32_t own = static_cast<uint32_t>(i + r);
      uint32_t* words = w.words + r * a.K;
      for (int64_t k = 0; k < a.K; ++k) {
        const uint32_t j = bounded(words[k], others);
        words[k] = j + (j >= own);
      }
    }
  }

  // How often each token counts as a negative of token i, in draws. Returns whether a draw was excluded.
  bool count(int64_t i) const {
    if (a.use_all) {
      for (int64_t j = 0; j < w.mp; ++j) w.counts[j] = j < a.M && j != i;
    } else {
      memset(w.counts, 0, sizeof(int32_t) * w.mp);
      count_draws(i);
    }
    const int32_t kind = w.kinds[i];
    int32_t excluded = 0;
    for (int64_t j = 0; j < w.mp; ++j) {
      const int32_t equal = -(w.kinds[j] == kind);
      excluded |= w.counts[j] & equal;
      w.draws[j] = static_cast<T>(w.counts[j] & ~equal);
    }
    return excluded != 0;
  }

  // The inverse norm of a row: computed and kept by the forward pass, read by the backward pass.
  T norm_of(int which, int64_t i, const T* x) const {
    if (!for_backward) inv_norm(which, i) = inverse_norm(x, w.dp, kEps);
    return inv_norm(which, i);
  }

  const T* load_targets() const {
    const T* t = rows_of(a.targets, 0, a.M, w.t);
    for (int64_t j = 0; j < w.mp; ++j) w.inv_t[j] = j < a.M ? norm_of(1, j, t + j * w.dp) : T(0);
    return t;
  }

  // What weigh needs of the targets.
  void prepare(const T* t) const {
    transpose_rows(t, a.M, w.dp, w.tt, w.mp);
    find_kinds();
  }

  // A row of products p . t becomes the row of n_ij exp(s_ij - shift). Returns whether the positive is
  // neither below a negative nor the smallest of all.
  bool weigh_row(int64_t i, int64_t at, T inv_p) const {
    T* s = w.s + at * w.mp;
    const bool excluded = count(i);
    const T by = inv_p * T(a.inv_temperature), low = -T(__builtin_inf());
    const T positive = s[i] * by * w.inv_t[i];
    Vec<T> highest = Vec<T>{} + low, lowest = Vec<T>{} - (excluded ? -low : low);
    for (int64_t j = 0; j < w.mp; j += kLanes<T>) {
      const Vec<T> v = load(s + j) * by * load(w.inv_t + j);
      const auto drawn = load(w.draws + j) > T(0);
      const Vec<T> up = drawn ? v : Vec<T>{} + low, down = drawn ? v : Vec<T>{} - low;
      highest = up > highest ? up : highest;
      lowest = down < lowest ? down : lowest;
      store(s + j, up);
    }
    const T most = reduce_max<T>(highest), least = -reduce_max<T>(-lowest);
    const T shift = most > positive ? most : positive;
    Vec<T> others = {};
    for (int64_t j = 0; j < w.mp; j += kLanes<T>) {
      const Vec<T> e = load(w.draws + j) * exp_nonpositive(load(s + j) - shift);
      others += e;
      store(s + j, e);
    }
    w.others[at] = reduce_add<T>(others);
    w.shift[at] = shift;
    w.positive[at] = positive;
    return positive >= most && !(positive <= least);
  }

  // The logarithms of a block's sums, and what its weights are to be multiplied by.
  void finish_rows(int64_t i0, int64_t n) const {
    for (int64_t i = 0; i < n; i += kLanes<T>) {
      const Vec<T> shift = load(w.shift + i), positive = load(w.positive + i);
      const Vec<T> total = load(w.others + i) + exp_nonpositive(positive - shift), log_total = log(total);
      store(w.inv_total + i, T(1) / total);
      if (for_backward) continue;
      store_some(&stat(a.lse, i0 + i), shift + log_total, n - i);
      store_some(&stat(a.loss, i0 + i), log_total + (shift - positive), n - i);
    }
  }

  // The block's rows of d loss_i / d s_ij: the softmax, minus 1 for the positive.
  void weigh(int64_t i0, int64_t n, const T* p) const {
    gemm(n, a.M, a.D, p, w.dp, int64_t{1}, w.tt, w.mp, w.s, w.mp);
    for (int64_t i = 0; i < n; ++i) {
      const bool correct = weigh_row(i0 + i, i, norm_of(0, i0 + i, p + i * w.dp));
      if (!for_backward) a.correct[b * a.M + i0 + i] = correct;
    }
    finish_rows(i0, n);
    if (!for_backward && !a.weights) return;
    for (int64_t i = 0; i < n; ++i) {
      T* s = w.s + i * w.mp;
      scale(s, w.inv_total[i], w.mp);
      s[i0 + i] = -w.others[i] * w.inv_total[i];
      if (!for_backward) memcpy(weights(i0 + i), s, sizeof(T) * a.M);
    }
  }

  void read_weights(int64_t i0, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) widen(weights(i0 + i), a.M, w.mp, w.s + i * w.mp);
  }

  // Weights times whatever else the products with the inputs' rows, which are not normalised, must hold.
  void scale_weights(int64_t i0, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      const T by = stat(a.grad_loss, i0 + i) * T(a.inv_temperature), inv_p = inv_norm(0, i0 + i);
      for (int64_t j = 0; j < w.mp; j += kLanes<T>) {
        const Vec<T> ds = load(w.s + i * w.mp + j) * by;
        store(w.s + i * w.mp + j, ds * load(w.inv_t + j));
        store(w.by_row + i * w.mp + j, ds * inv_p);
      }
    }
  }

  // out = (grad - (grad . unit) unit) / norm, the gradient through x / norm; none where the norm was clamped.
  // Returns grad . unit.
  T write_gradient(const T* grad, const T* x, T inverse, In* out) const {
    const T along = dot(grad, x, w.dp) * inverse;
    if (is_clamped(inverse, kEps)) {
      if (a.D > 0) memset(out, 0, sizeof(In) * a.D);
      return along;
    }
    const T project = along * inverse;
    constexpr int L = kLanes<T>;
    int64_t d = 0;
    for (; d + L <= a.D; d += L) store_acc(out + d, inverse * (load(grad + d) - project * load(x + d)));
    for (; d < a.D; ++d) from_acc(inverse * (grad[d] - project * x[d]), out + d);
    return along;
  }

  void forward() const {
    prepare(load_targets());
    for (int64_t i0 = 0; i0 < a.M; i0 += w.rows) {
      const int64_t n = a.M - i0 < w.rows ? a.M - i0 : w.rows;
      weigh(i0, n, rows_of(a.predictions, i0, n, w.p));
    }
  }

  void backward() const {
    const T* t = load_targets();
    if (!a.weights) prepare(t);
    for (int64_t i0 = 0; i0 < a.M; i0 += w.rows) {
      const int64_t n = a.M - i0 < w.rows ? a.M - i0 : w.rows;
      const T* p = rows_of(a.predictions, i0, n, w.p);
      a.weights ? read_weights(i0, n) : weigh(i0, n, p);
      scale_weights(i0, n);
      gemm(n, a.D, a.M, w.s, w.mp, int64_t{1}, t, w.dp, w.dp_rows, w.dp);
      for (int64_t i = 0; i < n; ++i) {
        const T moment = write_gradient(w.dp_rows + i * w.dp, p + i * w.dp, inv_norm(0, i0 + i),
                                        row(a.grad_predictions, i0 + i));
        if (a.moments) stat(a.moments, i0 + i) = moment;
      }
      const auto multiply = i0 == 0 ? gemm<false, T> : gemm<true, T>;
      multiply(a.M, a.D, n, w.by_row, 1, w.mp, p, w.dp, w.dt, w.dp);
    }
    for (int64_t j = 0; j < a.M; ++j)
      write_gradient(w.dt + j * w.dp, t + j * w.dp, inv_norm(1, j), row(a.grad_targets, j));
  }
};

template <class In>
static void run(const LocalArgs& a, bool backward, int64_t begin, int64_t end, void* base) {
  Scratch<Acc<In>> scratch(a, backward, base);
  for (int64_t b = begin; b < end; ++b) {
    const Segment<In> segment{a, b, backward, scratch};
    backward ? segment.backward() : segment.forward();
  }
}

static void dispatch(const LocalArgs& a, bool backward, int64_t begin, int64_t end, void* base) {
  switch (a.dtype) {
    case DType::f32:
      return run<float>(a, backward, begin, end, base);
    case DType::bf16:
      return run<BFloat16>(a, backward, begin, end, base);
    case DType::f16:
      return run<Half>(a, backward, begin, end, base);
    case DType::f64:
      return run<double>(a, backward, begin, end, base);
  }
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

int64_t local_contrastive_scratch(const LocalArgs& args, bool backward) {
  return args.dtype == DType::f64 ? Scratch<double>(args, backward, nullptr).bytes
                                  : Scratch<float>(args, backward, nullptr).bytes;
}

void local_contrastive(const LocalArgs& args, int64_t begin, int64_t end, void* scratch) {
  dispatch(args, false, begin, end, scratch);
}

void local_contrastive_backward(const LocalArgs& args, int64_t begin, int64_t end, void* scratch) {
  dispatch(args, true, begin, end, scratch);
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
