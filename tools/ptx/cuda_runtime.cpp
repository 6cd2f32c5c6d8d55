// A stand-in for the part of the CUDA runtime that the extension calls: one device, an H200 as far as it is asked,
// whose kernels are the PTX in the extension's own fat binaries. A launch checks what the runtime and the driver would,
// then interprets the kernel. What goes wrong is the text of the error.
//
// The functions ptx_… are for the tests: which memory a launch may touch, and what was executed.
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "machine.h"

namespace {

constexpr int kMultiprocessors = 132;
constexpr int kSharedBytes = 232448;          // a block's at most, after opting in
constexpr int kSharedBytesBefore = 48 << 10;  // without
constexpr int kRegisters = 65536;             // of a block
constexpr int kMaxClusterBlocks = 8;
constexpr int kMaxParameterBytes = 32764;

// A fat binary: read when one of its kernels is asked for.
struct Binary {
  const void* data;
  std::unique_ptr<ptx::Module> module;
};

struct Function {
  Binary* binary;
  std::string name;
  ptx::Kernel* kernel = nullptr;
  int dynamic_shared_bytes = kSharedBytesBefore;
  std::uint64_t launches = 0;
  int registers = 0;
};

struct State {
  std::mutex mutex;
  std::vector<std::unique_ptr<Binary>> binaries;
  std::map<const void*, Function> functions;  // by the address of the host's stub
  ptx::GlobalMemory memory;
  std::uint32_t seed = 0;
  int ptx_version = 0;  // reported for all kernels; 0: what they were compiled for
  int device = 0;
};

// Made when the first fat binary is registered, which is before main and before this file's own variables.
State& state() {
  static State the_state;
  return the_state;
}

// The runtime's "last error", and what the last one was about.
thread_local cudaError_t last_error = cudaSuccess;
thread_local std::pair<cudaError_t, std::string> last_message;

cudaError_t refuse(cudaError_t error, const std::string& message) {
  last_error = error;
  last_message = {error, message};
  return error;
}

// What nvcc puts around a fat binary, and its parts; see __fatBinC_Wrapper_t in the toolkit's fatbinary_section.h.
struct Wrapper {
  std::uint32_t magic, version;
  const void* data;
};
struct Header {
  std::uint32_t magic;
  std::uint16_t version, header_bytes;
  std::uint64_t bytes;  // behind the header
};
struct Entry {
  std::uint16_t kind, version;
  std::uint32_t header_bytes;
  std::uint64_t bytes;  // behind this entry's header
};
constexpr std::uint32_t kHeaderMagic = 0xba55ed50;
constexpr std::uint16_t kPtx = 1;

std::string ptx_of(const void* data) {
  const char* const begin = static_cast<const char*>(data);
  Header header;
  std::memcpy(&header, begin, sizeof(header));
  if (header.magic != kHeaderMagic) throw ptx::Fault("the fat binary has another format than that of nvcc 13");
  const char* const end = begin + header.header_bytes + header.bytes;
  for (const char* at = begin + header.header_bytes; at < end;) {
    Entry entry;
    std::memcpy(&entry, at, sizeof(entry));
    if (entry.kind == kPtx) return std::string(at + entry.header_bytes, entry.bytes);
    at += entry.header_bytes + entry.bytes;
  }
  throw ptx::Fault("the fat binary has no PTX; compile with code=compute_90a and --compress-mode=none");
}

ptx::Kernel& kernel_of(Function& function) {
  if (function.kernel == nullptr) {
    Binary& binary = *function.binary;
    if (binary.module == nullptr) binary.module = ptx::parse(ptx_of(binary.data));
    for (const auto& kernel : binary.module->kernels) {
      if (kernel->name == function.name) function.kernel = kernel.get();
    }
    if (function.kernel == nullptr) throw ptx::Fault("the fat binary has no kernel " + function.name);
  }
  return *function.kernel;
}

Function* find(const void* host) {
  const auto found = state().functions.find(host);
  return found == state().functions.end() ? nullptr : &found->second;
}

// Blocks of a cluster along x that the launch asks for, or a problem.
int cluster_of(const cudaLaunchConfig_t& config, std::string* problem) {
  int cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      cluster = static_cast<int>(attribute.val.clusterDim.x);
      if (attribute.val.clusterDim.y != 1 || attribute.val.clusterDim.z != 1) *problem = "a cluster along y or z";
    } else if (attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization) {
      *problem = ptx::format("launch attribute %d, which is not known here", static_cast<int>(attribute.id));
    }
  }
  return cluster;
}

// What a real launch would refuse; empty where nothing.
std::string problem_of(const cudaLaunchConfig_t& config, int cluster, const Function& function,
                       const ptx::Kernel& kernel) {
  const auto threads = static_cast<long long>(config.blockDim.x) * config.blockDim.y * config.blockDim.z;
  if (config.gridDim.x < 1 || config.gridDim.x > 0x7fffffffu || config.gridDim.y < 1 || config.gridDim.y > 65535 ||
      config.gridDim.z != 1) {
    return ptx::format("a grid of %u × %u × %u blocks", config.gridDim.x, config.gridDim.y, config.gridDim.z);
  }
  if (threads < 1 || threads > kernel.max_threads || config.blockDim.x != threads || threads % ptx::kLanes != 0) {
    return ptx::format("%lld threads, where the kernel has launch bounds of %d", threads, kernel.max_threads);
  }
  if (config.dynamicSmemBytes > static_cast<std::size_t>(function.dynamic_shared_bytes)) {
    return ptx::format("%zu bytes of dynamic shared memory, where the kernel may have %d", config.dynamicSmemBytes,
                       function.dynamic_shared_bytes);
  }
  if (cluster < 1 || cluster > kMaxClusterBlocks || config.gridDim.x % static_cast<unsigned>(cluster) != 0) {
    return ptx::format("clusters of %d blocks in a grid of %u", cluster, config.gridDim.x);
  }
  // Registers are allocated 8 a thread, and to four warps at a time.
  const long long allocated = (function.registers + 7) / 8 * 8 * ((threads + 127) / 128 * 128);
  if (allocated > kRegisters) return ptx::format("%lld registers a block", allocated);
  if (kernel.parameter_bytes > kMaxParameterBytes) return ptx::format("%d bytes of parameters", kernel.parameter_bytes);
  if (config.stream != nullptr) return "a stream that was not made here";
  return "";
}

}  // namespace

extern "C" {

// --- what nvcc's host code calls -------------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void* wrapper) {
  State& the_state = state();
  the_state.binaries.push_back(std::make_unique<Binary>());
  the_state.binaries.back()->data = static_cast<const Wrapper*>(wrapper)->data;
  return reinterpret_cast<void**>(the_state.binaries.back().get());
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  Function& function = state().functions[host];
  function.binary = reinterpret_cast<Binary*>(binary);
  function.name = name;
}

// Stubs of <<<…>>> launches, of which the library has none.
unsigned __cudaPopCallConfiguration(dim3*, dim3*, std::size_t*, void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, std::size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }

// --- the runtime -----------------------------------------------------------------------------------------------------

cudaError_t cudaGetDevice(int* device) {
  *device = state().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : refuse(cudaErrorInvalidDevice, "there is device 0 alone");
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return refuse(cudaErrorInvalidDevice, "there is device 0 alone");
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedBytes;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return refuse(cudaErrorNotSupported, ptx::format("device attribute %d", static_cast<int>(attribute)));
  }
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* host) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  Function* const function = find(host);
  if (function == nullptr) return refuse(cudaErrorInvalidDeviceFunction, "a function that was not registered");
  try {
    const ptx::Kernel& kernel = kernel_of(*function);
    const int target = state().ptx_version != 0 ? state().ptx_version : function->binary->module->target;
    *attributes = {};
    attributes->maxThreadsPerBlock = kernel.max_threads;
    attributes->maxDynamicSharedSizeBytes = function->dynamic_shared_bytes;
    attributes->numRegs = function->registers;
    attributes->ptxVersion = target;
    attributes->binaryVersion = target;
    return cudaSuccess;
  } catch (const ptx::Fault& fault) {
    return refuse(cudaErrorInvalidPtx, fault.what());
  }
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  Function* const function = find(host);
  if (function == nullptr) return refuse(cudaErrorInvalidDeviceFunction, "a function that was not registered");
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > kSharedBytes) {
    return refuse(cudaErrorInvalidValue, ptx::format("function attribute %d: %d", static_cast<int>(attribute), value));
  }
  function->dynamic_shared_bytes = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host, void** arguments) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  Function* const function = find(host);
  if (function == nullptr) return refuse(cudaErrorInvalidDeviceFunction, "a function that was not registered");
  try {
    ptx::Kernel& kernel = kernel_of(*function);
    std::string problem;
    const int cluster = cluster_of(*config, &problem);
    if (problem.empty()) problem = problem_of(*config, cluster, *function, kernel);
    if (!problem.empty()) {
      return refuse(cudaErrorInvalidConfiguration, "the launch is refused: " + problem);
    }
    ptx::Grid grid;
    grid.blocks_x = static_cast<int>(config->gridDim.x);
    grid.blocks_y = static_cast<int>(config->gridDim.y);
    grid.threads = static_cast<int>(config->blockDim.x);
    grid.cluster = cluster;
    grid.shared_bytes = static_cast<int>(config->dynamicSmemBytes);
    grid.parameters = arguments[0];
    ++function->launches;
    ptx::run(kernel, grid, state().memory, state().seed);
    return cudaSuccess;
  } catch (const ptx::Fault& fault) {
    return refuse(cudaErrorLaunchFailure, fault.what());
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  static thread_local std::string text;
  text = error == last_message.first ? last_message.second : ptx::format("error %d", static_cast<int>(error));
  return text.c_str();
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

// --- for the tests ---------------------------------------------------------------------------------------------------

#define PTX_EXPORT __attribute__((visibility("default")))

// `kind`: ptx::BufferKind.
PTX_EXPORT void ptx_add_buffer(const char* name, std::uint64_t address, std::uint64_t size, int kind) {
  state().memory.add(name, address, size, static_cast<ptx::BufferKind>(kind));
}
PTX_EXPORT void ptx_clear_buffers() { state().memory.clear(); }
PTX_EXPORT void ptx_set_seed(std::uint32_t seed) { state().seed = seed; }
// What cudaFuncGetAttributes says that kernels were compiled for; to be set before the first launch.
PTX_EXPORT void ptx_set_version(int version) { state().ptx_version = version; }

PTX_EXPORT int ptx_kernels() { return static_cast<int>(state().functions.size()); }
PTX_EXPORT const char* ptx_kernel_name(int index) {
  return std::next(state().functions.begin(), index)->second.name.c_str();
}
// Registers of a thread, as ptxas allocates them.
PTX_EXPORT void ptx_set_registers(int index, int registers) {
  std::next(state().functions.begin(), index)->second.registers = registers;
}
// Runs the first kernel of a module's text, without the extension; what went wrong, or an empty text.
PTX_EXPORT const char* ptx_run(const char* text, int blocks, int threads, int cluster, int shared_bytes,
                               const void* parameters) {
  static thread_local std::string problem;
  problem.clear();
  const std::lock_guard<std::mutex> lock(state().mutex);
  try {
    const std::unique_ptr<ptx::Module> module = ptx::parse(text);
    ptx::Grid grid;
    grid.blocks_x = blocks;
    grid.threads = threads;
    grid.cluster = cluster;
    grid.shared_bytes = shared_bytes;
    grid.parameters = parameters;
    ptx::run(*module->kernels.at(0), grid, state().memory, state().seed);
  } catch (const ptx::Fault& fault) {
    problem = fault.what();
  }
  return problem.c_str();
}

// Of a kernel: launches, instructions, those executed at least once, instructions executed by warps.
PTX_EXPORT void ptx_coverage(int index, std::uint64_t* values) {
  const Function& function = std::next(state().functions.begin(), index)->second;
  std::memset(values, 0, 4 * sizeof(*values));
  values[0] = function.launches;
  if (function.kernel == nullptr) return;
  for (const std::uint64_t count : function.kernel->executed) {
    ++values[1];
    values[2] += count != 0;
    values[3] += count;
  }
}

}  // extern "C"
