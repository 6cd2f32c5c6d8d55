// Shared and global memory, checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fault.h"

namespace ptx {

// A block's shared memory. Bytes that nothing was written to, and those that a cp.async is on its way to, cannot be
// read.
class SharedMemory {
 public:
  explicit SharedMemory(int bytes) : bytes_(static_cast<std::size_t>(bytes)), state_(bytes_.size(), kUnwritten) {}

  void read(std::uint32_t address, int size, void* to) const;
  void write(std::uint32_t address, int size, const void* from);
  // A cp.async has been issued; its bytes come with land().
  void begin_copy(std::uint32_t address, int size);
  void land(std::uint32_t address, const void* from, int from_bytes, int size);
  void reset();

 private:
  enum State : std::uint8_t { kUnwritten, kWritten, kUnderWay };
  std::size_t place(std::uint32_t address, int size, const char* access) const;

  std::vector<unsigned char> bytes_;
  std::vector<State> state_;
};

// What a kernel may do with a buffer. Constants are packed weights: no kernel writes them, so they may be read before
// griddepcontrol.wait.
enum class BufferKind : int { kInput, kOutput, kConstant };

// The buffers that global accesses have to be in. Nothing else can be reached.
class GlobalMemory {
 public:
  void add(const char* name, std::uint64_t address, std::uint64_t size, BufferKind kind) {
    buffers_.push_back({address, address + size, kind, name});
  }
  void clear() { buffers_.clear(); }

  // Raises Fault unless `size` bytes at `address` are aligned and inside a buffer that can be accessed so.
  // `before_wait`: the lane has not executed griddepcontrol.wait.
  void check(std::uint64_t address, int size, bool is_write, bool before_wait) const;

 private:
  struct Buffer {
    std::uint64_t begin, end;
    BufferKind kind;
    std::string name;
  };
  std::vector<Buffer> buffers_;
  mutable std::size_t last_ = 0;  // where the access before was
};

}  // namespace ptx
