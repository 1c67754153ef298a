// The mixed operations of the n edges that leave one source state, whole: chains of stages,
// values that the edges share, their batch norms, and the weighted sum; and its gradient.
//
//   mixed[e] = sum over p of weights[e, p] * (scale_p * normalised(z_p[e]) + shift_p)
//
// z_p is the output of branch p's last stage, or a shared value. Without a scale and a shift
// of their own (a search) norms have 1 and 0; a shared value may go without a norm.
//
// One call in the compiled program instead of dozens: what the compiler spends on a program
// grows faster than the number of its operations.

#include <cmath>

#include "buffers.h"
#include "stage.h"

namespace {

using namespace planes;

// The operands in order: x [C, B, H, W], weights [n, P], the shared values [C', B, H', W'],
// and for every stage of every chain taps [n, K, K, C], mix [n, C, C'] and, if `affine`,
// scale and shift [n, C'] of the norm after it. `plan` holds (number of stages, then
// stride and dilation of each) for every chain, `normalised` a flag for every shared value.
struct Setup {
  ffi::Span<const int64_t> plan, normalised;
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
template <typename T>
struct ThroughNorm {
  T a, alpha, beta, projected;

  ThroughNorm(const Norm<T>& norm, int64_t row, double epsilon, int64_t count, T products,
              T sums, T factor) {
    const T root = 1 / std::sqrt(norm.variance[row] + T(epsilon));
    projected = root * (products - norm.mean[row] * sums);
    a = factor * root;
    beta = -a * root * projected / count;
    alpha = -a * sums / count - beta * norm.mean[row];
  }
};

template <typename T>
struct Link {  // a stage in its chain
  Stage stage;
  StageKernels<T> kernels;
  Norm<T> norm;
  T* z;
};

template <typename T>
struct Branch {
  std::vector<Link<T>> links;  // none: a shared value
  const T* z;                  // of the last link, or shared
  Norm<T> norm;                // of it; no rows: none
  int64_t rows;                // of z
};

template <typename T>
struct Mixed {
  const T *x, *weights;
  int64_t channels, pixels;                // of x: numbers of a channel
  int64_t edges, out_channels, numbers;    // of the result: numbers of a row
  std::vector<Branch<T>> branches;
  double epsilon;

  int64_t Rows() const { return edges * out_channels; }
  T Weight(int64_t row, size_t p) const {
    return weights[row / out_channels * branches.size() + p];
  }
};

// Lays z and moments of all branches one after another into the two arrays.
template <typename T>
Mixed<T> Arrange(const Setup& setup, ffi::RemainingArgs args, T* z, T* moments) {
  const auto operand = [&](size_t i) { return args.get<Buffer>(i).value(); };
  const auto of = [&](size_t i) { return In<T>(operand(i)); };
  const auto image = operand(0).dimensions(), weights = operand(1).dimensions();
  Mixed<T> m;
  m.x = of(0), m.weights = of(1);
  m.channels = image[0], m.pixels = image[1] * image[2] * image[3];
  m.edges = weights[0], m.epsilon = setup.epsilon;
  const auto norm_of = [&](const T* scale, const T* shift, int64_t rows) {
    const Norm<T> norm{scale, shift, rows, moments, moments + rows};
    moments += 2 * rows;
    return norm;
  };
  size_t next = 2 + setup.normalised.size();
  for (size_t at = 0; at < setup.plan.size();) {
    Branch<T> branch;
    int64_t channels = image[0], height = image[2], width = image[3], inputs = 1;
    for (int64_t left = setup.plan[at++]; left > 0; --left, at += 2) {
      const auto taps = operand(next).dimensions(), mix = operand(next + 1).dimensions();
      const Stage stage =
          Stage::Of<T>(inputs, m.edges, channels, mix[2], image[1], height, width, taps[1],
                       setup.plan[at], setup.plan[at + 1]);
      const bool affine = setup.affine;
      const Norm<T> norm = norm_of(affine ? of(next + 2) : nullptr,
                                   affine ? of(next + 3) : nullptr, stage.Rows());
      const Link<T> link{stage, {of(next), of(next + 1)}, norm, z};
      z += link.stage.Rows() * image[1] * link.stage.out;
      next += affine ? 4 : 2;
      inputs = m.edges, channels = mix[2];
      height = link.stage.g.out_height, width = link.stage.g.out_width;
      branch.links.push_back(link);
    }
    const Link<T>& last = branch.links.back();
    branch.z = last.z, branch.norm = last.norm, branch.rows = last.stage.Rows();
    m.out_channels = channels, m.numbers = image[1] * height * width;
    m.branches.push_back(branch);
  }
  for (size_t i = 0; i < setup.normalised.size(); ++i) {
    const auto value = operand(2 + i).dimensions();
    m.out_channels = value[0], m.numbers = value[1] * value[2] * value[3];
    Branch<T> branch;
    branch.z = of(2 + i), branch.rows = value[0];
    branch.norm = setup.normalised[i] ? norm_of(nullptr, nullptr, value[0])
                                      : Norm<T>{nullptr, nullptr, 0, nullptr, nullptr};
    m.branches.push_back(branch);
  }
  return m;
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
    const T scale = norm.Gamma(row) / std::sqrt(norm.variance[row] + T(m.epsilon));
    maps[row] = scale;
    maps[norm.rows + row] = norm.Beta(row) - norm.mean[row] * scale;
  }
  return {branch.links[i - 1].z, maps.data(), maps.data() + norm.rows};
}

// Mean and biased variance of every row of a shared value.
template <typename T>
void SharedMoments(ffi::ThreadPool& pool, const Branch<T>& branch, int64_t numbers) {
  ParallelFor(pool, branch.rows, 1, [=, &branch](int64_t row, int64_t) {
    Moment moment;
    for (int64_t at = 0; at < numbers; at += kPiece) {
      moment.AddNumbers(branch.z + row * numbers + at, std::min(kPiece, numbers - at));
    }
    branch.norm.mean[row] = moment.mean;
    branch.norm.variance[row] = moment.squares / moment.count;
  });
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

template <typename T>
void WeightedSum(ffi::ThreadPool& pool, const Mixed<T>& m, T* mixed) {
  ParallelFor(pool, m.Rows(), 1, [=, &m](int64_t row, int64_t) {
    std::vector<const T*> from;
    std::vector<T> factors;
    T constant = 0;
    for (size_t p = 0; p < m.branches.size(); ++p) {
      const Branch<T>& branch = m.branches[p];
      const int64_t own = row % branch.rows;
      T factor = m.Weight(row, p);
      if (branch.norm.rows) {
        const Norm<T>& norm = branch.norm;
        const T root = 1 / std::sqrt(norm.variance[own] + T(m.epsilon));
        constant += factor * (norm.Beta(own) - norm.Gamma(own) * root * norm.mean[own]);
        factor *= norm.Gamma(own) * root;
      }
      from.push_back(branch.z + own * m.numbers);
      factors.push_back(factor);
    }
    Combine(from, factors, constant, m.numbers, mixed + row * m.numbers);
  });
}

template <typename T>
void Forward(ffi::ThreadPool& pool, const Mixed<T>& m, T* mixed) {
  std::vector<T> maps;
  for (const Branch<T>& branch : m.branches) {
    for (size_t i = 0; i < branch.links.size(); ++i) {
      const Link<T>& link = branch.links[i];
      StageForward(pool, link.stage, InputOf(m, branch, i, maps), link.kernels, link.z,
                   link.norm.mean, link.norm.variance);
    }
    if (branch.links.empty() && branch.norm.rows) SharedMoments(pool, branch, m.numbers);
  }
  WeightedSum(pool, m, mixed);
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

// Where the gradients go, in the order of the operands; null: not wanted.
template <typename T>
struct Gradients {
  T *x, *weights;
  std::vector<T*> shared, stages;
};

// a, alpha and beta of a branch, [rows of the result] each.
template <typename T>
struct Coefficients {
  std::vector<T> a, alpha, beta;
  explicit Coefficients(int64_t rows) : a(rows), alpha(rows), beta(rows) {}
};

// The gradients of weights, and of scale and shift of the last norm where they are wanted.
template <typename T>
Coefficients<T> ThroughLastNorm(const Mixed<T>& m, size_t p, const T* products, const T* sums,
                                T* dweights, T* dscale, T* dshift) {
  const Branch<T>& branch = m.branches[p];
  Coefficients<T> into(m.Rows());
  for (int64_t row = 0; row < m.Rows(); ++row) {
    const int64_t own = row % branch.rows, edge = row / m.out_channels;
    const T weight = m.Weight(row, p);
    T share = products[row];
    into.a[row] = weight;
    if (branch.norm.rows) {
      const T gamma = branch.norm.Gamma(own);
      const ThroughNorm<T> back(branch.norm, own, m.epsilon, m.numbers, products[row],
                                sums[row], weight * gamma);
      into.a[row] = back.a, into.alpha[row] = back.alpha, into.beta[row] = back.beta;
      share = gamma * back.projected + branch.norm.Beta(own) * sums[row];
      if (dscale) dscale[row] = weight * back.projected;
      if (dshift) dshift[row] = weight * sums[row];
    }
    dweights[edge * m.branches.size() + p] += share;
  }
  return into;
}

// One chain from its last stage to x. `to` are the gradients of its stages' operands, in
// `each` a stage, or null; `scratch` has room for the input of the second stage: a chain has
// two at most.
template <typename T>
void ThroughChain(ffi::ThreadPool& pool, const Mixed<T>& m, const Branch<T>& branch,
                  Coefficients<T> into, const T* gradient, T* const* to, int64_t each, T* dx,
                  bool add, T* scratch) {
  std::vector<T> maps, dscale, dshift;
  for (size_t i = branch.links.size(); i-- > 0;) {
    const Link<T>& link = branch.links[i];
    const Stage& s = link.stage;
    dscale.assign(s.Inputs(), T(0)), dshift.assign(s.Inputs(), T(0));
    StageGradients<T> found{i ? scratch : dx, i == 0 && add,
                            i ? dscale.data() : nullptr, i ? dshift.data() : nullptr,
                            to ? to[each * i] : nullptr, to ? to[each * i + 1] : nullptr};
    StageBackward(pool, s, InputOf(m, branch, i, maps), link.kernels,
                  {link.z, gradient, into.a.data(), into.alpha.data(), into.beta.data()},
                  found);
    if (i == 0) return;
    // `scratch` holds the norm's scale already, so that a is one.
    const Norm<T>& norm = branch.links[i - 1].norm;
    into = Coefficients<T>(norm.rows);
    for (int64_t row = 0; row < norm.rows; ++row) {
      const ThroughNorm<T> back(norm, row, m.epsilon, s.batch * s.in, dscale[row],
                                dshift[row], norm.Gamma(row));
      into.a[row] = 1, into.alpha[row] = back.alpha, into.beta[row] = back.beta;
      if (each == 4 && to) {
        to[each * (i - 1) + 2][row] = back.projected;
        to[each * (i - 1) + 3][row] = dshift[row];
      }
    }
    gradient = scratch;
  }
}

// The gradient of a value that all edges share.
template <typename T>
void ToShared(ffi::ThreadPool& pool, const Mixed<T>& m, const Branch<T>& branch,
              const Coefficients<T>& into, const T* gradient, T* dshared) {
  ParallelFor(pool, branch.rows, 1, [=, &m, &branch, &into](int64_t own, int64_t) {
    std::vector<const T*> from;
    std::vector<T> factors;
    T constant = 0, beta = 0;
    for (int64_t row = own; row < m.Rows(); row += branch.rows) {
      from.push_back(gradient + row * m.numbers);
      factors.push_back(into.a[row]);
      constant += into.alpha[row], beta += into.beta[row];
    }
    from.push_back(branch.z + own * m.numbers), factors.push_back(beta);
    Combine(from, factors, constant, m.numbers, dshared + own * m.numbers);
  });
}

template <typename T>
void Backward(ffi::ThreadPool& pool, const Mixed<T>& m, const T* gradient, bool affine,
              const Gradients<T>& to, T* scratch) {
  const int64_t rows = m.Rows(), each = affine ? 4 : 2;
  std::vector<T> products(m.branches.size() * rows), sums(rows);
  GradientSums(pool, m, gradient, products.data(), sums.data());
  std::fill(to.weights, to.weights + m.edges * m.branches.size(), T(0));
  T* const* stages = to.stages.empty() ? nullptr : to.stages.data();
  size_t shared = 0;
  bool add = false;
  for (size_t p = 0; p < m.branches.size(); ++p) {
    const Branch<T>& branch = m.branches[p];
    T* const* last = stages && !branch.links.empty() && affine
                         ? stages + each * (branch.links.size() - 1)
                         : nullptr;
    Coefficients<T> into =
        ThroughLastNorm(m, p, &products[p * rows], sums.data(), to.weights,
                        last ? last[2] : nullptr, last ? last[3] : nullptr);
    if (branch.links.empty()) {
      if (to.x) ToShared(pool, m, branch, into, gradient, to.shared[shared++]);
      continue;
    }
    if (to.x) {
      ThroughChain(pool, m, branch, std::move(into), gradient, stages, each, to.x, add,
                   scratch);
    }
    add = true;
    if (stages) stages += each * branch.links.size();
  }
  if (to.x && !add) std::fill(to.x, to.x + m.channels * m.pixels, T(0));
}

ffi::Error RunForward(ffi::ThreadPool pool, ffi::Span<const int64_t> plan,
                      ffi::Span<const int64_t> normalised, bool affine, double epsilon,
                      ffi::RemainingArgs args, Result mixed, Result z, Result moments) {
  return WithType(*mixed, [&](auto zero) {
    using T = decltype(zero);
    const Setup setup{plan, normalised, affine, epsilon};
    Forward(pool, Arrange<T>(setup, args, Out<T>(z), Out<T>(moments)), Out<T>(mixed));
  });
}

// After the operands of the forward pass: its z and moments, and the gradient. Results: the
// gradients of weights; if `wanted` is 1 or more of x and the shared values, and a scratch
// array; if it is 2 of the stages' operands.
ffi::Error RunBackward(ffi::ThreadPool pool, ffi::Span<const int64_t> plan,
                       ffi::Span<const int64_t> normalised, bool affine, double epsilon,
                       int64_t wanted, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  const size_t size = args.size();
  const auto last = [&](size_t i) { return args.get<Buffer>(size - i).value(); };
  return WithType(last(1), [&](auto zero) {
    using T = decltype(zero);
    const auto result = [&](size_t i) {
      return static_cast<T*>((*rets.get<Buffer>(i))->untyped_data());
    };
    const Setup setup{plan, normalised, affine, epsilon};
    // Arranged as in the forward pass, where z and moments were written; here they are read.
    const Mixed<T> m = Arrange<T>(setup, args, const_cast<T*>(In<T>(last(3))),
                                  const_cast<T*>(In<T>(last(2))));
    Gradients<T> to{nullptr, result(0), {}, {}};
    T* scratch = nullptr;
    if (wanted >= 1) {
      scratch = result(1), to.x = result(2);
      for (size_t i = 0; i < normalised.size(); ++i) to.shared.push_back(result(3 + i));
    }
    if (wanted >= 2) {
      for (size_t i = 3 + normalised.size(); i < rets.size(); ++i) {
        to.stages.push_back(result(i));
      }
    }
    Backward(pool, m, In<T>(last(1)), affine, to, scratch);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(MixedForward, RunForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("plan")
                                  .Attr<ffi::Span<const int64_t>>("normalised")
                                  .Attr<bool>("affine")
                                  .Attr<double>("epsilon")
                                  .RemainingArgs()
                                  .Ret<Buffer>()   // mixed [n, C', B, H', W']
                                  .Ret<Buffer>()   // z of all branches
                                  .Ret<Buffer>());  // moments of all norms

XLA_FFI_DEFINE_HANDLER_SYMBOL(MixedBackward, RunBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("plan")
                                  .Attr<ffi::Span<const int64_t>>("normalised")
                                  .Attr<bool>("affine")
                                  .Attr<double>("epsilon")
                                  .Attr<int64_t>("wanted")
                                  .RemainingArgs()
                                  .RemainingRets());
