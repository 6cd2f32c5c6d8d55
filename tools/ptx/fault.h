// What the interpreter throws: the program did something that the PTX ISA forbids, or that is not implemented here.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace ptx {

__attribute__((format(printf, 1, 2))) inline std::string format(const char* pattern, ...) {
  char text[2048];
  std::va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  return text;
}

class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace ptx
