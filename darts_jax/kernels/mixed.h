// The mixed operations of the n edges that leave one source state, whole: chains of stages,
// values that the edges share (pools of the state, or itself), their batch norms, and the
// weighted sum; and its gradient.
//
//   mixed[e] = sum over p of weights[e, p] * (scale_p * normalised(z_p[e]) + shift_p)
//
// z_p is the output of branch p's last stage, or a shared value. Without a scale and a shift
// of their own (a search) norms have 1 and 0; a shared value may go without a norm.
//
// One call in the compiled program instead of dozens: what the compiler spends on a program
// grows faster than the number of its operations.

#ifndef DARTS_JAX_KERNELS_MIXED_H_
#define DARTS_JAX_KERNELS_MIXED_H_

#include "buffers.h"
#include "dual.h"
#include "pooling.h"
#include "shuffle.h"
#include "stage.h"

namespace planes {

// The operands in order: x [C, B, H, W], weights [n, P] of the chains, then of the shared
// values, and for every stage of every chain taps [n, K, K, C] and mix [n, C, C'], or the taps
// [n, K, K, C, C'] of a dense convolution, and, if `affine`, scale and shift [n, C'] of the norm
// after it. `plan` holds (number of stages, then
// stride and dilation of each) for every chain, `shared` (Pool, whether a norm follows) for
// every shared value, and the pools have a stride.
struct Setup {
  ffi::Span<const int64_t> plan, shared;
  int64_t stride;
  bool affine;
  double epsilon;
};

template <typename T>
struct Norm {
  const T *scale, *shift;  // [rows] or null
  int64_t rows;
  T *mean, *variance;  // [rows]

  T Gamma(int64_t row) const { return scale ? scale[row] : T(1); }
  T Beta(int64_t row) const { return shift ? shift[row] : T(0); }
};

// What a batch norm's gradient is made of (Ioffe and Szegedy 2015): with the sums of
// gradient * z and of the gradient, and what the normalised value is multiplied by,
// dz = a * gradient + alpha + beta * z; `projected` is the sum of gradient * normalised z.
// N is a T or a Dual<T>.
template <typename N>
struct ThroughNorm {
  N a, alpha, beta, projected;

  template <typename T>
  ThroughNorm(N mean, N variance, double epsilon, T count, N products, N sums, N factor) {
    const N root = InverseRoot(variance, epsilon);
    projected = root * (products - mean * sums);
    a = factor * root;
    beta = -a * root * projected / count;
    alpha = -a * sums / count - beta * mean;
  }
};

template <typename T>
struct Link {  // a stage in its chain
  Stage stage;
  StageKernels<T> kernels;  // without mix: dense
  Norm<T> norm;
  T* z;

  bool Dense() const { return !kernels.mix; }
};

template <typename T>
struct Branch {
  std::vector<Link<T>> links;  // none: a shared value
  Pool pool;                   // that it is
  T* z;                        // of the last link, or shared
  Norm<T> norm;                // of it; no rows: none
  int64_t rows;                // of z
};

template <typename T>
struct Mixed {
  const T *x, *weights;
  int64_t channels, pixels;                // of x: numbers of a channel
  int64_t edges, out_channels, numbers;    // of the result: numbers of a row
  int64_t batch;
  std::vector<Branch<T>> branches;
  double epsilon;
  bool lanes;  // whether all stages work in the order of lanes, and all arrays lie in it
  Pooling<T> pooling;

  int64_t Rows() const { return edges * out_channels; }
  // Of the longest chain, and at least one: shared values have moments too.
  size_t Links() const {
    size_t longest = 1;
    for (const Branch<T>& branch : branches) longest = std::max(longest, branch.links.size());
    return longest;
  }
  T Weight(int64_t row, size_t p) const {
    return weights[row / out_channels * branches.size() + p];
  }
};

// The operands from argument `first` on; z and moments of all branches lie one after another
// in the two arrays.
template <typename T>
Mixed<T> Arrange(const Setup& setup, ffi::RemainingArgs args, size_t first, T* z, T* moments) {
  const auto operand = [&](size_t i) { return args.get<Buffer>(first + i).value(); };
  const auto of = [&](size_t i) { return In<T>(operand(i)); };
  const auto image = operand(0).dimensions(), weights = operand(1).dimensions();
  Mixed<T> m;
  m.x = of(0), m.weights = of(1);
  m.channels = image[0], m.pixels = image[1] * image[2] * image[3], m.batch = image[1];
  m.edges = weights[0], m.epsilon = setup.epsilon;
  m.lanes = setup.plan.size() > 0;
  const auto norm_of = [&](const T* scale, const T* shift, int64_t rows) {
    const Norm<T> norm{scale, shift, rows, moments, moments + rows};
    moments += 2 * rows;
    return norm;
  };
  size_t next = 2;
  for (size_t at = 0; at < setup.plan.size();) {
    Branch<T> branch;
    int64_t channels = image[0], height = image[2], width = image[3], inputs = 1;
    for (int64_t left = setup.plan[at++]; left > 0; --left, at += 2) {
      const auto taps = operand(next).dimensions();
      const bool dense = taps.size() == 5, affine = setup.affine;
      const T *values = of(next), *mix = dense ? nullptr : of(next + 1);
      const int64_t outputs = dense ? taps[4] : operand(next + 1).dimensions()[2];
      const Stage stage(inputs, m.edges, channels, outputs, image[1], height, width, taps[1],
                        setup.plan[at], setup.plan[at + 1]);
      next += dense ? 1 : 2;
      const T *scale = affine ? of(next) : nullptr, *shift = affine ? of(next + 1) : nullptr;
      next += affine ? 2 : 0;
      const Link<T> link{stage, {values, mix}, norm_of(scale, shift, stage.Rows()), z};
      m.lanes = m.lanes && FitsLanes<T>(stage);
      z += stage.Rows() * image[1] * stage.out;
      inputs = m.edges, channels = outputs;
      height = link.stage.out_height, width = link.stage.out_width;
      branch.links.push_back(link);
    }
    const Link<T>& last = branch.links.back();
    branch.z = last.z, branch.norm = last.norm, branch.rows = last.stage.Rows();
    m.out_channels = channels, m.numbers = image[1] * height * width;
    m.branches.push_back(branch);
  }
  m.pooling = Pooling<T>(image[2], image[3], setup.stride, m.lanes ? Vector<T>::kLanes : 1);
  for (size_t i = 0; i < setup.shared.size(); i += 2) {
    m.out_channels = image[0];
    m.numbers = image[1] * m.pooling.out_height * m.pooling.out_width;
    Branch<T> branch;
    branch.pool = static_cast<Pool>(setup.shared[i]);
    branch.z = z, branch.rows = image[0];
    if (branch.pool == Pool::kIdentity) {
      branch.z = const_cast<T*>(m.x);
    } else {
      z += image[0] * m.numbers;
    }
    branch.norm = setup.shared[i + 1] ? norm_of(nullptr, nullptr, image[0])
                                      : Norm<T>{nullptr, nullptr, 0, nullptr, nullptr};
    m.branches.push_back(branch);
  }
  return m;
}

// x in the order that the stages work in.
template <typename T>
void Enter(Mixed<T>& m, Entrance<T>& in) {
  m.x = in.Take(m.x, m.channels, m.pixels / m.batch);
  for (Branch<T>& branch : m.branches) {
    if (branch.links.empty() && branch.pool == Pool::kIdentity) {
      branch.z = const_cast<T*>(m.x);
    }
  }
}

// Calls f with where each group of a channel's images begins in x and in a pool.
template <typename T, typename F>
void ForGroups(const Mixed<T>& m, F f) {
  const int64_t groups = m.batch / m.pooling.lanes;
  for (int64_t i = 0; i < groups; ++i) f(i * m.pooling.In(), i * m.pooling.Out());
}

// What link i of a chain reads; `maps` keeps its scales and shifts.
template <typename T>
StageInput<T> InputOf(const Mixed<T>& m, const Branch<T>& branch, size_t i,
                      std::vector<T>& maps) {
  if (i == 0) {
    maps.assign(2 * m.channels, T(0));
    std::fill(maps.begin(), maps.begin() + m.channels, T(1));
    return {m.x, maps.data(), maps.data() + m.channels};
  }
  const Norm<T>& norm = branch.links[i - 1].norm;
  maps.resize(2 * norm.rows);
  for (int64_t row = 0; row < norm.rows; ++row) {
    const T scale = norm.Gamma(row) * InverseRoot(norm.variance[row], m.epsilon);
    maps[row] = scale;
    maps[norm.rows + row] = norm.Beta(row) - norm.mean[row] * scale;
  }
  return {branch.links[i - 1].z, maps.data(), maps.data() + norm.rows};
}

// to[i] = constant + sum over p of factors[p] * from[p][i].
template <typename T>
void Combine(const std::vector<const T*>& from, const std::vector<T>& factors, T constant,
             int64_t count, T* to) {
  using V = typename Vector<T>::Type;
  constexpr int kLanes = Vector<T>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    V sum = V{} + constant;
    for (size_t p = 0; p < from.size(); ++p) sum += factors[p] * Load(from[p] + i);
    Store(to + i, sum);
  }
  for (; i < count; ++i) {
    T sum = constant;
    for (size_t p = 0; p < from.size(); ++p) sum += factors[p] * from[p][i];
    to[i] = sum;
  }
}

// The same to a row of a result, in the program's order.
template <typename T>
void CombineRow(const Mixed<T>& m, const std::vector<const T*>& from,
                const std::vector<T>& factors, T constant, int64_t count, T* to) {
  if (!m.lanes) return Combine(from, factors, constant, count, to);
  Recycled<T> row(count, false);
  Combine(from, factors, constant, count, row.data());
  ShuffleRow<T, false>(row.data(), m.batch, count / m.batch, to);
}

// The sums of gradient * z [P, rows] of every branch and of the gradient [rows]: the gradient
// is read once.
template <typename T>
void GradientSums(ffi::ThreadPool& pool, const Mixed<T>& m, const T* gradient, T* products,
                  T* sums) {
  ParallelFor(pool, m.Rows(), 1, [=, &m](int64_t row, int64_t) {
    std::vector<double> product(m.branches.size(), 0.0);
    double sum = 0;
    for (int64_t at = 0; at < m.numbers; at += kPiece) {
      const T* g = gradient + row * m.numbers + at;
      const int64_t count = std::min(kPiece, m.numbers - at);
      sum += Sum<T>(count, [=](int64_t i, auto as) { return Read(g + i, as); });
      for (size_t p = 0; p < m.branches.size(); ++p) {
        const T* z = m.branches[p].z + row % m.branches[p].rows * m.numbers + at;
        product[p] += Sum<T>(
            count, [=](int64_t i, auto as) { return Read(g + i, as) * Read(z + i, as); });
      }
    }
    sums[row] = sum;
    for (size_t p = 0; p < m.branches.size(); ++p) products[p * m.Rows() + row] = product[p];
  });
}

// a, alpha and beta of a branch, [rows of the result] each.
template <typename T>
struct Coefficients {
  std::vector<T> a, alpha, beta;
  explicit Coefficients(int64_t rows) : a(rows), alpha(rows), beta(rows) {}
};

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_MIXED_H_
