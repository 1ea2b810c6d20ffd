// Square transposition in registers, and loads and stores of fewer elements than a vector holds.
#pragma once
#include "simd.h"

namespace ecgfast {
namespace {

template <class T>
struct IndexOf {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};

// The lower and the upper halves of two vectors interleaved.
#if defined(__clang__)
#define ECGFAST_SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC has the other only from version 12 on
#define ECGFAST_SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, Vec<typename IndexOf<T>::type>{__VA_ARGS__})
#endif
template <class T>
static inline void interleave(Vec<T> a, Vec<T> b, Vec<T>& lower, Vec<T>& upper) {
  constexpr int V = kLanes<T>;
  if constexpr (V == 2) {
    lower = ECGFAST_SHUFFLE(T, a, b, 0, 2);
    upper = ECGFAST_SHUFFLE(T, a, b, 1, 3);
  } else if constexpr (V == 4) {
    lower = ECGFAST_SHUFFLE(T, a, b, 0, 4, 1, 5);
    upper = ECGFAST_SHUFFLE(T, a, b, 2, 6, 3, 7);
  } else if constexpr (V == 8) {
    lower = ECGFAST_SHUFFLE(T, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    upper = ECGFAST_SHUFFLE(T, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    lower = ECGFAST_SHUFFLE(T, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    upper = ECGFAST_SHUFFLE(T, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}
#undef ECGFAST_SHUFFLE

// kLanes vectors of kLanes elements: each round interleaves rows half the square apart.
template <class T>
static inline __attribute__((always_inline)) void transpose(Vec<T>* rows) {
  constexpr int V = kLanes<T>;
#pragma GCC unroll 4
  for (int round = 1; round < V; round *= 2) {
    Vec<T> next[V];
#pragma GCC unroll 8
    for (int i = 0; i < V / 2; ++i) interleave<T>(rows[i], rows[i + V / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < V; ++i) rows[i] = next[i];
  }
}

// The first `count` elements, zeros after them.
template <class In>
static inline Vec<Acc<In>> load_some(const In* p, int64_t count) {
  using T = Acc<In>;
  if (count >= kLanes<T>) return load_acc(p);
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = to_acc(p[i]);
  return load(lanes);
}

template <class In>
static inline void store_some(In* p, Vec<Acc<In>> v, int64_t count) {
  using T = Acc<In>;
  if (count >= kLanes<T>) return store_acc(p, v);
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) from_acc(lanes[i], p + i);
}

}  // namespace
}  // namespace ecgfast
