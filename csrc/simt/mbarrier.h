// Barriers in shared memory and bulk copies of the simulator: a copy's bytes come as late as they may, when a thread
// that waits for them asks, or when nothing else goes on.
#pragma once

#include "../common/mbarrier.cuh"
#include "runtime.h"

namespace mvk {

inline void barrier_init(Shared<std::uint64_t> barriers, int index, int arrivals,
                         simt::Where where = simt::Where::here()) {
  simt::barrier_init(barriers.name(), barriers.byte_begin(), barriers.byte_count(), 8 * index, arrivals, where);
}
inline void publish_barriers() { simt::publish_barriers(); }
inline void barrier_arrive(Shared<std::uint64_t> barriers, int index, simt::Where where = simt::Where::here()) {
  simt::barrier_arrive(barriers.name(), barriers.byte_begin(), barriers.byte_count(), 8 * index, 0, where);
}
inline void barrier_arrive_expecting(Shared<std::uint64_t> barriers, int index, int bytes,
                                     simt::Where where = simt::Where::here()) {
  simt::barrier_arrive(barriers.name(), barriers.byte_begin(), barriers.byte_count(), 8 * index, bytes, where);
}
inline void barrier_wait(Shared<std::uint64_t> barriers, int index, int parity,
                         simt::Where where = simt::Where::here()) {
  simt::barrier_wait(barriers.name(), barriers.byte_begin(), barriers.byte_count(), 8 * index, parity, false, where);
}
inline void barrier_wait_for_cluster(Shared<std::uint64_t> barriers, int index, int parity,
                                     simt::Where where = simt::Where::here()) {
  simt::barrier_wait(barriers.name(), barriers.byte_begin(), barriers.byte_count(), 8 * index, parity, true, where);
}

template <class T, class U>
void copy_bulk(Shared<T> destination, int destination_offset, Global<U> source, std::int64_t source_offset, int bytes,
               Shared<std::uint64_t> barriers, int index, simt::Where where = simt::Where::here()) {
  simt::copy_bulk(destination.name(), destination.byte_begin(), destination.byte_count(),
                  destination_offset * static_cast<int>(sizeof(T)), source.view(),
                  source_offset * std::int64_t{sizeof(U)}, bytes, barriers.byte_begin() + 8 * index, where);
}

inline void count_init(Shared<std::uint32_t> counts, int index, simt::Where where = simt::Where::here()) {
  simt::barrier_init(counts.name(), counts.byte_begin(), counts.byte_count(), 4 * index, 0, where);
}
inline bool count_arrive(Shared<std::uint32_t> counts, int index, int arrivals,
                         simt::Where where = simt::Where::here()) {
  return simt::count_arrive(counts.name(), counts.byte_begin(), counts.byte_count(), 4 * index, arrivals, where);
}

}  // namespace mvk
