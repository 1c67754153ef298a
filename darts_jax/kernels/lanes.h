// Small images side by side: each lane of a vector holds a number of another image.
//
// Planes (planes.h) of small images are mostly border, and their rows are shorter than a
// vector. Here a group has as many images as a vector has lanes, pixel after pixel, so that a
// tap reads whole vectors at any width and stride, no output is computed for a border, and
// taps that would read rows outside of an image are left out. Rows of the input have zeros on
// both sides. shuffle.h brings arrays of the program into this order.

#ifndef DARTS_JAX_KERNELS_LANES_H_
#define DARTS_JAX_KERNELS_LANES_H_

#include <algorithm>

#include "vectors.h"

namespace planes {

template <typename T>
struct Lanes {
  static constexpr int64_t images = Vector<T>::kLanes;  // of a group
  // At most: pixels of an output and of an input, a kernel's size.
  static constexpr int64_t kPixels = 64, kInput = 256, kSize = 7;
  int64_t height, width, out_height, out_width, size, stride, dilation;
  int64_t reach, border;      // pixels of zeros beside an input's row, an output's
  int64_t pitch, out_pitch;   // pixels of a row with them
  // Tables, since a division takes as long as a row of products.
  int8_t first[kPixels], last[kPixels];  // tap rows [first, last) of an output row, inside
  int8_t output[kPixels][kSize];         // the output row of a tap row of an input row, or -1

  Lanes(int64_t height, int64_t width, int64_t size, int64_t stride, int64_t dilation)
      : height(height), width(width), out_height((height + stride - 1) / stride),
        out_width((width + stride - 1) / stride), size(size), stride(stride),
        dilation(dilation), reach(dilation * ((size - 1) / 2)),
        border((reach + stride - 1) / stride), pitch(width + 2 * reach),
        out_pitch(out_width + 2 * border) {
    std::fill(output[0], output[0] + kPixels * kSize, -1);
    for (int64_t h = 0; h < out_height; ++h) {
      first[h] = size, last[h] = 0;
      for (int64_t i = 0; i < size; ++i) {
        const int64_t row = h * stride + dilation * i - reach;
        if (row < 0 || row >= height) continue;
        first[h] = std::min<int64_t>(first[h], i), last[h] = i + 1;
        output[row][i] = h;
      }
    }
  }
  // Whether groups of a batch are worth it: outputs small, lanes full.
  static bool Fit(int64_t batch, int64_t height, int64_t width, int64_t out, int64_t size) {
    return out <= kPixels && height <= kPixels && height * width <= kInput &&
           height * width % 2 == 0 && out % 2 == 0 && size <= kSize && batch % images == 0;
  }
  int64_t Taps() const { return size * size; }
  // Numbers of an input's channel, of an output's with and without a border.
  int64_t Input() const { return height * pitch * images; }
  int64_t Output() const { return out_height * out_pitch * images; }
  int64_t Row() const { return out_height * out_width * images; }
};

// f of a group's input to rows with borders, which stay as they are. Groups are whole here:
// the argument in the place of the number of images is of use in planes only.
template <typename T, typename F>
void PackImages(const Lanes<T>& g, const T* x, int64_t, T* planes, F f) {
  const int64_t row = g.width * g.images;
  for (int64_t h = 0; h < g.height; ++h, x += row) {
    T* to = planes + (h * g.pitch + g.reach) * g.images;
    for (int64_t i = 0; i < row; ++i) to[i] = f(x[i]);
  }
}

template <typename T>
void UnpackImages(const Lanes<T>& g, const T* planes, int64_t, T* x) {
  const int64_t row = g.width * g.images;
  for (int64_t h = 0; h < g.height; ++h, x += row) {
    const T* from = planes + (h * g.pitch + g.reach) * g.images;
    std::copy(from, from + row, x);
  }
}

template <typename T>
void RowToPlane(const Lanes<T>& g, const T* row, int64_t, T* plane) {
  const int64_t count = g.out_width * g.images;
  for (int64_t h = 0; h < g.out_height; ++h, row += count) {
    std::copy(row, row + count, plane + (h * g.out_pitch + g.border) * g.images);
  }
}

// kBlock outputs side by side, of kEdges kernels.
template <typename T, int kEdges, int kBlock, bool kAdd>
inline void LanesBlock(const Lanes<T>& g, const T* from, int64_t h, const T* const* value,
                       T* const* to) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  const int64_t step = g.stride * kLanes, across = g.dilation * kLanes;
  V sum[kEdges][kBlock];
  for (int e = 0; e < kEdges; ++e) {
    for (int b = 0; b < kBlock; ++b) sum[e][b] = kAdd ? Load(to[e] + b * kLanes) : V{};
  }
  for (int64_t i = g.first[h]; i < g.last[h]; ++i) {
    const T* p = from + (h * g.stride + g.dilation * i - g.reach) * g.pitch * kLanes;
    for (int64_t t = i * g.size; t < (i + 1) * g.size; ++t, p += across) {
      for (int b = 0; b < kBlock; ++b) {
        const V x = Load(p + b * step);
        for (int e = 0; e < kEdges; ++e) sum[e][b] += value[e][t] * x;
      }
    }
  }
  for (int e = 0; e < kEdges; ++e) {
    for (int b = 0; b < kBlock; ++b) Store(to[e] + b * kLanes, sum[e][b]);
  }
}

template <typename T, int kEdges, bool kAdd>
void LanesRows(const Lanes<T>& g, const T* planes, const T* const* value, T* const* rows) {
  constexpr int kLanes = Vector<T>::kLanes;
  constexpr int kBlock = kEdges == 1 ? 8 : kManyRegisters ? 4 : 2;
  T* to[kEdges];
  std::copy(rows, rows + kEdges, to);
  const auto advance = [&](int64_t count) {
    for (int e = 0; e < kEdges; ++e) to[e] += count * kLanes;
  };
  for (int64_t h = 0; h < g.out_height; ++h) {
    int64_t w = 0;
    const auto from = [&] { return planes + w * g.stride * kLanes; };
    for (; w + kBlock <= g.out_width; w += kBlock, advance(kBlock)) {
      LanesBlock<T, kEdges, kBlock, kAdd>(g, from(), h, value, to);
    }
    for (; w + 2 <= g.out_width; w += 2, advance(2)) {
      LanesBlock<T, kEdges, 2, kAdd>(g, from(), h, value, to);
    }
    for (; w < g.out_width; ++w, advance(1)) {
      LanesBlock<T, kEdges, 1, kAdd>(g, from(), h, value, to);
    }
  }
}

// The outputs of a channel under several kernels, `values` [edges, apart], to rows that are
// `pitch` numbers apart, or added to them. The unnamed arguments are of use in planes only.
template <typename T, bool kAdd = false>
void Depthwise(const Lanes<T>& g, const T* planes, const T* values, int64_t apart,
               int64_t edges, int64_t, T* rows, int64_t pitch, T*) {
  for (int64_t e = 0; e < edges;) {
    const int64_t taken = std::min<int64_t>(4, edges - e);
    const T* value[4];
    T* to[4];
    for (int64_t i = 0; i < taken; ++i) {
      value[i] = values + (e + i) * apart;
      to[i] = rows + (e + i) * pitch;
    }
    switch (taken) {
      case 1: LanesRows<T, 1, kAdd>(g, planes, value, to); break;
      case 2: LanesRows<T, 2, kAdd>(g, planes, value, to); break;
      case 3: LanesRows<T, 3, kAdd>(g, planes, value, to); break;
      default: LanesRows<T, 4, kAdd>(g, planes, value, to);
    }
    e += taken;
  }
}

// kBlock inputs of row h that are a stride apart, `to` the first, number j of its columns;
// `taps` are the tap columns that reach them, output column j + shift through each.
template <typename T, int kBlock>
inline void SpreadBlock(const Lanes<T>& g, const T* plane, const T* value, int64_t h,
                        const int64_t* taps, const int64_t* shift, int64_t count, int64_t j,
                        T* to) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  const int64_t step = g.stride * kLanes;
  V sum[kBlock];
  for (int b = 0; b < kBlock; ++b) sum[b] = Load(to + b * step);
  for (int64_t i = 0; i < g.size; ++i) {
    const int64_t row = g.output[h][i];
    if (row < 0) continue;
    const T* from = plane + (row * g.out_pitch + g.border + j) * kLanes;
    for (int64_t k = 0; k < count; ++k) {
      const T factor = value[i * g.size + taps[k]];
      for (int b = 0; b < kBlock; ++b) sum[b] += factor * Load(from + (shift[k] + b) * kLanes);
    }
  }
  for (int b = 0; b < kBlock; ++b) Store(to + b * step, sum[b]);
}

// The transpose: adds to every input what the outputs in `plane` send it.
template <typename T>
void Spread(const Lanes<T>& g, const T* plane, const T* value, T* planes) {
  constexpr int kLanes = Vector<T>::kLanes;
  int64_t taps[Lanes<T>::kSize], shift[Lanes<T>::kSize];
  for (int64_t c = 0; c < g.stride; ++c) {
    int64_t count = 0;  // of the tap columns that reach columns c, c + stride, ...
    for (int64_t k = 0; k < g.size; ++k) {
      const int64_t at = c + g.reach - g.dilation * k;
      if (((at % g.stride) + g.stride) % g.stride) continue;
      taps[count] = k, shift[count++] = at / g.stride;
    }
    if (!count) continue;
    const int64_t columns = (g.width - c + g.stride - 1) / g.stride;
    for (int64_t h = 0; h < g.height; ++h) {
      int64_t j = 0;
      const auto to = [&] {
        return planes + (h * g.pitch + g.reach + c + j * g.stride) * kLanes;
      };
      for (; j + 8 <= columns; j += 8) {
        SpreadBlock<T, 8>(g, plane, value, h, taps, shift, count, j, to());
      }
      for (; j + 4 <= columns; j += 4) {
        SpreadBlock<T, 4>(g, plane, value, h, taps, shift, count, j, to());
      }
      for (; j < columns; ++j) {
        SpreadBlock<T, 1>(g, plane, value, h, taps, shift, count, j, to());
      }
    }
  }
}

// sum[j] += sum over all outputs of dy * x, for the kSize taps of row i.
template <typename T, int kSize>
void AddDotsOfRow(const Lanes<T>& g, const T* plane, const T* planes, int64_t i, T* sum) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V total[kSize] = {};
  for (int64_t h = 0; h < g.out_height; ++h) {
    const int64_t row = h * g.stride + g.dilation * i - g.reach;
    if (row < 0 || row >= g.height) continue;
    const T* dy = plane + (h * g.out_pitch + g.border) * kLanes;
    const T* x = planes + row * g.pitch * kLanes;
    for (int64_t w = 0; w < g.out_width; ++w, dy += kLanes, x += g.stride * kLanes) {
      const V gradient = Load(dy);
      for (int j = 0; j < kSize; ++j) {
        total[j] += gradient * Load(x + j * g.dilation * kLanes);
      }
    }
  }
  for (int j = 0; j < kSize; ++j) sum[j] += AddLanes<T>(total[j]);
}

// Adds a group's part of a kernel's gradient to sum [K * K].
template <typename T>
void AddDots(const Lanes<T>& g, const T* plane, const T* planes, T* sum) {
  for (int64_t i = 0; i < g.size; ++i, sum += g.size) {
    switch (g.size) {
      case 1: AddDotsOfRow<T, 1>(g, plane, planes, i, sum); break;
      case 3: AddDotsOfRow<T, 3>(g, plane, planes, i, sum); break;
      case 5: AddDotsOfRow<T, 5>(g, plane, planes, i, sum); break;
      default: AddDotsOfRow<T, 7>(g, plane, planes, i, sum);
    }
  }
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_LANES_H_
