// Arrays of the program, image after image, in the order of lanes (lanes.h), and back.

#ifndef DARTS_JAX_KERNELS_SHUFFLE_H_
#define DARTS_JAX_KERNELS_SHUFFLE_H_

#include <deque>
#include <utility>

#include "parallel.h"
#include "vectors.h"

namespace planes {

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DARTS_JAX_SHUFFLE __builtin_shufflevector
#endif
#endif

// With `kZip` lane i of a, lane i of b, lane i + 1 of a, ... from i = kStart on; else every
// second lane of a followed by b, from kStart on.
template <typename T, bool kZip, int kStart, size_t... kI>
inline typename Vector<T>::Type Shuffled(typename Vector<T>::Type a,
                                         typename Vector<T>::Type b,
                                         std::index_sequence<kI...>) {
  constexpr int kLanes = Vector<T>::kLanes;
  constexpr auto kFrom = [](int i) {
    return kZip ? kStart + i / 2 + (i % 2) * kLanes : kStart + 2 * i;
  };
#ifdef DARTS_JAX_SHUFFLE
  return DARTS_JAX_SHUFFLE(a, b, kFrom(kI)...);
#else
  return typename Vector<T>::Type{
      (kFrom(kI) < kLanes ? a[kFrom(kI)] : b[kFrom(kI) - kLanes])...};
#endif
}

// Two vectors as the cards of two halves: one from each in turn, or back.
template <typename T, bool kForth>
inline void ShufflePair(typename Vector<T>::Type& a, typename Vector<T>::Type& b) {
  constexpr int kSecond = kForth ? Vector<T>::kLanes / 2 : 1;
  constexpr auto kIndex = std::make_index_sequence<Vector<T>::kLanes>();
  const auto first = Shuffled<T, kForth, 0>(a, b, kIndex);
  b = Shuffled<T, kForth, kSecond>(a, b, kIndex);
  a = first;
}

// Moves `count` numbers by one round of a shuffle of cards, the first half's between the
// second half's, or back.
template <typename T, bool kForth>
void ShuffleOnce(const T* from, int64_t count, T* to) {
  constexpr int kLanes = Vector<T>::kLanes;
  const int64_t half = count / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t near = 2 * i, next = 2 * i + kLanes, far = half + i;
    auto a = Load(from + (kForth ? i : near)), b = Load(from + (kForth ? far : next));
    ShufflePair<T, kForth>(a, b);
    Store(to + (kForth ? near : i), a), Store(to + (kForth ? next : far), b);
  }
}

// Two rounds at once, of numbers that four whole vectors divide.
template <typename T, bool kForth>
void ShuffleTwice(const T* from, int64_t count, T* to) {
  constexpr int kLanes = Vector<T>::kLanes;
  const int64_t quarter = count / 4;
  for (int64_t i = 0; i < quarter; i += kLanes) {
    typename Vector<T>::Type v[4];
    for (int k = 0; k < 4; ++k) {
      v[k] = Load(from + (kForth ? k * quarter + i : 4 * i + k * kLanes));
    }
    if constexpr (kForth) {
      ShufflePair<T, true>(v[0], v[2]), ShufflePair<T, true>(v[1], v[3]);
      ShufflePair<T, true>(v[0], v[1]), ShufflePair<T, true>(v[2], v[3]);
    } else {
      ShufflePair<T, false>(v[0], v[1]), ShufflePair<T, false>(v[2], v[3]);
      ShufflePair<T, false>(v[0], v[2]), ShufflePair<T, false>(v[1], v[3]);
    }
    for (int k = 0; k < 4; ++k) {
      Store(to + (kForth ? 4 * i + k * kLanes : k * quarter + i), v[k]);
    }
  }
}

// [images, pixels] to [pixels, images], or back, with the images in a fixed order of their
// own: a round for every bit of a lane's number. `temporary` has room for twice as much, and
// `from` may be its first half.
template <typename T, bool kForth>
void Shuffle(const T* from, int64_t count, T* temporary, T* to) {
  constexpr int kLanes = Vector<T>::kLanes;
  const bool twice = count % (4 * kLanes) == 0;
  for (int left = kLanes; left > 1;) {
    const bool two = twice && left > 2;
    left /= two ? 4 : 2;
    T* const next = left == 1 ? to : from == temporary ? temporary + count : temporary;
    two ? ShuffleTwice<T, kForth>(from, count, next) : ShuffleOnce<T, kForth>(from, count, next);
    from = next;
  }
}

// Rows [B, pixels] with the batch in groups, [B / images, pixels, images]: the batch is a
// multiple of a vector's lanes. Or back.
template <typename T, bool kForth>
void ShuffleRow(const T* from, int64_t batch, int64_t pixels, T* to) {
  const int64_t count = pixels * Vector<T>::kLanes;
  Recycled<T> temporary(2 * count, false);
  for (int64_t b = 0; b < batch; b += Vector<T>::kLanes, from += count, to += count) {
    Shuffle<T, kForth>(from, count, temporary.data(), to);
  }
}

// Rows `from` [rows, B, pixels] in the order of lanes, or back, at `to`.
template <typename T, bool kForth>
Job ShuffleJob(const T* from, int64_t rows, int64_t batch, int64_t pixels, T* to) {
  const auto run = [=](int64_t row) {
    const int64_t at = row * batch * pixels;
    ShuffleRow<T, kForth>(from + at, batch, pixels, to + at);
  };
  return {rows, run, nullptr};
}

// What a call takes from the program, in the order that it works in.
template <typename T>
class Entrance {
 public:
  Entrance(bool lanes, int64_t batch) : lanes_(lanes), batch_(batch) {}

  // Returns where `from` [rows, B, pixels] will lie after Run.
  const T* Take(const T* from, int64_t rows, int64_t pixels) {
    if (!lanes_) return from;
    arrays_.emplace_back(rows * batch_ * pixels, false);
    T* const to = arrays_.back().data();
    jobs_.push_back(ShuffleJob<T, true>(from, rows, batch_, pixels, to));
    return to;
  }
  void Run(ffi::ThreadPool& pool) { RunJobs(pool, jobs_), jobs_.clear(); }

 private:
  bool lanes_;
  int64_t batch_;
  std::deque<Recycled<T>> arrays_;
  std::vector<Job> jobs_;
};

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_SHUFFLE_H_
