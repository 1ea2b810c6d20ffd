// The parts of a workspace that PyTorch allocated.
#pragma once
#include <stdint.h>

namespace ecgfast::cuda {

// Hands out parts of a workspace at multiples of 256 bytes, or counts them where the base is null.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    char* part = base_ ? base_ + used_ : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(part);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace ecgfast::cuda
