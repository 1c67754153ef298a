// Many arrays as one vector, and back: copies, in order. Of several rows each has its own.

#include <cstring>

#include "buffers.h"

namespace {

using namespace planes;

ffi::Error RunPack(ffi::RemainingArgs parts, Result whole, int64_t rows) {
  char* to = Out<char>(whole);
  for (int64_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto part = parts.get<Buffer>(i);
      if (part.has_error()) return part.error();
      const size_t bytes = part->size_bytes() / rows;
      std::memcpy(to, In<char>(*part) + row * bytes, bytes);
      to += bytes;
    }
  }
  return ffi::Error::Success();
}

ffi::Error RunUnpack(Buffer whole, ffi::RemainingRets parts, int64_t rows) {
  const char* from = In<char>(whole);
  for (int64_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < parts.size(); ++i) {
      auto part = parts.get<Buffer>(i);
      if (part.has_error()) return part.error();
      const size_t bytes = (*part)->size_bytes() / rows;
      std::memcpy(Out<char>(*part) + row * bytes, from, bytes);
      from += bytes;
    }
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(Pack, RunPack,
                              ffi::Ffi::Bind()
                                  .RemainingArgs()  // the arrays
                                  .Ret<Buffer>()    // the vector, or a row of each
                                  .Attr<int64_t>("rows"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(Unpack, RunUnpack,
                              ffi::Ffi::Bind()
                                  .Arg<Buffer>()  // the vector, or a row of each
                                  .RemainingRets()  // the arrays
                                  .Attr<int64_t>("rows"));
