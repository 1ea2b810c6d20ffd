// Arrays in dynamic shared memory. One layout function serves the kernel, which gets pointers, and the launch
// code, which asks how many bytes they take.
#pragma once
#include <stddef.h>

namespace ecgfast {

#if defined(ECGFAST_EMULATED)
// An allocation of its own for each array, so that AddressSanitizer guards them one by one.
inline void* dynamic_shared(size_t offset, size_t bytes) {
  return emu::block.active() ? emu::shared_memory.array(offset, bytes) : nullptr;
}
#else
__host__ __device__ inline void* dynamic_shared([[maybe_unused]] size_t offset, size_t) {
#if defined(__CUDA_ARCH__)
  extern __shared__ __align__(16) unsigned char ecgfast_dynamic_shared[];
  return ecgfast_dynamic_shared + offset;
#else
  return nullptr;
#endif
}
#endif

class SharedArena {
 public:
  template <typename T>
  __host__ __device__ T* take(int count) {
    const size_t offset = used_, bytes = count * sizeof(T);
    used_ += (bytes + 15) / 16 * 16;
    return static_cast<T*>(dynamic_shared(offset, bytes));
  }
  __host__ __device__ size_t used() const { return used_; }

 private:
  size_t used_ = 0;
};

}  // namespace ecgfast
