// The global contrastive kernels over pairs of leads and their launches under the emulator, for
// test_global_contrastive_pairs_kernel.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/global_contrastive_pairs.cu"

using namespace ecgfast;

EMU_EXPORT const char* plan(const cuda::ContrastivePairs* in, int dtype, cuda::PairsPlan* plan) {
  return emu::message_of([&] { *plan = cuda::plan_contrastive_pairs(*in, static_cast<cuda::Dtype>(dtype)); });
}

// Bytes of workspace of the forward pass, and of the backward pass with detached and true norms.
EMU_EXPORT const char* workspaces(const cuda::ContrastivePairs* in, int dtype, const cuda::PairsPlan* plan,
                                  int64_t* bytes) {
  return emu::message_of([&] {
    const auto type = static_cast<cuda::Dtype>(dtype);
    bytes[0] = cuda::contrastive_pairs_workspace(*in, type, *plan);
    bytes[1] = cuda::contrastive_pairs_backward_workspace(*in, type, *plan, true);
    bytes[2] = cuda::contrastive_pairs_backward_workspace(*in, type, *plan, false);
  });
}

EMU_EXPORT const char* forward(const cuda::ContrastivePairs* in, int dtype, const cuda::PairsPlan* plan,
                               const cuda::PairsResult* out, void* workspace) {
  return emu::message_of([&] {
    return cuda::contrastive_pairs(*in, static_cast<cuda::Dtype>(dtype), *plan, *out, workspace, nullptr);
  });
}

EMU_EXPORT const char* backward(const cuda::ContrastivePairs* in, int dtype, const cuda::PairsPlan* plan,
                                const cuda::PairsSaved* saved, bool detach_norm,
                                const cuda::PairsGradients* out, void* workspace) {
  return emu::message_of([&] {
    return cuda::contrastive_pairs_backward(*in, static_cast<cuda::Dtype>(dtype), *plan, *saved, detach_norm,
                                            *out, workspace, nullptr);
  });
}
