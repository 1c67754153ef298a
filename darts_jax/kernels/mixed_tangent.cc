// How the mixed operations of one source state, and their gradient, change with the operands
// (forward mode): the exact second order. See mixed.h for the operands; those of `t` are the
// tangents. A quantity's tangent has its name and a T.

#include "dense_tangent.h"
#include "mixed.h"
#include "stage_tangent.h"

namespace {

using namespace planes;

template <typename T>
Dual<T> Of(const T* value, const T* tangent, int64_t i) {
  return {value[i], tangent[i]};
}

// A norm with its tangent.
template <typename T>
struct NormPair {
  const Norm<T> &norm, &t;

  Dual<T> Gamma(int64_t row) const { return {norm.Gamma(row), t.scale ? t.scale[row] : T(0)}; }
  Dual<T> Beta(int64_t row) const { return {norm.Beta(row), t.shift ? t.shift[row] : T(0)}; }
  Dual<T> Mean(int64_t row) const { return Of(norm.mean, t.mean, row); }
  Dual<T> Variance(int64_t row) const { return Of(norm.variance, t.variance, row); }
};

template <typename T>
struct MixedPair {
  const Mixed<T> &m, &t;

  Dual<T> Weight(int64_t row, size_t p) const { return {m.Weight(row, p), t.Weight(row, p)}; }
  NormPair<T> NormOf(size_t p) const { return {m.branches[p].norm, t.branches[p].norm}; }
};

// What link i of branch p reads, with tangents; `maps` and `maps_t` keep scales and shifts.
template <typename T>
StagePair<T> PairOf(const MixedPair<T>& pair, size_t p, size_t i, std::vector<T>& maps,
                    std::vector<T>& maps_t) {
  const Branch<T> &branch = pair.m.branches[p], &branch_t = pair.t.branches[p];
  StagePair<T> found{InputOf(pair.m, branch, i, maps), {}, branch.links[i].kernels,
                     branch_t.links[i].kernels};
  if (i == 0) {
    maps_t.assign(2 * pair.m.channels, T(0));
    found.from_t = {pair.t.x, maps_t.data(), maps_t.data() + pair.m.channels};
    return found;
  }
  const NormPair<T> norm{branch.links[i - 1].norm, branch_t.links[i - 1].norm};
  const int64_t rows = norm.norm.rows;
  maps_t.resize(2 * rows);
  for (int64_t row = 0; row < rows; ++row) {
    const Dual<T> scale = norm.Gamma(row) * InverseRoot(norm.Variance(row), pair.m.epsilon);
    maps_t[row] = scale.tangent;
    maps_t[rows + row] = (norm.Beta(row) - norm.Mean(row) * scale).tangent;
  }
  found.from_t = {branch_t.links[i - 1].z, maps_t.data(), maps_t.data() + rows};
  return found;
}

// The moments' tangents out of the sums of zT and of z * zT.
template <typename T>
void MomentTangents(const Norm<T>& norm, const Norm<T>& t, int64_t count, const double* sums,
                    const double* products) {
  for (int64_t row = 0; row < norm.rows; ++row) {
    t.mean[row] = sums[row] / count;
    t.variance[row] = 2 * (products[row] - norm.mean[row] * sums[row]) / count;
  }
}

template <typename T>
void SharedTangents(ffi::ThreadPool& pool, const MixedPair<T>& pair, size_t p) {
  const Mixed<T> &m = pair.m, &t = pair.t;
  const Branch<T> &branch = m.branches[p], &branch_t = t.branches[p];
  const int64_t numbers = m.numbers;
  std::vector<double> sums(branch.rows), products(branch.rows);
  ParallelFor(pool, branch.rows, 1, [&, numbers](int64_t row, int64_t) {
    if (branch.pool != Pool::kIdentity) {
      Recycled<T> room(m.pooling.Room(), false);
      const T *x = m.x + row * m.pixels, *x_t = t.x + row * m.pixels;
      ForGroups(m, [&](int64_t in, int64_t out) {
        m.pooling.Tangent(branch.pool, x + in, x_t + in, branch_t.z + row * numbers + out,
                          room.data());
      });
    }
    if (!branch.norm.rows) return;
    for (int64_t at = row * numbers; at < (row + 1) * numbers; at += kPiece) {
      const T *z = branch.z + at, *z_t = branch_t.z + at;
      const int64_t count = std::min(kPiece, (row + 1) * numbers - at);
      AddTangentSums(z, z_t, count, sums[row], products[row]);
    }
  });
  MomentTangents(branch.norm, branch_t.norm, numbers, sums.data(), products.data());
}

template <typename T>
void WeightedSumTangent(ffi::ThreadPool& pool, const MixedPair<T>& pair, T* mixed_t) {
  const Mixed<T>& m = pair.m;
  ParallelFor(pool, m.Rows(), 1, [=, &m](int64_t row, int64_t) {
    std::vector<const T*> from;
    std::vector<T> factors;
    Dual<T> constant;
    for (size_t p = 0; p < m.branches.size(); ++p) {
      const int64_t own = row % m.branches[p].rows;
      Dual<T> factor = pair.Weight(row, p);
      if (m.branches[p].norm.rows) {
        const NormPair<T> norm = pair.NormOf(p);
        const Dual<T> scale = norm.Gamma(own) * InverseRoot(norm.Variance(own), m.epsilon);
        constant = constant + factor * (norm.Beta(own) - scale * norm.Mean(own));
        factor = factor * scale;
      }
      from.push_back(m.branches[p].z + own * m.numbers), factors.push_back(factor.tangent);
      from.push_back(pair.t.branches[p].z + own * m.numbers), factors.push_back(factor.value);
    }
    CombineRow(m, from, factors, constant.tangent, m.numbers, mixed_t + row * m.numbers);
  });
}

template <typename T>
void Forward(ffi::ThreadPool& pool, const MixedPair<T>& pair, T* mixed_t) {
  std::vector<T> maps, maps_t;
  for (size_t p = 0; p < pair.m.branches.size(); ++p) {
    const Branch<T>& branch = pair.m.branches[p];
    for (size_t i = 0; i < branch.links.size(); ++i) {
      const Link<T>& link = branch.links[i];
      const Link<T>& link_t = pair.t.branches[p].links[i];
      std::vector<double> sums(link.norm.rows), products(link.norm.rows);
      WithTiles<T>(link.stage, pair.m.lanes, [&](const auto& tiles) {
        const StagePair<T> of = PairOf(pair, p, i, maps, maps_t);
        if (link.Dense()) {
          DenseStageTangent(pool, DenseTiles(tiles), of, link.z, link_t.z, sums.data(),
                            products.data());
        } else {
          StageTangent(pool, tiles, of, link.z, link_t.z, sums.data(), products.data());
        }
      });
      MomentTangents(link.norm, link_t.norm, link.stage.batch * link.stage.out, sums.data(),
                     products.data());
    }
    if (branch.links.empty()) SharedTangents(pool, pair, p);
  }
  WeightedSumTangent(pool, pair, mixed_t);
}

// a, alpha and beta of a branch with their tangents.
template <typename T>
struct CoefficientsPair {
  Coefficients<T> value, tangent;
  explicit CoefficientsPair(int64_t rows) : value(rows), tangent(rows) {}

  void Set(int64_t row, Dual<T> a, Dual<T> alpha, Dual<T> beta) {
    value.a[row] = a.value, value.alpha[row] = alpha.value, value.beta[row] = beta.value;
    tangent.a[row] = a.tangent, tangent.alpha[row] = alpha.tangent;
    tangent.beta[row] = beta.tangent;
  }
};

template <typename T>
CoefficientsPair<T> ThroughLastNorm(const MixedPair<T>& pair, size_t p, const T* products,
                                    const T* products_t, const T* sums, const T* sums_t,
                                    T* dweights_t) {
  const Mixed<T>& m = pair.m;
  CoefficientsPair<T> into(m.Rows());
  for (int64_t row = 0; row < m.Rows(); ++row) {
    const int64_t own = row % m.branches[p].rows;
    const Dual<T> weight = pair.Weight(row, p), sum = Of(sums, sums_t, row);
    Dual<T> share = Of(products, products_t, row);
    if (m.branches[p].norm.rows) {
      const NormPair<T> norm = pair.NormOf(p);
      const ThroughNorm<Dual<T>> back(norm.Mean(own), norm.Variance(own), m.epsilon,
                                      T(m.numbers), share, sum, weight * norm.Gamma(own));
      into.Set(row, back.a, back.alpha, back.beta);
      share = norm.Gamma(own) * back.projected + norm.Beta(own) * sum;
    } else {
      into.Set(row, weight, {}, {});
    }
    dweights_t[row / m.out_channels * m.branches.size() + p] += share.tangent;
  }
  return into;
}

// Adds to dx_t; `scratch` has room for twice the input of the second stage.
template <typename T>
void ThroughChain(ffi::ThreadPool& pool, const MixedPair<T>& pair, size_t p,
                  CoefficientsPair<T> into, const T* gradient, const T* gradient_t, T* dx_t,
                  T* scratch) {
  const Branch<T> &branch = pair.m.branches[p], &branch_t = pair.t.branches[p];
  std::vector<T> maps, maps_t;
  for (size_t i = branch.links.size(); i-- > 0;) {
    const Stage& s = branch.links[i].stage;
    std::vector<T> sums(4 * s.Inputs());
    T *dscale = sums.data(), *dshift = dscale + s.Inputs(), *dscale_t = dshift + s.Inputs(),
      *dshift_t = dscale_t + s.Inputs(), *between_t = scratch + s.Inputs() * s.batch * s.in;
    StageGradientsPair<T> found{nullptr, dx_t, true, nullptr, nullptr, nullptr, nullptr};
    if (i) found = {scratch, between_t, false, dscale, dshift, dscale_t, dshift_t};
    const auto& c = into;
    const Incoming<T> incoming{branch.links[i].z, gradient, c.value.a.data(),
                               c.value.alpha.data(), c.value.beta.data()};
    const Incoming<T> incoming_t{branch_t.links[i].z, gradient_t, c.tangent.a.data(),
                                 c.tangent.alpha.data(), c.tangent.beta.data()};
    WithTiles<T>(s, pair.m.lanes, [&](const auto& tiles) {
      const StagePair<T> of = PairOf(pair, p, i, maps, maps_t);
      if (branch.links[i].Dense()) {
        DenseBackwardTangent(pool, DenseTiles(tiles), of, incoming, incoming_t, found);
      } else {
        StageBackwardTangent(pool, tiles, of, incoming, incoming_t, found);
      }
    });
    if (i == 0) return;
    const NormPair<T> norm{branch.links[i - 1].norm, branch_t.links[i - 1].norm};
    into = CoefficientsPair<T>(norm.norm.rows);
    for (int64_t row = 0; row < norm.norm.rows; ++row) {
      const ThroughNorm<Dual<T>> back(norm.Mean(row), norm.Variance(row), pair.m.epsilon,
                                      T(s.batch * s.in), Of(dscale, dscale_t, row),
                                      Of(dshift, dshift_t, row), norm.Gamma(row));
      into.Set(row, {1, 0}, back.alpha, back.beta);
    }
    gradient = scratch, gradient_t = between_t;
  }
}

// Adds to dx_t what the gradient of a shared value sends it.
template <typename T>
void ThroughShared(ffi::ThreadPool& pool, const MixedPair<T>& pair, size_t p,
                   const CoefficientsPair<T>& into, const T* gradient, const T* gradient_t,
                   T* dx_t) {
  const Mixed<T>& m = pair.m;
  const Branch<T> &branch = m.branches[p], &branch_t = pair.t.branches[p];
  ParallelFor(pool, branch.rows, 1, [&, gradient, gradient_t, dx_t](int64_t own, int64_t) {
    std::vector<const T*> from;
    std::vector<T> factors;
    Dual<T> alpha, beta;
    for (int64_t row = own; row < m.Rows(); row += branch.rows) {
      from.push_back(gradient + row * m.numbers), factors.push_back(into.tangent.a[row]);
      from.push_back(gradient_t + row * m.numbers), factors.push_back(into.value.a[row]);
      alpha = alpha + Dual<T>{into.value.alpha[row], into.tangent.alpha[row]};
      beta = beta + Dual<T>{into.value.beta[row], into.tangent.beta[row]};
    }
    from.push_back(branch.z + own * m.numbers), factors.push_back(beta.tangent);
    from.push_back(branch_t.z + own * m.numbers), factors.push_back(beta.value);
    Recycled<T> sent(m.numbers, false), room(m.pooling.Room(), false);
    T *const dy_t = sent.data(), *const to = dx_t + own * m.pixels;
    Combine(from, factors, alpha.tangent, m.numbers, dy_t);
    if (branch.pool == Pool::kIdentity) {
      for (int64_t i = 0; i < m.numbers; ++i) to[i] += dy_t[i];
      return;
    }
    ForGroups(m, [&](int64_t in, int64_t out) {
      m.pooling.Backward(branch.pool, m.x + own * m.pixels + in, dy_t + out, to + in,
                         room.data());
    });
  });
}

template <typename T>
void Backward(ffi::ThreadPool& pool, const MixedPair<T>& pair, const T* gradient,
              const T* gradient_t, T* dweights_t, T* dx_t, T* scratch) {
  const Mixed<T>& m = pair.m;
  const int64_t rows = m.Rows();
  const size_t branches = m.branches.size();
  std::vector<T> products(branches * rows), products_t(branches * rows), more(branches * rows);
  std::vector<T> sums(rows), sums_t(rows);
  GradientSums(pool, pair.t, gradient, more.data(), sums.data());
  GradientSums(pool, m, gradient_t, products_t.data(), sums_t.data());
  GradientSums(pool, m, gradient, products.data(), sums.data());
  for (size_t i = 0; i < more.size(); ++i) products_t[i] += more[i];
  std::fill(dweights_t, dweights_t + m.edges * branches, T(0));
  Recycled<T> ordered(m.lanes ? m.channels * m.pixels : 0, false);
  T* const dx = m.lanes ? ordered.data() : dx_t;
  std::fill(dx, dx + m.channels * m.pixels, T(0));
  for (size_t p = 0; p < branches; ++p) {
    CoefficientsPair<T> into =
        ThroughLastNorm(pair, p, &products[p * rows], &products_t[p * rows], sums.data(),
                        sums_t.data(), dweights_t);
    if (m.branches[p].links.empty()) {
      ThroughShared(pool, pair, p, into, gradient, gradient_t, dx);
    } else {
      ThroughChain(pool, pair, p, std::move(into), gradient, gradient_t, dx, scratch);
    }
  }
  if (!m.lanes) return;
  RunJobs(pool, {ShuffleJob<T, false>(dx, m.channels, m.batch, m.pixels / m.batch, dx_t)});
}

// Arguments: the operands, z and moments, and the operands' tangents.
ffi::Error RunForward(ffi::ThreadPool pool, ffi::Span<const int64_t> plan,
                      ffi::Span<const int64_t> shared, int64_t stride, bool affine,
                      double epsilon, ffi::RemainingArgs args, Result mixed_t, Result z_t,
                      Result moments_t) {
  return WithType(*mixed_t, [&](auto zero) {
    using T = decltype(zero);
    const Setup setup{plan, shared, stride, affine, epsilon};
    const size_t operands = (args.size() - 2) / 2;
    const auto read = [&](size_t i) { return const_cast<T*>(In<T>(*args.get<Buffer>(i))); };
    Mixed<T> m = Arrange<T>(setup, args, 0, read(operands), read(operands + 1));
    Mixed<T> t = Arrange<T>(setup, args, operands + 2, Out<T>(z_t), Out<T>(moments_t));
    Entrance<T> in(m.lanes, m.batch);
    Enter(m, in), Enter(t, in), in.Run(pool);
    Forward(pool, MixedPair<T>{m, t}, Out<T>(mixed_t));
  });
}

// Arguments: the operands, z, moments and the gradient; and the tangents of all of them.
// Results: the tangents of the gradients of weights and x, after a scratch array.
ffi::Error RunBackward(ffi::ThreadPool pool, ffi::Span<const int64_t> plan,
                       ffi::Span<const int64_t> shared, int64_t stride, bool affine,
                       double epsilon, ffi::RemainingArgs args, ffi::RemainingRets rets) {
  return WithType(*args.get<Buffer>(0), [&](auto zero) {
    using T = decltype(zero);
    const Setup setup{plan, shared, stride, affine, epsilon};
    const size_t half = args.size() / 2, kept = half - 3;
    const auto read = [&](size_t i) { return const_cast<T*>(In<T>(*args.get<Buffer>(i))); };
    const auto result = [&](size_t i) {
      return static_cast<T*>((*rets.get<Buffer>(i))->untyped_data());
    };
    Mixed<T> m = Arrange<T>(setup, args, 0, read(kept), read(kept + 1));
    Mixed<T> t = Arrange<T>(setup, args, half, read(half + kept), read(half + kept + 1));
    Entrance<T> in(m.lanes, m.batch);
    const auto take = [&](size_t i) {
      return in.Take(read(i), m.Rows(), m.numbers / m.batch);
    };
    const T *gradient = take(kept + 2), *gradient_t = take(half + kept + 2);
    Enter(m, in), Enter(t, in), in.Run(pool);
    Backward(pool, MixedPair<T>{m, t}, gradient, gradient_t, result(1), result(2), result(0));
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(MixedForwardTangent, RunForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("plan")
                                  .Attr<ffi::Span<const int64_t>>("shared")
                                  .Attr<int64_t>("stride")
                                  .Attr<bool>("affine")
                                  .Attr<double>("epsilon")
                                  .RemainingArgs()
                                  .Ret<Buffer>()   // of mixed [n, C', B, H', W']
                                  .Ret<Buffer>()   // of z of all branches
                                  .Ret<Buffer>());  // of the moments of all norms

XLA_FFI_DEFINE_HANDLER_SYMBOL(MixedBackwardTangent, RunBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("plan")
                                  .Attr<ffi::Span<const int64_t>>("shared")
                                  .Attr<int64_t>("stride")
                                  .Attr<bool>("affine")
                                  .Attr<double>("epsilon")
                                  .RemainingArgs()
                                  .RemainingRets());
