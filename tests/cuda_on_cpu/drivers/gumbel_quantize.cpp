// The Gumbel quantisation kernels and their launches under the emulator, for test_gumbel_quantize_kernel.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/gumbel_quantize.cu"

using namespace ecgfast;

EMU_EXPORT const char* partial_size(const cuda::GumbelQuantize* in, int64_t* size) {
  return emu::message_of([&] { *size = cuda::gumbel_partial_size(*in); });
}

EMU_EXPORT const char* forward(const cuda::GumbelQuantize* in, int codebook_bytes,
                               const cuda::GumbelResult* out) {
  return emu::message_of([&] { return cuda::gumbel_quantize(*in, codebook_bytes, *out, nullptr); });
}

EMU_EXPORT const char* backward(const cuda::GumbelQuantize* in, int codebook_type,
                                const cuda::GumbelGradients* gradients) {
  return emu::message_of([&] {
    return cuda::gumbel_quantize_backward(*in, static_cast<cuda::Dtype>(codebook_type), *gradients, nullptr);
  });
}
