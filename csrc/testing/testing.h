// Kernels that test the ground under the others.
#pragma once

#include <cstdint>

#include "../common/status.h"
#include "../common/stream.h"

namespace mvk {

constexpr int kGoldenInputs = 12;  // words a lane; 48 bytes, so that each lane's are 16-byte aligned
constexpr int kGoldenOutputs = 4;

// Runs the primitive test `name` on `warps` warps.
Status golden(const char* name, const void* in, void* out, int warps, Stream stream);

#ifdef MVK_SIMT
// Runs a kernel with the planted fault `fault`; 0: the same kernels without one. `in` and `out` hold 256 words.
Status planted(int fault, const std::uint32_t* in, std::uint32_t* out);
#endif

}  // namespace mvk
