// Crops segments out of a store in memory and turns microvolts into millivolts. Compiled once per ISA.
#include "kernels.h"
#include "simd.h"

namespace ecgfast {
namespace {

typedef int16_t VS __attribute__((vector_size(kVectorBytes / 2)));

template <class Out>
static void convert(const int16_t* from, int64_t n, Out* to) {
  using T = Acc<Out>;
  constexpr int V = kLanes<T>;
  const T scale = T(1e-3);
  int64_t t = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; t + V <= n; t += V) {
      VS s;
      memcpy(&s, from + t, sizeof s);
      store_acc(to + t, __builtin_convertvector(s, VF) * scale);
    }
  }
  for (; t < n; ++t) from_acc(T(from[t]) * scale, to + t);
}

template <class Out>
static void run(const GatherArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.n_leads, l = row % a.n_leads, lead = a.lead_index ? a.lead_index[l] : l;
    Out* to = static_cast<Out*>(a.signal) + row * a.length;
    if (lead < 0) {
      memset(to, 0, sizeof(Out) * a.length);
      continue;
    }
    const int16_t* from = a.store + a.offset[b] + lead * a.n_samples[b] + a.start[b];
    if constexpr (sizeof(Out) == sizeof(int16_t) && !__is_class(Out)) {
      memcpy(to, from, sizeof(Out) * a.length);
    } else {
      convert(from, a.length, to);
    }
  }
}

}  // namespace

namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

void gather_segments(const GatherArgs& args, int64_t begin, int64_t end) {
  if (args.raw) return run<int16_t>(args, begin, end);
  switch (args.dtype) {
    case DType::f32:
      return run<float>(args, begin, end);
    case DType::bf16:
      return run<BFloat16>(args, begin, end);
    case DType::f16:
      return run<Half>(args, begin, end);
    case DType::f64:
      return run<double>(args, begin, end);
  }
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
