// How a stage and its gradient change with their operands: the tangents of stage.h, forward
// mode, for the exact second order. A quantity's tangent has its name and a T.
//
//   uT = [u > 0] * (scaleT * x + scale * xT + shiftT)
//   yT = depthwise(uT, taps) + depthwise(u, tapsT);  zT = mix * yT + mixT * y

#ifndef DARTS_JAX_KERNELS_STAGE_TANGENT_H_
#define DARTS_JAX_KERNELS_STAGE_TANGENT_H_

#include "stage_gradient.h"

namespace planes {

// What is given with its tangent.
template <typename T>
struct StagePair {
  StageInput<T> from, from_t;
  StageKernels<T> kernels, kernels_t;
};

// uT of the images of one channel, into their planes; `row` has room for them.
template <typename T, typename G>
void PackTangent(const Tiles<T, G>& s, const StagePair<T>& p, int64_t channel, int64_t b,
                 int64_t images, T* row, T* planes) {
  const T scale = p.from.scale[channel], shift = p.from.shift[channel];
  const T scale_t = p.from_t.scale[channel], shift_t = p.from_t.shift[channel];
  const T* x = p.from.x + (channel * s.batch + b) * s.in;
  const T* x_t = p.from_t.x + (channel * s.batch + b) * s.in;
  for (int64_t i = 0; i < images * s.in; ++i) {
    const T tangent = scale_t * x[i] + scale * x_t[i] + shift_t;
    row[i] = scale * x[i] + shift > 0 ? tangent : T(0);
  }
  PackImages(s.g, row, images, planes, [](T value) { return value; });
}

// Adds the sums of zT and of z * zT.
template <typename T>
void AddTangentSums(const T* z, const T* z_t, int64_t numbers, double& sum, double& product) {
  sum += Sum<T>(numbers, [=](int64_t k, auto as) { return Read(z_t + k, as); });
  product += Sum<T>(
      numbers, [=](int64_t k, auto as) { return Read(z_t + k, as) * Read(z + k, as); });
}

// Of `rows` rows, out of the sums and then the products of every task.
inline void CombineTangentSums(const double* parts, int64_t tasks, int64_t rows, double* sums,
                               double* products) {
  for (int64_t row = 0; row < rows; ++row) {
    sums[row] = products[row] = 0;
    for (int64_t k = 0; k < tasks; ++k) {
      sums[row] += parts[2 * k * rows + row];
      products[row] += parts[(2 * k + 1) * rows + row];
    }
  }
}

// zT [n, C', B, H', W'], and the sums of zT and of z * zT over batch and image, [n, C'].
template <typename T, typename G>
void StageTangent(ffi::ThreadPool& pool, const Tiles<T, G>& s, const StagePair<T>& p, const T* z,
                  T* z_t, double* sums, double* products) {
  auto taps = s.Values(p.kernels.taps);
  auto taps_t = s.Values(p.kernels_t.taps);
  const T *values = taps.data(), *values_t = taps_t.data();
  std::vector<double> parts(2 * s.Chunks() * s.Rows(), 0.0);
  double* part = parts.data();
  const int64_t job = NextJob();
  ParallelFor(pool, s.batch, s.Chunk(), [=, &s, &p](int64_t first, int64_t last) {
    const G& g = s.g;
    const int64_t edges = s.EdgesOfInput(), group = g.images;
    const int64_t rows = edges * s.channels * s.pitch;
    const int64_t count = 2 * g.Input() + edges * g.Output() + 2 * rows +
                          2 * s.out_channels * s.pitch + group * s.in;
    T* u = Scratch<T>(count, s.Zeros(2 * g.Input() + edges * g.Output(), count), job);
    T* u_t = u + g.Input();
    T* results = u_t + g.Input();
    T* y = results + edges * g.Output();
    T* y_t = y + rows;
    T* product = y_t + rows;
    T* product_t = product + s.out_channels * s.pitch;
    T* image = product_t + s.out_channels * s.pitch;
    double* sum = part + first / s.Chunk() * 2 * s.Rows();
    for (int64_t b = first; b < last; b += group) {
      const int64_t images = std::min(group, last - b);
      if (images < group) std::fill(u, u + count, T(0));
      for (int64_t i = 0; i < s.inputs; ++i) {
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t row = i * s.channels + c, apart = s.channels * g.Taps();
          PackRectified(s, p.from, row, b, images, u);
          PackTangent(s, p, row, b, images, image, u_t);
          const int64_t at = row * g.Taps(), between = s.channels * s.pitch;
          T *to = y + c * s.pitch, *to_t = y_t + c * s.pitch;
          Depthwise(g, u, values + at, apart, edges, images, to, between, results);
          Depthwise(g, u_t, values + at, apart, edges, images, to_t, between, results);
          Depthwise<T, true>(g, u, values_t + at, apart, edges, images, to_t, between, results);
        }
        for (int64_t e = 0; e < edges; ++e) {
          const int64_t mixes = (i + e) * s.channels * s.out_channels;
          const int64_t at = e * s.channels * s.pitch;
          Multiply(p.kernels_t.mix + mixes, 1, s.out_channels, s.out_channels, s.channels,
                   y + at, s.padded, s.pitch, product, s.pitch);
          Multiply(p.kernels.mix + mixes, 1, s.out_channels, s.out_channels, s.channels,
                   y_t + at, s.padded, s.pitch, product_t, s.pitch);
          for (int64_t c = 0; c < s.out_channels; ++c) {
            const int64_t row = (i + e) * s.out_channels + c, numbers = images * s.out;
            T *one = product + c * s.pitch, *other = product_t + c * s.pitch;
            const T* of = z + (row * s.batch + b) * s.out;
            T* to = z_t + (row * s.batch + b) * s.out;
            for (int64_t k = 0; k < g.Row(); ++k) one[k] += other[k];
            std::copy_n(one, numbers, to);
            AddTangentSums(of, to, numbers, sum[row], sum[s.Rows() + row]);
          }
        }
      }
    }
  });
  CombineTangentSums(parts.data(), s.Chunks(), s.Rows(), sums, products);
}

// The gradients of x, scale and shift, and their tangents: dscale and dshift are needed for
// the norm before, dx (null: not needed) for the stage before.
template <typename T>
struct StageGradientsPair {
  T *x, *x_t;
  bool add;  // to x_t
  T *scale, *shift, *scale_t, *shift_t;  // [inputs, C], or null
};

template <typename T, typename G>
struct TangentWorkspace {
  T *du, *du_t;  // planes of every channel of an input
  T *plane, *plane_t;
  T *dz, *dz_t, *dy, *dy_t, *more;  // [C', pitch] twice, [C, pitch] three times
  T *back, *back_t;                 // an input's images without gaps
  int64_t count, zeros;

  static TangentWorkspace In(const Tiles<T, G>& s, T* at) {
    const int64_t planes = s.channels * s.g.Input();
    T* const start = at;
    const auto take = [&](int64_t numbers) {
      T* const here = at;
      at += numbers;
      return here;
    };
    TangentWorkspace w;
    w.du = take(planes), w.du_t = take(planes);
    w.plane = take(s.g.Output()), w.plane_t = take(s.g.Output());
    w.dz = take(s.out_channels * s.pitch), w.dz_t = take(s.out_channels * s.pitch);
    w.dy = take(s.channels * s.pitch), w.dy_t = take(s.channels * s.pitch);
    w.more = take(s.channels * s.pitch);
    w.back = take(s.g.images * s.in), w.back_t = take(s.g.images * s.in);
    w.count = at - start;
    w.zeros = s.Zeros(w.dz - start, w.count);
    return w;
  }
  static TangentWorkspace Of(const Tiles<T, G>& s, int64_t job) {
    const TangentWorkspace sizes = In(s, static_cast<T*>(nullptr));
    return In(s, Scratch<T>(sizes.count, sizes.zeros, job));
  }
};

// dz and dzT of `count` numbers of a row, from number `at` of all on.
template <typename T>
void TangentThroughNorm(const Incoming<T>& into, const Incoming<T>& into_t, int64_t row,
                        int64_t at, int64_t count, T* dz, T* dz_t) {
  const T *z = into.z + at, *gradient = into.gradient + at;
  const T *z_t = into_t.z + at, *gradient_t = into_t.gradient + at;
  const T a = into.a[row], alpha = into.alpha[row], beta = into.beta[row];
  const T a_t = into_t.a[row], alpha_t = into_t.alpha[row], beta_t = into_t.beta[row];
  for (int64_t k = 0; k < count; ++k) {
    dz[k] = a * gradient[k] + alpha + beta * z[k];
    dz_t[k] =
        a_t * gradient[k] + a * gradient_t[k] + alpha_t + beta_t * z[k] + beta * z_t[k];
  }
}

// du and duT of one input of some images, through all its edges.
template <typename T, typename G>
void TangentOfInput(const Tiles<T, G>& s, int64_t i, int64_t b, int64_t images, const T* values,
                    const T* values_t, const StagePair<T>& p, const Incoming<T>& into,
                    const Incoming<T>& into_t, const TangentWorkspace<T, G>& w) {
  const G& g = s.g;
  const int64_t planes = g.Input();
  for (int64_t e = i; e < i + s.EdgesOfInput(); ++e) {
    for (int64_t c = 0; c < s.out_channels; ++c) {
      const int64_t row = e * s.out_channels + c, at = (row * s.batch + b) * s.out;
      TangentThroughNorm(into, into_t, row, at, images * s.out, w.dz + c * s.pitch,
                         w.dz_t + c * s.pitch);
    }
    const int64_t mixes = e * s.channels * s.out_channels;
    const auto multiply = [&](const T* mix, const T* dz, T* dy) {
      Multiply(mix + mixes, s.out_channels, 1, s.channels, s.out_channels, dz, s.padded,
               s.pitch, dy, s.pitch);
    };
    multiply(p.kernels.mix, w.dz, w.dy);
    multiply(p.kernels.mix, w.dz_t, w.dy_t);
    multiply(p.kernels_t.mix, w.dz, w.more);
    for (int64_t k = 0; k < s.channels * s.pitch; ++k) w.dy_t[k] += w.more[k];
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t taps = (e * s.channels + c) * g.Taps();
      RowToPlane(g, w.dy + c * s.pitch, images, w.plane);
      RowToPlane(g, w.dy_t + c * s.pitch, images, w.plane_t);
      Spread(g, w.plane, values + taps, w.du + c * planes);
      Spread(g, w.plane_t, values + taps, w.du_t + c * planes);
      Spread(g, w.plane, values_t + taps, w.du_t + c * planes);
    }
  }
}

template <typename T, typename G>
void LeaveTangent(const Tiles<T, G>& s, const StagePair<T>& p, int64_t i, int64_t c, int64_t b,
                  int64_t images, const TangentWorkspace<T, G>& w,
                  const StageGradientsPair<T>& to, T* totals) {
  const int64_t row = i * s.channels + c, numbers = images * s.in;
  const int64_t at = (row * s.batch + b) * s.in, planes = s.g.Input();
  const T *x = p.from.x + at, *x_t = p.from_t.x + at;
  T *back = w.back, *back_t = w.back_t;
  UnpackImages(s.g, w.du + c * planes, images, back);
  UnpackImages(s.g, w.du_t + c * planes, images, back_t);
  const T scale = p.from.scale[row], shift = p.from.shift[row];
  const T scale_t = p.from_t.scale[row];
  for (int64_t k = 0; k < numbers; ++k) {
    const bool on = scale * x[k] + shift > 0;
    back[k] = on ? back[k] : T(0);
    back_t[k] = on ? back_t[k] : T(0);
  }
  T* dx_t = to.x_t + at;
  for (int64_t k = 0; k < numbers; ++k) {
    const T tangent = scale_t * back[k] + scale * back_t[k];
    dx_t[k] = to.add ? dx_t[k] + tangent : tangent;
  }
  if (to.x) {
    for (int64_t k = 0; k < numbers; ++k) to.x[at + k] = scale * back[k];
  }
  if (!to.scale) return;
  T* sum = totals + 4 * row;
  sum[0] += Sum<T>(
      numbers, [=](int64_t k, auto as) { return Read(back + k, as) * Read(x + k, as); });
  sum[1] += Sum<T>(numbers, [=](int64_t k, auto as) { return Read(back + k, as); });
  sum[2] += Sum<T>(numbers, [=](int64_t k, auto as) {
    return Read(back_t + k, as) * Read(x + k, as) + Read(back + k, as) * Read(x_t + k, as);
  });
  sum[3] += Sum<T>(numbers, [=](int64_t k, auto as) { return Read(back_t + k, as); });
}

template <typename T, typename G>
void StageBackwardTangent(ffi::ThreadPool& pool, const Tiles<T, G>& s, const StagePair<T>& p,
                          const Incoming<T>& into, const Incoming<T>& into_t,
                          const StageGradientsPair<T>& to) {
  auto taps = s.Values(p.kernels.taps);
  auto taps_t = s.Values(p.kernels_t.taps);
  const T *values = taps.data(), *values_t = taps_t.data();
  const int64_t each = 4 * s.Inputs();
  std::vector<T> parts(s.Chunks() * each, T(0));
  T* part = parts.data();
  const int64_t job = NextJob();
  ParallelFor(pool, s.batch, s.Chunk(), [=, &s, &p](int64_t first, int64_t last) {
    const auto w = TangentWorkspace<T, G>::Of(s, job);
    const int64_t planes = s.channels * s.g.Input(), group = s.g.images;
    for (int64_t b = first; b < last; b += group) {
      const int64_t images = std::min(group, last - b);
      if (images < group) std::fill(w.du, w.du + w.count, T(0));
      for (int64_t i = 0; i < s.inputs; ++i) {
        std::fill(w.du, w.du + 2 * planes, T(0));
        TangentOfInput(s, i, b, images, values, values_t, p, into, into_t, w);
        for (int64_t c = 0; c < s.channels; ++c) {
          LeaveTangent(s, p, i, c, b, images, w, to, part + first / s.Chunk() * each);
        }
      }
    }
  });
  if (!to.scale) return;
  for (int64_t row = 0; row < s.Inputs(); ++row) {
    T sum[4] = {};
    for (int64_t k = 0; k < s.Chunks(); ++k) {
      for (int i = 0; i < 4; ++i) sum[i] += part[k * each + 4 * row + i];
    }
    to.scale[row] = sum[0], to.shift[row] = sum[1];
    to.scale_t[row] = sum[2], to.shift_t[row] = sum[3];
  }
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_STAGE_TANGENT_H_
