// Plan, workspaces and launches of the global contrastive kernels over pairs of leads.
#include <algorithm>
#include <cmath>

#include "global_contrastive_pairs_backward.cuh"
#include "global_contrastive_pairs_loss.cuh"
#include "launch.cuh"
#include "workspace.h"

namespace ecgfast::cuda {
namespace {

constexpr int kMostRegions = 32;            // of a side of a single pair: bounds the forward workspace
constexpr int64_t kManyTiles = 96;          // enough large tiles to occupy a large GPU
constexpr int64_t kBlockRows = 8192;        // of a, and of b for 16-bit inputs
constexpr int64_t kBlockBytes = 128 << 20;  // of gradients of similarities, hence

template <typename T>
bool rows_aligned(const ContrastivePairs& in) {
  return multiples_of_16(in.width * sizeof(T), in.x[0], in.alone ? nullptr : in.x[1]);
}

template <typename T>
int64_t padded(int64_t columns) {
  return divide_up(columns, kVector<T>) * kVector<T>;
}

// f(the shape of tiles).
template <typename T, typename Large, typename F>
cudaError_t with_shape(bool large, F f) {
  if constexpr (!kPrecise<T>)
    if (large) return f(Large());
  return f(typename GlobalShapes<T>::Small());
}

// Whether no exponential of a similarity can overflow, so that no maxima are needed.
bool bounded(const ContrastivePairs& in) { return !in.temperature && 2 * in.inv_temperature <= kMostBounded; }

// f(the shape of the forward pass's tiles).
template <typename F>
cudaError_t with_similarities(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan, F f) {
  return with_product_dtype(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return with_shape<T, typename GlobalShapes<T>::Similarities>(plan.large_similarities && bounded(in), f);
  });
}

// Parts of a workspace for the rows of both sides, which are those of a alone where b is a.
template <typename T>
void take_rows(Workspace& parts, const ContrastivePairs& in, int64_t pitch, T** rows) {
  rows[0] = parts.take<T>(in.all_rows(0) * pitch);
  rows[1] = in.alone ? rows[0] : parts.take<T>(in.all_rows(1) * pitch);
}

// `S`: the shape of the tiles of similarities.
template <typename S>
struct ForwardWorkspace {
  using T = typename S::Element;
  T* copies[2] = {nullptr, nullptr};
  Partial* partial[2];
  int n_partial[2], n_positive;
  int64_t all_partial;
  float *positive, *amounts = nullptr, *terms = nullptr;
  int *counts, *all_counts;
  PairTotals* totals;
  unsigned* ticket;
  int64_t bytes;

  ForwardWorkspace(const ContrastivePairs& in, const PairsPlan& plan, void* base) {
    Workspace parts(base);
    if (!rows_aligned<T>(in)) take_rows(parts, in, padded<T>(in.width), copies);
    int64_t each[2];
    for (int side = 0; side < 2; ++side) {
      n_partial[side] = plan.regions[1 - side] * (side == 0 ? S::warps_n : S::warps_m);
      each[side] = in.n_pairs * n_partial[side] * in.rows[side];
    }
    all_partial = each[0] + each[1];
    partial[0] = parts.take<Partial>(all_partial);  // as one, to be cleared
    partial[1] = partial[0] + each[0];
    n_positive = plan.regions[0] * plan.regions[1] * S::warps_m * S::warps_n;
    positive = parts.take<float>(in.n_pairs * n_positive);
    if (in.negatives) {
      amounts = parts.take<float>(in.statistics());
      terms = parts.take<float>(in.statistics());
    }
    counts = parts.take<int>(in.statistics());
    all_counts = parts.take<int>(in.statistics());
    totals = parts.take<PairTotals>(in.n_pairs);
    ticket = parts.take<unsigned>(1);
    bytes = parts.used();
  }
};

// Unit rows (and copies of the rows where they are not at multiples of 16 bytes); the gradients of
// similarities that are held, at most 128 MiB; float32 sums of all rows where these are not all, or with the
// true norm.
template <typename T>
struct BackwardWorkspace {
  T *copies[2] = {nullptr, nullptr}, *units[2], *held;
  float* sums[2] = {nullptr, nullptr};
  float2* moments;
  int64_t bytes;

  BackwardWorkspace(const ContrastivePairs& in, const PairsPlan& plan, bool detach_norm, void* base) {
    Workspace parts(base);
    const int64_t pitch = padded<T>(in.width);
    const bool several = plan.block[0] < in.rows[0] || plan.block[1] < in.rows[1] || plan.pairs < in.n_pairs;
    if (!rows_aligned<T>(in)) take_rows(parts, in, pitch, copies);
    take_rows(parts, in, pitch, units);
    if (several || !detach_norm) take_rows(parts, in, pitch, sums);
    held = parts.take<T>(plan.pairs * plan.block[0] * padded<T>(plan.block[1]));
    moments = in.temperature ? parts.take<float2>(n_moments(in, plan)) : nullptr;
    bytes = parts.used();
  }

  // At most: one for each warp of a tile of similarities.
  static int64_t n_moments(const ContrastivePairs& in, const PairsPlan& plan) {
    using S = typename GlobalShapes<T>::Small;
    int64_t n = in.n_pairs * (S::threads / 32);
    for (int side = 0; side < 2; ++side)
      n *= divide_up(in.rows[side], std::max<int64_t>(1, plan.block[side])) *
           divide_up(plan.block[side], S::m);
    return n;
  }
};

template <typename T>
cudaError_t prepare(const ContrastivePairs& in, const PreparedPairs& out, cudaStream_t stream) {
  const int64_t blocks = divide_up(in.all_rows(), kRowThreads / 32);
  return launch(prepare_pairs<Stored<T>>, dim3(static_cast<unsigned>(std::max<int64_t>(blocks, 1))),
                dim3(kRowThreads), 0, stream, in, out, rows_aligned<T>(in));
}

PairList list_of(const ContrastivePairs& in) { return {in.pairs, {in.leads[0], in.leads[1]}, in.alone}; }

const float* norms_of(const ContrastivePairs& in, const float* saved, int side) {
  return saved + (side && !in.alone ? in.all_rows(0) : 0);
}

// The rows as the products read them: the inputs or their copies.
template <typename T>
LeadRows<T> lead_rows(const ContrastivePairs& in, T* const copies[2], const float* inv_norms) {
  LeadRows<T> rows{};
  for (int side = 0; side < 2; ++side) {
    const bool copied = copies[side] != nullptr;
    rows.x[side] = {copied ? copies[side] : static_cast<const T*>(in.x[side]),
                    copied ? padded<T>(in.width) : in.width, in.rows[side], in.width};
    rows.group[side] = in.group[side];
    rows.inv_norms[side] = norms_of(in, inv_norms, side);
    rows.size[side] = in.rows[side];
  }
  rows.pairs = list_of(in);
  rows.negatives = in.negatives;
  rows.inv_temperature = in.inv_temperature;
  rows.temperature = in.temperature;
  return rows;
}

template <typename S>
cudaError_t forward(const ContrastivePairs& in, const PairsPlan& plan, const PairsResult& out, void* base,
                    cudaStream_t stream) {
  using T = typename S::Element;
  const ForwardWorkspace<S> w(in, plan, base);
  const int64_t n = in.statistics();
  float* weights = out.saved + in.all_rows();
  PreparedPairs prepared{};
  prepared.inv_norms = out.saved;
  prepared.pitch = padded<T>(in.width);
  prepared.partial = w.partial[0];
  prepared.n_partial = w.all_partial;
  prepared.counts = w.counts;
  prepared.n_counts = n;
  prepared.ticket = w.ticket;
  prepared.copies[0] = w.copies[0];
  prepared.copies[1] = w.copies[1];
  if (const auto error = prepare<T>(in, prepared, stream)) return error;
  if (in.n_pairs == 0) return launch(no_pairs, dim3(1), dim3(1), 0, stream, out.loss, weights);

  const LeadRows<T> rows = lead_rows(in, w.copies, out.saved);
  const PairSums sums{{w.partial[0], w.partial[1]}, w.positive, w.counts, {plan.regions[0], plan.regions[1]}};
  const int64_t blocks = in.n_pairs * plan.regions[0] * plan.regions[1];
  if (const auto error = launch(pair_sums<S>, dim3(static_cast<unsigned>(blocks)), dim3(S::threads),
                                shared_bytes<ProductMemory<S>>(), stream, rows, sums, bounded(in)))
    return error;

  const PairRowSums row_sums{out.statistics, w.amounts,
                             w.terms,        in.negatives ? out.statistics + n : nullptr,
                             w.counts,       w.all_counts};
  const PairPartials partials{{w.partial[0], w.partial[1]}, {w.n_partial[0], w.n_partial[1]}};
  if (const auto error = launch(pair_logsumexps<T>, dim3(static_cast<unsigned>(divide_up(n, kRowThreads))),
                                dim3(kRowThreads), 0, stream, rows, partials, row_sums, n))
    return error;
  if (in.negatives)
    if (const auto error =
            launch(positive_terms<T>, dim3(static_cast<unsigned>(divide_up(n, kRowThreads / 32))),
                   dim3(kRowThreads), 0, stream, rows, row_sums, n))
      return error;

  const PairLossInputs loss{
      list_of(in), {in.rows[0], in.rows[1]}, row_sums,      w.positive, w.n_positive, w.totals,
      w.ticket,    in.inv_temperature,       in.temperature};
  return launch(pairs_loss, dim3(static_cast<unsigned>(in.n_pairs)), dim3(kRowThreads),
                shared_bytes<PairTotalsMemory>(), stream, loss, out.loss, weights, weights + in.n_pairs);
}

// The backward pass, so many pairs, or a block of one, at a time.
template <typename T>
class Backward {
 public:
  Backward(const ContrastivePairs& in, const PairsPlan& plan, const PairsSaved& saved, bool detach_norm,
           const PairsGradients& out, void* base, cudaStream_t stream)
      : in_(in),
        plan_(plan),
        saved_(saved),
        detach_norm_(detach_norm),
        grad_{static_cast<T*>(out.x[0]), static_cast<T*>(out.x[1])},
        moments_(out.moments),
        w_(in, plan, detach_norm, base),
        stream_(stream),
        pitch_(padded<T>(in.width)) {}

  cudaError_t run() {
    PreparedPairs prepared{};
    prepared.known_inv_norms = saved_.saved;
    prepared.pitch = pitch_;
    for (int side = 0; side < 2; ++side) {
      prepared.copies[side] = w_.copies[side];
      prepared.units[side] = w_.units[side];
    }
    if (const auto error = prepare<T>(in_, prepared, stream_)) return error;
    int64_t pair = 0;
    do {
      int64_t begin[2] = {0, 0};
      do {
        begin[1] = 0;
        do {
          if (const auto error = part(pair, begin)) return error;
          begin[1] += plan_.block[1];
        } while (begin[1] < in_.rows[1]);
        begin[0] += plan_.block[0];
      } while (begin[0] < in_.rows[0]);
      pair += plan_.pairs;
    } while (pair < in_.n_pairs);
    return finish();
  }

 private:
  PairsScale scale() const {
    return {saved_.grad_loss, saved_.saved + in_.all_rows() + in_.n_pairs, in_.inv_temperature,
            in_.temperature};
  }

  cudaError_t part(int64_t pair, const int64_t* begin) {
    LeadRows<T> rows = lead_rows(in_, w_.copies, saved_.saved);
    for (int side = 0; side < 2; ++side) {
      rows.begin[side] = begin[side];
      rows.size[side] = std::min(plan_.block[side], in_.rows[side] - begin[side]);
    }
    const int64_t pitch = padded<T>(plan_.block[1]);
    const HeldPairs<T> held{w_.held, pitch, plan_.block[0] * pitch, pair,
                            std::min(plan_.pairs, in_.n_pairs - pair)};
    const float* weights = saved_.saved + in_.all_rows();
    const PairStatistics from{saved_.statistics,
                              in_.negatives ? saved_.statistics + in_.statistics() : nullptr, weights,
                              weights + in_.n_pairs + 1, in_.temperature ? w_.moments + n_moments_ : nullptr};
    const auto error =
        with_shape<T, typename GlobalShapes<T>::Similarities>(plan_.large_similarities, [&](auto shape) {
          using S = decltype(shape);
          const int64_t tiles = held.n * divide_up(rows.size[0], S::m) * divide_up(rows.size[1], S::n);
          n_moments_ += tiles * (S::threads / 32);
          return launch(pair_gradients<S>, dim3(static_cast<unsigned>(tiles)), dim3(S::threads),
                        shared_bytes<ProductMemory<S>>(), stream_, rows, held, from);
        });
    return error ? error : products(rows, held);
  }

  cudaError_t products(const LeadRows<T>& rows, const HeldPairs<T>& held) const {
    PairProducts<T> p{};
    bool first = held.first == 0, last = held.first + held.n >= in_.n_pairs;
    for (int side = 0; side < 2; ++side) {
      p.units[side] = w_.units[side];
      p.inv_norms[side] = norms_of(in_, saved_.saved, side);
      p.grad[side] = grad_[side];
      p.sums[side] = w_.sums[side];
      p.rows[side] = in_.rows[side];
      p.begin[side] = rows.begin[side];
      p.size[side] = rows.size[side];
      first &= rows.begin[side] == 0;
      last &= rows.begin[side] + rows.size[side] >= in_.rows[side];
    }
    p.pitch = pitch_;
    p.width = in_.width;
    p.first = first;
    p.last = last && detach_norm_;
    const bool aligned = multiples_of_16(in_.width * sizeof(T), grad_[0], in_.alone ? nullptr : grad_[1]);
    return with_shape<T, typename GlobalShapes<T>::Products>(plan_.large_products, [&](auto shape) {
      using S = decltype(shape);
      int64_t tiles[2];
      for (int side = 0; side < 2; ++side)
        tiles[side] = side && in_.alone
                          ? 0
                          : in_.leads[side] * divide_up(in_.rows[side], S::m) * divide_up(in_.width, S::n);
      p.tiles_a = static_cast<int>(tiles[0]);
      return launch(pair_products<S>, dim3(static_cast<unsigned>(tiles[0] + tiles[1])), dim3(S::threads),
                    shared_bytes<ProductMemory<S>>(), stream_, list_of(in_), held, p, scale(), aligned);
    });
  }

  cudaError_t finish() const {
    for (int side = 0; side < 2 && !detach_norm_; ++side) {
      const int64_t n = in_.all_rows(side);
      const CompleteRows<Stored<T>> rows{w_.sums[side],
                                         static_cast<const Stored<T>*>(in_.x[side]),
                                         norms_of(in_, saved_.saved, side),
                                         reinterpret_cast<Stored<T>*>(grad_[side]),
                                         n,
                                         pitch_,
                                         in_.width};
      if (const auto error =
              launch(pair_tangents<Stored<T>>, dim3(static_cast<unsigned>(divide_up(n, kRowThreads / 32))),
                     dim3(kRowThreads), 0, stream_, rows, scale()))
        return error;
    }
    if (!in_.temperature) return cudaSuccess;
    return launch(sum_pair_moments, dim3(1), dim3(kRowThreads), shared_bytes<PairMomentMemory>(), stream_,
                  w_.moments, n_moments_, scale(), moments_);
  }

  const ContrastivePairs& in_;
  const PairsPlan& plan_;
  const PairsSaved& saved_;
  bool detach_norm_;
  T* grad_[2];
  double* moments_;
  BackwardWorkspace<T> w_;
  cudaStream_t stream_;
  int64_t pitch_, n_moments_ = 0;
};

int64_t even_block(int64_t rows, int64_t most) {
  const int64_t blocks = std::max<int64_t>(1, divide_up(rows, most));
  return std::min(rows, divide_up(divide_up(rows, blocks), 256) * 256);
}

}  // namespace

PairsPlan plan_contrastive_pairs(const ContrastivePairs& in, Dtype dtype) {
  const bool precise = dtype == Dtype::float32;
  const int64_t element = size_of(dtype), shorter = std::min(in.rows[0], in.rows[1]);
  const auto tiles = [](int64_t x, int64_t y, int m, int n) { return divide_up(x, m) * divide_up(y, n); };
  PairsPlan plan{};
  plan.large_similarities =
      !precise && shorter > 64 && in.n_pairs * tiles(in.rows[0], in.rows[1], 128, 128) >= kManyTiles;
  plan.block[0] = even_block(in.rows[0], kBlockRows);
  plan.block[1] = even_block(in.rows[1], kBlockBytes / kBlockRows / element);
  const bool whole = plan.block[0] == in.rows[0] && plan.block[1] == in.rows[1];
  const int64_t bytes = plan.block[0] * divide_up(plan.block[1], 8) * 8 * element;
  const int64_t fit = whole ? std::max<int64_t>(1, kBlockBytes / std::max<int64_t>(1, bytes)) : 1;
  plan.pairs = std::min(in.n_pairs, fit);
  int64_t product_tiles = 0;
  for (int side = 0; side < (in.alone ? 1 : 2); ++side)
    product_tiles += in.leads[side] * tiles(in.rows[side], in.width, 256, 128);
  plan.large_products = !precise && shorter > 128 && product_tiles >= kManyTiles;
  const int tile = plan.large_similarities ? 128 : 64;
  const auto root = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(in.n_pairs))));
  const int64_t regions = std::max<int64_t>(1, kMostRegions / std::max<int64_t>(1, root));
  for (int side = 0; side < 2; ++side)
    plan.regions[side] = static_cast<int>(std::min<int64_t>(divide_up(in.rows[side], tile), regions));
  return plan;
}

int64_t contrastive_pairs_workspace(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan) {
  int64_t bytes = 0;
  with_similarities(in, dtype, plan, [&](auto shape) {
    bytes = ForwardWorkspace<decltype(shape)>(in, plan, nullptr).bytes;
    return cudaSuccess;
  });
  return bytes;
}

int64_t contrastive_pairs_backward_workspace(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan,
                                             bool detach_norm) {
  int64_t bytes = 0;
  with_product_dtype(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    bytes = BackwardWorkspace<T>(in, plan, detach_norm, nullptr).bytes;
    return cudaSuccess;
  });
  return bytes;
}

cudaError_t contrastive_pairs(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan,
                              const PairsResult& out, void* workspace, cudaStream_t stream) {
  return with_similarities(in, dtype, plan, [&](auto shape) {
    return forward<decltype(shape)>(in, plan, out, workspace, stream);
  });
}

cudaError_t contrastive_pairs_backward(const ContrastivePairs& in, Dtype dtype, const PairsPlan& plan,
                                       const PairsSaved& saved, bool detach_norm, const PairsGradients& out,
                                       void* workspace, cudaStream_t stream) {
  return with_product_dtype(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return Backward<T>(in, plan, saved, detach_norm, out, workspace, stream).run();
  });
}

}  // namespace ecgfast::cuda
