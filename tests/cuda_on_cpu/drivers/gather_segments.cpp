// The kernel that crops segments and its launch under the emulator, for test_gather_segments_kernel.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/gather_segments.cu"

using namespace ecgfast;

EMU_EXPORT const char* gather_segments(const cuda::GatherSegments* in, int type, void* signal) {
  return emu::message_of(
      [&] { return cuda::gather_segments(*in, static_cast<cuda::SignalType>(type), signal, nullptr); });
}
