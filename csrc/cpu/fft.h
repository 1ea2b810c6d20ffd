// Discrete Fourier transforms of real sequences whose elements are vectors of channels: no butterfly ever
// shuffles lanes. A sequence of even length n = 2 m is a complex one of length m in place (even elements
// real, odd ones imaginary); its decimation in frequency leaves the frequencies permuted, which the split
// into the spectrum of the real sequence undoes on the way out.
#pragma once
#include "fft_plan.h"
#include "simd.h"

namespace ecgfast {
namespace {

template <class T>
struct Root {
  T re, im;
};

// cos and sin of 2 pi k / R for the odd radices, and of 2 pi k / 16.
template <int R>
struct Turns;
template <>
struct Turns<3> {
  static constexpr double c[3] = {1.0, -0.5, -0.5};
  static constexpr double s[3] = {0.0, 0.86602540378443864676, -0.86602540378443864676};
};
template <>
struct Turns<5> {
  static constexpr double c[5] = {1.0, 0.30901699437494742410, -0.80901699437494742410,
                                  -0.80901699437494742410, 0.30901699437494742410};
  static constexpr double s[5] = {0.0, 0.95105651629515357212, 0.58778525229247312917,
                                  -0.58778525229247312917, -0.95105651629515357212};
};
template <>
struct Turns<7> {
  static constexpr double c[7] = {1.0,
                                  0.62348980185873353053,
                                  -0.22252093395631440429,
                                  -0.90096886790241912624,
                                  -0.90096886790241912624,
                                  -0.22252093395631440429,
                                  0.62348980185873353053};
  static constexpr double s[7] = {0.0,
                                  0.78183148246802980871,
                                  0.97492791218182360702,
                                  0.43388373911755812048,
                                  -0.43388373911755812048,
                                  -0.97492791218182360702,
                                  -0.78183148246802980871};
};
template <>
struct Turns<16> {
  static constexpr double c[10] = {
      1.0,  0.92387953251128675613,  0.70710678118654752440,  0.38268343236508977173,
      0.0,  -0.38268343236508977173, -0.70710678118654752440, -0.92387953251128675613,
      -1.0, -0.92387953251128675613};
  static constexpr double s[10] = {
      0.0, 0.38268343236508977173, 0.70710678118654752440, 0.92387953251128675613,
      1.0, 0.92387953251128675613, 0.70710678118654752440, 0.38268343236508977173,
      0.0, -0.38268343236508977173};
};

// X_k = sum_j x_j exp(-2 pi i j k / R) in place. With re and im exchanged it is the inverse, times R.
template <int R, class T>
struct Butterfly {  // an odd prime
  static inline __attribute__((always_inline)) void run(Vec<T>* re, Vec<T>* im) {
    constexpr int H = R / 2;
    Vec<T> sr[H], si[H], dr[H], di[H];
    Vec<T> total_re = re[0], total_im = im[0];
#pragma GCC unroll 8
    for (int j = 0; j < H; ++j) {
      sr[j] = re[j + 1] + re[R - 1 - j];
      si[j] = im[j + 1] + im[R - 1 - j];
      dr[j] = re[j + 1] - re[R - 1 - j];
      di[j] = im[j + 1] - im[R - 1 - j];
      total_re += sr[j];
      total_im += si[j];
    }
#pragma GCC unroll 8
    for (int k = 1; k <= H; ++k) {
      Vec<T> cr = re[0], ci = im[0], er = {}, ei = {};
#pragma GCC unroll 8
      for (int j = 0; j < H; ++j) {
        const int turn = (j + 1) * k % R;
        const T c = T(Turns<R>::c[turn]), s = T(Turns<R>::s[turn]);
        cr += c * sr[j];
        ci += c * si[j];
        er = j ? er + s * dr[j] : s * dr[j];
        ei = j ? ei + s * di[j] : s * di[j];
      }
      re[k] = cr + ei;
      im[k] = ci - er;
      re[R - k] = cr - ei;
      im[R - k] = ci + er;
    }
    re[0] = total_re;
    im[0] = total_im;
  }
};

template <class T>
struct Butterfly<2, T> {
  static inline __attribute__((always_inline)) void run(Vec<T>* re, Vec<T>* im) {
    const Vec<T> r = re[0] - re[1], i = im[0] - im[1];
    re[0] += re[1];
    im[0] += im[1];
    re[1] = r;
    im[1] = i;
  }
};

template <class T>
static inline __attribute__((always_inline)) void butterfly4(Vec<T>& r0, Vec<T>& i0, Vec<T>& r1, Vec<T>& i1,
                                                             Vec<T>& r2, Vec<T>& i2, Vec<T>& r3, Vec<T>& i3) {
  const Vec<T> ar = r0 + r2, ai = i0 + i2, br = r0 - r2, bi = i0 - i2;
  const Vec<T> cr = r1 + r3, ci = i1 + i3, dr = r1 - r3, di = i1 - i3;
  r0 = ar + cr;
  i0 = ai + ci;
  r2 = ar - cr;
  i2 = ai - ci;
  r1 = br + di;
  i1 = bi - dr;
  r3 = br - di;
  i3 = bi + dr;
}

template <class T>
struct Butterfly<4, T> {
  static inline __attribute__((always_inline)) void run(Vec<T>* re, Vec<T>* im) {
    butterfly4<T>(re[0], im[0], re[1], im[1], re[2], im[2], re[3], im[3]);
  }
};

template <class T>
struct Butterfly<8, T> {
  static inline __attribute__((always_inline)) void run(Vec<T>* re, Vec<T>* im) {
    butterfly4<T>(re[0], im[0], re[2], im[2], re[4], im[4], re[6], im[6]);
    butterfly4<T>(re[1], im[1], re[3], im[3], re[5], im[5], re[7], im[7]);
    const T h = T(0.70710678118654752440);
    const Vec<T> er[4] = {re[0], re[2], re[4], re[6]}, ei[4] = {im[0], im[2], im[4], im[6]};
    const Vec<T> tr[4] = {re[1], h * (re[3] + im[3]), im[5], h * (im[7] - re[7])};
    const Vec<T> ti[4] = {im[1], h * (im[3] - re[3]), -re[5], -h * (re[7] + im[7])};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      re[k] = er[k] + tr[k];
      im[k] = ei[k] + ti[k];
      re[k + 4] = er[k] - tr[k];
      im[k + 4] = ei[k] - ti[k];
    }
  }
};

template <class T>
struct Butterfly<16, T> {
  static inline __attribute__((always_inline)) void run(Vec<T>* re, Vec<T>* im) {
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) {
      butterfly4<T>(re[b], im[b], re[b + 4], im[b + 4], re[b + 8], im[b + 8], re[b + 12], im[b + 12]);
#pragma GCC unroll 4
      for (int k = 1; k < 4; ++k) {
        if (b == 0) continue;
        const T c = T(Turns<16>::c[b * k]), s = T(Turns<16>::s[b * k]);
        const Vec<T> r = re[b + 4 * k], i = im[b + 4 * k];
        re[b + 4 * k] = b * k == 4 ? i : r * c + i * s;
        im[b + 4 * k] = b * k == 4 ? -r : i * c - r * s;
      }
    }
    Vec<T> xr[16], xi[16];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      Vec<T>*r = re + 4 * k, *i = im + 4 * k;
      butterfly4<T>(r[0], i[0], r[1], i[1], r[2], i[2], r[3], i[3]);
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        xr[k + 4 * b] = r[b];
        xi[k + 4 * b] = i[b];
      }
    }
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) {
      re[k] = xr[k];
      im[k] = xi[k];
    }
  }
};

// One pass over a complex sequence of length m, which is m / length blocks: R elements of a block, length / R
// apart, are transformed in place. Forward turns them afterwards, the inverse before.
template <int R, bool Inverse, class T>
static void fft_pass(T* x, int64_t m, int64_t length, const Root<T>* roots) {
  constexpr int V = kLanes<T>;
  const int64_t step = length / R, stride = step * 2 * V, turn = 2 * m / length;
  for (int64_t block = 0; block < m; block += length) {
    for (int64_t j = 0; j < step; ++j) {
      T* at = x + (block + j) * 2 * V;
      Vec<T> re[R], im[R];
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) {
        re[q] = load(at + q * stride);
        im[q] = load(at + q * stride + V);
        if (Inverse && q && step > 1) {
          const Root<T> w = roots[turn * j * q];
          const Vec<T> r = re[q] * w.re - im[q] * w.im;
          im[q] = im[q] * w.re + re[q] * w.im;
          re[q] = r;
        }
      }
      Inverse ? Butterfly<R, T>::run(im, re) : Butterfly<R, T>::run(re, im);
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) {
        if (!Inverse && q && step > 1) {
          const Root<T> w = roots[turn * j * q];
          const Vec<T> r = re[q] * w.re + im[q] * w.im;
          im[q] = im[q] * w.re - re[q] * w.im;
          re[q] = r;
        }
        store(at + q * stride, re[q]);
        store(at + q * stride + V, im[q]);
      }
    }
  }
}

template <bool Inverse, class T>
static void fft_pass(int radix, T* x, int64_t m, int64_t length, const Root<T>* roots) {
  switch (radix) {
    case 2:
      return fft_pass<2, Inverse>(x, m, length, roots);
    case 3:
      return fft_pass<3, Inverse>(x, m, length, roots);
    case 4:
      return fft_pass<4, Inverse>(x, m, length, roots);
    case 5:
      return fft_pass<5, Inverse>(x, m, length, roots);
    case 7:
      return fft_pass<7, Inverse>(x, m, length, roots);
    case 8:
      return fft_pass<8, Inverse>(x, m, length, roots);
    case 16:
      return fft_pass<16, Inverse>(x, m, length, roots);
  }
}

// The spectrum, times 2, of the n real vectors at x, which are overwritten: frequency f = 0..n / 2 to
// out + f * stride, its imaginary part `imag` further.
template <class T>
static void real_fft(const FftPlan& plan, T* x, T* out, int64_t stride, int64_t imag) {
  constexpr int V = kLanes<T>;
  const Root<T>* roots = static_cast<const Root<T>*>(plan.roots);
  const int64_t m = plan.n / 2;
  int64_t length = m;
  for (int i = 0; i < plan.n_radices; length /= plan.radices[i++])
    fft_pass<false>(plan.radices[i], x, m, length, roots);
  const Vec<T> zero = {}, r0 = load(x), i0 = load(x + V);
  store(out, T(2) * (r0 + i0));
  store(out + imag, zero);
  store(out + m * stride, T(2) * (r0 - i0));
  store(out + m * stride + imag, zero);
  for (int64_t f = 1; 2 * f <= m; ++f) {
    const T *a = x + plan.position[f] * 2 * V, *b = x + plan.position[m - f] * 2 * V;
    const Vec<T> ar = load(a), ai = load(a + V), br = load(b), bi = load(b + V);
    const Vec<T> even_re = ar + br, even_im = ai - bi, odd_re = ai + bi, odd_im = br - ar;
    const Root<T> w = roots[f];
    const Vec<T> re = odd_re * w.re + odd_im * w.im, im = odd_im * w.re - odd_re * w.im;
    store(out + f * stride, even_re + re);
    store(out + f * stride + imag, even_im + im);
    store(out + (m - f) * stride, even_re - re);
    store(out + (m - f) * stride + imag, im - even_im);
  }
}

// The inverse of the spectrum at `in`, times n: n real vectors to x. The imaginary parts of the frequencies 0
// and n / 2 are taken as 0.
template <class T>
static void real_ifft(const FftPlan& plan, const T* in, int64_t stride, int64_t imag, T* x) {
  constexpr int V = kLanes<T>;
  const Root<T>* roots = static_cast<const Root<T>*>(plan.roots);
  const int64_t m = plan.n / 2;
  const Vec<T> first = load(in), last = load(in + m * stride);
  store(x, first + last);
  store(x + V, first - last);
  for (int64_t f = 1; 2 * f <= m; ++f) {
    const T *p = in + f * stride, *q = in + (m - f) * stride;
    const Vec<T> pr = load(p), pi = load(p + imag), qr = load(q), qi = load(q + imag);
    const Vec<T> even_re = pr + qr, even_im = pi - qi, re = pr - qr, im = pi + qi;
    const Root<T> w = roots[f];
    const Vec<T> odd_re = re * w.re - im * w.im, odd_im = im * w.re + re * w.im;
    T *a = x + plan.position[f] * 2 * V, *b = x + plan.position[m - f] * 2 * V;
    store(a, even_re - odd_im);
    store(a + V, even_im + odd_re);
    store(b, even_re + odd_im);
    store(b + V, odd_re - even_im);
  }
  int64_t length = 1;
  for (int i = plan.n_radices; i-- > 0;) {
    length *= plan.radices[i];
    fft_pass<true>(plan.radices[i], x, m, length, roots);
  }
}

}  // namespace
}  // namespace ecgfast
