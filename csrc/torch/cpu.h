// What the CPU sides of the ops share: scratch memory, the random state, dtypes.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>

#include "../cpu/dispatch.h"
#include "common.h"

namespace ecgfast {

// Scratch of the calling thread: kept from call to call, since fresh pages cost as much as the arithmetic.
// What passes kKept bytes is given back after use, so that a thread keeps kKept bytes for each slot at most.
// Slot 1 is for what the thread that calls an op shares with the others.
template <int Slot = 0>
class Scratch {
 public:
  static constexpr int64_t kKept = int64_t{8} << 20;

  explicit Scratch(int64_t bytes) {
    if (bytes > kKept) {
      own_.reset(allocate(bytes));
      data_ = own_.get();
      return;
    }
    thread_local std::unique_ptr<void, decltype(&std::free)> kept(nullptr, &std::free);
    thread_local int64_t size = 0;
    if (bytes > size) {
      kept.reset(allocate(bytes));
      size = bytes;
    }
    data_ = kept.get();
  }
  void* get() const { return data_; }

 private:
  static void* allocate(int64_t bytes) {
    void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) throw std::bad_alloc();
    return p;
  }
  std::unique_ptr<void, decltype(&std::free)> own_{nullptr, &std::free};
  void* data_ = nullptr;
};

struct Rng {
  int64_t seed = 0, step = 0;
  Rng(const char* op, const std::optional<Tensor>& rng) {
    if (!rng.has_value()) return;
    STD_TORCH_CHECK(rng->dim() == 1 && rng->size(0) == 2 && rng->scalar_type() == ScalarType::Long, op,
                    ": rng must be int64 [2]");
    const Tensor c = dense(*rng);
    seed = c.const_data_ptr<int64_t>()[0];
    step = c.const_data_ptr<int64_t>()[1];
  }
};

inline void check_ids(const char* op, const Tensor& sample_ids) {
  STD_TORCH_CHECK(sample_ids.dim() == 1 && sample_ids.scalar_type() == ScalarType::Long, op,
                  ": sample_ids must be int64 [B]");
}

inline DType dtype_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::Double:
      return DType::f64;
    default:
      STD_TORCH_CHECK(false, op, ": takes float32, bfloat16, float16 or float64");
  }
}

inline ScalarType statistics_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The value of a tensor of one element.
inline double scalar(const Tensor& t) {
  if (t.scalar_type() == ScalarType::Float) return *t.const_data_ptr<float>();
  return *torch::stable::to(t, ScalarType::Double).const_data_ptr<double>();
}

inline double temperature_of(const char* op, double number, const std::optional<Tensor>& tensor,
                             ScalarType wide) {
  check_temperature(op, number, tensor, wide);
  const double value = tensor.has_value() ? scalar(*tensor) : number;
  STD_TORCH_CHECK(value > 0, op, ": temperature must be positive, got ", value);
  return value;
}

}  // namespace ecgfast
