// Launches on the simulator; the stream is ignored.
#pragma once

#include <string>

#include "../common/launch.cuh"
#include "runtime.h"

#define __global__
#define __launch_bounds__(...)

namespace mvk {

inline int shared_memory_limit() { return simt::options().shared_limit; }
inline int multiprocessor_count() { return simt::options().multiprocessors; }
inline bool runs_sm_90a() { return true; }

template <auto kKernel, class Params>
Status launch(const char* name, const LaunchShape& shape, Stream, const Params& params) {
  std::string report;
  const auto entry = [](const void* pointer) { kKernel(*static_cast<const Params*>(pointer)); };
  const simt::Grid grid{shape.blocks_x, shape.blocks_y, shape.threads, shape.shared_bytes, shape.cluster};
  if (simt::run(name, grid, entry, &params, report)) return Status::kOk;
  return fail(Status::kSimulator, "%s", report.c_str());
}

}  // namespace mvk
