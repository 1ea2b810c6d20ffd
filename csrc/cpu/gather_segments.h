#pragma once
#include "types.h"

namespace ecgfast {

// Segments cropped out of recordings that lie in one array, lead-major: see ecgfast/data/store/store.py.
struct GatherArgs {
  bool raw;     // int16 microvolts out; else dtype, in millivolts
  DType dtype;  // of signal
  int64_t n_leads, length;
  const int16_t* store;
  const int64_t* offset;      // [B] of the recording's block, in elements
  const int64_t* start;       // [B] first sample
  const int64_t* n_samples;   // [B] samples per lead of the recording
  const int64_t* lead_index;  // [n_leads], -1: a lead of zeros; null: all in order
  void* signal;               // [B, n_leads, length]
};

}  // namespace ecgfast
