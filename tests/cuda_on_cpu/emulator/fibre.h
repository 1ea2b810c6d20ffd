// Fibres: one stack and one saved stack pointer per CUDA thread, switched by hand (System V x86-64).
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__)
#error "the CUDA emulator switches stacks with x86-64 assembly"
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#else
#define EMU_ASAN 0
#endif

extern "C" void emu_switch_stack(void** save, void* load);

// One translation unit per library includes the emulator, so the definition can live in the header.
asm(R"(
.pushsection .text
.globl emu_switch_stack
.hidden emu_switch_stack
.type emu_switch_stack,@function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack,.-emu_switch_stack
.popsection
)");

namespace emu {

constexpr size_t kPage = 4096;
constexpr size_t kStackBytes = EMU_ASAN ? 256 << 10 : 64 << 10;

// Stacks that outlive the blocks that run on them; the lowest page of each is a guard.
class StackPool {
 public:
  char* at(size_t n) {
    if (n >= count_) grow(n + 1);
    return memory_ + n * kStackBytes;
  }
  ~StackPool() { release(); }

 private:
  void grow(size_t count) {
    release();
    void* p = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(p);
    count_ = count;
    for (size_t n = 0; n < count; ++n) mprotect(memory_ + n * kStackBytes, kPage, PROT_NONE);
  }
  void release() {
#if EMU_ASAN
    // Whoever gets these addresses next must not find the red zones of abandoned fibres.
    if (memory_) __asan_unpoison_memory_region(memory_, count_ * kStackBytes);
#endif
    if (memory_) munmap(memory_, count_ * kStackBytes);
    memory_ = nullptr;
  }
  char* memory_ = nullptr;
  size_t count_ = 0;
};

// Where execution can be switched to, with what AddressSanitizer has to know about its stack.
struct Context {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;
};

// `entry` must never return.
inline Context make_context(char* stack, void (*entry)()) {
#if EMU_ASAN
  __asan_unpoison_memory_region(stack + kPage,
                                kStackBytes - kPage);  // an abandoned fibre leaves its red zones
#endif
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // keeps the stack pointer at 8 modulo 16 on entry, as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  return {top, stack + kPage, kStackBytes - kPage, nullptr};
}

inline void switch_context(Context& from, Context& to) {
#if EMU_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_size);
#endif
  emu_switch_stack(&from.stack_pointer, to.stack_pointer);
#if EMU_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// To be called first on a new fibre: tells where it came from.
inline void arrived_from(Context& origin) {
#if EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &origin.stack_bottom, &origin.stack_size);
#else
  (void)origin;
#endif
}

}  // namespace emu
