// positional_conv on the CPU: checks, the choice of the transform's length, and the split of the channels
// over threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check_positional_conv.h"
#include "cpu.h"

namespace ecgfast {
namespace {

constexpr int64_t kHeldBytes = int64_t{8} << 20;  // of a group's spectra, per thread
constexpr int64_t kLongest = 1024;  // elements of a transform, where shorter ones can do the work

// Whether n / 2 has no other prime factors than those of the passes.
bool smooth(int64_t m) {
  for (int64_t p : {2, 3, 5, 7})
    while (m % p == 0) m /= p;
  return m == 1;
}

int64_t smooth_length(int64_t at_least) {
  int64_t m = (std::max<int64_t>(at_least, 2) + 1) / 2;
  while (!smooth(m)) ++m;
  return 2 * m;
}

// One row's length of transform and outputs, and roughly what a step over 16 sequences costs: for any number
// of them, so that a sequence's results do not depend on how many others there are.
struct Cut {
  int64_t n, segment, segments;
  double cost;

  Cut(const ConvArgs& a, int64_t n_, int64_t segment_)
      : n(n_), segment(segment_), segments((a.N + segment_ - 1) / segment_) {
    const double rows = 16.0 * double(segments), c = double(a.C), length = double(n);
    const double transforms = (5 * rows + 3 * c) * c * length * (1.5 * std::log2(length) + 4);
    cost = transforms + 3 * rows * c * c * 2 * length;
  }
};

// The whole sequence in one transform, or pieces of it where that is cheaper.
Cut choose(const ConvArgs& a) {
  Cut best(a, smooth_length(a.N + std::max(a.left, a.taps - 1 - a.left)), a.N);
  const int64_t whole = best.n;
  if (whole > kLongest) best.cost = INFINITY;
  for (int64_t n = smooth_length(a.taps + 1); n < whole; n = smooth_length(n + 1)) {
    if (n > kLongest && std::isfinite(best.cost)) break;
    const Cut cut(a, n, n - a.taps + 1);
    if (cut.cost < best.cost) best = cut;
  }
  return best;
}

// The tables that FftPlan points to.
template <class T>
struct Transform {
  std::vector<T> roots;
  std::vector<int32_t> position;

  Transform(int64_t n, FftPlan& plan) : roots(2 * n), position(n / 2) {
    plan.n = n;
    plan.n_radices = 0;
    int64_t rest = n / 2;
    for (int radix : {7, 5, 3, 16, 8, 4, 2})
      for (; rest % radix == 0; rest /= radix) plan.radices[plan.n_radices++] = radix;
    for (int64_t k = 0; k < n; ++k) {
      const double angle = 6.283185307179586476925 * double(k) / double(n);
      roots[2 * k] = T(std::cos(angle));
      roots[2 * k + 1] = T(std::sin(angle));
    }
    for (int64_t f = 0; f < n / 2; ++f) {
      int64_t at = 0, length = n / 2, left = f;
      for (int i = 0; i < plan.n_radices; ++i) {
        length /= plan.radices[i];
        at += left % plan.radices[i] * length;
        left /= plan.radices[i];
      }
      position[f] = static_cast<int32_t>(at);
    }
    plan.roots = roots.data();
    plan.position = position.data();
  }
};

using ConvKernel = void (*)(const ConvArgs&, int64_t, int64_t, void*);

// The inputs, made contiguous and kept alive while the kernel's raw pointers are in use.
struct ConvCall {
  Tensor x, weight;
  ConvArgs args{};

  ConvCall(const Tensor& x_, const Tensor& weight_, int64_t groups) : x(dense(x_)), weight(dense(weight_)) {
    check_conv(x, weight, groups);
    ConvArgs& a = args;
    a.dtype = dtype_of(x, "positional_conv");
    a.B = x.size(0);
    a.N = x.size(1);
    a.groups = groups;
    a.C = x.size(2) / groups;
    a.kernel = weight.size(2);
    a.x = x.const_data_ptr();
    a.weight = weight.const_data_ptr();
    // Only taps within N - 1 of the centre touch two elements of the sequence.
    const int64_t centre = a.kernel / 2;
    a.first_tap = std::max<int64_t>(0, centre - (a.N - 1));
    a.taps = std::min(a.kernel, centre + a.N) - a.first_tap;
    a.left = centre - a.first_tap;
  }

  bool empty() const { return x.numel() == 0; }

  void run(ConvKernel Kernels::* kernel) {
    ConvArgs& a = args;
    const Cut cut = choose(a);
    a.segment = cut.segment;
    a.segments = cut.segments;
    const int64_t rows = a.B * a.segments;
    const int64_t row_bytes = (cut.n + 2) * ((a.C + 15) / 16 * 16) * (a.dtype == DType::f64 ? 8 : 4);
    const int64_t chunks = (rows * row_bytes + kHeldBytes - 1) / kHeldBytes;
    a.row_chunk = std::min(rows, ((rows + chunks - 1) / chunks + 7) / 8 * 8);
    a.dtype == DType::f64 ? run_with<double>(cut.n, kernel) : run_with<float>(cut.n, kernel);
  }

 private:
  template <class T>
  void run_with(int64_t n, ConvKernel Kernels::* kernel) {
    const Kernels& k = kernels();
    const Transform<T> transform(n, args.plan);
    const int64_t scratch = k.positional_conv_scratch(args);
    torch::stable::parallel_for(0, k.positional_conv_units(args), 1, [&](int64_t b, int64_t e) {
      (k.*kernel)(args, b, e, ::ecgfast::Scratch<>(scratch).get());
    });
  }
};

std::tuple<Tensor, Tensor> positional_conv_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                               int64_t groups, bool save, bool /*tf32*/) {
  ConvCall call(x, weight, groups);
  check_conv_bias(x, bias);
  const Tensor dense_bias = dense(bias);
  Tensor out = torch::stable::empty_like(call.x);
  Tensor conv = save ? torch::stable::empty_like(call.x) : torch::stable::new_empty(call.x, {0});
  if (call.empty()) return {out, conv};
  call.args.bias = dense_bias.const_data_ptr();
  call.args.out = out.mutable_data_ptr();
  call.args.conv = save ? conv.mutable_data_ptr() : nullptr;
  call.run(&Kernels::positional_conv);
  return {out, conv};
}

std::tuple<Tensor, Tensor, Tensor> positional_conv_backward_cpu(const Tensor& grad_out, const Tensor& x,
                                                                const Tensor& weight, const Tensor& conv,
                                                                int64_t groups, bool need_x,
                                                                bool need_parameters, bool /*tf32*/) {
  ConvCall call(x, weight, groups);
  const Tensor grad = dense(grad_out), saved = dense(conv);
  check_conv_saved(call.x, grad, saved);
  const Tensor& like = call.x;
  Tensor grad_x = need_x ? torch::stable::empty_like(like) : torch::stable::new_empty(like, {0});
  Tensor grad_weight =
      need_parameters ? torch::stable::empty_like(call.weight) : torch::stable::new_empty(like, {0});
  Tensor grad_bias = torch::stable::new_empty(like, {need_parameters ? like.size(2) : 0});
  if (call.empty()) return {grad_x, torch::stable::fill_(grad_weight, 0), torch::stable::fill_(grad_bias, 0)};
  call.args.grad_out = grad.const_data_ptr();
  call.args.conv = const_cast<void*>(saved.const_data_ptr());
  if (need_x) call.args.grad_x = grad_x.mutable_data_ptr();
  if (need_parameters) {
    call.args.grad_weight = grad_weight.mutable_data_ptr();
    call.args.grad_bias = grad_bias.mutable_data_ptr();
  }
  call.run(&Kernels::positional_conv_backward);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("positional_conv", TORCH_BOX(&ecgfast::positional_conv_cpu));
  m.impl("positional_conv_backward", TORCH_BOX(&ecgfast::positional_conv_backward_cpu));
}
