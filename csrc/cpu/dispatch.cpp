#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace ecgfast {

#define ECGFAST_ENTRY(result, name, args) name,
#define ECGFAST_TABLE(isa)                                             \
  namespace isa {                                                      \
  ECGFAST_KERNELS(ECGFAST_DECLARE)                                     \
  static const Kernels table = {#isa, ECGFAST_KERNELS(ECGFAST_ENTRY)}; \
  }

ECGFAST_TABLE(baseline)
#ifdef ECGFAST_X86_ISAS
ECGFAST_TABLE(avx2)
ECGFAST_TABLE(avx512)
#endif

namespace {

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
#ifdef ECGFAST_X86_ISAS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512cd"))
    found.push_back(&avx512::table);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    found.push_back(&avx2::table);
#endif
  found.push_back(&baseline::table);
  return found;
}

const Kernels* find(const std::string& name) {
  for (const Kernels* k : usable())
    if (name == k->isa) return k;
  return nullptr;
}

const Kernels* initial() {
  const char* wanted = std::getenv("ECGFAST_CPU_ISA");
  const Kernels* found = wanted ? find(wanted) : nullptr;
  return found ? found : usable().front();
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{initial()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Kernels* k : usable()) names.emplace_back(k->isa);
  return names;
}

bool set_isa(const std::string& name) {
  const Kernels* found = find(name);
  if (found) current().store(found, std::memory_order_relaxed);
  return found != nullptr;
}

}  // namespace ecgfast
