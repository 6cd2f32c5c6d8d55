// cp.async: 16 bytes from global to shared memory without passing through registers.
//
// The bytes are there for the thread that issued the copy after its wait, and for other threads only after a barrier
// behind that wait.
#pragma once

#include "memory.cuh"

#ifdef MVK_SIMT
#include "../simt/async_copy.h"
#else

namespace mvk {

// Copies 16 bytes; where `valid` is false it writes zeros and reads nothing, but `source_offset` still has to be inside
// the view.
template <class T, class U>
MVK_DEVICE void copy_async_16(Shared<T> destination, int destination_offset, Global<U> source,
                              std::int64_t source_offset, bool valid = true) {
  const int source_bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(destination.address(destination_offset)),
               "l"(source.address(source_offset)), "r"(source_bytes)
               : "memory");
}

// Closes the group of copies that this thread issued since the last commit.
MVK_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most the kPending newest groups of this thread are under way.
template <int kPending>
MVK_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace mvk

#endif
