// global_contrastive on the CPU: checks, allocation, the order of the blocks, and the split over threads.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "check_global_contrastive.h"
#include "cpu.h"

namespace ecgfast {
namespace {

constexpr int64_t kWorkspace = int64_t{26} << 20;        // bytes, of the blocks and the accumulator
constexpr int64_t kMostAccumulator = int64_t{16} << 20;  // bytes
constexpr double kMostNoise = 4;                         // of squares that were rounded, to those of results

// The inputs made contiguous, and alive while the kernel's raw pointers are in use. Groups are numbered anew
// from 0, so that the kernel compares 32 bits.
struct Inputs {
  Tensor x[2];
  std::vector<int32_t> group[2], positives[2];
  GlobalArgs args{};

  Inputs(const Tensor& a, const Tensor& b, const Tensor& group_a, const Tensor& group_b, double number,
         const std::optional<Tensor>& temperature, bool detach_norm)
      : x{dense(a), dense(b)} {
    check_global(a, b, group_a, group_b);
    args.dtype = dtype_of(a, "global_contrastive");
    args.detach_norm = detach_norm;
    args.D = a.size(1);
    args.most_workspace = kWorkspace;
    args.inv_temperature =
        1.0 / temperature_of("global_contrastive", number, temperature, statistics_type(a));
    const Tensor groups[2] = {dense(group_a), dense(group_b)};
    for (int side = 0; side < 2; ++side) args.N[side] = x[side].size(0);
    number_groups(groups);
    for (int side = 0; side < 2; ++side) {
      args.x[side] = x[side].const_data_ptr();
      args.group[side] = group[side].data();
      args.positives[side] = positives[side].data();
    }
  }

  void number_groups(const Tensor* groups) {
    std::vector<std::pair<int64_t, int64_t>> order;  // group, row; rows of b follow those of a
    order.reserve(args.N[0] + args.N[1]);
    for (int side = 0; side < 2; ++side) {
      const int64_t* g = groups[side].const_data_ptr<int64_t>();
      for (int64_t i = 0; i < args.N[side]; ++i) order.emplace_back(g[i], side ? args.N[0] + i : i);
      group[side].resize(args.N[side]);
      positives[side].resize(args.N[side]);
    }
    std::sort(order.begin(), order.end());
    int32_t next = 0;
    for (size_t begin = 0, end = 0; begin < order.size(); begin = end, ++next) {
      int32_t count[2] = {0, 0};
      for (; end < order.size() && order[end].first == order[begin].first; ++end)
        ++count[order[end].second >= args.N[0]];
      for (size_t k = begin; k < end; ++k) {
        const int side = order[k].second >= args.N[0];
        const int64_t row = side ? order[k].second - args.N[0] : order[k].second;
        group[side][row] = next;
        positives[side][row] = count[1 - side];
      }
    }
  }

  double pairs() const {
    double n = 0;
    for (int32_t p : positives[0]) n += p;
    return n;
  }
};

void run(const Kernels& k, const GlobalArgs& args, const GlobalSizes& sizes, GlobalPass pass, int64_t n) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    k.global_contrastive(args, pass, begin, end, Scratch<>(sizes.scratch).get());
  });
}

int64_t panels(const GlobalArgs& a, const GlobalSizes& s, int side) {
  return (a.size[side] + s.panel[side] - 1) / s.panel[side];
}

// f() for each block of a side's rows.
template <class F>
void for_blocks(GlobalArgs& a, const GlobalSizes& s, int side, F f) {
  for (a.begin[side] = 0; a.begin[side] < a.N[side]; a.begin[side] += s.block[side]) {
    a.size[side] = std::min(s.block[side], a.N[side] - a.begin[side]);
    f();
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> global_contrastive_cpu(
    const Tensor& a, const Tensor& b, const Tensor& group_a, const Tensor& group_b, double temperature,
    bool detach_norm, bool /*tf32*/, const std::optional<Tensor>& temperature_tensor) {
  const Kernels& k = kernels();
  Inputs in(a, b, group_a, group_b, temperature, temperature_tensor, detach_norm);
  GlobalArgs& g = in.args;
  const ScalarType wide = statistics_type(a);
  const int64_t n = g.N[0] + g.N[1];
  const GlobalSizes s = k.global_sizes(g);
  Tensor loss = torch::stable::new_empty(a, {}, wide);
  Tensor lse[2] = {torch::stable::new_empty(a, {g.N[0]}, ScalarType::Double),
                   torch::stable::new_empty(a, {g.N[1]}, ScalarType::Double)};
  for (int side = 0; side < 2; ++side) g.lse[side] = lse[side].mutable_data_ptr<double>();
  Tensor inv_norms = torch::stable::new_empty(a, {n}, wide),
         sums = torch::stable::new_empty(a, {s.sums}, wide);
  Tensor workspace = torch::stable::new_empty(a, {s.workspace}, ScalarType::Byte);
  g.loss = loss.mutable_data_ptr();
  g.sums = sums.mutable_data_ptr();
  g.workspace = workspace.mutable_data_ptr();
  const int64_t bytes = wide == ScalarType::Double ? 8 : 4;
  g.inv_norms[0] = inv_norms.mutable_data_ptr();
  g.inv_norms[1] = static_cast<char*>(g.inv_norms[0]) + g.N[0] * bytes;
  run(k, g, s, GlobalPass::norms, n);
  run(k, g, s, GlobalPass::begin, 1);
  for_blocks(g, s, 0, [&] {
    run(k, g, s, GlobalPass::pack_left, panels(g, s, 0));
    for_blocks(g, s, 1, [&] {
      run(k, g, s, GlobalPass::pack_right, panels(g, s, 1));
      run(k, g, s, GlobalPass::forward, panels(g, s, 0));
      run(k, g, s, GlobalPass::merge_columns, panels(g, s, 1));
    });
  });
  run(k, g, s, GlobalPass::loss, 1);
  return {loss, lse[0], lse[1], inv_norms};
}

// The gradients of a's rows and, where g.grad_right says where to add it up, of b's.
void backward_blocks(const Kernels& k, GlobalArgs& g, const Tensor& like) {
  const GlobalSizes s = k.global_sizes(g);
  Tensor workspace = torch::stable::new_empty(like, {s.workspace}, ScalarType::Byte);
  Tensor sums = torch::stable::new_empty(like, {s.sums}, statistics_type(like));
  g.workspace = workspace.mutable_data_ptr();
  g.sums = sums.mutable_data_ptr();
  const bool both = g.grad_right != nullptr;
  run(k, g, s, GlobalPass::begin, 1);
  for_blocks(g, s, 0, [&] {
    run(k, g, s, GlobalPass::pack_left, panels(g, s, 0));
    for_blocks(g, s, 1, [&] {
      run(k, g, s, GlobalPass::pack_right, panels(g, s, 1));
      run(k, g, s, GlobalPass::gradients, panels(g, s, 0));
      const int64_t columns = (g.size[1] + s.panel[0] - 1) / s.panel[0];
      if (both) run(k, g, s, GlobalPass::products, columns);
    });
    run(k, g, s, GlobalPass::finish_left, panels(g, s, 0));
  });
  if (both) for_blocks(g, s, 1, [&] { run(k, g, s, GlobalPass::finish_right, panels(g, s, 1)); });
}

GlobalArgs swapped(GlobalArgs g) {
  std::swap(g.N[0], g.N[1]);
  std::swap(g.x[0], g.x[1]);
  std::swap(g.group[0], g.group[1]);
  std::swap(g.positives[0], g.positives[1]);
  std::swap(g.lse[0], g.lse[1]);
  std::swap(g.inv_norms[0], g.inv_norms[1]);
  std::swap(g.grad[0], g.grad[1]);
  std::swap(g.noise[0], g.noise[1]);
  std::swap(g.square[0], g.square[1]);
  return g;
}

// What the backward pass sums up for each row beside the gradients.
struct RowSums {
  std::vector<double> moments, noise[2], square[2];

  RowSums(const GlobalArgs& a, bool with_moments) : moments(with_moments ? a.N[0] : 0) {}

  void clear(GlobalArgs& a) {
    std::fill(moments.begin(), moments.end(), 0.0);
    a.moments = moments.empty() ? nullptr : moments.data();
    for (int side = 0; side < 2; ++side) {
      noise[side].assign(std::max(a.N[0], a.N[1]), 0.0);
      square[side].assign(a.N[side], 0.0);
      a.noise[side] = noise[side].data();
      a.square[side] = square[side].data();
    }
  }

  // Whether the gradients are so small beside what they are sums of that rounding the terms to bf16 costs
  // clearly more than rounding the result: tokens that are alike, pairs that are nearly aligned.
  bool cancelled() const {
    const auto sum = [](const std::vector<double>& x) { return std::accumulate(x.begin(), x.end(), 0.0); };
    return sum(noise[0]) > kMostNoise * sum(square[0]) || sum(noise[1]) > kMostNoise * sum(square[1]);
  }
};

void gradients(const Kernels& k, GlobalArgs g, RowSums& sums, const Tensor& like) {
  const ScalarType wide = statistics_type(like);
  const int64_t bytes = wide == ScalarType::Double ? 8 : 4;
  sums.clear(g);
  if (wide == like.scalar_type()) {
    g.grad_right = g.grad[1];
    backward_blocks(k, g, like);
  } else if (g.N[1] * g.D * bytes <= kMostAccumulator) {
    Tensor sum = torch::stable::new_zeros(like, {g.N[1], g.D}, wide);
    g.grad_right = sum.mutable_data_ptr();
    g.most_workspace -= g.N[1] * g.D * bytes;
    backward_blocks(k, g, like);
  } else {
    // b's gradient would need N x D sums in fp32: the similarities are computed once more instead.
    GlobalArgs other = swapped(g);
    g.noise[1] = other.noise[1] = nullptr;
    other.moments = nullptr;
    backward_blocks(k, g, like);
    backward_blocks(k, other, like);
  }
}

std::tuple<Tensor, Tensor, Tensor> global_contrastive_backward_cpu(
    const Tensor& grad_loss, const Tensor& a, const Tensor& b, const Tensor& group_a, const Tensor& group_b,
    const Tensor& lse_rows, const Tensor& lse_columns, const Tensor& inv_norms, double temperature,
    bool detach_norm, bool /*tf32*/, const std::optional<Tensor>& temperature_tensor) {
  const Kernels& k = kernels();
  Inputs in(a, b, group_a, group_b, temperature, temperature_tensor, detach_norm);
  GlobalArgs& g = in.args;
  g.backward = true;
  const ScalarType wide = statistics_type(a);
  const Tensor lse[2] = {dense(lse_rows), dense(lse_columns)}, norms = dense(inv_norms);
  STD_TORCH_CHECK(lse[0].numel() == g.N[0] && lse[1].numel() == g.N[1] && norms.numel() == g.N[0] + g.N[1] &&
                      lse[0].scalar_type() == ScalarType::Double &&
                      lse[1].scalar_type() == ScalarType::Double && norms.scalar_type() == wide,
                  "global_contrastive_backward: lse_rows, lse_columns and inv_norms must be what the forward "
                  "pass returned");
  STD_TORCH_CHECK(grad_loss.numel() == 1, "global_contrastive_backward: grad_loss must be a single number");
  g.factor = scalar(grad_loss) / (2 * std::max(in.pairs(), 1.0));
  Tensor grad[2] = {torch::stable::empty_like(in.x[0]), torch::stable::empty_like(in.x[1])};
  const int64_t bytes = wide == ScalarType::Double ? 8 : 4;
  for (int side = 0; side < 2; ++side) {
    g.lse[side] = const_cast<double*>(lse[side].const_data_ptr<double>());
    g.inv_norms[side] =
        static_cast<char*>(const_cast<void*>(norms.const_data_ptr())) + (side ? g.N[0] * bytes : 0);
    g.grad[side] = grad[side].mutable_data_ptr();
  }
  if (wide == a.scalar_type()) torch::stable::zero_(grad[1]);
  for (int64_t i = 0; i < g.N[0]; ++i) g.moment_shift += (g.lse[0][i] - std::log(g.N[1])) / g.N[0];
  RowSums sums(g, temperature_tensor.has_value());
  gradients(k, g, sums, a);
  if (k.global_sizes(g).rounds && sums.cancelled()) {
    g.precise = true;
    gradients(k, g, sums, a);
  }
  Tensor moments = torch::stable::new_zeros(a, {temperature_tensor.has_value()}, ScalarType::Double);
  for (double m : sums.moments) *moments.mutable_data_ptr<double>() += m / g.inv_temperature;
  return {grad[0], grad[1], moments};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("global_contrastive", TORCH_BOX(&ecgfast::global_contrastive_cpu));
  m.impl("global_contrastive_backward", TORCH_BOX(&ecgfast::global_contrastive_backward_cpu));
}
