// The stream of a launch, in what a plain C++ compiler understands.
#pragma once

#ifndef MVK_SIMT
#include <cuda_runtime_api.h>
#endif

namespace mvk {

#ifdef MVK_SIMT
using Stream = void*;
#else
using Stream = cudaStream_t;
#endif

}  // namespace mvk
