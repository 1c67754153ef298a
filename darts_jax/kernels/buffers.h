// XLA's buffers as typed pointers.

#ifndef DARTS_JAX_KERNELS_BUFFERS_H_
#define DARTS_JAX_KERNELS_BUFFERS_H_

#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace planes {

namespace ffi = xla::ffi;

using Buffer = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

template <typename T>
const T* In(ffi::AnyBuffer b) {
  return static_cast<const T*>(b.untyped_data());
}

template <typename T>
T* Out(ffi::Result<ffi::AnyBuffer> b) {
  return static_cast<T*>(b->untyped_data());
}

// The numbers that this library computes with, float or double: one of each is built where
// needed (compiled.py), since both together take twice as long to compile.
using Number = DARTS_JAX_NUMBER;
constexpr ffi::DataType kNumber = std::is_same_v<Number, float> ? ffi::F32 : ffi::F64;

// Calls f with a number of the buffer's type.
template <typename F>
inline ffi::Error WithType(ffi::AnyBuffer x, F f) {
  if (x.element_type() != kNumber) {
    return ffi::Error::InvalidArgument("this library is for another precision");
  }
  f(Number());
  return ffi::Error::Success();
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_BUFFERS_H_
