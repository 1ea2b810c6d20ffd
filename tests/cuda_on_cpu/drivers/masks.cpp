// The mask kernels and their launches under the emulator, for test_mask_kernels.py.
#include "../emulator/cuda_emulator.h"
// The kernels come after the emulator.
#include "../../../csrc/cuda/lead_mask.cu"
#include "../../../csrc/cuda/span_mask.cu"

using namespace ecgfast;

EMU_EXPORT const char* lead_mask(const cuda::LeadMask* in, bool* keep) {
  return emu::message_of([&] { return cuda::lead_mask(*in, keep, nullptr); });
}

EMU_EXPORT const char* span_mask_count(const cuda::SpanMask* in, int32_t* covered) {
  return emu::message_of([&] { return cuda::span_mask_count(*in, covered, nullptr); });
}

EMU_EXPORT const char* span_mask(const cuda::SpanMask* in, int masked, int32_t* index, bool* mask) {
  return emu::message_of([&] { return cuda::span_mask(*in, masked, index, mask, nullptr); });
}
