// What csrc/cuda/ptx.cuh does with inline PTX, done in C++: the same names, the same fragment layouts (PTX
// ISA, "Matrix fragments for mma.m16n8k16" and its siblings), the same alignment rules.
#pragma once
#include "device.h"

namespace emu {

// cp.async as badly as the hardware may do it: the destination turns to poison at once, the data arrive at
// the wait.
class AsyncCopies {
 public:
  void issue(void* to, const void* from, bool valid) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || (valid && reinterpret_cast<uintptr_t>(from) % 16))
      throw Error("cp.async: an address is not a multiple of 16");
    std::memset(to, kPoison, 16);
    pending_.push_back({to, valid ? from : nullptr, group_});
  }
  void commit() { ++group_; }
  void wait(int allowed) {
    size_t kept = 0;
    for (const Copy& c : pending_) {
      if (c.group >= group_ - allowed)
        pending_[kept++] = c;
      else if (c.from)
        std::memcpy(c.to, c.from, 16);
      else
        std::memset(c.to, 0, 16);
    }
    pending_.resize(kept);
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int group;
  };
  std::vector<Copy> pending_;
  int group_ = 0;
};

inline std::vector<AsyncCopies> async_copies;
inline const bool async_copies_registered =
    (on_block_start.push_back([] { async_copies.assign(block_size.x * block_size.y * block_size.z, {}); }),
     true);

inline AsyncCopies& my_copies() { return async_copies[block.current().linear]; }

struct MmaArguments {
  const uint32_t* a;
  const uint32_t* b;
  float* c;
};

// D = A B + C for A 16 x K, B K x 8, with `kPerWord` elements of A or B in a 32-bit register.
template <int kDepth, int kPerWord, typename Value>
void mma(float* c, const uint32_t* a, const uint32_t* b, Value value) {
  constexpr int kHalf = kDepth / 2;  // registers for depth 0..kHalf-1 come before those for the rest
  MmaArguments mine{a, b, c};
  collective(~0u, mine, [&](Lanes<MmaArguments> lanes) {
    if (lanes.mask() != ~0u) throw Error("mma: needs all 32 lanes");
    float left[16][kDepth], right[kDepth][8];
    lanes.each([&](int lane, MmaArguments& m) {
      const int group = lane / 4, member = lane % 4;
      for (int word = 0; word < 4; ++word)
        for (int n = 0; n < kPerWord; ++n)
          left[group + word % 2 * 8][word / 2 * kHalf + member * kPerWord + n] = value(m.a[word], n);
      for (int word = 0; word < 2; ++word)
        for (int n = 0; n < kPerWord; ++n)
          right[word * kHalf + member * kPerWord + n][group] = value(m.b[word], n);
    });
    lanes.each([&](int lane, MmaArguments& m) {
      for (int n = 0; n < 4; ++n) {
        const int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
        float sum = m.c[n];
        for (int k = 0; k < kDepth; ++k) sum += left[row][k] * right[k][column];
        m.c[n] = sum;
      }
    });
  });
}

struct LdmatrixArguments {
  const void* row;
  uint32_t* words;
};

}  // namespace emu

namespace ecgfast::ptx {

inline void cp_async_16(void* shared, const void* global, bool valid) {
  emu::my_copies().issue(shared, global, valid);
}
inline void cp_async_commit() { emu::my_copies().commit(); }
template <int kPending>
void cp_async_wait() {
  emu::my_copies().wait(kPending);
}

// `pick(rows, lane, word)` makes a lane's 32 bits of one matrix, whose row n begins at rows(n).
template <typename Pick>
void ldmatrix(uint32_t (&r)[4], const void* row, Pick pick) {
  emu::LdmatrixArguments mine{row, r};
  emu::collective(~0u, mine, [&](emu::Lanes<emu::LdmatrixArguments> lanes) {
    if (lanes.mask() != ~0u) throw emu::Error("ldmatrix: needs all 32 lanes");
    lanes.each([&](int lane, emu::LdmatrixArguments& m) {
      if (reinterpret_cast<uintptr_t>(m.row) % 16)
        throw emu::Error("ldmatrix: a row's address is not a multiple of 16");
      for (int matrix = 0; matrix < 4; ++matrix) {
        const auto bytes = [&](int of) { return static_cast<const char*>(lanes[matrix * 8 + of].row); };
        pick(bytes, lane, reinterpret_cast<char*>(&m.words[matrix]));
      }
    });
  });
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  ldmatrix(r, row,
           [](auto rows, int lane, char* word) { std::memcpy(word, rows(lane / 4) + lane % 4 * 4, 4); });
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  ldmatrix(r, row, [](auto rows, int lane, char* word) {
    for (int n = 0; n < 2; ++n) std::memcpy(word + n * 2, rows(lane % 4 * 2 + n) + lane / 4 * 2, 2);
  });
}

inline void store_16(void* global, const uint32_t (&w)[4]) {
  if (reinterpret_cast<uintptr_t>(global) % 16)
    throw emu::Error("store: the address is not a multiple of 16");
  std::memcpy(global, w, 16);
}

inline uint32_t transpose_8x8(uint32_t x) {
  emu::collective(~0u, x, [](emu::Lanes<uint32_t> lanes) {
    if (lanes.mask() != ~0u) throw emu::Error("movmatrix: needs all 32 lanes");
    uint16_t matrix[8][8];
    lanes.each([&](int lane, uint32_t word) { std::memcpy(&matrix[lane / 4][lane % 4 * 2], &word, 4); });
    lanes.each([&](int lane, uint32_t& word) {
      const uint16_t column[2] = {matrix[lane % 4 * 2][lane / 4], matrix[lane % 4 * 2 + 1][lane / 4]};
      std::memcpy(&word, column, 4);
    });
  });
  return x;
}

inline void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu::mma<16, 2>(c, a, b,
                  [](uint32_t word, int n) { return emu::bits<float>(n ? word & 0xFFFF0000u : word << 16); });
}

inline void mma_m16n8k16_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu::mma<16, 2>(c, a, b, [](uint32_t word, int n) {
    return static_cast<float>(emu::bits<_Float16>(static_cast<uint16_t>(word >> (16 * n))));
  });
}

// The hardware reads the upper 19 bits.
inline void mma_m16n8k8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu::mma<8, 1>(c, a, b, [](uint32_t word, int) { return emu::bits<float>(word & 0xFFFFE000u); });
}

inline float exp2_approximate(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }  // flushes to zero
inline float log2_approximate(float x) { return std::log2(x); }

// Round to nearest, ties away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t u = emu::bits<uint32_t>(x);
  return (u & 0x7F800000u) == 0x7F800000u ? u : (u + 0x1000u) & 0xFFFFE000u;
}

}  // namespace ecgfast::ptx
