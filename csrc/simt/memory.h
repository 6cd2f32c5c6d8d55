// Bounds-carrying views of global and shared memory.
#pragma once

#include "../common/memory.cuh"
#include "runtime.h"

namespace mvk {

template <class T>
class Global {
 public:
  Global() = default;
  Global(T* pointer, std::int64_t count) {
    if (pointer != nullptr) view_ = simt::global_view(pointer, static_cast<std::uint64_t>(count) * sizeof(T));
  }

  template <class V>
  V load(std::int64_t offset, simt::Where where = simt::Where::here()) const {
    V value;
    std::memcpy(&value, simt::global_access(false, view_, offset * std::int64_t{sizeof(T)}, sizeof(V), where),
                sizeof(V));
    return value;
  }

  template <class V>
  void store(std::int64_t offset, V value, simt::Where where = simt::Where::here()) const {
    std::memcpy(simt::global_access(true, view_, offset * std::int64_t{sizeof(T)}, sizeof(V), where), &value,
                sizeof(V));
  }

  // Moves nothing that a kernel sees; the element has to be there.
  void prefetch(std::int64_t offset, simt::Where where = simt::Where::here()) const {
    simt::global_prefetch(view_, offset * std::int64_t{sizeof(T)}, where);
  }

  const simt::GlobalView& view() const { return view_; }
  T* pointer() const { return reinterpret_cast<T*>(view_.begin); }

 private:
  simt::GlobalView view_;
};

template <class T>
class Shared {
 public:
  Shared(const char* name, int byte_begin, int byte_count) : name_(name), begin_(byte_begin), bytes_(byte_count) {}

  template <class V>
  V load(int offset, simt::Where where = simt::Where::here()) const {
    V value;
    std::memcpy(&value, access(simt::SharedAccess::kLoad, offset, sizeof(V), where), sizeof(V));
    return value;
  }

  template <class V>
  void store(int offset, V value, simt::Where where = simt::Where::here()) const {
    std::memcpy(access(simt::SharedAccess::kStore, offset, sizeof(V), where), &value, sizeof(V));
  }

  Shared part(int offset, int count, simt::Where where = simt::Where::here()) const {
    const int begin = offset * static_cast<int>(sizeof(T));
    const int bytes = count * static_cast<int>(sizeof(T));
    if (begin < 0 || bytes < 0 || begin + bytes > bytes_) {
      simt::fault(where, "shared region '%s': part of %d elements from %d on, but the region has %d", name_, count,
                  offset, bytes_ / static_cast<int>(sizeof(T)));
    }
    return Shared(name_, begin_ + begin, bytes);
  }

  const char* name() const { return name_; }
  int byte_begin() const { return begin_; }
  int byte_count() const { return bytes_; }

 private:
  void* access(simt::SharedAccess kind, int offset, int bytes, simt::Where where) const {
    return simt::shared_access(kind, name_, begin_, bytes_, offset * static_cast<int>(sizeof(T)), bytes, where);
  }

  const char* name_;
  int begin_;
  int bytes_;
};

template <class T>
Shared<T> shared_region(const char* name, int byte_offset, int count, simt::Where where = simt::Where::here()) {
  const int bytes = count * static_cast<int>(sizeof(T));
  if (byte_offset < 0 || bytes < 0 || byte_offset + bytes > simt::dynamic_shared_bytes()) {
    simt::fault(where, "shared region '%s' spans bytes %d … %d, but the launch asked for %d bytes of shared memory",
                name, byte_offset, byte_offset + bytes, simt::dynamic_shared_bytes());
  }
  if (byte_offset % 16 != 0) {
    simt::fault(where, "shared region '%s' begins at byte %d, which is not a multiple of 16", name, byte_offset);
  }
  return Shared<T>(name, byte_offset, bytes);
}

}  // namespace mvk
