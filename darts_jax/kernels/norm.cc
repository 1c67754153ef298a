// What a batch norm needs of its input and of its gradient, each in one pass.

#include "buffers.h"
#include "moments.h"
#include "parallel.h"

namespace {

using namespace planes;

// For every row: the sum of gradient * z and the sum of gradient.
template <typename T>
void SumsOf(ffi::ThreadPool& pool, int64_t rows, int64_t numbers, const T* gradient, const T* z,
            T* products, T* sums) {
  ParallelFor(pool, rows, 1, [=](int64_t row, int64_t) {
    double product = 0, sum = 0;
    for (int64_t at = 0; at < numbers; at += kPiece) {
      const T *g = gradient + row * numbers + at, *v = z + row * numbers + at;
      const int64_t count = std::min(kPiece, numbers - at);
      product += Sum<T>(
          count, [=](int64_t i, auto as) { return Read(g + i, as) * Read(v + i, as); });
      sum += Sum<T>(count, [=](int64_t i, auto as) { return Read(g + i, as); });
    }
    products[row] = product;
    sums[row] = sum;
  });
}

ffi::Error RunSums(ffi::ThreadPool pool, Buffer gradient, Buffer z, Result products,
                   Result sums) {
  return WithType(z, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = products->element_count(), numbers = gradient.element_count() / rows;
    SumsOf<T>(pool, rows, numbers, In<T>(gradient), In<T>(z), Out<T>(products), Out<T>(sums));
  });
}

ffi::Error RunMoments(ffi::ThreadPool pool, Buffer x, Result mean, Result variance) {
  return WithType(x, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = mean->element_count();
    const int64_t numbers = x.element_count() / rows;
    const T* from = In<T>(x);
    T *means = Out<T>(mean), *variances = Out<T>(variance);
    ParallelFor(pool, rows, 1, [=](int64_t row, int64_t) {
      MomentsOf(from + row * numbers, numbers, means + row, variances + row);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(Sums, RunSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()   // gradient
                                  .Arg<Buffer>()   // z
                                  .Ret<Buffer>()   // products
                                  .Ret<Buffer>());  // sums

XLA_FFI_DEFINE_HANDLER_SYMBOL(Moments, RunMoments,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()   // x
                                  .Ret<Buffer>()   // mean
                                  .Ret<Buffer>());  // variance
