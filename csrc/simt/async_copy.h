// cp.async of the simulator: the destination is poisoned until the wait that delivers it.
#pragma once

#include "../common/async_copy.cuh"
#include "runtime.h"

namespace mvk {

template <class T, class U>
void copy_async_16(Shared<T> destination, int destination_offset, Global<U> source, std::int64_t source_offset,
                   bool valid = true, simt::Where where = simt::Where::here()) {
  simt::copy_async(destination.name(), destination.byte_begin(), destination.byte_count(),
                   destination_offset * static_cast<int>(sizeof(T)), source.view(),
                   source_offset * std::int64_t{sizeof(U)}, valid, where);
}

inline void copy_async_commit() { simt::copy_async_commit(); }

template <int kPending>
void copy_async_wait(simt::Where where = simt::Where::here()) {
  simt::copy_async_wait(kPending, where);
}

}  // namespace mvk
