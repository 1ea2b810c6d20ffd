// The vectorised random stream, for kernels that are not compiled per ISA. Compiled once per ISA.
#include "kernels.h"
#include "philox_vector.h"

namespace ecgfast {
namespace ECGFAST_ISA {

ECGFAST_KERNELS(ECGFAST_DECLARE)

void philox_fill(const Stream& stream, uint32_t first_block, int64_t n_blocks, uint32_t* words) {
  ::ecgfast::philox_fill(stream, first_block, n_blocks, words);
}

}  // namespace ECGFAST_ISA
}  // namespace ecgfast
