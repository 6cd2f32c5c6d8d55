// Warp and block primitives of the simulator.
#pragma once

#include <cstring>

#include "../common/warp.cuh"
#include "runtime.h"

namespace mvk {

inline int thread_index() { return simt::current.thread; }
inline int warp_index() { return simt::current.thread / simt::kWarpSize; }
inline int lane_index() { return simt::current.thread % simt::kWarpSize; }
inline int block_index_x() { return static_cast<int>(simt::current.block.x); }
inline int block_index_y() { return static_cast<int>(simt::current.block.y); }

inline void sync_block(simt::Where where = simt::Where::here()) { simt::sync_block(where); }
inline void sync_warp(simt::Where where = simt::Where::here()) { simt::sync_warp(where); }
inline void sync_warpgroup(simt::Where where = simt::Where::here()) { simt::sync_warpgroup(where); }

namespace simt {

struct ShuffleArgument {
  std::uint32_t value;
  int source;
  std::uint32_t result;
};

template <class V>
V shuffle_from(V value, int source, const char* primitive, Where where) {
  static_assert(sizeof(V) == 4, "a shuffle moves one 32-bit register");
  ShuffleArgument own{0, source & 31, 0};
  std::memcpy(&own.value, &value, 4);
  if (gather_warp(primitive, &own, where)) {
    void** lanes = warp_arguments();
    for (int lane = 0; lane < kWarpSize; ++lane) {
      auto* argument = static_cast<ShuffleArgument*>(lanes[lane]);
      argument->result = static_cast<ShuffleArgument*>(lanes[argument->source])->value;
    }
    ++counters().shuffles;
    release_warp();
  }
  std::memcpy(&value, &own.result, 4);
  return value;
}

}  // namespace simt

inline bool any_lane(bool condition, simt::Where where = simt::Where::here()) {
  struct Vote {
    bool condition, result;
  } own{condition, false};
  if (simt::gather_warp("any_lane", &own, where)) {
    void** lanes = simt::warp_arguments();
    bool any = false;
    for (int lane = 0; lane < simt::kWarpSize; ++lane) any = any || static_cast<Vote*>(lanes[lane])->condition;
    for (int lane = 0; lane < simt::kWarpSize; ++lane) static_cast<Vote*>(lanes[lane])->result = any;
    simt::release_warp();
  }
  return own.result;
}

template <class V>
V shuffle(V value, int lane, simt::Where where = simt::Where::here()) {
  return simt::shuffle_from(value, lane, "shuffle", where);
}
template <class V>
V shuffle_up(V value, int delta, simt::Where where = simt::Where::here()) {
  const int lane = lane_index();
  return simt::shuffle_from(value, lane < delta ? lane : lane - delta, "shuffle_up", where);
}
template <class V>
V shuffle_down(V value, int delta, simt::Where where = simt::Where::here()) {
  const int lane = lane_index();
  return simt::shuffle_from(value, lane + delta > 31 ? lane : lane + delta, "shuffle_down", where);
}
template <class V>
V shuffle_xor(V value, int mask, simt::Where where = simt::Where::here()) {
  return simt::shuffle_from(value, lane_index() ^ mask, "shuffle_xor", where);
}

}  // namespace mvk
