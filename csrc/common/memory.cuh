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

  MVK_DEVICE const void* address(std::int64_t offset) const { return pointer_ + offset; }

 private:
  T* pointer_ = nullptr;
};

namespace detail {

MVK_DEVICE unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return dynamic_shared_bytes;
}

}  // namespace detail

// A place is kept as a number and not as a pointer: of a pointer that has gone through a loop the compiler may lose
// that it is to shared memory, and then reads by generic loads.
template <class T>
class Shared {
 public:
  // From `begin` bytes of the block's dynamic shared memory on.
  MVK_DEVICE explicit Shared(int begin) : begin_(begin) {}

  template <class V>
  MVK_DEVICE V load(int offset) const {
    return *reinterpret_cast<const V*>(at(offset));
  }

  template <class V>
  MVK_DEVICE void store(int offset, V value) const {
    *reinterpret_cast<V*>(at(offset)) = value;
  }

  MVK_DEVICE std::uint32_t address(int offset) const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(at(offset)));
  }

  // A part of this region under the same name: `count` elements from `offset` on.
  MVK_DEVICE Shared part(int offset, int /*count*/) const { return Shared(byte_of(offset)); }

 private:
  MVK_DEVICE int byte_of(int offset) const { return begin_ + offset * static_cast<int>(sizeof(T)); }
  MVK_DEVICE unsigned char* at(int offset) const { return detail::dynamic_shared_memory() + byte_of(offset); }

  int begin_;
};

// A named region of the block's dynamic shared memory, `count` elements T from byte `byte_offset` on. Regions may
// overlap in time: what was written through one name may not be read through another.
template <class T>
MVK_DEVICE Shared<T> shared_region(const char* /*name*/, int byte_offset, int /*count*/) {
  return Shared<T>(byte_offset);
}

}  // namespace mvk

#endif
