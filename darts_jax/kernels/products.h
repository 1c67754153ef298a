// Products of small matrices with the rows of many numbers that channels are.
//
// A row has `count` numbers, a multiple of two vectors, and starts `pitch` numbers after the
// one before: see Pitch.

#ifndef DARTS_JAX_KERNELS_PRODUCTS_H_
#define DARTS_JAX_KERNELS_PRODUCTS_H_

#include "vectors.h"

namespace planes {

// Rows that start a multiple of 4 KiB apart would all compete for the same few places of the
// first-level cache; an odd number of vectors apart they do not.
template <typename T>
int64_t Pitch(int64_t count) {
  return count + Vector<T>::kLanes;
}

// z[r][p] = sum over k of m[r * row + k * column] * y[k][p] for kRows rows and two vectors; the
// rows of z are `apart` numbers apart.
template <typename T, int kRows>
inline void MultiplyBlock(const T* m, int64_t row, int64_t column, int64_t inner, const T* y,
                          int64_t pitch, T* z, int64_t apart) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V sum[kRows][2] = {};
  for (int64_t k = 0; k < inner; ++k) {
    const V a = Load(y + k * pitch), b = Load(y + k * pitch + kLanes);
    for (int r = 0; r < kRows; ++r) {
      const T value = m[r * row + k * column];
      sum[r][0] += value * a;
      sum[r][1] += value * b;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    Store(z + r * apart, sum[r][0]);
    Store(z + r * apart + kLanes, sum[r][1]);
  }
}

template <typename T>
void Multiply(const T* m, int64_t row, int64_t column, int64_t rows, int64_t inner,
              const T* y, int64_t count, int64_t pitch, T* z, int64_t apart) {
  // All rows of a block before the next block: its part of y stays in the nearest cache.
  for (int64_t p = 0; p < count; p += 2 * Vector<T>::kLanes) {
    for (int64_t r = 0; r < rows;) {
      const int64_t left = rows - r;
      const T* from = m + r * row;
      T* to = z + r * apart + p;
      if (left == 6 || left > 8) {
        MultiplyBlock<T, 6>(from, row, column, inner, y + p, pitch, to, apart);
        r += 6;
      } else if (left >= 4) {
        MultiplyBlock<T, 4>(from, row, column, inner, y + p, pitch, to, apart);
        r += 4;
      } else {
        MultiplyBlock<T, 1>(from, row, column, inner, y + p, pitch, to, apart);
        r += 1;
      }
    }
  }
}

// m[r][k] += sum over p of y[r][p] * z[k][p] for kRows by kColumns pairs.
template <typename T, int kRows, int kColumns>
void AddProducts(const T* y, const T* z, int64_t count, int64_t pitch, int64_t columns,
                 T* m) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V sum[kRows][kColumns] = {};
  for (int64_t p = 0; p < count; p += kLanes) {
    V b[kColumns];
    for (int k = 0; k < kColumns; ++k) b[k] = Load(z + k * pitch + p);
    for (int r = 0; r < kRows; ++r) {
      const V a = Load(y + r * pitch + p);
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
void AddOuter(const T* y, int64_t rows, const T* z, int64_t columns, int64_t count,
              int64_t pitch, T* m) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t k = 0;
    for (; k + 4 <= columns; k += 4) {
      AddProducts<T, 4, 4>(y + r * pitch, z + k * pitch, count, pitch, columns,
                           m + r * columns + k);
    }
    for (; k < columns; ++k) {
      AddProducts<T, 4, 1>(y + r * pitch, z + k * pitch, count, pitch, columns,
                           m + r * columns + k);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t k = 0; k < columns; ++k) {
      AddProducts<T, 1, 1>(y + r * pitch, z + k * pitch, count, pitch, columns,
                           m + r * columns + k);
    }
  }
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_PRODUCTS_H_
