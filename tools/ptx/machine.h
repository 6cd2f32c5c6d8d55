// Runs a kernel's grid: warps in lockstep, blocks and clusters one after the other.
//
// Lanes of a warp have a place in the code each. Of the lanes that are at different places, those at the lowest run
// until they meet the others; an instruction that needs lanes together waits for them, and is a fault where they cannot
// come. A warp runs until it waits at a barrier; then the next one does.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ptx {

struct Block;

// An address of another block's shared memory, as mapa makes it: rank + 1 above the offset. Zero there is the own
// block.
constexpr int kRankShift = 24;

class Warp {
 public:
  Warp(const Kernel& kernel, Block& block, int index);

  enum class Stop { kReady, kBlockBarrier, kPartBarrier, kPolling, kClusterBarrier, kDone };

  // At the beginning of the block (block_x, block_y) of rank `rank` in a cluster of `blocks`.
  void start(int block_x, int block_y, int rank, int blocks);
  // Until it has to wait, or has ended.
  void run(std::vector<std::uint64_t>& executed);

  // What instructions work on.
  template <class T>
  T* lanes(std::uint32_t place) {
    return reinterpret_cast<T*>(file_.data() + place);
  }
  Block& block() { return *block_; }
  Block& block_of(std::uint32_t cluster_address);  // whose shared memory it is in
  bool before_wait(int lane) const { return (waited_ >> lane & 1u) == 0; }
  void wait_for_earlier_launches(Mask active) { waited_ |= active; }
  void copy(int lane, std::uint32_t to, const void* from, int from_bytes);
  void commit_copies(Mask active);
  void wait_for_copies(Mask active, int pending);
  // A wait for an mbarrier that was in vain: another warp runs, until something has come to one.
  void poll_again() { polls_ = true; }

  // What the machine knows of it.
  int index() const { return index_; }
  Stop stop = Stop::kReady;
  int cluster_phase = 0;      // cluster barriers passed
  bool arrived = false;       // at the cluster's barrier, and not yet passed it
  std::uint64_t seen = 0;     // events at mbarriers when it polled in vain
  int part = 0;               // the named barrier where it waits
  std::string where() const;  // its first lanes' place

 private:
  // Lanes at one place.
  struct Group {
    int place;
    Mask lanes;
  };
  // A cp.async on its way.
  struct Copy {
    std::uint32_t to;
    const void* from;
    int from_bytes;
    int group;
  };

  Mask active_of(const Group& group, const Instruction& instruction);
  bool may_execute(const Instruction& instruction, Mask active);
  std::size_t choose();
  void merge();

  const Kernel* kernel_;
  Block* block_;
  int index_;
  std::vector<unsigned char> file_;
  std::vector<Group> groups_;  // by place
  Mask waited_ = 0;
  bool polls_ = false;
  std::vector<Copy> copies_[kLanes];
  int committed_[kLanes] = {};
};

struct Cluster {
  std::vector<Block>* blocks = nullptr;
  int warps = 0;
  int arrivals = 0;
  int phase = 0;  // barriers completed
};

// An mbarrier: what its 64 bits hold, and what was copied or sent and has not come. It comes when somebody looks.
struct MemoryBarrier {
  struct Copy {
    std::uint32_t to;
    const void* from;  // nullptr: `sent`
    int bytes;
    std::uint32_t sent[4] = {};
  };
  int expected = 0;  // arrivals that end a phase
  int arrived = 0;
  std::int64_t bytes = 0;  // announced and not there; below 0: there before they were announced
  int phase = 0;           // phases that have ended
  std::vector<Copy> copies;

  void end_phase();
};

// A named barrier of part of a block.
struct PartBarrier {
  int warps = 0;  // that take part
  int waiting = 0;
};

struct Block {
  SharedMemory shared;
  std::vector<Warp> warps;
  Cluster* cluster = nullptr;
  int rank = 0;
  int waiting = 0;  // warps at the block's barrier
  PartBarrier parts[16];
  std::map<std::uint32_t, MemoryBarrier> barriers;  // by address
  std::uint64_t events = 0;                         // arrivals at mbarriers, copies to them, their phases' ends
  int done = 0;
  const GlobalMemory* global = nullptr;
  const unsigned char* parameters = nullptr;
  int parameter_bytes = 0;

  explicit Block(int shared_bytes) : shared(shared_bytes) {}
};

struct Grid {
  int blocks_x = 1;
  int blocks_y = 1;
  int threads = 32;
  int cluster = 1;  // blocks, along x
  int shared_bytes = 0;
  const void* parameters = nullptr;
};

// Runs all blocks. `seed`: the order of warps; 0: by their number. Raises Fault with kernel, instruction, block and
// warp.
void run(Kernel& kernel, const Grid& grid, const GlobalMemory& global, std::uint32_t seed);

}  // namespace ptx
