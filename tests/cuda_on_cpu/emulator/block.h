// Runs the threads of one CUDA block as fibres: scheduling, __syncthreads and the meetings of a warp's lanes.
//
// A fibre runs until it waits, so what one thread can see of another depends on the schedule: a kernel that
// lacks a barrier gives different results in different schedules. The rules are stricter than the hardware's:
// every thread of the block must come to every barrier, all at the same line, and nobody may exit before one.
#pragma once
#include <vector_types.h>

#include <algorithm>
#include <array>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibre.h"

namespace emu {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Which of the threads that can run goes first: "fwd", the lowest; "rev", the highest; "rand:<seed>", a
// random order of warps and of lanes in them, drawn anew at each barrier. The first in order runs as far as
// it can, so that one warp is at the next barrier when another has not begun.
class Schedule {
 public:
  explicit Schedule(const std::string& text = "fwd") : text_(text) {
    if (text.rfind("rand:", 0) == 0)
      random_.seed(std::stoul(text.substr(5)));
    else if (text != "fwd" && text != "rev")
      throw Error("schedule: got '" + text + "', takes fwd, rev or rand:<seed>");
  }

  void arrange(std::vector<int>& order) {
    std::iota(order.begin(), order.end(), 0);
    if (text_ == "rev") std::reverse(order.begin(), order.end());
    if (text_[1] != 'a') return;
    std::vector<unsigned> rank((order.size() + 31) / 32);
    for (unsigned& r : rank) r = random_();
    std::shuffle(order.begin(), order.end(), random_);
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return rank[x / 32] < rank[y / 32]; });
  }

 private:
  std::string text_;
  std::mt19937 random_;
};

struct Site {
  const char* file;
  int line;
  bool operator==(const Site& o) const { return line == o.line && std::string(file) == o.file; }
  std::string text() const {
    const std::string path(file);
    return path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(line);
  }
};

enum class State { runnable, at_barrier, at_collective, done };

struct Fibre {
  Context context;
  State state;
  uint3 thread;
  int linear;
};

// The lanes of one warp that wait for a collective operation.
struct Warp {
  unsigned arrived = 0, exited = 0;
  std::array<unsigned, 32> mask{};
  std::array<void*, 32> argument{};
  std::array<const void*, 32> operation{};
};

class Block {
 public:
  // Runs `body` once per thread; throws what a thread throws, or an Error for a deadlock.
  void run(const std::function<void()>& body, dim3 size, Schedule& schedule) {
    schedule_ = &schedule;
    start(body, size);
    const std::unique_ptr<Fibre*, void (*)(Fibre**)> leave(&current_, [](Fibre** c) { *c = nullptr; });
    while (n_done_ < n_threads()) {
      while (next_ < n_threads() && fibres_[order_[next_]].state != State::runnable) ++next_;
      if (next_ == n_threads()) throw Error("deadlock: " + waiting_threads());
      current_ = &fibres_[order_[next_]];
      switch_context(scheduler_, current_->context);
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

  struct Votes {
    int any = 0, all = 1, count = 0;
  };

  // __syncthreads and its reductions.
  Votes barrier(bool vote, Site site) {
    if (n_done_) throw Error("divergent barrier: a thread exited before the one at " + site.text());
    if (n_waiting_ == 0) {
      site_ = site;
      votes_ = {};
    } else if (!(site == site_)) {
      throw Error("divergent barrier: some threads at " + site_.text() + ", some at " + site.text());
    }
    votes_.any |= vote;
    votes_.all &= vote;
    votes_.count += vote;
    if (++n_waiting_ < n_threads()) {
      wait(State::at_barrier);
    } else {
      n_waiting_ = 0;
      result_ = votes_;
      for (Fibre& f : fibres_) f.state = State::runnable;
      arrange();
    }
    return result_;
  }

  // Lets the lanes of `mask` meet: the last one to come runs `finish(arguments of all lanes)` for all of
  // them. `operation` tells collective operations apart.
  template <typename Finish>
  void meet(unsigned mask, void* argument, const void* operation, Finish finish) {
    Warp& w = warps_[current_->linear / 32];
    const unsigned me = 1u << lane();
    mask &= live_lanes();
    if (!(mask & me)) throw Error("warp collective: the calling lane is not in its own mask");
    if (mask & w.exited) throw Error("warp collective: the mask names a lane that has exited");
    w.arrived |= me;
    w.mask[lane()] = mask;
    w.argument[lane()] = argument;
    w.operation[lane()] = operation;
    if ((w.arrived & mask) != mask) return wait(State::at_collective);
    for (int l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      if (w.mask[l] != mask) throw Error("warp collective: lanes came with different masks");
      if (w.operation[l] != operation) throw Error("warp collective: lanes came to different operations");
    }
    finish(mask, w.argument);
    w.arrived &= ~mask;
    for (int l = 0; l < 32; ++l)
      if (mask >> l & 1) release(current_->linear / 32 * 32 + l);
  }

  // Whether a kernel is running, as opposed to the host code that launches it.
  bool active() const { return current_ != nullptr; }
  int lane() const { return current_->linear % 32; }
  int n_threads() const { return static_cast<int>(fibres_.size()); }
  const Fibre& current() const { return *current_; }

 private:
  void start(const std::function<void()>& body, dim3 size);

  static void entry();

  void finish_thread() {
    current_->state = State::done;
    ++n_done_;
    Warp& w = warps_[current_->linear / 32];
    w.exited |= 1u << lane();
    for (int l = 0; l < 32 && !error_; ++l)
      if ((w.arrived >> l & 1) && (w.mask[l] & w.exited))
        fail("warp collective: the mask names a lane that has exited");
    if (n_waiting_ && !error_) fail("divergent barrier: a thread exited before the one at " + site_.text());
    switch_context(current_->context, scheduler_);
    std::abort();
  }

  void fail(const std::string& message) { error_ = std::make_exception_ptr(Error(message)); }

  void arrange() {
    order_.resize(fibres_.size());
    place_.resize(fibres_.size());
    schedule_->arrange(order_);
    for (int n = 0; n < n_threads(); ++n) place_[order_[n]] = n;
    next_ = 0;
  }

  void release(int thread) {
    fibres_[thread].state = State::runnable;
    next_ = std::min(next_, place_[thread]);
  }

  void wait(State state) {
    current_->state = state;
    switch_context(current_->context, scheduler_);
  }

  unsigned live_lanes() const {
    const int left = n_threads() - current_->linear / 32 * 32;
    return left >= 32 ? ~0u : (1u << left) - 1;
  }

  std::string waiting_threads() const {
    const auto count = [&](State s) {
      return std::to_string(
          std::count_if(fibres_.begin(), fibres_.end(), [&](const Fibre& f) { return f.state == s; }));
    };
    return count(State::at_barrier) + " threads wait at a barrier (" + (n_waiting_ ? site_.text() : "-") +
           "), " + count(State::at_collective) + " in a warp collective, " + count(State::done) +
           " have exited";
  }

  Schedule* schedule_ = nullptr;
  std::vector<int> order_, place_;  // threads in order of precedence, and where each stands in it
  int next_ = 0;                    // nobody before this place can run
  StackPool stacks_;
  Context scheduler_;
  std::vector<Fibre> fibres_;
  std::vector<Warp> warps_;
  const std::function<void()>* body_ = nullptr;
  Fibre* current_ = nullptr;
  int n_done_ = 0, n_waiting_ = 0;
  Site site_{"", 0};
  Votes votes_, result_;
  std::exception_ptr error_;
};

// One block at a time, on one OS thread: plain globals leave thread-local storage to __shared__ (see
// launch.h).
inline Block block;

inline void Block::entry() {
  arrived_from(block.scheduler_);
  try {
    (*block.body_)();
  } catch (...) {
    block.error_ = std::current_exception();
  }
  block.finish_thread();
}

inline void Block::start(const std::function<void()>& body, dim3 size) {
  const unsigned n = size.x * size.y * size.z;
  body_ = &body;
  n_done_ = n_waiting_ = 0;
  error_ = nullptr;
  warps_.assign((n + 31) / 32, Warp{});
  fibres_.resize(n);
  stacks_.at(n - 1);
  for (unsigned i = 0; i < n; ++i)
    fibres_[i] = {make_context(stacks_.at(i), &Block::entry),
                  State::runnable,
                  {i % size.x, i / size.x % size.y, i / (size.x * size.y)},
                  static_cast<int>(i)};
  arrange();
}

}  // namespace emu
