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
  int64_t padded, group_stride, tap_stride, row_stride, size = 0;
  T *group, *taps, *rows, *time, *bias_sum;

  Scratch(const ConvArgs& a, void* base) : next_(static_cast<char*>(base)) {
    const int64_t frequencies = a.plan.n / 2 + 1;
    padded = round_up(a.C, V);
    group_stride = a.row_chunk * 2 * padded + V;
    tap_stride = a.C * 2 * V + V;
    row_stride = a.row_chunk * 2 * V + V;
    group = take(frequencies * group_stride);
    taps = take(frequencies * tap_stride);
    rows = take(frequencies * row_stride);
    time = take(a.plan.n * V);
    bias_sum = take(padded);
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

// A unit of work is one vector of channels of one group: outputs forward, inputs backward.
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

  struct Unit {
    int64_t group, block;
  };
  struct Row {
    int64_t b, begin, end;  // elements of sequence b
  };

  Unit unit(int64_t i) const { return {i / blocks, i % blocks}; }
  Row row(int64_t r) const {
    const int64_t begin = r % a.segments * a.segment, end = begin + a.segment;
    return {r / a.segments, begin, end < a.N ? end : a.N};
  }
  int64_t rows_in(int64_t chunk) const {
    const int64_t left = n_rows - chunk * a.row_chunk;
    return left < a.row_chunk ? left : a.row_chunk;
  }
  int64_t lanes(int64_t block) const { return a.C - block * V < V ? a.C - block * V : V; }
  // Of element t of sequence b in a [B, N, E] tensor, at a unit's channels.
  int64_t at(Unit u, int64_t b, int64_t t) const {
    return (b * a.N + t) * a.groups * a.C + u.group * a.C + u.block * V;
  }

  const In* in(const void* p, int64_t offset) const { return static_cast<const In*>(p) + offset; }

  // How far a row's window reaches back, and where a row's first element comes out.
  int64_t reach(bool backward) const { return backward ? a.taps - 1 - a.left : a.left; }
  int64_t origin(bool backward) const { return single ? a.taps - 1 - reach(backward) : a.taps - 1; }
  Row window(const Row& r, bool backward) const {
    if (single) return {r.b, 0, a.N};
    const int64_t begin = r.begin - reach(backward);
    return {r.b, begin, begin + a.segment + a.taps - 1};
  }

  // A row's elements lie a page apart or nearly so, where no prefetcher of the machine's follows: while
  // element t of one row is worked on, the one as far into the next row (or the next channels of the row) is
  // fetched.
  struct Ahead {
    Unit u;
    int64_t b, shift, end;
  };
  Ahead ahead(const Row& now, Unit u, int64_t next) const {
    const Row r = row(next < n_rows ? next : 0);
    return {u, r.b, r.begin - now.begin, r.end};
  }
  void fetch(const void* p, const Ahead& next, int64_t t) const {
    if (t + next.shift < next.end) __builtin_prefetch(in(p, at(next.u, next.b, t + next.shift)));
  }
  void fetch_to_write(const void* p, const Ahead& next, int64_t t) const {
    if (t + next.shift < next.end) __builtin_prefetch(in(p, at(next.u, next.b, t + next.shift)), 1);
  }

  // w.time = value(t) at the elements t of a window that lie in the sequence, 0 elsewhere.
  template <class F>
  void fill(const Row& window, F value) const {
    const int64_t begin = window.begin > 0 ? window.begin : 0, end = window.end < a.N ? window.end : a.N;
    memset(w.time, 0, sizeof(T) * V * (begin - window.begin));
    for (int64_t t = begin; t < end; ++t) store(w.time + (t - window.begin) * V, value(t));
    memset(w.time + (end - window.begin) * V, 0, sizeof(T) * V * (n - (end - window.begin)));
  }

  // Spectra of all channels of a group, for a chunk of rows, unless they are held already. fill_row(unit,
  // row, what comes next) sets w.time.
  template <class F>
  void group_spectra(int64_t group, int64_t chunk, F fill_row) {
    if (held_group == group && held_chunk == chunk) return;
    held_group = group;
    held_chunk = chunk;
    for (int64_t i = 0; i < rows_in(chunk); ++i)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t at = chunk * a.row_chunk + i, following = (block + 1) % blocks;
        const Row r = row(at);
        fill_row(Unit{group, block}, r, ahead(r, Unit{group, following}, following ? at : at + 1));
        real_fft(a.plan, w.time, w.group + i * 2 * w.padded + block * V, w.group_stride, w.padded);
      }
  }

  // Spectra of the taps between a unit's channels and every channel of the other side. Forward, the unit
  // holds output channels and the taps are reversed.
  void tap_spectra(Unit u, bool backward) const {
    const int64_t out_step = a.C * a.kernel, lane_step = backward ? a.kernel : out_step;
    const int64_t other_step = backward ? out_step : a.kernel;
    const In* base =
        static_cast<const In*>(a.weight) + u.group * a.C * out_step + u.block * V * lane_step + a.first_tap;
    for (int64_t c = 0; c < a.C; ++c) {
      for (int64_t k = 0; k < a.taps; k += V) {
        const int64_t count = a.taps - k < V ? a.taps - k : V;
        Vec<T> tile[V] = {};
        for (int64_t l = 0; l < lanes(u.block); ++l) {
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

  void multiply_rows(int64_t chunk) const {
    for (int64_t f = 0; f <= n / 2; ++f)
      product<false, false>(rows_in(chunk), a.C, w.group + f * w.group_stride, 2 * w.padded, int64_t{1},
                            w.padded, w.taps + f * w.tap_stride, w.rows + f * w.row_stride);
  }

  // consume(offset of an element in [B, N, E], the vector there) for all elements of a chunk's rows.
  template <class F, class G>
  void rows_out(Unit u, int64_t chunk, bool backward, F consume, G prefetch) const {
    for (int64_t i = 0; i < rows_in(chunk); ++i) {
      const Row r = row(chunk * a.row_chunk + i);
      real_ifft(a.plan, w.rows + i * 2 * V, w.row_stride, V, w.time);
      const T* from = w.time + (origin(backward) - r.begin) * V;
      const Ahead next = ahead(r, u, chunk * a.row_chunk + i + 1);
      for (int64_t t = r.begin; t < r.end; ++t) {
        prefetch(next, t);
        consume(at(u, r.b, t), load(from + t * V) * scale);
      }
    }
  }

  void forward(Unit u, int64_t chunk) {
    group_spectra(u.group, chunk, [this](Unit v, const Row& r, const Ahead& next) {
      fill(window(r, false), [&](int64_t t) {
        fetch(a.x, next, t);
        return load_some(in(a.x, at(v, r.b, t)), lanes(v.block));
      });
    });
    tap_spectra(u, false);
    multiply_rows(chunk);
    const int64_t count = lanes(u.block);
    const Vec<T> bias = load_some(in(a.bias, u.group * a.C + u.block * V), count);
    rows_out(
        u, chunk, false,
        [&](int64_t i, Vec<T> v) {
          v += bias;
          if (a.conv) store_some(static_cast<In*>(a.conv) + i, v, count);
          store_some(static_cast<In*>(a.out) + i, load_some(in(a.x, i), count) + gelu(v), count);
        },
        [&](const Ahead& next, int64_t t) {
          fetch(a.x, next, t);
          fetch_to_write(a.out, next, t);
          if (a.conv) fetch_to_write(a.conv, next, t);
        });
  }

  // Spectra of the gradients at the convolution's outputs; on the way their sums, the gradients of the bias.
  void grad_spectra(Unit u, int64_t chunk, bool sums) {
    group_spectra(u.group, chunk, [&](Unit v, const Row& r, const Ahead& next) {
      const Row from = window(r, true);
      fill(from, [&](int64_t t) {
        fetch(a.grad_out, next, t);
        fetch(a.conv, next, t);
        const int64_t i = at(v, r.b, t), count = lanes(v.block);
        const Vec<T> grad = load_some(in(a.grad_out, i), count);
        return grad * gelu_grad(load_some(in(a.conv, i), count));
      });
      if (!sums) return;
      Vec<T> sum = {};
      for (int64_t t = r.begin; t < r.end; ++t) sum += load(w.time + (t - from.begin) * V);
      T* total = w.bias_sum + v.block * V;
      store(total, load(total) + sum);
    });
  }

  void backward_rows(Unit u, bool sums) {
    tap_spectra(u, true);
    const int64_t count = lanes(u.block);
    for (int64_t chunk = 0; chunk * a.row_chunk < n_rows; ++chunk) {
      grad_spectra(u, chunk, sums);
      multiply_rows(chunk);
      rows_out(
          u, chunk, true,
          [&](int64_t i, Vec<T> v) {
            store_some(static_cast<In*>(a.grad_x) + i, load_some(in(a.grad_out, i), count) + v, count);
          },
          [&](const Ahead& next, int64_t t) {
            fetch(a.grad_out, next, t);
            fetch_to_write(a.grad_x, next, t);
          });
    }
  }

  // Correlations of the rows' elements with the gradients around them, summed over rows frequency by
  // frequency.
  void backward_taps(Unit u, bool sums) {
    const int64_t count = lanes(u.block);
    for (int64_t chunk = 0; chunk * a.row_chunk < n_rows; ++chunk) {
      grad_spectra(u, chunk, sums);
      const int64_t n_chunk = rows_in(chunk);
      for (int64_t i = 0; i < n_chunk; ++i) {
        const Row r = row(chunk * a.row_chunk + i);
        const Ahead next = ahead(r, u, chunk * a.row_chunk + i + 1);
        fill(r, [&](int64_t t) {
          fetch(a.x, next, t);
          return load_some(in(a.x, at(u, r.b, t)), count);
        });
        real_fft(a.plan, w.time, w.rows + i * 2 * V, w.row_stride, V);
      }
      for (int64_t f = 0; f <= n / 2; ++f) {
        const T *grads = w.group + f * w.group_stride, *rows = w.rows + f * w.row_stride;
        T* to = w.taps + f * w.tap_stride;
        chunk ? product<true, true>(a.C, n_chunk, grads, int64_t{1}, 2 * w.padded, w.padded, rows, to)
              : product<true, false>(a.C, n_chunk, grads, int64_t{1}, 2 * w.padded, w.padded, rows, to);
      }
    }
    for (int64_t c = 0; c < a.C; ++c) {
      real_ifft(a.plan, w.taps + c * 2 * V, w.tap_stride, V, w.time);
      store_taps(static_cast<In*>(a.grad_weight) + ((u.group * a.C + c) * a.C + u.block * V) * a.kernel,
                 count);
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
      for (int64_t l = 0; l < count; ++l) store_some(to + l * a.kernel + a.first_tap + k, tile[l], n_taps);
    }
    for (int64_t l = 0; l < count; ++l) {  // taps that reach no element
      const int64_t after = a.first_tap + a.taps;
      memset(to + l * a.kernel, 0, sizeof(In) * a.first_tap);
      memset(to + l * a.kernel + after, 0, sizeof(In) * (a.kernel - after));
    }
  }

  void backward(Unit u) {
    const bool sums = u.block == 0 && a.grad_bias;
    if (sums) memset(w.bias_sum, 0, sizeof(T) * w.padded);
    if (a.grad_x) backward_rows(u, sums);
    if (a.grad_weight) backward_taps(u, sums && !a.grad_x);
    if (!sums) return;
    for (int64_t block = 0; block < blocks; ++block)
      store_some(static_cast<In*>(a.grad_bias) + u.group * a.C + block * V, load(w.bias_sum + block * V),
                 lanes(block));
  }
};

template <class In>
static void run(const ConvArgs& a, bool backward, int64_t begin, int64_t end, void* base) {
  Worker<In> worker{a, Scratch<Acc<In>>(a, base)};
  if (backward) {
    for (int64_t i = begin; i < end; ++i) worker.backward(worker.unit(i));
    return;
  }
  for (int64_t chunk = 0; chunk * a.row_chunk < worker.n_rows; ++chunk)
    for (int64_t i = begin; i < end; ++i) worker.forward(worker.unit(i), chunk);
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
