// global_contrastive_pairs on the CPU: the rows that are present, the order of the cells, the split over
// threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "check_global_contrastive_pairs.h"
#include "cpu.h"

namespace ecgfast {
namespace {

constexpr int64_t kPacked = int64_t{20} << 20;  // bytes, of packed rows
constexpr int64_t kCells = int64_t{6} << 20;    // bytes, of a batch of cells
constexpr double kMostNoise = 4;                // of squares that were rounded, to those of results
constexpr double kNever = -std::numeric_limits<double>::infinity();

// The rows of one side that are present, lead after lead.
struct Rows {
  Tensor x;
  bool all = true;  // are present
  std::vector<int64_t> source, lead, members, order;
  std::vector<int32_t> group;
  std::vector<RowBlock> blocks;
  std::vector<int64_t> block_of_lead;  // the first block of each lead, and the end

  void take(const Tensor& rows, const std::optional<Tensor>& present, const std::vector<int32_t>& groups) {
    x = dense(rows);
    const int64_t leads = x.size(0), n = x.size(1);
    const std::optional<Tensor> mask = dense(present);
    const bool* is_present = data_or_null<bool>(mask);
    const int64_t stride = mask.has_value() && mask->dim() == 2 ? n : 0;
    source.reserve(leads * n);
    group.reserve(leads * n);
    lead.assign(1, 0);
    for (int64_t l = 0; l < leads; ++l) {
      for (int64_t i = 0; i < n; ++i) {
        if (is_present && !is_present[l * stride + i]) continue;
        source.push_back(l * n + i);
        group.push_back(groups[i]);
      }
      lead.push_back(static_cast<int64_t>(source.size()));
    }
    all = lead.back() == leads * n;
  }

  int64_t size() const { return lead.back(); }

  void sort_by_group(int64_t n_groups) {
    members.assign((lead.size() - 1) * (n_groups + 1), 0);
    order.resize(size());
    std::vector<int64_t> next;
    for (size_t l = 0; l + 1 < lead.size(); ++l) {
      int64_t* begin = members.data() + l * (n_groups + 1);
      for (int64_t i = lead[l]; i < lead[l + 1]; ++i) ++begin[group[i] + 1];
      begin[0] = lead[l];
      std::partial_sum(begin, begin + n_groups + 1, begin);
      next.assign(begin, begin + n_groups);
      for (int64_t i = lead[l]; i < lead[l + 1]; ++i) order[next[group[i]]++] = i;
    }
  }

  void cut(int64_t most) {
    block_of_lead.assign(1, 0);
    for (size_t l = 0; l + 1 < lead.size(); ++l) {
      for (int64_t i = lead[l]; i < lead[l + 1]; i += most)
        blocks.push_back({static_cast<int64_t>(l), i, std::min(most, lead[l + 1] - i)});
      block_of_lead.push_back(static_cast<int64_t>(blocks.size()));
    }
  }
};

// Numbers for the groups of both sides, from 0 on.
int64_t number_groups(const Tensor* given[2], std::vector<int32_t>* numbers) {
  std::vector<int64_t> names;
  const Tensor groups[2] = {dense(*given[0]), dense(*given[1])};
  for (const Tensor& g : groups)
    names.insert(names.end(), g.const_data_ptr<int64_t>(), g.const_data_ptr<int64_t>() + g.size(0));
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  for (int side = 0; side < 2; ++side) {
    const int64_t* g = groups[side].const_data_ptr<int64_t>();
    for (int64_t i = 0; i < groups[side].size(0); ++i)
      numbers[side].push_back(
          static_cast<int32_t>(std::lower_bound(names.begin(), names.end(), g[i]) - names.begin()));
  }
  return static_cast<int64_t>(names.size());
}

// What both passes work on; alive while the kernel's raw pointers are in use.
struct PairsInputs {
  Rows rows[2];
  Tensor pairs;
  std::vector<int64_t> pairs_of_lead, by_lead;  // the pairs of each lead of a
  std::vector<double> positives;                // of each pair; twice as many where it is a lead with itself
  double n_pairs = 0;                           // with a positive
  PairsArgs args{};

  PairsInputs(const Tensor& a, const std::optional<Tensor>& b, const Tensor& group_a,
              const std::optional<Tensor>& group_b, const std::optional<Tensor>& present_a,
              const std::optional<Tensor>& present_b, const Tensor& given_pairs, bool negatives,
              double number, const std::optional<Tensor>& temperature, bool detach_norm)
      : pairs(dense(given_pairs)) {
    const char* op = "global_contrastive_pairs";
    check_pairs(a, b, group_a, group_b, present_a, present_b, given_pairs);
    args.dtype = dtype_of(a, op);
    args.alone = !b.has_value();
    args.negatives = negatives;
    args.detach_norm = detach_norm;
    args.D = a.size(2);
    args.inv_temperature = 1.0 / temperature_of(op, number, temperature, statistics_type(a));
    std::vector<int32_t> groups[2];
    const Tensor* names[2] = {&group_a, args.alone ? &group_a : &*group_b};
    args.n_groups = number_groups(names, groups);
    rows[0].take(a, present_a, groups[0]);
    args.alone ? rows[1].take(a, present_a, groups[1]) : rows[1].take(*b, present_b, groups[1]);
    args.rows = rows[0].size();
    args.n_pairs = pairs.size(0);
    args.pairs = pairs.const_data_ptr<int64_t>();
    for (int side = 0; side < 2; ++side) point_at(side);
    sort_pairs();
    count_positives();
  }

  void point_at(int side) {
    Rows& r = rows[side];
    r.sort_by_group(args.n_groups);
    args.x[side] = r.x.const_data_ptr();
    args.source[side] = r.source.data();
    args.group[side] = r.group.data();
    args.lead[side] = r.lead.data();
    args.members[side] = r.members.data();
    args.order[side] = r.order.data();
    args.most[side] = r.x.size(1);
  }

  void sort_pairs() {
    const int64_t leads[2] = {rows[0].x.size(0), rows[1].x.size(0)};
    for (int64_t i = 0; i < 2 * args.n_pairs; ++i)
      STD_TORCH_CHECK(args.pairs[i] >= 0 && args.pairs[i] < leads[i % 2],
                      "global_contrastive_pairs: pairs holds a lead that isn't there: ", args.pairs[i]);
    pairs_of_lead.assign(leads[0] + 1, 0);
    for (int64_t q = 0; q < args.n_pairs; ++q) ++pairs_of_lead[args.pairs[2 * q] + 1];
    std::partial_sum(pairs_of_lead.begin(), pairs_of_lead.end(), pairs_of_lead.begin());
    by_lead.resize(args.n_pairs);
    std::vector<int64_t> next(pairs_of_lead);
    for (int64_t q = 0; q < args.n_pairs; ++q) by_lead[next[args.pairs[2 * q]]++] = q;
  }

  bool is_self(int64_t pair) const { return args.alone && args.pairs[2 * pair] == args.pairs[2 * pair + 1]; }

  // f(a row of the pair's side, where its statistics are).
  template <class F>
  void for_rows(int side, int64_t pair, F f) const {
    const int64_t lead = args.pairs[2 * pair + side], begin = args.lead[side][lead];
    for (int64_t row = begin; row < args.lead[side][lead + 1]; ++row)
      f(row, pair * args.most[side] + row - begin);
  }

  void count_positives() {
    for (int64_t q = 0; q < args.n_pairs; ++q) {
      double n = 0;
      for_rows(0, q, [&](int64_t row, int64_t) { n += positives_of(args, 0, q, row); });
      positives.push_back(n);
      n_pairs += n > 0;
    }
  }

  // What a pair's sum of terms is divided by: those of rows and of columns, which are the same in a lead with
  // itself.
  double terms(int64_t pair) const { return (is_self(pair) ? 1 : 2) * positives[pair] * n_pairs; }

  int64_t statistics() const { return args.n_pairs * (args.most[0] + args.most[1]); }
  int64_t all_rows() const { return args.rows + (args.alone ? 0 : rows[1].size()); }

  // The statistics' places in what the forward pass returns.
  void point_at_statistics(double* lse) {
    for (double** part : {args.lse, args.lse_negatives}) {
      part[0] = lse;
      part[1] = lse + args.n_pairs * args.most[0];
      lse += args.negatives ? statistics() : 0;
    }
  }
  void point_at_norms(void* norms, int64_t bytes) {
    args.inv_norms[0] = norms;
    args.inv_norms[1] =
        args.alone ? norms : static_cast<char*>(norms) + rows[0].x.size(0) * rows[0].x.size(1) * bytes;
  }
};

// Work is handed out as threads are done: cells of one block are more than those of another.
void run(const Kernels& k, const PairsArgs& args, const PairsSizes& sizes, PairsPass pass, int64_t n,
         int64_t chunk = 1) {
  std::atomic<int64_t> next{0};
  const int64_t chunks = (n + chunk - 1) / chunk;
  const int64_t threads = std::min<int64_t>(chunks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const Scratch<> scratch(sizes.scratch);
    for (int64_t i = next++; i < chunks; i = next++)
      k.global_contrastive_pairs(args, pass, i * chunk, std::min(n, (i + 1) * chunk), scratch.get());
  });
}

// All cells, in batches, with the blocks that they need packed.
class Schedule {
 public:
  Schedule(const Kernels& k, PairsInputs& in, const Tensor& like)
      : k_(k), in_(in), args_(in.args), sizes_(k.pairs_sizes(in.args)) {
    for (int side = 0; side < 2; ++side) {
      in.rows[side].blocks.clear();
      in.rows[side].cut(sizes_.block[side]);
      args_.block[side] = in.rows[side].blocks.data();
    }
    const int64_t n[2] = {blocks(0), blocks(1)}, cells = count_cells();
    args_.most_cells = std::min(cells, std::max<int64_t>(1, kCells / sizes_.cell));
    const bool all =
        n[0] * sizes_.packed[0] + n[1] * sizes_.packed[1] <= kPacked && cells <= args_.most_cells;
    // Else as many blocks of one side as of the other, so that a batch has work for several threads.
    const auto square = static_cast<int64_t>(std::sqrt(static_cast<double>(args_.most_cells)));
    for (int side = 0; side < 2; ++side) {
      const int64_t fit = all ? n[side] : std::min(square, kPacked / 2 / sizes_.packed[side]);
      args_.most_packed[side] = std::min(n[side], std::max<int64_t>(1, fit));
    }
    // The packed blocks and cells are more than their bytes by the alignment of five arrays.
    const int64_t bytes = args_.most_packed[0] * sizes_.packed[0] + args_.most_packed[1] * sizes_.packed[1] +
                          args_.most_cells * sizes_.cell + 6 * 64;
    workspace_ = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
    args_.workspace = workspace_.mutable_data_ptr();
  }

  const PairsSizes& sizes() const { return sizes_; }

  // `of_left` and then `of_right` for each batch.
  void run_cells(PairsPass of_left, PairsPass of_right) {
    for (int64_t i = 0; i < blocks(0); i += args_.most_packed[0]) {
      pack(0, i, PairsPass::pack_left);
      for (int64_t j = 0; j < blocks(1); j += args_.most_packed[1]) {
        args_.begin[1] = j;
        args_.size[1] = std::min(args_.most_packed[1], blocks(1) - j);
        cells_.clear();
        for (int64_t left = i; left < i + args_.size[0]; ++left)
          for_cells_of(left, [&](const Cell& cell) {
            if (cell.right >= j && cell.right < j + args_.size[1]) cells_.push_back(cell);
          });
        if (cells_.empty()) continue;
        if (packed_right_ != j) pack(1, j, PairsPass::pack_right);
        packed_right_ = j;
        for (size_t c = 0; c < cells_.size(); c += args_.most_cells)
          run_batch(c, std::min(cells_.size(), c + args_.most_cells), of_left, of_right);
      }
    }
  }

 private:
  int64_t blocks(int side) const { return static_cast<int64_t>(in_.rows[side].blocks.size()); }

  void pack(int side, int64_t begin, PairsPass pass) {
    args_.begin[side] = begin;
    args_.size[side] = std::min(args_.most_packed[side], blocks(side) - begin);
    run(k_, args_, sizes_, pass, args_.size[side]);
  }

  template <class F>
  void for_cells_of(int64_t left, F f) const {
    const RowBlock& block = in_.rows[0].blocks[left];
    for (int64_t i = in_.pairs_of_lead[block.lead]; i < in_.pairs_of_lead[block.lead + 1]; ++i) {
      const int64_t pair = in_.by_lead[i], lead = args_.pairs[2 * pair + 1];
      if (in_.positives[pair] == 0) continue;
      const int64_t* first = in_.rows[1].block_of_lead.data() + lead;
      for (int64_t right = first[0]; right < first[1]; ++right) {
        const RowBlock& other = in_.rows[1].blocks[right];
        if (!in_.is_self(pair) || other.begin + other.size > block.begin + 1) f(Cell{left, right, pair});
      }
    }
  }

  int64_t count_cells() const {
    int64_t n = 0;
    for (int64_t left = 0; left < blocks(0); ++left) for_cells_of(left, [&](const Cell&) { ++n; });
    return n;
  }

  void run_batch(size_t begin, size_t end, PairsPass of_left, PairsPass of_right) {
    const int64_t n = static_cast<int64_t>(end - begin);
    args_.cells = cells_.data() + begin;
    std::vector<int64_t> by_left(1, 0), by_right(args_.size[1] + 1, 0), order(n);
    for (int64_t c = 1; c <= n; ++c)
      if (c == n || args_.cells[c].left != args_.cells[c - 1].left) by_left.push_back(c);
    for (int64_t c = 0; c < n; ++c) ++by_right[args_.cells[c].right - args_.begin[1] + 1];
    std::partial_sum(by_right.begin(), by_right.end(), by_right.begin());
    std::vector<int64_t> next(by_right);
    for (int64_t c = 0; c < n; ++c) order[next[args_.cells[c].right - args_.begin[1]]++] = c;
    args_.of_block[0] = by_left.data();
    args_.of_block[1] = by_right.data();
    args_.by_right = order.data();
    run(k_, args_, sizes_, of_left, static_cast<int64_t>(by_left.size()) - 1);
    run(k_, args_, sizes_, of_right, args_.size[1]);
  }

  const Kernels& k_;
  PairsInputs& in_;
  PairsArgs& args_;
  PairsSizes sizes_;
  Tensor workspace_;
  std::vector<Cell> cells_;
  int64_t packed_right_ = -1;
};

// The logsumexp of each row and column, from the sums of the cells.
template <class T>
void finish_sums(const PairsInputs& in, double* const* lse) {
  const PairsArgs& a = in.args;
  const auto sum = [&](int side, int64_t at) {
    return std::pair<double, double>(static_cast<const T*>(a.max[side])[at],
                                     static_cast<const T*>(a.total[side])[at]);
  };
  for (int64_t q = 0; q < a.n_pairs; ++q)
    for (int side = 0; side < 2; ++side)
      in.for_rows(side, q, [&](int64_t, int64_t at) {
        auto [max, total] = sum(side, at);
        if (in.is_self(q)) {  // what lies above the diagonal, and what its transpose has below
          const auto [other, more] = sum(1 - side, at);
          const double most = std::max(max, other);
          total =
              most == kNever ? total + more : total * std::exp(max - most) + more * std::exp(other - most);
          max = most;
        }
        lse[side][at] = total == 0 ? kNever : max + std::log(total);
      });
}

// The loss of the pairs where the softmax goes over all similarities.
template <class T>
double loss_of_all(const PairsInputs& in) {
  const PairsArgs& a = in.args;
  double loss = 0;
  for (int64_t q = 0; q < a.n_pairs; ++q) {
    if (in.positives[q] == 0) continue;
    double terms = 0;
    for (int side = 0; side < 2; ++side)
      in.for_rows(side, q, [&](int64_t row, int64_t at) {
        const double n = static_cast<double>(positives_of(a, side, q, row));
        if (n == 0) a.lse[side][at] = 0;  // no part of the loss
        if (side == 0 || !in.is_self(q)) terms += n * a.lse[side][at];
        if (side == 0) terms -= 2.0 * static_cast<const T*>(a.positive)[at];
      });
    loss += terms / in.terms(q);
  }
  return loss;
}

double loss_of_negatives(const PairsInputs& in, const double* const* terms) {
  double loss = 0;
  for (int64_t q = 0; q < in.args.n_pairs; ++q)
    for (int side = 0; side < 2 && in.positives[q] > 0; ++side)
      in.for_rows(side, q, [&](int64_t, int64_t at) { loss += terms[side][at] / in.terms(q); });
  return loss;
}

template <class T>
double finish_loss(const Kernels& k, PairsInputs& in, const PairsSizes& sizes) {
  PairsArgs& a = in.args;
  if (!a.negatives) {
    finish_sums<T>(in, a.lse);
    return loss_of_all<T>(in);
  }
  finish_sums<T>(in, a.lse_negatives);
  std::vector<double> terms(in.statistics());
  a.terms[0] = terms.data();
  a.terms[1] = terms.data() + a.n_pairs * a.most[0];
  run(k, a, sizes, PairsPass::positives, in.statistics(), 16);
  return loss_of_negatives(in, a.terms);
}

std::tuple<Tensor, Tensor, Tensor> global_contrastive_pairs_cpu(
    const Tensor& a, const std::optional<Tensor>& b, const Tensor& group_a,
    const std::optional<Tensor>& group_b, const std::optional<Tensor>& present_a,
    const std::optional<Tensor>& present_b, const Tensor& pairs, bool negatives, double temperature,
    bool detach_norm, bool /*tf32*/, const std::optional<Tensor>& temperature_tensor) {
  const Kernels& k = kernels();
  PairsInputs in(a, b, group_a, group_b, present_a, present_b, pairs, negatives, temperature,
                 temperature_tensor, detach_norm);
  PairsArgs& g = in.args;
  const ScalarType wide = statistics_type(a);
  const bool is_double = wide == ScalarType::Double;
  Tensor lse = torch::stable::new_zeros(a, {(negatives ? 2 : 1) * in.statistics()}, ScalarType::Double);
  Tensor inv_norms = torch::stable::new_zeros(
      a, {a.size(0) * a.size(1) + (b.has_value() ? b->size(0) * b->size(1) : 0)}, wide);
  in.point_at_statistics(lse.mutable_data_ptr<double>());
  in.point_at_norms(inv_norms.mutable_data_ptr(), is_double ? 8 : 4);
  Schedule schedule(k, in, a);
  std::vector<Tensor> sums;
  const auto sums_of = [&](int side, double start) {
    sums.push_back(torch::stable::new_empty(a, {g.n_pairs * g.most[side]}, wide));
    torch::stable::fill_(sums.back(), start);
    return sums.back().mutable_data_ptr();
  };
  g.positive = sums_of(0, 0);
  for (int side = 0; side < 2; ++side) {
    g.total[side] = sums_of(side, 0);
    g.max[side] = sums_of(side, schedule.sizes().bounded ? g.inv_temperature : kNever);
  }
  run(k, g, schedule.sizes(), PairsPass::norms, in.all_rows(), 32);
  schedule.run_cells(PairsPass::forward, PairsPass::merge_columns);
  const double value =
      is_double ? finish_loss<double>(k, in, schedule.sizes()) : finish_loss<float>(k, in, schedule.sizes());
  Tensor loss = torch::stable::new_zeros(a, {}, wide);
  torch::stable::fill_(loss, value);
  return {loss, lse, inv_norms};
}

// What the backward pass makes: the gradients, and what it sums up beside them.
class Gradients {
 public:
  Gradients(PairsInputs& in, bool with_moments) : in_(in), with_moments_(with_moments) {
    for (int side = 0; side < sides(); ++side)
      grad[side] = torch::stable::new_zeros(in.rows[side].x, shape(side), in.rows[side].x.scalar_type());
  }

  void make(const Kernels& k) {
    PairsArgs& g = in_.args;
    const ScalarType wide = statistics_type(grad[0]);
    Tensor sums[2];
    for (int side = 0; side < sides(); ++side) {
      // Gradients are accumulated where they belong, if they can.
      const bool in_place = wide == grad[side].scalar_type() && in_.rows[side].all;
      sums[side] =
          in_place ? grad[side] : torch::stable::new_zeros(grad[side], {in_.rows[side].size(), g.D}, wide);
      g.grad[side] = grad[side].mutable_data_ptr();
      g.sum[side] = sums[side].mutable_data_ptr();
      square_[side].assign(in_.rows[side].size(), 0.0);
      g.square[side] = square_[side].data();
    }
    if (g.alone) g.sum[1] = g.sum[0];
    Schedule schedule(k, in_, grad[0]);
    const size_t blocks = in_.rows[0].blocks.size();
    for (int side = 0; side < 2; ++side) {
      noise_[side].assign(blocks, 0.0);
      g.noise[side] = noise_[side].data();
    }
    moments_.assign(blocks, 0.0);
    g.moments = with_moments_ ? moments_.data() : nullptr;
    schedule.run_cells(PairsPass::gradients, PairsPass::products);
    run(k, g, schedule.sizes(), PairsPass::finish, in_.all_rows(), 32);
    rounds_ = schedule.sizes().rounds;
  }

  // Whether the gradients are so small beside what they are sums of that rounding the terms to bf16 costs
  // clearly more than rounding the result.
  bool cancelled() const {
    if (!rounds_) return false;
    if (sides() == 1) return sum(noise_[0]) + sum(noise_[1]) > kMostNoise * sum(square_[0]);
    return sum(noise_[0]) > kMostNoise * sum(square_[0]) || sum(noise_[1]) > kMostNoise * sum(square_[1]);
  }
  double moments() const { return sum(moments_); }

  Tensor grad[2];

 private:
  int sides() const { return in_.args.alone ? 1 : 2; }
  std::vector<int64_t> shape(int side) const {
    const Tensor& x = in_.rows[side].x;
    return {x.size(0), x.size(1), x.size(2)};
  }
  static double sum(const std::vector<double>& x) { return std::accumulate(x.begin(), x.end(), 0.0); }

  PairsInputs& in_;
  bool with_moments_, rounds_ = false;
  std::vector<double> moments_, noise_[2], square_[2];
};

std::tuple<Tensor, Tensor, Tensor> global_contrastive_pairs_backward_cpu(
    const Tensor& grad_loss, const Tensor& a, const std::optional<Tensor>& b, const Tensor& group_a,
    const std::optional<Tensor>& group_b, const std::optional<Tensor>& present_a,
    const std::optional<Tensor>& present_b, const Tensor& pairs, const Tensor& lse, const Tensor& inv_norms,
    bool negatives, double temperature, bool detach_norm, bool /*tf32*/,
    const std::optional<Tensor>& temperature_tensor) {
  const Kernels& k = kernels();
  PairsInputs in(a, b, group_a, group_b, present_a, present_b, pairs, negatives, temperature,
                 temperature_tensor, detach_norm);
  PairsArgs& g = in.args;
  g.backward = true;
  const ScalarType wide = statistics_type(a);
  const Tensor saved = dense(lse), norms = dense(inv_norms);
  STD_TORCH_CHECK(
      saved.numel() == (negatives ? 2 : 1) * in.statistics() && saved.scalar_type() == ScalarType::Double &&
          norms.numel() == a.size(0) * a.size(1) + (b.has_value() ? b->size(0) * b->size(1) : 0) &&
          norms.scalar_type() == wide,
      "global_contrastive_pairs_backward: lse and inv_norms must be what the forward pass returned");
  STD_TORCH_CHECK(grad_loss.numel() == 1,
                  "global_contrastive_pairs_backward: grad_loss must be a single number");
  in.point_at_statistics(const_cast<double*>(saved.const_data_ptr<double>()));
  in.point_at_norms(const_cast<void*>(norms.const_data_ptr()), wide == ScalarType::Double ? 8 : 4);
  std::vector<double> factor(g.n_pairs);
  const double loss_grad = scalar(grad_loss);
  double counted = 0;
  for (int64_t q = 0; q < g.n_pairs; ++q) {
    if (in.positives[q] == 0) continue;
    factor[q] = loss_grad / in.terms(q);
    in.for_rows(0, q, [&](int64_t, int64_t at) {
      g.moment_shift += g.lse[0][at] - std::log(static_cast<double>(g.most[1]));
      ++counted;
    });
  }
  if (counted > 0) g.moment_shift /= counted;
  g.factor = factor.data();
  Gradients gradients(in, temperature_tensor.has_value());
  gradients.make(k);
  if (gradients.cancelled()) {
    g.precise = true;
    gradients.make(k);
  }
  Tensor moments = torch::stable::new_zeros(a, {temperature_tensor.has_value()}, ScalarType::Double);
  if (temperature_tensor.has_value())
    *moments.mutable_data_ptr<double>() = gradients.moments() / g.inv_temperature;
  Tensor grad_b = g.alone ? torch::stable::new_zeros(a, {0}, a.scalar_type()) : gradients.grad[1];
  return {gradients.grad[0], grad_b, moments};
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_IMPL(ecgfast, CPU, m) {
  m.impl("global_contrastive_pairs", TORCH_BOX(&ecgfast::global_contrastive_pairs_cpu));
  m.impl("global_contrastive_pairs_backward", TORCH_BOX(&ecgfast::global_contrastive_pairs_backward_cpu));
}
