// Launches of the positional convolution's kernels.
#include "launch.cuh"
#include "positional_conv.cuh"
#include "workspace.h"

namespace ecgfast::cuda {
namespace {

using namespace conv;

template <typename In>
class Launches {
 public:
  Launches(const PositionalConv& in, void* workspace, cudaStream_t stream)
      : in_(in), g_(in), space_(workspace), stream_(stream), counting_(workspace == nullptr) {}

  // With a null workspace these launch nothing and only count its bytes.
  void forward(const void* bias, void* out, void* conv) {
    const Mma<In>* weights = pack(false);
    convolve_with(g_, tokens(), weights,
                  {static_cast<const In*>(bias), x(), static_cast<In*>(conv), static_cast<In*>(out)});
  }

  void backward(const PositionalConvGradients& b, bool need_x, bool need_parameters) {
    const auto* grad_out = static_cast<const In*>(b.grad_out);
    float* sums = need_parameters ? space_.take<float>(pack_blocks() * g_.padded_width()) : nullptr;
    const Tokens<Mma<In>> grad = cut_tokens(grad_out, static_cast<const In*>(b.conv), sums);
    if (need_parameters) {
      run(sum_bias<Stored<In>>, divide_up<int>(g_.padded_width(), 32), 1, kPackThreads,
          shared_bytes<PackMemory>(), g_, sums, pack_blocks(), static_cast<Stored<In>*>(b.grad_bias));
      gradient_of_weight(grad, static_cast<In*>(b.grad_weight));
    }
    if (need_x) {
      Geometry turned = g_;
      turned.left = g_.taps - 1 - g_.left;
      const Mma<In>* weights = pack(true);
      convolve_with(turned, grad, weights, {nullptr, grad_out, nullptr, static_cast<In*>(b.grad_x)});
    }
  }

  size_t used() const { return space_.used(); }
  cudaError_t error() const { return error_; }

 private:
  struct Epilogue {
    const In *bias, *residual;
    In *conv, *out;
  };

  const In* x() const { return static_cast<const In*>(in_.x); }

  int64_t pack_blocks() const { return divide_up(g_.rows(), kPackRows); }

  // Launches unless something went wrong before.
  template <typename... Arguments>
  void run(void (*kernel)(Arguments...), int64_t grid_x, int grid_y, int threads, size_t shared,
           const std::common_type_t<Arguments>&... arguments) {
    if (counting_ || error_ != cudaSuccess) return;
    const dim3 grid(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y));
    error_ = grid_x > INT32_MAX ? cudaErrorInvalidConfiguration
                                : launch(kernel, grid, dim3(threads), shared, stream_, arguments...);
  }

  // Whether rows of a group begin at multiples of 16 bytes.
  template <typename... Pointers>
  bool aligned(Pointers... pointers) const {
    return multiples_of_16(g_.channels * sizeof(In), pointers...) && g_.channels % 8 == 0;
  }

  Mma<In>* pack(bool flip) {
    auto* weights = space_.take<Mma<In>>(kPieces<In> * g_.weight_tiles() * kWeightTile);
    run(pack_weights<In>, int64_t{g_.groups} * g_.sides() * g_.sides() * kSide, 1, kWeightThreads,
        shared_bytes<WeightMemory>(), g_, static_cast<const In*>(in_.weight), flip, weights);
    return weights;
  }

  // The pieces of x, or of x times GELU's slope at `conv`.
  Tokens<Mma<In>> cut_tokens(const In* x, const In* conv, float* sums) {
    auto* out = space_.take<Mma<In>>(kPieces<In> * g_.rows() * g_.padded_width());
    const TokenSource<In> source{x, conv, aligned(x, conv)};
    run(pack_tokens<In>, pack_blocks(), divide_up<int>(g_.padded_width(), kPackColumns), kPackThreads,
        shared_bytes<PackMemory>(), g_, source, out, sums);
    return {out, g_.rows() * g_.padded_width(), g_.padded_width(), g_.padded_channels()};
  }

  // x as the products read it; as it is, where they can.
  Tokens<Mma<In>> tokens() {
    if constexpr (kPieces<In> == 1)
      if (g_.channels % 16 == 0 && multiples_of_16(in_.x)) return {x(), 0, g_.width(), g_.channels};
    return cut_tokens(x(), nullptr, nullptr);
  }

  void convolve_with(const Geometry& g, const Tokens<Mma<In>>& x, const Mma<In>* weights, const Epilogue& e) {
    const Convolution<In> a{g,          x,      weights, e.bias,
                            e.residual, e.conv, e.out,   aligned(e.residual, e.conv, e.out)};
    const int tiles = divide_up<int>(g.tokens, kUnitTokens<In>);
    const int64_t pairs = divide_up(g.batch * tiles, kUnits);
    run(convolve<In>, pairs * g.groups * g.sides(), 1, kConvThreads, shared_bytes<ConvMemory<In>>(), a, tiles,
        pairs);
  }

  void gradient_of_weight(const Tokens<Mma<In>>& grad, In* grad_weight) {
    WeightGradient<In> a{g_,
                         tokens(),
                         grad,
                         nullptr,
                         divide_up<int>(g_.taps, kGradTaps<In>),
                         divide_up<int>(g_.tokens, kGradTokens),
                         1};
    const int64_t blocks = static_cast<int64_t>(g_.groups) * g_.sides() * g_.sides() * a.sets * 8;
    // About as many blocks as a large GPU has multiprocessors, the same on all, for the same sums on all.
    const int64_t stages = g_.batch * a.tiles, wanted = blocks < 128 ? 128 / blocks : 1;
    a.splits = static_cast<int>(wanted < stages ? wanted : stages);
    const int64_t tiles = static_cast<int64_t>(g_.groups) * g_.sides() * g_.sides() * g_.taps;
    a.partial = space_.take<float>(a.splits * tiles * kWeightTile);
    run(weight_gradient<In>, blocks * a.splits, 1, kGradThreads, shared_bytes<GradMemory<In>>(), a);
    run(sum_weights<Stored<In>>, int64_t{g_.width()} * g_.sides(), 1, kWeightThreads,
        shared_bytes<WeightMemory>(), g_, a.partial, a.splits, reinterpret_cast<Stored<In>*>(grad_weight));
  }

  const PositionalConv& in_;
  Geometry g_;
  Workspace space_;
  cudaStream_t stream_;
  bool counting_;
  cudaError_t error_ = cudaSuccess;
};

// Runs `call` on the Launches for the dtype.
template <typename Call>
cudaError_t with_launches(const PositionalConv& in, Dtype dtype, void* workspace, cudaStream_t stream,
                          size_t* used, Call call) {
  return with_product_dtype(dtype, [&](auto* element) {
    Launches<std::remove_pointer_t<decltype(element)>> launches(in, workspace, stream);
    call(launches);
    if (used) *used = launches.used();
    return launches.error();
  });
}

}  // namespace

size_t positional_conv_workspace(const PositionalConv& in, Dtype dtype) {
  size_t used = 0;
  with_launches(in, dtype, nullptr, nullptr, &used, [](auto& l) { l.forward(nullptr, nullptr, nullptr); });
  return used;
}

size_t positional_conv_backward_workspace(const PositionalConv& in, Dtype dtype, bool need_x,
                                          bool need_parameters) {
  size_t used = 0;
  with_launches(in, dtype, nullptr, nullptr, &used,
                [&](auto& l) { l.backward({}, need_x, need_parameters); });
  return used;
}

cudaError_t positional_conv(const PositionalConv& in, Dtype dtype, const void* bias, void* out, void* conv,
                            void* workspace, cudaStream_t stream) {
  return with_launches(in, dtype, workspace, stream, nullptr, [&](auto& l) { l.forward(bias, out, conv); });
}

cudaError_t positional_conv_backward(const PositionalConv& in, Dtype dtype,
                                     const PositionalConvGradients& gradients, void* workspace,
                                     cudaStream_t stream) {
  return with_launches(in, dtype, workspace, stream, nullptr, [&](auto& l) {
    l.backward(gradients, gradients.grad_x != nullptr, gradients.grad_weight != nullptr);
  });
}

}  // namespace ecgfast::cuda
