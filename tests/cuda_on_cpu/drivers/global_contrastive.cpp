// The global contrastive kernels and their launches under the emulator, for
// test_global_contrastive_kernel.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/global_contrastive.cu"

using namespace ecgfast;

EMU_EXPORT const char* plan(const cuda::GlobalContrastive* in, int dtype, cuda::GlobalPlan* plan) {
  return emu::message_of(
      [&] { *plan = cuda::plan_global_contrastive(*in, static_cast<cuda::Dtype>(dtype)); });
}

// Bytes of workspace of the forward pass, and of the backward pass with detached and true norms.
EMU_EXPORT const char* workspaces(const cuda::GlobalContrastive* in, int dtype, const cuda::GlobalPlan* plan,
                                  int64_t* bytes) {
  return emu::message_of([&] {
    const auto type = static_cast<cuda::Dtype>(dtype);
    bytes[0] = cuda::global_contrastive_workspace(*in, type, *plan);
    bytes[1] = cuda::global_contrastive_backward_workspace(*in, type, *plan, true);
    bytes[2] = cuda::global_contrastive_backward_workspace(*in, type, *plan, false);
  });
}

EMU_EXPORT const char* forward(const cuda::GlobalContrastive* in, int dtype, const cuda::GlobalPlan* plan,
                               const cuda::GlobalResult* out, void* workspace) {
  return emu::message_of([&] {
    return cuda::global_contrastive(*in, static_cast<cuda::Dtype>(dtype), *plan, *out, workspace, nullptr);
  });
}

EMU_EXPORT const char* backward(const cuda::GlobalContrastive* in, int dtype, const cuda::GlobalPlan* plan,
                                const cuda::GlobalSaved* saved, bool detach_norm,
                                const cuda::GlobalGradients* out, void* workspace) {
  return emu::message_of([&] {
    return cuda::global_contrastive_backward(*in, static_cast<cuda::Dtype>(dtype), *plan, *saved, detach_norm,
                                             *out, workspace, nullptr);
  });
}
