// What a real transform of one length needs: see fft.h.
#pragma once
#include <stdint.h>

namespace ecgfast {

struct FftPlan {
  int64_t n;                // elements, even; n / 2 is the product of the radices
  int n_radices;            // passes
  int radices[40];          // 2, 3, 4, 5, 7, 8 or 16
  const void* roots;        // [n] pairs cos, sin of 2 pi k / n, in the accumulation type
  const int32_t* position;  // [n / 2]: where the passes leave a frequency of the complex transform
};

}  // namespace ecgfast
