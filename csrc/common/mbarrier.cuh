// Barriers in shared memory (mbarrier) and bulk copies that report to them (sm_90 and newer; PTX ISA, "mbarrier" and
// "cp.async.bulk"), and a count of arrivals that tells the last one.
//
// A barrier goes from phase to phase. A phase ends with its last arrival, once the bytes that arrivals have announced
// have come, too; what those who arrived did before is there for those who wait for that phase. Phases have parities
// 0, 1, 0, …: a wait for a parity is over once the newest phase of that parity that has begun has ended, so that a wait
// for parity 1 before the first phase's end is none.
//
//   if (thread_index() == 0) {
//     barrier_init(full, 0, 1);                        one arrival ends a phase
//     publish_barriers();                              for other threads, behind a sync_block(), and for copies
//     barrier_arrive_expecting(full, 0, bytes);        first announce them …
//     copy_bulk(to, 0, from, 0, bytes, full, 0);       … then let them come
//   }
//   sync_block();
//   barrier_wait(full, 0, 0);                           of every thread that reads them
//
// One lane arrives for its warp, behind a sync_warp(). Memory that a copy is going to overwrite has to have been left
// by all its readers: an arrival of each, and a wait (or the last arrival) of the one who copies.
#pragma once

#include "memory.cuh"

#ifdef MVK_SIMT
#include "../simt/mbarrier.h"
#else

namespace mvk {

// Where there are no such barriers the words below compile to nothing useful, as those of cluster.cuh.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define MVK_BARRIERS_EXIST 1
#else
#define MVK_BARRIERS_EXIST 0
#endif

// Barrier `index` of the region, whose phases take so many arrivals each.
MVK_DEVICE void barrier_init([[maybe_unused]] Shared<std::uint64_t> barriers, [[maybe_unused]] int index,
                             [[maybe_unused]] int arrivals) {
#if MVK_BARRIERS_EXIST
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barriers.address(index)), "r"(arrivals) : "memory");
#endif
}

// What this thread has initialised is there for copies, and behind a sync_block() for all.
MVK_DEVICE void publish_barriers() {
#if MVK_BARRIERS_EXIST
  asm volatile(
      "fence.mbarrier_init.release.cluster;\n"
      "fence.proxy.async.shared::cta;\n" ::
          : "memory");
#endif
}

MVK_DEVICE void barrier_arrive([[maybe_unused]] Shared<std::uint64_t> barriers, [[maybe_unused]] int index) {
#if MVK_BARRIERS_EXIST
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barriers.address(index)) : "memory");
#endif
}

// Arrives, and announces so many bytes more in this phase.
MVK_DEVICE void barrier_arrive_expecting([[maybe_unused]] Shared<std::uint64_t> barriers, [[maybe_unused]] int index,
                                         [[maybe_unused]] int bytes) {
#if MVK_BARRIERS_EXIST
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barriers.address(index)), "r"(bytes)
               : "memory");
#endif
}

template <bool kForCluster>
MVK_DEVICE void wait_for_phase([[maybe_unused]] std::uint32_t address, [[maybe_unused]] int parity) {
#if MVK_BARRIERS_EXIST
  std::uint32_t over = 0;
  while (over == 0) {
    if constexpr (kForCluster) {
      asm volatile(
          "{\n.reg .pred over;\n"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%1], %2;\n"
          "selp.b32 %0, 1, 0, over;\n}\n"
          : "=r"(over)
          : "r"(address), "r"(parity)
          : "memory");
    } else {
      asm volatile(
          "{\n.reg .pred over;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
          "selp.b32 %0, 1, 0, over;\n}\n"
          : "=r"(over)
          : "r"(address), "r"(parity)
          : "memory");
    }
  }
#endif
}
MVK_DEVICE void barrier_wait(Shared<std::uint64_t> barriers, int index, int parity) {
  wait_for_phase<false>(barriers.address(index), parity);
}

// The same for a phase to which blocks of the cluster send (cluster.cuh).
MVK_DEVICE void barrier_wait_for_cluster(Shared<std::uint64_t> barriers, int index, int parity) {
  wait_for_phase<true>(barriers.address(index), parity);
}

// Copies `bytes` from global to shared memory, a multiple of 16 from and to multiples of 16, and reports them to a
// barrier: there for those who wait for its phase, generic reads and wgmma alike. By one thread.
template <class T, class U>
MVK_DEVICE void copy_bulk([[maybe_unused]] Shared<T> destination, [[maybe_unused]] int destination_offset,
                          [[maybe_unused]] Global<U> source, [[maybe_unused]] std::int64_t source_offset,
                          [[maybe_unused]] int bytes, [[maybe_unused]] Shared<std::uint64_t> barriers,
                          [[maybe_unused]] int index) {
#if MVK_BARRIERS_EXIST
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                   destination.address(destination_offset)),
               "l"(source.address(source_offset)), "r"(bytes), "r"(barriers.address(index))
               : "memory");
#endif
}

// A count of arrivals, from zero.
MVK_DEVICE void count_init(Shared<std::uint32_t> counts, int index) { counts.store(index, 0u); }

// Whether this is the last of `arrivals` arrivals, behind which the count begins anew: then all that those who arrived
// did before is done before what this thread does next.
MVK_DEVICE bool count_arrive([[maybe_unused]] Shared<std::uint32_t> counts, [[maybe_unused]] int index,
                             [[maybe_unused]] int arrivals) {
  std::uint32_t before = 0;
#if MVK_BARRIERS_EXIST
  asm volatile("atom.acq_rel.cta.shared::cta.inc.u32 %0, [%1], %2;\n"
               : "=r"(before)
               : "r"(counts.address(index)), "r"(arrivals - 1)
               : "memory");
#endif
  return before == static_cast<std::uint32_t>(arrivals - 1);
}

}  // namespace mvk

#endif
