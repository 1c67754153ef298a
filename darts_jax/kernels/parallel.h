// Work spread over XLA's threads, and arrays that a thread keeps.

#ifndef DARTS_JAX_KERNELS_PARALLEL_H_
#define DARTS_JAX_KERNELS_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace planes {

namespace ffi = xla::ffi;

constexpr int kSpins = 64;  // looks at whether others are done, before it waits to be woken

// Runs work(first, last) on every run of `chunk` numbers below `count`, spread over the
// pool; returns when all are done.
template <typename F>
void ParallelFor(ffi::ThreadPool& pool, int64_t count, int64_t chunk, F work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> finished{0};
    std::mutex mutex;
    std::condition_variable done;
  };
  auto shared = std::make_shared<Shared>();
  // A helper that starts late finds no work left and touches only what it owns.
  const int64_t chunks = (count + chunk - 1) / chunk;
  auto loop = [shared, count, chunk, chunks, work] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < chunks; ++mine) {
      work(i * chunk, std::min(count, (i + 1) * chunk));
    }
    if (mine == 0 || shared->finished.fetch_add(mine) + mine < chunks) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), chunks) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([loop] { loop(); });
  loop();
  // To be woken takes longer than most of what the others still do.
  for (int i = 0; i < kSpins && shared->finished < chunks; ++i) std::this_thread::yield();
  if (shared->finished == chunks) return;
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->finished == chunks; });
}

// Tasks that do not depend on each other, and what follows when all are done.
struct Job {
  int64_t tasks;
  std::function<void(int64_t)> run;
  std::function<void()> finish;
};

// Runs several jobs without waiting for one to end before the next begins. If `in_turn`, task
// i of a job waits for task i of the job before, where it has as many.
inline void RunJobs(ffi::ThreadPool& pool, const std::vector<Job>& jobs, bool in_turn = false) {
  if (jobs.empty()) return;
  const auto unequal = [&](const Job& job) { return job.tasks != jobs[0].tasks; };
  if (in_turn && std::any_of(jobs.begin(), jobs.end(), unequal)) {
    for (const Job& job : jobs) RunJobs(pool, {job});
    return;
  }
  std::vector<int64_t> ends;
  int64_t total = 0;
  for (const Job& job : jobs) ends.push_back(total += job.tasks);
  std::vector<std::atomic<int64_t>> done(in_turn ? jobs[0].tasks : 0);
  ParallelFor(pool, total, 1, [&](int64_t i, int64_t) {
    const int64_t at = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
    const int64_t task = i - (ends[at] - jobs[at].tasks);
    // Tasks are taken in order, so the one waited for has been taken before.
    while (in_turn && done[task].load(std::memory_order_acquire) < at) {
      std::this_thread::yield();
    }
    jobs[at].run(task);
    if (in_turn) done[task].store(at + 1, std::memory_order_release);
  });
  for (const Job& job : jobs) {
    if (job.finish) job.finish();
  }
}

// A number that no other job has.
inline int64_t NextJob() {
  static std::atomic<int64_t> jobs{0};
  return ++jobs;
}

// Returns this thread's array of `count` numbers, of which the first `zeros` are zeros when a
// job first asks for it; all are then as the job's task before left them.
template <typename T>
T* Scratch(int64_t count, int64_t zeros, int64_t job) {
  thread_local std::vector<T> buffer;
  thread_local int64_t last = 0;
  if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(count);
  if (last != job) std::fill(buffer.begin(), buffer.begin() + zeros, T(0));
  last = job;
  return buffer.data();
}

template <typename T>
T* Scratch(int64_t count) {
  return Scratch<T>(count, count, NextJob());
}

// An array, of zeros unless told otherwise, that goes back to its thread: in a heap that the
// compiler of the program has left in pieces, an allocation of its size is a long search.
template <typename T>
class Recycled {
 public:
  explicit Recycled(int64_t count, bool zeros = true) {
    if (!Free().empty()) numbers_ = std::move(Free().back()), Free().pop_back();
    if (static_cast<int64_t>(numbers_.size()) < count) numbers_.resize(count);
    if (zeros) std::fill(numbers_.begin(), numbers_.begin() + count, T{});
  }
  Recycled(Recycled&&) = default;
  ~Recycled() {
    if (numbers_.capacity()) Free().push_back(std::move(numbers_));
  }
  T* data() { return numbers_.data(); }

 private:
  static std::vector<std::vector<T>>& Free() {
    thread_local std::vector<std::vector<T>> free;
    return free;
  }
  std::vector<T> numbers_;
};

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_PARALLEL_H_
