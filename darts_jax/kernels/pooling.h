// 3x3 pools with padding 1 of groups of images, their transposes and their tangents.
//
// A pool is taken along rows first and then along columns, at every pixel: with a stride the
// pixels between are left out afterwards, which happens only where a cell halves its images.
// A pixel is one number, or one of each image of a group (lanes.h), so that either way the
// loops are over the contiguous numbers of a row.

#ifndef DARTS_JAX_KERNELS_POOLING_H_
#define DARTS_JAX_KERNELS_POOLING_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "vectors.h"

namespace planes {

enum class Pool { kIdentity, kMax, kAverage };  // in the order of mixed.KINDS

// Whether b replaces a as the largest: of equals the first stays, and of anything and a NaN
// the NaN, so that a run that diverged is not turned into constants. V is a number or a vector.
template <typename V>
inline auto Replaces(V b, V a) {
  return (b > a) | (b != b);
}

constexpr auto kLarger = [](auto a, auto b) { return Replaces(b, a) ? b : a; };

// x, y or z: of the first of the largest of a, b, c.
template <typename V>
inline V OfLargest(V a, V b, V c, V x, V y, V z) {
  const auto second = Replaces(b, a);
  const V best = second ? b : a, found = second ? y : x;
  return Replaces(c, best) ? z : found;
}

template <typename T>
class Pooling {
 public:
  Pooling() = default;
  // Of images of height x width pixels of `lanes` numbers.
  Pooling(int64_t height, int64_t width, int64_t stride, int64_t lanes)
      : lanes(lanes), out_height((height + stride - 1) / stride),
        out_width((width + stride - 1) / stride), height_(height), width_(width),
        stride_(stride), row_(width * lanes), pitch_(row_ + 2 * lanes), inverse_(In()) {
    const auto inside = [](int64_t i, int64_t length) {
      return std::min(i + 2, length) - std::max<int64_t>(i - 1, 0);
    };
    for (int64_t h = 0; h < height; ++h) {
      for (int64_t w = 0; w < width; ++w) {
        std::fill_n(inverse_.data() + h * row_ + w * lanes, lanes,
                    T(1) / (inside(h, height) * inside(w, width)));
      }
    }
  }
  int64_t lanes, out_height, out_width;
  // Numbers of a group in x and in y, and of the room that the functions work in.
  int64_t In() const { return height_ * row_; }
  int64_t Out() const { return out_height * out_width * lanes; }
  int64_t Room() const { return 5 * Padded() + 2 * pitch_; }

  void Forward(Pool pool, const T* x, T* y, T* room) const {
    T *plane = room, *rows = plane + Padded(), *full = stride_ == 1 ? y : rows + Padded();
    Padding(x, pool == Pool::kMax ? kLowest : T(0), plane);
    if (pool == Pool::kMax) {
      Windows(plane, rows, full, kLarger);
    } else {
      Windows(plane, rows, full, [](auto a, auto b) { return a + b; });
      Divide(full, full);
    }
    if (stride_ > 1) LeaveOut(full, y);
  }

  // Adds to dx what dy sends it: of equals the first in row-major order takes it all.
  void Backward(Pool pool, const T* x, const T* dy, T* dx, T* room) const {
    T *full = room, *plane = full + Padded(), *rows = plane + Padded(), *sent = rows + Padded(),
      *parts = sent + Padded();
    if (stride_ > 1) FillIn(dy, full), dy = full;
    if (pool == Pool::kAverage) {
      Divide(dy, full);
      Padding(full, T(0), plane);
      Windows(plane, rows, sent, [](auto a, auto b) { return a + b; });
      Along<T>(In(), [=](int64_t i, auto as) {
        Write(dx + i, Read(dx + i, as) + Read(sent + i, as));
      });
      return;
    }
    Padding(x, kLowest, plane);
    Rows(plane, rows, kLarger);
    // First to the row of its window's largest number, then to the pixel in that row.
    std::fill(sent, sent + Padded(), T(0));
    for (int64_t h = 0; h < height_; ++h, dy += row_, rows += row_, sent += row_) {
      Along<T>(row_, [=](int64_t v, auto as) {
        const auto a = Read(rows + v, as), b = Read(rows + row_ + v, as),
                   c = Read(rows + 2 * row_ + v, as), d = Read(dy + v, as);
        const auto add = [&](T* to, auto part) { Write(to, Read(to, as) + part); };
        add(sent + v, OfLargest(a, b, c, d, as, as));
        add(sent + row_ + v, OfLargest(a, b, c, as, d, as));
        add(sent + 2 * row_ + v, OfLargest(a, b, c, as, as, d));
      });
    }
    sent -= (height_ - 1) * row_;
    T *left = parts, *middle = left + pitch_, *right = middle + pitch_;
    std::fill(parts, parts + 3 * pitch_, T(0));
    for (int64_t h = 0; h < height_; ++h, dx += row_, sent += row_) {
      const T* from = plane + (h + 1) * pitch_;
      Along<T>(row_, [=](int64_t v, auto as) {
        const auto a = Read(from + v, as), b = Read(from + v + lanes, as),
                   c = Read(from + v + 2 * lanes, as), d = Read(sent + v, as);
        Write(left + lanes + v, OfLargest(a, b, c, d, as, as));
        Write(middle + lanes + v, OfLargest(a, b, c, as, d, as));
        Write(right + lanes + v, OfLargest(a, b, c, as, as, d));
      });
      Along<T>(row_, [=](int64_t v, auto as) {
        const auto sum = Read(left + v + 2 * lanes, as) + Read(middle + v + lanes, as);
        Write(dx + v, Read(dx + v, as) + (sum + Read(right + v, as)));
      });
    }
  }

  // How y changes with x, where a max pool's choices do not.
  void Tangent(Pool pool, const T* x, const T* x_t, T* y_t, T* room) const {
    if (pool == Pool::kAverage) return Forward(pool, x_t, y_t, room);
    T *plane = room, *plane_t = plane + Padded(), *rows = plane_t + Padded(),
      *rows_t = rows + Padded(), *full = stride_ == 1 ? y_t : rows_t + Padded();
    Padding(x, kLowest, plane);
    Padding(x_t, T(0), plane_t);
    Rows(plane, rows, kLarger);
    const auto choose = [](const T* from, const T* of, int64_t step, int64_t count, T* to) {
      Along<T>(count, [=](int64_t v, auto as) {
        Write(to + v, OfLargest(Read(from + v, as), Read(from + v + step, as),
                                Read(from + v + 2 * step, as), Read(of + v, as),
                                Read(of + v + step, as), Read(of + v + 2 * step, as)));
      });
    };
    for (int64_t h = 0; h < height_ + 2; ++h) {
      choose(plane + h * pitch_, plane_t + h * pitch_, lanes, row_, rows_t + h * row_);
    }
    choose(rows, rows_t, row_, In(), full);
    if (stride_ > 1) LeaveOut(full, y_t);
  }

 private:
  static constexpr T kLowest = -std::numeric_limits<T>::infinity();

  int64_t height_, width_, stride_;
  int64_t row_, pitch_;     // numbers of a row, of one with a pixel more on both sides
  std::vector<T> inverse_;  // of how many pixels of a window are inside, for every number

  int64_t Padded() const { return (height_ + 2) * pitch_; }
  void Padding(const T* x, T border, T* plane) const {
    std::fill(plane, plane + Padded(), border);
    for (int64_t h = 0; h < height_; ++h) {
      std::copy(x + h * row_, x + (h + 1) * row_, plane + (h + 1) * pitch_ + lanes);
    }
  }
  // f of the three numbers side by side, and of the three rows of those.
  template <typename F>
  void Rows(const T* plane, T* rows, F f) const {
    for (int64_t h = 0; h < height_ + 2; ++h, plane += pitch_, rows += row_) {
      Along<T>(row_, [=](int64_t v, auto as) {
        const T* p = plane + v;
        Write(rows + v, f(f(Read(p, as), Read(p + lanes, as)), Read(p + 2 * lanes, as)));
      });
    }
  }
  template <typename F>
  void Windows(const T* plane, T* rows, T* full, F f) const {
    Rows(plane, rows, f);
    Along<T>(In(), [=](int64_t i, auto as) {
      const T* p = rows + i;
      Write(full + i, f(f(Read(p, as), Read(p + row_, as)), Read(p + 2 * row_, as)));
    });
  }
  // By how many numbers a window's sum has.
  void Divide(const T* from, T* to) const {
    const T* inverse = inverse_.data();
    Along<T>(In(), [=](int64_t i, auto as) {
      Write(to + i, Read(from + i, as) * Read(inverse + i, as));
    });
  }
  // The pixels of y out of those of all windows, and back with zeros between them.
  void LeaveOut(const T* full, T* y) const {
    for (int64_t h = 0; h < out_height; ++h) {
      for (int64_t w = 0; w < out_width; ++w, y += lanes) {
        const T* from = full + (h * width_ + w) * stride_ * lanes;
        for (int64_t i = 0; i < lanes; ++i) y[i] = from[i];
      }
    }
  }
  void FillIn(const T* dy, T* full) const {
    std::fill(full, full + In(), T(0));
    for (int64_t h = 0; h < out_height; ++h) {
      for (int64_t w = 0; w < out_width; ++w, dy += lanes) {
        T* to = full + (h * width_ + w) * stride_ * lanes;
        for (int64_t i = 0; i < lanes; ++i) to[i] = dy[i];
      }
    }
  }
};

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_POOLING_H_
