// The stem, one segment at a time in tiles of tokens whose activations of all layers stay in the second
// cache.
//
// The GroupNorm after layer 0 needs no pass over its output: with mu and Cov the mean and covariance of a
// segment's patches, channel c has mean w_c mu and variance w_c Cov w_c. The signal is centred by mu, the
// norm's scale goes into the weights of the segment. Compiled once per ISA.
#include "arena.h"
#include "engine_split.h"
#include "gelu.h"
#include "kernels.h"

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
  static constexpr int64_t kBlock = E::kBlock;  // rows of a product between passes
  static constexpr int64_t kTileRows = E::kPairs ? 256 : 24 * kGemmRows;  // rows of layer 0 in a tile
  static constexpr int64_t kSlack = 64;  // rows read past the end by the engine

  const StemArgs& a;
  const int64_t cp, k0, ld0, n0;  // padded channels; values, padded values and number of layer 0's patches
  const bool backward;
  const Gelu<T> act{};

  T *signal, *cov, *products, *weight0, *scale, *shift;
  typename E0::El* values;
  El* h[2];
  Panel0 *weight0_panels, *values_panels, *pull_panels;
  void* work;  // of a product
  // backward only
  T *grad_h[2], *grad_weight0, *grad_sum, *grad_patches, *pull;
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
    cov = arena.take<T>(k0 * ld0);
    weight0 = arena.take<T>(cp * k0);
    scale = arena.take<T>(cp);
    shift = arena.take<T>(cp);
    values = arena.take<typename E0::El>((rows0 + kSlack) * ld0);
    weight0_panels = arena.take<Panel0>(E0::panel_elements(k0, cp));
    int64_t work_bytes = E::scratch_bytes(kBlock, 2 * cp);
    if (backward) work_bytes = most(work_bytes, E::scratch_bytes(cp, rows1), E0::scratch_bytes(cp, rows0));
    work = arena.take<char>(work_bytes + 64);
    products = arena.take<T>((2 * kBlock + kSlack) * 2 * cp + 2 * ld0);
    const int64_t buffer_rows[2] = {rows0 + kSlack, rows1 + kSlack};
    for (int i = 0; i < 2; ++i) h[i] = backward ? nullptr : arena.take<El>(buffer_rows[i] * cp);
    for (int i = 0; i < 2 && backward; ++i) {
      grad_h[i] = arena.take<T>(buffer_rows[i] * cp);
      dz[i] = arena.take<El>(buffer_rows[i] * cp);
    }
    if (backward) {
      x_panels = arena.take<Panel>(E::panel_elements(rows1 > 0 ? rows1 : 1, 2 * cp));
      grad_weight0 = arena.take<T>(cp * ld0);
      grad_sum = arena.take<T>(cp);
      values_panels = arena.take<Panel0>(E0::panel_elements(rows0, k0));
      if (a.grad_signal) {
        grad_patches = arena.take<T>((n0 + kSlack) * ld0);
        pull = arena.take<T>(k0 * ld0);
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
    const int64_t rows = backward ? 2 * kTileRows : kTileRows;
    const int64_t tokens = rows >> (a.n_layers - 1);
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

  // ---- what both directions need of a segment

  // The segment in millivolts, masked leads zero, each lead's even and odd samples centred on their means.
  void load_signal(int64_t b) const {
    const int64_t n = 2 * n0;
    for (int64_t l = 0; l < a.L; ++l) {
      T* x = signal + l * n;
      if (a.keep && !a.keep[b * a.L + l]) {
        memset(x, 0, sizeof(T) * n);
        continue;
      }
      const int64_t at = (b * a.L + l) * a.T;
      if (a.signal_is_int16) {
        const int16_t* s = static_cast<const int16_t*>(a.signal) + at;
        for (int64_t t = 0; t < n; ++t) x[t] = T(s[t]) * T(1e-3);
      } else {
        const In* s = static_cast<const In*>(a.signal) + at;
        for (int64_t t = 0; t < n; ++t) x[t] = T(to_acc(s[t]));
      }
      // Twice, since the first mean of a large offset is only as exact as the offset.
      centre(x, n);
      centre(x, n);
    }
  }

  static void centre(T* x, int64_t n) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> sums = {};
    int64_t t = 0;
    for (; t + L <= n; t += L) sums += load(x + t);
    T lanes[L];
    store(lanes, sums);
    for (int64_t i = 0; t + i < n; ++i) lanes[i] += x[t + i];
    T means[2] = {0, 0};
    for (int64_t i = 0; i < L; ++i) means[i % 2] += lanes[i];
    means[0] /= T(n / 2);
    means[1] /= T(n / 2);
    for (int64_t i = 0; i < L; ++i) lanes[i] = means[i % 2];
    const Vec<T> both = load(lanes);
    for (t = 0; t + L <= n; t += L) store(x + t, load(x + t) - both);
    for (; t < n; ++t) x[t] -= means[t % 2];
  }

  // Patches [first, first + n) of the centred signal as rows of k0 values (lead, tap), padded with zeros to
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

  void covariance() const {
    T* block = products;  // free until the first product
    const int64_t fit = (2 * kBlock * 2 * cp + ld0) / ld0, rows = fit < 128 ? fit : 128;  // at least one
    memset(cov, 0, sizeof(T) * k0 * ld0);
    for (int64_t t = 0; t < n0; t += rows) {
      const int64_t n = n0 - t < rows ? n0 - t : rows;
      patches(t, n, block);
      gemm<true>(k0, k0, n, block, int64_t{1}, ld0, block, ld0, cov, ld0);
    }
    for (int64_t i = 0; i < k0 * ld0; ++i) cov[i] /= T(n0);
  }

  static T dot(const T* x, const T* y, int64_t n) {
    T sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
    return sum;
  }

  T rstd(int64_t c) const {
    const T* w = weight0 + c * k0;
    T variance = 0;
    for (int64_t i = 0; i < k0; ++i) variance += w[i] * dot(cov + i * ld0, w, k0);
    return T(1) / sqrt_scalar((variance > T(0) ? variance : T(0)) + T(a.eps));
  }

  // Layer 0 with this segment's norm: weights times scale = gn_weight / deviation, plus shift = gn_bias.
  void fold_norm() const {
    const In* w = static_cast<const In*>(a.weights[0]);
    memset(weight0_panels, 0, sizeof(Panel0) * E0::panel_elements(k0, cp));
    for (int64_t c = 0; c < cp; ++c) {
      if (c >= a.C) {
        for (int64_t k = 0; k < k0; ++k) weight0[c * k0 + k] = 0;
        scale[c] = shift[c] = 0;
        continue;
      }
      for (int64_t k = 0; k < k0; ++k) weight0[c * k0 + k] = T(to_acc(w[c * k0 + k]));
      scale[c] = T(to_acc(static_cast<const In*>(a.gn_weight)[c])) * rstd(c);
      shift[c] = T(to_acc(static_cast<const In*>(a.gn_bias)[c]));
      for (int64_t k = 0; k < k0; ++k)
        from_acc(scale[c] * weight0[c * k0 + k], &E0::at(weight0_panels, k0, k, c));
    }
  }

  void begin_segment(int64_t b) const {
    load_signal(b);
    covariance();
    fold_norm();
  }

  // ---- forward

  // h = gelu(products + bias); the pre-activations go to `keep` unless null.
  void activate(int64_t rows, const T* z, const T* biases, In* keep, El* out) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cp; c += kLanes<T>) {
        const Vec<T> v = load(z + r * cp + c) + load(biases + c);
        if (keep) store_acc(keep + r * cp + c, v);
        store_acc(out + r * cp + c, act.value(v));
      }
  }

  void emit_tokens(int64_t rows, const El* hidden, In* out) const {
    for (int64_t r = 0; r < rows; ++r) {
      const El* x = hidden + r * cp;
      In* y = out + r * a.C;
      int64_t c = 0;
      for (; c + kLanes<T> <= a.C; c += kLanes<T>) store_acc(y + c, load_acc(x + c));
      for (; c < a.C; ++c) from_acc(T(to_acc(x[c])), y + c);
    }
  }

  void layer_bias(int64_t layer, T* out) const {
    for (int64_t c = 0; c < cp; ++c) out[c] = c < a.C ? bias(layer, c) : T(0);
  }

  void forward_layer0(int64_t first, int64_t rows) const {
    patches(first, rows, values);
    for (int64_t r = 0; r < rows; r += kBlock) {
      const int64_t n = rows - r < kBlock ? rows - r : kBlock;
      E0::gemm(n, cp, k0, values + r * ld0, ld0, weight0_panels, products, cp, work);
      activate(n, products, shift, nullptr, h[0] + r * cp);
    }
  }

  void forward_tile(int64_t b, int64_t first, int64_t tokens) const {
    forward_layer0(rows_of(0, first), rows_of(0, tokens));
    T* biases = products + kBlock * cp + kSlack * cp;
    for (int64_t layer = 1; layer < a.n_layers; ++layer) {
      const int64_t rows = rows_of(layer, tokens), at = rows_of(layer, first);
      const El* in = h[(layer - 1) % 2];
      layer_bias(layer, biases);
      for (int64_t r = 0; r < rows; r += kBlock) {
        const int64_t n = rows - r < kBlock ? rows - r : kBlock;
        E::gemm(n, cp, 2 * cp, in + r * 2 * cp, 2 * cp, panels(layer), products, cp, work);
        activate(n, products, biases, a.saved ? saved(b, layer, at + r) : nullptr, h[layer % 2] + r * cp);
      }
    }
    emit_tokens(tokens, h[(a.n_layers - 1) % 2], static_cast<In*>(a.tokens) + (b * a.N + first) * a.C);
  }

  void forward_segment(int64_t b) const {
    begin_segment(b);
    const int64_t step = tile_tokens();
    for (int64_t f = 0; f < a.N; f += step) forward_tile(b, f, a.N - f < step ? a.N - f : step);
  }

  // ---- backward

  // Sums over segments: per layer the weights [Cp, Cin] and the biases [Cp], and the GroupNorm's affine.
  // Layer 0's weights come as [Cp, k0].
  struct Partials {
    T *gn_weight, *gn_bias, *base;
    int64_t cp, k0;
    Partials(T* p, int64_t channels, int64_t values)
        : gn_weight(p), gn_bias(p + channels), base(p + 2 * channels), cp(channels), k0(values) {}
    T* weight(int64_t layer) const {
      return layer == 0 ? base : base + cp * k0 + (layer - 1) * (2 * cp + 1) * cp;
    }
    T* bias(int64_t layer) const { return weight(layer) + 2 * cp * cp; }
    static int64_t elements(int64_t channels, int64_t values, int64_t layers) {
      return 2 * channels + channels * values + (layers - 1) * (2 * channels + 1) * channels;
    }
  };

  // Gradients of the last layer's pre-activations from those of the tokens.
  void last_layer(int64_t b, int64_t first, int64_t tokens) const {
    const int64_t layer = a.n_layers - 1;
    if (layer == 0) forward_products0(0, tokens);
    const In* g = static_cast<const In*>(a.grad_tokens) + (b * a.N + first) * a.C;
    for (int64_t r = 0; r < tokens; ++r) {
      T* row = grad_h[layer % 2] + r * cp;
      for (int64_t c = 0; c < cp; ++c) row[c] = c < a.C ? T(to_acc(g[r * a.C + c])) : T(0);
      for (int64_t c = 0; c < cp; c += kLanes<T>) {
        Vec<T> slope;
        act.value(layer ? load_acc(saved(b, layer, first + r) + c) : load(grad_h[1] + r * cp + c), slope);
        store_acc(dz[layer % 2] + r * cp + c, load(row + c) * slope);
      }
    }
  }

  // The pre-activations of layer 0, rows [r, r + n) of the tile, into grad_h[1] (single-layer stems only).
  void forward_products0(int64_t r, int64_t n) const {
    for (int64_t i = 0; i < n; i += kBlock) {
      const int64_t rows = n - i < kBlock ? n - i : kBlock;
      E0::gemm(rows, cp, k0, values + (r + i) * ld0, ld0, weight0_panels, products, cp, work);
      for (int64_t q = 0; q < rows; ++q)
        for (int64_t c = 0; c < cp; c += kLanes<T>)
          store(grad_h[1] + (i + q) * cp + c, load(products + q * cp + c) + load(shift + c));
    }
  }

  // Through layer `layer` down to the pre-activations below it: rows [r, r + n) of the layer, 2n rows below.
  // Leaves the layer's inputs in x_panels and the gradients below in dz.
  void descend(int64_t b, int64_t layer, int64_t first, int64_t rows, int64_t r, int64_t n) const {
    T* grad = grad_h[(layer - 1) % 2];
    E::gemm(n, 2 * cp, cp, dz[layer % 2] + r * cp, cp, panels(layer), grad, 2 * cp, work);
    if (layer == 1) {
      E0::gemm(2 * n, cp, k0, values + 2 * r * ld0, ld0, weight0_panels, products, cp, work);
      differentiate<true>(0, rows, r, n, nullptr);
    } else {
      differentiate<false>((layer - 1) % 2, rows, r, n, saved(b, layer - 1, rows_of(layer - 1, first)));
    }
  }

  // One row below a layer: its pre-activations, the gradient of its activations, and where that of the former
  // goes.
  struct Below {
    const In* saved;
    const T* product;
    const T* grad;
    El* dz;
  };

  template <bool FromLayer0>
  inline __attribute__((always_inline)) Vec<T> activation(const Below& row, int64_t c) const {
    Vec<T> z;
    if constexpr (FromLayer0)
      z = load(row.product + c) + load(shift + c);
    else
      z = load_acc(row.saved + c);
    Vec<T> slope;
    const Vec<T> x = act.value(z, slope);
    store_acc(row.dz + c, load(row.grad + c) * slope);
    return x;
  }

  template <bool FromLayer0>
  void differentiate(int64_t which, int64_t k, int64_t r, int64_t n, const In* kept) const {
    const auto row = [&](int64_t q, int64_t tap) {
      const int64_t local = 2 * q + tap, at = (2 * r + local) * cp;
      return Below{FromLayer0 ? nullptr : kept + at, products + local * cp, grad_h[which] + local * cp,
                   dz[which] + at};
    };
    const int64_t panel_stride = E::panel_elements(k, E::kColumns);
    for (int64_t q = 0; q < n; q += E::kPairs ? 2 : 1)
      for (int64_t tap = 0; tap < 2; ++tap) {
        const Below lo = row(q, tap), hi = row(q + 1 < n ? q + 1 : q, tap);
        const bool pair = E::kPairs && q + 1 < n;
        Panel* panel = &E::at(x_panels, k, r + q, tap * cp);
        for (int64_t c = 0; c < cp; c += E::kColumns, panel += panel_stride)
          for (int64_t i = 0; i < E::kColumns; i += kLanes<T>) {
            const Vec<T> x = activation<FromLayer0>(lo, c + i);
            E::put(panel + E::column_offset(i), x, pair ? activation<FromLayer0>(hi, c + i) : Vec<T>{});
          }
      }
  }

  void add_columns(int64_t rows, const El* x, T* sums) const {
    for (int64_t c = 0; c < cp; c += kLanes<T>) {
      Vec<T> sum = load(sums + c);
      for (int64_t r = 0; r < rows; ++r) sum += load_acc(x + r * cp + c);
      store(sums + c, sum);
    }
  }

  void backward_tile(int64_t b, int64_t first, int64_t tokens, const Partials& sums) const {
    patches(rows_of(0, first), rows_of(0, tokens), values);
    last_layer(b, first, tokens);
    for (int64_t layer = a.n_layers - 1; layer > 0; --layer) {
      const int64_t rows = rows_of(layer, tokens);
      E::clear_depth(x_panels, rows, 2 * cp);
      for (int64_t r = 0; r < rows; r += kBlock)
        descend(b, layer, first, rows, r, rows - r < kBlock ? rows - r : kBlock);
      memset(dz[layer % 2] + rows * cp, 0, sizeof(El) * (round_up(rows, E::kDepthAlign) - rows) * cp);
      E::gemm_transposed(cp, 2 * cp, rows, dz[layer % 2], cp, x_panels, sums.weight(layer), 2 * cp, work);
      if (a.has_bias) add_columns(rows, dz[layer % 2], sums.bias(layer));
    }
    backward_layer0(first, tokens);
  }

  void backward_layer0(int64_t first, int64_t tokens) const {
    const int64_t rows = rows_of(0, tokens);
    for (int64_t p = 0; p < rows; ++p)
      for (int64_t k = 0; k < ld0; ++k) E0::at(values_panels, rows, p, k) = values[p * ld0 + k];
    if (E0::kPairs && rows % 2)
      for (int64_t k = 0; k < ld0; ++k) E0::at(values_panels, rows, rows, k) = typename E0::El{};
    E0::clear_depth(values_panels, rows, ld0);
    E0::gemm_transposed(cp, k0, rows, dz[0], cp, values_panels, grad_weight0, ld0, work);
    add_columns(rows, dz[0], grad_sum);
    if (!a.grad_signal) return;
    for (int64_t r = 0; r < rows; r += kBlock)
      E0::gemm(rows - r < kBlock ? rows - r : kBlock, k0, cp, dz[0] + r * cp, cp, pull_panels,
               grad_patches + (rows_of(0, first) + r) * ld0, ld0, work);
  }

  // Through the norm: with G = sum dz x^T, s = sum dz and q = sum dz zhat over the segment (x centred),
  // dW = scale (G - q W Cov / deviation), and the affine's gradients are q and s.
  void finish_segment(int64_t b, const Partials& sums) const {
    if (a.grad_signal) memset(pull, 0, sizeof(T) * k0 * ld0);
    T* offset = products;
    for (int64_t k = 0; k < k0; ++k) offset[k] = 0;
    for (int64_t c = 0; c < a.C; ++c) {
      const T* w = weight0 + c * k0;
      const T *g = grad_weight0 + c * ld0, deviation = rstd(c), s = grad_sum[c],
              q = deviation * dot(g, w, k0);
      sums.gn_weight[c] += q;
      sums.gn_bias[c] += s;
      for (int64_t k = 0; k < k0; ++k)
        sums.weight(0)[c * k0 + k] += scale[c] * (g[k] - q * deviation * dot(cov + k * ld0, w, k0));
      if (!a.grad_signal) continue;
      const T turn = scale[c] * deviation * q / T(n0), slide = scale[c] * s / T(n0);
      for (int64_t k = 0; k < k0; ++k) {
        offset[k] += slide * w[k];
        for (int64_t m = 0; m < k0; ++m) pull[k * ld0 + m] += turn * w[k] * w[m];
      }
    }
    if (a.grad_signal) write_signal_gradient(b, offset);
  }

  // dx = dz (scale W) - sum_c scale_c s_c W_c / n - pull x, for every sample that a patch covers.
  void write_signal_gradient(int64_t b, const T* offset) const {
    for (int64_t l = 0; l < a.L; ++l) {
      In* out = static_cast<In*>(a.grad_signal) + (b * a.L + l) * a.T;
      const bool kept = !a.keep || a.keep[b * a.L + l];
      for (int64_t t = 0; t < a.T; ++t) {
        const int64_t patch = t / 2, k = 2 * l + t % 2;
        T g = 0;
        if (kept && patch < n0) {
          g = patch < rows_of(0, a.N) ? grad_patches[patch * ld0 + k] : T(0);
          g -= offset[k];
          for (int64_t m = 0; m < k0; ++m) g -= pull[k * ld0 + m] * signal[(m / 2 * n0 + patch) * 2 + m % 2];
        }
        from_acc(g, out + t);
      }
    }
  }

  void pack_pull() const {
    memset(pull_panels, 0, sizeof(Panel0) * E0::panel_elements(cp, k0));
    for (int64_t c = 0; c < a.C; ++c)
      for (int64_t k = 0; k < k0; ++k)
        from_acc(scale[c] * weight0[c * k0 + k], &E0::at(pull_panels, cp, c, k));
  }

  void backward_segment(int64_t b, const Partials& sums) const {
    begin_segment(b);
    memset(grad_weight0, 0, sizeof(T) * cp * ld0);
    memset(grad_sum, 0, sizeof(T) * cp);
    if (a.grad_signal) pack_pull();
    const int64_t step = tile_tokens();
    for (int64_t f = 0; f < a.N; f += step) backward_tile(b, f, a.N - f < step ? a.N - f : step, sums);
    finish_segment(b, sums);
  }

  // ---- once per call

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

  // Adds up the partial sums of all chunks for channels [begin, end) and writes the gradients; `row` holds
  // 2Cp or k0 values, whichever is more.
  void finish(const T* partials, int64_t n_chunks, int64_t begin, int64_t end, T* row) const {
    const int64_t stride = Partials::elements(cp, k0, a.n_layers);
    const Partials p(const_cast<T*>(partials), cp, k0);
    const auto total = [&](const T* first, int64_t n) {
      memcpy(row, first, sizeof(T) * n);
      for (int64_t i = 1; i < n_chunks; ++i)
        for (int64_t j = 0; j < n; ++j) row[j] += first[i * stride + j];
      return row;
    };
    for (int64_t c = begin; c < end; ++c) {
      from_acc(total(p.gn_weight + c, 1)[0], static_cast<In*>(a.grad_gn_weight) + c);
      from_acc(total(p.gn_bias + c, 1)[0], static_cast<In*>(a.grad_gn_bias) + c);
      total(p.weight(0) + c * k0, k0);
      for (int64_t k = 0; k < k0; ++k) from_acc(row[k], static_cast<In*>(a.grad_weights[0]) + c * k0 + k);
      // The norm takes any bias of layer 0 out again.
      if (a.has_bias) from_acc(T(0), static_cast<In*>(a.grad_biases[0]) + c);
      for (int64_t layer = 1; layer < a.n_layers; ++layer) {
        In* w = static_cast<In*>(a.grad_weights[layer]) + c * a.C * 2;
        total(p.weight(layer) + c * 2 * cp, 2 * cp);
        for (int64_t i = 0; i < a.C; ++i) {
          from_acc(row[i], w + 2 * i);
          from_acc(row[cp + i], w + 2 * i + 1);
        }
        if (a.has_bias) from_acc(total(p.bias(layer) + c, 1)[0], static_cast<In*>(a.grad_biases[layer]) + c);
      }
    }
  }
};

// Calls f.template operator()<In>() for the dtype of the arguments.
template <class F>
static auto for_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::bf16:
      return f(BFloat16{});
    case DType::f16:
      return f(Half{});
    case DType::f64:
      return f(double{});
    case DType::f32:
      break;
  }
  return f(float{});
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

StemSizes patch_embed_sizes(const StemArgs& args) {
  return for_dtype(args.dtype, [&](auto in) {
    using S = Stem<decltype(in)>;
    const S forward(args, false, nullptr), backward(args, true, nullptr);
    return StemSizes{
        forward.cp,
        forward.saved_rows(),
        (args.n_layers - 1) * forward.layer_panels() * static_cast<int64_t>(sizeof(typename S::Panel)),
        S::Partials::elements(forward.cp, forward.k0, args.n_layers) *
            static_cast<int64_t>(sizeof(typename S::T)),
        forward.scratch_bytes,
        backward.scratch_bytes};
  });
}

void patch_embed_pack(const StemArgs& args, bool backward, int64_t layer, void* packed) {
  for_dtype(args.dtype, [&](auto in) {
    using S = Stem<decltype(in)>;
    S(args, backward, nullptr).pack(layer, static_cast<typename S::Panel*>(packed));
  });
}

void patch_embed(const StemArgs& args, int64_t begin, int64_t end, void* scratch) {
  for_dtype(args.dtype, [&](auto in) {
    using S = Stem<decltype(in)>;
    const S stem(args, false, scratch);
    S::E::begin();
    for (int64_t b = begin; b < end; ++b) stem.forward_segment(b);
    S::E::end();
  });
}

void patch_embed_backward(const StemArgs& args, int64_t begin, int64_t end, void* partials, void* scratch) {
  for_dtype(args.dtype, [&](auto in) {
    using S = Stem<decltype(in)>;
    using T = typename S::T;
    const S stem(args, true, scratch);
    memset(partials, 0, sizeof(T) * S::Partials::elements(stem.cp, stem.k0, args.n_layers));
    const typename S::Partials sums(static_cast<T*>(partials), stem.cp, stem.k0);
    S::E::begin();
    for (int64_t b = begin; b < end; ++b) stem.backward_segment(b, sums);
    S::E::end();
  });
}

void patch_embed_finish(const StemArgs& args, const void* partials, int64_t n_chunks, int64_t begin,
                        int64_t end, void* scratch) {
  for_dtype(args.dtype, [&](auto in) {
    using S = Stem<decltype(in)>;
    S(args, true, nullptr)
        .finish(static_cast<const typename S::T*>(partials), n_chunks, begin, end,
                static_cast<typename S::T*>(scratch));
  });
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
