// What a launcher returns: a code, and for anything but kOk a message of the calling thread.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace mvk {

enum class Status : int {
  kOk = 0,
  kInvalidArgument = 1,  // a size, a pointer or an option that the stage cannot serve
  kUnsupported = 2,      // this GPU, or this build of the library, cannot run the kernel
  kLaunchFailed = 3,     // the CUDA runtime refused the launch
  kSimulator = 4,        // the simulator found a fault in the kernel
};

inline char* error_buffer() {
  static thread_local char buffer[4096];
  return buffer;
}

inline const char* last_error() { return error_buffer(); }

__attribute__((format(printf, 2, 3))) inline Status fail(Status status, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(error_buffer(), 4096, format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace mvk
