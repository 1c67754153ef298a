// Depthwise convolution for CPUs: the three bilinear maps that it and its gradients are.
//
// Channels are spread over the thread pool; none of them shares a sum with another, so the
// number of threads changes no bit.

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
template <Map kMap, typename T>
void Dispatch(ffi::ThreadPool& pool, ffi::Span<const int64_t> image,
              ffi::Span<const int64_t> taps, int64_t stride, int64_t dilation, const void* a,
              const void* b, void* result) {
  const Shape shape{taps[0], image[0], image[1]};
  const Geometry geometry(image[2], image[3], taps[1], stride, dilation, Slack<T>());
  const T* first = static_cast<const T*>(a);
  const T* second = static_cast<const T*>(b);
  T* to = static_cast<T*>(result);
  if constexpr (kMap == Map::kForward) RunForward<T>(pool, shape, geometry, first, second, to);
  if constexpr (kMap == Map::kInputGradient) {
    RunInputGradient<T>(pool, shape, geometry, first, second, to);
  }
  if constexpr (kMap == Map::kKernelGradient) {
    RunKernelGradient<T>(pool, shape, geometry, first, second, to);
  }
}

template <Map kMap>
ffi::Error Run(ffi::ThreadPool pool, ffi::Span<const int64_t> image,
               ffi::Span<const int64_t> taps, int64_t stride, int64_t dilation,
               ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> result) {
  switch (a.element_type()) {
    case ffi::F32:
      Dispatch<kMap, float>(pool, image, taps, stride, dilation, a.untyped_data(),
                            b.untyped_data(), result->untyped_data());
      return ffi::Error::Success();
    case ffi::F64:
      Dispatch<kMap, double>(pool, image, taps, stride, dilation, a.untyped_data(),
                             b.untyped_data(), result->untyped_data());
      return ffi::Error::Success();
    default:
      return ffi::Error::InvalidArgument("depthwise takes float32 or float64");
  }
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
                                    .Arg<ffi::AnyBuffer>()                   \
                                    .Arg<ffi::AnyBuffer>()                   \
                                    .Ret<ffi::AnyBuffer>())

DEFINE_HANDLER(Forward, Map::kForward);
DEFINE_HANDLER(InputGradient, Map::kInputGradient);
DEFINE_HANDLER(KernelGradient, Map::kKernelGradient);
