// Images as padded planes, and the innermost loops over them.
//
// One image of one channel is the unit of work: small enough for the first-level cache,
// whatever the batch. It is copied into a padded plane whose rows follow each other at a
// fixed pitch, so that a tap of a kernel is a constant offset into one flat array and the
// innermost loop is a multiply-add over contiguous numbers, for every width. With stride s
// the image is split into s * s such planes, one for each remainder of row and column, and
// a tap is an offset into one of them. Small images share a plane, one below the other, so
// that the loops stay long.

#ifndef DARTS_JAX_KERNELS_PLANES_H_
#define DARTS_JAX_KERNELS_PLANES_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace planes {

// How the taps of a kernel lie in the planes of an image.
struct Geometry {
  int64_t height, width, out_height, out_width, size, stride, dilation;
  int64_t images, border, pitch, plane;  // plane: numbers in one, slack included
  std::vector<int64_t> offset;   // of a tap's input, from an output's place in plane 0
  std::vector<int64_t> back;     // of a tap's output, from an input's place in its plane
  std::vector<std::vector<int64_t>> taps_of;  // a plane

  Geometry(int64_t height, int64_t width, int64_t size, int64_t stride, int64_t dilation,
           int64_t slack, int64_t images = 1)
      : height(height), width(width), out_height((height + stride - 1) / stride),
        out_width((width + stride - 1) / stride), size(size), stride(stride),
        dilation(dilation), images(images) {
    const int64_t reach = dilation * ((size - 1) / 2);
    border = (reach + stride - 1) / stride;
    pitch = out_width + border;
    plane = (images * (out_height + border) + border) * pitch + 2 * border + slack;
    taps_of.resize(stride * stride);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        const int64_t row = dilation * i - reach, column = dilation * j - reach;
        const int64_t r = Mod(row), c = Mod(column);
        const int64_t shift = (row - r) / stride * pitch + (column - c) / stride;
        taps_of[r * stride + c].push_back(offset.size());
        offset.push_back((r * stride + c) * plane + shift);
        back.push_back(-shift);
      }
    }
  }
  int64_t Mod(int64_t a) const { return ((a % stride) + stride) % stride; }
  int64_t Taps() const { return size * size; }
  int64_t Planes() const { return stride * stride; }
  // Numbers of an input's channel, of an output's, of a group's outputs without gaps.
  int64_t Input() const { return Planes() * plane; }
  int64_t Output() const { return plane; }
  int64_t Row() const { return images * out_height * out_width; }
  // The first output's place in a plane, the same of image i, and how far outputs reach.
  int64_t Start() const { return border * pitch + border; }
  int64_t Start(int64_t i) const { return Start() + i * (out_height + border) * pitch; }
  int64_t Span() const { return (images * (out_height + border) - border) * pitch; }
};

// Copies a row of an image, which is far too short for a call of memcpy: the empty assembly
// keeps the compiler from making one of the loops.
template <typename T>
inline void CopyRow(const T* from, int64_t count, T* to) {
  constexpr int kLanes = Vector<T>::kLanes;
  typedef T Half __attribute__((vector_size(kBytes / 2), aligned(sizeof(T)), may_alias));
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Store(to + i, Load(from + i));
    asm volatile("");
  }
  if (i + kLanes / 2 <= count) {
    *reinterpret_cast<Half*>(to + i) = *reinterpret_cast<const Half*>(from + i);
    i += kLanes / 2;
  }
  for (; i < count; ++i) {
    to[i] = from[i];
    asm volatile("");
  }
}

// Copies f of image i [H, W] into its planes; everything but the images' own places stays.
template <typename T, typename F>
void Pack(const Geometry& g, const T* image, T* planes, int64_t i, F f) {
  for (int64_t r = 0; r < g.stride; ++r) {
    for (int64_t c = 0; c < g.stride; ++c) {
      T* to = planes + (r * g.stride + c) * g.plane + g.Start(i);
      for (int64_t h = r; h < g.height; h += g.stride, to += g.pitch) {
        const T* from = image + h * g.width;
        if (g.stride == 1) {
          for (int64_t w = 0; w < g.width; ++w) to[w] = f(from[w]);
        } else {
          for (int64_t w = c, o = 0; w < g.width; w += g.stride, ++o) to[o] = f(from[w]);
        }
      }
    }
  }
}

template <typename T>
void Pack(const Geometry& g, const T* image, T* planes, int64_t i = 0) {
  Pack(g, image, planes, i, [](T value) { return value; });
}

template <typename T>
void Unpack(const Geometry& g, const T* planes, T* image, int64_t i = 0) {
  for (int64_t r = 0; r < g.stride; ++r) {
    for (int64_t c = 0; c < g.stride; ++c) {
      const T* from = planes + (r * g.stride + c) * g.plane + g.Start(i);
      for (int64_t h = r; h < g.height; h += g.stride, from += g.pitch) {
        T* to = image + h * g.width;
        if (g.stride == 1) {
          CopyRow(from, g.width, to);
        } else {
          for (int64_t w = c, o = 0; w < g.width; w += g.stride, ++o) to[w] = from[o];
        }
      }
    }
  }
}

// Copies [H', W'] of image i to or from one plane.
template <typename T>
void PackOutput(const Geometry& g, const T* image, T* plane, int64_t i = 0) {
  for (int64_t h = 0; h < g.out_height; ++h) {
    CopyRow(image + h * g.out_width, g.out_width, plane + g.Start(i) + h * g.pitch);
  }
}

template <typename T>
void UnpackOutput(const Geometry& g, const T* plane, T* image, int64_t i = 0) {
  for (int64_t h = 0; h < g.out_height; ++h) {
    CopyRow(plane + g.Start(i) + h * g.pitch, g.out_width, image + h * g.out_width);
  }
}

// to[e][v] = sum over t of value[e][t] * from[v + offset[t]] for kEdges kernels at once.
template <typename T, int kEdges, int kBlock>
void Correlate(const T* from, const int64_t* offset, const T* const* value, int64_t taps,
               int64_t span, T* const* to) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  for (int64_t v = 0; v < span; v += kLanes * kBlock) {
    V sum[kEdges][kBlock] = {};
    for (int64_t t = 0; t < taps; ++t) {
      const T* p = from + v + offset[t];
      for (int b = 0; b < kBlock; ++b) {
        const V x = Load(p + b * kLanes);
        for (int e = 0; e < kEdges; ++e) sum[e][b] += value[e][t] * x;
      }
    }
    for (int e = 0; e < kEdges; ++e) {
      for (int b = 0; b < kBlock; ++b) Store(to[e] + v + b * kLanes, sum[e][b]);
    }
  }
}

// The same for any number of kernels: `values` [edges, apart] to planes `results`.
template <typename T>
void CorrelateAll(const Geometry& g, const T* planes, const T* values, int64_t apart,
                  int64_t edges, T* results) {
  const T* from = planes + g.Start();
  const int64_t* offset = g.offset.data();
  for (int64_t e = 0; e < edges;) {
    const int64_t taken = std::min<int64_t>(4, edges - e);
    const T* value[4];
    T* to[4];
    for (int64_t i = 0; i < taken; ++i) {
      value[i] = values + (e + i) * apart;
      to[i] = results + (e + i) * g.plane + g.Start();
    }
    switch (taken) {
      case 1: Correlate<T, 1, 4>(from, offset, value, g.Taps(), g.Span(), to); break;
      case 2: Correlate<T, 2, 4>(from, offset, value, g.Taps(), g.Span(), to); break;
      case 3: Correlate<T, 3, 2>(from, offset, value, g.Taps(), g.Span(), to); break;
      default: Correlate<T, 4, 2>(from, offset, value, g.Taps(), g.Span(), to);
    }
    e += taken;
  }
}

// The transpose: adds every output's value[t] * from[v] to the input that tap t reads.
// `from` is a plane with zeros around the outputs, `planes` those of the input.
template <typename T>
void Spread(const Geometry& g, const T* from, const T* value, T* planes) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes, kBlock = 4;
  for (int64_t p = 0; p < g.Planes(); ++p) {
    const int64_t* taps = g.taps_of[p].data();
    const int64_t count = g.taps_of[p].size();
    T* to = planes + p * g.plane + g.Start();
    for (int64_t v = 0; v < g.Span(); v += kLanes * kBlock) {
      V sum[kBlock];
      for (int b = 0; b < kBlock; ++b) sum[b] = Load(to + v + b * kLanes);
      for (int64_t i = 0; i < count; ++i) {
        const T k = value[taps[i]];
        const T* at = from + g.Start() + v + g.back[taps[i]];
        for (int b = 0; b < kBlock; ++b) sum[b] += k * Load(at + b * kLanes);
      }
      for (int b = 0; b < kBlock; ++b) Store(to + v + b * kLanes, sum[b]);
    }
  }
}

// sum[i] += sum over v of dy[v] * x[v + offset[i]] for kSize taps at once.
template <typename T, int kSize>
void AddDotsOf(const T* dy, const T* x, const int64_t* offset, int64_t span, T* sum) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V total[kSize] = {};
  for (int64_t v = 0; v < span; v += kLanes) {
    const V g = Load(dy + v);
    for (int i = 0; i < kSize; ++i) total[i] += g * Load(x + v + offset[i]);
  }
  for (int i = 0; i < kSize; ++i) sum[i] += AddLanes<T>(total[i]);
}

// Adds one image's part of a kernel's gradient to sum [K * K].
template <typename T>
void AddDots(const Geometry& g, const T* dy, const T* planes, T* sum) {
  const T *gradient = dy + g.Start(), *x = planes + g.Start();
  for (int64_t t = 0; t < g.Taps(); t += g.size) {
    const int64_t* offset = &g.offset[t];
    switch (g.size) {
      case 3: AddDotsOf<T, 3>(gradient, x, offset, g.Span(), sum + t); break;
      case 5: AddDotsOf<T, 5>(gradient, x, offset, g.Span(), sum + t); break;
      case 7: AddDotsOf<T, 7>(gradient, x, offset, g.Span(), sum + t); break;
      default:
        for (int64_t j = 0; j < g.size; ++j) {
          AddDotsOf<T, 1>(gradient, x, offset + j, g.Span(), sum + t + j);
        }
    }
  }
}

// Returns [edges, C, kept * kept], the middle of kernels [edges, size, size, C].
template <typename T>
Recycled<T> Transposed(const T* kernel, int64_t edges, int64_t size, int64_t kept,
                       int64_t channels) {
  Recycled<T> found(edges * channels * kept * kept);
  T* values = found.data();
  const int64_t cut = (size - kept) / 2;
  for (int64_t e = 0; e < edges; ++e) {
    for (int64_t t = 0; t < kept * kept; ++t) {
      const int64_t row = t / kept + cut, column = t % kept + cut;
      const T* from = kernel + ((e * size + row) * size + column) * channels;
      for (int64_t c = 0; c < channels; ++c) {
        values[(e * channels + c) * kept * kept + t] = from[c];
      }
    }
  }
  return found;
}

// Groups of images: what lanes.h does in another way.

template <typename T, typename F>
void PackImages(const Geometry& g, const T* x, int64_t images, T* planes, F f) {
  for (int64_t i = 0; i < images; ++i) Pack(g, x + i * g.height * g.width, planes, i, f);
}

template <typename T>
void UnpackImages(const Geometry& g, const T* planes, int64_t images, T* x) {
  for (int64_t i = 0; i < images; ++i) Unpack(g, planes, x + i * g.height * g.width, i);
}

template <typename T>
void RowToPlane(const Geometry& g, const T* row, int64_t images, T* plane) {
  const int64_t out = g.out_height * g.out_width;
  for (int64_t i = 0; i < images; ++i) PackOutput(g, row + i * out, plane, i);
}

// The outputs of a channel under several kernels, `values` [edges, apart], to rows that are
// `pitch` numbers apart, or added to them; `results` has room for a plane of each.
template <typename T, bool kAdd = false>
void Depthwise(const Geometry& g, const T* planes, const T* values, int64_t apart,
               int64_t edges, int64_t images, T* rows, int64_t pitch, T* results) {
  CorrelateAll(g, planes, values, apart, edges, results);
  for (int64_t e = 0; e < edges; ++e, rows += pitch, results += g.plane) {
    T* to = rows;
    for (int64_t i = 0; i < images; ++i) {
      if (!kAdd) UnpackOutput(g, results, to, i);
      for (int64_t h = 0; h < g.out_height; ++h, to += g.out_width) {
        const T* from = results + g.Start(i) + h * g.pitch;
        for (int64_t w = 0; kAdd && w < g.out_width; ++w) to[w] += from[w];
      }
    }
  }
}

// Room for a block that starts at the last output and reads at the farthest tap.
template <typename T>
int64_t Slack() {
  return 4 * Vector<T>::kLanes;
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_PLANES_H_
