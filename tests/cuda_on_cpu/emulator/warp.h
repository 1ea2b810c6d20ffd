// Warp collectives. The last lane to arrive computes the result of all lanes from their arguments, which lie
// on the lanes' own stacks.
#pragma once
#include "launch.h"

namespace emu {

template <typename T>
class Lanes {
 public:
  Lanes(unsigned mask, const std::array<void*, 32>& arguments) : mask_(mask), arguments_(arguments) {}
  bool has(int lane) const { return mask_ >> lane & 1; }
  unsigned mask() const { return mask_; }
  T& operator[](int lane) const { return *static_cast<T*>(arguments_[lane]); }
  template <typename F>
  void each(F f) const {
    for (int l = 0; l < 32; ++l)
      if (has(l)) f(l, (*this)[l]);
  }

 private:
  unsigned mask_;
  const std::array<void*, 32>& arguments_;
};

// `operation(Lanes<T>)` sees every lane's `argument` and may write to it. Its type tells the operations
// apart.
template <typename T, typename Operation>
void collective(unsigned mask, T& argument, Operation operation) {
  static const char identity = 0;
  block.meet(mask, &argument, &identity, [&](unsigned present, const std::array<void*, 32>& arguments) {
    operation(Lanes<T>(present, arguments));
  });
}

template <typename T>
struct Shuffled {
  T value;
  int source;
  T result;
};

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  Shuffled<T> s{value, source, value};
  collective(mask, s, [](Lanes<Shuffled<T>> lanes) {
    lanes.each([&](int lane, Shuffled<T>& mine) {
      if (!lanes.has(mine.source))
        throw Error("shuffle: lane " + std::to_string(lane) + " reads lane " + std::to_string(mine.source) +
                    ", which takes no part");
      mine.result = lanes[mine.source].value;
    });
  });
  return s.result;
}

inline unsigned ballot(unsigned mask, bool vote) {
  unsigned word = vote;
  collective(mask, word, [](Lanes<unsigned> lanes) {
    unsigned result = 0;
    lanes.each([&](int lane, unsigned v) { result |= v << lane; });
    lanes.each([&](int, unsigned& v) { v = result; });
  });
  return word;
}

template <typename T, typename Combine>
T reduce(unsigned mask, T value, Combine combine) {
  collective(mask, value, [&](Lanes<T> lanes) {
    bool first = true;
    T result{};
    lanes.each([&](int, T v) {
      result = first ? v : combine(result, v);
      first = false;
    });
    lanes.each([&](int, T& v) { v = result; });
  });
  return value;
}

}  // namespace emu

inline void __syncwarp(unsigned mask = ~0u) {
  char nothing = 0;
  emu::collective(mask, nothing, [](emu::Lanes<char>) {});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emu::shuffle(mask, value, (emu::block.lane() & ~(width - 1)) | (source & (width - 1)));
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = emu::block.lane(), source = lane ^ bits;
  const bool beyond = (source & ~(width - 1)) > (lane & ~(width - 1));
  return emu::shuffle(mask, value, beyond ? lane : source);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emu::block.lane(), source = (lane & (width - 1)) + static_cast<int>(delta);
  return emu::shuffle(mask, value, source < width ? lane + static_cast<int>(delta) : lane);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emu::block.lane(), source = (lane & (width - 1)) - static_cast<int>(delta);
  return emu::shuffle(mask, value, source >= 0 ? lane - static_cast<int>(delta) : lane);
}

inline unsigned __ballot_sync(unsigned mask, int vote) { return emu::ballot(mask, vote != 0); }
inline int __any_sync(unsigned mask, int vote) { return emu::ballot(mask, vote != 0) != 0; }
inline int __all_sync(unsigned mask, int vote) { return emu::ballot(mask, vote == 0) == 0; }
inline unsigned __reduce_add_sync(unsigned mask, unsigned v) {
  return emu::reduce(mask, v, [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned v) {
  return emu::reduce(mask, v, [](unsigned a, unsigned b) { return std::max(a, b); });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned v) {
  return emu::reduce(mask, v, [](unsigned a, unsigned b) { return std::min(a, b); });
}
