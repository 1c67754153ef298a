// Depthwise convolution for CPUs: the three bilinear maps that it and its gradients are.
//
// Channels are spread over the thread pool; none of them shares a sum with another, so the
// number of threads changes no bit.

#include "buffers.h"
#include "parallel.h"
#include "planes.h"

namespace {

using namespace planes;

// What the three maps have in common: x [C, B, H, W], n edges' kernels [n, K, K, C] and
// y [n, C, B, H', W'].
struct Shape {
  int64_t edges, channels, batch;
};

template <typename T>
void RunForward(ffi::ThreadPool& pool, const Shape& s, const Geometry& g, const T* x,
                const T* kernel, T* y) {
  const int64_t in = g.height * g.width, out = g.out_height * g.out_width;
  Recycled<T> values = Transposed(kernel, s.edges, g.size, g.size, s.channels);
  ParallelFor(pool, s.channels, 1, [=, &s, &g, &values](int64_t c, int64_t) {
    T* planes = Scratch<T>((g.Planes() + s.edges) * g.plane);
    T* results = planes + g.Planes() * g.plane;
    for (int64_t b = 0; b < s.batch; ++b) {
      Pack(g, x + (c * s.batch + b) * in, planes);
      CorrelateAll(g, planes, values.data() + c * g.Taps(), s.channels * g.Taps(), s.edges, results);
      for (int64_t e = 0; e < s.edges; ++e) {
        UnpackOutput(g, results + e * g.plane,
                     y + ((e * s.channels + c) * s.batch + b) * out);
      }
    }
  });
}

template <typename T>
void RunInputGradient(ffi::ThreadPool& pool, const Shape& s, const Geometry& g, const T* dy,
                      const T* kernel, T* dx) {
  const int64_t in = g.height * g.width, out = g.out_height * g.out_width;
  Recycled<T> values = Transposed(kernel, s.edges, g.size, g.size, s.channels);
  ParallelFor(pool, s.channels, 1, [=, &s, &g, &values](int64_t c, int64_t) {
    T* planes = Scratch<T>((g.Planes() + 1) * g.plane);
    T* plane = planes + g.Planes() * g.plane;  // of dy
    for (int64_t b = 0; b < s.batch; ++b) {
      std::fill(planes, plane, T(0));
      for (int64_t e = 0; e < s.edges; ++e) {
        PackOutput(g, dy + ((e * s.channels + c) * s.batch + b) * out, plane);
        Spread(g, plane, values.data() + (e * s.channels + c) * g.Taps(), planes);
      }
      Unpack(g, planes, dx + (c * s.batch + b) * in);
    }
  });
}

template <typename T>
void RunKernelGradient(ffi::ThreadPool& pool, const Shape& s, const Geometry& g, const T* x,
                       const T* dy, T* dkernel) {
  const int64_t in = g.height * g.width, out = g.out_height * g.out_width;
  ParallelFor(pool, s.channels, 1, [=, &s, &g](int64_t c, int64_t) {
    T* planes = Scratch<T>((g.Planes() + 1) * g.plane);
    T* plane = planes + g.Planes() * g.plane;
    std::vector<T> sums(s.edges * g.Taps(), T(0));
    for (int64_t b = 0; b < s.batch; ++b) {
      Pack(g, x + (c * s.batch + b) * in, planes);
      for (int64_t e = 0; e < s.edges; ++e) {
        PackOutput(g, dy + ((e * s.channels + c) * s.batch + b) * out, plane);
        AddDots(g, plane, planes, &sums[e * g.Taps()]);
      }
    }
    for (int64_t e = 0; e < s.edges; ++e) {
      for (int64_t t = 0; t < g.Taps(); ++t) {
        dkernel[(e * g.Taps() + t) * s.channels + c] = sums[e * g.Taps() + t];
      }
    }
  });
}

enum class Map { kForward, kInputGradient, kKernelGradient };

// `image` is the shape [C, B, H, W], `taps` [n, K, K, C]; a and b the two operands.
template <Map kMap>
ffi::Error Run(ffi::ThreadPool pool, ffi::Span<const int64_t> image,
               ffi::Span<const int64_t> taps, int64_t stride, int64_t dilation, Buffer a,
               Buffer b, Result result) {
  return WithType(a, [&](auto zero) {
    using T = decltype(zero);
    const Shape shape{taps[0], image[0], image[1]};
    const Geometry g(image[2], image[3], taps[1], stride, dilation, Slack<T>());
    const T *first = In<T>(a), *second = In<T>(b);
    T* to = Out<T>(result);
    if constexpr (kMap == Map::kForward) RunForward(pool, shape, g, first, second, to);
    if constexpr (kMap == Map::kInputGradient) {
      RunInputGradient(pool, shape, g, first, second, to);
    }
    if constexpr (kMap == Map::kKernelGradient) {
      RunKernelGradient(pool, shape, g, first, second, to);
    }
  });
}

}  // namespace

#define DEFINE_HANDLER(name, map)                                            \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, Run<map>,                              \
                                ffi::Ffi::Bind()                             \
                                    .Ctx<ffi::ThreadPool>()                  \
                                    .Attr<ffi::Span<const int64_t>>("image") \
                                    .Attr<ffi::Span<const int64_t>>("taps")  \
                                    .Attr<int64_t>("stride")                 \
                                    .Attr<int64_t>("dilation")               \
                                    .Arg<Buffer>()                           \
                                    .Arg<Buffer>()                           \
                                    .Ret<Buffer>())

DEFINE_HANDLER(Forward, Map::kForward);
DEFINE_HANDLER(InputGradient, Map::kInputGradient);
DEFINE_HANDLER(KernelGradient, Map::kKernelGradient);
