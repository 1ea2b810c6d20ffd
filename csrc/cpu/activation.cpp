// The vector functions over arrays, for their tests. Compiled once per ISA.
#include "gelu.h"
#include "kernels.h"
#include "log_table.h"

namespace ecgfast {
namespace {

template <class T>
static Vec<T> evaluate(Activation function, Vec<T> x) {
  switch (function) {
    case Activation::erf:
      return erf(x);
    case Activation::exp:
      return exp(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_grad:
      return gelu_grad(x);
    case Activation::stem_gelu:
      return Gelu<T>().value(x);
    case Activation::stem_gelu_grad: {
      Vec<T> slope;
      Gelu<T>().value(x, slope);
      return slope;
    }
    case Activation::log:
      return log(x);
    case Activation::log_normal:
      return log_normal(x);
    case Activation::exp_nonpositive:
      return exp_nonpositive(x);
    case Activation::log_table:
      return LogTable()(x);
  }
  return x;
}

template <class T>
static void run(const ActivationArgs& a, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) store(y + i, evaluate<T>(a.function, load(x + i)));
  if (i == end) return;
  T last[kLanes<T>] = {};
  memcpy(last, x + i, (end - i) * sizeof(T));
  store(last, evaluate<T>(a.function, load(last)));
  memcpy(y + i, last, (end - i) * sizeof(T));
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

void activation(const ActivationArgs& args, int64_t begin, int64_t end) {
  args.is_f64 ? run<double>(args, begin, end) : run<float>(args, begin, end);
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
