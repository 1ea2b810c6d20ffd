// Carves one block of scratch memory into aligned arrays; with a null base it only counts.
#pragma once
#include "simd.h"

namespace ecgfast {
namespace {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t n) {
    const int64_t at = bytes_;
    bytes_ += round_up(n * static_cast<int64_t>(sizeof(T)), 64);
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace
}  // namespace ecgfast
