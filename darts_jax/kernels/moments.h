// Moments of channels, and the sums that a batch norm's gradient needs.

#ifndef DARTS_JAX_KERNELS_MOMENTS_H_
#define DARTS_JAX_KERNELS_MOMENTS_H_

#include "parallel.h"
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
    const T total = Sum<T>(numbers, [=](int64_t i, auto as) { return Read(z + i, as); });
    const T centre = total / numbers;
    const T squares = Sum<T>(numbers, [=](int64_t i, auto as) {
      const auto deviation = Read(z + i, as) - centre;
      return deviation * deviation;
    });
    Add(numbers, centre, squares);
  }
};

// For every row: mean and biased variance.
template <typename T>
Job MomentsJob(int64_t rows, int64_t numbers, const T* x, T* mean, T* variance) {
  const auto run = [=](int64_t row) {
    Moment moment;
    for (int64_t at = 0; at < numbers; at += kPiece) {
      moment.AddNumbers(x + row * numbers + at, std::min(kPiece, numbers - at));
    }
    mean[row] = moment.mean;
    variance[row] = moment.squares / moment.count;
  };
  return {rows, run, nullptr};
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_MOMENTS_H_
