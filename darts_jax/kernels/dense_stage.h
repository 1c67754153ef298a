// A dense stage of a mixed operation (ReLU, dense convolution of stride 1, batch norm) and its
// gradient: stage.h and stage_gradient.h with one product (dense.h) in the place of a depthwise
// and a pointwise convolution. Such a stage is the first of its chain: all edges read x.
//
//   u = relu(scale[c] * x + shift[c])
//   z[e, c'] = sum over c and taps t of k[e, t, c, c'] * (u[c] moved by t)

#ifndef DARTS_JAX_KERNELS_DENSE_STAGE_H_
#define DARTS_JAX_KERNELS_DENSE_STAGE_H_

#include "dense.h"
#include "stage_gradient.h"

namespace planes {

template <typename T, typename G>
struct DenseTiles : Tiles<T, G> {
  Walk<T> walk;
  std::vector<int64_t> rows, rows_back;  // of the product's matrix and of its gradient's
  int64_t pitch;                         // of rows of the walk

  explicit DenseTiles(const Tiles<T, G>& tiles)
      : Tiles<T, G>(tiles), walk(this->g), rows(walk.RowsOf(this->channels)),
        rows_back(walk.RowsOf(this->Rows())), pitch(Pitch<T>(walk.Numbers())) {}
  DenseKernels<T> Kernels(const T* values) const {
    return {values, this->edges, this->size, this->g.size, this->channels, this->out_channels};
  }
  int64_t Taps() const { return rows.size() * this->Rows(); }
  // Numbers of the planes of x or of dx, and of z or of dz.
  int64_t Planes() const { return this->channels * this->g.Input(); }
  int64_t PlanesBack() const { return this->Rows() * this->g.Input(); }
};

// z of the images [first, last), and what its moments are made of, a Moment a row.
template <typename T, typename G>
void DenseForwardOfImages(const DenseTiles<T, G>& s, const StageInput<T>& from, const T* blocks,
                          int64_t first, int64_t last, int64_t job, T* z, Moment* moment) {
  const int64_t group = s.g.images, apart = s.batch * s.out;
  T* u = Scratch<T>(s.Planes() + s.Rows() * s.pitch, s.Planes(), job);
  T* product = u + s.Planes();
  for (int64_t b = first; b < last; b += group) {
    const int64_t images = std::min(group, last - b);
    if (images < group) std::fill(u, product, T(0));
    for (int64_t c = 0; c < s.channels; ++c) {
      PackRectified(s, from, c, b, images, u + c * s.g.Input());
    }
    T* const to = z + b * s.out;
    const bool whole = s.walk.whole && images == group;
    DenseProduct(s.walk, s.rows, u, blocks, s.Rows(), whole ? to : product,
                 whole ? apart : s.pitch);
    for (int64_t row = 0; row < s.Rows(); ++row) {
      T* const found = to + row * apart;
      if (!whole) TakeOutputs(s.walk, s.g, product + row * s.pitch, images, found);
      moment[row].AddNumbers(found, images * s.out);
    }
  }
}

// z [n, C', B, H, W] and its moments [n, C'].
template <typename T, typename G>
Job DenseForwardJob(const Tiles<T, G>& tiles, const StageInput<T>& from, const T* kernels, T* z,
                    T* mean, T* variance) {
  struct State {
    DenseTiles<T, G> s;
    Recycled<T> blocks;
    Recycled<Moment> moments;
  };
  const DenseTiles<T, G> dense(tiles);
  const auto state = std::make_shared<State>(
      State{dense, InBlocks(dense.Kernels(kernels), false),
            Recycled<Moment>(tiles.Chunks() * tiles.Rows())});
  const int64_t job = NextJob();
  const auto run = [=](int64_t task) {
    const DenseTiles<T, G>& s = state->s;
    const int64_t first = task * s.Chunk(), last = std::min(s.batch, first + s.Chunk());
    DenseForwardOfImages(s, from, state->blocks.data(), first, last, job, z,
                         state->moments.data() + task * s.Rows());
  };
  const auto finish = [=] {
    const DenseTiles<T, G>& s = state->s;
    CombineMoments(state->moments.data(), s.Chunks(), s.Rows(), mean, variance);
  };
  return {tiles.Chunks(), run, finish};
}

// dz of some images in rows of outputs that are `pitch` numbers apart, and in planes.
template <typename T, typename G>
void PackThroughNorm(const DenseTiles<T, G>& s, const Incoming<T>& into, int64_t b,
                     int64_t images, T* rows, T* planes) {
  for (int64_t row = 0; row < s.Rows(); ++row) {
    const int64_t at = (row * s.batch + b) * s.out;
    ThroughNormOf(into, row, at, images * s.out, rows + row * s.pitch);
    RowToPlane(s.g, rows + row * s.pitch, images, planes + row * s.g.Input());
  }
}

template <typename T, typename G>
void DenseBackwardOfImages(const DenseTiles<T, G>& s, const StageInput<T>& from, const T* blocks,
                           const Incoming<T>& into, const StageGradients<T>& to, int64_t first,
                           int64_t last, int64_t job, T* total) {
  const int64_t group = s.g.images, zeros = s.Planes() + s.PlanesBack();
  const int64_t count = zeros + (s.Rows() + s.channels) * s.pitch + group * s.in;
  T* u = Scratch<T>(count, zeros, job);
  T* dz = u + s.Planes();
  T* rows = dz + s.PlanesBack();
  T* du = rows + s.Rows() * s.pitch;
  T* image = du + s.channels * s.pitch;
  for (int64_t b = first; b < last; b += group) {
    const int64_t images = std::min(group, last - b);
    if (images < group) std::fill(u, u + count, T(0));
    PackThroughNorm(s, into, b, images, rows, dz);
    if (total) {
      for (int64_t c = 0; c < s.channels; ++c) {
        PackRectified(s, from, c, b, images, u + c * s.g.Input());
      }
      const bool whole = s.walk.whole;
      AddDenseGradient(s.walk, s.rows, u, whole ? rows : dz + s.walk.from[0], s.Rows(),
                       whole ? s.pitch : s.g.Input(), total);
    }
    DenseProduct(s.walk, s.rows_back, dz, blocks, s.channels, du, s.pitch);
    for (int64_t c = 0; c < s.channels; ++c) {
      const T* back = du + c * s.pitch;
      if (!s.walk.whole) TakeOutputs(s.walk, s.g, back, images, image), back = image;
      LeaveInput(s, from, c, b, images, back, to);
    }
  }
}

// The gradients of x and of the kernels; those of scale and shift are nobody's.
template <typename T, typename G>
Job DenseBackwardJob(const Tiles<T, G>& tiles, const StageInput<T>& from, const T* kernels,
                     const Incoming<T>& into, const StageGradients<T>& to) {
  struct State {
    DenseTiles<T, G> s;
    Recycled<T> blocks, parts;
  };
  const DenseTiles<T, G> dense(tiles);
  const int64_t each = to.taps ? dense.Taps() : 0, job = NextJob();
  const auto state = std::make_shared<State>(
      State{dense, InBlocks(dense.Kernels(kernels), true), Recycled<T>(tiles.Chunks() * each)});
  const auto run = [=](int64_t task) {
    const DenseTiles<T, G>& s = state->s;
    const int64_t first = task * s.Chunk(), last = std::min(s.batch, first + s.Chunk());
    DenseBackwardOfImages(s, from, state->blocks.data(), into, to, first, last, job,
                          each ? state->parts.data() + task * each : nullptr);
  };
  const auto finish = [=] {
    if (!each) return;
    const DenseTiles<T, G>& s = state->s;
    WriteDenseGradient(s.Kernels(nullptr), state->parts.data(), s.Chunks(), to.taps);
  };
  return {tiles.Chunks(), run, finish};
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_DENSE_STAGE_H_
