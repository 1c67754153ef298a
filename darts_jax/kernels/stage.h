// One stage of a mixed operation for CPUs: affine map, ReLU, depthwise convolution,
// pointwise convolution and the batch's moments, in one pass over the images. What lies
// between the stage's input and its output is computed again in the gradient
// (stage_gradient.h) instead of being stored.
//
//   u[i] = relu(scale[i, c] * x[i] + shift[i, c])        i: the one input, or an edge's own
//   y[e] = depthwise(u[i], taps[e]);  z[e, c'] = sum over c of mix[e, c, c'] * y[e, c]
//
// A task takes an image, or a group of small ones, through all of it, so that everything but
// x and z stays in the second-level cache; x, z and what comes back lie in the order of lanes
// for a whole call where all its stages work in it (shuffle.h). Tasks sum kernel gradients and moments apart, and
// those sums are added in the tasks' order: the number of threads changes no bit.

#ifndef DARTS_JAX_KERNELS_STAGE_H_
#define DARTS_JAX_KERNELS_STAGE_H_

#include "lanes.h"
#include "moments.h"
#include "parallel.h"
#include "planes.h"
#include "products.h"

namespace planes {

constexpr int64_t kTasks = 32;      // at most; a fixed number, whatever the threads
constexpr int64_t kLeast = 4;       // tasks that a batch of small images is still spread over
constexpr int64_t kOutputs = 1024;  // of a channel that are worth a loop of their own

struct Stage {
  int64_t inputs, edges, channels, out_channels, batch;
  int64_t height, width, out_height, out_width;
  int64_t size, stride, dilation;  // of the kernels
  int64_t in, out;                 // numbers of an image, of an output

  // x [inputs, channels, batch, height, width] and size x size taps.
  Stage(int64_t inputs, int64_t edges, int64_t channels, int64_t out_channels, int64_t batch,
        int64_t height, int64_t width, int64_t size, int64_t stride, int64_t dilation)
      : inputs(inputs), edges(edges), channels(channels), out_channels(out_channels),
        batch(batch), height(height), width(width),
        out_height((height + stride - 1) / stride), out_width((width + stride - 1) / stride),
        size(size), stride(stride), dilation(dilation), in(height * width),
        out(out_height * out_width) {}
  int64_t EdgesOfInput() const { return inputs == 1 ? edges : 1; }
  int64_t Rows() const { return edges * out_channels; }
  int64_t Inputs() const { return inputs * channels; }
  int64_t Mixes() const { return edges * channels * out_channels; }
  // The middle of the kernels that small images see: farther taps read padding only.
  int64_t Seen() const {
    int64_t seen = size;
    while (seen > 1 && dilation * (seen - 1) / 2 >= std::max(height, width)) seen -= 2;
    return seen;
  }
};

// A stage with how a group of its images lies in scratch memory: G is Geometry or Lanes<T>.
template <typename T, typename G>
struct Tiles : Stage {
  G g;
  int64_t padded, pitch;  // of a row of a group's outputs: to whole blocks, and to the next

  Tiles(const Stage& s, G g) : Stage(s), g(std::move(g)) {
    const int64_t block = 2 * Vector<T>::kLanes;
    padded = (this->g.Row() + block - 1) / block * block;
    pitch = Pitch<T>(padded);
  }
  int64_t Taps() const { return edges * g.Taps() * channels; }
  // Images a task: whole groups of them.
  int64_t Chunk() const {
    const int64_t least = (batch + kTasks - 1) / kTasks;
    return (least + g.images - 1) / g.images * g.images;
  }
  int64_t Chunks() const { return (batch + Chunk() - 1) / Chunk(); }
  // How many of a task's `count` numbers must be zeros before its first group: the planes,
  // which come first, and the ends of rows where they are no whole blocks.
  int64_t Zeros(int64_t planes, int64_t count) const {
    return padded == g.Row() ? planes : count;
  }
  // The taps that are seen, [n, C, taps].
  Recycled<T> Values(const T* taps) const {
    return Transposed(taps, edges, size, g.size, channels);
  }
};

// Whether a stage can work in the order of lanes, and is faster there.
template <typename T>
bool FitsLanes(const Stage& s) {
  return Lanes<T>::Fit(s.batch, s.height, s.width, s.out, s.Seen());
}

// Calls f with the tiles of a stage; all stages of a call are in the order of lanes, or none.
template <typename T, typename F>
void WithTiles(const Stage& s, bool lanes, F f) {
  const int64_t seen = s.Seen();
  if (lanes) {
    f(Tiles<T, Lanes<T>>(s, Lanes<T>(s.height, s.width, seen, s.stride, s.dilation)));
    return;
  }
  const int64_t images =
      std::max<int64_t>(1, std::min(kOutputs / s.out, (s.batch + kLeast - 1) / kLeast));
  f(Tiles<T, Geometry>(s, Geometry(s.height, s.width, seen, s.stride, s.dilation, Slack<T>(),
                                   images)));
}

// What a stage reads: x, and for each of its channels a scale and a shift.
template <typename T>
struct StageInput {
  const T *x, *scale, *shift;
};

template <typename T>
struct StageKernels {
  const T *taps;  // [n, K, K, C]
  const T *mix;   // [n, C, C']
};

// u of some images, from image b on, of one channel.
template <typename T, typename G>
void PackRectified(const Tiles<T, G>& s, const StageInput<T>& from, int64_t row, int64_t b,
                   int64_t images, T* planes) {
  const T scale = from.scale[row], shift = from.shift[row];
  PackImages(s.g, from.x + (row * s.batch + b) * s.in, images, planes,
             [=](T value) {
               value = scale * value + shift;
               return T(0) > value ? T(0) : value;  // in this order a NaN stays one
             });
}

// z of the images [first, last), and what its moments are made of, a Moment a row.
template <typename T, typename G>
void ForwardOfImages(const Tiles<T, G>& s, const StageInput<T>& from, const T* values,
                     const T* mix, int64_t first, int64_t last, int64_t job, T* z,
                     Moment* moment) {
  const G& g = s.g;
  const int64_t edges = s.EdgesOfInput(), group = g.images;
  const int64_t count = g.Input() + edges * g.Output() +
                        (edges * s.channels + s.out_channels) * s.pitch;
  T* planes = Scratch<T>(count, s.Zeros(g.Input() + edges * g.Output(), count), job);
  T* results = planes + g.Input();
  T* y = results + edges * g.Output();  // [edges, C, pitch]
  T* product = y + edges * s.channels * s.pitch;
  for (int64_t b = first; b < last; b += group) {
    const int64_t images = std::min(group, last - b);
    if (images < group) std::fill(planes, planes + count, T(0));
    for (int64_t i = 0; i < s.inputs; ++i) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const int64_t row = i * s.channels + c;
        PackRectified(s, from, row, b, images, planes);
        Depthwise(g, planes, values + row * g.Taps(), s.channels * g.Taps(), edges, images,
                  y + c * s.pitch, s.channels * s.pitch, results);
      }
      for (int64_t e = 0; e < edges; ++e) {
        const int64_t edge = i + e;
        T* const to = z + (edge * s.out_channels * s.batch + b) * s.out;
        const int64_t apart = s.batch * s.out;
        const bool whole = s.padded == images * s.out;  // else a block goes beyond the row
        Multiply(mix + edge * s.channels * s.out_channels, 1, s.out_channels, s.out_channels,
                 s.channels, y + e * s.channels * s.pitch, s.padded, s.pitch,
                 whole ? to : product, whole ? apart : s.pitch);
        for (int64_t c = 0; c < s.out_channels; ++c) {
          if (!whole) std::copy_n(product + c * s.pitch, images * s.out, to + c * apart);
          moment[edge * s.out_channels + c].AddNumbers(to + c * apart, images * s.out);
        }
      }
    }
  }
}

// z [n, C', B, H', W'] and its moments [n, C'].
template <typename T, typename G>
Job ForwardJob(const Tiles<T, G>& tiles, const StageInput<T>& from,
               const StageKernels<T>& kernels, T* z, T* mean, T* variance) {
  struct State {
    Tiles<T, G> s;
    Recycled<T> values;
    Recycled<Moment> moments;
  };
  const auto state = std::make_shared<State>(
      State{tiles, tiles.Values(kernels.taps),
            Recycled<Moment>(tiles.Chunks() * tiles.Rows())});
  const int64_t job = NextJob();
  const auto run = [=](int64_t task) {
    const Tiles<T, G>& s = state->s;
    const int64_t first = task * s.Chunk(), last = std::min(s.batch, first + s.Chunk());
    ForwardOfImages(s, from, state->values.data(), kernels.mix, first, last, job, z,
                    state->moments.data() + task * s.Rows());
  };
  const auto finish = [=] {
    const Tiles<T, G>& s = state->s;
    CombineMoments(state->moments.data(), s.Chunks(), s.Rows(), mean, variance);
  };
  return {tiles.Chunks(), run, finish};
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_STAGE_H_
