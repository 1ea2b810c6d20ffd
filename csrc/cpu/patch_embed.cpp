// The stem, one segment at a time in tiles of tokens whose activations of all layers stay in the second
// cache: the forward pass and the entry points. Compiled once per ISA.
#include "kernels.h"
#include "stem_backward.h"

namespace ecgfast {
namespace {

template <class In>
struct StemForward : Stem<In> {
  using S = Stem<In>;
  using S::a;
  using S::act;
  using S::begin_segment;
  using S::bias;
  using S::cp;
  using S::h;
  using S::k0;
  using S::kBlock;
  using S::kSlack;
  using S::ld0;
  using S::panels;
  using S::patches;
  using S::products;
  using S::rows_of;
  using S::saved;
  using S::scale;
  using S::shift;
  using S::tile_tokens;
  using S::values;
  using S::weight0_panels;
  using S::work;
  using typename S::E;
  using typename S::E0;
  using typename S::El;
  using typename S::T;

  StemForward(const StemArgs& args, void* base) : S(args, false, base) {}

  // h = gelu(products + bias), in layer 0 of products times the norm's scale; the pre-activations go to
  // `keep` unless null.
  template <bool Layer0>
  void activate(int64_t rows, const T* z, const T* biases, In* keep, El* out) const {
    const Gelu<T> gelu = act;  // a copy that no store can change: its tables stay in registers
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cp; c += kLanes<T>) {
        Vec<T> v = load(z + r * cp + c);
        if constexpr (Layer0) v *= load(scale + c);
        v += load(biases + c);
        if (keep) store_acc(keep + r * cp + c, v);
        store_acc(out + r * cp + c, gelu.value(v));
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
      activate<true>(n, products, shift, nullptr, h[0] + r * cp);
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
        activate<false>(n, products, biases, a.saved ? saved(b, layer, at + r) : nullptr,
                        h[layer % 2] + r * cp);
      }
    }
    emit_tokens(tokens, h[(a.n_layers - 1) % 2], static_cast<In*>(a.tokens) + (b * a.N + first) * a.C);
  }

  void forward_segment(int64_t b) {
    begin_segment(b);
    const int64_t step = tile_tokens();
    for (int64_t f = 0; f < a.N; f += step) forward_tile(b, f, a.N - f < step ? a.N - f : step);
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
        StemBackward<decltype(in)>::Partials::elements(forward.cp, forward.all0, args.n_layers) *
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
    using S = StemForward<decltype(in)>;
    S stem(args, scratch);
    S::E::begin();
    stem.begin();
    for (int64_t b = begin; b < end; ++b) stem.forward_segment(b);
    S::E::end();
  });
}

void patch_embed_backward(const StemArgs& args, int64_t begin, int64_t end, void* partials, void* scratch) {
  for_dtype(args.dtype, [&](auto in) {
    using S = StemBackward<decltype(in)>;
    using T = typename S::T;
    S stem(args, scratch);
    memset(partials, 0, sizeof(T) * S::Partials::elements(stem.cp, stem.all0, args.n_layers));
    const typename S::Partials sums(static_cast<T*>(partials), stem.cp, stem.all0);
    S::E::begin();
    stem.begin();
    for (int64_t b = begin; b < end; ++b) stem.backward_segment(b, sums);
    S::E::end();
  });
}

void patch_embed_finish(const StemArgs& args, const void* partials, int64_t n_chunks, int64_t begin,
                        int64_t end, void* scratch) {
  for_dtype(args.dtype, [&](auto in) {
    using S = StemBackward<decltype(in)>;
    S(args, nullptr)
        .finish(static_cast<const typename S::T*>(partials), n_chunks, begin, end,
                static_cast<typename S::T*>(scratch));
  });
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
