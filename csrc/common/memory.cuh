// Typed views of global and shared memory.
//
// Every access of a kernel goes through one of these. On the GPU they are bare pointers: extents and names cost
// nothing. Under the host simulator (csrc/simt/memory.h) a view knows its extent and its name, so that an access can be
// checked, counted and reported with the line of the kernel that made it.
//
// A vector access moves a whole V (uint32-sized Pair, Words2, Words4, float, …) at an offset counted in elements T and
// has to be aligned to sizeof(V).
#pragma once

#include "types.cuh"

#ifdef MVK_SIMT
#include "../simt/memory.h"
#else

namespace mvk {

template <class T>
class Global {
 public:
  Global() = default;
  MVK_HOST_DEVICE Global(T* pointer, std::int64_t /*count*/) : pointer_(pointer) {}

  template <class V>
  MVK_DEVICE V load(std::int64_t offset) const {
    return *reinterpret_cast<const V*>(pointer_ + offset);
  }

  template <class V>
  MVK_DEVICE void store(std::int64_t offset, V value) const {
    *reinterpret_cast<V*>(pointer_ + offset) = value;
  }

  // Brings the 64 bytes that hold an element into the L2 cache.
  MVK_DEVICE void prefetch(std::int64_t offset) const {
    asm volatile("prefetch.global.L2 [%0];\n" ::"l"(pointer_ + offset));
  }

  MVK_DEVICE const void* address(std::int64_t offset) const { return pointer_ + offset; }

 private:
  T* pointer_ = nullptr;
};

// A region's begin is one pointer, and what moves in it a number: of a pointer that has gone through a loop the
// compiler may lose that it is to shared memory, and then reads by generic loads.
template <class T>
class Shared {
 public:
  MVK_DEVICE explicit Shared(T* region, int begin = 0) : region_(region), begin_(begin) {}

  template <class V>
  MVK_DEVICE V load(int offset) const {
    return *reinterpret_cast<const V*>(region_ + (begin_ + offset));
  }

  template <class V>
  MVK_DEVICE void store(int offset, V value) const {
    *reinterpret_cast<V*>(region_ + (begin_ + offset)) = value;
  }

  MVK_DEVICE std::uint32_t address(int offset) const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(region_ + (begin_ + offset)));
  }

  // A part of this region under the same name: `count` elements from `offset` on.
  MVK_DEVICE Shared part(int offset, int /*count*/) const { return Shared(region_, begin_ + offset); }

 private:
  T* region_;
  int begin_;  // in elements
};

// A named region of the block's dynamic shared memory, `count` elements T from byte `byte_offset` on. Regions may
// overlap in time: what was written through one name may not be read through another.
template <class T>
MVK_DEVICE Shared<T> shared_region(const char* /*name*/, int byte_offset, int /*count*/) {
  extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
  return Shared<T>(reinterpret_cast<T*>(dynamic_shared_memory + byte_offset));
}

}  // namespace mvk

#endif
