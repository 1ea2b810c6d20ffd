// Rows of vectors in the accumulation type, padded with zeros to whole registers: conversion, dot products,
// norms.
#pragma once
#include <limits>

#include "simd.h"
#include "types.h"

namespace ecgfast {
namespace {

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// y[0..n) = x, y[n..padded) = fill.
template <class In, class T>
static void widen(const In* x, int64_t n, int64_t padded, T* y, T fill = 0) {
  int64_t i = 0;
  if constexpr (kSame<Acc<In>, T>)
    for (; i + kLanes<T> <= n; i += kLanes<T>) store(y + i, load_acc(x + i));
  for (; i < n; ++i) y[i] = static_cast<T>(to_acc(x[i]));
  for (; i < padded; ++i) y[i] = fill;
}

// y[0..n) = x; nothing past y[n) is written.
template <class T, class Out>
static void narrow(const T* x, int64_t n, Out* y) {
  int64_t i = 0;
  if constexpr (kSame<Acc<Out>, T>)
    for (; i + kLanes<T> <= n; i += kLanes<T>) store_acc(y + i, load(x + i));
  for (; i < n; ++i) from_acc(static_cast<Acc<Out>>(x[i]), y + i);
}

// widen and narrow for an element type known at run time; `at` counts elements.
template <class T>
static void widen(DType type, const void* x, int64_t at, int64_t n, int64_t padded, T* y, T fill = 0) {
  switch (type) {
    case DType::f32:
      return widen(static_cast<const float*>(x) + at, n, padded, y, fill);
    case DType::bf16:
      return widen(static_cast<const BFloat16*>(x) + at, n, padded, y, fill);
    case DType::f16:
      return widen(static_cast<const Half*>(x) + at, n, padded, y, fill);
    case DType::f64:
      return widen(static_cast<const double*>(x) + at, n, padded, y, fill);
  }
}

template <class T>
static void narrow(DType type, const T* x, int64_t n, void* y, int64_t at) {
  switch (type) {
    case DType::f32:
      return narrow(x, n, static_cast<float*>(y) + at);
    case DType::bf16:
      return narrow(x, n, static_cast<BFloat16*>(y) + at);
    case DType::f16:
      return narrow(x, n, static_cast<Half*>(y) + at);
    case DType::f64:
      return narrow(x, n, static_cast<double*>(y) + at);
  }
}

// `padded` is a multiple of two registers.
template <class T>
static T dot(const T* x, const T* y, int64_t padded) {
  Vec<T> a = {}, b = {};
  for (int64_t i = 0; i < padded; i += 2 * kLanes<T>) {
    a += load(x + i) * load(y + i);
    b += load(x + i + kLanes<T>) * load(y + i + kLanes<T>);
  }
  return reduce_add<T>(a + b);
}

template <class T>
static void scale(T* x, T by, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kLanes<T>) store(x + i, load(x + i) * by);
}

// 1 / max(|x|, eps), NaN for a NaN. Squares that overflow are those of scaled numbers instead.
template <class T>
static T inverse_norm(const T* x, int64_t padded, double eps) {
  T squares = dot(x, x, padded), by = 1;
  if (squares > std::numeric_limits<T>::max()) {
    by = kSame<T, float> ? T(0x1p-70) : T(0x1p-520);
    Vec<T> sum = {};
    for (int64_t i = 0; i < padded; i += kLanes<T>) sum += load(x + i) * by * (load(x + i) * by);
    squares = reduce_add<T>(sum);
  }
  const T norm = sqrt_scalar(squares);
  return by / (norm < T(eps) ? T(eps) : norm);
}

// Whether x / max(|x|, eps) was x / eps: a vector as good as zero, which has no direction and so no gradient.
template <class T>
static bool is_clamped(T inverse_norm, double eps) {
  return inverse_norm >= T(1) / T(eps);
}

}  // namespace
}  // namespace ecgfast
