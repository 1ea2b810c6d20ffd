// Gumbel product quantisation, a block of rows at a time. The noise is drawn again in the backward pass, and
// neither the one-hot rows nor the probabilities ever exist for more than a block. Compiled once per ISA.
#include "arena.h"
#include "gemm_packed.h"
#include "kernels.h"
#include "philox_vector.h"
#include "rows.h"

namespace ecgfast {
namespace {

constexpr int64_t kRowBlock = 24;  // rows of one small product

template <class T>
struct Sizes {
  int64_t vp, wp;  // V and W padded for the products
  explicit Sizes(const GumbelArgs& a)
      : vp(round_up(a.V, kGemmColumns<T>)), wp(round_up(a.W, kGemmColumns<T>)) {}
};

static int64_t chunks(const GumbelArgs& a) { return (a.R + a.chunk_rows - 1) / a.chunk_rows; }

static_assert(kRowBlock <= kGumbelEntries && kGemmColumns<float> <= kGumbelEntries,
              "Scratch::mixed holds them");

// One thread's scratch.
template <class T>
struct Scratch : Sizes<T> {
  T *x, *y, *p;     // one group of one row: logits, noisy logits, probabilities; [vp]
  T* mixture;       // [kRowBlock, G, vp]: the choice's probabilities, or the gradients of the choice
  T* mixed;         // [kGumbelEntries, wp]: a group's entries, or their gradients
  T* entry;         // [wp]
  T* grad_probs;    // [G, vp]
  uint32_t* words;  // a row's draws
  int64_t bytes;

  Scratch(const GumbelArgs& a, void* base) : Sizes<T>(a) {
    Arena arena(base);
    x = arena.take<T>(this->vp);
    y = arena.take<T>(this->vp);
    p = arena.take<T>(this->vp);
    mixture = arena.take<T>(kRowBlock * a.G * this->vp);
    mixed = arena.take<T>(kGumbelEntries * this->wp);
    entry = arena.take<T>(this->wp);
    grad_probs = arena.take<T>(a.G * this->vp);
    words = arena.take<uint32_t>(a.G * a.V + this->vp + 8 + kPhiloxSlack);
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
  return (top + T(0.5)) * T(0x1p-23);
}

template <class T>
static void softmax(const T* x, T max, T by, int64_t n, T* p) {
  Vec<T> sum = {};
  for (int64_t v = 0; v < n; v += kLanes<T>) {
    const Vec<T> e = exp((load(x + v) - max) * by);
    sum += e;
    store(p + v, e);
  }
  scale(p, T(1) / reduce_add<T>(sum), n);
}

template <class T>
struct Largest {
  T value;
  int64_t at;  // the first place that holds it
};

// NaNs are passed over; n is a multiple of a register, below 2^31.
template <class T>
static Largest<T> largest(const T* x, int64_t n) {
  using Index = decltype(Vec<T>{} > Vec<T>{});
  Index lane, at;
  for (int l = 0; l < kLanes<T>; ++l) lane[l] = l;
  Vec<T> best = Vec<T>{} - static_cast<T>(__builtin_inf());
  at = lane;
  for (int64_t v = 0; v < n; v += kLanes<T>) {
    const Vec<T> c = load(x + v);
    const Index more = c > best;
    best = more ? c : best;
    at = more ? lane + static_cast<int>(v) : at;
  }
  Largest<T> found{best[0], at[0]};
  for (int l = 1; l < kLanes<T>; ++l)
    if (best[l] > found.value || (best[l] == found.value && at[l] < found.at)) found = {best[l], at[l]};
  return found;
}

template <class T>
struct Quantizer {
  const GumbelArgs& a;
  Scratch<T> w;

  Quantizer(const GumbelArgs& args, void* base) : a(args), w(args, base) {}

  T* panel(int64_t g) const { return static_cast<T*>(a.panels) + g * w.vp * w.wp; }
  T by() const { return static_cast<T>(a.inv_temperature); }
  T* mixture(int64_t i, int64_t g) const { return w.mixture + (i * a.G + g) * w.vp; }
  int64_t ld() const { return a.G * w.vp; }

  // The draws of a row; noise_at says where group 0 of it begins.
  const uint32_t* draw(int64_t r) const {
    if (a.noise || !a.draw) return nullptr;
    const int64_t sample = a.sample_ids ? a.sample_ids[r / a.rows_per_sample] : 0;
    const int64_t columns = a.G * a.V, first = r % a.rows_per_sample * columns, block = first / 4;
    const Stream stream = make_stream(a.seed, a.step, sample, Purpose::gumbel);
    philox_fill(stream, static_cast<uint32_t>(block), (first + columns + 3) / 4 - block, w.words);
    return w.words + (first - 4 * block);
  }

  // x and y of a row's group; padded columns are chosen by nothing.
  void load_group(int64_t r, int64_t g, const uint32_t* words) const {
    const T low = -static_cast<T>(__builtin_inf());
    const int64_t at = (r * a.G + g) * a.V;
    widen(a.logits_type, a.logits, at, a.V, w.vp, w.x, low);
    if (a.noise) {
      widen(static_cast<const T*>(a.noise) + at, a.V, w.vp, w.y);
    } else if (words) {
      for (int64_t v = 0; v < w.vp; v += kLanes<T>)
        store(w.y + v, -log_normal(-log_normal(uniform<T>(words + g * a.V + v))));
    } else {
      memset(w.y, 0, sizeof(T) * w.vp);
    }
    for (int64_t v = 0; v < w.vp; v += kLanes<T>) store(w.y + v, load(w.x + v) + load(w.y + v));
  }

  void forward_row(int64_t r, int64_t i, T* sums) const {
    const uint32_t* words = draw(r);
    for (int64_t g = 0; g < a.G; ++g) {
      load_group(r, g, words);
      const Largest<T> best = largest(w.y, w.vp);
      a.codes[r * a.G + g] = static_cast<int32_t>(best.at);
      if (a.hard) {
        copy_entry((g * a.V + best.at) * a.W, (r * a.G + g) * a.W);
      } else {
        softmax(w.y, best.value, by(), w.vp, mixture(i, g));
      }
      softmax(w.x, largest(w.x, w.vp).value, T(1), w.vp, w.p);
      for (int64_t v = 0; v < w.vp; v += kLanes<T>)
        store(sums + g * w.vp + v, load(sums + g * w.vp + v) + load(w.p + v));
    }
  }

  void copy_entry(int64_t from, int64_t to) const {
    const int64_t size = a.codebook_type == DType::f64 ? 8 : a.codebook_type == DType::f32 ? 4 : 2;
    memcpy(static_cast<char*>(a.quantized) + to * size, static_cast<const char*>(a.codebook) + from * size,
           a.W * size);
  }

  void forward(int64_t chunk) const {
    T* sums = static_cast<T*>(a.partial) + chunk * ld();
    memset(sums, 0, sizeof(T) * ld());
    for_blocks(chunk, [&](int64_t r0, int64_t n) {
      for (int64_t i = 0; i < n; ++i) forward_row(r0 + i, i, sums);
      for (int64_t g = 0; g < a.G && !a.hard; ++g) {
        gemm_packed(n, a.W, a.V, row_major(mixture(0, g), ld()), panel(g), w.mixed, w.wp, w.wp);
        for (int64_t i = 0; i < n; ++i)
          narrow(a.codebook_type, w.mixed + i * w.wp, a.W, a.quantized, ((r0 + i) * a.G + g) * a.W);
      }
    });
  }

  template <class F>
  void for_blocks(int64_t chunk, F f) const {
    const int64_t begin = chunk * a.chunk_rows;
    const int64_t end = begin + a.chunk_rows < a.R ? begin + a.chunk_rows : a.R;
    for (int64_t r = begin; r < end; r += kRowBlock) f(r, end - r < kRowBlock ? end - r : kRowBlock);
  }

  // Gradients of the chosen (or mixed) entries become those of the choice's probabilities.
  void grad_choice(int64_t r0, int64_t n) const {
    for (int64_t g = 0; g < a.G; ++g) {
      for (int64_t i = 0; i < n; ++i) load_grad(r0 + i, g, w.mixed + i * w.wp);
      gemm_packed(n, a.V, a.W, row_major(w.mixed, w.wp), panel(g), mixture(0, g), ld(), w.vp);
    }
  }

  void load_grad(int64_t r, int64_t g, T* out) const {
    widen(a.codebook_type, a.grad_quantized, (r * a.G + g) * a.W, a.W, w.wp, out);
  }

  // Adds by * p (grad - p . grad), the gradient through p = softmax(by * x), to out.
  void through_softmax(const T* p, const T* grad, T factor, T* out) const {
    const T along = dot(p, grad, w.vp);
    for (int64_t v = 0; v < w.vp; v += kLanes<T>)
      store(out + v, load(out + v) + factor * load(p + v) * (load(grad + v) - along));
  }

  void backward_row(int64_t r, int64_t i, const uint32_t* words) const {
    for (int64_t g = 0; g < a.G; ++g) {
      load_group(r, g, words);
      const int64_t at = (r * a.G + g) * a.V;
      T* const grad = w.p;  // each row's gradient takes the place of what it is no more needed
      T* const choice = mixture(i, g);
      if (a.grad_quantized) softmax(w.y, largest(w.y, w.vp).value, by(), w.vp, w.y);
      if (a.grad_mean_probs) softmax(w.x, largest(w.x, w.vp).value, T(1), w.vp, w.x);
      memset(grad, 0, sizeof(T) * w.vp);
      if (a.grad_quantized) through_softmax(w.y, choice, by(), grad);
      if (a.grad_mean_probs) through_softmax(w.x, w.grad_probs + g * w.vp, T(1) / static_cast<T>(a.R), grad);
      narrow(a.logits_type, grad, a.V, a.grad_logits, at);
      // The soft form's codebook gradient needs the mixture itself.
      if (a.grad_quantized && !a.hard) memcpy(choice, w.y, sizeof(T) * w.vp);
    }
  }

  void backward(int64_t chunk) const {
    if (a.grad_mean_probs)
      for (int64_t g = 0; g < a.G; ++g)
        widen(static_cast<const T*>(a.grad_mean_probs) + g * a.V, a.V, w.vp, w.grad_probs + g * w.vp);
    T* sums = a.hard ? nullptr : static_cast<T*>(a.partial) + chunk * a.G * w.vp * w.wp;
    if (sums) memset(sums, 0, sizeof(T) * a.G * w.vp * w.wp);
    for_blocks(chunk, [&](int64_t r0, int64_t n) {
      if (a.grad_quantized) grad_choice(r0, n);
      for (int64_t i = 0; i < n; ++i) backward_row(r0 + i, i, draw(r0 + i));
      for (int64_t g = 0; g < a.G && sums && a.grad_quantized; ++g) {
        for (int64_t i = 0; i < n; ++i) load_grad(r0 + i, g, w.mixed + i * w.wp);
        gemm<true>(a.V, a.W, n, mixture(0, g), int64_t{1}, ld(), w.mixed, w.wp, sums + g * w.vp * w.wp, w.wp);
      }
    });
  }

  // The codebook's gradient for some entries of a group: rows are added in their order.
  void grad_entries(int64_t task) const {
    const int64_t tasks = (a.V + kGumbelEntries - 1) / kGumbelEntries, g = task / tasks;
    const int64_t v0 = task % tasks * kGumbelEntries;
    const int64_t n = a.V - v0 < kGumbelEntries ? a.V - v0 : kGumbelEntries;
    memset(w.mixed, 0, sizeof(T) * n * w.wp);
    if (a.grad_quantized) a.hard ? add_chosen(g, v0, n) : add_partials(g, v0, n);
    for (int64_t v = 0; v < n; ++v)
      narrow(a.codebook_type, w.mixed + v * w.wp, a.W, a.grad_codebook, (g * a.V + v0 + v) * a.W);
  }

  void add_chosen(int64_t g, int64_t v0, int64_t n) const {
    for (int64_t r = 0; r < a.R; ++r) {
      const int64_t v = a.codes[r * a.G + g] - v0;
      if (v < 0 || v >= n) continue;
      load_grad(r, g, w.entry);
      add(w.entry, w.wp, w.mixed + v * w.wp);
    }
  }

  void add_partials(int64_t g, int64_t v0, int64_t n) const {
    for (int64_t c = 0; c < chunks(a); ++c)
      add(static_cast<const T*>(a.partial) + ((c * a.G + g) * w.vp + v0) * w.wp, n * w.wp, w.mixed);
  }

  static void add(const T* x, int64_t n, T* y) {
    for (int64_t i = 0; i < n; i += kLanes<T>) store(y + i, load(y + i) + load(x + i));
  }

  void mean(int64_t g) const {
    T* sum = w.x;
    memset(sum, 0, sizeof(T) * w.vp);
    for (int64_t c = 0; c < chunks(a); ++c)
      add(static_cast<const T*>(a.partial) + c * ld() + g * w.vp, w.vp, sum);
    for (int64_t v = 0; v < a.V; ++v)
      static_cast<T*>(a.mean_probs)[g * a.V + v] = sum[v] / static_cast<T>(a.R > 0 ? a.R : 1);
  }

  // The codebook of one group packed for the products: itself, or transposed.
  void pack(int64_t g, bool transposed) const {
    constexpr int64_t L = kGemmColumns<T>;
    T* rows = w.mixed;
    for (int64_t v = 0; v < a.V; v += L) {
      const int64_t n = a.V - v < L ? a.V - v : L;
      for (int64_t i = 0; i < n; ++i)
        widen(a.codebook_type, a.codebook, (g * a.V + v + i) * a.W, a.W, w.wp, rows + i * w.wp);
      if (transposed) {
        pack_transposed(rows, w.wp, v, n, a.W, panel(g));
      } else {
        pack_rows(rows, w.wp, v, n, a.W, a.V, panel(g));
      }
    }
  }
};

template <class T>
static void run(const GumbelArgs& a, GumbelPass pass, int64_t begin, int64_t end, void* scratch) {
  const Quantizer<T> quantizer(a, scratch);
  for (int64_t i = begin; i < end; ++i) switch (pass) {
      case GumbelPass::pack:
        quantizer.pack(i, false);
        break;
      case GumbelPass::pack_transposed:
        quantizer.pack(i, true);
        break;
      case GumbelPass::forward:
        quantizer.forward(i);
        break;
      case GumbelPass::mean_probs:
        quantizer.mean(i);
        break;
      case GumbelPass::backward:
        quantizer.backward(i);
        break;
      case GumbelPass::codebook_backward:
        quantizer.grad_entries(i);
        break;
    }
}

template <class T>
static GumbelSizes sizes(const GumbelArgs& a, bool backward) {
  const Scratch<T> s(a, nullptr);
  const bool mixes = !a.hard;
  const int64_t row = a.G * s.vp, codebook = row * s.wp;
  return {s.bytes, backward || mixes ? codebook : 0, chunks(a) * (!backward ? row : mixes ? codebook : 0)};
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

GumbelSizes gumbel_sizes(const GumbelArgs& args, bool backward) {
  return args.logits_type == DType::f64 ? sizes<double>(args, backward) : sizes<float>(args, backward);
}

void gumbel_quantize(const GumbelArgs& args, GumbelPass pass, int64_t begin, int64_t end, void* scratch) {
  args.logits_type == DType::f64 ? run<double>(args, pass, begin, end, scratch)
                                 : run<float>(args, pass, begin, end, scratch);
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
