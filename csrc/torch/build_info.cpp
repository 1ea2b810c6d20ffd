// What the libraries were built with, as an op: it fits every Python.
#include <string>

#include "build_config.h"
#include "common.h"

namespace ecgfast {
namespace {

// "key=value" lines.
std::string build_info() {
  return "compiler=" ECGFAST_COMPILER "\nflags=" ECGFAST_FLAGS "\ncpu_isas=" ECGFAST_ISAS
         "\ncuda_compiler=" ECGFAST_CUDA_COMPILER "\ncuda_architectures=" ECGFAST_CUDA_ARCHS
         "\ntorch_headers=" ECGFAST_TORCH_HEADERS "\ntorch_target=" ECGFAST_TORCH_TARGET;
}

}  // namespace
}  // namespace ecgfast

STABLE_TORCH_LIBRARY_FRAGMENT(ecgfast, m) { m.def("build_info() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(ecgfast, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&ecgfast::build_info));
}
