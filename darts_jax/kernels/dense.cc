// Dense convolution of stride 1 for CPUs, and the gradient of its kernel. The gradient of its
// input is the convolution by the kernel turned around.
//
//   y[n] = sum over taps t and channels c of k[t, c, n] * (x[c] moved by t)
//
// is a product of matrices. The second one is never written out: the channels lie in planes
// (planes.h), where a tap is an offset. Images are spread over the thread pool; a kernel's
// gradient is summed apart in a fixed number of tasks, so that the number of threads changes
// no bit.

#include "buffers.h"
#include "parallel.h"
#include "planes.h"

namespace {

using namespace planes;

constexpr int64_t kGradientTasks = 16;

// x [C, B, H, W], kernel [K, K, C, N], y [N, B, H, W].
struct Shape {
  int64_t channels, outputs, batch, in;
};

// Images of a group, `numbers` of a channel or a few more.
int64_t GroupOf(int64_t batch, int64_t in, int64_t numbers) {
  return std::max<int64_t>(1, std::min(batch, numbers / in));
}

// Where each row (tap, channel) of the second matrix begins, from an output's place on.
std::vector<int64_t> RowsOf(const Shape& s, const Geometry& g) {
  std::vector<int64_t> rows;
  for (int64_t offset : g.offset) {
    for (int64_t c = 0; c < s.channels; ++c) rows.push_back(c * g.plane + offset);
  }
  return rows;
}

// How many of the outputs that are left are computed at once.
int64_t WidthOf(int64_t left) { return left == 6 || left > 8 ? 6 : left >= 4 ? 4 : 1; }

// The kernel [rows, N] with the numbers of each block of outputs one after another.
template <typename T>
Recycled<T> InBlocks(const T* kernel, int64_t rows, int64_t outputs) {
  Recycled<T> found(rows * outputs, false);
  T* to = found.data();
  for (int64_t n = 0, width; n < outputs; n += width) {
    width = WidthOf(outputs - n);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < width; ++i) *to++ = kernel[row * outputs + n + i];
    }
  }
  return found;
}

// kOutputs channels of y at two vectors of places.
template <typename T, int kOutputs>
inline void Block(const T* kernel, const T* planes, const std::vector<int64_t>& rows, T* y,
                  int64_t plane) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V sum[kOutputs][2] = {};
  for (int64_t row : rows) {
    const V a = Load(planes + row), b = Load(planes + row + kLanes);
    for (int n = 0; n < kOutputs; ++n) {
      sum[n][0] += kernel[n] * a;
      sum[n][1] += kernel[n] * b;
    }
    kernel += kOutputs;
  }
  for (int n = 0; n < kOutputs; ++n) {
    Store(y + n * plane, sum[n][0]);
    Store(y + n * plane + kLanes, sum[n][1]);
  }
}

template <typename T>
void Convolve(ffi::ThreadPool& pool, const Shape& s, const Geometry& g, const T* x,
              const T* kernel, T* y) {
  const std::vector<int64_t> rows = RowsOf(s, g);
  const int64_t job = NextJob(), count = (s.channels + s.outputs) * g.plane;
  Recycled<T> packed = InBlocks(kernel, rows.size(), s.outputs);
  const T* const blocks = packed.data();
  ParallelFor(pool, s.batch, g.images, [=, &s, &g, &rows](int64_t first, int64_t last) {
    T* planes = Scratch<T>(count, count, job);
    T* results = planes + s.channels * g.plane;
    const int64_t images = last - first;
    if (images < g.images) std::fill(planes, planes + count, T(0));
    for (int64_t c = 0; c < s.channels; ++c) {
      PackImages(g, x + (c * s.batch + first) * s.in, images, planes + c * g.plane,
                 [](T value) { return value; });
    }
    // All channels at a place before the next place: its rows stay in the nearest cache.
    for (int64_t v = 0; v < g.Span(); v += 2 * Vector<T>::kLanes) {
      const T* from = planes + g.Start() + v;
      T* to = results + g.Start() + v;
      for (int64_t n = 0, width; n < s.outputs; n += width) {
        const T* of = blocks + n * rows.size();
        T* at = to + n * g.plane;
        width = WidthOf(s.outputs - n);
        switch (width) {
          case 6: Block<T, 6>(of, from, rows, at, g.plane); break;
          case 4: Block<T, 4>(of, from, rows, at, g.plane); break;
          default: Block<T, 1>(of, from, rows, at, g.plane);
        }
      }
    }
    for (int64_t n = 0; n < s.outputs; ++n) {
      for (int64_t i = 0; i < images; ++i) {
        UnpackOutput(g, results + n * g.plane, y + (n * s.batch + first + i) * s.in, i);
      }
    }
  });
}

// total[r][n] += sum over places of row r of x and channel n of dy, for kRows by kOutputs.
template <typename T, int kRows, int kOutputs>
inline void AddBlock(const T* planes, const int64_t* rows, const T* dy, int64_t plane,
                     int64_t span, int64_t outputs, T* total) {
  using V = typename Vector<T>::Type;
  V sum[kRows][kOutputs] = {};
  for (int64_t v = 0; v < span; v += Vector<T>::kLanes) {
    V b[kOutputs];
    for (int n = 0; n < kOutputs; ++n) b[n] = Load(dy + n * plane + v);
    for (int r = 0; r < kRows; ++r) {
      const V a = Load(planes + rows[r] + v);
      for (int n = 0; n < kOutputs; ++n) sum[r][n] += a * b[n];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kOutputs; ++n) total[r * outputs + n] += AddLanes<T>(sum[r][n]);
  }
}

template <typename T>
void KernelGradient(ffi::ThreadPool& pool, const Shape& s, const Geometry& g, const T* x,
                    const T* dy, T* dkernel) {
  const std::vector<int64_t> rows = RowsOf(s, g);
  const int64_t job = NextJob(), count = (s.channels + s.outputs) * g.plane;
  const int64_t groups = (s.batch + g.images - 1) / g.images;
  const int64_t each = (groups + kGradientTasks - 1) / kGradientTasks * g.images;
  const int64_t tasks = (s.batch + each - 1) / each, size = rows.size() * s.outputs;
  Recycled<T> parts(tasks * size);
  T* const part = parts.data();
  ParallelFor(pool, s.batch, each, [=, &s, &g, &rows](int64_t first, int64_t last) {
    T* planes = Scratch<T>(count, count, job);
    T* gradients = planes + s.channels * g.plane;
    T* total = part + first / each * size;
    for (int64_t b = first; b < last; b += g.images) {
      const int64_t images = std::min(g.images, last - b);
      if (images < g.images) std::fill(planes, planes + count, T(0));
      for (int64_t c = 0; c < s.channels; ++c) {
        PackImages(g, x + (c * s.batch + b) * s.in, images, planes + c * g.plane,
                   [](T value) { return value; });
      }
      for (int64_t n = 0; n < s.outputs; ++n) {
        RowToPlane(g, dy + (n * s.batch + b) * s.in, images, gradients + n * g.plane);
      }
      const T *from = planes + g.Start(), *of = gradients + g.Start();
      const int64_t number = rows.size();
      for (int64_t r = 0; r < number;) {
        const bool four = r + 4 <= number;
        for (int64_t n = 0; n < s.outputs;) {
          T* at = total + r * s.outputs + n;
          const T* channel = of + n * g.plane;
          const bool wide = n + 4 <= s.outputs;
          const auto add = [&](auto block) {
            block(from, &rows[r], channel, g.plane, g.Span(), s.outputs, at);
          };
          if (four && wide) add(AddBlock<T, 4, 4>);
          if (four && !wide) add(AddBlock<T, 4, 1>);
          if (!four && wide) add(AddBlock<T, 1, 4>);
          if (!four && !wide) add(AddBlock<T, 1, 1>);
          n += wide ? 4 : 1;
        }
        r += four ? 4 : 1;
      }
    }
  });
  std::copy(part, part + size, dkernel);
  for (int64_t i = 1; i < tasks; ++i) {
    for (int64_t k = 0; k < size; ++k) dkernel[k] += part[i * size + k];
  }
}

// `image` is the shape [C, B, H, W], `taps` [K, K, C, N].
template <bool kGradient>
ffi::Error Run(ffi::ThreadPool pool, ffi::Span<const int64_t> image,
               ffi::Span<const int64_t> taps, Buffer a, Buffer b, Result result) {
  return WithType(a, [&](auto zero) {
    using T = decltype(zero);
    const Shape s{image[0], taps[3], image[1], image[2] * image[3]};
    // Long sums for a gradient, few places at a time for what is read again for every output.
    const int64_t images = GroupOf(s.batch, s.in, kGradient ? 1024 : 512);
    const Geometry g(image[2], image[3], taps[0], 1, 1, Slack<T>(), images);
    if constexpr (kGradient) {
      KernelGradient(pool, s, g, In<T>(a), In<T>(b), Out<T>(result));
    } else {
      Convolve(pool, s, g, In<T>(a), In<T>(b), Out<T>(result));
    }
  });
}

}  // namespace

#define DEFINE_DENSE(name, gradient)                                         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, Run<gradient>,                         \
                                ffi::Ffi::Bind()                             \
                                    .Ctx<ffi::ThreadPool>()                  \
                                    .Attr<ffi::Span<const int64_t>>("image") \
                                    .Attr<ffi::Span<const int64_t>>("taps")  \
                                    .Arg<Buffer>()                           \
                                    .Arg<Buffer>()                           \
                                    .Ret<Buffer>())

DEFINE_DENSE(DenseForward, false);
DEFINE_DENSE(DenseKernelGradient, true);
