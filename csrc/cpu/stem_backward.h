// The stem's backward pass: tile by tile down the layers, the sums of the weights' gradients kept per chunk
// of segments.
#pragma once
#include "stem.h"

namespace ecgfast {
namespace {

template <class In>
struct StemBackward : Stem<In> {
  using S = Stem<In>;
  using S::a;
  using S::act;
  using S::all0;
  using S::begin_segment;
  using S::bias;
  using S::cp;
  using S::dz;
  using S::grad_h;
  using S::grad_patches;
  using S::grad_sum;
  using S::grad_tiles0;
  using S::grad_weight0;
  using S::k0;
  using S::kBlock;
  using S::kept;
  using S::ld0;
  using S::leads;
  using S::means;
  using S::n0;
  using S::panels;
  using S::patches;
  using S::products;
  using S::products_work;
  using S::pull;
  using S::pull_panels;
  using S::rows_of;
  using S::rstd;
  using S::saved;
  using S::scale;
  using S::shift;
  using S::signal;
  using S::slide;
  using S::spread;
  using S::tile_tokens;
  using S::turns;
  using S::valid_patches;
  using S::valid_samples;
  using S::values;
  using S::values_panels;
  using S::weight0_panels;
  using S::wide_weight0;
  using S::work;
  using S::x_panels;
  using typename S::E;
  using typename S::E0;
  using typename S::El;
  using typename S::Panel;
  using typename S::Panel0;
  using typename S::T;

  StemBackward(const StemArgs& args, void* base) : S(args, true, base) {}

  // Sums over segments: per layer the weights [Cp, Cin] and the biases [Cp], and the GroupNorm's affine.
  // Layer 0's weights come as [all0, Cp].
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
          store(grad_h[1] + (i + q) * cp + c,
                load(products + q * cp + c) * load(scale + c) + load(shift + c));
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
  inline __attribute__((always_inline)) Vec<T> activation(const Gelu<T>& gelu, const Below& row,
                                                          int64_t c) const {
    Vec<T> z;
    if constexpr (FromLayer0)
      z = load(row.product + c) * load(scale + c) + load(shift + c);
    else
      z = load_acc(row.saved + c);
    Vec<T> slope;
    const Vec<T> x = gelu.value(z, slope);
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
    const Gelu<T> gelu = act;
    const int64_t panel_stride = E::panel_elements(k, E::kColumns);
    for (int64_t q = 0; q < n; q += E::kPairs ? 2 : 1)
      for (int64_t tap = 0; tap < 2; ++tap) {
        const Below lo = row(q, tap), hi = row(q + 1 < n ? q + 1 : q, tap);
        const bool pair = E::kPairs && q + 1 < n;
        Panel* panel = &E::at(x_panels, k, r + q, tap * cp);
        for (int64_t c = 0; c < cp; c += E::kColumns, panel += panel_stride)
          for (int64_t i = 0; i < E::kColumns; i += kLanes<T>) {
            const Vec<T> x = activation<FromLayer0>(gelu, lo, c + i);
            E::put(panel + E::column_offset(i), x, pair ? activation<FromLayer0>(gelu, hi, c + i) : Vec<T>{});
          }
      }
  }

  // sums += the columns of x, block by block of rows.
  void add_columns(int64_t rows, const El* x, T* sums) const {
    for (int64_t first = 0; first < rows; first += 64) {
      const int64_t end = rows - first < 64 ? rows : first + 64;
      for (int64_t c = 0; c < cp; c += kLanes<T>) {
        Vec<T> sum = {};
        for (int64_t r = first; r < end; ++r) sum += load_acc(x + r * cp + c);
        store(sums + c, load(sums + c) + sum);
      }
    }
  }

  // In double precision: times the patches' means they are subtracted from sums that may be nearly equal.
  void add_columns_wide(int64_t rows, const El* x, double* sums) const {
    for (int64_t c = 0; c < cp; c += kLanes<T>) {
      Vec<double> sum[kLanes<T> / kLanes<double>] = {};
      for (int64_t r = 0; r < rows; ++r) {
        T row[kLanes<T>];
        store(row, load_acc(x + r * cp + c));
        for (int64_t i = 0; i < kLanes<T> / kLanes<double>; ++i)
          sum[i] += load_wide(row + i * kLanes<double>);
      }
      for (int64_t i = 0; i < kLanes<T> / kLanes<double>; ++i) {
        double* to = sums + c + i * kLanes<double>;
        store(to, load(to) + sum[i]);
      }
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
      E::gemm_transposed(cp, 2 * cp, rows, dz[layer % 2], cp, x_panels, sums.weight(layer), 2 * cp, work);
      if (a.has_bias) add_columns(rows, dz[layer % 2], sums.bias(layer));
    }
    backward_layer0(first, tokens);
  }

  void pack_values(int64_t rows) const {
    for (int64_t p = 0; p < rows; p += 2)
      for (int64_t k = 0; k < ld0; k += kLanes<T>) {
        const auto* row = values + p * ld0 + k;
        Panel0* panel = &E0::at(values_panels, rows, p, k / E0::kColumns * E0::kColumns);
        E0::put(panel + E0::column_offset(k % E0::kColumns), load_acc(row),
                p + 1 < rows ? load_acc(row + ld0) : Vec<T>{});
      }
    E0::clear_depth(values_panels, rows, ld0);
  }

  // The sums with the patches are in double precision, since a channel's weights may cancel most of them, but
  // for bf16, whose gradients are rounded more coarsely than sums in single precision.
  void backward_layer0(int64_t first, int64_t tokens) const {
    const int64_t rows = rows_of(0, tokens);
    if constexpr (E0::kPairs) {
      pack_values(rows);
      E0::gemm_transposed(cp, k0, rows, dz[0], cp, values_panels, grad_tiles0, columns0(), work);
    } else {
      wide_products(values, ld0, k0, dz[0], cp, rows, grad_weight0, products_work);
    }
    add_columns_wide(rows, dz[0], grad_sum);
    if (!a.grad_signal) return;
    for (int64_t r = 0; r < rows; r += kBlock)
      E0::gemm(rows - r < kBlock ? rows - r : kBlock, k0, cp, dz[0] + r * cp, cp, pull_panels,
               grad_patches + (rows_of(0, first) + r) * columns0(), columns0(), work);
  }
  int64_t columns0() const { return round_up(k0, E0::kColumns); }  // of products of a patch's values

  // Through the norm: with G = sum dz x^T, s = sum dz and q = sum dz zhat over the segment (x centred),
  // dW = scale (G - q W Cov / deviation), and the affine's gradients are q and s. `turns` is q / deviation.
  void finish_segment(int64_t b, const Partials& sums) const {
    if constexpr (E0::kPairs)
      for (int64_t k = 0; k < k0; ++k)
        for (int64_t c = 0; c < cp; ++c) grad_weight0[k * cp + c] = grad_tiles0[c * columns0() + k];
    memset(turns, 0, sizeof(double) * cp);
    for (int64_t k = 0; k < k0; ++k)
      for (int64_t c = 0; c < cp; ++c) {
        grad_weight0[k * cp + c] -= grad_sum[c] * means[k];
        turns[c] += grad_weight0[k * cp + c] * wide_weight0[k * cp + c];
      }
    for (int64_t c = 0; c < cp; ++c) {
      sums.gn_weight[c] += T(turns[c] * rstd[c]);
      sums.gn_bias[c] += T(grad_sum[c]);
      turns[c] *= rstd[c] * rstd[c];
    }
    for (int64_t k = 0; k < k0; ++k) {
      T* sum = sums.weight(0) + (2 * leads[k / 2] + k % 2) * cp;
      for (int64_t c = 0; c < cp; ++c)
        sum[c] += T(scale[c] * (grad_weight0[k * cp + c] - turns[c] * spread[k * cp + c]));
    }
    if (!a.grad_signal) return;
    signal_terms(valid_patches(b) > 0 ? valid_patches(b) : 1);
    write_signal_gradient(b);
  }

  // dx = dz (scale W) for every sample that a patch covers, less slide + pull x in the patches that the
  // norm's statistics are of: slide = sum_c scale_c s_c W_c / n, pull = sum_c scale_c turn_c W_c W_c^T / n.
  void signal_terms(int64_t n) const {
    for (int64_t k = 0; k < k0; ++k) {
      const double* w = wide_weight0 + k * cp;
      double sum = 0;
      for (int64_t c = 0; c < cp; ++c) sum += scale[c] * grad_sum[c] * w[c];
      slide[k] = T(sum / n);
      for (int64_t m = 0; m <= k; ++m) {
        const double* other = wide_weight0 + m * cp;
        Vec<double> sums = {};
        for (int64_t c = 0; c < cp; c += kLanes<double>)
          sums += load_wide(scale + c) * load(turns + c) * load(w + c) * load(other + c);
        pull[k * k0 + m] = pull[m * k0 + k] = T(reduce_add<double>(sums) / n);
      }
    }
  }

  void write_signal_gradient(int64_t b) const {
    In* out = static_cast<In*>(a.grad_signal) + b * a.L * a.T;
    memset(out, 0, sizeof(In) * a.L * a.T);
    const int64_t samples = valid_samples(b), valid = valid_patches(b);
    const int64_t covered = samples < 2 * n0 ? samples : 2 * n0;
    for (int64_t i = 0; i < kept; ++i)
      for (int64_t t = 0; t < covered; ++t) {
        const int64_t patch = t / 2, k = 2 * i + t % 2;
        T g = patch < rows_of(0, a.N) ? grad_patches[patch * columns0() + k] : T(0);
        if (patch < valid) g -= slide[k] + pulled(patch, pull + k * k0);
        from_acc(g, out + leads[i] * a.T + t);
      }
  }

  T pulled(int64_t patch, const T* row) const {
    T sum = 0;
    for (int64_t m = 0; m < k0; ++m) sum += row[m] * T(signal[(m / 2 * n0 + patch) * 2 + m % 2] - means[m]);
    return sum;
  }

  void pack_pull() const {
    E0::pack(cp, k0, pull_panels,
             [&](int64_t c, int64_t k) { return k < k0 ? scale[c] * T(wide_weight0[k * cp + c]) : T(0); });
  }

  void backward_segment(int64_t b, const Partials& sums) {
    begin_segment(b);
    if (E0::kPairs) memset(grad_tiles0, 0, sizeof(T) * cp * columns0());
    memset(grad_weight0, 0, sizeof(double) * k0 * cp);
    memset(grad_sum, 0, sizeof(double) * cp);
    if (a.grad_signal) pack_pull();
    const int64_t step = tile_tokens();
    for (int64_t f = 0; f < a.N; f += step) backward_tile(b, f, a.N - f < step ? a.N - f : step, sums);
    finish_segment(b, sums);
  }

  // Adds up the partial sums of all chunks for channels [begin, end) and writes the gradients; `row` holds
  // 2Cp values.
  void finish(const T* partials, int64_t n_chunks, int64_t begin, int64_t end, T* row) const {
    const int64_t stride = Partials::elements(cp, all0, a.n_layers);
    const Partials p(const_cast<T*>(partials), cp, all0);
    const auto total = [&](const T* first, int64_t n) {
      memcpy(row, first, sizeof(T) * n);
      for (int64_t i = 1; i < n_chunks; ++i)
        for (int64_t j = 0; j < n; ++j) row[j] += first[i * stride + j];
      return row;
    };
    for (int64_t c = begin; c < end; ++c) {
      from_acc(total(p.gn_weight + c, 1)[0], static_cast<In*>(a.grad_gn_weight) + c);
      from_acc(total(p.gn_bias + c, 1)[0], static_cast<In*>(a.grad_gn_bias) + c);
      for (int64_t k = 0; k < all0; ++k)
        from_acc(total(p.weight(0) + k * cp + c, 1)[0], static_cast<In*>(a.grad_weights[0]) + c * all0 + k);
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

}  // namespace
}  // namespace ecgfast
