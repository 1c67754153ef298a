// Dense convolution of stride 1 for CPUs (dense.h), and the gradient of its kernel. The
// gradient of its input is the convolution by the kernel turned around.
//
// Images are spread over the thread pool; a kernel's gradient is summed apart in a fixed number
// of tasks, so that the number of threads changes no bit.

#include "dense.h"

#include "buffers.h"
#include "parallel.h"

namespace {

using namespace planes;

constexpr int64_t kGradientTasks = 16;
constexpr int64_t kNumbers = 1024;  // of a channel that are worth a loop of their own

// x [C, B, H, W], kernel [K, K, C, N], y [N, B, H, W].
template <typename T>
struct Convolution {
  Geometry g;
  Walk<T> walk;
  std::vector<int64_t> rows;
  int64_t channels, outputs, batch, in, pitch;

  Convolution(ffi::Span<const int64_t> image, ffi::Span<const int64_t> taps)
      : g(image[2], image[3], taps[0], 1, 1, Slack<T>(), Images(image)), walk(g),
        rows(walk.RowsOf(image[0])), channels(image[0]), outputs(taps[3]), batch(image[1]),
        in(image[2] * image[3]), pitch(Pitch<T>(walk.Numbers())) {}
  DenseKernels<T> Kernels(const T* values) const {
    return {values, 1, g.size, g.size, channels, outputs};
  }
  // Room for x's planes, and for y or what its gradient needs.
  int64_t Planes() const { return channels * g.plane; }
  int64_t Count() const { return Planes() + outputs * std::max(pitch, g.plane); }

  void PackInput(const T* x, int64_t b, T* planes) const {
    for (int64_t c = 0; c < channels; ++c) {
      PackImages(g, x + (c * batch + b) * in, g.images, planes + c * g.plane,
                 [](T value) { return value; });
    }
  }

 private:
  // Of a group: so many that groups divide the batch.
  static int64_t Images(ffi::Span<const int64_t> image) {
    int64_t images = std::max<int64_t>(1, kNumbers / std::max<int64_t>(1, image[2] * image[3]));
    while (images > 1 && image[1] % images) --images;
    return images;
  }
};

template <typename T>
void Convolve(ffi::ThreadPool& pool, const Convolution<T>& s, const T* x, const T* kernel, T* y) {
  const int64_t job = NextJob(), apart = s.batch * s.in;
  Recycled<T> packed = InBlocks(s.Kernels(kernel), false);
  const T* const blocks = packed.data();
  ParallelFor(pool, s.batch, s.g.images, [=, &s](int64_t first, int64_t) {
    T* planes = Scratch<T>(s.Count(), s.Count(), job);
    s.PackInput(x, first, planes);
    T *const to = y + first * s.in, *const room = planes + s.Planes();
    const bool whole = s.walk.whole;
    DenseProduct(s.walk, s.rows, planes, blocks, s.outputs, whole ? to : room,
                 whole ? apart : s.pitch);
    for (int64_t n = 0; !whole && n < s.outputs; ++n) {
      TakeOutputs(s.walk, s.g, room + n * s.pitch, s.g.images, to + n * apart);
    }
  });
}

template <typename T>
void KernelGradient(ffi::ThreadPool& pool, const Convolution<T>& s, const T* x, const T* dy,
                    T* dkernel) {
  const int64_t job = NextJob(), apart = s.batch * s.in;
  const int64_t groups = s.batch / s.g.images;
  const int64_t each = (groups + kGradientTasks - 1) / kGradientTasks * s.g.images;
  const int64_t tasks = (s.batch + each - 1) / each, size = s.rows.size() * s.outputs;
  Recycled<T> parts(tasks * size);
  T* const part = parts.data();
  ParallelFor(pool, s.batch, each, [=, &s](int64_t first, int64_t last) {
    T* planes = Scratch<T>(s.Count(), s.Count(), job);
    T* const gradients = planes + s.Planes();
    for (int64_t b = first; b < last; b += s.g.images) {
      s.PackInput(x, b, planes);
      const bool whole = s.walk.whole;
      for (int64_t n = 0; !whole && n < s.outputs; ++n) {
        RowToPlane(s.g, dy + n * apart + b * s.in, s.g.images, gradients + n * s.g.plane);
      }
      AddDenseGradient(s.walk, s.rows, planes,
                       whole ? dy + b * s.in : gradients + s.g.Start(), s.outputs,
                       whole ? apart : s.g.plane, part + first / each * size);
    }
  });
  WriteDenseGradient(s.Kernels(nullptr), part, tasks, dkernel);
}

// `image` is the shape [C, B, H, W], `taps` [K, K, C, N].
template <bool kGradient>
ffi::Error Run(ffi::ThreadPool pool, ffi::Span<const int64_t> image,
               ffi::Span<const int64_t> taps, Buffer a, Buffer b, Result result) {
  return WithType(a, [&](auto zero) {
    using T = decltype(zero);
    const Convolution<T> s(image, taps);
    if constexpr (kGradient) {
      KernelGradient(pool, s, In<T>(a), In<T>(b), Out<T>(result));
    } else {
      Convolve(pool, s, In<T>(a), In<T>(b), Out<T>(result));
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
