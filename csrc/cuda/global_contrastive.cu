// Plan, workspaces and launches of the global contrastive kernels.
#include <algorithm>

#include "global_contrastive_backward.cuh"
#include "launch.cuh"
#include "workspace.h"

namespace ecgfast::cuda {
namespace {

constexpr int kMostRegions = 32;            // of a side: bounds the forward workspace
constexpr int64_t kManyTiles = 96;          // enough large tiles to occupy a large GPU
constexpr int64_t kBlockRows = 8192;        // of a, and of b for 16-bit inputs
constexpr int64_t kBlockBytes = 128 << 20;  // of h, hence

template <typename T>
bool rows_aligned(const GlobalContrastive& in) {
  return multiples_of_16(in.width * sizeof(T), in.x[0], in.x[1]);
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
bool bounded(const GlobalContrastive& in) {
  return !in.temperature && 2 * in.inv_temperature <= kMostBounded;
}

// f(the shape of the forward pass's tiles).
template <typename F>
cudaError_t with_similarities(const GlobalContrastive& in, Dtype dtype, const GlobalPlan& plan, F f) {
  return with_product_dtype(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return with_shape<T, typename GlobalShapes<T>::Similarities>(plan.large_similarities && bounded(in), f);
  });
}

// `S`: the shape of the tiles of similarities.
template <typename S>
struct ForwardWorkspace {
  using T = typename S::Element;
  T* copies[2] = {nullptr, nullptr};
  Partial* partial[2];
  int n_partial[2], n_positive;
  float* positive;
  LossSums* sums;
  int* counts;
  unsigned* ticket;
  int64_t bytes;

  ForwardWorkspace(const GlobalContrastive& in, const GlobalPlan& plan, void* base) {
    Workspace parts(base);
    const int64_t rows = in.rows[0] + in.rows[1];
    for (int side = 0; side < 2; ++side) {
      if (!rows_aligned<T>(in)) copies[side] = parts.take<T>(in.rows[side] * padded<T>(in.width));
      n_partial[side] = plan.regions[1 - side] * (side == 0 ? S::warps_n : S::warps_m);
      partial[side] = parts.take<Partial>(n_partial[side] * in.rows[side]);
    }
    n_positive = plan.regions[0] * plan.regions[1] * S::warps_m * S::warps_n;
    positive = parts.take<float>(n_positive);
    sums = parts.take<LossSums>(loss_blocks(in));
    counts = parts.take<int>(rows);
    ticket = parts.take<unsigned>(1);
    bytes = parts.used();
  }
  static int64_t loss_blocks(const GlobalContrastive& in) {
    return std::max<int64_t>(1, divide_up(in.rows[0] + in.rows[1], kRowThreads));
  }
};

// Unit rows of both sides (and copies of the rows where they are not at multiples of 16 bytes); h of a block,
// at most 128 MiB; float32 sums [rows, D], of one block of rows of a where b has several blocks, and of all
// rows of b where a has several; of both sides with the true norm.
template <typename T>
struct BackwardWorkspace {
  T *copies[2] = {nullptr, nullptr}, *units[2], *h;
  float *sums[2], *shares;
  float2* moments;
  int64_t bytes;

  BackwardWorkspace(const GlobalContrastive& in, const GlobalPlan& plan, bool detach_norm, void* base) {
    Workspace parts(base);
    const int64_t pitch = padded<T>(in.width);
    const bool several[2] = {plan.block[0] < in.rows[0], plan.block[1] < in.rows[1]};
    for (int side = 0; side < 2; ++side) {
      if (!rows_aligned<T>(in)) copies[side] = parts.take<T>(in.rows[side] * pitch);
      units[side] = parts.take<T>(in.rows[side] * pitch);
      const int64_t rows = side == 0 ? plan.block[0] : in.rows[1];
      sums[side] = several[1 - side] || !detach_norm ? parts.take<float>(rows * pitch) : nullptr;
    }
    shares = parts.take<float>(in.rows[0] + in.rows[1]);
    h = parts.take<T>(plan.block[0] * padded<T>(plan.block[1]));
    moments = in.temperature ? parts.take<float2>(n_moments(in, plan)) : nullptr;
    bytes = parts.used();
  }

  // At most: one for each warp of a tile of similarities.
  static int64_t n_moments(const GlobalContrastive& in, const GlobalPlan& plan) {
    using S = typename GlobalShapes<T>::Small;
    int64_t n = S::threads / 32;
    for (int side = 0; side < 2; ++side)
      n *= divide_up(in.rows[side], std::max<int64_t>(1, plan.block[side])) *
           divide_up(plan.block[side], S::m);
    return n;
  }
};

template <typename T>
cudaError_t prepare(const GlobalContrastive& in, const PreparedRows& out, cudaStream_t stream) {
  const int64_t blocks = divide_up(in.rows[0] + in.rows[1], kRowThreads / 32);
  return launch(prepare_rows<Stored<T>>, dim3(static_cast<unsigned>(std::max<int64_t>(blocks, 1))),
                dim3(kRowThreads), 0, stream, in, out, rows_aligned<T>(in));
}

// The rows as the products read them: the inputs or their copies.
template <typename T>
Similarities<T> similarities(const GlobalContrastive& in, T* const copies[2], const float* inv_norms) {
  Similarities<T> s{};
  for (int side = 0; side < 2; ++side) {
    const bool copied = copies[side] != nullptr;
    s.x[side] = {copied ? copies[side] : static_cast<const T*>(in.x[side]),
                 copied ? padded<T>(in.width) : in.width, in.rows[side], in.width};
    s.group[side] = in.group[side];
    s.inv_norms[side] = inv_norms + (side ? in.rows[0] : 0);
  }
  s.inv_temperature = in.inv_temperature;
  s.temperature = in.temperature;
  return s;
}

template <typename S>
cudaError_t forward(const GlobalContrastive& in, const GlobalPlan& plan, const GlobalResult& out, void* base,
                    cudaStream_t stream) {
  const ForwardWorkspace<S> w(in, plan, base);
  PreparedRows rows{};
  rows.inv_norms = out.saved;
  rows.pitch = padded<typename S::Element>(in.width);
  rows.counts = w.counts;
  rows.ticket = w.ticket;
  for (int side = 0; side < 2; ++side) rows.copies[side] = w.copies[side];
  if (const auto error = prepare<typename S::Element>(in, rows, stream)) return error;

  const ForwardSums sums{
      {w.partial[0], w.partial[1]}, w.positive, w.counts, {plan.regions[0], plan.regions[1]}};
  if (const auto error = launch(similarity_sums<S>, dim3(plan.regions[0] * plan.regions[1]), dim3(S::threads),
                                shared_bytes<ProductMemory<S>>(), stream,
                                similarities(in, w.copies, out.saved), sums, bounded(in)))
    return error;

  const LossInputs loss{{in.rows[0], in.rows[1]},
                        {w.partial[0], w.partial[1]},
                        {w.n_partial[0], w.n_partial[1]},
                        w.n_positive,
                        w.positive,
                        w.counts,
                        w.sums,
                        w.ticket,
                        in.inv_temperature,
                        in.temperature};
  return launch(global_loss, dim3(static_cast<unsigned>(w.loss_blocks(in))), dim3(kRowThreads),
                shared_bytes<LossMemory>(), stream, loss, out);
}

// The backward pass, block by block.
template <typename T>
class Backward {
 public:
  Backward(const GlobalContrastive& in, const GlobalPlan& plan, const GlobalSaved& saved, bool detach_norm,
           const GlobalGradients& out, void* base, cudaStream_t stream)
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
    PreparedRows rows{};
    rows.known_inv_norms = saved_.saved;
    rows.positives = saved_.saved + in_.rows[0] + in_.rows[1];
    rows.shares = w_.shares;
    rows.pitch = pitch_;
    for (int side = 0; side < 2; ++side) {
      rows.copies[side] = w_.copies[side];
      rows.units[side] = w_.units[side];
      rows.lse[side] = saved_.lse[side];
    }
    if (const auto error = prepare<T>(in_, rows, stream_)) return error;
    int64_t begin[2] = {0, 0};
    do {
      begin[1] = 0;
      do {
        if (const auto error = block(begin)) return error;
        begin[1] += plan_.block[1];
      } while (begin[1] < in_.rows[1]);
      if (const auto error = finish(begin[0], size(0, begin))) return error;
      begin[0] += plan_.block[0];
    } while (begin[0] < in_.rows[0]);
    if (!in_.temperature) return cudaSuccess;
    return launch(sum_moments, dim3(1), dim3(kRowThreads), shared_bytes<MomentMemory>(), stream_, w_.moments,
                  n_moments_, saved_.lse[0], in_.rows[0], in_.rows[1], scale(), moments_);
  }

 private:
  int64_t size(int side, const int64_t* begin) const {
    return std::min(plan_.block[side], in_.rows[side] - begin[side]);
  }
  const float* inv_norms(int side, int64_t row) const {
    return saved_.saved + (side ? in_.rows[0] : 0) + row;
  }
  ProductScale scale() const {
    return {saved_.grad_loss, saved_.saved + 2 * (in_.rows[0] + in_.rows[1]), in_.inv_temperature,
            in_.temperature};
  }

  cudaError_t block(const int64_t* begin) {
    Similarities<T> rows = similarities(in_, w_.copies, saved_.saved);
    BlockGradients<T> out{};
    const int64_t pitch = padded<T>(plan_.block[1]);
    for (int side = 0; side < 2; ++side) {
      rows.x[side].data += begin[side] * rows.x[side].pitch;
      rows.x[side].rows = size(side, begin);
      rows.group[side] += begin[side];
      rows.inv_norms[side] += begin[side];
      out.shares[side] = w_.shares + (side ? in_.rows[0] : 0) + begin[side];
    }
    out.scale = saved_.saved + 2 * (in_.rows[0] + in_.rows[1]) + 1;
    out.data = w_.h;
    out.pitch = pitch;
    if (in_.temperature) out.moments = w_.moments + n_moments_;
    const auto error =
        with_shape<T, typename GlobalShapes<T>::Similarities>(plan_.large_similarities, [&](auto shape) {
          using S = decltype(shape);
          const int64_t tiles = divide_up(rows.x[0].rows, S::m) * divide_up(rows.x[1].rows, S::n);
          n_moments_ += tiles * (S::threads / 32);
          return launch(similarity_gradients<S>, dim3(static_cast<unsigned>(tiles)), dim3(S::threads),
                        shared_bytes<ProductMemory<S>>(), stream_, rows, out);
        });
    return error ? error : products({w_.h, pitch, rows.x[0].rows, rows.x[1].rows}, begin);
  }

  cudaError_t products(const Matrix<T>& h, const int64_t* begin) const {
    BlockProduct<T> sides[2];
    for (int side = 0; side < 2; ++side) {
      const int other = 1 - side;
      BlockProduct<T>& p = sides[side];
      p.units = {w_.units[other] + begin[other] * pitch_, pitch_, size(other, begin), in_.width};
      p.inv_norms = inv_norms(side, begin[side]);
      p.grad = grad_[side] + begin[side] * in_.width;
      p.sums = w_.sums[side];
      if (side == 1 && p.sums) p.sums += begin[1] * pitch_;
      p.first = begin[other] == 0;
      p.last = detach_norm_ && begin[other] + plan_.block[other] >= in_.rows[other];
    }
    const bool aligned = multiples_of_16(in_.width * sizeof(T), grad_[0], grad_[1]);
    return with_shape<T, typename GlobalShapes<T>::Products>(plan_.large_products, [&](auto shape) {
      using S = decltype(shape);
      const int64_t across = divide_up(in_.width, S::n);
      const int64_t tiles[2] = {divide_up(h.rows, S::m) * across, divide_up(h.columns, S::m) * across};
      return launch(gradient_products<S>, dim3(static_cast<unsigned>(tiles[0] + tiles[1])), dim3(S::threads),
                    shared_bytes<ProductMemory<S>>(), stream_, h, sides[0], sides[1], scale(),
                    static_cast<int>(tiles[0]), aligned);
    });
  }

  TangentRows<Stored<T>> complete(int side, int64_t begin, int64_t rows) const {
    return {w_.sums[side],
            static_cast<const Stored<T>*>(in_.x[side]) + begin * in_.width,
            inv_norms(side, begin),
            reinterpret_cast<Stored<T>*>(grad_[side]) + begin * in_.width,
            rows,
            pitch_,
            in_.width};
  }

  // With the true norm, the gradients of a block of rows of a, and with the last one those of b.
  cudaError_t finish(int64_t begin, int64_t rows) const {
    if (detach_norm_) return cudaSuccess;
    const int64_t rows_b = begin + rows == in_.rows[0] ? in_.rows[1] : 0;
    return launch(tangents<Stored<T>>,
                  dim3(static_cast<unsigned>(divide_up(rows + rows_b, kRowThreads / 32))), dim3(kRowThreads),
                  0, stream_, complete(0, begin, rows), complete(1, 0, rows_b), scale());
  }

  const GlobalContrastive& in_;
  const GlobalPlan& plan_;
  const GlobalSaved& saved_;
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

GlobalPlan plan_global_contrastive(const GlobalContrastive& in, Dtype dtype) {
  const bool precise = dtype == Dtype::float32;
  const auto tiles = [](int64_t x, int64_t y, int m, int n) { return divide_up(x, m) * divide_up(y, n); };
  GlobalPlan plan{};
  plan.large_similarities = !precise && tiles(in.rows[0], in.rows[1], 128, 128) >= kManyTiles;
  plan.block[0] = even_block(in.rows[0], kBlockRows);
  plan.block[1] = even_block(in.rows[1], kBlockBytes / kBlockRows / size_of(dtype));
  plan.large_products =
      !precise &&
      tiles(plan.block[0], in.width, 256, 128) + tiles(plan.block[1], in.width, 256, 128) >= kManyTiles;
  const int tile = plan.large_similarities ? 128 : 64;
  for (int side = 0; side < 2; ++side)
    plan.regions[side] = static_cast<int>(std::min<int64_t>(divide_up(in.rows[side], tile), kMostRegions));
  return plan;
}

int64_t global_contrastive_workspace(const GlobalContrastive& in, Dtype dtype, const GlobalPlan& plan) {
  int64_t bytes = 0;
  with_similarities(in, dtype, plan, [&](auto shape) {
    bytes = ForwardWorkspace<decltype(shape)>(in, plan, nullptr).bytes;
    return cudaSuccess;
  });
  return bytes;
}

int64_t global_contrastive_backward_workspace(const GlobalContrastive& in, Dtype dtype,
                                              const GlobalPlan& plan, bool detach_norm) {
  int64_t bytes = 0;
  with_product_dtype(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    bytes = BackwardWorkspace<T>(in, plan, detach_norm, nullptr).bytes;
    return cudaSuccess;
  });
  return bytes;
}

cudaError_t global_contrastive(const GlobalContrastive& in, Dtype dtype, const GlobalPlan& plan,
                               const GlobalResult& out, void* workspace, cudaStream_t stream) {
  return with_similarities(in, dtype, plan, [&](auto shape) {
    return forward<decltype(shape)>(in, plan, out, workspace, stream);
  });
}

cudaError_t global_contrastive_backward(const GlobalContrastive& in, Dtype dtype, const GlobalPlan& plan,
                                        const GlobalSaved& saved, bool detach_norm,
                                        const GlobalGradients& out, void* workspace, cudaStream_t stream) {
  return with_product_dtype(dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    return Backward<T>(in, plan, saved, detach_norm, out, workspace, stream).run();
  });
}

}  // namespace ecgfast::cuda
