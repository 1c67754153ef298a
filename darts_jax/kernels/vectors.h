// Vectors as long as the machine's, in the compiler's own terms. Of longer ones GCC makes code
// that is many times slower (benchmarks/NOTES.md).

#ifndef DARTS_JAX_KERNELS_VECTORS_H_
#define DARTS_JAX_KERNELS_VECTORS_H_

#include <cstdint>
#include <cstring>
#include <utility>

namespace planes {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

// Whether the machine has 32 vector registers, or 16: how many sums a loop can hold.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

template <typename T>
struct Vector {
  static constexpr int kLanes = kBytes / sizeof(T);
  typedef T Type __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
};

template <typename T>
inline typename Vector<T>::Type Load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::Type*>(p);
}

template <typename T>
inline void Store(T* p, typename Vector<T>::Type v) {
  *reinterpret_cast<typename Vector<T>::Type*>(p) = v;
}

// In halves: a plain loop over the lanes would be a chain of dependent additions.
template <typename T, int kSize>
inline T AddLanes(const void* lanes) {
  typedef T Half __attribute__((vector_size(kSize / 2)));
  if constexpr (kSize > 16) {
    Half halves[2];
    std::memcpy(halves, lanes, kSize);
    const Half sum = halves[0] + halves[1];
    return AddLanes<T, kSize / 2>(&sum);
  }
  T numbers[kSize / sizeof(T)], total = 0;
  std::memcpy(numbers, lanes, kSize);
  for (const T number : numbers) total += number;
  return total;
}

template <typename T>
inline T AddLanes(typename Vector<T>::Type v) {
  return AddLanes<T, kBytes>(static_cast<const void*>(&v));
}

// The sum of f(i) over i < count, where f(i) of a vector type holds the numbers from i on and
// of a T one number. Written out, since a compiler may not reorder a plain loop's sum.
template <typename T, typename F>
inline T Sum(int64_t count, F f) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    a += f(i, V{});
    b += f(i + kLanes, V{});
  }
  T total = AddLanes<T>(a + b);
  for (; i < count; ++i) total += f(i, T(0));
  return total;
}

// Two sums at once: f adds what the numbers from i on give to its last two arguments.
template <typename T, typename F>
inline std::pair<T, T> TwoSums(int64_t count, F f) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V a[2] = {}, b[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    f(i, V{}, a[0], b[0]);
    f(i + kLanes, V{}, a[1], b[1]);
  }
  T total = AddLanes<T>(a[0] + a[1]), other = AddLanes<T>(b[0] + b[1]);
  for (; i < count; ++i) f(i, T(0), total, other);
  return {total, other};
}

// Reads one number or a vector of them, by the type of the last argument.
template <typename T>
inline T Read(const T* p, T) {
  return *p;
}

template <typename T>
inline typename Vector<T>::Type Read(const T* p, typename Vector<T>::Type) {
  return Load(p);
}

template <typename T>
inline void Write(T* p, T v) {
  *p = v;
}

template <typename T>
inline void Write(T* p, typename Vector<T>::Type v) {
  Store(p, v);
}

// Calls f(i, kind) for numbers i < count, whole vectors at a time where there are any: `kind`
// is of the type that Read and Write then take.
template <typename T, typename F>
inline void Along(int64_t count, F f) {
  constexpr int kLanes = Vector<T>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, typename Vector<T>::Type{});
  for (; i < count; ++i) f(i, T(0));
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_VECTORS_H_
