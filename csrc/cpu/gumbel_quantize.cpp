// Gumbel product quantisation, a block of rows at a time. Nothing as large as the logits exists but what the
// forward pass keeps for the backward pass when asked: the exponentials of the tempered choice, without which
// the noise would have to be drawn twice. Compiled once per ISA.
#include "arena.h"
#include "kernels.h"
#include "log_table.h"
#include "philox_vector.h"
#include "products.h"
#include "rows.h"

namespace ecgfast {
namespace {

constexpr int64_t kEntries = 32;  // entries that are packed, or whose gradients are summed, at a time
constexpr int64_t kColumns = 64;  // columns of a group's gradients that are one piece of work, if hard

static constexpr int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }
static constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// One thread's scratch.
template <class T, class P>
struct Scratch {
  static constexpr int64_t kRows = pieces(24, P::kRows) * P::kRows;  // rows of one small product
  static_assert(kRows <= kEntries, "`mixed` holds as many");

  int64_t vp, wp;             // V and W padded for the products
  T *x, *y;                   // one group of one row: logits, noisy logits or their gradient; [vp]
  T *choice, *probs;          // exponentials of the tempered noisy logits, of the logits; [vp]
  T* mixture;                 // [kRows, G, vp]: the choice's probabilities, or the gradients of the choice
  T* mixed;                   // [kEntries, wp]: a group's entries, or their gradients
  T* sums;                    // [V, kColumns] if hard: gradients of entries
  T* grad_probs;              // [G, vp]
  typename P::Element* left;  // first operand of a product
  uint32_t* words;            // a row's draws
  int64_t bytes;

  Scratch(const GumbelArgs& a, void* base)
      : vp(round_up(a.V, kGemmColumns<T>)), wp(round_up(a.W, kGemmColumns<T>)) {
    Arena arena(base);
    x = arena.take<T>(vp);
    y = arena.take<T>(vp);
    choice = arena.take<T>(vp);
    probs = arena.take<T>(vp);
    mixture = arena.take<T>(kRows * a.G * vp);
    mixed = arena.take<T>(kEntries * wp);
    sums = arena.take<T>(a.hard ? a.V * kColumns : 0);
    grad_probs = arena.take<T>(a.G * vp);
    left = arena.take<typename P::Element>(P::left_elements(kRows, vp > wp ? vp : wp));
    words = arena.take<uint32_t>(a.G * a.V + vp + 8 + kPhiloxSlack);
    bytes = arena.bytes();
  }
};

// 23 bits, centred: never 0 or 1.
template <class T>
static Vec<T> uniform(const uint32_t* words) {
  Vec<T> top;
  if constexpr (kSame<T, float>) {
    VU w;
    memcpy(&w, words, sizeof w);
    top = __builtin_convertvector(bit_cast<VI>(w >> 9), VF);  // signed: the conversion that all ISAs have
  } else {
    for (int l = 0; l < kLanes<T>; ++l) top[l] = static_cast<T>(words[l] >> 9);
  }
  return top * T(0x1p-23) + T(0x1p-24);
}

template <class T>
static T largest(const T* x, int64_t n) {
  Vec<T> most = load(x);
  for (int64_t v = kLanes<T>; v < n; v += kLanes<T>) most = load(x + v) > most ? load(x + v) : most;
  return reduce_max<T>(most);
}

// What the gradient through p = e / sum(e) needs of a group of a row, e the exponentials of x * factor:
// factor * p (grad - p . grad).
template <class T>
class ThroughSoftmax {
 public:
  void next(Vec<T> e, Vec<T> grad) {
    sums_ += e;
    products_ += e * grad;
  }
  void finish(T factor) {
    inverse_ = T(1) / reduce_add<T>(sums_);
    along_ = reduce_add<T>(products_) * inverse_;
    by_ = factor * inverse_;
  }
  T inverse_sum() const { return inverse_; }
  Vec<T> operator()(Vec<T> e, Vec<T> grad) const { return by_ * e * (grad - along_); }

 private:
  Vec<T> sums_ = {}, products_ = {};
  T inverse_, along_, by_;
};

// The largest of the noisy logits, the first place that holds it, and the largest of the logits. NaNs are
// passed over.
template <class T>
struct Peaks {
  T noisy, plain;
  int64_t at;
};

template <class T>
class PeakFinder {
 public:
  PeakFinder() {
    for (int l = 0; l < kLanes<T>; ++l) here_[l] = l;
    at_ = here_;
  }
  void next(Vec<T> plain, Vec<T> noisy) {
    const Index more = noisy > noisy_;
    noisy_ = more ? noisy : noisy_;
    at_ = more ? here_ : at_;
    plain_ = plain > plain_ ? plain : plain_;
    here_ += kLanes<T>;
  }
  Peaks<T> peaks() const {
    const T most = reduce_max<T>(noisy_);
    int64_t first = INT32_MAX;
    const Index places = noisy_ == most ? at_ : Index{} + INT32_MAX;
    for (int l = 0; l < kLanes<T>; ++l) first = places[l] < first ? places[l] : first;
    return {most, reduce_max<T>(plain_), first};
  }

 private:
  using Index = decltype(Vec<T>{} > Vec<T>{});
  Index here_, at_;
  Vec<T> noisy_ = Vec<T>{} - static_cast<T>(__builtin_inf()), plain_ = noisy_;
};

template <class T, class P>
struct Quantizer {
  using Element = typename P::Element;
  static constexpr int64_t kRows = Scratch<T, P>::kRows;
  static constexpr DType kType = kSame<T, double> ? DType::f64 : DType::f32;

  const GumbelArgs& a;
  Scratch<T, P> w;

  LogTable log_magnitude;

  Quantizer(const GumbelArgs& args, void* base) : a(args), w(args, base) {}

  void products_begin() const { P::begin(); }
  void products_end() const { P::end(); }
  T by() const { return static_cast<T>(a.inv_temperature); }
  T* mixture(int64_t i, int64_t g) const { return w.mixture + (i * a.G + g) * w.vp; }
  int64_t ld() const { return a.G * w.vp; }
  int64_t chunks() const { return pieces(a.R, a.chunk_rows); }
  T* partial(int64_t at) const { return static_cast<T*>(a.partial) + at; }

  int64_t panel_elements() const {
    const int64_t soft = P::right_elements(a.V, a.W), transposed = P::right_elements(a.W, a.V);
    return soft > transposed ? soft : transposed;
  }
  Element* panels(int64_t g) const { return static_cast<Element*>(a.panels) + g * panel_elements(); }

  GumbelSizes sizes(bool backward) const {
    const int64_t codebook = a.G * w.vp * w.wp;
    GumbelSizes s;
    // Few chunks where each sums a codebook's gradient of its own.
    s.chunk_rows = kRows * (pieces(pieces(a.R, kRows), backward && !a.hard ? 8 : 256) + (a.R == 0));
    s.chunks = pieces(a.R, s.chunk_rows);
    s.scratch = w.bytes;
    s.panels = backward || !a.hard ? a.G * panel_elements() * static_cast<int64_t>(sizeof(Element)) : 0;
    s.partial = s.chunks * (!backward ? ld() : a.hard ? 0 : codebook);
    s.prepare = a.G * prepare_pieces();
    s.finish = a.hard ? 0 : a.G * pieces(a.V, kEntries);
    return s;
  }

  // The draws of a row, from group 0 on.
  const uint32_t* draw(int64_t r) const {
    if (a.noise || !a.draw) return nullptr;
    const int64_t sample = a.sample_ids ? a.sample_ids[r / a.rows_per_sample] : 0;
    const int64_t columns = a.G * a.V, first = r % a.rows_per_sample * columns, block = first / 4;
    const Stream stream = make_stream(a.seed, a.step, sample, Purpose::gumbel);
    philox_fill(stream, static_cast<uint32_t>(block), (first + columns + 3) / 4 - block, w.words);
    return w.words + (first - 4 * block);
  }

  // The row after the next, of what is read or written in place: the hardware's streams end at every page.
  template <bool Write = false>
  void fetch(const T* at) const {
    __builtin_prefetch(at + 2 * a.G * a.V, Write, 3);
  }

  // The logits of a group; padded columns are chosen by nothing.
  const T* logits(int64_t r, int64_t g) const {
    const int64_t at = (r * a.G + g) * a.V;
    if (w.vp == a.V && a.logits_type == kType) return static_cast<const T*>(a.logits) + at;
    widen(a.logits_type, a.logits, at, a.V, w.vp, w.x, -static_cast<T>(__builtin_inf()));
    return w.x;
  }

  // Noisy logits into y.
  Peaks<T> add_noise(int64_t r, int64_t g, const T* x, const uint32_t* words) const {
    if (words) {
      words += g * a.V;
      const LogTable& log = log_magnitude;
      return noisy(x, [&log, words](int64_t v) { return -log(log(uniform<T>(words + v))); });
    }
    if (!a.noise) return noisy(x, [](int64_t) { return Vec<T>{}; });
    widen(static_cast<const T*>(a.noise) + (r * a.G + g) * a.V, a.V, w.vp, w.y);
    return noisy(x, [this](int64_t v) { return load(w.y + v); });
  }

  template <class Noise>
  Peaks<T> noisy(const T* x, Noise noise) const {
    PeakFinder<T> finder;
    for (int64_t v = 0; v < w.vp; v += kLanes<T>) {
      fetch(x + v);
      const Vec<T> plain = load(x + v), y = plain + noise(v);
      store(w.y + v, y);
      finder.next(plain, y);
    }
    return finder.peaks();
  }

  void forward_row(int64_t r, int64_t i, T* sums) const {
    const uint32_t* words = draw(r);
    for (int64_t g = 0; g < a.G; ++g, sums += w.vp) {
      const T* x = logits(r, g);
      const Peaks<T> peaks = add_noise(r, g, x, words);
      const int64_t at = r * a.G + g;
      a.codes[at] = static_cast<int32_t>(peaks.at);
      if (a.hard) copy_entry((g * a.V + peaks.at) * a.W, at * a.W);
      T* const kept = a.choice ? static_cast<T*>(a.choice) + at * a.V : nullptr;
      T* const choice = kept && w.vp == a.V ? kept : w.choice;
      const bool chosen = kept || !a.hard;
      const Sums all = chosen ? exponentials<true>(x, peaks, choice) : exponentials<false>(x, peaks, choice);
      if (kept && kept != choice) memcpy(kept, choice, sizeof(T) * a.V);
      if (!a.hard) scaled(choice, T(1) / all.choice, mixture(i, g));
      const T share = T(1) / all.probs;
      for (int64_t v = 0; v < w.vp; v += kLanes<T>)
        store(sums + v, load(sums + v) + share * load(w.probs + v));
    }
  }

  struct Sums {
    T choice, probs;
  };

  // The exponentials of a group of a row, whose noisy logits are in y, into `choice` and w.probs.
  template <bool Choice>
  Sums exponentials(const T* x, const Peaks<T>& peaks, T* choice) const {
    const T by = this->by();
    Vec<T> chosen = {}, sum = {};
    for (int64_t v = 0; v < w.vp; v += kLanes<T>) {
      if constexpr (Choice) {
        const Vec<T> e = exp_nonpositive((load(w.y + v) - peaks.noisy) * by);
        fetch<true>(choice + v);
        store(choice + v, e);
        chosen += e;
      }
      const Vec<T> e = exp_nonpositive(load(x + v) - peaks.plain);
      store(w.probs + v, e);
      sum += e;
    }
    return {reduce_add<T>(chosen), reduce_add<T>(sum)};
  }

  void scaled(const T* x, T factor, T* out) const {
    for (int64_t v = 0; v < w.vp; v += kLanes<T>) store(out + v, load(x + v) * factor);
  }

  void copy_entry(int64_t from, int64_t to) const {
    const int64_t size = a.codebook_type == DType::f64 ? 8 : a.codebook_type == DType::f32 ? 4 : 2;
    memcpy(static_cast<char*>(a.quantized) + to * size, static_cast<const char*>(a.codebook) + from * size,
           a.W * size);
  }

  void forward(int64_t chunk) const {
    T* sums = partial(chunk * ld());
    memset(sums, 0, sizeof(T) * ld());
    for_blocks(chunk, [&](int64_t r0, int64_t n) {
      for (int64_t i = 0; i < n; ++i) forward_row(r0 + i, i, sums);
      for (int64_t g = 0; g < a.G && !a.hard; ++g) {
        const auto left = P::rows_of(mixture(0, g), ld(), n, a.V, w.left);
        P::template multiply<false>(n, a.W, a.V, left, panels(g), w.mixed, w.wp, w.wp);
        for (int64_t i = 0; i < n; ++i)
          narrow(a.codebook_type, w.mixed + i * w.wp, a.W, a.quantized, ((r0 + i) * a.G + g) * a.W);
      }
    });
  }

  template <class F>
  void for_blocks(int64_t chunk, F f) const {
    const int64_t begin = chunk * a.chunk_rows, end = smaller(begin + a.chunk_rows, a.R);
    for (int64_t r = begin; r < end; r += kRows) f(r, smaller(end - r, kRows));
  }

  void mean(int64_t g) const {
    memset(w.x, 0, sizeof(T) * w.vp);
    for (int64_t c = 0; c < chunks(); ++c) add(partial(c * ld() + g * w.vp), w.vp, w.x);
    for (int64_t v = 0; v < a.V; ++v)
      static_cast<T*>(a.mean_probs)[g * a.V + v] = w.x[v] / static_cast<T>(a.R > 0 ? a.R : 1);
  }

  static void add(const T* x, int64_t n, T* y) {
    for (int64_t i = 0; i < n; i += kLanes<T>) store(y + i, load(y + i) + load(x + i));
  }

  // The codebook of one group packed for the products: itself, or transposed.
  void pack(int64_t g, bool transposed) const {
    for (int64_t v = 0; v < a.V; v += kEntries) {
      const int64_t n = smaller(a.V - v, kEntries);
      for (int64_t i = 0; i < n; ++i)
        widen(a.codebook_type, a.codebook, (g * a.V + v + i) * a.W, a.W, w.wp, w.mixed + i * w.wp);
      if (transposed) {
        P::pack_right(w.mixed, w.wp, v, n, a.W, panels(g));
      } else {
        P::pack_right_rows(w.mixed, w.wp, v, n, a.W, a.V, panels(g));
      }
    }
  }

  int64_t prepare_pieces() const { return 1 + (a.hard ? pieces(a.W, kColumns) : 0); }

  void prepare(int64_t piece) const {
    const int64_t g = piece / prepare_pieces(), k = piece % prepare_pieces();
    k == 0 ? pack(g, true) : add_chosen(g, (k - 1) * kColumns);
  }

  // The gradient of a group's entries in some columns: that of the rows that chose them, in their order.
  void add_chosen(int64_t g, int64_t j0) const {
    const int64_t n = smaller(a.W - j0, kColumns);
    T grad[kColumns] = {};
    memset(w.sums, 0, sizeof(T) * a.V * kColumns);
    for (int64_t r = 0; r < a.R && a.grad_quantized; ++r) {
      const int64_t at = r * a.G + g, code = a.codes[at];
      widen(a.codebook_type, a.grad_quantized, at * a.W + j0, n, n, grad);
      // A code that isn't one can only come from a direct call of the op.
      if (code >= 0 && code < a.V) add(grad, kColumns, w.sums + code * kColumns);
    }
    for (int64_t v = 0; v < a.V; ++v)
      narrow(a.codebook_type, w.sums + v * kColumns, n, a.grad_codebook, (g * a.V + v) * a.W + j0);
  }

  void load_grad(int64_t r0, int64_t n, int64_t g) const {
    for (int64_t i = 0; i < n; ++i)
      widen(a.codebook_type, a.grad_quantized, ((r0 + i) * a.G + g) * a.W, a.W, w.wp, w.mixed + i * w.wp);
  }

  // Rows of a group's gradients as the first operand of a product.
  typename P::Left left_grad(int64_t r0, int64_t n, int64_t g) const {
    if (w.wp == a.W && a.codebook_type == kType) {
      const T* grad = static_cast<const T*>(a.grad_quantized) + (r0 * a.G + g) * a.W;
      return P::rows_of(grad, a.G * a.W, n, a.W, w.left);
    }
    load_grad(r0, n, g);
    return P::rows_of(w.mixed, w.wp, n, a.W, w.left);
  }

  // Gradients of the chosen (or mixed) entries become those of the choice's probabilities.
  void grad_choice(int64_t r0, int64_t n) const {
    for (int64_t g = 0; g < a.G; ++g)
      P::template multiply<false>(n, a.V, a.W, left_grad(r0, n, g), panels(g), mixture(0, g), ld(), w.vp);
  }

  // The exponentials of the tempered choice.
  const T* choice(int64_t r, int64_t g, const T* x, const uint32_t* words) const {
    if (a.choice) {
      const T* kept = static_cast<const T*>(a.choice) + (r * a.G + g) * a.V;
      if (w.vp == a.V) return kept;
      widen(kept, a.V, w.vp, w.choice);
    } else {
      exponentials<true>(x, add_noise(r, g, x, words), w.choice);
    }
    return w.choice;
  }

  void backward_row(int64_t r, int64_t i) const {
    const uint32_t* words = a.choice || !a.grad_quantized ? nullptr : draw(r);
    for (int64_t g = 0; g < a.G; ++g) {
      const T* x = logits(r, g);
      const int64_t at = (r * a.G + g) * a.V;
      const bool in_place = w.vp == a.V && a.logits_type == kType;
      T* const grad = in_place ? static_cast<T*>(a.grad_logits) + at : w.y;
      if (!a.grad_quantized) {
        a.grad_mean_probs ? backward_group<false, true>(x, nullptr, g, i, grad)
                          : static_cast<void>(memset(grad, 0, sizeof(T) * w.vp));
      } else {
        const T* e = choice(r, g, x, words);
        a.grad_mean_probs ? backward_group<true, true>(x, e, g, i, grad)
                          : backward_group<true, false>(x, e, g, i, grad);
      }
      if (!in_place) narrow(a.logits_type, grad, a.V, a.grad_logits, at);
    }
  }

  // The gradient of the logits of a group of a row through the choice and the probabilities. Unless hard, the
  // gradient of the mixture is replaced by the mixture, for the codebook's gradient.
  template <bool Choice, bool Probs>
  void backward_group(const T* x, const T* e, int64_t g, int64_t i, T* out) const {
    T* const along = mixture(i, g);
    const T* grad_probs = w.grad_probs + g * w.vp;
    const T most = Probs ? largest(x, w.vp) : T(0);
    ThroughSoftmax<T> chosen, probs;
    for (int64_t v = 0; v < w.vp; v += kLanes<T>) {
      fetch<true>(out + v);
      if constexpr (Choice) {
        fetch(e + v);
        chosen.next(load(e + v), load(along + v));
      }
      if constexpr (Probs) {
        fetch(x + v);
        const Vec<T> p = exp_nonpositive(load(x + v) - most);
        store(w.probs + v, p);
        probs.next(p, load(grad_probs + v));
      }
    }
    if constexpr (Choice) chosen.finish(by());
    if constexpr (Probs) probs.finish(T(1) / static_cast<T>(a.R));
    for (int64_t v = 0; v < w.vp; v += kLanes<T>) {
      Vec<T> sum = {};
      if constexpr (Choice) sum += chosen(load(e + v), load(along + v));
      if constexpr (Probs) sum += probs(load(w.probs + v), load(grad_probs + v));
      store(out + v, sum);
    }
    if (Choice && !a.hard) scaled(e, chosen.inverse_sum(), along);
  }

  void backward(int64_t chunk) const {
    if (a.grad_mean_probs)
      for (int64_t g = 0; g < a.G; ++g)
        widen(static_cast<const T*>(a.grad_mean_probs) + g * a.V, a.V, w.vp, w.grad_probs + g * w.vp);
    T* sums = a.hard ? nullptr : partial(chunk * a.G * w.vp * w.wp);
    if (sums) memset(sums, 0, sizeof(T) * a.G * w.vp * w.wp);
    for_blocks(chunk, [&](int64_t r0, int64_t n) {
      if (a.grad_quantized) grad_choice(r0, n);
      for (int64_t i = 0; i < n; ++i) backward_row(r0 + i, i);
      for (int64_t g = 0; g < a.G && sums && a.grad_quantized; ++g) {
        load_grad(r0, n, g);
        gemm<true>(a.V, a.W, n, mixture(0, g), int64_t{1}, ld(), w.mixed, w.wp, sums + g * w.vp * w.wp, w.wp);
      }
    });
  }

  // The soft form's codebook gradient for some entries of a group.
  void finish(int64_t piece) const {
    const int64_t of_group = pieces(a.V, kEntries), g = piece / of_group, v0 = piece % of_group * kEntries;
    const int64_t n = smaller(a.V - v0, kEntries);
    memset(w.mixed, 0, sizeof(T) * n * w.wp);
    for (int64_t c = 0; c < chunks(); ++c)
      add(partial(((c * a.G + g) * w.vp + v0) * w.wp), n * w.wp, w.mixed);
    for (int64_t v = 0; v < n; ++v)
      narrow(a.codebook_type, w.mixed + v * w.wp, a.W, a.grad_codebook, (g * a.V + v0 + v) * a.W);
  }

  void run(GumbelPass pass, int64_t i) const {
    switch (pass) {
      case GumbelPass::pack:
        return pack(i, false);
      case GumbelPass::forward:
        return forward(i);
      case GumbelPass::mean_probs:
        return mean(i);
      case GumbelPass::prepare_backward:
        return prepare(i);
      case GumbelPass::backward:
        return backward(i);
      case GumbelPass::finish_backward:
        return finish(i);
    }
  }
};

// Calls f with the quantizer for the dtypes.
template <class F>
static auto with_quantizer(const GumbelArgs& a, void* scratch, F f) {
  if (a.logits_type == DType::f64) return f(Quantizer<double, MultiplyAdd<double>>(a, scratch));
  if (a.codebook_type == DType::bf16) return f(Quantizer<float, ProductsOf<BFloat16>::type>(a, scratch));
  if (a.codebook_type == DType::f16) return f(Quantizer<float, ProductsOf<Half>::type>(a, scratch));
  return f(Quantizer<float, ProductsOf<float>::type>(a, scratch));
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

GumbelSizes gumbel_sizes(const GumbelArgs& args, bool backward) {
  return with_quantizer(args, nullptr, [=](const auto& quantizer) { return quantizer.sizes(backward); });
}

void gumbel_quantize(const GumbelArgs& args, GumbelPass pass, int64_t begin, int64_t end, void* scratch) {
  with_quantizer(args, scratch, [=](const auto& quantizer) {
    quantizer.products_begin();
    for (int64_t i = begin; i < end; ++i) quantizer.run(pass, i);
    quantizer.products_end();
  });
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
