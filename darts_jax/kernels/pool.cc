// Max pooling for CPUs: the pool, and the linear map that it is where its choice of taps
// does not change, with its transpose: pick and place.

#include <limits>

#include "buffers.h"
#include "parallel.h"
#include "planes.h"

namespace {

using namespace planes;

constexpr int64_t kImages = 32;  // that one task takes at a time

// One image's max pool: the largest of the taps and its number; of equals the first wins, and a NaN.
template <typename T>
void MaxOf(const Geometry& g, const T* planes, T* best, T* which) {
  for (int64_t v = 0; v < g.Span(); ++v) {
    best[v] = planes[v + g.offset[0]];
    which[v] = 0;
  }
  for (int64_t t = 1; t < g.Taps(); ++t) {
    const T* from = planes + g.offset[t];
    const T tap = t;
    for (int64_t v = 0; v < g.Span(); ++v) {
      const bool more = (from[v] > best[v]) | (from[v] != from[v]);
      best[v] = more ? from[v] : best[v];
      which[v] = more ? tap : which[v];
    }
  }
}

// x [N, H, W] to y [N, H', W'] and the number of the tap that each y is.
template <typename T>
void RunMaxPool(ffi::ThreadPool& pool, int64_t images, const Geometry& g, const T* x, T* y,
                uint8_t* taps) {
  const int64_t in = g.height * g.width, out = g.out_height * g.out_width;
  ParallelFor(pool, images, kImages, [=](int64_t first, int64_t last) {
    T* planes = Scratch<T>((g.Planes() + 2) * g.plane);
    std::fill(planes, planes + g.Planes() * g.plane, -std::numeric_limits<T>::infinity());
    T* best = planes + g.Planes() * g.plane + g.Start();
    T* which = best + g.plane;
    for (int64_t i = first; i < last; ++i) {
      Pack(g, x + i * in, planes);
      MaxOf(g, planes + g.Start(), best, which);
      for (int64_t h = 0; h < g.out_height; ++h) {
        for (int64_t w = 0; w < g.out_width; ++w) {
          y[i * out + h * g.out_width + w] = best[h * g.pitch + w];
          taps[i * out + h * g.out_width + w] = which[h * g.pitch + w];
        }
      }
    }
  });
}

// y = x at the taps: the linear map that a max pool is where its choice does not change.
template <typename T>
void RunPick(ffi::ThreadPool& pool, int64_t images, const Geometry& g, const T* x,
             const uint8_t* taps, T* y) {
  const int64_t in = g.height * g.width, out = g.out_height * g.out_width;
  ParallelFor(pool, images, kImages, [=](int64_t first, int64_t last) {
    T* planes = Scratch<T>(g.Planes() * g.plane);
    for (int64_t i = first; i < last; ++i) {
      Pack(g, x + i * in, planes);
      for (int64_t h = 0, o = i * out; h < g.out_height; ++h) {
        const T* from = planes + g.Start() + h * g.pitch;
        for (int64_t w = 0; w < g.out_width; ++w, ++o) y[o] = from[w + g.offset[taps[o]]];
      }
    }
  });
}

// The transpose of Pick: every dy is added to the input that its tap names.
template <typename T>
void RunPlace(ffi::ThreadPool& pool, int64_t images, const Geometry& g, const T* dy,
              const uint8_t* taps, T* dx) {
  const int64_t in = g.height * g.width, out = g.out_height * g.out_width;
  ParallelFor(pool, images, kImages, [=](int64_t first, int64_t last) {
    T* planes = Scratch<T>(g.Planes() * g.plane);
    for (int64_t i = first; i < last; ++i) {
      std::fill(planes, planes + g.Planes() * g.plane, T(0));
      for (int64_t h = 0, o = i * out; h < g.out_height; ++h) {
        T* to = planes + g.Start() + h * g.pitch;
        for (int64_t w = 0; w < g.out_width; ++w, ++o) to[w + g.offset[taps[o]]] += dy[o];
      }
      Unpack(g, planes, dx + i * in);
    }
  });
}

enum class Pool { kMax, kPick, kPlace };

// `image` is [N, H, W] of x, `size` the window's. Operands and results as above.
template <Pool kPool>
ffi::Error RunPool(ffi::ThreadPool& pool, ffi::Span<const int64_t> image, int64_t size,
                   int64_t stride, Buffer a, uint8_t* taps, Result result) {
  return WithType(a, [&](auto zero) {
    using T = decltype(zero);
    const Geometry g(image[1], image[2], size, stride, 1, Slack<T>());
    const T* from = In<T>(a);
    T* to = Out<T>(result);
    if constexpr (kPool == Pool::kMax) RunMaxPool(pool, image[0], g, from, to, taps);
    if constexpr (kPool == Pool::kPick) RunPick(pool, image[0], g, from, taps, to);
    if constexpr (kPool == Pool::kPlace) RunPlace(pool, image[0], g, from, taps, to);
  });
}

ffi::Error MaxPoolOf(ffi::ThreadPool pool, ffi::Span<const int64_t> image, int64_t size,
                     int64_t stride, Buffer x, Result y, ffi::Result<ffi::Buffer<ffi::U8>> taps) {
  return RunPool<Pool::kMax>(pool, image, size, stride, x, taps->typed_data(), y);
}

template <Pool kPool>
ffi::Error Choose(ffi::ThreadPool pool, ffi::Span<const int64_t> image, int64_t size,
                  int64_t stride, Buffer a, ffi::Buffer<ffi::U8> taps, Result result) {
  return RunPool<kPool>(pool, image, size, stride, a, taps.typed_data(), result);
}

}  // namespace

#define DEFINE_POOL(name, function)                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                              \
                                ffi::Ffi::Bind()                             \
                                    .Ctx<ffi::ThreadPool>()                  \
                                    .Attr<ffi::Span<const int64_t>>("image") \
                                    .Attr<int64_t>("size")                   \
                                    .Attr<int64_t>("stride")                 \
                                    .Arg<Buffer>()                           \
                                    .Arg<ffi::Buffer<ffi::U8>>()             \
                                    .Ret<Buffer>())

DEFINE_POOL(Pick, Choose<Pool::kPick>);
DEFINE_POOL(Place, Choose<Pool::kPlace>);

XLA_FFI_DEFINE_HANDLER_SYMBOL(MaxPool, MaxPoolOf,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("image")
                                  .Attr<int64_t>("size")
                                  .Attr<int64_t>("stride")
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<ffi::Buffer<ffi::U8>>());
