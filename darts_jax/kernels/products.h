// Products of small matrices with the rows of many numbers that channels are.

#ifndef DARTS_JAX_KERNELS_PRODUCTS_H_
#define DARTS_JAX_KERNELS_PRODUCTS_H_

#include "planes.h"

namespace planes {

// z[r][p] = sum over k of m[r * row + k * column] * y[k][p] for kRows rows from `z` on.
template <typename T, int kRows>
void MultiplyRows(const T* m, int64_t row, int64_t column, int64_t inner, const T* y,
                  int64_t padded, T* z) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  for (int64_t p = 0; p < padded; p += 2 * kLanes) {
    V sum[kRows][2] = {};
    for (int64_t k = 0; k < inner; ++k) {
      const V a = Load(y + k * padded + p), b = Load(y + k * padded + p + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const T value = m[r * row + k * column];
        sum[r][0] += value * a;
        sum[r][1] += value * b;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      Store(z + r * padded + p, sum[r][0]);
      Store(z + r * padded + p + kLanes, sum[r][1]);
    }
  }
}

template <typename T>
void Multiply(const T* m, int64_t row, int64_t column, int64_t rows, int64_t inner,
              const T* y, int64_t padded, T* z) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    MultiplyRows<T, 4>(m + r * row, row, column, inner, y, padded, z + r * padded);
  }
  for (; r < rows; ++r) {
    MultiplyRows<T, 1>(m + r * row, row, column, inner, y, padded, z + r * padded);
  }
}

// m[r][k] += sum over p of y[r][p] * z[k][p] for kRows by kColumns pairs.
template <typename T, int kRows, int kColumns>
void AddProducts(const T* y, const T* z, int64_t padded, int64_t columns, T* m) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V sum[kRows][kColumns] = {};
  for (int64_t p = 0; p < padded; p += kLanes) {
    V b[kColumns];
    for (int k = 0; k < kColumns; ++k) b[k] = Load(z + k * padded + p);
    for (int r = 0; r < kRows; ++r) {
      const V a = Load(y + r * padded + p);
      for (int k = 0; k < kColumns; ++k) sum[r][k] += a * b[k];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kColumns; ++k) {
      m[r * columns + k] += AddLanes<T>(sum[r][k]);
    }
  }
}

template <typename T>
void AddOuter(const T* y, int64_t rows, const T* z, int64_t columns, int64_t padded, T* m) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t k = 0;
    for (; k + 4 <= columns; k += 4) {
      AddProducts<T, 4, 4>(y + r * padded, z + k * padded, padded, columns,
                           m + r * columns + k);
    }
    for (; k < columns; ++k) {
      AddProducts<T, 4, 1>(y + r * padded, z + k * padded, padded, columns,
                           m + r * columns + k);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t k = 0; k < columns; ++k) {
      AddProducts<T, 1, 1>(y + r * padded, z + k * padded, padded, columns,
                           m + r * columns + k);
    }
  }
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_PRODUCTS_H_
