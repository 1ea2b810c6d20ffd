// Local contrastive loss, one segment at a time: the segment's cosines are one small product, a draw is a
// count, and nothing larger than a block of rows of the M x M matrix exists. Compiled once per ISA.
#include "arena.h"
#include "gemm.h"
#include "kernels.h"
#include "philox_vector.h"
#include "rows.h"
#include "transpose.h"

namespace ecgfast {
namespace {

constexpr int64_t kRowBlock = 96;
constexpr double kEps = 1e-8;

// Scratch of one thread; all rows padded for gemm.
template <class T>
struct Scratch {
  int64_t rows, dp, mp;
  T *p, *t, *tt, *s, *draws, *dp_rows = nullptr, *dt = nullptr;
  int32_t *counts, *kinds, *hashes;
  uint32_t* words;
  int64_t bytes;

  Scratch(const LocalArgs& a, bool backward, void* base) {
    Arena arena(base);
    rows = a.M < kRowBlock ? a.M : kRowBlock;
    dp = round_up(a.D, kGemmColumns<T>);
    mp = round_up(a.M, kGemmColumns<T>);
    p = arena.take<T>(rows * dp);
    t = arena.take<T>(a.M * dp);
    tt = arena.take<T>(dp * mp);
    s = arena.take<T>(rows * mp);
    draws = arena.take<T>(mp);
    counts = arena.take<int32_t>(mp);
    kinds = arena.take<int32_t>(mp);
    hashes = arena.take<int32_t>(mp);
    words = arena.take<uint32_t>(a.K + 8 + kPhiloxSlack);
    if (backward) {
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
    const Stream stream = make_stream(a.seed, a.step, a.sample_ids[b], Purpose::negatives);
    const int64_t first = i * a.K, block0 = first / 4;
    philox_fill(stream, static_cast<uint32_t>(block0), (first + a.K + 3) / 4 - block0, w.words);
    uint32_t* words = w.words + (first - 4 * block0);
    const uint32_t others = static_cast<uint32_t>(a.M - 1), own = static_cast<uint32_t>(i);
    for (int64_t k = 0; k < a.K; ++k) {
      const uint32_t j = bounded(words[k], others);
      words[k] = j + (j >= own);
    }
    for (int64_t k = 0; k < a.K; ++k) ++w.counts[words[k]];
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

  void load_targets() const {
    for (int64_t j = 0; j < a.M; ++j) {
      T* t = w.t + j * w.dp;
      widen(row(a.targets, j), a.D, w.dp, t);
      scale(t, norm_of(1, j, t), w.dp);
    }
    transpose_rows(w.t, a.M, w.dp, w.tt, w.mp);
    find_kinds();
  }

  void load_predictions(int64_t i0, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      T* p = w.p + i * w.dp;
      widen(row(a.predictions, i0 + i), a.D, w.dp, p);
      scale(p, norm_of(0, i0 + i, p), w.dp);
    }
  }

  void similarities(int64_t n) const {
    gemm(n, a.M, a.D, w.p, w.dp, int64_t{1}, w.tt, w.mp, w.s, w.mp);
    const T by = T(a.inv_temperature);
    for (int64_t i = 0; i < n; ++i) scale(w.s + i * w.mp, by, w.mp);
  }

  void reduce_row(int64_t i, T* s) const {
    const bool excluded = count(i);
    const T positive = s[i], low = -T(__builtin_inf());
    Vec<T> highest = Vec<T>{} + low, lowest = Vec<T>{} - (excluded ? -low : low);
    for (int64_t j = 0; j < w.mp; j += kLanes<T>) {
      const Vec<T> v = load(s + j);
      const auto drawn = load(w.draws + j) > T(0);
      const Vec<T> up = drawn ? v : Vec<T>{} + low, down = drawn ? v : Vec<T>{} - low;
      highest = up > highest ? up : highest;
      lowest = down < lowest ? down : lowest;
      store(s + j, up);
    }
    const T most = reduce_max<T>(highest), least = -reduce_max<T>(-lowest);
    const T shift = most > positive ? most : positive;
    Vec<T> sum = {};
    for (int64_t j = 0; j < w.mp; j += kLanes<T>) sum += load(w.draws + j) * exp(load(s + j) - shift);
    Vec<T> own = {};
    own[0] = positive - shift;
    const T total = reduce_add<T>(sum) + exp(own)[0];
    stat(a.lse, i) = shift + log_scalar(total);
    stat(a.loss, i) = log_scalar(total) + (shift - positive);
    a.correct[b * a.M + i] = positive >= most && !(positive <= least);
  }

  // The row of cosines becomes the row of their gradients; returns sum_j cos_ij * grad_ij.
  T differentiate_row(int64_t i, T* s) const {
    count(i);
    const T lse = stat(a.lse, i), g = stat(a.grad_loss, i) * T(a.inv_temperature);
    const T cos_scale = T(1) / T(a.inv_temperature), own = s[i];
    Vec<T> along = {};
    for (int64_t j = 0; j < w.mp; j += kLanes<T>) {
      const Vec<T> sim = load(s + j), n = load(w.draws + j);
      // Where nothing was drawn the similarity may exceed the logsumexp: exp(0) times zero, not infinity
      // times zero.
      const Vec<T> ds = g * n * exp(n > T(0) ? sim - lse : Vec<T>{});
      along += sim * ds;
      store(s + j, ds);
    }
    Vec<T> at = {};
    at[0] = own - lse;
    const T own_grad = g * (exp(at)[0] - T(1));
    s[i] += own_grad;
    return (reduce_add<T>(along) + own * own_grad) * cos_scale;
  }

  // out = (grad - (grad . unit) unit) / norm, the gradient through x / max(norm, eps).
  void write_gradient(const T* grad, const T* unit, T along, T inverse, In* out) const {
    const T project = inverse >= T(1) / T(kEps) ? T(0) : along;
    constexpr int L = kLanes<T>;
    int64_t d = 0;
    for (; d + L <= a.D; d += L) store_acc(out + d, inverse * (load(grad + d) - project * load(unit + d)));
    for (; d < a.D; ++d) from_acc(inverse * (grad[d] - project * unit[d]), out + d);
  }

  void forward() const {
    load_targets();
    for (int64_t i0 = 0; i0 < a.M; i0 += w.rows) {
      const int64_t n = a.M - i0 < w.rows ? a.M - i0 : w.rows;
      load_predictions(i0, n);
      similarities(n);
      for (int64_t i = 0; i < n; ++i) reduce_row(i0 + i, w.s + i * w.mp);
    }
  }

  void backward() const {
    load_targets();
    memset(w.dt, 0, sizeof(T) * a.M * w.dp);
    for (int64_t i0 = 0; i0 < a.M; i0 += w.rows) {
      const int64_t n = a.M - i0 < w.rows ? a.M - i0 : w.rows;
      load_predictions(i0, n);
      similarities(n);
      T along[kRowBlock];
      for (int64_t i = 0; i < n; ++i) along[i] = differentiate_row(i0 + i, w.s + i * w.mp);
      gemm(n, a.D, a.M, w.s, w.mp, int64_t{1}, w.t, w.dp, w.dp_rows, w.dp);
      gemm<true>(a.M, a.D, n, w.s, int64_t{1}, w.mp, w.p, w.dp, w.dt, w.dp);
      for (int64_t i = 0; i < n; ++i)
        write_gradient(w.dp_rows + i * w.dp, w.p + i * w.dp, along[i], inv_norm(0, i0 + i),
                       row(a.grad_predictions, i0 + i));
    }
    for (int64_t j = 0; j < a.M; ++j) {
      const T *g = w.dt + j * w.dp, *t = w.t + j * w.dp;
      write_gradient(g, t, dot(g, t, w.dp), inv_norm(1, j), row(a.grad_targets, j));
    }
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
