// The gradient of a stage (stage.h), in one pass over the images.

#ifndef DARTS_JAX_KERNELS_STAGE_GRADIENT_H_
#define DARTS_JAX_KERNELS_STAGE_GRADIENT_H_

#include "stage.h"

namespace planes {

// dz = a * gradient + alpha + beta * z: the gradient that reaches z through a batch norm.
template <typename T>
struct Incoming {
  const T *z, *gradient, *a, *alpha, *beta;
};

// dz of `count` numbers of a row, from number `at` of all on.
template <typename T>
void ThroughNormOf(const Incoming<T>& into, int64_t row, int64_t at, int64_t count, T* dz) {
  const T *z = into.z + at, *gradient = into.gradient + at;
  const T a = into.a[row], alpha = into.alpha[row], beta = into.beta[row];
  for (int64_t i = 0; i < count; ++i) dz[i] = a * gradient[i] + alpha + beta * z[i];
}

// Where the gradients of a stage go. Without `taps` those of the kernels are not computed.
template <typename T>
struct StageGradients {
  T* x;
  bool add;           // to x, where another stage wrote already
  T *scale, *shift;   // [inputs, C]
  T *taps, *mix;
};

// What a task adds up: gradients of taps [n, C, K * K], mix, scale and shift.
template <typename T, typename G>
struct Totals {
  T *taps, *mix, *scale, *shift;
  static int64_t Count(const Tiles<T, G>& s) { return s.Taps() + s.Mixes() + 2 * s.Inputs(); }
  static Totals In(const Tiles<T, G>& s, T* at) {
    T* mix = at + s.Taps();
    return {at, mix, mix + s.Mixes(), mix + s.Mixes() + s.Inputs()};
  }
};

// The arrays of one task.
template <typename T, typename G>
struct Workspace {
  T *u, *du;           // planes of every channel of an input
  T *results;          // a plane for every edge of an input
  T *y, *dz, *dy;      // [edges of an input, C, pitch], [C', pitch], [C, pitch]
  T *back;             // an input's images without gaps
  int64_t count, zeros;

  static Workspace In(const Tiles<T, G>& s, T* at) {
    const int64_t planes = s.channels * s.g.Input();
    Workspace w;
    w.u = at;
    w.du = w.u + planes;
    w.results = w.du + planes;
    w.y = w.results + s.EdgesOfInput() * s.g.Output();
    w.dz = w.y + s.EdgesOfInput() * s.channels * s.pitch;
    w.dy = w.dz + s.out_channels * s.pitch;
    w.back = w.dy + s.channels * s.pitch;
    w.count = w.back + s.g.images * s.in - at;
    w.zeros = s.Zeros(w.y - at, w.count);
    return w;
  }
  static Workspace Of(const Tiles<T, G>& s, int64_t job) {
    const Workspace sizes = In(s, static_cast<T*>(nullptr));
    return In(s, Scratch<T>(sizes.count, sizes.zeros, job));
  }
};

// y of all edges of one input, which the gradient of mix needs again.
template <typename T, typename G>
void DepthwiseAgain(const Tiles<T, G>& s, int64_t i, int64_t images, const T* values,
                    const Workspace<T, G>& w) {
  const G& g = s.g;
  for (int64_t c = 0; c < s.channels; ++c) {
    const int64_t row = i * s.channels + c;
    Depthwise(g, w.u + c * g.Input(), values + row * g.Taps(), s.channels * g.Taps(),
              s.EdgesOfInput(), images, w.y + c * s.pitch, s.channels * s.pitch, w.results);
  }
}

// One input of some images: du through all its edges, and what they add to the totals.
template <typename T, typename G>
void BackwardOfInput(const Tiles<T, G>& s, int64_t i, int64_t b, int64_t images, const T* values,
                     const T* mix, bool kernels, const Incoming<T>& into,
                     const Workspace<T, G>& w, const Totals<T, G>& totals) {
  const G& g = s.g;
  const int64_t planes = g.Input();
  if (kernels) DepthwiseAgain(s, i, images, values, w);
  if (kernels) std::fill(w.results, w.results + g.Output(), T(0));
  for (int64_t e = i; e < i + s.EdgesOfInput(); ++e) {
    for (int64_t c = 0; c < s.out_channels; ++c) {
      const int64_t row = e * s.out_channels + c, at = (row * s.batch + b) * s.out;
      ThroughNormOf(into, row, at, images * s.out, w.dz + c * s.pitch);
    }
    if (kernels) {
      AddOuter(w.y + (e - i) * s.channels * s.pitch, s.channels, w.dz, s.out_channels,
               s.padded, s.pitch, totals.mix + e * s.channels * s.out_channels);
    }
    Multiply(mix + e * s.channels * s.out_channels, s.out_channels, 1, s.channels,
             s.out_channels, w.dz, s.padded, s.pitch, w.dy, s.pitch);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t row = e * s.channels + c;
      RowToPlane(g, w.dy + c * s.pitch, images, w.results);
      if (kernels) AddDots(g, w.results, w.u + c * planes, totals.taps + row * g.Taps());
      Spread(g, w.results, values + row * g.Taps(), w.du + c * planes);
    }
  }
}

// dx of one channel of some images out of du, `back`; returns the sums for shift and scale.
template <typename T>
std::pair<T, T> LeaveInput(const Stage& s, const StageInput<T>& from, int64_t row, int64_t b,
                           int64_t images, const T* back, const StageGradients<T>& to) {
  const T* x = from.x + (row * s.batch + b) * s.in;
  T* dx = to.x + (row * s.batch + b) * s.in;
  const T scale = from.scale[row], shift = from.shift[row];
  const bool add = to.add;
  return TwoSums<T>(images * s.in, [=](int64_t p, auto as, auto& shifts, auto& scales) {
    const auto value = Read(x + p, as);
    const auto du = scale * value + shift > 0 ? Read(back + p, as) : as;
    Write(dx + p, (add ? Read(dx + p, as) : as) + scale * du);
    shifts += du, scales += du * value;
  });
}

// Adds up what the tasks found, in their order.
template <typename T, typename G>
void Finish(const Tiles<T, G>& s, T* parts, const StageGradients<T>& to) {
  const int64_t each = Totals<T, G>::Count(s);
  for (int64_t k = 1; k < s.Chunks(); ++k) {
    for (int64_t i = 0; i < each; ++i) parts[i] += parts[k * each + i];
  }
  const Totals<T, G> totals = Totals<T, G>::In(s, parts);
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

template <typename T, typename G>
void BackwardOfImages(const Tiles<T, G>& s, const StageInput<T>& from, const T* values,
                      const T* mix, const Incoming<T>& into, const StageGradients<T>& to,
                      int64_t first, int64_t last, int64_t job, const Totals<T, G>& totals) {
  const int64_t planes = s.g.Input(), group = s.g.images;
  const auto w = Workspace<T, G>::Of(s, job);
  for (int64_t b = first; b < last; b += group) {
    const int64_t images = std::min(group, last - b);
    if (images < group) std::fill(w.u, w.u + w.count, T(0));
    for (int64_t i = 0; i < s.inputs; ++i) {
      for (int64_t c = 0; to.taps && c < s.channels; ++c) {
        PackRectified(s, from, i * s.channels + c, b, images, w.u + c * planes);
      }
      std::fill(w.du, w.du + s.channels * planes, T(0));
      BackwardOfInput(s, i, b, images, values, mix, to.taps != nullptr, into, w, totals);
      for (int64_t c = 0; c < s.channels; ++c) {
        const int64_t row = i * s.channels + c;
        UnpackImages(s.g, w.du + c * planes, images, w.back);
        const auto [shifts, scales] = LeaveInput(s, from, row, b, images, w.back, to);
        if (to.scale) totals.shift[row] += shifts, totals.scale[row] += scales;
      }
    }
  }
}

template <typename T, typename G>
Job BackwardJob(const Tiles<T, G>& tiles, const StageInput<T>& from,
                const StageKernels<T>& kernels, const Incoming<T>& into,
                const StageGradients<T>& to) {
  struct State {
    Tiles<T, G> s;
    Recycled<T> values, parts;
  };
  const int64_t each = Totals<T, G>::Count(tiles), job = NextJob();
  const auto state = std::make_shared<State>(
      State{tiles, tiles.Values(kernels.taps), Recycled<T>(tiles.Chunks() * each)});
  const auto run = [=](int64_t task) {
    const Tiles<T, G>& s = state->s;
    const int64_t first = task * s.Chunk(), last = std::min(s.batch, first + s.Chunk());
    BackwardOfImages(s, from, state->values.data(), kernels.mix, into, to, first, last, job,
                     Totals<T, G>::In(s, state->parts.data() + task * each));
  };
  const auto finish = [=] { Finish(state->s, state->parts.data(), to); };
  return {tiles.Chunks(), run, finish};
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_STAGE_GRADIENT_H_
