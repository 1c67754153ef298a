// Dense convolutions of stride 1 as products of matrices.
//
//   y[n] = sum over taps t and channels c of k[t, c, n] * (x[c] moved by t)
//
// The matrix with the rows `x[c] moved by t` is never written out: channels lie in padded planes
// (planes.h, lanes.h), where a tap is an offset.

#ifndef DARTS_JAX_KERNELS_DENSE_H_
#define DARTS_JAX_KERNELS_DENSE_H_

#include "lanes.h"
#include "planes.h"
#include "products.h"

namespace planes {

// Kernels [edges, size, size, C, C'], of which the middle `seen` rows and columns are used.
// Those of all edges are one matrix: column n is output channel n % C' of edge n / C'.
template <typename T>
struct DenseKernels {
  const T* values;
  int64_t edges, size, seen, channels, outputs;

  int64_t Columns() const { return edges * outputs; }
  int64_t Rows() const { return seen * seen * channels; }
  int64_t Count() const { return edges * size * size * channels * outputs; }
  int64_t Start(int64_t n) const {
    return n / outputs * size * size * channels * outputs + n % outputs;
  }
  // From there to tap (i, j) of channel c.
  int64_t Tap(int64_t i, int64_t j, int64_t c) const {
    const int64_t cut = (size - seen) / 2;
    return (((i + cut) * size + j + cut) * channels + c) * outputs;
  }
};

// How a convolution walks over the outputs of a group, a vector at a time.
template <typename T>
struct Walk {
  struct Pair {
    int64_t from[2], to[2];  // where two vectors begin: in an input's plane, in a row of y
    int64_t first, last;     // the tap rows inside of the image
  };
  int64_t size, plane;          // taps in a row, numbers of a plane
  bool whole;                   // a row of y holds outputs only; else what borders give too
  std::vector<int64_t> from;    // of every vector
  std::vector<Pair> pairs;      // every vector, the last of an odd number with itself
  std::vector<int64_t> offset;  // of a tap, from an output's place on
  struct Range { int64_t first, last; };
  std::vector<Range> inside;    // the vectors that a tap row has inside of the image

  explicit Walk(const Geometry& g)
      : size(g.size), plane(g.plane), whole(g.out_width % kLanes == 0), offset(g.offset) {
    const int64_t rows = whole ? g.out_height : 1, images = whole ? g.images : 1;
    const int64_t width = whole ? g.out_width : g.Span();
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t h = 0; h < rows; ++h) {
        for (int64_t w = 0; w < width; w += kLanes) {
          from.push_back(g.Start(i) + h * g.pitch + w);
        }
      }
    }
    const int64_t vectors = from.size();
    AddPairs(0, vectors, 0, size);
    inside.assign(size, {0, vectors});
  }
  // Rows outside of an image are left out here: there are none in memory.
  explicit Walk(const Lanes<T>& g) : size(g.size), plane(g.Input()), whole(true) {
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        offset.push_back(((i - g.reach) * g.pitch + j) * kLanes);
      }
      const int64_t first = std::max<int64_t>(0, g.reach - i);
      const int64_t last = std::min(g.height, g.height + g.reach - i);
      inside.push_back({first * g.width, last * g.width});
    }
    for (int64_t h = 0; h < g.height; ++h) {
      for (int64_t w = 0; w < g.width; ++w) from.push_back((h * g.pitch + w) * kLanes);
      AddPairs(h * g.width, g.width, g.first[h], g.last[h]);
    }
  }
  int64_t Numbers() const { return from.size() * kLanes; }  // of a row of y
  // Where the matrix's rows (tap row, channel, tap column) begin, from an output's place on.
  std::vector<int64_t> RowsOf(int64_t channels) const {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t j = 0; j < size; ++j) rows.push_back(c * plane + offset[i * size + j]);
      }
    }
    return rows;
  }

 private:
  static constexpr int64_t kLanes = Vector<T>::kLanes;

  void AddPairs(int64_t start, int64_t count, int64_t first, int64_t last) {
    for (int64_t v = 0; v < count; v += 2) {
      const int64_t a = start + v, b = start + std::min(v + 1, count - 1);
      pairs.push_back({{from[a], from[b]}, {a * kLanes, b * kLanes}, first, last});
    }
  }
};

// How many of the columns that are left are computed at once.
inline int64_t ColumnsAtOnce(int64_t left) {
  if (kManyRegisters && (left == 12 || left >= 20)) return 12;
  if (kManyRegisters && left >= 8) return 8;
  return left == 6 || left > 8 ? 6 : left >= 4 ? 4 : 1;
}

// The kernels as the matrix that DenseProduct takes: its rows in the order of RowsOf, the
// numbers of columns that are computed at once beside each other. `turned`: by half a turn,
// from outputs to channels, which makes the product its own gradient by x.
template <typename T>
Recycled<T> InBlocks(const DenseKernels<T>& k, bool turned) {
  Recycled<T> found(k.Rows() * k.Columns(), false);
  T* to = found.data();
  std::vector<int64_t> starts;
  for (int64_t n = 0; n < k.Columns(); ++n) starts.push_back(k.Start(n));
  const int64_t columns = turned ? k.channels : k.Columns();
  const int64_t inputs = turned ? k.Columns() : k.channels, end = k.seen - 1;
  for (int64_t n = 0, width; n < columns; n += width) {
    width = ColumnsAtOnce(columns - n);
    for (int64_t i = 0; i < k.seen; ++i) {
      for (int64_t c = 0; c < inputs; ++c) {
        for (int64_t j = 0; j < k.seen; ++j, to += width) {
          for (int64_t a = 0; a < width; ++a) {
            to[a] = k.values[turned ? starts[c] + k.Tap(end - i, end - j, n + a)
                                    : starts[n + a] + k.Tap(i, j, c)];
          }
        }
      }
    }
  }
  return found;
}

// kColumns columns of y at two vectors of outputs.
template <typename T, int kColumns>
inline void DenseBlock(const T* k, const T* a, const T* b, const int64_t* rows, int64_t count,
                       T* y, const int64_t* to, int64_t pitch, bool add) {
  using V = typename Vector<T>::Type;
  V sum[kColumns][2] = {};
  for (int64_t r = 0; r < count; ++r, k += kColumns) {
    const V one = Load(a + rows[r]), other = Load(b + rows[r]);
    for (int n = 0; n < kColumns; ++n) {
      sum[n][0] += k[n] * one;
      sum[n][1] += k[n] * other;
    }
  }
  for (int n = 0; n < kColumns; ++n, y += pitch) {
    // Both are read first, since they may be the same vector.
    const V one = add ? Load(y + to[0]) : V{}, other = add ? Load(y + to[1]) : V{};
    Store(y + to[0], one + sum[n][0]);
    Store(y + to[1], other + sum[n][1]);
  }
}

// y[n], a row of the walk every `pitch` numbers; or adds to it.
template <typename T>
void DenseProduct(const Walk<T>& walk, const std::vector<int64_t>& rows, const T* planes,
                  const T* blocks, int64_t columns, T* y, int64_t pitch, bool add = false) {
  const int64_t number = rows.size(), each = number / walk.size;
  // All columns at a pair before the next pair: what it reads stays in the nearest cache.
  for (const auto& pair : walk.pairs) {
    const int64_t first = pair.first * each, count = pair.last * each - first;
    const T *a = planes + pair.from[0], *b = planes + pair.from[1];
    for (int64_t n = 0, width; n < columns; n += width) {
      width = ColumnsAtOnce(columns - n);
      const auto run = [&](auto block) {
        block(blocks + n * number + first * width, a, b, &rows[first], count, y + n * pitch,
              pair.to, pitch, add);
      };
      switch (width) {
        case 12: run(DenseBlock<T, 12>); break;
        case 8: run(DenseBlock<T, 8>); break;
        case 6: run(DenseBlock<T, 6>); break;
        case 4: run(DenseBlock<T, 4>); break;
        default: run(DenseBlock<T, 1>);
      }
    }
  }
}

// total[r][n] += the sum over vectors of row r of x and of column n of dy.
template <typename T, int kRows, int kColumns>
inline void AddDenseBlock(const T* planes, const std::vector<int64_t>& from, int64_t first,
                          int64_t last, const int64_t* rows, const T* dy, int64_t pitch,
                          int64_t columns, T* total) {
  using V = typename Vector<T>::Type;
  V sum[kRows][kColumns] = {};
  for (int64_t v = first; v < last; ++v) {
    V b[kColumns];
    for (int n = 0; n < kColumns; ++n) b[n] = Load(dy + n * pitch + v * Vector<T>::kLanes);
    for (int r = 0; r < kRows; ++r) {
      const V a = Load(planes + from[v] + rows[r]);
      for (int n = 0; n < kColumns; ++n) sum[r][n] += a * b[n];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kColumns; ++n) total[r * columns + n] += AddLanes<T>(sum[r][n]);
  }
}

// Adds a group's part of the kernels' gradient to total [rows of RowsOf, columns]; dy holds a
// row of the walk every `pitch` numbers.
template <typename T>
void AddDenseGradient(const Walk<T>& walk, const std::vector<int64_t>& rows, const T* planes,
                      const T* dy, int64_t columns, int64_t pitch, T* total) {
  const int64_t each = rows.size() / walk.size;
  // All rows for some columns before the next columns: these stay in the nearest cache.
  for (int64_t n = 0; n < columns;) {
    const int64_t left = columns - n;
    const int width = left == 6 || left > 8 ? 6 : left >= 4 ? 4 : 1;
    for (int64_t i = 0; i < walk.size; ++i) {
      const auto [first, last] = walk.inside[i];
      for (int64_t r = i * each; r < (i + 1) * each;) {
        const bool four = r + 4 <= (i + 1) * each;
        const auto run = [&, first = first, last = last](auto block) {
          block(planes, walk.from, first, last, &rows[r], dy + n * pitch, pitch, columns,
                total + r * columns + n);
        };
        switch (width) {
          case 6: four ? run(AddDenseBlock<T, 4, 6>) : run(AddDenseBlock<T, 1, 6>); break;
          case 4: four ? run(AddDenseBlock<T, 4, 4>) : run(AddDenseBlock<T, 1, 4>); break;
          default: four ? run(AddDenseBlock<T, 4, 1>) : run(AddDenseBlock<T, 1, 1>);
        }
        r += four ? 4 : 1;
      }
    }
    n += width;
  }
}

// Adds up the tasks' parts of a gradient, one after another, in their order, and writes what
// they are into an array like k.values.
template <typename T>
void WriteDenseGradient(const DenseKernels<T>& k, T* parts, int64_t tasks, T* to) {
  const int64_t count = k.Rows() * k.Columns();
  for (int64_t task = 1; task < tasks; ++task) {
    for (int64_t i = 0; i < count; ++i) parts[i] += parts[task * count + i];
  }
  if (k.seen != k.size) std::fill(to, to + k.Count(), T(0));
  const T* from = parts;
  for (int64_t i = 0; i < k.seen; ++i) {
    for (int64_t c = 0; c < k.channels; ++c) {
      for (int64_t j = 0; j < k.seen; ++j, from += k.Columns()) {
        T* const tap = to + k.Tap(i, j, c);
        for (int64_t e = 0; e < k.edges; ++e) {
          std::copy_n(from + e * k.outputs, k.outputs, tap + k.Start(e * k.outputs));
        }
      }
    }
  }
}

// The outputs of a row of the walk, without what borders give.
template <typename T>
void TakeOutputs(const Walk<T>& walk, const Geometry& g, const T* row, int64_t images, T* to) {
  const int64_t out = g.out_height * g.out_width;
  if (walk.whole) {
    std::copy_n(row, images * out, to);
    return;
  }
  for (int64_t i = 0; i < images; ++i) UnpackOutput(g, row - g.Start(), to + i * out, i);
}

template <typename T>
void TakeOutputs(const Walk<T>&, const Lanes<T>& g, const T* row, int64_t, T* to) {
  std::copy_n(row, g.Row(), to);
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_DENSE_H_
