// Work spread over XLA's threads, and arrays that a thread keeps.

#ifndef DARTS_JAX_KERNELS_PARALLEL_H_
#define DARTS_JAX_KERNELS_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace planes {

namespace ffi = xla::ffi;

// Runs work(first, last) on every run of `chunk` numbers below `count`, spread over the
// pool; returns when all are done.
template <typename F>
void ParallelFor(ffi::ThreadPool& pool, int64_t count, int64_t chunk, F work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable done;
    int64_t finished = 0;
  };
  auto shared = std::make_shared<Shared>();
  // A helper that starts late finds no work left and touches only what it owns.
  const int64_t chunks = (count + chunk - 1) / chunk;
  auto loop = [shared, count, chunk, chunks, work] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < chunks; ++mine) {
      work(i * chunk, std::min(count, (i + 1) * chunk));
    }
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->finished += mine;
    if (shared->finished == chunks) shared->done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), chunks) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([loop] { loop(); });
  loop();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->finished == chunks; });
}

// A number that no other call of a kernel has.
inline int64_t NextCall() {
  static std::atomic<int64_t> calls{0};
  return ++calls;
}

// Returns this thread's array of `count` numbers: zeros when a call first asks for it, then
// as the call's task before left it.
template <typename T>
T* Scratch(int64_t count, int64_t call) {
  thread_local std::vector<T> buffer;
  thread_local int64_t last = 0;
  if (last != call) buffer.assign(count, T(0));
  last = call;
  return buffer.data();
}

template <typename T>
T* Scratch(int64_t count) {
  return Scratch<T>(count, NextCall());
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_PARALLEL_H_
