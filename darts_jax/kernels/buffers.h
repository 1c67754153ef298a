// XLA's buffers as typed pointers.

#ifndef DARTS_JAX_KERNELS_BUFFERS_H_
#define DARTS_JAX_KERNELS_BUFFERS_H_

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

// Calls f with a number of the buffers' type.
template <typename F>
inline ffi::Error WithType(ffi::AnyBuffer x, F f) {
  if (x.element_type() == ffi::F32) {
    f(float());
  } else if (x.element_type() == ffi::F64) {
    f(double());
  } else {
    return ffi::Error::InvalidArgument("the kernels take float32 or float64");
  }
  return ffi::Error::Success();
}

}  // namespace planes

#endif  // DARTS_JAX_KERNELS_BUFFERS_H_
