// One way to launch a kernel on a stream of the current device, or on the simulator.
#pragma once

#include "status.h"
#include "stream.h"
#include "types.cuh"

namespace mvk {

struct LaunchShape {
  std::int64_t blocks_x;
  int blocks_y;
  int threads;       // a multiple of 32
  int shared_bytes;  // dynamic shared memory of a block
  int cluster = 1;   // blocks of a cluster, along x: at most 8, a divisor of blocks_x; more than one needs sm_90
};

}  // namespace mvk

#ifdef MVK_SIMT
#include "../simt/launch.h"
#else

#include <atomic>
#include <cstring>

namespace mvk {

// Shared memory that a block may have on the current device, in bytes, or a negative cudaError_t.
inline int shared_memory_limit() {
  int device = 0;
  int limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return error == cudaSuccess ? limit : -static_cast<int>(error);
}

// Multiprocessors of the current device; 1 where it does not tell.
inline int multiprocessor_count() {
  int device = 0;
  int count = 1;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return error == cudaSuccess ? count : 1;
}

// Whether this build has code for sm_90a, and the current device runs it.
inline bool runs_sm_90a() {
  int device = 0;
  int major = 0;
  int minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return error == cudaSuccess && major == 9 && minor == 0 && std::strstr(MVK_ARCHITECTURES, "90a") != nullptr;
}

// Launches kKernel(params). Works under stream capture: nothing here synchronises or allocates.
template <auto kKernel, class Params>
Status launch(const char* name, const LaunchShape& shape, Stream stream, const Params& params) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess)
    return fail(Status::kUnsupported, "%s: no CUDA device: %s", name, cudaGetErrorString(error));
  // A kernel has to ask for more than 48 KB once a device; a bit a device remembers that it did.
  static std::atomic<std::uint64_t> prepared{0};
  // Another bit where the kernel's code knows clusters and how to wait: compiled for sm_90 or newer, and running there.
  static std::atomic<std::uint64_t> knows_sm_90{0};
  const std::uint64_t bit = std::uint64_t{1} << (device % 64);
  if ((prepared.load(std::memory_order_relaxed) & bit) == 0 || device >= 64) {
    const int limit = shared_memory_limit();
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, kKernel);
    if (error == cudaSuccess && limit > 0) {
      error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   limit - static_cast<int>(attributes.sharedSizeBytes));
    }
    if (error != cudaSuccess) {
      cudaGetLastError();
      int major = 0;
      int minor = 0;
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      return fail(Status::kUnsupported, "%s: device %d has compute capability %d.%d and this build is for %s: %s", name,
                  device, major, minor, MVK_ARCHITECTURES, cudaGetErrorString(error));
    }
    int major = 0;
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess && major >= 9 && attributes.ptxVersion >= 90) {
      knows_sm_90.fetch_or(bit, std::memory_order_relaxed);
    }
    prepared.fetch_or(bit, std::memory_order_relaxed);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = stream.handle;
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  const bool on_sm_90 = (knows_sm_90.load(std::memory_order_relaxed) & bit) != 0;
  if (shape.cluster > 1) {
    if (!on_sm_90) {
      return fail(Status::kUnsupported,
                  "%s: clusters need a GPU of compute capability 9.0 and a build for it, this is %s", name,
                  MVK_ARCHITECTURES);
    }
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (stream.overlaps && on_sm_90) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  config.attrs = attributes;
  config.numAttrs = count;
  error = cudaLaunchKernelEx(&config, kKernel, params);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return fail(Status::kLaunchFailed, "%s: %s", name, cudaGetErrorString(error));
  }
  return Status::kOk;
}

}  // namespace mvk

#endif
