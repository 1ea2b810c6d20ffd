// What both directions of the stem need: the scratch memory of a tile, and of each segment its signal and its
// norm.
//
// Layer 0 is of a segment's kept leads alone: the signal is loaded without the others, so that patches, their
// moments and all products with them are as small as the leads are few. Of the weights the rows of the kept
// leads are gathered, in the order that they have among all, so that sums are those with zeros in the others'
// places, bit for bit. A lead of zeros is left out too, where no gradient of it is asked for: a store's
// records that lack leads have such.
//
// The GroupNorm after layer 0 needs no pass over its output: with mu and Cov the mean and covariance of a
// segment's patches, channel c has mean w_c mu and variance w_c Cov w_c, in double precision (moments.h): 0.4
// million multiply-adds of the 150 million of a segment of the paper's size. The norm's scale and shift are
// applied to the products of the signal and the weights as they are.
#pragma once
#include "arena.h"
#include "engine_split.h"
#include "gelu.h"
#include "moments.h"
#include "patch_embed.h"

namespace ecgfast {
namespace {

template <class In>
struct Stem {
  using E = typename EngineOf<In>::type;      // of the layers from 1 up
  using E0 = typename EngineOf<In>::shallow;  // of layer 0
  using El = typename E::El;
  using Panel = typename E::Panel;
  using Panel0 = typename E0::Panel;
  using T = typename E::Sum;
  static constexpr int64_t kBlock = E::kBlock;                            // rows of a product between passes
  static constexpr int64_t kTileRows = E::kPairs ? 512 : 48 * kGemmRows;  // rows of layer 0 in a tile
  static constexpr int64_t kSlack = 64;  // rows read past the end by the engine

  const StemArgs& a;
  const int64_t cp, n0, all0;  // padded channels; number of layer 0's patches, their values with all leads
  const bool backward;
  const Gelu<T> act{};

  // Of a segment: its kept leads, and its patches' values, as they are and as their rows are padded.
  int64_t kept = 0, k0 = 0, ld0 = 0;
  int64_t* leads;                          // the kept ones, in order
  const double* wide_weight0 = nullptr;    // layer 0's W^T [k0, cp]
  const Panel0* weight0_panels = nullptr;  // the same, as it is multiplied
  T *signal, *scale, *shift;               // signal: [kept, 2 * n0]
  double *means, *cov;                     // of the patches' values as they are multiplied
  double *spread, *rstd;                   // Cov W^T; 1 / deviation of each channel

  double *all_weight0, *some_weight0;  // W^T of all leads, and gathered
  Panel0 *all_panels0, *some_panels0;
  double* moments_work;
  T* products;
  typename E0::El* values;
  El* h[2];
  Panel0 *values_panels, *pull_panels;
  void* work;  // of a product
  // backward only
  T *grad_h[2], *grad_patches, *pull, *slide;
  double *grad_weight0, *grad_sum, *turns;  // of a segment: dz^T patches, as [k0, cp]; the sums of dz
  T* grad_tiles0;                           // dz^T patches as the matrix tiles add them up
  double* products_work;
  El* dz[2];
  Panel* x_panels;
  int64_t scratch_bytes;

  Stem(const StemArgs& args, bool with_backward, void* base)
      : a(args),
        cp(round_up(args.C, E::kColumns)),
        n0(args.T / 2),
        all0(2 * args.L),
        backward(with_backward) {
    Arena arena(base);
    const int64_t columns0 = round_up(all0, E0::kColumns);
    const int64_t rows0 = tile_tokens() << (a.n_layers - 1), rows1 = (rows0 + 1) / 2;
    leads = arena.take<int64_t>(a.L);
    signal = arena.take<T>(a.L * 2 * n0 + kF32Lanes);
    means = arena.take<double>(all0);
    cov = arena.take<double>(all0 * all0);
    moments_work = arena.take<double>(moment_scratch(a.L, moment_chunk(a.L)));
    all_weight0 = arena.take<double>(all0 * cp);
    some_weight0 = arena.take<double>(all0 * cp);
    spread = arena.take<double>(all0 * cp);
    rstd = arena.take<double>(cp);
    scale = arena.take<T>(cp);
    shift = arena.take<T>(cp);
    values = arena.take<typename E0::El>((rows0 + kSlack) * columns0);
    all_panels0 = arena.take<Panel0>(E0::panel_elements(all0, cp));
    some_panels0 = arena.take<Panel0>(E0::panel_elements(all0, cp));
    int64_t work_bytes = E::scratch_bytes(kBlock, 2 * cp);
    if (backward) work_bytes = most(work_bytes, E::scratch_bytes(cp, rows1), E0::scratch_bytes(cp, rows0));
    work = arena.take<char>(work_bytes + 64);
    products = arena.take<T>((2 * kBlock + kSlack + 1) * cp + 2 * columns0);
    const int64_t buffer_rows[2] = {rows0 + kSlack, rows1 + kSlack};
    for (int i = 0; i < 2; ++i) h[i] = backward ? nullptr : arena.take<El>(buffer_rows[i] * cp);
    for (int i = 0; i < 2 && backward; ++i) {
      grad_h[i] = arena.take<T>(buffer_rows[i] * cp);
      dz[i] = arena.take<El>(buffer_rows[i] * cp);
    }
    if (backward) {
      x_panels = arena.take<Panel>(E::panel_elements(rows1 > 0 ? rows1 : 1, 2 * cp));
      grad_weight0 = arena.take<double>(all0 * cp);
      grad_sum = arena.take<double>(cp);
      turns = arena.take<double>(cp);
      if (E0::kPairs) {
        grad_tiles0 = arena.take<T>(cp * columns0);
        values_panels = arena.take<Panel0>(E0::panel_elements(rows0, all0));
      } else {
        products_work = arena.take<double>(kProductBlock * all0);
      }
      if (a.grad_signal) {
        grad_patches = arena.take<T>((n0 + kSlack) * columns0);
        pull = arena.take<T>(all0 * all0);
        slide = arena.take<T>(all0);
        pull_panels = arena.take<Panel0>(E0::panel_elements(cp, all0));
      }
    }
    scratch_bytes = arena.bytes();
  }

  static int64_t most(int64_t x, int64_t y, int64_t z) {
    const int64_t xy = x > y ? x : y;
    return xy > z ? xy : z;
  }

  int64_t tile_tokens() const {
    const int64_t tokens = kTileRows >> (a.n_layers - 1);
    return tokens < 1 ? 1 : tokens < a.N ? tokens : (a.N > 0 ? a.N : 1);
  }
  int64_t rows_of(int64_t layer, int64_t tokens) const { return tokens << (a.n_layers - 1 - layer); }
  int64_t saved_rows() const { return a.N * ((int64_t{1} << (a.n_layers - 1)) - 1); }

  // Row `r` of the kept pre-activations of a layer.
  In* saved(int64_t b, int64_t layer, int64_t r) const {
    const int64_t before = a.N * ((int64_t{1} << (a.n_layers - 1)) - (int64_t{1} << (a.n_layers - layer)));
    return static_cast<In*>(a.saved) + (b * saved_rows() + before + r) * cp;
  }
  const Panel* panels(int64_t layer) const {
    return static_cast<const Panel*>(a.packed) + (layer - 1) * layer_panels();
  }
  int64_t layer_panels() const { return E::panel_elements(2 * cp, cp); }
  T bias(int64_t layer, int64_t c) const {
    return a.has_bias ? T(to_acc(static_cast<const In*>(a.biases[layer])[c])) : T(0);
  }

  // Patches that the norm's statistics are of.
  int64_t valid_patches(int64_t b) const { return valid_samples(b) / 2; }
  int64_t valid_samples(int64_t b) const {
    if (!a.lengths) return a.T;
    const int64_t length = a.lengths[b];
    return length < 0 ? 0 : length < a.T ? length : a.T;
  }

  // The kept leads of the segment in millivolts as layer 0 multiplies them, and the means of their even and
  // odd samples; padding is zero. Means that are more than twice the deviation are subtracted, for sums of
  // large offsets would be less exact. Smaller ones stay: with them padding is zero, and has no rounding
  // errors. So does bf16, which is exact where a difference would be rounded.
  void load_signal(int64_t b) {
    const int64_t n = 2 * n0, valid = valid_samples(b);
    kept = 0;
    for (int64_t l = 0; l < a.L; ++l) {
      if (a.keep && !a.keep[b * a.L + l]) continue;
      T* x = signal + kept * n;
      load_lead((b * a.L + l) * a.T, valid < n ? valid : n, x);
      centre(x, n, valid / 2 * 2, means + 2 * kept);
      if (a.grad_signal || !only_zeros(x, n)) leads[kept++] = l;
    }
    k0 = 2 * kept;
    ld0 = round_up(k0, E0::kDepthAlign);
  }

  // 2 * n0 samples from `at` on, of which `read` count.
  void load_lead(int64_t at, int64_t read, T* x) const {
    if (a.signal_is_int16) {
      const int16_t* s = static_cast<const int16_t*>(a.signal) + at;
      for (int64_t t = 0; t < read; ++t) x[t] = T(s[t]) * T(1e-3);
    } else {
      const In* s = static_cast<const In*>(a.signal) + at;
      for (int64_t t = 0; t < read; ++t) x[t] = T(to_acc(s[t]));
    }
    memset(x + read, 0, sizeof(T) * (2 * n0 - read));
  }

  static bool only_zeros(const T* x, int64_t n) {
    for (int64_t t = 0; t < n; ++t)
      if (x[t] != 0) return false;
    return true;
  }

  void centre(T* x, int64_t n, int64_t valid, double* of) const {
    constexpr bool narrow = sizeof(typename E0::El) < sizeof(T);
    double square;
    pair_means(x, valid, of, &square);
    if (narrow && !a.signal_is_int16) return;
    const bool offset = 2.5 * (of[0] * of[0] + of[1] * of[1]) > 4 * square;
    if (offset) subtract_means(x, n, of);
    if constexpr (narrow)
      for (int64_t t = 0; t < n; ++t) x[t] = rounded(x[t]);
    if (offset || narrow) pair_means(x, valid, of, &square);
  }

  static T rounded(T x) {
    typename E0::El y;
    from_acc(x, &y);
    return to_acc(y);
  }

  static void subtract_means(T* x, int64_t n, const double* of) {
    Vec<double> both;
    for (int64_t i = 0; i < kLanes<double>; ++i) both[i] = of[i % 2];
    int64_t t = 0;
    for (; t + kLanes<double> <= n; t += kLanes<double>) store_wide(x + t, load_wide(x + t) - both);
    for (; t < n; ++t) x[t] = T(x[t] - of[t % 2]);
  }

  // Patches [first, first + n) of the signal as rows of k0 values (lead, tap), padded with zeros to
  // ld0.
  template <class U>
  void patches(int64_t first, int64_t n, U* out) const {
    if (ld0 > k0) memset(out, 0, sizeof(U) * n * ld0);
    for (int64_t l = 0; l < kept; ++l) {
      const T* x = signal + (l * n0 + first) * 2;
      U* y = out + 2 * l;
      for (int64_t t = 0; t < n; ++t) {
        from_acc(x[2 * t], y + t * ld0);
        from_acc(x[2 * t + 1], y + t * ld0 + 1);
      }
    }
  }

  void covariance(int64_t n) const {
    second_moments(signal, kept, 2 * n0, 2 * n, cov, k0, moment_chunk(a.L), moments_work);
    for (int64_t k = 0; k < k0; ++k)
      for (int64_t m = 0; m < k0; ++m)
        cov[k * k0 + m] = n > 0 ? cov[k * k0 + m] / n - means[k] * means[m] : 0;
  }

  // The norm of a segment: z = scale * (w . patch) + shift.
  void deviations() const {
    gemm(k0, cp, k0, cov, k0, int64_t{1}, wide_weight0, cp, spread, cp);
    for (int64_t c = 0; c < cp; c += kLanes<double>) {
      Vec<double> variance = {}, mean = {};
      for (int64_t k = 0; k < k0; ++k) {
        const Vec<double> w = load(wide_weight0 + k * cp + c);
        variance += w * load(spread + k * cp + c);
        mean += w * means[k];
      }
      for (int64_t i = 0; i < kLanes<double>; ++i) set_norm(c + i, variance[i], mean[i]);
    }
  }

  void set_norm(int64_t c, double variance, double mean) const {
    const double inverse = 1 / sqrt_scalar((variance < 0 ? 0.0 : variance) + a.eps);
    const double by = c < a.C ? to_acc(static_cast<const In*>(a.gn_weight)[c]) * inverse : 0;
    const double to = c < a.C ? to_acc(static_cast<const In*>(a.gn_bias)[c]) : 0;
    rstd[c] = inverse;
    scale[c] = T(by);
    shift[c] = T(to - by * mean);
  }

  // Before the first segment.
  void begin() const {
    const In* w = static_cast<const In*>(a.weights[0]);
    for (int64_t k = 0; k < all0; ++k)
      for (int64_t c = 0; c < cp; ++c) all_weight0[k * cp + c] = c < a.C ? T(to_acc(w[c * all0 + k])) : T(0);
    E0::pack(all0, cp, all_panels0, [&](int64_t k, int64_t c) { return T(all_weight0[k * cp + c]); });
  }

  // The weights of the kept leads, two rows each: they lie side by side in a panel too.
  void gather_weights() {
    const bool all = kept == a.L;
    wide_weight0 = all ? all_weight0 : some_weight0;
    weight0_panels = all ? all_panels0 : some_panels0;
    if (all) return;
    for (int64_t i = 0; i < kept; ++i)
      memcpy(some_weight0 + 2 * i * cp, all_weight0 + 2 * leads[i] * cp, sizeof(double) * 2 * cp);
    for (int64_t c = 0; c < cp; c += E0::kColumns)
      for (int64_t i = 0; i < kept; ++i)
        memcpy(&E0::at(some_panels0, k0, 2 * i, c), &E0::at(all_panels0, all0, 2 * leads[i], c),
               sizeof(Panel0) * 2 * E0::kColumns);
    E0::clear_depth(some_panels0, k0, cp);
  }

  void begin_segment(int64_t b) {
    load_signal(b);
    gather_weights();
    covariance(valid_patches(b));
    deviations();
  }

  // The weights of a layer from 1 up in panels: [2Cp (tap, channel), Cp] for the forward pass, [Cp, 2Cp] for
  // the backward pass, which uses the forward order of layer 0 alone.
  void pack(int64_t layer, Panel* out) const {
    out += (layer - 1) * layer_panels();
    const In* w = static_cast<const In*>(a.weights[layer]);
    const auto weight = [&](int64_t c, int64_t k) {
      const int64_t tap = k >= cp, i = k - tap * cp;
      return c < a.C && i < a.C ? T(to_acc(w[(c * a.C + i) * 2 + tap])) : T(0);
    };
    if (backward) {
      E::pack(cp, 2 * cp, out, weight);
    } else {
      E::pack(2 * cp, cp, out, [&](int64_t k, int64_t c) { return weight(c, k); });
    }
  }
};

}  // namespace
}  // namespace ecgfast
