// The local contrastive kernels under the emulator, for test_local_contrastive.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/local_contrastive.cuh"

using namespace ecgfast;
using namespace ecgfast::cuda;

namespace {

template <typename Memory>
size_t shared_bytes() {
  SharedArena arena;
  Memory memory(arena);
  return arena.used();
}

template <typename T>
void forward(const LocalContrastive& in, const LocalContrastiveResult& out, bool aligned) {
  emu::launch(dim3(in.batch * n_tiles(in.tokens)), dim3(kThreads), shared_bytes<ForwardMemory<T>>(),
              [&] { local_contrastive_forward<T>(in, out, aligned); });
}

template <typename T>
void backward(const LocalContrastive& in, const LocalContrastiveSaved& saved, void* grad_predictions,
              void* grad_targets, bool aligned) {
  emu::launch(dim3(2 * in.batch * n_tiles(in.tokens)), dim3(kThreads), shared_bytes<BackwardMemory<T>>(),
              [&] {
                local_contrastive_backward<T>(in, saved, static_cast<T*>(grad_predictions),
                                              static_cast<T*>(grad_targets), aligned);
              });
}

}  // namespace

EMU_EXPORT const char* forward(const LocalContrastive* in, int dtype, const LocalContrastiveResult* out,
                               bool aligned) {
  return emu::message_of([&] {
    switch (static_cast<Dtype>(dtype)) {
      case Dtype::float32:
        return forward<float>(*in, *out, aligned);
      case Dtype::bfloat16:
        return forward<__nv_bfloat16>(*in, *out, aligned);
      case Dtype::float16:
        return forward<__half>(*in, *out, aligned);
    }
  });
}

EMU_EXPORT const char* backward(const LocalContrastive* in, int dtype, const LocalContrastiveSaved* saved,
                                void* grad_predictions, void* grad_targets, bool aligned) {
  return emu::message_of([&] {
    switch (static_cast<Dtype>(dtype)) {
      case Dtype::float32:
        return backward<float>(*in, *saved, grad_predictions, grad_targets, aligned);
      case Dtype::bfloat16:
        return backward<__nv_bfloat16>(*in, *saved, grad_predictions, grad_targets, aligned);
      case Dtype::float16:
        return backward<__half>(*in, *saved, grad_predictions, grad_targets, aligned);
    }
  });
}
