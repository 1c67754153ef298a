// Moments of channels, and the sums that a batch norm's gradient needs.

#ifndef DARTS_JAX_KERNELS_MOMENTS_H_
#define DARTS_JAX_KERNELS_MOMENTS_H_

#include <algorithm>

#include "vectors.h"

namespace planes {

constexpr int64_t kPiece = 1024;  // summed in T, the pieces in double

// A channel's moments so far: count, mean and sum of squared deviations.
struct Moment {
  double count = 0, mean = 0, squares = 0;

  // Chan, Golub and LeVeque 1979: no cancellation between large sums.
  void Add(double n, double other_mean, double other_squares) {
    if (n == 0) return;
    const double total = count + n, difference = other_mean - mean;
    mean += difference * n / total;
    squares += other_squares + difference * difference * count * n / total;
    count = total;
  }
  template <typename T>
  void AddNumbers(const T* z, int64_t numbers) {
    // Around a number that is near the mean: no cancellation here either.
    const int64_t first = std::min<int64_t>(numbers, Vector<T>::kLanes);
    const T near = Sum<T>(first, [=](int64_t i, auto as) { return Read(z + i, as); }) / first;
    const auto [total, squares] = TwoSums<T>(numbers, [=](int64_t i, auto as, auto& a, auto& b) {
      const auto deviation = Read(z + i, as) - near;
      a += deviation, b += deviation * deviation;
    });
    Add(numbers, near + total / numbers, squares - total * total / numbers);
  }
};

// Mean and biased variance.
template <typename T>
void MomentsOf(const T* x, int64_t numbers, T* mean, T* variance) {
  Moment moment;
  for (int64_t at = 0; at < numbers; at += kPiece) {
    moment.AddNumbers(x + at, std::min(kPiece, numbers - at));
  }
  *mean = moment.mean;
  *variance = moment.squares / moment.count;
}

// Mean and biased variance of `rows` rows, out of a Moment of each row of every task.
template <typename T>
void CombineMoments(const Moment* parts, int64_t tasks, int64_t rows, T* mean, T* variance) {
  for (int64_t row = 0; row < rows; ++row) {
    Moment total;
    for (int64_t k = 0; k < tasks; ++k) {
      const Moment& part = parts[k * rows + row];
      total.Add(part.count, part.mean, part.squares);
    }
    mean[row] = total.mean;
    variance[row] = total.squares / total.count;
  }
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_MOMENTS_H_
