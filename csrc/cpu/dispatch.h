// Chooses the kernels of the best ISA that this machine has.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace ecgfast {

// The kernels in use. ECGFAST_CPU_ISA or set_isa forces a lower ISA than the best.
const Kernels& kernels();

// ISAs compiled in that this machine can run, best first.
std::vector<std::string> usable_isas();

// Switches to an ISA by name; false where it is not compiled in or this machine lacks it.
bool set_isa(const std::string& name);

}  // namespace ecgfast
