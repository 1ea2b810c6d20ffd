// The positional convolution's kernels and their launches under the emulator, for
// test_positional_conv_kernel.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/positional_conv.cu"

using namespace ecgfast;

EMU_EXPORT const char* workspaces(const cuda::PositionalConv* in, int dtype, bool need_x,
                                  bool need_parameters, uint64_t* bytes) {
  return emu::message_of([&] {
    const auto type = static_cast<cuda::Dtype>(dtype);
    bytes[0] = cuda::positional_conv_workspace(*in, type);
    bytes[1] = cuda::positional_conv_backward_workspace(*in, type, need_x, need_parameters);
  });
}

EMU_EXPORT const char* forward(const cuda::PositionalConv* in, int dtype, const void* bias, void* out,
                               void* conv, void* workspace) {
  return emu::message_of([&] {
    return cuda::positional_conv(*in, static_cast<cuda::Dtype>(dtype), bias, out, conv, workspace, nullptr);
  });
}

EMU_EXPORT const char* backward(const cuda::PositionalConv* in, int dtype,
                                const cuda::PositionalConvGradients* gradients, void* workspace) {
  return emu::message_of([&] {
    return cuda::positional_conv_backward(*in, static_cast<cuda::Dtype>(dtype), *gradients, workspace,
                                          nullptr);
  });
}
