// Grouped convolution over time through the frequency domain, one vector of a group's channels at a time: the
// spectra of a group's rows, the spectra of the taps of one vector of channels, and their products stay in
// L2. Compiled once per ISA.
#include "activations.h"
#include "fft.h"
#include "kernels.h"
#include "transpose.h"

namespace ecgfast {
namespace {

// Rows of a product held in registers: two accumulators each.
#if defined(__AVX512F__)
constexpr int kProductRows = 8;
#else
constexpr int kProductRows = 4;
#endif

constexpr int64_t kTileBlocks = 4;
// In the frequency domain an output's error is relative to its row's largest values. An output is summed
// directly where the squares that it is made from are below this share of the row's mean: beside padding, or
// where the values of a row differ by orders of magnitude.
constexpr double kWeak = 1.0 / 16;
// Elements of a sequence lie too far apart for the machine's prefetchers: so many ahead are fetched.
constexpr int64_t kFetchAhead = 16;

// Complex c[i] = sum_p a[i, p] b[p], or conj(a) b, for R rows: vectors b and c (real, then imaginary part),
// scalars a.
template <int R, bool Conj, bool Add, class T>
static inline __attribute__((always_inline)) void product_block(int64_t k, const T* a, int64_t row,
                                                                int64_t col, int64_t imag, const T* b, T* c) {
  constexpr int V = kLanes<T>;
  Vec<T> re[R] = {}, im[R] = {};
  if constexpr (Add) {
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      re[i] = load(c + 2 * V * i);
      im[i] = load(c + 2 * V * i + V);
    }
  }
  for (int64_t p = 0; p < k; ++p) {
    const Vec<T> br = load(b + 2 * V * p), bi = load(b + 2 * V * p + V);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const T ar = a[i * row + p * col], ai = a[i * row + p * col + imag];
      re[i] += ar * br;
      im[i] += ar * bi;
      if constexpr (Conj) {
        re[i] += ai * bi;
        im[i] -= ai * br;
      } else {
        re[i] -= ai * bi;
        im[i] += ai * br;
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    store(c + 2 * V * i, re[i]);
    store(c + 2 * V * i + V, im[i]);
  }
}

template <int R, bool Conj, bool Add, class T>
static void product_rest(int64_t m, int64_t k, const T* a, int64_t row, int64_t col, int64_t imag, const T* b,
                         T* c) {
  if (m == R) {
    product_block<R, Conj, Add>(k, a, row, col, imag, b, c);
  } else if constexpr (R > 1) {
    product_rest<R - 1, Conj, Add>(m, k, a, row, col, imag, b, c);
  }
}

template <bool Conj, bool Add, class T>
static void product(int64_t m, int64_t k, const T* a, int64_t row, int64_t col, int64_t imag, const T* b,
                    T* c) {
  constexpr int R = kProductRows;
  int64_t i = 0;
  for (; i + R <= m; i += R)
    product_block<R, Conj, Add>(k, a + i * row, row, col, imag, b, c + i * 2 * kLanes<T>);
  if (i < m) product_rest<R - 1, Conj, Add>(m - i, k, a + i * row, row, col, imag, b, c + i * 2 * kLanes<T>);
}

// Scratch of one thread. Strides from one frequency to the next are odd numbers of vectors, lest a spectrum
// that is written frequency by frequency falls on a few sets of the cache.
template <class T>
struct Scratch {
  static constexpr int64_t V = kLanes<T>;
  int64_t padded, group_stride, tap_stride, row_stride, rows_size, size = 0;
  T *group, *taps, *rows, *time, *bias_sum, *energy, *nearby;

  Scratch(const ConvArgs& a, void* base) : next_(static_cast<char*>(base)) {
    const int64_t frequencies = a.plan.n / 2 + 1;
    padded = round_up(a.C, V);
    group_stride = a.row_chunk * 2 * padded + V;
    tap_stride = a.C * 2 * V + V;
    row_stride = a.row_chunk * 2 * V + V;
    group = take(frequencies * group_stride);
    taps = take(frequencies * tap_stride);
    const int64_t tile = padded / V < kTileBlocks ? padded / V : kTileBlocks;
    rows_size = frequencies * row_stride;
    rows = take(tile * rows_size);
    time = take(tile * a.plan.n * V);
    bias_sum = take(padded);
    energy = take(a.row_chunk * a.plan.n);
    nearby = take(a.C * a.taps);
  }

 private:
  char* next_;
  T* take(int64_t n) {
    const int64_t bytes = round_up(n * static_cast<int64_t>(sizeof(T)), 64);
    char* at = next_;
    if (next_) next_ += bytes;
    size += bytes;
    return reinterpret_cast<T*>(at);
  }
};

// A unit of work is one vector of channels of one group, a block: outputs forward, inputs backward. Units
// that follow each other in a group are worked on as a tile, so that memory is read and written in longer
// pieces.
template <class In>
struct Worker {
  using T = Acc<In>;
  static constexpr int64_t V = kLanes<T>;
  const ConvArgs& a;
  Scratch<T> w;
  const int64_t n_rows = a.B * a.segments, blocks = w.padded / V, n = a.plan.n;
  // With one segment the transform may wrap where nothing is read; with several, a row reads its
  // surroundings.
  const bool single = a.segments == 1;
  const T scale = T(0.25) / T(n);  // real_fft doubles both factors, real_ifft multiplies by n
  int64_t held_group = -1, held_chunk = -1;

  struct Tile {
    int64_t group, block, count;
  };
  struct Row {
    int64_t b, begin, end;  // elements of sequence b
  };

  // The tile of the units from i on that belong to one group and come before `end`.
  Tile tile(int64_t i, int64_t end) const {
    const int64_t block = i % blocks;
    int64_t count = blocks - block < end - i ? blocks - block : end - i;
    count = count < kTileBlocks ? count : kTileBlocks;
    return {i / blocks, block, count};
  }
  Row row(int64_t r) const {
    const int64_t begin = r % a.segments * a.segment, end = begin + a.segment;
    return {r / a.segments, begin, end < a.N ? end : a.N};
  }
  int64_t rows_in(int64_t chunk) const {
    const int64_t left = n_rows - chunk * a.row_chunk;
    return left < a.row_chunk ? left : a.row_chunk;
  }
  int64_t lanes(int64_t block) const { return a.C - block * V < V ? a.C - block * V : V; }
  // Of element t of sequence b in a [B, N, E] tensor, at a group's block.
  int64_t at(int64_t group, int64_t block, int64_t b, int64_t t) const {
    return (b * a.N + t) * a.groups * a.C + group * a.C + block * V;
  }
  T* time(int64_t j) const { return w.time + j * n * V; }
  T* rows(int64_t j) const { return w.rows + j * w.rows_size; }

  const In* in(const void* p, int64_t offset) const { return static_cast<const In*>(p) + offset; }

  // How far a row's window reaches back, and where a row's first element comes out.
  int64_t reach(bool backward) const { return backward ? a.taps - 1 - a.left : a.left; }
  int64_t origin(bool backward) const { return single ? a.taps - 1 - reach(backward) : a.taps - 1; }
  Row window(const Row& r, bool backward) const {
    if (single) return {r.b, 0, a.N};
    const int64_t begin = r.begin - reach(backward);
    return {r.b, begin, begin + a.segment + a.taps - 1};
  }

  // time(j) = value(offset in [B, N, E], channels) for a tile's blocks j at the elements of a window that lie
  // in the sequence, 0 elsewhere.
  template <class F>
  void fill(Tile tile, const Row& window, F value) const {
    const int64_t begin = window.begin > 0 ? window.begin : 0, end = window.end < a.N ? window.end : a.N;
    const int64_t before = begin - window.begin, after = end - window.begin;
    for (int64_t j = 0; j < tile.count; ++j) {
      memset(time(j), 0, sizeof(T) * V * before);
      memset(time(j) + after * V, 0, sizeof(T) * V * (n - after));
    }
    for (int64_t t = begin; t < end; ++t)
      for (int64_t j = 0; j < tile.count; ++j) {
        const int64_t block = tile.block + j;
        store(time(j) + (t - window.begin) * V, value(at(tile.group, block, window.b, t), lanes(block)));
      }
  }

  void fetch(const void* p, int64_t i) const { __builtin_prefetch(in(p, i + kFetchAhead * a.groups * a.C)); }
  void fetch_to_write(const void* p, int64_t i) const {
    __builtin_prefetch(in(p, i + kFetchAhead * a.groups * a.C), 1);
  }

  // Spectra of all channels of a group, for a chunk of rows, unless they are held already. fill_row(tile,
  // row, its number in the chunk) sets time(j).
  template <class F>
  void group_spectra(int64_t group, int64_t chunk, F fill_row) {
    if (held_group == group && held_chunk == chunk) return;
    held_group = group;
    held_chunk = chunk;
    for (int64_t i = 0; i < rows_in(chunk); ++i)
      for (int64_t block = 0; block < blocks; block += kTileBlocks) {
        const Tile part = tile(group * blocks + block, (group + 1) * blocks);
        fill_row(part, row(chunk * a.row_chunk + i), i);
        for (int64_t j = 0; j < part.count; ++j)
          real_fft(a.plan, time(j), w.group + i * 2 * w.padded + (block + j) * V, w.group_stride, w.padded);
      }
  }

  // Spectra of the taps between a block's channels and every channel of the other side. Forward, the block
  // holds output channels and the taps are reversed.
  void tap_spectra(int64_t group, int64_t block, bool backward) const {
    const int64_t out_step = a.C * a.kernel, lane_step = backward ? a.kernel : out_step;
    const int64_t other_step = backward ? out_step : a.kernel;
    const In* base =
        static_cast<const In*>(a.weight) + group * a.C * out_step + block * V * lane_step + a.first_tap;
    for (int64_t c = 0; c < a.C; ++c) {
      for (int64_t k = 0; k < a.taps; k += V) {
        const int64_t count = a.taps - k < V ? a.taps - k : V;
        Vec<T> tile[V] = {};
        for (int64_t l = 0; l < lanes(block); ++l) {
          const In* from = base + c * other_step + l * lane_step + k;
          if (c + 1 < a.C) __builtin_prefetch(from + other_step);
          tile[l] = load_some(from, count);
        }
        transpose<T>(tile);
        for (int64_t i = 0; i < count; ++i)
          store(w.time + (backward ? k + i : a.taps - 1 - k - i) * V, tile[i]);
      }
      memset(w.time + a.taps * V, 0, sizeof(T) * V * (n - a.taps));
      real_fft(a.plan, w.time, w.taps + c * 2 * V, w.tap_stride, V);
    }
  }

  void multiply_rows(int64_t chunk, T* to) const {
    for (int64_t f = 0; f <= n / 2; ++f)
      product<false, false>(rows_in(chunk), a.C, w.group + f * w.group_stride, 2 * w.padded, int64_t{1},
                            w.padded, w.taps + f * w.tap_stride, to + f * w.row_stride);
  }

  // consume(offset in [B, N, E], block, the vector there) for all elements of a chunk's rows; before it
  // mend(i, row i) may change time(j), where element t lies at origin + t - r.begin.
  template <class G, class F>
  void rows_out(Tile tile, int64_t chunk, bool backward, G mend, F consume) const {
    for (int64_t i = 0; i < rows_in(chunk); ++i) {
      const Row r = row(chunk * a.row_chunk + i);
      for (int64_t j = 0; j < tile.count; ++j)
        real_ifft(a.plan, rows(j) + i * 2 * V, w.row_stride, V, time(j));
      mend(i, r);
      const int64_t first = origin(backward) - r.begin;
      for (int64_t t = r.begin; t < r.end; ++t)
        for (int64_t j = 0; j < tile.count; ++j) {
          const int64_t block = tile.block + j;
          consume(at(tile.group, block, r.b, t), block, load(time(j) + (first + t) * V) * scale);
        }
    }
  }

  // The squares of each element of a window, of a tile's channels in time(j), added to those of the tiles
  // before it in the group.
  void add_energy(Tile tile, T* energy) const {
    for (int64_t t = 0; t < n; ++t) {
      Vec<T> sum = {};
      for (int64_t j = 0; j < tile.count; ++j) {
        const Vec<T> v = load(time(j) + t * V);
        sum += v * v;
      }
      energy[t] = (tile.block ? energy[t] : T(0)) + reduce_add<T>(sum);
    }
  }

  // Sums directly what a row's weak outputs are, in time(j).
  void mend_weak(Tile tile, const Row& r, const T* energy) const {
    double total = 0, near = 0;
    for (int64_t t = 0; t < n; ++t) total += double(energy[t]);
    const double least = kWeak * total * double(a.taps) / double(n);
    int64_t nonzero = 0;
    const auto add = [&](int64_t t, int sign) {
      if (t < 0 || t >= n) return;
      near += sign * double(energy[t]);
      nonzero += energy[t] != 0 ? sign : 0;
    };
    // The elements of an output begin `left` before it; a window of several begins that far before the row.
    const int64_t first = single ? -a.left : 0;
    for (int64_t k = 0; k < a.taps - 1; ++k) add(first + k, 1);
    for (int64_t t = 0; t < r.end - r.begin; ++t) {
      add(first + t + a.taps - 1, 1);
      if (near < least) sum_directly(tile, r.b, r.begin + t, nonzero > 0, origin(false) + t);
      add(first + t, -1);
    }
  }

  // Output t of sequence b to time(j) at `to`; 0 unless anything that it is made from differs from 0.
  void sum_directly(Tile tile, int64_t b, int64_t t, bool any, int64_t to) const {
    for (int64_t k = 0; any && k < a.taps; ++k) {
      const int64_t from = t - a.left + k;
      const bool inside = from >= 0 && from < a.N;
      for (int64_t block = 0; block < blocks; ++block) {
        Vec<T> x = {};
        if (inside) x = load_some(in(a.x, at(tile.group, block, b, from)), lanes(block));
        for (int64_t l = 0; l < lanes(block); ++l) w.nearby[(block * V + l) * a.taps + k] = x[l];
      }
    }
    for (int64_t j = 0; j < tile.count; ++j) {
      const int64_t block = tile.block + j;
      T* out = time(j) + to * V;
      store(out, Vec<T>{});
      for (int64_t l = 0; any && l < lanes(block); ++l) {
        const In* weight = in(a.weight, (tile.group * a.C + block * V + l) * a.C * a.kernel + a.first_tap);
        Vec<T> sum = {};
        for (int64_t c = 0; c < a.C; ++c)
          for (int64_t k = 0; k < a.taps; k += V) {
            const int64_t count = a.taps - k < V ? a.taps - k : V;
            sum += load_some(w.nearby + c * a.taps + k, count) * load_some(weight + c * a.kernel + k, count);
          }
        out[l] = reduce_add<T>(sum) / scale;
      }
    }
  }

  void forward(Tile tile, int64_t chunk) {
    group_spectra(tile.group, chunk, [this](Tile part, const Row& r, int64_t i) {
      fill(part, window(r, false), [this](int64_t i, int64_t count) {
        fetch(a.x, i);
        return load_some(in(a.x, i), count);
      });
      add_energy(part, w.energy + i * n);
    });
    for (int64_t j = 0; j < tile.count; ++j) {
      tap_spectra(tile.group, tile.block + j, false);
      multiply_rows(chunk, rows(j));
    }
    const auto mend = [&](int64_t i, const Row& r) { mend_weak(tile, r, w.energy + i * n); };
    rows_out(tile, chunk, false, mend, [&](int64_t i, int64_t block, Vec<T> v) {
      fetch(a.x, i);
      fetch_to_write(a.out, i);
      const int64_t count = lanes(block);
      v += load_some(in(a.bias, tile.group * a.C + block * V), count);
      if (a.conv) {
        fetch_to_write(a.conv, i);
        store_some(static_cast<In*>(a.conv) + i, v, count);
      }
      store_some(static_cast<In*>(a.out) + i, load_some(in(a.x, i), count) + gelu(v), count);
    });
  }

  // Spectra of the gradients at the convolution's outputs; on the way their sums, the gradients of the bias.
  void grad_spectra(int64_t group, int64_t chunk, bool sums) {
    group_spectra(group, chunk, [&](Tile part, const Row& r, int64_t) {
      const Row from = window(r, true);
      fill(part, from, [this](int64_t i, int64_t count) {
        fetch(a.grad_out, i);
        fetch(a.conv, i);
        const Vec<T> grad = load_some(in(a.grad_out, i), count);
        return grad * gelu_grad(load_some(in(a.conv, i), count));
      });
      for (int64_t j = 0; sums && j < part.count; ++j) {
        Vec<T> sum = {};
        for (int64_t t = r.begin; t < r.end; ++t) sum += load(time(j) + (t - from.begin) * V);
        T* total = w.bias_sum + (part.block + j) * V;
        store(total, load(total) + sum);
      }
    });
  }

  // One chunk's at a time where there are several, so the taps' spectra are computed again for each: a chunk
  // is hundreds of rows, beside which they cost little.
  void backward_rows(Tile tile, bool sums) {
    for (int64_t chunk = 0; chunk * a.row_chunk < n_rows; ++chunk) {
      grad_spectra(tile.group, chunk, sums);
      for (int64_t j = 0; j < tile.count; ++j) {
        tap_spectra(tile.group, tile.block + j, true);
        multiply_rows(chunk, rows(j));
      }
      const auto keep = [](int64_t, const Row&) {};
      rows_out(tile, chunk, true, keep, [&](int64_t i, int64_t block, Vec<T> v) {
        fetch(a.grad_out, i);
        fetch_to_write(a.grad_x, i);
        const int64_t count = lanes(block);
        store_some(static_cast<In*>(a.grad_x) + i, load_some(in(a.grad_out, i), count) + v, count);
      });
    }
  }

  // Spectra of a tile's channels of the rows' own elements.
  void input_spectra(Tile tile, int64_t chunk) const {
    for (int64_t i = 0; i < rows_in(chunk); ++i) {
      fill(tile, row(chunk * a.row_chunk + i), [this](int64_t at, int64_t count) {
        fetch(a.x, at);
        return load_some(in(a.x, at), count);
      });
      for (int64_t j = 0; j < tile.count; ++j)
        real_fft(a.plan, time(j), rows(j) + i * 2 * V, w.row_stride, V);
    }
  }

  // Correlations of the rows' elements with the gradients around them, summed over rows frequency by
  // frequency.
  template <bool Add>
  void correlate(int64_t n_chunk, const T* inputs) const {
    for (int64_t f = 0; f <= n / 2; ++f)
      product<true, Add>(a.C, n_chunk, w.group + f * w.group_stride, int64_t{1}, 2 * w.padded, w.padded,
                         inputs + f * w.row_stride, w.taps + f * w.tap_stride);
  }

  void taps_out(int64_t group, int64_t block) const {
    for (int64_t c = 0; c < a.C; ++c) {
      real_ifft(a.plan, w.taps + c * 2 * V, w.tap_stride, V, w.time);
      store_taps(static_cast<In*>(a.grad_weight) + ((group * a.C + c) * a.C + block * V) * a.kernel,
                 lanes(block));
    }
  }

  void backward_taps(Tile tile, bool sums) {
    if (n_rows == a.row_chunk) {  // all blocks' inputs from one reading
      grad_spectra(tile.group, 0, sums);
      input_spectra(tile, 0);
      for (int64_t j = 0; j < tile.count; ++j) {
        correlate<false>(n_rows, rows(j));
        taps_out(tile.group, tile.block + j);
      }
      return;
    }
    for (int64_t j = 0; j < tile.count; ++j) {
      const Tile one{tile.group, tile.block + j, 1};
      for (int64_t chunk = 0; chunk * a.row_chunk < n_rows; ++chunk) {
        grad_spectra(tile.group, chunk, sums && j == 0);
        input_spectra(one, chunk);
        chunk ? correlate<true>(rows_in(chunk), rows(0)) : correlate<false>(rows_in(chunk), rows(0));
      }
      taps_out(one.group, one.block);
    }
  }

  // From w.time, where the first tap stands origin(true) before the beginning: lags wrap.
  void store_taps(In* to, int64_t count) const {
    const int64_t first = origin(true);
    for (int64_t k = 0; k < a.taps; k += V) {
      const int64_t n_taps = a.taps - k < V ? a.taps - k : V;
      Vec<T> tile[V] = {};
      for (int64_t i = 0; i < n_taps; ++i) {
        const int64_t lag = k + i - first;
        tile[i] = load(w.time + (lag < 0 ? lag + n : lag) * V) * scale;
      }
      transpose<T>(tile);
      for (int64_t l = 0; l < count; ++l) {
        In* at = to + l * a.kernel + a.first_tap + k;
        __builtin_prefetch(at + a.C * a.kernel, 1);  // the next channel's
        store_some(at, tile[l], n_taps);
      }
    }
    for (int64_t l = 0; l < count; ++l) {  // taps that reach no element
      const int64_t after = a.first_tap + a.taps;
      memset(to + l * a.kernel, 0, sizeof(In) * a.first_tap);
      memset(to + l * a.kernel + after, 0, sizeof(In) * (a.kernel - after));
    }
  }

  void backward(Tile tile) {
    const bool sums = tile.block == 0 && a.grad_bias;
    if (sums) memset(w.bias_sum, 0, sizeof(T) * w.padded);
    if (a.grad_x) backward_rows(tile, sums);
    if (a.grad_weight) backward_taps(tile, sums && !a.grad_x);
    if (!sums) return;
    for (int64_t block = 0; block < blocks; ++block)
      store_some(static_cast<In*>(a.grad_bias) + tile.group * a.C + block * V, load(w.bias_sum + block * V),
                 lanes(block));
  }
};

template <class In>
static void run(const ConvArgs& a, bool backward, int64_t begin, int64_t end, void* base) {
  Worker<In> worker{a, Scratch<Acc<In>>(a, base)};
  const auto each_tile = [&](auto work) {
    for (int64_t i = begin; i < end;) {
      const auto tile = worker.tile(i, end);
      work(tile);
      i += tile.count;
    }
  };
  if (backward) return each_tile([&](auto tile) { worker.backward(tile); });
  for (int64_t chunk = 0; chunk * a.row_chunk < worker.n_rows; ++chunk)
    each_tile([&](auto tile) { worker.forward(tile, chunk); });
}

static void dispatch(const ConvArgs& a, bool backward, int64_t begin, int64_t end, void* base) {
  switch (a.dtype) {
    case DType::f32:
      return run<float>(a, backward, begin, end, base);
    case DType::bf16:
      return run<BFloat16>(a, backward, begin, end, base);
    case DType::f16:
      return run<Half>(a, backward, begin, end, base);
    case DType::f64:
      return run<double>(a, backward, begin, end, base);
  }
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

int64_t positional_conv_units(const ConvArgs& a) {
  const int64_t lanes = a.dtype == DType::f64 ? kLanes<double> : kLanes<float>;
  return a.groups * ((a.C + lanes - 1) / lanes);
}

int64_t positional_conv_scratch(const ConvArgs& a) {
  return a.dtype == DType::f64 ? Scratch<double>(a, nullptr).size : Scratch<float>(a, nullptr).size;
}

void positional_conv(const ConvArgs& args, int64_t begin, int64_t end, void* scratch) {
  dispatch(args, false, begin, end, scratch);
}

void positional_conv_backward(const ConvArgs& args, int64_t begin, int64_t end, void* scratch) {
  dispatch(args, true, begin, end, scratch);
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
