// What the kernels of the global contrastive loss share.
#pragma once
#include "products.h"
#include "rows.h"

namespace ecgfast {
namespace {

constexpr double kEps = 1e-8;
constexpr double kMostBounded = 64;  // of 2 / temperature

// A running logsumexp: sum of exp(x - max). A NaN stays.
template <class T>
static void merge(T& max, T& sum, T other_max, T other_sum) {
  if (other_max > max) {
    sum = sum * exp(Vec<T>{} + (max - other_max))[0] + other_sum;
    max = other_max;
  } else if (!(other_sum <= T(0))) {
    sum += other_sum != other_sum ? other_sum : other_sum * exp(Vec<T>{} + (other_max - max))[0];
  }
}

// f(an element of the inputs' type, products of that type).
template <class Args, class F>
static auto with_products(const Args& a, F f) {
  switch (a.dtype) {
    case DType::f32:
      return f(float(), ProductsOf<float>::type());
    case DType::bf16:
      if (a.precise) return f(BFloat16(), ProductsOf<float>::type());
      return f(BFloat16(), ProductsOf<BFloat16>::type());
    case DType::f16:
      return f(Half(), ProductsOf<Half>::type());
    case DType::f64:
      break;
  }
  return f(double(), ProductsOf<double>::type());
}

}  // namespace
}  // namespace ecgfast
