// The local contrastive kernels and their launches under the emulator, for test_local_contrastive_kernel.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/local_contrastive.cu"

using namespace ecgfast;

EMU_EXPORT const char* forward(const cuda::LocalContrastive* in, int dtype,
                               const cuda::LocalContrastiveResult* out) {
  return emu::message_of(
      [&] { return cuda::local_contrastive(*in, static_cast<cuda::Dtype>(dtype), *out, nullptr); });
}

EMU_EXPORT const char* backward(const cuda::LocalContrastive* in, int dtype,
                                const cuda::LocalContrastiveSaved* saved,
                                const cuda::LocalContrastiveGradients* out) {
  return emu::message_of([&] {
    return cuda::local_contrastive_backward(*in, static_cast<cuda::Dtype>(dtype), *saved, *out, nullptr);
  });
}
