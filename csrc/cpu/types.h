#pragma once
#include <stdint.h>

namespace ecgfast {

enum class DType : int32_t { f32, bf16, f16, f64 };

}  // namespace ecgfast
