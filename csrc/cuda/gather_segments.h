// The kernel that crops segments, as a plain function.
#pragma once
#include <cuda_runtime_api.h>
#include <stdint.h>

namespace ecgfast::cuda {

enum class SignalType { int16, float32, bfloat16, float16, float64 };  // int16: microvolts, else millivolts

// See ecgfast/ops/gather_segments.py.
struct GatherSegments {
  const int16_t* store;       // [n_values]
  const int64_t* offset;      // [B]
  const int64_t* start;       // [B]
  const int64_t* n_samples;   // [B]
  const int64_t* lead_index;  // [leads], -1: a lead of zeros; null: all in order
  int64_t n_values, batch, leads, length;
};

// signal: [B, leads, length]. A segment outside its recording, a recording outside the store, or a lead that
// there is none of, is NaN; the least int16 for int16.
cudaError_t gather_segments(const GatherSegments& in, SignalType type, void* signal, cudaStream_t stream);

}  // namespace ecgfast::cuda
