#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ecgfast {

#define ECGFAST_ENTRY(result, name, args) name,
#define ECGFAST_AVX512_ENTRY(result, name, args) avx512::name,
#define ECGFAST_TABLE_OF(isa, vector_entry)                                               \
  namespace isa {                                                                         \
  ECGFAST_KERNELS(ECGFAST_DECLARE)                                                        \
  static const Kernels table = {                                                          \
      #isa, ECGFAST_PRODUCT_KERNELS(ECGFAST_ENTRY) ECGFAST_VECTOR_KERNELS(vector_entry)}; \
  }
#define ECGFAST_TABLE(isa) ECGFAST_TABLE_OF(isa, ECGFAST_ENTRY)
// What AVX-512 is extended by serves products alone: the vector kernels are those of avx512, where it is
// built.
#ifdef ECGFAST_HAS_avx512
#define ECGFAST_EXTENDED_TABLE(isa) ECGFAST_TABLE_OF(isa, ECGFAST_AVX512_ENTRY)
#else
#define ECGFAST_EXTENDED_TABLE(isa) ECGFAST_TABLE(isa)
#endif

ECGFAST_TABLE(baseline)
#ifdef ECGFAST_HAS_avx2
ECGFAST_TABLE(avx2)
#endif
#ifdef ECGFAST_HAS_avx512
ECGFAST_TABLE(avx512)
#endif
#ifdef ECGFAST_HAS_avx512_bf16
ECGFAST_EXTENDED_TABLE(avx512_bf16)
#endif
#ifdef ECGFAST_HAS_amx
ECGFAST_EXTENDED_TABLE(amx)
#endif

namespace {

#ifdef __x86_64__
// The tiles need the machine's support and, once per process, the system's leave to grow its register state.
bool amx_usable() {
  static const bool usable = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
    if ((d & kTile) == 0 || (d & kBf16) == 0) return false;
#ifdef __linux__
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }();
  return usable;
}

// LZCNT, MOVBE and F16C, which not every compiler's __builtin_cpu_supports knows.
bool rest_of_v3() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kMovbe = 1u << 22, kF16c = 1u << 29, kLzcnt = 1u << 5;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kMovbe) == 0 || (c & kF16c) == 0) return false;
  return __get_cpuid(0x80000001u, &a, &b, &c, &d) && (c & kLzcnt) != 0;
}
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
#ifdef __x86_64__
  __builtin_cpu_init();
  // All that -march=x86-64-v3 lets the compiler use; virtual machines may mask some of it.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && rest_of_v3();
  const bool avx512 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  [[maybe_unused]] const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef ECGFAST_HAS_amx
  if (bf16 && amx_usable()) found.push_back(&amx::table);
#endif
  // Intel's cores take longer for dot products of bf16 than for multiply-adds of twice as many fp32 numbers.
  [[maybe_unused]] const bool slow_dots = __builtin_cpu_is("intel");
#ifdef ECGFAST_HAS_avx512_bf16
  if (bf16 && !slow_dots) found.push_back(&avx512_bf16::table);
#endif
#ifdef ECGFAST_HAS_avx512
  if (avx512) found.push_back(&avx512::table);
#endif
#ifdef ECGFAST_HAS_avx512_bf16
  if (bf16 && slow_dots) found.push_back(&avx512_bf16::table);
#endif
#ifdef ECGFAST_HAS_avx2
  if (v3) found.push_back(&avx2::table);
#endif
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
