// What both directions of the stem need: the scratch memory of a tile, and of each segment its signal and its
// norm.
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
  const int64_t cp, k0, ld0, n0;  // padded channels; values, padded values and number of layer 0's patches
  const bool backward;
  const Gelu<T> act{};

  T *signal, *products, *scale, *shift;
  double *means, *cov, *moments_work;    // of the patches' values as they are multiplied
  double *wide_weight0, *spread, *rstd;  // W^T; Cov W^T; 1 / deviation of each channel
  T* weight0;                            // of layer 0: W^T [k0, cp]
  typename E0::El* values;
  El* h[2];
  Panel0 *weight0_panels, *values_panels, *pull_panels;
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
        k0(2 * args.L),
        ld0(round_up(2 * args.L, E0::kColumns)),
        n0(args.T / 2),
        backward(with_backward) {
    Arena arena(base);
    const int64_t rows0 = tile_tokens() << (a.n_layers - 1), rows1 = (rows0 + 1) / 2;
    signal = arena.take<T>(a.L * 2 * n0 + kF32Lanes);
    means = arena.take<double>(k0);
    cov = arena.take<double>(k0 * k0);
    moments_work = arena.take<double>(moment_scratch(a.L));
    wide_weight0 = arena.take<double>(k0 * cp);
    spread = arena.take<double>(k0 * cp);
    rstd = arena.take<double>(cp);
    weight0 = arena.take<T>(k0 * cp);
    scale = arena.take<T>(cp);
    shift = arena.take<T>(cp);
    values = arena.take<typename E0::El>((rows0 + kSlack) * ld0);
    weight0_panels = arena.take<Panel0>(E0::panel_elements(k0, cp));
    int64_t work_bytes = E::scratch_bytes(kBlock, 2 * cp);
    if (backward) work_bytes = most(work_bytes, E::scratch_bytes(cp, rows1), E0::scratch_bytes(cp, rows0));
    work = arena.take<char>(work_bytes + 64);
    products = arena.take<T>((2 * kBlock + kSlack + 1) * cp + 2 * ld0);
    const int64_t buffer_rows[2] = {rows0 + kSlack, rows1 + kSlack};
    for (int i = 0; i < 2; ++i) h[i] = backward ? nullptr : arena.take<El>(buffer_rows[i] * cp);
    for (int i = 0; i < 2 && backward; ++i) {
      grad_h[i] = arena.take<T>(buffer_rows[i] * cp);
      dz[i] = arena.take<El>(buffer_rows[i] * cp);
    }
    if (backward) {
      x_panels = arena.take<Panel>(E::panel_elements(rows1 > 0 ? rows1 : 1, 2 * cp));
      grad_weight0 = arena.take<double>(product_rows(k0) * cp);
      grad_sum = arena.take<double>(cp);
      turns = arena.take<double>(cp);
      if (E0::kPairs) {
        grad_tiles0 = arena.take<T>(cp * ld0);
        values_panels = arena.take<Panel0>(E0::panel_elements(rows0, k0));
      } else {
        products_work = arena.take<double>(kProductBlock * product_rows(k0));
      }
      if (a.grad_signal) {
        grad_patches = arena.take<T>((n0 + kSlack) * ld0);
        pull = arena.take<T>(k0 * k0);
        slide = arena.take<T>(k0);
        pull_panels = arena.take<Panel0>(E0::panel_elements(cp, k0));
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

  // The segment in millivolts as layer 0 multiplies it, and the means of its leads' even and odd samples;
  // masked leads and padding are zero. Means that are more than twice the deviation are subtracted, for sums
  // of large offsets would be less exact. Smaller ones stay: with them padding is zero, and has no rounding
  // errors. So does bf16, which is exact where a difference would be rounded.
  void load_signal(int64_t b) const {
    const int64_t n = 2 * n0, valid = valid_samples(b), read = valid < n ? valid : n;
    for (int64_t l = 0; l < a.L; ++l) {
      T* x = signal + l * n;
      if (a.keep && !a.keep[b * a.L + l]) {
        memset(x, 0, sizeof(T) * n);
        means[2 * l] = means[2 * l + 1] = 0;
        continue;
      }
      const int64_t at = (b * a.L + l) * a.T;
      if (a.signal_is_int16) {
        const int16_t* s = static_cast<const int16_t*>(a.signal) + at;
        for (int64_t t = 0; t < read; ++t) x[t] = T(s[t]) * T(1e-3);
      } else {
        const In* s = static_cast<const In*>(a.signal) + at;
        for (int64_t t = 0; t < read; ++t) x[t] = T(to_acc(s[t]));
      }
      memset(x + read, 0, sizeof(T) * (n - read));
      centre(x, n, valid / 2 * 2, means + 2 * l);
    }
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
    for (int64_t t = 0; t < n; ++t)
      for (int64_t k = k0; k < ld0; ++k) from_acc(T(0), out + t * ld0 + k);
    for (int64_t l = 0; l < a.L; ++l) {
      const T* x = signal + (l * n0 + first) * 2;
      U* y = out + 2 * l;
      for (int64_t t = 0; t < n; ++t) {
        from_acc(x[2 * t], y + t * ld0);
        from_acc(x[2 * t + 1], y + t * ld0 + 1);
      }
    }
  }

  void covariance(int64_t n) const {
    second_moments(signal, a.L, 2 * n0, 2 * n, cov, k0, moments_work);
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
    for (int64_t k = 0; k < k0; ++k)
      for (int64_t c = 0; c < cp; ++c) {
        weight0[k * cp + c] = c < a.C ? T(to_acc(w[c * k0 + k])) : T(0);
        wide_weight0[k * cp + c] = weight0[k * cp + c];
      }
    E0::pack(k0, cp, weight0_panels, [&](int64_t k, int64_t c) { return weight0[k * cp + c]; });
  }

  void begin_segment(int64_t b) const {
    load_signal(b);
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
