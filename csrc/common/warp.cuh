// Warp and block primitives: who am I, barriers, shuffles. Every warp-wide primitive needs all 32 lanes.
#pragma once

#include "types.cuh"

#ifdef MVK_SIMT
#include "../simt/warp.h"
#else

namespace mvk {

MVK_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MVK_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / 32; }
MVK_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % 32; }
MVK_DEVICE int block_index_x() { return static_cast<int>(blockIdx.x); }
MVK_DEVICE int block_index_y() { return static_cast<int>(blockIdx.y); }

MVK_DEVICE void sync_block() { __syncthreads(); }
// Orders the warp's shared-memory accesses before it with those after it. No other warp primitive does.
MVK_DEVICE void sync_warp() { __syncwarp(); }
// A barrier of the 128 threads of the caller's warpgroup, which alone it keeps waiting: named barrier 1 and up.
MVK_DEVICE void sync_warpgroup() {
  asm volatile("bar.sync %0, 128;\n" ::"r"(static_cast<int>(threadIdx.x) / 128 + 1) : "memory");
}

// Whether `condition` is true in any lane of the caller's warp.
MVK_DEVICE bool any_lane(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }

// The value of `lane` of the caller's warp.
template <class V>
MVK_DEVICE V shuffle(V value, int lane) {
  static_assert(sizeof(V) == 4, "a shuffle moves one 32-bit register");
  const std::uint32_t moved = __shfl_sync(0xffffffffu, *reinterpret_cast<std::uint32_t*>(&value), lane);
  return *reinterpret_cast<const V*>(&moved);
}
// The value of lane (own lane − delta); lanes below delta keep their own.
template <class V>
MVK_DEVICE V shuffle_up(V value, int delta) {
  static_assert(sizeof(V) == 4, "a shuffle moves one 32-bit register");
  const std::uint32_t moved = __shfl_up_sync(0xffffffffu, *reinterpret_cast<std::uint32_t*>(&value), delta);
  return *reinterpret_cast<const V*>(&moved);
}
// The value of lane (own lane + delta); the last delta lanes keep their own.
template <class V>
MVK_DEVICE V shuffle_down(V value, int delta) {
  static_assert(sizeof(V) == 4, "a shuffle moves one 32-bit register");
  const std::uint32_t moved = __shfl_down_sync(0xffffffffu, *reinterpret_cast<std::uint32_t*>(&value), delta);
  return *reinterpret_cast<const V*>(&moved);
}
// The value of lane (own lane ^ mask).
template <class V>
MVK_DEVICE V shuffle_xor(V value, int mask) {
  static_assert(sizeof(V) == 4, "a shuffle moves one 32-bit register");
  const std::uint32_t moved = __shfl_xor_sync(0xffffffffu, *reinterpret_cast<std::uint32_t*>(&value), mask);
  return *reinterpret_cast<const V*>(&moved);
}

}  // namespace mvk

#endif
