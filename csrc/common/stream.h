// The stream of a launch, in what a plain C++ compiler understands.
#pragma once

#ifndef MVK_SIMT
#include <cuda_runtime_api.h>
#endif

namespace mvk {

struct Stream {
#ifdef MVK_SIMT
  void* handle = nullptr;
#else
  cudaStream_t handle = nullptr;
#endif
  // The launch may begin while the one before it in the stream still runs (common/overlap.cuh). To be set only where
  // that one is a kernel of this library.
  bool overlaps = false;
};

}  // namespace mvk
