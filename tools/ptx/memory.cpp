#include "memory.h"

#include <algorithm>
#include <cstring>

#include "program.h"

namespace ptx {

std::size_t SharedMemory::place(std::uint32_t address, int size, const char* access) const {
  if (address % static_cast<unsigned>(size) != 0) {
    throw Fault(format("%s of %d bytes of shared memory at %#x, which is not aligned", access, size, address));
  }
  if (address < kSharedBase || std::uint64_t{address} + static_cast<unsigned>(size) > kSharedBase + bytes_.size()) {
    throw Fault(format("%s of %d bytes of shared memory at byte %lld of %zu", access, size,
                       static_cast<long long>(address) - kSharedBase, bytes_.size()));
  }
  return address - kSharedBase;
}

void SharedMemory::read(std::uint32_t address, int size, void* to) const {
  const std::size_t begin = place(address, size, "read");
  for (std::size_t i = begin; i < begin + static_cast<std::size_t>(size); ++i) {
    if (state_[i] == kWritten) continue;
    throw Fault(format("read of %d bytes at byte %zu of shared memory, %s", size, begin,
                       state_[i] == kUnwritten ? "which nothing was written to" : "which a cp.async is on its way to"));
  }
  std::memcpy(to, &bytes_[begin], static_cast<std::size_t>(size));
}

void SharedMemory::write(std::uint32_t address, int size, const void* from) {
  const std::size_t begin = place(address, size, "write");
  for (std::size_t i = begin; i < begin + static_cast<std::size_t>(size); ++i) {
    if (state_[i] == kUnderWay) {
      throw Fault(format("write to byte %zu of shared memory, which a cp.async is on its way to", i));
    }
    state_[i] = kWritten;
  }
  std::memcpy(&bytes_[begin], from, static_cast<std::size_t>(size));
}

void SharedMemory::begin_copy(std::uint32_t address, int size) {
  const std::size_t begin = place(address, size, "cp.async");
  for (std::size_t i = begin; i < begin + static_cast<std::size_t>(size); ++i) {
    if (state_[i] == kUnderWay) {
      throw Fault(format("cp.async to byte %zu of shared memory, which another is on its way to", i));
    }
    state_[i] = kUnderWay;
  }
}

void SharedMemory::land(std::uint32_t address, const void* from, int from_bytes, int size) {
  const std::size_t begin = address - kSharedBase;
  std::memset(&bytes_[begin], 0, static_cast<std::size_t>(size));
  if (from_bytes > 0) std::memcpy(&bytes_[begin], from, static_cast<std::size_t>(from_bytes));
  std::fill_n(&state_[begin], size, kWritten);
}

void SharedMemory::reset() { std::fill(state_.begin(), state_.end(), kUnwritten); }

void GlobalMemory::check(std::uint64_t address, int size, bool is_write, bool before_wait) const {
  const char* const access = is_write ? "write" : "read";
  if (address % static_cast<unsigned>(size) != 0) {
    throw Fault(format("%s of %d bytes of global memory at %#llx, which is not aligned", access, size,
                       static_cast<unsigned long long>(address)));
  }
  const auto holds = [&](const Buffer& buffer) {
    return address >= buffer.begin && address + static_cast<unsigned>(size) <= buffer.end;
  };
  if (last_ >= buffers_.size() || !holds(buffers_[last_])) {
    last_ = static_cast<std::size_t>(std::find_if(buffers_.begin(), buffers_.end(), holds) - buffers_.begin());
  }
  if (last_ == buffers_.size()) {
    const auto distance = [&](const Buffer& buffer) {
      return address < buffer.begin ? buffer.begin - address : address < buffer.end ? 0 : address - buffer.end;
    };
    std::vector<Buffer> by_distance = buffers_;
    std::sort(by_distance.begin(), by_distance.end(),
              [&](const Buffer& a, const Buffer& b) { return distance(a) < distance(b); });
    std::string near;
    for (const Buffer& buffer : by_distance) {
      if (distance(buffer) > 4096) break;
      near += format(" (byte %lld of '%s', which has %llu)", static_cast<long long>(address - buffer.begin),
                     buffer.name.c_str(), static_cast<unsigned long long>(buffer.end - buffer.begin));
    }
    throw Fault(format("%s of %d bytes of global memory at %#llx, which is in no buffer%s", access, size,
                       static_cast<unsigned long long>(address), near.c_str()));
  }
  const Buffer& buffer = buffers_[last_];
  if (is_write && buffer.kind != BufferKind::kOutput) {
    throw Fault(format("write to '%s', which is an input", buffer.name.c_str()));
  }
  if (before_wait && buffer.kind != BufferKind::kConstant) {
    throw Fault(format("%s of '%s' before griddepcontrol.wait", access, buffer.name.c_str()));
  }
}

}  // namespace ptx
