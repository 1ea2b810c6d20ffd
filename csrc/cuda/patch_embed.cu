// Launches of the stem's kernels, and where what they keep lies.
#include <algorithm>

#include "launch.cuh"
#include "patch_embed_backward.cuh"
#include "patch_embed_finish.cuh"
#include "patch_embed_forward.cuh"

namespace ecgfast::cuda {
namespace {

// Takes arrays one after another, each a multiple of 16 bytes.
struct Carve {
  char* base;
  int64_t used = 0;

  void* bytes(int64_t n) {
    void* at = base + used;
    used += (n + 15) / 16 * 16;
    return at;
  }
  float* floats(int64_t n) { return static_cast<float*>(bytes(4 * n)); }
};

// Lays the state out at `base`; returns its bytes.
int64_t lay_out(const StemShape& s, int64_t element, bool slopes, void* base, StemState& state) {
  Carve carve{static_cast<char*>(base)};
  state.patches = carve.bytes(s.batch * s.patches * kPatch * element);
  state.held = static_cast<uint32_t*>(carve.bytes(s.batch * sizeof(uint32_t)));
  state.means = carve.floats(s.batch * kPatch);
  state.spread = slopes ? carve.floats(s.batch * s.width * kPatch) : nullptr;
  state.affine = carve.floats(s.batch * s.width * 2);
  state.rstd = carve.floats(s.batch * s.width);
  state.packed =
      carve.bytes((int64_t{kPatch} + (s.layers - 1) * int64_t{2} * s.channels) * s.width * element);
  state.hidden = carve.bytes(stem_elements_before(s, s.layers - 1) * element);
  state.slopes = slopes ? carve.bytes(stem_elements_before(s, s.layers) * element) : nullptr;
  return carve.used;
}

// How the backward pass splits its sums.
struct Splits {
  int parts;   // of a segment, of layer 0's gradients
  int first;   // of layer 1's weight gradient, by segments
  int others;  // of further layers' weight gradients

  Splits(const StemShape& s, Dtype dtype, int64_t blocks) {
    const auto split = [](int64_t target, int64_t tiles, int64_t most) {
      return static_cast<int>(std::max<int64_t>(1, std::min(target / std::max<int64_t>(1, tiles), most)));
    };
    const bool wide = size_of(dtype) == 4;
    const int64_t slices = divide_up(s.width, 128), down = divide_up(s.channels, 128);
    const int64_t columns = wide ? kFirstInputColumns<float> : kFirstInputColumns<__half>;
    const int64_t first_down = wide ? down : divide_up(s.channels, kFirstGradChannels<__half>);
    parts = split(blocks + blocks / 4, s.batch * 2 * divide_up(s.width, columns),
                  divide_up(stem_rows(s, 1), 128));
    first = split(blocks / 2, first_down * 2 * slices, std::min<int64_t>(s.batch, 32));
    others = split(blocks / 2, down * divide_up(2 * s.width, 128), 32);
  }
};

struct Workspace {
  void* grads;  // of the pre-activations of the layers 1 .. layers - 1
  float *segments, *weights, *biases;
  void* scaled;        // for the signal: layer 0's gradients times the norm's scale
  float* patch_grads;  // for the signal
};

int64_t lay_out(const StemShape& s, const Splits& n, int64_t element, bool for_signal, bool has_bias,
                void* base, Workspace& work) {
  Carve carve{static_cast<char*>(base)};
  const int64_t rows = s.batch * stem_rows(s, 0);
  work.grads = carve.bytes(stem_elements_before(s, s.layers) * element);
  work.segments = carve.floats(s.batch * n.parts * 2 * kPatch * s.width);
  work.weights = carve.floats((n.first + (s.layers - 2) * int64_t{n.others}) * 2 * s.channels *
                              static_cast<int64_t>(s.width));
  work.biases = carve.floats(has_bias ? (s.layers - 1) * int64_t{kBiasSplits} * s.width : 0);
  work.scaled = carve.bytes(for_signal ? rows * s.width * element : 0);
  work.patch_grads = carve.floats(for_signal ? rows * kPatch : 0);
  return carve.used;
}

// Runs launches until one fails.
struct Launches {
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int blocks_y, int threads, size_t shared,
                  const Arguments&... arguments) {
    if (error != cudaSuccess) return;
    if (blocks > INT32_MAX)
      error = cudaErrorInvalidConfiguration;
    else
      error = launch(kernel, dim3(static_cast<unsigned>(blocks), blocks_y), dim3(threads), shared, stream,
                     arguments...);
  }
};

// Blocks for a loop over n items with a stride of the grid.
int64_t loop_blocks(int64_t n) { return std::min<int64_t>(divide_up(n, kThreads), 4096); }

template <typename T>
cudaError_t forward(const StemShape& s, const StemInputs& in, const StemState& state, void* tokens,
                    cudaStream_t stream) {
  using U = Stored<T>;
  Launches run{stream};
  run(stem_pack<U>, loop_blocks(int64_t{2} * s.channels * s.width), s.layers, kThreads, 0, s, in, state);
  run(stem_statistics<U>, s.batch, 1, kStatisticsThreads, shared_bytes<StatisticsMemory<U>>(), s, in, state);
  for (int layer = 1; layer < s.layers; ++layer) {
    const bool last = layer == s.layers - 1;
    LayerOutput out{};
    out.values = last ? tokens : of_layer<T>(state.hidden, s, layer);
    out.slopes = state.slopes ? of_layer<T>(state.slopes, s, layer) : nullptr;
    out.bias = in.biases[layer];
    out.channels = s.channels;
    out.width = last ? s.channels : s.width;
    out.slopes_width = s.width;
    out.aligned = multiples_of_16(out.values, out.width * sizeof(T));
    if (layer == 1)
      run(stem_first<T>,
          s.batch * divide_up(stem_rows(s, 1), kFirstRows) * divide_up(s.channels, kFirstColumns<T>), 1,
          kThreads, shared_bytes<FirstMemory<T>>(), s, state, out);
    else
      run(stem_layer<T>, divide_up(s.batch * stem_rows(s, layer), 128) * divide_up(s.channels, 128), 1,
          kThreads, shared_bytes<LayerMemory<T>>(), s, state, layer, out);
  }
  return run.error;
}

template <typename T>
void grad_layer(Launches& run, const WeightGradient<T>& weight, const InputGradient<T>& input) {
  const int64_t tiles = divide_up(weight.channels, 128) * divide_up(weight.columns, 128);
  const int64_t blocks = divide_up(input.rows, 128) * divide_up(input.weights.columns, 128);
  run(stem_grad_layer<T>, weight.splits * tiles + blocks, 1, kThreads,
      std::max(shared_bytes<InputGradientMemory<T>>(), shared_bytes<WeightGradientMemory<T>>()), weight,
      weight.splits * tiles, input);
}

// Down from the last layer to layer 1: gradients of pre-activations and of weights.
template <typename T>
void descend(Launches& run, const StemShape& s, const StemState& state, const Splits& n,
             const Workspace& work) {
  const int64_t split = int64_t{2} * s.channels * s.width;
  for (int layer = s.layers - 1; layer >= 2; --layer) {
    const int64_t rows = s.batch * stem_rows(s, layer);
    const T* grads = of_layer<T>(work.grads, s, layer);
    WeightGradient<T> weight{};
    weight.grads = grads;
    weight.activations = of_layer<T>(state.hidden, s, layer - 1);
    weight.rows = rows;
    weight.width = s.width;
    weight.columns = 2 * s.width;
    weight.channels = s.channels;
    weight.splits = n.others;
    weight.partial = work.weights + (n.first + (layer - 2) * int64_t{n.others}) * split;
    const Source<T> weights{packed_layer<T>(state, s, layer), 2 * s.width, s.channels, 2 * s.width};
    grad_layer<T>(run, weight,
                  {grads, rows, s.width, weights, of_layer<T>(state.slopes, s, layer - 1),
                   of_layer<T>(work.grads, s, layer - 1)});
  }
}

template <typename U>
void grad_biases(Launches& run, const StemShape& s, const Workspace& work) {
  for (int layer = 1; layer < s.layers; ++layer)
    run(stem_bias_sums<U>, divide_up(s.width, 64), kBiasSplits, kThreads, kThreads * sizeof(float),
        of_layer<U>(work.grads, s, layer), s.batch * stem_rows(s, layer), s.width,
        work.biases + (layer - 1) * int64_t{kBiasSplits} * s.width);
}

template <typename T>
void grad_signal(Launches& run, const StemShape& s, const StemInputs& in, const StemState& state, int parts,
                 const Workspace& work, void* out) {
  const Source<T> weights{packed_layer<T>(state, s, 0), kPatch, s.channels, kPatch};
  grad_layer<T>(
      run, {},
      {static_cast<T*>(work.scaled), s.batch * stem_rows(s, 0), s.width, weights, nullptr, work.patch_grads});
  run(stem_grad_signal<Stored<T>>, s.batch, 1, kThreads, shared_bytes<SignalGradientMemory>(), s, state,
      in.keep, in.lengths, work.segments, parts, work.patch_grads, static_cast<Stored<T>*>(out));
}

template <typename T>
cudaError_t backward(const StemShape& s, const StemInputs& in, const StemState& state, const Splits& n,
                     const Workspace& work, const StemGradients& grads, cudaStream_t stream) {
  using U = Stored<T>;
  Launches run{stream};
  const U* tokens = static_cast<const U*>(grads.tokens);
  run(stem_grad_last<U>, loop_blocks(s.batch * s.tokens * (s.width / kVector<U>)), 1, kThreads, 0, s, state,
      tokens, of_layer<U>(work.grads, s, s.layers - 1), multiples_of_16(tokens, s.channels * sizeof(U)));
  descend<T>(run, s, state, n, work);
  const T* first = of_layer<T>(work.grads, s, 1);
  const int64_t slices = divide_up(s.width, 128);
  run(grads.signal ? stem_grad_first<T, true> : stem_grad_first<T, false>,
      s.batch * n.parts * 2 * divide_up(s.width, kFirstInputColumns<T>), 1, kThreads,
      shared_bytes<FirstInputMemory<T>>(), s, state, first, n.parts, work.segments,
      static_cast<T*>(work.scaled));
  run(stem_grad_weight_first<T>, n.first * 2 * slices * divide_up(s.channels, kFirstGradChannels<T>), 1,
      kThreads, shared_bytes<FirstWeightMemory<T>>(), s, state, first, n.first, work.weights);
  run(stem_norm_gradient<U>, s.batch, 1, kThreads, 0, s, state, work.segments, n.parts);
  if (in.biases[0]) grad_biases<Stored<T>>(run, s, work);
  if (grads.signal) grad_signal<T>(run, s, in, state, n.parts, work, grads.signal);
  const StemSums sums{work.segments, n.parts, work.weights, n.first, n.others, work.biases};
  run(stem_finish<U>, loop_blocks(std::max(int64_t{s.channels} * s.channels, int64_t{4} * kPatch * s.width)),
      s.layers, kThreads, 0, s, sums, grads);
  return run.error;
}

}  // namespace

StemShape stem_shape(int64_t batch, int64_t leads, int64_t samples, int64_t channels, int64_t layers) {
  StemShape s{};
  s.batch = batch;
  s.leads = static_cast<int>(leads);
  s.samples = static_cast<int>(samples);
  s.channels = static_cast<int>(channels);
  s.layers = static_cast<int>(layers);
  s.patches = s.samples / 2;
  s.tokens = s.samples >> s.layers;
  s.width = (s.channels + 7) / 8 * 8;
  return s;
}

int64_t stem_state_elements(const StemShape& shape, Dtype dtype, bool slopes) {
  StemState state;
  return lay_out(shape, size_of(dtype), slopes, nullptr, state) / size_of(dtype);
}

int64_t stem_workspace_bytes(const StemShape& shape, Dtype dtype, bool for_signal, bool has_bias,
                             int blocks) {
  Workspace work;
  return lay_out(shape, Splits(shape, dtype, blocks), size_of(dtype), for_signal, has_bias, nullptr, work);
}

cudaError_t patch_embed(const StemShape& shape, const StemInputs& in, Dtype dtype, void* state, bool slopes,
                        void* tokens, cudaStream_t stream) {
  StemState laid;
  lay_out(shape, size_of(dtype), slopes, state, laid);
  return with_product_dtype(dtype, [&](auto* element) {
    return forward<std::remove_pointer_t<decltype(element)>>(shape, in, laid, tokens, stream);
  });
}

cudaError_t patch_embed_backward(const StemShape& shape, const StemInputs& in, Dtype dtype, const void* state,
                                 void* workspace, const StemGradients& grads, cudaStream_t stream,
                                 int blocks) {
  StemState laid;
  Workspace work;
  const Splits splits(shape, dtype, blocks);
  lay_out(shape, size_of(dtype), true, const_cast<void*>(state), laid);
  lay_out(shape, splits, size_of(dtype), grads.signal != nullptr, in.biases[0] != nullptr, workspace, work);
  return with_product_dtype(dtype, [&](auto* element) {
    return backward<std::remove_pointer_t<decltype(element)>>(shape, in, laid, splits, work, grads, stream);
  });
}

}  // namespace ecgfast::cuda
