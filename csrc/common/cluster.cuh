// Thread-block clusters (sm_90 and newer): blocks that run at the same time and reach each other's shared memory.
//
// A launch asks for them with LaunchShape::cluster. Between the accesses of two blocks to the same shared memory there
// has to be a sync_cluster(), before the first such access too (the other block may not have started) and after the
// last one (it may leave the kernel, and its shared memory with it).
//
// A sync_cluster() makes every warp wait until its stores are there, by a fence. Words that are sent need none: they
// report to a barrier (mbarrier.cuh) of the block that gets them, and are there for its threads that wait for the phase.
// What happens in a block before a send (accesses to its own shared memory, and waits for phases) happens before what
// follows such a wait: so blocks that send to each other in turn need no barrier to tell that a place is free again.
// Other sends are not among it: of two to the same place, the second has to know that the first was waited for. A block
// may leave the kernel when it has waited for all that is sent to it.
#pragma once

#include "memory.cuh"

#ifdef MVK_SIMT
#include "../simt/cluster.h"
#else

namespace mvk {

// Whether this architecture has clusters. Where not, the words below compile to nothing useful: a kernel returns at
// once and its launcher never launches it.
MVK_DEVICE constexpr bool clusters_exist() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return false;
#else
  return true;
#endif
}

// This block's number in its cluster, and how many there are.
MVK_DEVICE int cluster_block_rank() {
  std::uint32_t rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
MVK_DEVICE int cluster_blocks() {
  std::uint32_t count = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;\n" : "=r"(count));
#endif
  return static_cast<int>(count);
}

// A barrier of all threads of the cluster; what they did to shared and global memory before it is there for all after
// it. A block barrier too.
MVK_DEVICE void sync_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
#endif
}

// A barrier in the shared memory of a block of the cluster.
class RemoteBarrier {
 public:
  MVK_DEVICE explicit RemoteBarrier(std::uint32_t address) : address_(address) {}
  MVK_DEVICE std::uint32_t address() const { return address_; }

 private:
  std::uint32_t address_;  // in the cluster's window of shared memory
};

// A region of another block's shared memory. Accesses move 4, 8 or 16 bytes at an offset counted in elements T.
template <class T>
class Remote {
 public:
  MVK_DEVICE explicit Remote(std::uint32_t address) : address_(address) {}

  template <class V>
  MVK_DEVICE V load(int offset) const {
    check_size<V>();
    V value{};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    auto* const word = reinterpret_cast<std::uint32_t*>(&value);
    if constexpr (sizeof(V) == 4) {
      asm volatile("ld.shared::cluster.b32 %0, [%1];\n" : "=r"(word[0]) : "r"(at(offset)) : "memory");
    } else if constexpr (sizeof(V) == 8) {
      asm volatile("ld.shared::cluster.v2.b32 {%0,%1}, [%2];\n"
                   : "=r"(word[0]), "=r"(word[1])
                   : "r"(at(offset))
                   : "memory");
    } else {
      asm volatile("ld.shared::cluster.v4.b32 {%0,%1,%2,%3}, [%4];\n"
                   : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                   : "r"(at(offset))
                   : "memory");
    }
#endif
    return value;
  }

  template <class V>
  MVK_DEVICE void store(int offset, V value) const {
    check_size<V>();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const auto* const word = reinterpret_cast<const std::uint32_t*>(&value);
    if constexpr (sizeof(V) == 4) {
      asm volatile("st.shared::cluster.b32 [%0], %1;\n" ::"r"(at(offset)), "r"(word[0]) : "memory");
    } else if constexpr (sizeof(V) == 8) {
      asm volatile("st.shared::cluster.v2.b32 [%0], {%1,%2};\n" ::"r"(at(offset)), "r"(word[0]), "r"(word[1])
                   : "memory");
    } else {
      asm volatile("st.shared::cluster.v4.b32 [%0], {%1,%2,%3,%4};\n" ::"r"(at(offset)), "r"(word[0]), "r"(word[1]),
                   "r"(word[2]), "r"(word[3])
                   : "memory");
    }
#endif
  }

  // Stores, and reports the bytes to a barrier of the same block, whose arrivals announce them, before or after.
  template <class V>
  MVK_DEVICE void send(int offset, V value, RemoteBarrier barrier) const {
    check_size<V>();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const auto* const word = reinterpret_cast<const std::uint32_t*>(&value);
    if constexpr (sizeof(V) == 4) {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];\n" ::"r"(at(offset)),
                   "r"(word[0]), "r"(barrier.address())
                   : "memory");
    } else if constexpr (sizeof(V) == 8) {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];\n" ::"r"(
                       at(offset)),
                   "r"(word[0]), "r"(word[1]), "r"(barrier.address())
                   : "memory");
    } else {
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];\n" ::"r"(
                       at(offset)),
                   "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]), "r"(barrier.address())
                   : "memory");
    }
#endif
  }

 private:
  template <class V>
  MVK_DEVICE static constexpr void check_size() {
    static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16, "a remote access moves 4, 8 or 16 bytes");
  }
  MVK_DEVICE std::uint32_t at(int offset) const { return address_ + static_cast<std::uint32_t>(offset * sizeof(T)); }

  std::uint32_t address_;  // in the cluster's window of shared memory
};

// The region that lies at the same place in the shared memory of the cluster's block `rank`.
template <class T>
MVK_DEVICE Remote<T> of_block(Shared<T> region, int rank) {
  std::uint32_t address = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(address) : "r"(region.address(0)), "r"(rank));
#endif
  return Remote<T>(address);
}

// Barrier `index` of the region that lies at the same place in block `rank`.
MVK_DEVICE RemoteBarrier barrier_of_block(Shared<std::uint64_t> barriers, int index, int rank) {
  std::uint32_t address = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(address) : "r"(barriers.address(index)), "r"(rank));
#endif
  return RemoteBarrier(address);
}

}  // namespace mvk

#endif
