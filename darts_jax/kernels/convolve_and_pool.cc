// Depthwise convolution and max pooling for CPUs, forward and backward.
//
// A depthwise convolution is bilinear, and so are its two gradients: three maps. A max pool
// is a choice of taps, and for that choice linear: pick, and its transpose, place.
//
// One image of one channel is a task's unit of work: small enough for the first-level
// cache, whatever the batch. It is copied into a padded plane whose rows follow each other
// at a fixed pitch, so that a tap of the kernel is a constant offset into one flat array
// and the innermost loop is a multiply-add over contiguous numbers, for every width. With
// stride s the image is split into s * s such planes, one for each remainder of row and
// column, and a tap is an offset into one of them. Channels are spread over the thread
// pool; none of them shares a sum with another, so the number of threads changes no bit.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

template <typename T>
struct Vector {
  static constexpr int kLanes = 64 / sizeof(T);
  typedef T Type __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
};

template <typename T>
inline typename Vector<T>::Type Load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::Type*>(p);
}

template <typename T>
inline void Store(T* p, typename Vector<T>::Type v) {
  *reinterpret_cast<typename Vector<T>::Type*>(p) = v;
}

// How the taps of a kernel lie in the planes of an image.
struct Geometry {
  int64_t height, width, out_height, out_width, size, stride, dilation;
  int64_t border, pitch, plane;  // plane: numbers in one padded plane, slack included
  std::vector<int64_t> offset;   // of a tap, from an output's place in plane 0

  Geometry(int64_t height, int64_t width, int64_t size, int64_t stride, int64_t dilation,
           int64_t slack)
      : height(height), width(width), out_height((height + stride - 1) / stride),
        out_width((width + stride - 1) / stride), size(size), stride(stride),
        dilation(dilation) {
    const int64_t reach = dilation * ((size - 1) / 2);
    border = (reach + stride - 1) / stride;
    pitch = out_width + border;
    plane = (out_height + 2 * border) * pitch + 2 * border + slack;
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        const int64_t row = dilation * i - reach, column = dilation * j - reach;
        const int64_t r = Mod(row), c = Mod(column);
        offset.push_back((r * stride + c) * plane + (row - r) / stride * pitch +
                         (column - c) / stride);
      }
    }
  }
  int64_t Mod(int64_t a) const { return ((a % stride) + stride) % stride; }
  int64_t Taps() const { return size * size; }
  int64_t Planes() const { return stride * stride; }
  int64_t PlaneOf(int64_t tap) const {
    return Mod(dilation * (tap / size) - dilation * ((size - 1) / 2)) * stride +
           Mod(dilation * (tap % size) - dilation * ((size - 1) / 2));
  }
  // The first output's place in a plane, and how far the outputs reach from there.
  int64_t Start() const { return border * pitch + border; }
  int64_t Span() const { return out_height * pitch; }
};

// Copies an image [H, W] into its planes; everything but the image's own places stays zero.
template <typename T>
void Pack(const Geometry& g, const T* image, T* planes) {
  for (int64_t r = 0; r < g.stride; ++r) {
    for (int64_t c = 0; c < g.stride; ++c) {
      T* to = planes + (r * g.stride + c) * g.plane + g.Start();
      for (int64_t h = r; h < g.height; h += g.stride, to += g.pitch) {
        const T* from = image + h * g.width;
        if (g.stride == 1) {
          std::memcpy(to, from, g.width * sizeof(T));
        } else {
          for (int64_t w = c, i = 0; w < g.width; w += g.stride, ++i) to[i] = from[w];
        }
      }
    }
  }
}

template <typename T>
void Unpack(const Geometry& g, const T* planes, T* image) {
  for (int64_t r = 0; r < g.stride; ++r) {
    for (int64_t c = 0; c < g.stride; ++c) {
      const T* from = planes + (r * g.stride + c) * g.plane + g.Start();
      for (int64_t h = r; h < g.height; h += g.stride, from += g.pitch) {
        T* to = image + h * g.width;
        if (g.stride == 1) {
          std::memcpy(to, from, g.width * sizeof(T));
        } else {
          for (int64_t w = c, i = 0; w < g.width; w += g.stride, ++i) to[w] = from[i];
        }
      }
    }
  }
}

// Copies [H', W'] to or from one plane.
template <typename T>
void PackOutput(const Geometry& g, const T* image, T* plane) {
  for (int64_t h = 0; h < g.out_height; ++h) {
    std::memcpy(plane + g.Start() + h * g.pitch, image + h * g.out_width,
                g.out_width * sizeof(T));
  }
}

template <typename T>
void UnpackOutput(const Geometry& g, const T* plane, T* image) {
  for (int64_t h = 0; h < g.out_height; ++h) {
    std::memcpy(image + h * g.out_width, plane + g.Start() + h * g.pitch,
                g.out_width * sizeof(T));
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

// to[v] = sum over e and t of value[e][t] * from[e][v + offset[t]].
template <typename T, int kBlock>
void Gather(const T* const* from, const std::vector<int64_t>* offset,
            const std::vector<T>* value, int64_t edges, int64_t span, T* to) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  for (int64_t v = 0; v < span; v += kLanes * kBlock) {
    V sum[kBlock] = {};
    for (int64_t e = 0; e < edges; ++e) {
      const int64_t taps = value[e].size();
      for (int64_t t = 0; t < taps; ++t) {
        const T* p = from[e] + v + (*offset)[t];
        const T k = value[e][t];
        for (int b = 0; b < kBlock; ++b) sum[b] += k * Load(p + b * kLanes);
      }
    }
    for (int b = 0; b < kBlock; ++b) Store(to + v + b * kLanes, sum[b]);
  }
}

// sum[i] += sum over v of dy[v] * x[v + offset[i]] for kSize taps at once.
template <typename T, int kSize>
void Dot(const T* dy, const T* x, const int64_t* offset, int64_t span,
         typename Vector<T>::Type* sum) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V total[kSize];
  for (int i = 0; i < kSize; ++i) total[i] = sum[i];
  for (int64_t v = 0; v < span; v += kLanes) {
    const V g = Load(dy + v);
    for (int i = 0; i < kSize; ++i) total[i] += g * Load(x + v + offset[i]);
  }
  for (int i = 0; i < kSize; ++i) sum[i] = total[i];
}

// Runs work(first, last) on every run of `chunk` numbers below `count`, spread over the
// pool; returns when all are done.
template <typename F>
void ParallelFor(ffi::ThreadPool& pool, int64_t count, int64_t chunk, F work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable done;
    int64_t finished = 0;
  };
  auto shared = std::make_shared<Shared>();
  // A helper that starts late finds no work left and touches only what it owns.
  const int64_t chunks = (count + chunk - 1) / chunk;
  auto loop = [shared, count, chunk, chunks, work] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < chunks; ++mine) {
      work(i * chunk, std::min(count, (i + 1) * chunk));
    }
    if (mine == 0) return;
    std::lock_guard<std::mutex> lock(shared->mutex);
    shared->finished += mine;
    if (shared->finished == chunks) shared->done.notify_all();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), chunks) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([loop] { loop(); });
  loop();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->finished == chunks; });
}

constexpr int64_t kImages = 32;  // of a pool that one task takes at a time

template <typename T>
T* Scratch(int64_t count) {
  thread_local std::vector<T> buffer;
  buffer.assign(count, T(0));
  return buffer.data();
}

// One image's max pool: the largest of the taps and its number; of equals the first wins.
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
      const bool more = from[v] > best[v];
      best[v] = more ? from[v] : best[v];
      which[v] = more ? tap : which[v];
    }
  }
}

// Room for a block that starts at the last output and reads at the farthest tap.
template <typename T>
int64_t Slack() {
  return 4 * Vector<T>::kLanes;
}

// What the three maps have in common: x [C, B, H, W], n edges' kernels [n, K, K, C] and
// y [n, C, B, H', W'].
struct Shape {
  int64_t edges, channels, batch;
};

template <typename T>
void RunForward(ffi::ThreadPool& pool, const Shape& s, const Geometry& g, const T* x,
             const T* kernel, T* y) {
  const int64_t in = g.height * g.width, out = g.out_height * g.out_width;
  ParallelFor(pool, s.channels, 1, [=](int64_t c, int64_t) {
    const int64_t edges = s.edges;
    T* planes = Scratch<T>((g.Planes() + edges) * g.plane);
    T* results = planes + g.Planes() * g.plane;
    std::vector<T> values(edges * g.Taps());
    for (int64_t e = 0; e < edges; ++e) {
      for (int64_t t = 0; t < g.Taps(); ++t) {
        values[e * g.Taps() + t] = kernel[(e * g.Taps() + t) * s.channels + c];
      }
    }
    for (int64_t b = 0; b < s.batch; ++b) {
      Pack(g, x + (c * s.batch + b) * in, planes);
      for (int64_t e = 0; e < edges;) {
        const T* value[4];
        T* to[4];
        for (int i = 0; i < 4; ++i) {
          value[i] = values.data() + std::min(e + i, edges - 1) * g.Taps();
          to[i] = results + std::min(e + i, edges - 1) * g.plane + g.Start();
        }
        const T* from = planes + g.Start();
        const int64_t* offset = g.offset.data();
        switch (edges - e) {
          case 1: Correlate<T, 1, 4>(from, offset, value, g.Taps(), g.Span(), to); e += 1; break;
          case 2: Correlate<T, 2, 4>(from, offset, value, g.Taps(), g.Span(), to); e += 2; break;
          case 3: Correlate<T, 3, 2>(from, offset, value, g.Taps(), g.Span(), to); e += 3; break;
          default: Correlate<T, 4, 2>(from, offset, value, g.Taps(), g.Span(), to); e += 4;
        }
      }
      for (int64_t e = 0; e < edges; ++e) {
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
  ParallelFor(pool, s.channels, 1, [=](int64_t c, int64_t) {
    const int64_t edges = s.edges;
    T* results = Scratch<T>((g.Planes() + edges) * g.plane);
    T* planes = results + g.Planes() * g.plane;  // of dy, one an edge
    // An input's gradient comes from the taps of its own plane, each read backwards.
    std::vector<std::vector<int64_t>> offset(g.Planes());
    std::vector<std::vector<T>> value(g.Planes() * edges);
    for (int64_t t = 0; t < g.Taps(); ++t) {
      const int64_t p = g.PlaneOf(t);
      offset[p].push_back(p * g.plane - g.offset[t]);
      for (int64_t e = 0; e < edges; ++e) {
        value[p * edges + e].push_back(
            kernel[(e * g.Taps() + t) * s.channels + c]);
      }
    }
    std::vector<const T*> from(edges);
    for (int64_t e = 0; e < edges; ++e) from[e] = planes + e * g.plane + g.Start();
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t e = 0; e < edges; ++e) {
        PackOutput(g, dy + ((e * s.channels + c) * s.batch + b) * out,
                   planes + e * g.plane);
      }
      for (int64_t p = 0; p < g.Planes(); ++p) {
        Gather<T, 4>(from.data(), &offset[p], &value[p * edges], edges, g.Span(),
                     results + p * g.plane + g.Start());
      }
      Unpack(g, results, dx + (c * s.batch + b) * in);
    }
  });
}

template <typename T>
void RunKernelGradient(ffi::ThreadPool& pool, const Shape& s, const Geometry& g, const T* x,
                    const T* dy, T* dkernel) {
  using V = typename Vector<T>::Type;
  const int64_t in = g.height * g.width, out = g.out_height * g.out_width;
  ParallelFor(pool, s.channels, 1, [=](int64_t c, int64_t) {
    const int64_t edges = s.edges;
    T* planes = Scratch<T>((g.Planes() + 1) * g.plane);
    T* plane = planes + g.Planes() * g.plane;
    std::vector<V> sums(edges * g.Taps(), V{});
    for (int64_t b = 0; b < s.batch; ++b) {
      Pack(g, x + (c * s.batch + b) * in, planes);
      for (int64_t e = 0; e < edges; ++e) {
        PackOutput(g, dy + ((e * s.channels + c) * s.batch + b) * out, plane);
        const T* from = planes + g.Start();
        const T* gradient = plane + g.Start();
        for (int64_t t = 0; t < g.Taps(); t += g.size) {
          V* sum = &sums[e * g.Taps() + t];
          const int64_t* offset = &g.offset[t];
          switch (g.size) {
            case 3: Dot<T, 3>(gradient, from, offset, g.Span(), sum); break;
            case 5: Dot<T, 5>(gradient, from, offset, g.Span(), sum); break;
            case 7: Dot<T, 7>(gradient, from, offset, g.Span(), sum); break;
            default:
              for (int64_t j = 0; j < g.size; ++j) {
                Dot<T, 1>(gradient, from, offset + j, g.Span(), sum + j);
              }
          }
        }
      }
    }
    for (int64_t e = 0; e < edges; ++e) {
      for (int64_t t = 0; t < g.Taps(); ++t) {
        T total = 0;
        for (int i = 0; i < Vector<T>::kLanes; ++i) total += sums[e * g.Taps() + t][i];
        dkernel[(e * g.Taps() + t) * s.channels + c] = total;
      }
    }
  });
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

enum class Pool { kMax, kPick, kPlace };

// `image` is [N, H, W] of x, `size` the window's. Operands and results as above.
template <Pool kPool, typename T>
void DispatchPool(ffi::ThreadPool& pool, ffi::Span<const int64_t> image, int64_t size,
                  int64_t stride, const T* a, uint8_t* taps, T* result) {
  const Geometry g(image[1], image[2], size, stride, 1, Slack<T>());
  if constexpr (kPool == Pool::kMax) RunMaxPool<T>(pool, image[0], g, a, result, taps);
  if constexpr (kPool == Pool::kPick) RunPick<T>(pool, image[0], g, a, taps, result);
  if constexpr (kPool == Pool::kPlace) RunPlace<T>(pool, image[0], g, a, taps, result);
}

template <Pool kPool>
ffi::Error RunPool(ffi::ThreadPool& pool, ffi::Span<const int64_t> image, int64_t size,
                   int64_t stride, ffi::AnyBuffer a, void* taps, void* result) {
  uint8_t* numbers = static_cast<uint8_t*>(taps);
  switch (a.element_type()) {
    case ffi::F32:
      DispatchPool<kPool>(pool, image, size, stride, a.typed_data<float>(), numbers,
                          static_cast<float*>(result));
      return ffi::Error::Success();
    case ffi::F64:
      DispatchPool<kPool>(pool, image, size, stride, a.typed_data<double>(), numbers,
                          static_cast<double*>(result));
      return ffi::Error::Success();
    default:
      return ffi::Error::InvalidArgument("max pools take float32 or float64");
  }
}

ffi::Error MaxPoolOf(ffi::ThreadPool pool, ffi::Span<const int64_t> image, int64_t size,
                     int64_t stride, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y,
                     ffi::Result<ffi::Buffer<ffi::U8>> taps) {
  return RunPool<Pool::kMax>(pool, image, size, stride, x, taps->untyped_data(),
                             y->untyped_data());
}

template <Pool kPool>
ffi::Error Choose(ffi::ThreadPool pool, ffi::Span<const int64_t> image, int64_t size,
                  int64_t stride, ffi::AnyBuffer a, ffi::Buffer<ffi::U8> taps,
                  ffi::Result<ffi::AnyBuffer> result) {
  return RunPool<kPool>(pool, image, size, stride, a, taps.untyped_data(),
                        result->untyped_data());
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

#define DEFINE_POOL(name, function)                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                              \
                                ffi::Ffi::Bind()                             \
                                    .Ctx<ffi::ThreadPool>()                  \
                                    .Attr<ffi::Span<const int64_t>>("image") \
                                    .Attr<int64_t>("size")                   \
                                    .Attr<int64_t>("stride")                 \
                                    .Arg<ffi::AnyBuffer>()                   \
                                    .Arg<ffi::Buffer<ffi::U8>>()             \
                                    .Ret<ffi::AnyBuffer>())

DEFINE_POOL(Pick, Choose<Pool::kPick>);
DEFINE_POOL(Place, Choose<Pool::kPlace>);

XLA_FFI_DEFINE_HANDLER_SYMBOL(MaxPool, MaxPoolOf,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("image")
                                  .Attr<int64_t>("size")
                                  .Attr<int64_t>("stride")
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::U8>>());
