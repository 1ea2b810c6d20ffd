// The stem's kernels and their launches under the emulator, for test_patch_embed_kernel.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/patch_embed.cu"

using namespace ecgfast;

EMU_EXPORT const char* sizes(const int64_t* n, int dtype, bool slopes, bool for_signal, bool has_bias,
                             int blocks, int64_t* out) {
  return emu::message_of([&] {
    const cuda::StemShape shape = cuda::stem_shape(n[0], n[1], n[2], n[3], n[4]);
    out[0] = cuda::stem_state_elements(shape, static_cast<cuda::Dtype>(dtype), slopes);
    out[1] = cuda::stem_workspace_bytes(shape, static_cast<cuda::Dtype>(dtype), for_signal, has_bias, blocks);
  });
}

EMU_EXPORT const char* forward(const int64_t* n, const cuda::StemInputs* in, int dtype, void* state,
                               bool slopes, void* tokens) {
  return emu::message_of([&] {
    return cuda::patch_embed(cuda::stem_shape(n[0], n[1], n[2], n[3], n[4]), *in,
                             static_cast<cuda::Dtype>(dtype), state, slopes, tokens, nullptr);
  });
}

EMU_EXPORT const char* backward(const int64_t* n, const cuda::StemInputs* in, int dtype, const void* state,
                                void* workspace, const cuda::StemGradients* grads, int blocks) {
  return emu::message_of([&] {
    return cuda::patch_embed_backward(cuda::stem_shape(n[0], n[1], n[2], n[3], n[4]), *in,
                                      static_cast<cuda::Dtype>(dtype), state, workspace, *grads, nullptr,
                                      blocks);
  });
}
