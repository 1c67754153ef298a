// One stage of a mixed operation for CPUs: affine map, ReLU, depthwise convolution,
// pointwise convolution and the batch's moments, in one pass over the images; and its
// gradient, in another. What lies between the stage's input and its output is computed
// again in the gradient instead of being stored.
//
//   u[i] = relu(scale[i, c] * x[i] + shift[i, c])        i: the one input, or an edge's own
//   y[e] = depthwise(u[i], taps[e]);  z[e, c'] = sum over c of mix[e, c, c'] * y[e, c]
//
// A task takes an image, or as many small ones as make about a thousand outputs, through all
// of it, so that everything but x and z stays in the second-level cache. Tasks sum kernel
// gradients and moments apart, and those sums are added in the tasks' order: the number of
// threads changes no bit.

#ifndef DARTS_JAX_KERNELS_STAGE_H_
#define DARTS_JAX_KERNELS_STAGE_H_

#include "moments.h"
#include "products.h"

namespace planes {

constexpr int64_t kTasks = 32;      // at most; a fixed number, whatever the threads
constexpr int64_t kLeast = 4;       // tasks that a batch of small images is still spread over
constexpr int64_t kOutputs = 1024;  // of a channel that are worth a loop of their own

struct Stage {
  int64_t inputs, edges, channels, out_channels, batch;
  int64_t size;             // of the kernels, of which small images see the middle only
  Geometry g;               // of the images that are computed together
  int64_t in, out;        // numbers of an image, of an output
  int64_t padded, pitch;  // of a row of a group's outputs: to whole blocks, and to the next

  // x [inputs, channels, batch, height, width] and size x size taps.
  template <typename T>
  static Stage Of(int64_t inputs, int64_t edges, int64_t channels, int64_t out_channels,
                  int64_t batch, int64_t height, int64_t width, int64_t size, int64_t stride,
                  int64_t dilation) {
    const int64_t out = ((height + stride - 1) / stride) * ((width + stride - 1) / stride);
    const int64_t images =
        std::max<int64_t>(1, std::min(kOutputs / out, (batch + kLeast - 1) / kLeast));
    const int64_t block = 2 * Vector<T>::kLanes;
    const int64_t padded = (images * out + block - 1) / block * block;
    int64_t seen = size;  // the farthest taps of a small image read padding only
    while (seen > 1 && dilation * (seen - 1) / 2 >= std::max(height, width)) seen -= 2;
    return {inputs, edges, channels, out_channels, batch, size,
            Geometry(height, width, seen, stride, dilation, Slack<T>(), images),
            height * width, out, padded, Pitch<T>(padded)};
  }
  // Images a task: whole groups of them.
  int64_t Chunk() const {
    const int64_t least = (batch + kTasks - 1) / kTasks;
    return (least + g.images - 1) / g.images * g.images;
  }
  int64_t Chunks() const { return (batch + Chunk() - 1) / Chunk(); }
  int64_t EdgesOfInput() const { return inputs == 1 ? edges : 1; }
  int64_t Rows() const { return edges * out_channels; }
  int64_t Inputs() const { return inputs * channels; }
  int64_t Taps() const { return edges * g.Taps() * channels; }
  int64_t Mixes() const { return edges * channels * out_channels; }
  // The taps that are seen, [n, C, taps].
  template <typename T>
  std::vector<T> Seen(const T* taps) const {
    return Transposed(taps, edges, size, g.size, channels);
  }
};

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

// u of the images of one channel, into their planes.
template <typename T>
void PackRectified(const Stage& s, const T* x, int64_t images, T scale, T shift, T* planes) {
  const auto u = [=](T value) {
    value = scale * value + shift;
    return value > 0 ? value : T(0);
  };
  for (int64_t i = 0; i < images; ++i) Pack(s.g, x + i * s.in, planes, i, u);
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

// z [n, C', B, H', W'] and its moments [n, C'].
template <typename T>
void StageForward(ffi::ThreadPool& pool, const Stage& s, const StageInput<T>& from,
                  const StageKernels<T>& kernels, T* z, T* mean, T* variance) {
  std::vector<Moment> moments(s.Chunks() * s.Rows());
  Moment* sums = moments.data();
  const std::vector<T> transposed = s.Seen(kernels.taps);
  const T *values = transposed.data(), *mix = kernels.mix;
  const int64_t call = NextCall();
  ParallelFor(pool, s.batch, s.Chunk(), [=, &s](int64_t first, int64_t last) {
    const Geometry& g = s.g;
    const int64_t edges = s.EdgesOfInput(), group = g.images;
    const int64_t count = (g.Planes() + edges) * g.plane +
                          (edges * s.channels + s.out_channels) * s.pitch;
    T* planes = Scratch<T>(count, call);
    T* results = planes + g.Planes() * g.plane;
    T* y = results + edges * g.plane;  // [edges, C, pitch]
    T* product = y + edges * s.channels * s.pitch;
    Moment* moment = sums + first / s.Chunk() * s.Rows();
    for (int64_t b = first; b < last; b += group) {
      const int64_t images = std::min(group, last - b);
      if (images < group) std::fill(planes, planes + count, T(0));
      for (int64_t i = 0; i < s.inputs; ++i) {
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t row = i * s.channels + c;
          PackRectified(s, from.x + (row * s.batch + b) * s.in, images, from.scale[row],
                        from.shift[row], planes);
          CorrelateAll(g, planes, values + row * g.Taps(), s.channels * g.Taps(), edges,
                       results);
          for (int64_t e = 0; e < edges; ++e) {
            ToRow(s, results + e * g.plane, images, y + (e * s.channels + c) * s.pitch);
          }
        }
        for (int64_t e = 0; e < edges; ++e) {
          const int64_t edge = i + e;
          Multiply(mix + edge * s.channels * s.out_channels, 1, s.out_channels,
                   s.out_channels, s.channels, y + e * s.channels * s.pitch, s.padded,
                   s.pitch, product);
          for (int64_t c = 0; c < s.out_channels; ++c) {
            const int64_t row = edge * s.out_channels + c;
            moment[row].AddNumbers(product + c * s.pitch, images * s.out);
            std::memcpy(z + (row * s.batch + b) * s.out, product + c * s.pitch,
                        images * s.out * sizeof(T));
          }
        }
      }
    }
  });
  for (int64_t row = 0; row < s.Rows(); ++row) {
    Moment total;
    for (int64_t k = 0; k < s.Chunks(); ++k) {
      const Moment& part = moments[k * s.Rows() + row];
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

// Where the gradients of a stage go. Without `taps` those of the kernels are not computed.
template <typename T>
struct StageGradients {
  T* x;
  bool add;           // to x, where another stage wrote already
  T *scale, *shift;   // [inputs, C]
  T *taps, *mix;
};

// What a task adds up: gradients of taps [n, C, K * K], mix, scale and shift.
template <typename T>
struct Totals {
  T *taps, *mix, *scale, *shift;
  static int64_t Count(const Stage& s) { return s.Taps() + s.Mixes() + 2 * s.Inputs(); }
  static Totals In(const Stage& s, T* at) {
    T* mix = at + s.Taps();
    return {at, mix, mix + s.Mixes(), mix + s.Mixes() + s.Inputs()};
  }
};

// The arrays of one task.
template <typename T>
struct Workspace {
  T *u, *du;           // planes of every channel of an input
  T *results;          // a plane for every edge of an input
  T *y, *dz, *dy;      // [edges of an input, C, pitch], [C', pitch], [C, pitch]
  T *back;             // an input's images without gaps
  int64_t count;

  static Workspace In(const Stage& s, T* at) {
    const int64_t planes = s.channels * s.g.Planes() * s.g.plane;
    Workspace w;
    w.u = at;
    w.du = w.u + planes;
    w.results = w.du + planes;
    w.y = w.results + s.EdgesOfInput() * s.g.plane;
    w.dz = w.y + s.EdgesOfInput() * s.channels * s.pitch;
    w.dy = w.dz + s.out_channels * s.pitch;
    w.back = w.dy + s.channels * s.pitch;
    w.count = w.back + s.g.images * s.in - at;
    return w;
  }
  static int64_t Count(const Stage& s) { return In(s, static_cast<T*>(nullptr)).count; }
};

// y of all edges of one input, which the gradient of mix needs again.
template <typename T>
void DepthwiseAgain(const Stage& s, int64_t i, int64_t images, const T* values,
                    const Workspace<T>& w) {
  const Geometry& g = s.g;
  for (int64_t c = 0; c < s.channels; ++c) {
    const int64_t row = i * s.channels + c;
    CorrelateAll(g, w.u + c * g.Planes() * g.plane, values + row * g.Taps(),
                 s.channels * g.Taps(), s.EdgesOfInput(), w.results);
    for (int64_t e = 0; e < s.EdgesOfInput(); ++e) {
      ToRow(s, w.results + e * g.plane, images, w.y + (e * s.channels + c) * s.pitch);
    }
  }
}

// One input of some images: du through all its edges, and what they add to the totals.
template <typename T>
void BackwardOfInput(const Stage& s, int64_t i, int64_t b, int64_t images, const T* values,
                     const T* mix, bool kernels, const Incoming<T>& into,
                     const Workspace<T>& w, const Totals<T>& totals) {
  const Geometry& g = s.g;
  const int64_t planes = g.Planes() * g.plane;
  if (kernels) DepthwiseAgain(s, i, images, values, w);
  if (kernels) std::fill(w.results, w.results + g.plane, T(0));
  for (int64_t e = i; e < i + s.EdgesOfInput(); ++e) {
    for (int64_t c = 0; c < s.out_channels; ++c) {
      const int64_t row = e * s.out_channels + c;
      const T *z = into.z + (row * s.batch + b) * s.out,
              *gradient = into.gradient + (row * s.batch + b) * s.out;
      const T a = into.a[row], alpha = into.alpha[row], beta = into.beta[row];
      T* to = w.dz + c * s.pitch;
      for (int64_t p = 0; p < images * s.out; ++p) {
        to[p] = a * gradient[p] + alpha + beta * z[p];
      }
    }
    if (kernels) {
      AddOuter(w.y + (e - i) * s.channels * s.pitch, s.channels, w.dz, s.out_channels,
               s.padded, s.pitch, totals.mix + e * s.channels * s.out_channels);
    }
    Multiply(mix + e * s.channels * s.out_channels, s.out_channels, 1, s.channels,
             s.out_channels, w.dz, s.padded, s.pitch, w.dy);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t row = e * s.channels + c;
      FromRow(s, w.dy + c * s.pitch, images, w.results);
      if (kernels) AddDots(g, w.results, w.u + c * planes, totals.taps + row * g.Taps());
      Spread(g, w.results, values + row * g.Taps(), w.du + c * planes);
    }
  }
}

// dx of one channel of some images out of du, and the sums for scale and shift.
template <typename T>
void LeaveInput(const Stage& s, const StageInput<T>& from, int64_t i, int64_t c, int64_t b,
                int64_t images, const Workspace<T>& w, const StageGradients<T>& to,
                const Totals<T>& totals) {
  const int64_t row = i * s.channels + c, numbers = images * s.in;
  const T* x = from.x + (row * s.batch + b) * s.in;
  T *dx = to.x + (row * s.batch + b) * s.in, *back = w.back;
  for (int64_t k = 0; k < images; ++k) {
    Unpack(s.g, w.du + c * s.g.Planes() * s.g.plane, back + k * s.in, k);
  }
  const T scale = from.scale[row], shift = from.shift[row];
  for (int64_t p = 0; p < numbers; ++p) {
    back[p] = scale * x[p] + shift > 0 ? back[p] : T(0);
  }
  if (to.add) {
    for (int64_t p = 0; p < numbers; ++p) dx[p] += scale * back[p];
  } else {
    for (int64_t p = 0; p < numbers; ++p) dx[p] = scale * back[p];
  }
  if (!to.scale) return;
  totals.shift[row] +=
      Sum<T>(numbers, [=](int64_t p, auto as) { return Read(back + p, as); });
  totals.scale[row] += Sum<T>(
      numbers, [=](int64_t p, auto as) { return Read(back + p, as) * Read(x + p, as); });
}

// Adds up what the tasks found, in their order.
template <typename T>
void Finish(const Stage& s, T* parts, const StageGradients<T>& to) {
  const int64_t each = Totals<T>::Count(s);
  for (int64_t k = 1; k < s.Chunks(); ++k) {
    for (int64_t i = 0; i < each; ++i) parts[i] += parts[k * each + i];
  }
  const Totals<T> totals = Totals<T>::In(s, parts);
  if (to.scale) {
    std::copy(totals.scale, totals.scale + s.Inputs(), to.scale);
    std::copy(totals.shift, totals.shift + s.Inputs(), to.shift);
  }
  if (!to.taps) return;
  const int64_t size = s.size, seen = s.g.size, cut = (size - seen) / 2;
  std::fill(to.taps, to.taps + s.edges * size * size * s.channels, T(0));
  for (int64_t e = 0; e < s.edges; ++e) {
    for (int64_t t = 0; t < s.g.Taps(); ++t) {
      const int64_t row = t / seen + cut, column = t % seen + cut;
      T* at = to.taps + ((e * size + row) * size + column) * s.channels;
      for (int64_t c = 0; c < s.channels; ++c) {
        at[c] = totals.taps[(e * s.channels + c) * s.g.Taps() + t];
      }
    }
  }
  std::copy(totals.mix, totals.mix + s.Mixes(), to.mix);
}

template <typename T>
void StageBackward(ffi::ThreadPool& pool, const Stage& s, const StageInput<T>& from,
                   const StageKernels<T>& kernels, const Incoming<T>& into,
                   const StageGradients<T>& to) {
  const int64_t each = Totals<T>::Count(s);
  std::vector<T> parts(s.Chunks() * each, T(0));
  T* part = parts.data();
  const std::vector<T> transposed = s.Seen(kernels.taps);
  const T *values = transposed.data(), *mix = kernels.mix;
  const int64_t call = NextCall();
  ParallelFor(pool, s.batch, s.Chunk(), [=, &s](int64_t first, int64_t last) {
    const int64_t planes = s.g.Planes() * s.g.plane, group = s.g.images;
    T* scratch = Scratch<T>(Workspace<T>::Count(s), call);
    const Workspace<T> w = Workspace<T>::In(s, scratch);
    const Totals<T> totals = Totals<T>::In(s, part + first / s.Chunk() * each);
    for (int64_t b = first; b < last; b += group) {
      const int64_t images = std::min(group, last - b);
      if (images < group) std::fill(scratch, scratch + w.count, T(0));
      for (int64_t i = 0; i < s.inputs; ++i) {
        for (int64_t c = 0; to.taps && c < s.channels; ++c) {
          const int64_t row = i * s.channels + c;
          PackRectified(s, from.x + (row * s.batch + b) * s.in, images, from.scale[row],
                        from.shift[row], w.u + c * planes);
        }
        std::fill(w.du, w.du + s.channels * planes, T(0));
        BackwardOfInput(s, i, b, images, values, mix, to.taps != nullptr, into, w, totals);
        for (int64_t c = 0; c < s.channels; ++c) {
          LeaveInput(s, from, i, c, b, images, w, to, totals);
        }
      }
    }
  });
  Finish(s, part, to);
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_STAGE_H_
