// Many arrays as one vector, and back: copies, in order.

#include <cstring>

#include "buffers.h"

namespace {

using namespace planes;

ffi::Error RunPack(ffi::RemainingArgs parts, Result whole) {
  char* to = Out<char>(whole);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto part = parts.get<Buffer>(i);
    if (part.has_error()) return part.error();
    std::memcpy(to, In<char>(*part), part->size_bytes());
    to += part->size_bytes();
  }
  return ffi::Error::Success();
}

ffi::Error RunUnpack(Buffer whole, ffi::RemainingRets parts) {
  const char* from = In<char>(whole);
  for (size_t i = 0; i < parts.size(); ++i) {
    auto part = parts.get<Buffer>(i);
    if (part.has_error()) return part.error();
    std::memcpy(Out<char>(*part), from, (*part)->size_bytes());
    from += (*part)->size_bytes();
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(Pack, RunPack,
                              ffi::Ffi::Bind()
                                  .RemainingArgs()
                                  .Ret<Buffer>());  // the vector

XLA_FFI_DEFINE_HANDLER_SYMBOL(Unpack, RunUnpack,
                              ffi::Ffi::Bind()
                                  .Arg<Buffer>()  // the vector
                                  .RemainingRets());
