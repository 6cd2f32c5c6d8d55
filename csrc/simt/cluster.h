// Clusters of the simulator: all blocks of one run at the same time.
#pragma once

#include <cstring>

#include "../common/cluster.cuh"
#include "runtime.h"

namespace mvk {

constexpr bool clusters_exist() { return true; }
inline int cluster_block_rank() { return simt::current.cluster_rank; }
inline int cluster_blocks() { return simt::current.cluster_blocks; }
inline void sync_cluster(simt::Where where = simt::Where::here()) { simt::sync_cluster(where); }

struct RemoteBarrier {
  int byte_address;
};

template <class T>
class Remote {
 public:
  Remote(int rank, const char* name, int byte_begin, int byte_count)
      : rank_(rank), name_(name), begin_(byte_begin), bytes_(byte_count) {}

  template <class V>
  V load(int offset, simt::Where where = simt::Where::here()) const {
    V value;
    std::memcpy(&value, access(false, offset, sizeof(V), where), sizeof(V));
    return value;
  }

  template <class V>
  void store(int offset, V value, simt::Where where = simt::Where::here()) const {
    std::memcpy(access(true, offset, sizeof(V), where), &value, sizeof(V));
  }

  template <class V>
  void send(int offset, V value, RemoteBarrier barrier, simt::Where where = simt::Where::here()) const {
    simt::send(rank_, name_, begin_, bytes_, offset * static_cast<int>(sizeof(T)), &value, sizeof(V),
               barrier.byte_address, where);
  }

 private:
  void* access(bool write, int offset, int bytes, simt::Where where) const {
    return simt::remote_access(write, rank_, name_, begin_, bytes_, offset * static_cast<int>(sizeof(T)), bytes, where);
  }

  int rank_;
  const char* name_;
  int begin_;
  int bytes_;
};

template <class T>
Remote<T> of_block(Shared<T> region, int rank) {
  return Remote<T>(rank, region.name(), region.byte_begin(), region.byte_count());
}
inline RemoteBarrier barrier_of_block(Shared<std::uint64_t> barriers, int index, int) {
  return {barriers.byte_begin() + 8 * index};
}

}  // namespace mvk
