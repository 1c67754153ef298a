// How a dense stage and its gradient change with their operands: see stage_tangent.h, whose
// place this takes where the convolution is dense.

#ifndef DARTS_JAX_KERNELS_DENSE_TANGENT_H_
#define DARTS_JAX_KERNELS_DENSE_TANGENT_H_

#include "dense_stage.h"
#include "stage_tangent.h"

namespace planes {

// zT [n, C', B, H, W], and the sums of zT and of z * zT over batch and image, [n, C'].
template <typename T, typename G>
void DenseStageTangent(ffi::ThreadPool& pool, const DenseTiles<T, G>& s, const StagePair<T>& p,
                       const T* z, T* z_t, double* sums, double* products) {
  auto blocks = InBlocks(s.Kernels(p.kernels.taps), false);
  auto blocks_t = InBlocks(s.Kernels(p.kernels_t.taps), false);
  const T *values = blocks.data(), *values_t = blocks_t.data();
  std::vector<double> parts(2 * s.Chunks() * s.Rows(), 0.0);
  double* part = parts.data();
  const int64_t job = NextJob();
  ParallelFor(pool, s.batch, s.Chunk(), [=, &s, &p](int64_t first, int64_t last) {
    const int64_t group = s.g.images, zeros = 2 * s.Planes();
    const int64_t count = zeros + s.Rows() * s.pitch + group * s.in;
    T* u = Scratch<T>(count, zeros, job);
    T *u_t = u + s.Planes(), *product = u_t + s.Planes(), *row = product + s.Rows() * s.pitch;
    double* sum = part + first / s.Chunk() * 2 * s.Rows();
    for (int64_t b = first; b < last; b += group) {
      const int64_t images = std::min(group, last - b);
      if (images < group) std::fill(u, u + count, T(0));
      for (int64_t c = 0; c < s.channels; ++c) {
        PackRectified(s, p.from, c, b, images, u + c * s.g.Input());
        PackTangent(s, p, c, b, images, row, u_t + c * s.g.Input());
      }
      DenseProduct(s.walk, s.rows, u_t, values, s.Rows(), product, s.pitch);
      DenseProduct(s.walk, s.rows, u, values_t, s.Rows(), product, s.pitch, true);
      for (int64_t r = 0; r < s.Rows(); ++r) {
        const int64_t at = (r * s.batch + b) * s.out, numbers = images * s.out;
        TakeOutputs(s.walk, s.g, product + r * s.pitch, images, z_t + at);
        AddTangentSums(z + at, z_t + at, numbers, sum[r], sum[s.Rows() + r]);
      }
    }
  });
  CombineTangentSums(parts.data(), s.Chunks(), s.Rows(), sums, products);
}

// Adds what the gradient's tangent is to dx_t, or writes it there.
template <typename T, typename G>
void DenseBackwardTangent(ffi::ThreadPool& pool, const DenseTiles<T, G>& s,
                          const StagePair<T>& p, const Incoming<T>& into,
                          const Incoming<T>& into_t, const StageGradientsPair<T>& to) {
  auto blocks = InBlocks(s.Kernels(p.kernels.taps), true);
  auto blocks_t = InBlocks(s.Kernels(p.kernels_t.taps), true);
  const T *values = blocks.data(), *values_t = blocks_t.data();
  const int64_t job = NextJob();
  ParallelFor(pool, s.batch, s.Chunk(), [=, &s, &p](int64_t first, int64_t last) {
    const int64_t group = s.g.images, zeros = 2 * s.PlanesBack();
    const int64_t count = zeros + (s.channels + 2) * s.pitch + group * s.in;
    T* dz = Scratch<T>(count, zeros, job);
    T *dz_t = dz + s.PlanesBack(), *row = dz_t + s.PlanesBack(), *row_t = row + s.pitch;
    T *du_t = row_t + s.pitch, *image = du_t + s.channels * s.pitch;
    for (int64_t b = first; b < last; b += group) {
      const int64_t images = std::min(group, last - b);
      if (images < group) std::fill(dz, dz + count, T(0));
      for (int64_t r = 0; r < s.Rows(); ++r) {
        const int64_t at = (r * s.batch + b) * s.out;
        TangentThroughNorm(into, into_t, r, at, images * s.out, row, row_t);
        RowToPlane(s.g, row, images, dz + r * s.g.Input());
        RowToPlane(s.g, row_t, images, dz_t + r * s.g.Input());
      }
      DenseProduct(s.walk, s.rows_back, dz_t, values, s.channels, du_t, s.pitch);
      DenseProduct(s.walk, s.rows_back, dz, values_t, s.channels, du_t, s.pitch, true);
      // Scale and shift are 1 and 0 where a chain begins.
      for (int64_t c = 0; c < s.channels; ++c) {
        const int64_t at = (c * s.batch + b) * s.in;
        TakeOutputs(s.walk, s.g, du_t + c * s.pitch, images, image);
        const T* x = p.from.x + at;
        T* dx_t = to.x_t + at;
        for (int64_t k = 0; k < images * s.in; ++k) {
          const T tangent = x[k] > 0 ? image[k] : T(0);
          dx_t[k] = to.add ? dx_t[k] + tangent : tangent;
        }
      }
    }
  });
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_DENSE_TANGENT_H_
