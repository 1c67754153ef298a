// One stage of a mixed operation for CPUs: affine map, ReLU, depthwise convolution,
// pointwise convolution and the batch's moments, in one pass over the images; and its
// gradient, in another. What lies between the stage's input and its output is computed
// again in the gradient instead of being stored.
//
//   u[i] = relu(scale[i, c] * x[i] + shift[i, c])        i: the one input, or an edge's own
//   y[e] = depthwise(u[i], taps[e]);  z[e, c'] = sum over c of mix[e, c, c'] * y[e, c]
//
// A task takes an image, or as many small ones as make about a thousand outputs, through all
// of it, so that everything but x and z stays in the second-level cache. Tasks sum kernel gradients and moments apart, and those sums are added
// in the tasks' order: the number of threads changes no bit.

#include <cmath>

#include "planes.h"

namespace {

using namespace planes;

constexpr int64_t kTasks = 32;    // at most; a fixed number, whatever the threads
constexpr int64_t kLeast = 4;      // tasks that a batch of small images is still spread over
constexpr int64_t kOutputs = 1024;  // of a channel that are worth a loop of their own

struct Stage {
  int64_t inputs, edges, channels, out_channels, batch;
  int64_t in, out, padded;  // numbers of an image, of an output, of a group's to whole blocks
  Geometry g;               // of the images that are computed together

  template <typename T>
  static Stage Of(ffi::AnyBuffer x, ffi::AnyBuffer taps, ffi::AnyBuffer mix, int64_t stride,
                  int64_t dilation, T) {
    const auto i = x.dimensions(), k = taps.dimensions(), m = mix.dimensions();
    const int64_t out = ((i[3] + stride - 1) / stride) * ((i[4] + stride - 1) / stride);
    const int64_t images = std::max<int64_t>(
        1, std::min(kOutputs / out, (i[2] + kLeast - 1) / kLeast));
    const Geometry g(i[3], i[4], k[1], stride, dilation, Slack<T>(), images);
    const int64_t block = 2 * Vector<T>::kLanes;
    return {i[0], k[0], i[1], m[2], i[2], i[3] * i[4], out,
            (images * out + block - 1) / block * block, g};
  }
  // Images a task: whole groups of them.
  int64_t Chunk() const {
    const int64_t least = (batch + kTasks - 1) / kTasks;
    return (least + g.images - 1) / g.images * g.images;
  }
  int64_t Chunks() const { return (batch + Chunk() - 1) / Chunk(); }
  int64_t EdgesOfInput() const { return inputs == 1 ? edges : 1; }
  int64_t Moments() const { return edges * out_channels; }
  int64_t Taps() const { return edges * g.Taps() * channels; }
  int64_t Mixes() const { return edges * channels * out_channels; }
};

// z[r][p] = sum over k of m[r * row + k * column] * y[k][p] for kRows rows from `z` on.
template <typename T, int kRows>
void MultiplyRows(const T* m, int64_t row, int64_t column, int64_t inner, const T* y,
                  int64_t padded, T* z) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  for (int64_t p = 0; p < padded; p += 2 * kLanes) {
    V sum[kRows][2] = {};
    for (int64_t k = 0; k < inner; ++k) {
      const V a = Load(y + k * padded + p), b = Load(y + k * padded + p + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const T value = m[r * row + k * column];
        sum[r][0] += value * a;
        sum[r][1] += value * b;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      Store(z + r * padded + p, sum[r][0]);
      Store(z + r * padded + p + kLanes, sum[r][1]);
    }
  }
}

template <typename T>
void Multiply(const T* m, int64_t row, int64_t column, int64_t rows, int64_t inner,
              const T* y, int64_t padded, T* z) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    MultiplyRows<T, 4>(m + r * row, row, column, inner, y, padded, z + r * padded);
  }
  for (; r < rows; ++r) {
    MultiplyRows<T, 1>(m + r * row, row, column, inner, y, padded, z + r * padded);
  }
}

// m[r][k] += sum over p of y[r][p] * z[k][p] for kRows by kColumns pairs.
template <typename T, int kRows, int kColumns>
void AddProducts(const T* y, const T* z, int64_t padded, int64_t columns, T* m) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  V sum[kRows][kColumns] = {};
  for (int64_t p = 0; p < padded; p += kLanes) {
    V b[kColumns];
    for (int k = 0; k < kColumns; ++k) b[k] = Load(z + k * padded + p);
    for (int r = 0; r < kRows; ++r) {
      const V a = Load(y + r * padded + p);
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
void AddOuter(const T* y, int64_t rows, const T* z, int64_t columns, int64_t padded, T* m) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t k = 0;
    for (; k + 4 <= columns; k += 4) {
      AddProducts<T, 4, 4>(y + r * padded, z + k * padded, padded, columns,
                           m + r * columns + k);
    }
    for (; k < columns; ++k) {
      AddProducts<T, 4, 1>(y + r * padded, z + k * padded, padded, columns,
                           m + r * columns + k);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t k = 0; k < columns; ++k) {
      AddProducts<T, 1, 1>(y + r * padded, z + k * padded, padded, columns,
                           m + r * columns + k);
    }
  }
}

// u of the images of one channel, into `u` and from there into their planes.
template <typename T>
void PackRectified(const Stage& s, const T* x, int64_t images, T scale, T shift, T* u,
                   T* planes) {
  for (int64_t i = 0; i < images * s.in; ++i) {
    const T value = scale * x[i] + shift;
    u[i] = value > 0 ? value : T(0);
  }
  for (int64_t i = 0; i < images; ++i) Pack(s.g, u + i * s.in, planes, i);
}

// The outputs of all images from a plane to a row without gaps, and back.
template <typename T>
void ToRow(const Stage& s, const T* plane, int64_t images, T* row) {
  for (int64_t i = 0; i < images; ++i) UnpackOutput(s.g, plane, row + i * s.out, i);
}

template <typename T>
void FromRow(const Stage& s, const T* row, int64_t images, T* plane) {
  for (int64_t i = 0; i < images; ++i) PackOutput(s.g, row + i * s.out, plane, i);
}

// A channel's moments so far: count, mean and sum of squared deviations.
struct Moment {
  double count = 0, mean = 0, squares = 0;

  // Chan, Golub and LeVeque 1979: no cancellation between large sums.
  void Add(double n, double other_mean, double other_squares) {
    if (n == 0) return;
    const double total = count + n, difference = other_mean - mean;
    mean += difference * n / total;
    squares += other_squares + difference * difference * count * n / total;
    count = total;
  }
  template <typename T>
  void AddNumbers(const T* z, int64_t numbers) {
    const T total = Sum<T>(numbers, [=](int64_t i, auto as) { return Read(z + i, as); });
    const T centre = total / numbers;
    const T squares = Sum<T>(numbers, [=](int64_t i, auto as) {
      const auto deviation = Read(z + i, as) - centre;
      return deviation * deviation;
    });
    Add(numbers, centre, squares);
  }
};

template <typename T>
void StageForwardOf(ffi::ThreadPool& pool, const Stage& s, const T* x, const T* scale,
                    const T* shift, const T* taps, const T* mix, T* z, T* mean, T* variance) {
  std::vector<Moment> moments(s.Chunks() * s.Moments());
  Moment* sums = moments.data();
  const std::vector<T> transposed = Transposed(taps, s.edges, s.g.Taps(), s.channels);
  const T* values = transposed.data();
  ParallelFor(pool, s.batch, s.Chunk(), [=, &s](int64_t first, int64_t last) {
    const Geometry& g = s.g;
    const int64_t edges = s.EdgesOfInput(), group = g.images;
    const int64_t count = group * s.in + (g.Planes() + edges) * g.plane +
                          (edges * s.channels + s.out_channels) * s.padded;
    T* u = Scratch<T>(count);
    T* planes = u + group * s.in;
    T* results = planes + g.Planes() * g.plane;
    T* y = results + edges * g.plane;  // [edges, C, padded]
    T* product = y + edges * s.channels * s.padded;
    Moment* moment = sums + first / s.Chunk() * s.Moments();
    for (int64_t b = first; b < last; b += group) {
      const int64_t images = std::min(group, last - b);
      if (images < group) std::fill(u, u + count, T(0));
      for (int64_t i = 0; i < s.inputs; ++i) {
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t row = i * s.channels + c;
          PackRectified(s, x + (row * s.batch + b) * s.in, images, scale[row], shift[row], u,
                        planes);
          CorrelateAll(g, planes, values + row * g.Taps(), s.channels * g.Taps(), edges,
                       results);
          for (int64_t e = 0; e < edges; ++e) {
            ToRow(s, results + e * g.plane, images, y + (e * s.channels + c) * s.padded);
          }
        }
        for (int64_t e = 0; e < edges; ++e) {
          const int64_t edge = i + e;
          Multiply(mix + edge * s.channels * s.out_channels, 1, s.out_channels,
                   s.out_channels, s.channels, y + e * s.channels * s.padded, s.padded,
                   product);
          for (int64_t c = 0; c < s.out_channels; ++c) {
            const int64_t row = edge * s.out_channels + c;
            moment[row].AddNumbers(product + c * s.padded, images * s.out);
            std::memcpy(z + (row * s.batch + b) * s.out, product + c * s.padded,
                        images * s.out * sizeof(T));
          }
        }
      }
    }
  });
  for (int64_t row = 0; row < s.Moments(); ++row) {
    Moment total;
    for (int64_t k = 0; k < s.Chunks(); ++k) {
      const Moment& part = moments[k * s.Moments() + row];
      total.Add(part.count, part.mean, part.squares);
    }
    mean[row] = total.mean;
    variance[row] = total.squares / total.count;
  }
}

// dz = a * gradient + alpha + beta * z: the gradient that reaches z through a batch norm.
template <typename T>
struct Incoming {
  const T *z, *gradient, *a, *alpha, *beta;
};

// What a task adds up: gradients of taps [n, C, K * K], mix, scale and shift.
template <typename T>
struct Totals {
  T *taps, *mix, *scale, *shift;
  static int64_t Count(const Stage& s) {
    return s.Taps() + s.Mixes() + 2 * s.inputs * s.channels;
  }
  static Totals In(const Stage& s, T* at) {
    T* mix = at + s.Taps();
    return {at, mix, mix + s.Mixes(), mix + s.Mixes() + s.inputs * s.channels};
  }
};

// One input of some images: du through all its edges, and what they add to the totals.
template <typename T>
void BackwardOfInput(const Stage& s, int64_t i, int64_t b, int64_t images, const T* values,
                     const T* mix, const Incoming<T>& into, const T* u, T* du, T* plane,
                     T* result, T* y, T* dz, T* dy, const Totals<T>& totals) {
  const Geometry& g = s.g;
  const int64_t planes = g.Planes() * g.plane;
  for (int64_t e = i; e < i + s.EdgesOfInput(); ++e) {
    for (int64_t c = 0; c < s.channels; ++c) {
      CorrelateAll(g, u + c * planes, values + (e * s.channels + c) * g.Taps(), 0, 1, result);
      ToRow(s, result, images, y + c * s.padded);
    }
    for (int64_t c = 0; c < s.out_channels; ++c) {
      const int64_t row = e * s.out_channels + c;
      const T *z = into.z + (row * s.batch + b) * s.out,
              *gradient = into.gradient + (row * s.batch + b) * s.out;
      const T a = into.a[row], alpha = into.alpha[row], beta = into.beta[row];
      T* to = dz + c * s.padded;
      for (int64_t p = 0; p < images * s.out; ++p) {
        to[p] = a * gradient[p] + alpha + beta * z[p];
      }
    }
    AddOuter(y, s.channels, dz, s.out_channels, s.padded,
             totals.mix + e * s.channels * s.out_channels);
    Multiply(mix + e * s.channels * s.out_channels, s.out_channels, 1, s.channels,
             s.out_channels, dz, s.padded, dy);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t row = e * s.channels + c;
      FromRow(s, dy + c * s.padded, images, plane);
      AddDots(g, plane, u + c * planes, totals.taps + row * g.Taps());
      Spread(g, plane, values + row * g.Taps(), du + c * planes);
    }
  }
}

template <typename T>
void StageBackwardOf(ffi::ThreadPool& pool, const Stage& s, const T* x, const T* scale,
                     const T* shift, const T* taps, const T* mix, const Incoming<T>& into,
                     T* dx, T* dscale, T* dshift, T* dtaps, T* dmix) {
  const int64_t each = Totals<T>::Count(s);
  std::vector<T> parts(s.Chunks() * each, T(0));
  T* part = parts.data();
  const std::vector<T> transposed = Transposed(taps, s.edges, s.g.Taps(), s.channels);
  const T* values = transposed.data();
  ParallelFor(pool, s.batch, s.Chunk(), [=, &s](int64_t first, int64_t last) {
    const Geometry& g = s.g;
    const int64_t planes = g.Planes() * g.plane, group = g.images;
    const int64_t count = 2 * group * s.in + 2 * s.channels * planes + 2 * g.plane +
                          (2 * s.channels + s.out_channels) * s.padded;
    T* rectified = Scratch<T>(count);
    T* back = rectified + group * s.in;
    T* u = back + group * s.in;
    T* du = u + s.channels * planes;
    T* plane = du + s.channels * planes;
    T* result = plane + g.plane;
    T* y = result + g.plane;
    T* dy = y + s.channels * s.padded;
    T* dz = dy + s.channels * s.padded;
    const Totals<T> totals = Totals<T>::In(s, part + first / s.Chunk() * each);
    for (int64_t b = first; b < last; b += group) {
      const int64_t images = std::min(group, last - b);
      if (images < group) std::fill(rectified, rectified + count, T(0));
      for (int64_t i = 0; i < s.inputs; ++i) {
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t row = i * s.channels + c;
          PackRectified(s, x + (row * s.batch + b) * s.in, images, scale[row], shift[row],
                        rectified, u + c * planes);
        }
        std::fill(du, du + s.channels * planes, T(0));
        BackwardOfInput(s, i, b, images, values, mix, into, u, du, plane, result, y, dz, dy,
                        totals);
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t row = i * s.channels + c, numbers = images * s.in;
          const T* from = x + (row * s.batch + b) * s.in;
          T* to = dx + (row * s.batch + b) * s.in;
          for (int64_t k = 0; k < images; ++k) Unpack(g, du + c * planes, back + k * s.in, k);
          const T factor = scale[row], offset = shift[row];
          for (int64_t p = 0; p < numbers; ++p) {
            back[p] = factor * from[p] + offset > 0 ? back[p] : T(0);
            to[p] = factor * back[p];
          }
          totals.shift[row] +=
              Sum<T>(numbers, [=](int64_t p, auto as) { return Read(back + p, as); });
          totals.scale[row] += Sum<T>(numbers, [=](int64_t p, auto as) {
            return Read(back + p, as) * Read(from + p, as);
          });
        }
      }
    }
  });
  for (int64_t k = 1; k < s.Chunks(); ++k) {
    for (int64_t i = 0; i < each; ++i) part[i] += part[k * each + i];
  }
  const Totals<T> totals = Totals<T>::In(s, part);
  for (int64_t e = 0; e < s.edges; ++e) {
    for (int64_t t = 0; t < s.g.Taps(); ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        dtaps[(e * s.g.Taps() + t) * s.channels + c] =
            totals.taps[(e * s.channels + c) * s.g.Taps() + t];
      }
    }
  }
  std::copy(totals.mix, totals.mix + s.Mixes(), dmix);
  std::copy(totals.scale, totals.scale + s.inputs * s.channels, dscale);
  std::copy(totals.shift, totals.shift + s.inputs * s.channels, dshift);
}

constexpr int64_t kPiece = 1024;  // summed in T, the pieces in double

// For every row: the sum of gradient * z and the sum of gradient. z has as many rows, or
// fewer, which the gradient's rows then use in turn.
template <typename T>
void SumsOf(ffi::ThreadPool& pool, int64_t rows, int64_t rows_of_z, int64_t numbers,
            const T* gradient, const T* z, T* products, T* sums) {
  ParallelFor(pool, rows, 1, [=](int64_t row, int64_t) {
    double product = 0, sum = 0;
    for (int64_t at = 0; at < numbers; at += kPiece) {
      const T *g = gradient + row * numbers + at, *v = z + row % rows_of_z * numbers + at;
      const int64_t count = std::min(kPiece, numbers - at);
      product += Sum<T>(
          count, [=](int64_t i, auto as) { return Read(g + i, as) * Read(v + i, as); });
      sum += Sum<T>(count, [=](int64_t i, auto as) { return Read(g + i, as); });
    }
    products[row] = product;
    sums[row] = sum;
  });
}

// For every row: mean and biased variance.
template <typename T>
void MomentsOf(ffi::ThreadPool& pool, int64_t rows, int64_t numbers, const T* x, T* mean,
               T* variance) {
  ParallelFor(pool, rows, 1, [=](int64_t row, int64_t) {
    Moment moment;
    for (int64_t at = 0; at < numbers; at += kPiece) {
      moment.AddNumbers(x + row * numbers + at, std::min(kPiece, numbers - at));
    }
    mean[row] = moment.mean;
    variance[row] = moment.squares / moment.count;
  });
}

template <typename T>
const T* In(ffi::AnyBuffer b) {
  return static_cast<const T*>(b.untyped_data());
}

template <typename T>
T* Out(ffi::Result<ffi::AnyBuffer> b) {
  return static_cast<T*>(b->untyped_data());
}

// Calls f with a number of the buffers' type.
template <typename F>
ffi::Error WithType(ffi::AnyBuffer x, F f) {
  if (x.element_type() == ffi::F32) {
    f(float());
  } else if (x.element_type() == ffi::F64) {
    f(double());
  } else {
    return ffi::Error::InvalidArgument("stages take float32 or float64");
  }
  return ffi::Error::Success();
}

using Buffer = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

ffi::Error RunForward(ffi::ThreadPool pool, int64_t stride, int64_t dilation, Buffer x,
                      Buffer scale, Buffer shift, Buffer taps, Buffer mix, Result z,
                      Result mean, Result variance) {
  return WithType(x, [&](auto zero) {
    using T = decltype(zero);
    StageForwardOf<T>(pool, Stage::Of(x, taps, mix, stride, dilation, zero), In<T>(x),
                      In<T>(scale), In<T>(shift), In<T>(taps), In<T>(mix), Out<T>(z),
                      Out<T>(mean), Out<T>(variance));
  });
}

ffi::Error RunBackward(ffi::ThreadPool pool, int64_t stride, int64_t dilation, Buffer x,
                       Buffer scale, Buffer shift, Buffer taps, Buffer mix, Buffer z,
                       Buffer gradient, Buffer a, Buffer alpha, Buffer beta, Result dx,
                       Result dscale, Result dshift, Result dtaps, Result dmix) {
  return WithType(x, [&](auto zero) {
    using T = decltype(zero);
    const Incoming<T> into{In<T>(z), In<T>(gradient), In<T>(a), In<T>(alpha), In<T>(beta)};
    StageBackwardOf<T>(pool, Stage::Of(x, taps, mix, stride, dilation, zero), In<T>(x),
                       In<T>(scale), In<T>(shift), In<T>(taps), In<T>(mix), into, Out<T>(dx),
                       Out<T>(dscale), Out<T>(dshift), Out<T>(dtaps), Out<T>(dmix));
  });
}

ffi::Error RunSums(ffi::ThreadPool pool, Buffer gradient, Buffer z, Result products,
                   Result sums) {
  return WithType(z, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = products->element_count(), numbers = gradient.element_count() / rows;
    SumsOf<T>(pool, rows, z.element_count() / numbers, numbers, In<T>(gradient), In<T>(z),
              Out<T>(products), Out<T>(sums));
  });
}

ffi::Error RunMoments(ffi::ThreadPool pool, Buffer x, Result mean, Result variance) {
  return WithType(x, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = mean->element_count();
    MomentsOf<T>(pool, rows, x.element_count() / rows, In<T>(x), Out<T>(mean),
                 Out<T>(variance));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(StageForward, RunForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("dilation")
                                  .Arg<Buffer>()   // x
                                  .Arg<Buffer>()   // scale
                                  .Arg<Buffer>()   // shift
                                  .Arg<Buffer>()   // taps
                                  .Arg<Buffer>()   // mix
                                  .Ret<Buffer>()   // z
                                  .Ret<Buffer>()   // mean
                                  .Ret<Buffer>());  // variance

XLA_FFI_DEFINE_HANDLER_SYMBOL(StageBackward, RunBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("dilation")
                                  .Arg<Buffer>()   // x
                                  .Arg<Buffer>()   // scale
                                  .Arg<Buffer>()   // shift
                                  .Arg<Buffer>()   // taps
                                  .Arg<Buffer>()   // mix
                                  .Arg<Buffer>()   // z
                                  .Arg<Buffer>()   // gradient
                                  .Arg<Buffer>()   // a
                                  .Arg<Buffer>()   // alpha
                                  .Arg<Buffer>()   // beta
                                  .Ret<Buffer>()   // dx
                                  .Ret<Buffer>()   // dscale
                                  .Ret<Buffer>()   // dshift
                                  .Ret<Buffer>()   // dtaps
                                  .Ret<Buffer>());  // dmix

XLA_FFI_DEFINE_HANDLER_SYMBOL(Sums, RunSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()   // gradient
                                  .Arg<Buffer>()   // z
                                  .Ret<Buffer>()   // products
                                  .Ret<Buffer>());  // sums

XLA_FFI_DEFINE_HANDLER_SYMBOL(Moments, RunMoments,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()   // x
                                  .Ret<Buffer>()   // mean
                                  .Ret<Buffer>());  // variance
