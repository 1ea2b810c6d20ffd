// Launches: the grid, shared memory and its poison.
//
// Dynamic shared memory is heap memory of exactly the size asked for, so AddressSanitizer guards its ends; an
// array taken with shared_array() is an allocation of its own, guarded on both sides. Static __shared__
// variables are thread-local: this library's thread-local segment holds nothing else, and is poisoned as a
// whole. Poison is 0xFF bytes: NaN as float, bfloat16 or half, -1 as an integer.
#pragma once
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <map>
#include <memory>

#include "block.h"

namespace emu {

constexpr int kPoison = 0xFF;

inline thread_local char tls_anchor;

class SharedMemory {
 public:
  void reset(size_t bytes) {
    limit_ = bytes;
    whole_.reset();
    arrays_.clear();
    poison_static();
  }

  void* whole() {
    if (!whole_) whole_ = allocate(limit_);
    return whole_.get();
  }

  // The array at `offset` of dynamic shared memory, the same for all threads that ask.
  void* array(size_t offset, size_t bytes) {
    if (offset + bytes > limit_)
      throw Error("shared memory: " + std::to_string(offset + bytes) + " bytes used, " +
                  std::to_string(limit_) + " asked for at launch");
    auto [it, fresh] = arrays_.try_emplace(offset);
    if (fresh)
      it->second = {allocate(bytes), bytes};
    else if (it->second.bytes != bytes)
      throw Error("shared memory: threads disagree on an array's size");
    return it->second.memory.get();
  }

 private:
  using Memory = std::unique_ptr<void, void (*)(void*)>;
  struct Array {
    Memory memory{nullptr, std::free};
    size_t bytes = 0;
  };

  static Memory allocate(size_t bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, 128, bytes ? bytes : 1)) throw std::bad_alloc();
    std::memset(p, kPoison, bytes);
    return Memory(p, std::free);
  }

  static void poison_static() {
    tls_anchor = 0;  // makes sure that the segment exists
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
          const auto here = reinterpret_cast<uintptr_t>(&SharedMemory::poison_static);
          const ElfW(Phdr)* tls = nullptr;
          bool ours = false;
          for (int n = 0; n < info->dlpi_phnum; ++n) {
            const ElfW(Phdr) & h = info->dlpi_phdr[n];
            if (h.p_type == PT_TLS) tls = &h;
            if (h.p_type == PT_LOAD && here - info->dlpi_addr - h.p_vaddr < h.p_memsz) ours = true;
          }
          if (ours && tls && info->dlpi_tls_data) std::memset(info->dlpi_tls_data, kPoison, tls->p_memsz);
          return ours ? 1 : 0;
        },
        nullptr);
  }

  size_t limit_ = 0;
  Memory whole_{nullptr, std::free};
  std::map<size_t, Array> arrays_;
};

inline SharedMemory shared_memory;
inline Schedule schedule;
inline uint3 block_index;
inline dim3 block_size, grid_size;

// Called for every block before its threads start; cp.async registers itself here.
inline std::vector<void (*)()> on_block_start;

template <typename Body>
void launch(dim3 grid, dim3 threads, size_t shared_bytes, Body&& body) {
  const std::function<void()> thread(body);
  grid_size = grid;
  block_size = threads;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        shared_memory.reset(shared_bytes);
        for (auto* reset : on_block_start) reset();
        block.run(thread, threads, schedule);
      }
}

// What a driver's extern "C" function returns: null, or what went wrong. The body may return a cudaError_t.
template <typename Body>
const char* message_of(Body&& body) {
  static std::string text;
  try {
    if constexpr (std::is_void_v<decltype(body())>)
      body();
    else if (const auto error = body())
      throw Error("launch: cudaError_t " + std::to_string(static_cast<int>(error)));
    return nullptr;
  } catch (const std::exception& e) {
    text = e.what();
    return text.c_str();
  }
}

}  // namespace emu
