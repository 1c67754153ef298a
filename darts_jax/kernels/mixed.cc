// The mixed operations of one source state and their gradient: see mixed.h.

#include "dense_stage.h"
#include "mixed.h"
#include "stage_gradient.h"

namespace {

using namespace planes;

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
        const T root = InverseRoot(norm.variance[own], m.epsilon);
        constant += factor * (norm.Beta(own) - norm.Gamma(own) * root * norm.mean[own]);
        factor *= norm.Gamma(own) * root;
      }
      from.push_back(branch.z + own * m.numbers);
      factors.push_back(factor);
    }
    CombineRow(m, from, factors, constant, m.numbers, mixed + row * m.numbers);
  });
}

// A shared value and its moments.
template <typename T>
Job SharedJob(const Mixed<T>& m, const Branch<T>& branch) {
  const auto run = [&m, &branch](int64_t c) {
    T* const z = branch.z + c * m.numbers;
    if (branch.pool != Pool::kIdentity) {
      Recycled<T> room(m.pooling.Room(), false);
      const T* x = m.x + c * m.pixels;
      ForGroups(m, [&](int64_t in, int64_t out) {
        m.pooling.Forward(branch.pool, x + in, z + out, room.data());
      });
    }
    const Norm<T>& norm = branch.norm;
    if (norm.rows) MomentsOf(z, m.numbers, norm.mean + c, norm.variance + c);
  };
  return {branch.rows, run, nullptr};
}

template <typename T>
void Forward(ffi::ThreadPool& pool, const Mixed<T>& m, T* mixed) {
  for (size_t i = 0; i < m.Links(); ++i) {
    std::vector<Job> jobs;
    std::vector<std::vector<T>> maps(m.branches.size());
    for (size_t p = 0; p < m.branches.size(); ++p) {
      const Branch<T>& branch = m.branches[p];
      if (i < branch.links.size()) {
        const Link<T>& link = branch.links[i];
        const StageInput<T> from = InputOf(m, branch, i, maps[p]);
        WithTiles<T>(link.stage, m.lanes, [&](const auto& tiles) {
          const Norm<T>& norm = link.norm;
          jobs.push_back(
              link.Dense()
                  ? DenseForwardJob(tiles, from, link.kernels.taps, link.z, norm.mean,
                                    norm.variance)
                  : ForwardJob(tiles, from, link.kernels, link.z, norm.mean, norm.variance));
        });
      } else if (i == 0) {
        jobs.push_back(SharedJob(m, branch));
      }
    }
    RunJobs(pool, jobs);
  }
  WeightedSum(pool, m, mixed);
}

// Where the gradients of a link's operands go; null: not wanted, or not there.
template <typename T>
struct LinkGradients {
  T *taps, *mix, *scale, *shift;
};

template <typename T>
struct Gradients {
  T *x, *weights;
  std::vector<std::vector<LinkGradients<T>>> links;  // of every branch
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
      const ThroughNorm<T> back(branch.norm.mean[own], branch.norm.variance[own], m.epsilon,
                                T(m.numbers), products[row], sums[row], weight * gamma);
      into.a[row] = back.a, into.alpha[row] = back.alpha, into.beta[row] = back.beta;
      share = gamma * back.projected + branch.norm.Beta(own) * sums[row];
      if (dscale) dscale[row] = weight * back.projected;
      if (dshift) dshift[row] = weight * sums[row];
    }
    dweights[edge * m.branches.size() + p] += share;
  }
  return into;
}

// The gradient of channel c of a value that all edges share.
template <typename T>
void ToShared(const Mixed<T>& m, const Branch<T>& branch, const Coefficients<T>& into,
              const T* gradient, int64_t c, T* dshared) {
  std::vector<const T*> from;
  std::vector<T> factors;
  T constant = 0, beta = 0;
  for (int64_t row = c; row < m.Rows(); row += branch.rows) {
    from.push_back(gradient + row * m.numbers);
    factors.push_back(into.a[row]);
    constant += into.alpha[row], beta += into.beta[row];
  }
  from.push_back(branch.z + c * m.numbers), factors.push_back(beta);
  Combine(from, factors, constant, m.numbers, dshared);
}

// What is known of a branch on the way back.
template <typename T>
struct WayBack {
  Coefficients<T> into;
  const T* gradient;       // that reaches the z of the link in turn
  T* between;              // room for the gradient of what its second link reads
  const std::vector<LinkGradients<T>>& to;
  std::vector<T> maps, dscale, dshift;

  // What reaches link i - 1 through its norm, and the gradients of the norm's own operands.
  // `between` holds the norm's scale already, so that a is one.
  void ThroughNormBefore(const Mixed<T>& m, const Branch<T>& branch, size_t i) {
    const Norm<T>& norm = branch.links[i - 1].norm;
    const T count = branch.links[i].stage.batch * branch.links[i].stage.in;
    into = Coefficients<T>(norm.rows);
    for (int64_t row = 0; row < norm.rows; ++row) {
      const ThroughNorm<T> back(norm.mean[row], norm.variance[row], m.epsilon, count,
                                dscale[row], dshift[row], norm.Gamma(row));
      into.a[row] = 1, into.alpha[row] = back.alpha, into.beta[row] = back.beta;
      if (to[i - 1].scale) {
        to[i - 1].scale[row] = back.projected;
        to[i - 1].shift[row] = dshift[row];
      }
    }
    gradient = between;
  }
};

// The gradient of link i of a branch.
template <typename T>
Job LinkBackward(const Mixed<T>& m, const Branch<T>& branch, size_t i, T* dx, bool add,
                 WayBack<T>& way) {
  const Link<T>& link = branch.links[i];
  way.dscale.assign(link.stage.Inputs(), T(0)), way.dshift = way.dscale;
  const StageGradients<T> found{i ? way.between : dx, add, i ? way.dscale.data() : nullptr,
                                i ? way.dshift.data() : nullptr, way.to[i].taps,
                                way.to[i].mix};
  const Incoming<T> incoming{link.z, way.gradient, way.into.a.data(), way.into.alpha.data(),
                             way.into.beta.data()};
  const StageInput<T> from = InputOf(m, branch, i, way.maps);
  Job job;
  WithTiles<T>(link.stage, m.lanes, [&](const auto& tiles) {
    job = link.Dense() ? DenseBackwardJob(tiles, from, link.kernels.taps, incoming, found)
                       : BackwardJob(tiles, from, link.kernels, incoming, found);
  });
  return job;
}

// The gradient of x through all shared values.
template <typename T>
Job SharedBackward(const Mixed<T>& m, const std::vector<WayBack<T>>& ways, const T* gradient,
                   T* dx) {
  const auto run = [=, &m, &ways](int64_t c) {
    const T* x = m.x + c * m.pixels;
    T* const to = dx + c * m.pixels;
    std::fill(to, to + m.pixels, T(0));
    Recycled<T> sent(m.numbers, false), room(m.pooling.Room(), false);
    for (size_t p = 0; p < m.branches.size(); ++p) {
      const Branch<T>& branch = m.branches[p];
      if (!branch.links.empty()) continue;
      T* const dy = sent.data();
      ToShared(m, branch, ways[p].into, gradient, c, dy);
      if (branch.pool == Pool::kIdentity) {
        for (int64_t i = 0; i < m.numbers; ++i) to[i] += dy[i];
        continue;
      }
      ForGroups(m, [&](int64_t in, int64_t out) {
        m.pooling.Backward(branch.pool, x + in, dy + out, to + in, room.data());
      });
    }
  };
  return {m.channels, run, nullptr};
}

template <typename T>
void Backward(ffi::ThreadPool& pool, const Mixed<T>& m, const T* gradient,
              const Gradients<T>& to, T* scratch) {
  const int64_t rows = m.Rows();
  const size_t branches = m.branches.size();
  std::vector<T> products(branches * rows), sums(rows);
  GradientSums(pool, m, gradient, products.data(), sums.data());
  std::fill(to.weights, to.weights + m.edges * branches, T(0));
  std::vector<WayBack<T>> ways;
  for (size_t p = 0; p < branches; ++p) {
    const std::vector<Link<T>>& links = m.branches[p].links;
    const LinkGradients<T> last = links.empty() ? LinkGradients<T>{} : to.links[p].back();
    ways.push_back({ThroughLastNorm(m, p, &products[p * rows], sums.data(), to.weights,
                                    last.scale, last.shift),
                    gradient, scratch, to.links[p], {}, {}, {}});
    if (links.size() > 1) scratch += links[1].stage.Inputs() * links[1].stage.batch *
                                     links[1].stage.in;
  }
  if (!to.x) return;
  // Large images: all add to the gradient of x in turn. Small ones, of which there are few
  // groups: each has an array of its own, and the sum is put into the program's order.
  std::deque<Recycled<T>> parts;
  const auto room = [&] {
    if (!m.lanes) return to.x;
    parts.emplace_back(m.channels * m.pixels, false);
    return parts.back().data();
  };
  std::vector<Job> jobs;
  bool add = m.branches.back().links.empty();
  if (add) jobs.push_back(SharedBackward(m, ways, gradient, room()));
  for (size_t i = m.Links(); i-- > 1;) {
    for (size_t p = 0; p < branches; ++p) {
      if (i >= m.branches[p].links.size()) continue;
      jobs.push_back(LinkBackward<T>(m, m.branches[p], i, nullptr, false, ways[p]));
    }
    RunJobs(pool, jobs), jobs.clear();
    for (size_t p = 0; p < branches; ++p) {
      if (i >= m.branches[p].links.size()) continue;
      ways[p].ThroughNormBefore(m, m.branches[p], i);
    }
  }
  RunJobs(pool, jobs), jobs.clear();
  for (size_t p = 0; p < branches; ++p) {
    if (m.branches[p].links.empty()) continue;
    jobs.push_back(LinkBackward(m, m.branches[p], 0, room(), add && !m.lanes, ways[p]));
    add = true;
  }
  RunJobs(pool, jobs, !m.lanes);
  if (!m.lanes) return;
  ParallelFor(pool, m.channels, 1, [&](int64_t c, int64_t) {
    std::vector<const T*> from;
    for (Recycled<T>& part : parts) from.push_back(part.data() + c * m.pixels);
    CombineRow(m, from, std::vector<T>(from.size(), T(1)), T(0), m.pixels,
               to.x + c * m.pixels);
  });
}

ffi::Error RunForward(ffi::ThreadPool pool, ffi::Span<const int64_t> plan,
                      ffi::Span<const int64_t> shared, int64_t stride, bool affine,
                      double epsilon, ffi::RemainingArgs args, Result mixed, Result z,
                      Result moments) {
  return WithType(*mixed, [&](auto zero) {
    using T = decltype(zero);
    const Setup setup{plan, shared, stride, affine, epsilon};
    Mixed<T> m = Arrange<T>(setup, args, 0, Out<T>(z), Out<T>(moments));
    Entrance<T> in(m.lanes, m.batch);
    Enter(m, in), in.Run(pool);
    Forward(pool, m, Out<T>(mixed));
  });
}

// After the operands of the forward pass: its z and moments, and the gradient. Results: the
// gradients of weights; if `wanted` is 1 or more a scratch array and the gradient of x; if it
// is 2 those of the stages' operands.
ffi::Error RunBackward(ffi::ThreadPool pool, ffi::Span<const int64_t> plan,
                       ffi::Span<const int64_t> shared, int64_t stride, bool affine,
                       double epsilon, int64_t wanted, ffi::RemainingArgs args,
                       ffi::RemainingRets rets) {
  const size_t size = args.size();
  const auto last = [&](size_t i) { return args.get<Buffer>(size - i).value(); };
  return WithType(last(1), [&](auto zero) {
    using T = decltype(zero);
    const auto result = [&](size_t i) {
      return static_cast<T*>((*rets.get<Buffer>(i))->untyped_data());
    };
    const Setup setup{plan, shared, stride, affine, epsilon};
    // Arranged as in the forward pass, where z and moments were written; here they are read.
    Mixed<T> m = Arrange<T>(setup, args, 0, const_cast<T*>(In<T>(last(3))),
                            const_cast<T*>(In<T>(last(2))));
    Entrance<T> in(m.lanes, m.batch);
    const T* gradient = in.Take(In<T>(last(1)), m.Rows(), m.numbers / m.batch);
    Enter(m, in), in.Run(pool);
    Gradients<T> to{nullptr, result(0), {}};
    T* scratch = nullptr;
    if (wanted >= 1) {
      scratch = result(1), to.x = result(2);
    }
    size_t next = 3;
    const auto take = [&](bool there) {
      return there && wanted >= 2 ? result(next++) : nullptr;
    };
    for (const Branch<T>& branch : m.branches) {
      to.links.emplace_back();
      for (const Link<T>& link : branch.links) {
        T *const taps = take(true), *const mix = take(!link.Dense());
        T *const scale = take(affine), *const shift = take(affine);
        to.links.back().push_back({taps, mix, scale, shift});
      }
    }
    Backward(pool, m, gradient, to, scratch);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(MixedForward, RunForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<ffi::Span<const int64_t>>("plan")
                                  .Attr<ffi::Span<const int64_t>>("shared")
                                  .Attr<int64_t>("stride")
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
                                  .Attr<ffi::Span<const int64_t>>("shared")
                                  .Attr<int64_t>("stride")
                                  .Attr<bool>("affine")
                                  .Attr<double>("epsilon")
                                  .Attr<int64_t>("wanted")
                                  .RemainingArgs()
                                  .RemainingRets());
