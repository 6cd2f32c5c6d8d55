// Scheduler, race detector and counters of the host SIMT simulator; see runtime.h and docs/simulator.md.
#include "runtime.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace mvk::simt {

ThreadIdentity current;

namespace {

struct Fault {
  std::string message;
};

struct AsyncCopy {
  int destination;  // byte address in shared memory
  const void* source;
  Where where;
  const char* region;
};

enum class Waiting : std::uint8_t { kNot, kForWarp, kForWarpgroup, kForBlock, kForCluster, kForBarrier, kDone };

// What a thread knows of the others in its cluster: an entry counts the warp barriers of one warp, and all that this
// warp did before that one happens before what the thread does next. The entries of a block's warps stand side by side,
// in the order of the blocks. Beside them are the phases of the own block's mbarriers, in the order of their init, whose
// copies and sends are there.
constexpr int kMaxBarriers = 16;
int warps_of_cluster();
struct Knowledge {
  std::uint32_t warp[kMaxClusterBlocks * kMaxWarps];  // as many as the cluster has
  std::uint32_t phases[kMaxBarriers];

  Knowledge() { clear(); }
  Knowledge(const Knowledge& other) { *this = other; }
  Knowledge& operator=(const Knowledge& other) {
    std::copy_n(other.warp, warps_of_cluster(), warp);
    std::copy_n(other.phases, kMaxBarriers, phases);
    return *this;
  }
  void clear() {
    std::fill_n(warp, warps_of_cluster(), 0u);
    std::fill_n(phases, kMaxBarriers, 0u);
  }
  void add_warps(const Knowledge& other) {
    const int warps = warps_of_cluster();
    for (int i = 0; i < warps; ++i) warp[i] = std::max(warp[i], other.warp[i]);
  }
  void add(const Knowledge& other) {
    add_warps(other);
    for (int i = 0; i < kMaxBarriers; ++i) phases[i] = std::max(phases[i], other.phases[i]);
  }
};

struct Lane {
  jmp_buf resume_point;
  ucontext_t first_context;
  bool started = false;
  Waiting waiting = Waiting::kNot;
  bool waited_for_launches = false;
  int waits_for = 0;  // number of the mbarrier
  Knowledge knows;
  std::uint32_t publications = 0;  // publish_matrices() of all blocks so far
  const char* primitive = nullptr;
  Where where{nullptr, 0};
  std::vector<AsyncCopy> open_copies;
  std::vector<std::vector<AsyncCopy>> copy_groups;
  void* fake_stack = nullptr;
};

// Accesses that the lanes of a warp made at one place, to be counted as warp-wide instructions: the n-th access of each
// lane since the last warp-wide primitive belongs to one instruction.
struct Site {
  Where where{nullptr, 0};
  int kind = 0;
  int bytes = 0;
  std::uint32_t instructions = 0;
  std::uint32_t by_lane[kWarpSize] = {};
  std::vector<std::uint32_t> masks;
  std::vector<std::uint64_t> addresses;  // kWarpSize an instruction
};

constexpr int kGlobalRead = 0;
constexpr int kGlobalWrite = 1;
constexpr int kSharedLoad = 2;
constexpr int kSharedStore = 3;
constexpr int kAsyncRead = 4;
constexpr int kAsyncWrite = 5;

struct Warp {
  std::uint32_t arrived = 0;
  std::uint32_t exited = 0;
  void* arguments[kWarpSize];
  std::uint32_t epoch = 0;  // counts sync_warp
  std::vector<Site> sites;
  std::size_t used_sites = 0;
};

// What the race detector remembers of 4 bytes of shared memory. Epochs are those of the block and of the cluster that
// made the access; each number is given out once, so that equal epochs mean the same block or cluster, too.
struct Word {
  std::uint64_t block_serial = 0;  // of the block that owns it, when it was written last: older is uninitialised
  std::uint64_t write_epoch = 0;
  std::uint64_t write_cluster_epoch = 0;
  std::uint64_t read_epoch = 0;
  std::uint64_t read_cluster_epoch = 0;
  std::uint32_t write_warp_epoch = 0;
  std::uint32_t write_publications = 0;  // of the thread that wrote, until then
  std::uint32_t read_warp_epoch = 0;
  std::uint32_t reading_warps = 0;
  std::uint32_t reading_lanes = 0;  // of read_warp, in read_warp_epoch
  std::uint8_t write_warp = 0;      // kMaxWarps and up: reported to that mbarrier, in phase write_warp_epoch
  std::uint8_t write_lane = 0;
  std::uint8_t read_warp = 0;
  std::uint8_t write_block = 0;     // rank in the cluster
  std::uint8_t reading_blocks = 0;  // mask of ranks, in read_cluster_epoch
  std::uint8_t written_bytes = 0;
  bool pending = false;
  bool sent = false;  // what was reported to an mbarrier was sent by a block, not copied from global memory
  Where write_where{nullptr, 0};
  Where read_where{nullptr, 0};
  const char* region = nullptr;
};

// A bulk copy, or what was sent, whose bytes have not come.
struct BulkCopy {
  int destination;     // byte address in shared memory
  const void* source;  // nullptr: `sent`
  int bytes;
  unsigned char sent[16] = {};
};

// An mbarrier or a count of arrivals.
struct Barrier {
  int address;
  int arrivals;  // that end a phase; 0: a count
  int arrived = 0;
  std::int64_t announced = 0;  // bytes of this phase, not asked for yet; below 0: sent before they were announced
  std::int64_t under_way = 0;  // asked for
  std::uint32_t phase = 0;     // phases that have ended
  Knowledge gathered;          // from all arrivals
  Knowledge released;          // as of the end of the last phase
  std::vector<BulkCopy> copies;
  std::uint64_t init_epoch;
  std::uint64_t init_cluster_epoch;
  int init_thread;
  bool published = false;
  bool was_sent_to = false;
};

// One of the blocks that run at the same time: those of a cluster.
struct Block {
  int rank = 0;  // in the cluster
  Index3 index;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  std::vector<Word> words;
  std::vector<std::uint32_t> read_stamps;  // a word and warp: its warp barriers at its last read
  std::vector<Barrier> barriers;
  int arrived_of_group[kMaxWarps / 4] = {};  // threads at sync_warpgroup
  std::uint64_t serial = 0;                  // from 1; never reset, so that no shadow needs clearing
  std::uint32_t serial_in_launch = 0;
  std::uint64_t epoch = 0;  // changes with each barrier
  int arrived = 0;          // threads at sync_block
  int done = 0;             // threads that have left the kernel
  // The last access to its shared memory by another block.
  std::uint64_t remote_epoch = 0;
  int remote_block = 0;
  Where remote_where{nullptr, 0};
};

constexpr std::size_t kStackBytes = 256 * 1024;

// In Buffer::written_by: what launches before this one wrote is there for all blocks.
constexpr std::uint32_t kEarlierLaunch = 0xffffffffu;

struct Machine {
  Options options;
  std::vector<Buffer*> buffers;
  LaunchRecord launch{"", 0, 0};

  // The cluster that runs; a block of a launch without clusters is one of its own.
  std::vector<std::unique_ptr<Lane>> lanes;  // of all its blocks, one block after the other
  std::vector<char*> stacks;
  std::vector<Block> blocks;
  Block* block = nullptr;  // of the running thread
  std::uint64_t serial = 0;
  std::uint32_t serial_in_launch = 0;
  std::uint64_t epochs = 0;         // given out
  std::uint64_t cluster_epoch = 0;  // changes with each sync_cluster
  int cluster_arrived = 0;
  int cluster_barriers = 0;  // that this cluster has completed
  int threads = 0;           // of a block
  int running = -1;          // thread index in its block, −1: the scheduler
  jmp_buf scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_bytes = 0;
  void (*entry)(const void*) = nullptr;
  const void* params = nullptr;
  bool faulted = false;
  std::string report;
  std::uint64_t random = 0;
};

Machine machine;

int warps_of_cluster() { return machine.threads / kWarpSize * static_cast<int>(machine.blocks.size()); }

// Where a warp's entry is in Knowledge.
int warp_number(const Block& block, int warp) { return block.rank * machine.threads / kWarpSize + warp; }

std::uint64_t next_random() {
  machine.random += 0x9e3779b97f4a7c15u;
  std::uint64_t z = machine.random;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

const char* base_name(const char* path) {
  const char* slash = path == nullptr ? nullptr : std::strrchr(path, '/');
  return slash == nullptr ? (path == nullptr ? "?" : path) : slash + 1;
}

std::string format_where(Where where) {
  char text[256];
  std::snprintf(text, sizeof(text), "%s:%d", base_name(where.file), where.line);
  return text;
}

std::string format_thread(int warp, int lane) {
  char text[64];
  std::snprintf(text, sizeof(text), "warp %d lane %d", warp, lane);
  return text;
}

int running_warp() { return machine.running / kWarpSize; }
int running_lane() { return machine.running % kWarpSize; }

Lane& lane_of(const Block& block, int thread) {
  return *machine.lanes[static_cast<std::size_t>(block.rank * machine.threads + thread)];
}
Lane& running() { return lane_of(*machine.block, machine.running); }
Warp& warp_state() { return machine.block->warps[static_cast<std::size_t>(running_warp())]; }

// "block 3 " where there are several, else nothing.
std::string format_block(int rank) { return machine.blocks.size() == 1 ? "" : "block " + std::to_string(rank) + " "; }

// --- fibers -------------------------------------------------------------------------------------------------------

void switch_to_scheduler() {
  Lane& lane = running();
  machine.running = -1;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&lane.fake_stack, machine.scheduler_stack, machine.scheduler_stack_bytes);
#endif
  if (_setjmp(lane.resume_point) == 0) _longjmp(machine.scheduler, 1);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(lane.fake_stack, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
}

// A block's shared memory is gone with its last thread: nobody may have used it since the last cluster barrier.
void note_block_has_left() {
  const Block& block = *machine.block;
  for (const Barrier& barrier : block.barriers) {
    if (machine.faulted || barrier.copies.empty()) continue;
    machine.faulted = true;
    const char* what = barrier.copies.front().source == nullptr ? "send" : "copy_bulk";
    machine.report = std::string(machine.launch.kernel) + ": the block left the kernel while a " + what + " is under way";
  }
  if (machine.faulted || block.remote_epoch != machine.cluster_epoch) return;
  machine.faulted = true;
  machine.report = format_where(block.remote_where) + ": block " + std::to_string(block.remote_block) +
                   " of the cluster accesses shared memory of block " + std::to_string(block.rank) +
                   ", which leaves the kernel with no sync_cluster() between";
}

// A fiber runs the kernel once for each block that comes.
void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
#endif
  while (true) {
    try {
      machine.entry(machine.params);
      check_no_wgmma_products();
      if (!machine.lanes[static_cast<std::size_t>(machine.running)]->waited_for_launches) {
        fault(Where{machine.launch.kernel, 0}, "left the kernel without wait_for_earlier_launches()");
      }
    } catch (const Fault& fault) {
      machine.faulted = true;
      machine.report = fault.message;
    }
    running().waiting = Waiting::kDone;
    warp_state().exited |= 1u << running_lane();
    if (++machine.block->done == machine.threads) note_block_has_left();
    switch_to_scheduler();
  }
}

void resume(Block& block, int thread) {
  Lane& lane = lane_of(block, thread);
  machine.block = &block;
  machine.running = thread;
  current = {thread, block.index, block.rank, static_cast<int>(machine.blocks.size())};
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack,
                                 machine.stacks[static_cast<std::size_t>(block.rank * machine.threads + thread)],
                                 kStackBytes);
#endif
  if (_setjmp(machine.scheduler) == 0) {
    if (lane.started) _longjmp(lane.resume_point, 1);
    lane.started = true;
    setcontext(&lane.first_context);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
}

void make_fibers(int threads) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  while (machine.stacks.size() < static_cast<std::size_t>(threads)) {
    // A page without access below each stack turns an overflow into a crash instead of a neighbour's wrong values.
    void* mapping = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw BadView{"no memory for the stacks of the simulated threads"};
    mprotect(mapping, page, PROT_NONE);
    machine.stacks.push_back(static_cast<char*>(mapping) + page);
  }
  machine.lanes.clear();
  for (int thread = 0; thread < threads; ++thread) {
    auto lane = std::make_unique<Lane>();
    char* stack = machine.stacks[static_cast<std::size_t>(thread)];
#if defined(__SANITIZE_ADDRESS__)
    // Frames that an earlier launch abandoned have left their red zones.
    ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);
#endif
    getcontext(&lane->first_context);
    lane->first_context.uc_stack.ss_sp = stack;
    lane->first_context.uc_stack.ss_size = kStackBytes;
    lane->first_context.uc_link = nullptr;
    makecontext(&lane->first_context, fiber_main, 0);
    machine.lanes.push_back(std::move(lane));
  }
}

void block_thread(Waiting waiting, const char* primitive, Where where) {
  Lane& lane = running();
  lane.waiting = waiting;
  lane.primitive = primitive;
  lane.where = where;
  switch_to_scheduler();
}

// --- warp-wide counting -------------------------------------------------------------------------------------------

struct Wavefronts {
  std::uint64_t taken = 0;
  std::uint64_t least = 0;
};

// Shared memory serves 32 banks of 4 bytes a cycle; accesses of 8 and 16 bytes go by half and quarter warps.
Wavefronts shared_wavefronts(std::uint32_t mask, const std::uint64_t* addresses, int bytes) {
  const int lanes_a_phase = bytes == 16 ? 8 : bytes == 8 ? 16 : 32;
  Wavefronts total;
  for (int first = 0; first < kWarpSize; first += lanes_a_phase) {
    std::uint64_t words_in_bank[32][32];
    int count_in_bank[32] = {};
    int most = 0;
    for (int lane = first; lane < first + lanes_a_phase; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      for (int byte = 0; byte < std::max(bytes, 4); byte += 4) {
        const std::uint64_t word = addresses[lane] / 4 + static_cast<std::uint64_t>(byte / 4);
        const auto bank = static_cast<int>(word % 32);
        bool known = false;
        for (int i = 0; i < count_in_bank[bank]; ++i) known = known || words_in_bank[bank][i] == word;
        if (!known) words_in_bank[bank][count_in_bank[bank]++] = word;
        most = std::max(most, count_in_bank[bank]);
      }
    }
    total.taken += static_cast<std::uint64_t>(most);
    total.least += most != 0 ? 1 : 0;
  }
  return total;
}

std::uint64_t distinct_sectors(std::uint32_t mask, const std::uint64_t* addresses, int bytes) {
  std::uint64_t sectors[2 * kWarpSize];
  int count = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    for (const std::uint64_t sector :
         {addresses[lane] / 32, (addresses[lane] + static_cast<unsigned>(bytes) - 1) / 32}) {
      if (std::find(sectors, sectors + count, sector) == sectors + count) sectors[count++] = sector;
    }
  }
  return static_cast<std::uint64_t>(count);
}

void count_instruction(const Site& site, std::uint32_t mask, const std::uint64_t* addresses) {
  Counters& total = counters();
  if (site.kind == kGlobalRead || site.kind == kAsyncRead) {
    total.global_read_sectors += distinct_sectors(mask, addresses, site.bytes);
    return;
  }
  if (site.kind == kGlobalWrite) {
    total.global_write_sectors += distinct_sectors(mask, addresses, site.bytes);
    return;
  }
  const Wavefronts wavefronts = shared_wavefronts(mask, addresses, site.bytes);
  if (site.kind == kSharedLoad) {
    total.shared_load_wavefronts += wavefronts.taken;
    total.shared_load_conflicts += wavefronts.taken - wavefronts.least;
  } else if (site.kind == kSharedStore) {
    total.shared_store_wavefronts += wavefronts.taken;
    total.shared_store_conflicts += wavefronts.taken - wavefronts.least;
  } else {
    total.async_copy_wavefronts += wavefronts.taken;
    total.async_copy_conflicts += wavefronts.taken - wavefronts.least;
  }
}

void flush_sites(Warp& warp) {
  for (std::size_t i = 0; i < warp.used_sites; ++i) {
    Site& site = warp.sites[i];
    for (std::uint32_t n = 0; n < site.instructions; ++n) {
      count_instruction(site, site.masks[n], &site.addresses[n * kWarpSize]);
    }
    site.instructions = 0;
    std::fill(std::begin(site.by_lane), std::end(site.by_lane), 0);
  }
  warp.used_sites = 0;
}

void note_access(int kind, std::uint64_t address, int bytes, Where where) {
  Warp& warp = warp_state();
  const int lane = running_lane();
  std::size_t i = 0;
  while (i < warp.used_sites && !(warp.sites[i].where.line == where.line && warp.sites[i].kind == kind &&
                                  warp.sites[i].bytes == bytes && warp.sites[i].where.file == where.file)) {
    ++i;
  }
  if (i == warp.used_sites) {
    if (i == warp.sites.size()) warp.sites.emplace_back();
    ++warp.used_sites;
    warp.sites[i].where = where;
    warp.sites[i].kind = kind;
    warp.sites[i].bytes = bytes;
  }
  Site& site = warp.sites[i];
  const std::uint32_t n = site.by_lane[lane]++;
  if (n >= site.instructions) {
    site.instructions = n + 1;
    if (site.masks.size() < site.instructions) {
      site.masks.resize(2 * site.instructions);
      site.addresses.resize(2 * site.instructions * kWarpSize);
    }
    site.masks[n] = 0;
  }
  site.masks[n] |= 1u << lane;
  site.addresses[n * kWarpSize + static_cast<std::uint32_t>(lane)] = address;
}

// --- race detector ------------------------------------------------------------------------------------------------

// The kernel of the matter: two accesses to a word, at least one a write, race when no barrier that both threads passed
// lies between them. That depends on the program alone and not on the order in which the simulator ran the threads.
// `lane` is the reader; kWholeWarp for ldmatrix, whose rows go to lanes other than the one that names their address.
constexpr int kWholeWarp = -1;

// Whether what a warp of a block did at `stamp` happens before what the running thread does now.
bool knows(const Block& block, int warp, std::uint32_t stamp) {
  return running().knows.warp[warp_number(block, warp)] > stamp;
}

// The same for the last write to a word of the running thread's block.
bool knows_write(const Word& word) {
  if (word.write_warp < kMaxWarps) return knows(*machine.block, word.write_warp, word.write_warp_epoch);
  return running().knows.phases[word.write_warp - kMaxWarps] > word.write_warp_epoch;
}

// "warp 3 lane 0", or the bulk copy or send.
std::string format_writer(const Word& word) {
  if (word.write_warp >= kMaxWarps) return word.sent ? "send" : "copy_bulk";
  return format_thread(word.write_warp, word.write_lane);
}

// Block barriers do not wait for bulk copies and sends: only a wait for their phase counts.
bool may_race(const Word& word, const Block& block) {
  return word.write_warp < kMaxWarps ? word.write_epoch == block.epoch : word.block_serial == block.serial;
}

// What is missing between a write to a word and an access by another warp.
const char* missing_order(const Word& word) {
  return word.write_warp < kMaxWarps ? "no sync_block() between" : "no barrier_wait() for it";
}

bool owns(const Block& block, const Word& word) {
  return &word >= block.words.data() && &word < block.words.data() + block.words.size();
}

std::uint32_t& read_stamp(const Word& word, const Block& block, int warp) {
  Block& owner = const_cast<Block&>(block);
  const auto index = static_cast<std::size_t>(&word - owner.words.data());
  return owner.read_stamps[index * owner.warps.size() + static_cast<std::size_t>(warp)];
}

// `word` may be another block's: between accesses of two blocks only a cluster barrier counts, but for sends.
void check_and_record_read(Word& word, const char* region, int byte, int lane, Where where) {
  const int warp = running_warp();
  const Block& block = *machine.block;
  const Warp& state = warp_state();
  if (word.write_cluster_epoch == machine.cluster_epoch && word.write_block != block.rank) {
    fault(where,
          "race on shared region '%s' byte %d: read here, written by block %d %s at %s, no sync_cluster() between",
          region, byte, word.write_block, format_thread(word.write_warp, word.write_lane).c_str(),
          format_where(word.write_where).c_str());
  }
  if (may_race(word, block) && (word.write_warp != warp || word.write_lane != lane)) {
    if (word.write_warp != warp) {
      if (!knows_write(word)) {
        fault(where, "race on shared region '%s' byte %d: read here, written by %s at %s, %s", region, byte,
              format_writer(word).c_str(), format_where(word.write_where).c_str(), missing_order(word));
      }
    } else if (word.write_warp_epoch == state.epoch) {
      fault(where, "race on shared region '%s' byte %d: read here, written by lane %d at %s, no sync_warp() between",
            region, byte, word.write_lane, format_where(word.write_where).c_str());
    }
  }
  if (word.read_cluster_epoch != machine.cluster_epoch) {
    word.read_cluster_epoch = machine.cluster_epoch;
    word.reading_blocks = 0;
  }
  word.reading_blocks = static_cast<std::uint8_t>(word.reading_blocks | 1 << block.rank);
  if (word.read_epoch != block.epoch) {
    word.read_epoch = block.epoch;
    word.reading_warps = 0;
    word.reading_lanes = 0;
  }
  if (word.read_warp != warp || word.read_warp_epoch != state.epoch) word.reading_lanes = 0;
  word.reading_warps |= 1u << warp;
  word.reading_lanes |= lane == kWholeWarp ? kFullMask : 1u << lane;
  word.read_warp = static_cast<std::uint8_t>(warp);
  word.read_warp_epoch = state.epoch;
  word.read_where = where;
  if (owns(block, word)) read_stamp(word, block, warp) = state.epoch;
}

void check_and_record_write(Word& word, const char* region, int byte, Where where) {
  const int warp = running_warp();
  const int lane = running_lane();
  const Block& block = *machine.block;
  const Warp& state = warp_state();
  if (word.write_cluster_epoch == machine.cluster_epoch && word.write_block != block.rank) {
    fault(where, "race on shared region '%s' byte %d: written here and by block %d %s at %s, no sync_cluster() between",
          region, byte, word.write_block, format_thread(word.write_warp, word.write_lane).c_str(),
          format_where(word.write_where).c_str());
  }
  const int other_blocks = word.reading_blocks & ~(1 << block.rank);
  if (word.read_cluster_epoch == machine.cluster_epoch && other_blocks != 0) {
    fault(where, "race on shared region '%s' byte %d: written here, read by block %d, no sync_cluster() between",
          region, byte, __builtin_ctz(static_cast<unsigned>(other_blocks)));
  }
  if (may_race(word, block) && (word.write_warp != warp || word.write_lane != lane)) {
    if (word.write_warp != warp) {
      if (!knows_write(word)) {
        fault(where, "race on shared region '%s' byte %d: written here and by %s at %s, %s", region, byte,
              format_writer(word).c_str(), format_where(word.write_where).c_str(), missing_order(word));
      }
    } else if (word.write_warp_epoch == state.epoch) {
      fault(where, "race on shared region '%s' byte %d: written here and by lane %d at %s, no sync_warp() between",
            region, byte, word.write_lane, format_where(word.write_where).c_str());
    }
  }
  if (word.read_epoch == block.epoch) {
    for (std::uint32_t others = word.reading_warps & ~(1u << warp); others != 0; others &= others - 1) {
      const int reader = __builtin_ctz(others);
      if (owns(block, word) && knows(block, reader, read_stamp(word, block, reader))) continue;
      fault(where, "race on shared region '%s' byte %d: written here, read by warp %d at %s, no sync_block() between",
            region, byte, reader, format_where(word.read_where).c_str());
    }
    if (word.read_warp == warp && word.read_warp_epoch == state.epoch && (word.reading_lanes & ~(1u << lane)) != 0) {
      fault(where, "race on shared region '%s' byte %d: written here, read by lane %d at %s, no sync_warp() between",
            region, byte, __builtin_ctz(word.reading_lanes & ~(1u << lane)), format_where(word.read_where).c_str());
    }
  }
  word.write_epoch = block.epoch;
  word.write_cluster_epoch = machine.cluster_epoch;
  word.write_block = static_cast<std::uint8_t>(block.rank);
  word.write_warp = static_cast<std::uint8_t>(warp);
  word.write_lane = static_cast<std::uint8_t>(lane);
  word.write_warp_epoch = state.epoch;
  word.write_publications = running().publications;
  word.write_where = where;
}

void check_shared_range(const char* region, int byte_count, int byte_offset, int bytes, int byte_begin, Where where) {
  if (byte_offset < 0 || byte_offset + bytes > byte_count) {
    fault(where, "shared region '%s' out of bounds: bytes %d … %d of %d", region, byte_offset, byte_offset + bytes - 1,
          byte_count);
  }
  if ((byte_begin + byte_offset) % bytes != 0) {
    fault(where, "shared region '%s' misaligned: %d bytes at byte %d", region, bytes, byte_begin + byte_offset);
  }
}

// `owner`: the block whose shared memory it is.
void check_readable(const Word& word, const Block& owner, const char* region, int address, int byte_begin, int bytes,
                    Where where) {
  const int first = address % 4;
  const auto needed = static_cast<std::uint8_t>(bytes >= 4 ? 15 : (1 << bytes) - 1) << (bytes >= 4 ? 0 : first);
  if (word.pending && word.block_serial == owner.serial) {
    if (word.write_warp >= kMaxWarps) {
      fault(where, "shared region '%s' byte %d: read before the barrier_wait for the %s at %s", region,
            address - byte_begin, format_writer(word).c_str(), format_where(word.write_where).c_str());
    }
    fault(where, "shared region '%s' byte %d: read before the copy_async_wait that delivers what %s copies at %s",
          region, address - byte_begin, format_thread(word.write_warp, word.write_lane).c_str(),
          format_where(word.write_where).c_str());
  }
  if (word.block_serial != owner.serial || (word.written_bytes & needed) != needed) {
    fault(where, "shared region '%s' byte %d: read, but nothing was written there", region, address - byte_begin);
  }
  if (word.region != region && std::strcmp(word.region, region) != 0) {
    fault(where, "shared region '%s' byte %d: read, but last written as region '%s' by %s at %s: the regions overlap",
          region, address - byte_begin, word.region, format_writer(word).c_str(),
          format_where(word.write_where).c_str());
  }
}

void mark_written(Word& word, const Block& owner, const char* region, int address, int bytes) {
  if (word.block_serial != owner.serial) {
    word.block_serial = owner.serial;
    word.written_bytes = 0;
    word.pending = false;
  }
  const int mask = bytes >= 4 ? 15 : ((1 << bytes) - 1) << address % 4;
  word.written_bytes = static_cast<std::uint8_t>(word.written_bytes | mask);
  word.region = region;
}

// --- scheduling ---------------------------------------------------------------------------------------------------

std::string describe_lanes(std::uint32_t mask) {
  if (mask == kFullMask) return "all lanes";
  std::string text = "lanes";
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    int last = lane;
    while (last + 1 < kWarpSize && (mask >> (last + 1) & 1u) != 0) ++last;
    text += " " + std::to_string(lane);
    if (last != lane) text += "-" + std::to_string(last);
    lane = last;
  }
  return text;
}

std::string describe_deadlock() {
  std::string text = "deadlock: no thread can go on.";
  const int warps = machine.threads / kWarpSize;
  int lines = 0;
  for (const Block& block : machine.blocks) {
    for (int warp = 0; warp < warps && lines < 12; ++warp) {
      std::uint32_t left = kFullMask;
      while (left != 0 && lines < 12) {
        const int first = __builtin_ctz(left);
        const Lane& example = lane_of(block, warp * kWarpSize + first);
        std::uint32_t same = 0;
        for (int lane = first; lane < kWarpSize; ++lane) {
          const Lane& other = lane_of(block, warp * kWarpSize + lane);
          const bool both_done = other.waiting == Waiting::kDone && example.waiting == Waiting::kDone;
          const bool same_place = other.waiting == example.waiting && other.where.line == example.where.line &&
                                  other.primitive == example.primitive;
          if ((left >> lane & 1u) != 0 && (both_done || same_place)) same |= 1u << lane;
        }
        left &= ~same;
        text += "\n  " + format_block(block.rank) + "warp " + std::to_string(warp) + " " + describe_lanes(same);
        text += example.waiting == Waiting::kDone
                    ? std::string(": left the kernel")
                    : ": waiting at " + std::string(example.primitive) + " (" + format_where(example.where) + ")";
        if (example.waiting == Waiting::kForBarrier) {
          const Barrier& barrier = block.barriers[static_cast<std::size_t>(example.waits_for)];
          text += " for " + std::to_string(barrier.arrivals - barrier.arrived) + " of " +
                  std::to_string(barrier.arrivals) + " arrivals and " + std::to_string(barrier.announced) + " bytes";
        }
        ++lines;
      }
    }
  }
  return text;
}

// A barrier of warps: their threads know what any of them knew, and what all of them did before.
void share_knowledge(Block& block, int first_warp, int warps) {
  Knowledge all;
  for (int warp = first_warp; warp < first_warp + warps; ++warp) {
    for (int lane = 0; lane < kWarpSize; ++lane) all.add(lane_of(block, warp * kWarpSize + lane).knows);
    all.warp[warp_number(block, warp)] = ++block.warps[static_cast<std::size_t>(warp)].epoch;
  }
  for (int thread = first_warp * kWarpSize; thread < (first_warp + warps) * kWarpSize; ++thread) {
    lane_of(block, thread).knows = all;
  }
}

// Ends the barrier's phase if everything is there.
void end_phase(Block& block, Barrier& barrier) {
  if (barrier.arrived < barrier.arrivals || barrier.announced != 0 || barrier.under_way != 0) return;
  const auto number = static_cast<int>(&barrier - block.barriers.data());
  barrier.arrived = 0;
  barrier.gathered.phases[number] = ++barrier.phase;
  barrier.released = barrier.gathered;
  for (int thread = 0; thread < machine.threads; ++thread) {
    Lane& lane = lane_of(block, thread);
    if (lane.waiting == Waiting::kForBarrier && lane.waits_for == number) lane.waiting = Waiting::kNot;
  }
}

// The bytes of all copies to a barrier come.
bool deliver_copies(Block& block, Barrier& barrier) {
  if (barrier.copies.empty()) return false;
  for (const BulkCopy& copy : barrier.copies) {
    const void* source = copy.source == nullptr ? copy.sent : copy.source;
    std::memcpy(block.shared.data() + copy.destination, source, static_cast<std::size_t>(copy.bytes));
    for (int byte = copy.destination; byte < copy.destination + copy.bytes; byte += 4) {
      block.words[static_cast<std::size_t>(byte / 4)].pending = false;
    }
    barrier.under_way -= copy.bytes;
  }
  barrier.copies.clear();
  end_phase(block, barrier);
  return true;
}

bool deliver_any_copy() {
  bool any = false;
  for (Block& block : machine.blocks) {
    for (Barrier& barrier : block.barriers) any = deliver_copies(block, barrier) || any;
  }
  return any;
}

void start_block(Block& block, Index3 index) {
  block.index = index;
  block.serial = ++machine.serial;
  block.serial_in_launch = ++machine.serial_in_launch;
  block.epoch = ++machine.epochs;
  block.arrived = 0;
  block.done = 0;
  block.remote_epoch = 0;
  block.barriers.clear();
  std::fill(std::begin(block.arrived_of_group), std::end(block.arrived_of_group), 0);
  std::memset(block.shared.data(), 0xff, block.shared.size());  // a NaN in every format
  for (Warp& warp : block.warps) {
    warp.arrived = 0;
    warp.exited = 0;
  }
}

// Runs the blocks of a cluster, all at the same time; `index` is the first one's.
void run_cluster(Index3 index) {
  machine.cluster_epoch = ++machine.epochs;
  machine.cluster_arrived = 0;
  machine.cluster_barriers = 0;
  forget_wgmma_products();
  for (Block& block : machine.blocks) {
    start_block(block, {index.x + static_cast<unsigned>(block.rank), index.y});
  }
  for (auto& lane : machine.lanes) {
    lane->waiting = Waiting::kNot;
    lane->waited_for_launches = false;
    lane->knows.clear();
    lane->where = Where{nullptr, 0};
    lane->open_copies.clear();
    lane->copy_groups.clear();
  }
  const int warps_a_block = machine.threads / kWarpSize;
  const int warps = warps_a_block * static_cast<int>(machine.blocks.size());
  const auto all_done = [] {
    for (const Block& block : machine.blocks) {
      if (block.done < machine.threads) return false;
    }
    return true;
  };
  while (!all_done()) {
    bool progress = false;
    // Warps in a random rotation, lanes in a random permutation: every round is another interleaving.
    const auto first = static_cast<int>(next_random() % static_cast<std::uint64_t>(warps));
    for (int i = 0; i < warps; ++i) {
      Block& block = machine.blocks[static_cast<std::size_t>((first + i) % warps / warps_a_block)];
      const int warp = (first + i) % warps % warps_a_block;
      const auto flip = static_cast<int>(next_random() % kWarpSize);
      for (int j = 0; j < kWarpSize; ++j) {
        const int thread = warp * kWarpSize + (j ^ flip);
        if (lane_of(block, thread).waiting != Waiting::kNot) continue;
        progress = true;
        resume(block, thread);
        if (machine.faulted) return;
      }
      // Stay with a warp for a few rounds, or move on: some warps run far ahead of others.
      if (next_random() % 4 != 0) {
        bool ready = false;
        for (int lane = 0; lane < kWarpSize; ++lane) {
          ready = ready || lane_of(block, warp * kWarpSize + lane).waiting == Waiting::kNot;
        }
        if (ready) --i;
      }
    }
    if (!progress && !deliver_any_copy()) {
      machine.faulted = true;
      machine.report = describe_deadlock();
      return;
    }
  }
  for (Block& block : machine.blocks) {
    for (Warp& warp : block.warps) flush_sites(warp);
    ++counters().blocks;
  }
}

}  // namespace

Options& options() { return machine.options; }
const std::vector<Buffer*>& buffers() { return machine.buffers; }
const LaunchRecord& last_launch() { return machine.launch; }
int dynamic_shared_bytes() { return machine.launch.shared_bytes; }

void fault(Where where, const char* format, ...) {
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  char place[256];
  std::snprintf(place, sizeof(place), "%s: warp %d lane %d, block (%u, %u): ", format_where(where).c_str(),
                running_warp(), running_lane(), current.block.x, current.block.y);
  throw Fault{std::string(place) + text};
}

bool gather_warp(const char* primitive, void* argument, Where where) {
  const int warp_number = running_warp();
  const int lane = running_lane();
  Warp& warp = warp_state();
  if (warp.arrived != 0) {
    const int other = __builtin_ctz(warp.arrived);
    const Lane& first = lane_of(*machine.block, warp_number * kWarpSize + other);
    if (first.where.line != where.line || std::strcmp(first.primitive, primitive) != 0) {
      fault(where, "divergence: lane %d is at %s here while lane %d waits at %s (%s)", lane, primitive, other,
            first.primitive, format_where(first.where).c_str());
    }
  }
  warp.arguments[lane] = argument;
  warp.arrived |= 1u << lane;
  if (warp.arrived == kFullMask) {
    flush_sites(warp);
    return true;
  }
  block_thread(Waiting::kForWarp, primitive, where);
  return false;
}

void** warp_arguments() { return warp_state().arguments; }

void release_warp() {
  warp_state().arrived = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    lane_of(*machine.block, running_warp() * kWarpSize + lane).waiting = Waiting::kNot;
  }
}

void sync_warp(Where where) {
  if (!gather_warp("sync_warp", nullptr, where)) return;
  ++counters().warp_barriers;
  share_knowledge(*machine.block, running_warp(), 1);
  release_warp();
}

void wait_for_earlier_launches() {
  machine.lanes[static_cast<std::size_t>(machine.running)]->waited_for_launches = true;
}

namespace {

// What a barrier of `scope` asks of the threads of a block: those that wait wait at this place, and none has left.
void check_barrier(const Block& block, Waiting scope, const char* primitive, Where where, int first_thread = 0,
                   int threads = 1 << 20) {
  threads = std::min(threads, machine.threads);
  for (int thread = first_thread; thread < first_thread + threads; ++thread) {
    const Lane& other = lane_of(block, thread);
    if (other.waiting != scope) continue;
    if (other.where.line != where.line || std::strcmp(other.where.file, where.file) != 0) {
      fault(where, "divergent barrier: this thread is at %s() here while %s%s waits at the one in %s", primitive,
            format_block(block.rank).c_str(), format_thread(thread / kWarpSize, thread % kWarpSize).c_str(),
            format_where(other.where).c_str());
    }
    break;
  }
  if (block.done == 0) return;
  for (int warp = first_thread / kWarpSize; warp < (first_thread + threads) / kWarpSize; ++warp) {
    const std::uint32_t exited = block.warps[static_cast<std::size_t>(warp)].exited;
    if (exited == 0) continue;
    fault(where, "skipped barrier: this thread is at %s() and %swarp %d %s left the kernel without it", primitive,
          format_block(block.rank).c_str(), warp, describe_lanes(exited).c_str());
  }
}

// All threads of a block go on from a barrier.
void release_block(Block& block) {
  block.epoch = ++machine.epochs;
  share_knowledge(block, 0, static_cast<int>(block.warps.size()));
  for (Warp& warp : block.warps) flush_sites(warp);
  for (int thread = 0; thread < machine.threads; ++thread) lane_of(block, thread).waiting = Waiting::kNot;
}

}  // namespace

void sync_block(Where where) {
  Block& block = *machine.block;
  check_barrier(block, Waiting::kForBlock, "sync_block", where);
  if (++block.arrived < machine.threads) {
    block_thread(Waiting::kForBlock, "sync_block", where);
    return;
  }
  block.arrived = 0;
  ++counters().block_barriers;
  release_block(block);
}

void sync_warpgroup(Where where) {
  constexpr int kGroup = 4 * kWarpSize;
  Block& block = *machine.block;
  const int first = machine.running / kGroup * kGroup;
  if (machine.threads % kGroup != 0) {
    fault(where, "sync_warpgroup: expected whole warpgroups of 128 threads, the block has %d threads", machine.threads);
  }
  check_barrier(block, Waiting::kForWarpgroup, "sync_warpgroup", where, first, kGroup);
  int& arrived = block.arrived_of_group[first / kGroup];
  if (++arrived < kGroup) {
    block_thread(Waiting::kForWarpgroup, "sync_warpgroup", where);
    return;
  }
  arrived = 0;
  ++counters().warpgroup_barriers;
  share_knowledge(block, first / kWarpSize, 4);
  for (int thread = first; thread < first + kGroup; ++thread) {
    if (thread % kWarpSize == 0) flush_sites(block.warps[static_cast<std::size_t>(thread / kWarpSize)]);
    lane_of(block, thread).waiting = Waiting::kNot;
  }
}

void sync_cluster(Where where) {
  for (const Block& block : machine.blocks) check_barrier(block, Waiting::kForCluster, "sync_cluster", where);
  if (++machine.cluster_arrived < machine.threads * static_cast<int>(machine.blocks.size())) {
    block_thread(Waiting::kForCluster, "sync_cluster", where);
    return;
  }
  machine.cluster_arrived = 0;
  ++machine.cluster_barriers;
  machine.cluster_epoch = ++machine.epochs;
  ++counters().cluster_barriers;
  Knowledge all;
  for (Block& block : machine.blocks) {
    release_block(block);
    all.add_warps(lane_of(block, 0).knows);
  }
  for (auto& lane : machine.lanes) lane->knows.add_warps(all);
}

namespace {

// The bytes of one access to the shared memory of `owner`, checked and recorded for the race detector.
void* checked_shared(Block& owner, bool write, const char* region, int byte_begin, int byte_count, int byte_offset,
                     int bytes, Where where) {
  check_shared_range(region, byte_count, byte_offset, bytes, byte_begin, where);
  const int address = byte_begin + byte_offset;
  for (int byte = address; byte < address + bytes; byte += 4) {
    Word& word = owner.words[static_cast<std::size_t>(byte / 4)];
    if (write) {
      if (word.pending && word.block_serial == owner.serial) {
        fault(where, "shared region '%s' byte %d: written while %s's %s of %s is under way", region, byte - byte_begin,
              word.write_warp < kMaxWarps ? format_writer(word).c_str() : "a thread",
              word.write_warp < kMaxWarps ? "copy_async" : format_writer(word).c_str(),
              format_where(word.write_where).c_str());
      }
      check_and_record_write(word, region, byte - byte_begin, where);
      mark_written(word, owner, region, byte, bytes);
    } else {
      check_readable(word, owner, region, byte, byte_begin, bytes, where);
      check_and_record_read(word, region, byte - byte_begin, running_lane(), where);
    }
  }
  return owner.shared.data() + address;
}

}  // namespace

void* shared_access(SharedAccess kind, const char* region, int byte_begin, int byte_count, int byte_offset, int bytes,
                    Where where) {
  const bool write = kind == SharedAccess::kStore;
  void* address = checked_shared(*machine.block, write, region, byte_begin, byte_count, byte_offset, bytes, where);
  note_access(write ? kSharedStore : kSharedLoad, static_cast<std::uint64_t>(byte_begin + byte_offset), bytes, where);
  return address;
}

namespace {

// The cluster's block `rank`, whose shared memory the running thread may access.
Block& running_block(int rank, const char* region, Where where) {
  if (rank < 0 || rank >= static_cast<int>(machine.blocks.size())) {
    fault(where, "shared region '%s' of block %d: the cluster has %d", region, rank,
          static_cast<int>(machine.blocks.size()));
  }
  Block& owner = machine.blocks[static_cast<std::size_t>(rank)];
  if (machine.cluster_barriers == 0) {
    fault(where, "shared region '%s' of block %d: accessed before the first sync_cluster(): the block may not run yet",
          region, rank);
  }
  if (owner.done == machine.threads) {
    fault(where, "shared region '%s' of block %d: accessed, but the block has left the kernel", region, rank);
  }
  return owner;
}

}  // namespace

void* remote_access(bool write, int rank, const char* region, int byte_begin, int byte_count, int byte_offset,
                    int bytes, Where where) {
  Block& owner = running_block(rank, region, where);
  if (&owner != machine.block) {
    owner.remote_epoch = machine.cluster_epoch;
    owner.remote_block = machine.block->rank;
    owner.remote_where = where;
  }
  void* address = checked_shared(owner, write, region, byte_begin, byte_count, byte_offset, bytes, where);
  (write ? counters().remote_write_bytes : counters().remote_read_bytes) += static_cast<std::uint64_t>(bytes);
  return address;
}

const void* matrix_row(const char* region, int byte_begin, int byte_count, int byte_offset, Where where) {
  check_shared_range(region, byte_count, byte_offset, 16, byte_begin, where);
  const int address = byte_begin + byte_offset;
  for (int byte = address; byte < address + 16; byte += 4) {
    Word& word = machine.block->words[static_cast<std::size_t>(byte / 4)];
    check_readable(word, *machine.block, region, byte, byte_begin, 16, where);
    check_and_record_read(word, region, byte - byte_begin, kWholeWarp, where);
  }
  return machine.block->shared.data() + address;
}

const void* published_row(const char* region, int byte_begin, int byte_count, int byte_offset, Where where) {
  const void* row = matrix_row(region, byte_begin, byte_count, byte_offset, where);
  const Block& block = *machine.block;
  for (int byte = byte_begin + byte_offset; byte < byte_begin + byte_offset + 16; byte += 4) {
    const Word& word = block.words[static_cast<std::size_t>(byte / 4)];
    if (word.write_warp >= kMaxWarps) continue;  // a bulk copy writes as wgmma reads
    const Lane& writer = lane_of(block, word.write_warp * kWarpSize + word.write_lane);
    if (writer.publications == word.write_publications) {
      fault(where,
            "shared region '%s' byte %d: read by wgmma, but %s has not called publish_matrices() since its write "
            "at %s",
            region, byte - byte_begin, format_thread(word.write_warp, word.write_lane).c_str(),
            format_where(word.write_where).c_str());
    }
  }
  return row;
}

void publish_matrices() { ++running().publications; }

void count_matrix_rows(const int* byte_addresses, int rows) {
  std::uint64_t addresses[kWarpSize] = {};
  for (int row = 0; row < rows; ++row) addresses[row] = static_cast<std::uint64_t>(byte_addresses[row]);
  const Wavefronts wavefronts = shared_wavefronts((1u << rows) - 1, addresses, 16);
  counters().matrix_load_wavefronts += wavefronts.taken;
  counters().matrix_load_conflicts += wavefronts.taken - wavefronts.least;
}

GlobalView global_view(const void* pointer, std::uint64_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(pointer);
  for (Buffer* buffer : machine.buffers) {
    if (begin >= buffer->begin && begin + bytes <= buffer->begin + buffer->bytes) return {begin, bytes, buffer};
  }
  char text[256];
  std::snprintf(text, sizeof(text),
                "a launcher describes %llu bytes of global memory at %p that no registered buffer holds",
                static_cast<unsigned long long>(bytes), pointer);
  throw BadView{text};
}

namespace {

// Accesses of the blocks of a cluster to one word of an output; `writer`: the rank of the one that wrote it last, −1:
// none of them.
void check_and_record_exchange(Buffer& buffer, std::uint64_t index, bool write, int writer, std::int64_t byte_offset,
                               Where where) {
  ClusterWord& word = buffer.cluster_words[index];
  const int rank = machine.block->rank;
  if (writer >= 0 && writer != rank && word.write_epoch == machine.cluster_epoch) {
    fault(where, "race on global buffer '%s' byte %lld: %s here and written by block %d, no sync_cluster() between",
          buffer.name.c_str(), static_cast<long long>(byte_offset), write ? "written" : "read", writer);
  }
  if (word.read_epoch != machine.cluster_epoch) {
    word.read_epoch = machine.cluster_epoch;
    word.reading_blocks = 0;
  }
  if (!write) {
    word.reading_blocks |= 1u << rank;
    return;
  }
  const std::uint32_t others = word.reading_blocks & ~(1u << rank);
  if (others != 0) {
    fault(where, "race on global buffer '%s' byte %lld: written here, read by block %d, no sync_cluster() between",
          buffer.name.c_str(), static_cast<long long>(byte_offset), __builtin_ctz(others));
  }
  word.write_epoch = machine.cluster_epoch;
}

void* checked_global(bool write, const GlobalView& view, std::int64_t byte_offset, int bytes, Where where) {
  const char* name = view.buffer == nullptr ? "null" : view.buffer->name.c_str();
  if (view.buffer == nullptr || byte_offset < 0 || byte_offset + bytes > static_cast<std::int64_t>(view.bytes)) {
    fault(where, "global buffer '%s' out of bounds: bytes %lld … %lld of %lld", name,
          static_cast<long long>(byte_offset), static_cast<long long>(byte_offset + bytes - 1),
          static_cast<long long>(view.bytes));
  }
  const std::uintptr_t address = view.begin + static_cast<std::uintptr_t>(byte_offset);
  if (address % static_cast<std::uintptr_t>(bytes) != 0) {
    fault(where, "global buffer '%s' misaligned: %d bytes at byte %lld", name, bytes,
          static_cast<long long>(byte_offset));
  }
  Buffer& buffer = *view.buffer;
  const std::uint64_t in_buffer = address - buffer.begin;
  if (write && !buffer.output) fault(where, "global buffer '%s' is an input and is written", name);
  if (!buffer.constant && !machine.lanes[static_cast<std::size_t>(machine.running)]->waited_for_launches) {
    fault(where, "global buffer '%s' byte %lld: %s before wait_for_earlier_launches()", name,
          static_cast<long long>(byte_offset), write ? "written" : "read");
  }
  if (write) {
    buffer.write_bytes += static_cast<std::uint64_t>(bytes);
  } else {
    buffer.read_bytes += static_cast<std::uint64_t>(bytes);
    for (std::uint64_t sector = in_buffer / 32; sector <= (in_buffer + static_cast<unsigned>(bytes) - 1) / 32;
         ++sector) {
      buffer.sectors_read[sector] = 1;
    }
  }
  if (buffer.output) {
    for (std::uint64_t word = in_buffer / 4; word <= (in_buffer + static_cast<unsigned>(bytes) - 1) / 4; ++word) {
      std::uint32_t& writer = buffer.written_by[word];
      if (writer == 0 && !write)
        fault(where, "global buffer '%s' byte %lld: read, but nothing was written there", name,
              static_cast<long long>(byte_offset));
      const std::uint32_t first_in_cluster = machine.blocks[0].serial_in_launch;
      const bool in_cluster =
          writer >= first_in_cluster && writer < first_in_cluster + static_cast<std::uint32_t>(machine.blocks.size());
      if (writer != 0 && writer != kEarlierLaunch && !in_cluster) {
        fault(where,
              "race on global buffer '%s' byte %lld: %s here and written by another block (number %u in the order "
              "of the run)",
              name, static_cast<long long>(byte_offset), write ? "written" : "read", writer - 1);
      }
      if (machine.blocks.size() > 1) {
        check_and_record_exchange(buffer, word, write, in_cluster ? static_cast<int>(writer - first_in_cluster) : -1,
                                  byte_offset, where);
      }
      if (write) writer = machine.block->serial_in_launch;
    }
  }
  if (write) {
    counters().global_write_bytes += static_cast<std::uint64_t>(bytes);
  } else {
    counters().global_read_bytes += static_cast<std::uint64_t>(bytes);
  }
  return reinterpret_cast<void*>(address);
}

}  // namespace

void* global_access(bool write, const GlobalView& view, std::int64_t byte_offset, int bytes, Where where) {
  void* address = checked_global(write, view, byte_offset, bytes, where);
  note_access(write ? kGlobalWrite : kGlobalRead, reinterpret_cast<std::uintptr_t>(address), bytes, where);
  return address;
}

void global_prefetch(const GlobalView& view, std::int64_t byte_offset, Where where) {
  if (byte_offset < 0 || byte_offset >= static_cast<std::int64_t>(view.bytes)) {
    fault(where, "prefetch outside of a global buffer: byte %lld of %lld", static_cast<long long>(byte_offset),
          static_cast<long long>(view.bytes));
  }
}

void copy_async(const char* region, int byte_begin, int byte_count, int byte_offset, const GlobalView& source,
                std::int64_t source_offset, bool valid, Where where) {
  check_shared_range(region, byte_count, byte_offset, 16, byte_begin, where);
  const void* from = nullptr;
  if (valid) {
    from = checked_global(false, source, source_offset, 16, where);
    note_access(kAsyncRead, reinterpret_cast<std::uintptr_t>(from), 16, where);
  } else if (source_offset < 0 || source_offset >= static_cast<std::int64_t>(source.bytes)) {
    fault(where, "global buffer '%s': the offset of a zero-filling copy has to be inside it, byte %lld of %lld",
          source.buffer == nullptr ? "null" : source.buffer->name.c_str(), static_cast<long long>(source_offset),
          static_cast<long long>(source.bytes));
  }
  const int address = byte_begin + byte_offset;
  for (int byte = address; byte < address + 16; byte += 4) {
    Word& word = machine.block->words[static_cast<std::size_t>(byte / 4)];
    if (word.pending && word.block_serial == machine.block->serial) {
      fault(where, "shared region '%s' byte %d: copied to while the %s of %s is under way", region, byte - byte_begin,
            word.write_warp < kMaxWarps ? "copy_async" : "copy_bulk", format_where(word.write_where).c_str());
    }
    check_and_record_write(word, region, byte - byte_begin, where);
    mark_written(word, *machine.block, region, byte, 16);
    word.pending = true;
  }
  std::memset(machine.block->shared.data() + address, 0xff, 16);
  note_access(kAsyncWrite, static_cast<std::uint64_t>(address), 16, where);
  running().open_copies.push_back({address, from, where, region});
}

void copy_async_commit() {
  Lane& lane = running();
  lane.copy_groups.push_back(std::move(lane.open_copies));
  lane.open_copies.clear();
}

void copy_async_wait(int pending, Where) {
  Lane& lane = running();
  const auto keep = static_cast<std::size_t>(pending);
  if (lane.copy_groups.size() <= keep) return;
  const std::size_t delivered = lane.copy_groups.size() - keep;
  for (std::size_t group = 0; group < delivered; ++group) {
    for (const AsyncCopy& copy : lane.copy_groups[group]) {
      unsigned char* to = machine.block->shared.data() + copy.destination;
      if (copy.source != nullptr) {
        std::memcpy(to, copy.source, 16);
      } else {
        std::memset(to, 0, 16);
      }
      for (int byte = copy.destination; byte < copy.destination + 16; byte += 4) {
        Word& word = machine.block->words[static_cast<std::size_t>(byte / 4)];
        word.pending = false;
        check_and_record_write(word, copy.region, byte, copy.where);
      }
    }
  }
  lane.copy_groups.erase(lane.copy_groups.begin(), lane.copy_groups.begin() + static_cast<std::ptrdiff_t>(delivered));
}

namespace {

// The barrier at a byte of a region, usable by the running thread.
Barrier& barrier_at(int address, bool is_count, const char* primitive, Where where) {
  Block& block = *machine.block;
  for (Barrier& barrier : block.barriers) {
    if (barrier.address != address || (barrier.arrivals == 0) != is_count) continue;
    if (barrier.init_thread != machine.running && barrier.init_epoch == block.epoch) {
      fault(where, "%s: no sync_block() since %s initialised the barrier", primitive,
            format_thread(barrier.init_thread / kWarpSize, barrier.init_thread % kWarpSize).c_str());
    }
    if (barrier.init_thread != machine.running && !is_count && !barrier.published) {
      fault(where, "%s: no publish_barriers() since the barrier's init", primitive);
    }
    return barrier;
  }
  fault(where, "%s: byte %d of shared memory is no barrier that was initialised", primitive, address);
}

// Sent bytes may come before they are announced, but not be more.
void check_announced(const Barrier& barrier, Where where) {
  if (barrier.arrived < barrier.arrivals || barrier.announced >= 0) return;
  fault(where, "%lld bytes more were sent in this phase than its arrivals announced",
        -static_cast<long long>(barrier.announced));
}

// What is sent to a word of another block, or of this one, may follow what happens before it alone: no cluster barrier
// orders it, but what the sender knows of the other blocks' warps.
void check_sent(const Word& word, const Block& owner, int number, const char* region, int byte, Where where) {
  const Block& block = *machine.block;
  const int warp = running_warp();
  const bool written = word.block_serial == owner.serial;
  if (written && word.write_warp == kMaxWarps + number &&
      word.write_warp_epoch == owner.barriers[static_cast<std::size_t>(number)].phase) {
    fault(where, "shared region '%s' byte %d: sent to twice in one phase, before at %s", region, byte,
          format_where(word.write_where).c_str());
  }
  if (written && word.pending) {
    fault(where, "shared region '%s' byte %d: sent to while the %s of %s is under way", region, byte,
          word.write_warp < kMaxWarps ? "copy_async" : format_writer(word).c_str(),
          format_where(word.write_where).c_str());
  }
  if (written && word.write_warp < kMaxWarps) {
    const Block& writer = machine.blocks[word.write_block];
    const bool same_thread =
        writer.rank == block.rank && word.write_warp == warp && word.write_lane == running_lane();
    if (!same_thread && !knows(writer, word.write_warp, word.write_warp_epoch)) {
      fault(where, "race on shared region '%s' byte %d: sent to here, written by block %d %s at %s, nothing between",
            region, byte, writer.rank, format_writer(word).c_str(), format_where(word.write_where).c_str());
    }
  }
  for (int reader = 0; reader < static_cast<int>(owner.warps.size()); ++reader) {
    if (knows(owner, reader, read_stamp(word, owner, reader))) continue;
    fault(where, "race on shared region '%s' byte %d: sent to here, read by block %d warp %d at %s, nothing between",
          region, byte, owner.rank, reader, format_where(word.read_where).c_str());
  }
  const int readers = word.reading_blocks & ~(1 << owner.rank);
  if (word.read_cluster_epoch == machine.cluster_epoch && readers != 0) {
    fault(where, "race on shared region '%s' byte %d: sent to here, read by block %d, no sync_cluster() between",
          region, byte, __builtin_ctz(static_cast<unsigned>(readers)));
  }
}

}  // namespace

void send(int rank, const char* region, int byte_begin, int byte_count, int byte_offset, const void* value, int bytes,
          int barrier_address, Where where) {
  Block& owner = running_block(rank, region, where);
  check_shared_range(region, byte_count, byte_offset, bytes, byte_begin, where);
  const auto found = std::find_if(owner.barriers.begin(), owner.barriers.end(), [&](const Barrier& barrier) {
    return barrier.address == barrier_address && barrier.arrivals != 0;
  });
  if (found == owner.barriers.end()) {
    fault(where, "send: byte %d of block %d's shared memory is no barrier that was initialised", barrier_address, rank);
  }
  if (!found->published) fault(where, "send: no publish_barriers() since the barrier's init");
  if (found->init_cluster_epoch == machine.cluster_epoch) {
    fault(where, "send: no sync_cluster() since block %d initialised the barrier", rank);
  }
  const auto number = static_cast<int>(found - owner.barriers.begin());
  const int address = byte_begin + byte_offset;
  for (int byte = address; byte < address + bytes; byte += 4) {
    Word& word = owner.words[static_cast<std::size_t>(byte / 4)];
    check_sent(word, owner, number, region, byte - byte_begin, where);
    mark_written(word, owner, region, byte, bytes);
    word.pending = true;
    word.sent = true;
    word.write_epoch = owner.epoch;
    word.write_cluster_epoch = machine.cluster_epoch;
    word.write_block = static_cast<std::uint8_t>(owner.rank);
    word.write_warp = static_cast<std::uint8_t>(kMaxWarps + number);
    word.write_lane = 0;
    word.write_warp_epoch = found->phase;
    word.write_where = where;
  }
  std::memset(owner.shared.data() + address, 0xff, static_cast<std::size_t>(bytes));
  BulkCopy copy{address, nullptr, bytes};
  std::memcpy(copy.sent, value, static_cast<std::size_t>(bytes));
  found->copies.push_back(copy);
  found->was_sent_to = true;
  found->announced -= bytes;
  found->under_way += bytes;
  check_announced(*found, where);
  found->gathered.add_warps(running().knows);
  counters().remote_write_bytes += static_cast<std::uint64_t>(bytes);
}

void barrier_init(const char* region, int byte_begin, int byte_count, int byte_offset, int arrivals, Where where) {
  const int bytes = arrivals == 0 ? 4 : 8;
  check_shared_range(region, byte_count, byte_offset, bytes, byte_begin, where);
  Block& block = *machine.block;
  if (block.barriers.size() == kMaxBarriers) fault(where, "more than %d barriers", kMaxBarriers);
  for (const Barrier& other : block.barriers) {
    if (other.address == byte_begin + byte_offset) fault(where, "barrier_init: initialised before");
  }
  for (int byte = byte_begin + byte_offset; byte < byte_begin + byte_offset + bytes; byte += 4) {
    Word& word = block.words[static_cast<std::size_t>(byte / 4)];
    check_and_record_write(word, region, byte - byte_begin, where);
    mark_written(word, block, region, byte, 4);
  }
  Barrier barrier{};
  barrier.address = byte_begin + byte_offset;
  barrier.arrivals = arrivals;
  barrier.init_epoch = block.epoch;
  barrier.init_cluster_epoch = machine.cluster_epoch;
  barrier.init_thread = machine.running;
  block.barriers.push_back(barrier);
}

void publish_barriers() {
  for (Barrier& barrier : machine.block->barriers) {
    barrier.published = barrier.published || barrier.init_thread == machine.running;
  }
}

void barrier_arrive(const char* region, int byte_begin, int byte_count, int byte_offset, int expected_bytes,
                    Where where) {
  check_shared_range(region, byte_count, byte_offset, 8, byte_begin, where);
  Barrier& barrier = barrier_at(byte_begin + byte_offset, false, "barrier_arrive", where);
  if (barrier.arrived == barrier.arrivals) {
    fault(where, "barrier_arrive: arrival %d in a phase that %d end, and whose bytes have not come",
          barrier.arrived + 1, barrier.arrivals);
  }
  ++barrier.arrived;
  barrier.announced += expected_bytes;
  check_announced(barrier, where);
  barrier.gathered.add(running().knows);
  end_phase(*machine.block, barrier);
}

void barrier_wait(const char* region, int byte_begin, int byte_count, int byte_offset, int parity, bool for_cluster,
                  Where where) {
  check_shared_range(region, byte_count, byte_offset, 8, byte_begin, where);
  Block& block = *machine.block;
  const auto number = static_cast<std::size_t>(&barrier_at(byte_begin + byte_offset, false, "barrier_wait", where) -
                                               block.barriers.data());
  while (true) {
    Barrier& barrier = block.barriers[number];
    if (static_cast<int>(barrier.phase & 1u) != parity) break;
    if (deliver_copies(block, barrier)) continue;
    running().waits_for = static_cast<int>(number);
    block_thread(Waiting::kForBarrier, "barrier_wait", where);
  }
  if (block.barriers[number].was_sent_to && !for_cluster) {
    fault(where, "barrier_wait: blocks send to this barrier, which takes a barrier_wait_for_cluster");
  }
  running().knows.add(block.barriers[number].released);
}

bool count_arrive(const char* region, int byte_begin, int byte_count, int byte_offset, int arrivals, Where where) {
  check_shared_range(region, byte_count, byte_offset, 4, byte_begin, where);
  Barrier& count = barrier_at(byte_begin + byte_offset, true, "count_arrive", where);
  count.gathered.add(running().knows);
  if (++count.arrived < arrivals) return false;
  count.arrived = 0;
  running().knows.add(count.gathered);
  return true;
}

void copy_bulk(const char* region, int byte_begin, int byte_count, int byte_offset, const GlobalView& source,
               std::int64_t source_offset, int bytes, int barrier_address, Where where) {
  if (bytes <= 0 || bytes % 16 != 0) fault(where, "copy_bulk of %d bytes: expected a multiple of 16", bytes);
  Block& block = *machine.block;
  Barrier& barrier = barrier_at(barrier_address, false, "copy_bulk", where);
  if (!barrier.published) fault(where, "copy_bulk: no publish_barriers() since the barrier's init");
  if (bytes > barrier.announced) {
    fault(where, "copy_bulk of %d bytes to a barrier that expects %lld more in this phase", bytes,
          static_cast<long long>(barrier.announced));
  }
  const auto number = static_cast<int>(&barrier - block.barriers.data());
  const int address = byte_begin + byte_offset;
  const unsigned char* from = nullptr;
  for (int first = 0; first < bytes; first += 16) {
    check_shared_range(region, byte_count, byte_offset + first, 16, byte_begin, where);
    const void* piece = checked_global(false, source, source_offset + first, 16, where);
    if (first == 0) from = static_cast<const unsigned char*>(piece);
    for (int byte = address + first; byte < address + first + 16; byte += 4) {
      Word& word = block.words[static_cast<std::size_t>(byte / 4)];
      if (word.pending && word.block_serial == block.serial) {
        fault(where, "shared region '%s' byte %d: copied to while the %s of %s is under way", region, byte - byte_begin,
              word.write_warp < kMaxWarps ? "copy_async" : format_writer(word).c_str(),
              format_where(word.write_where).c_str());
      }
      check_and_record_write(word, region, byte - byte_begin, where);
      mark_written(word, block, region, byte, 16);
      word.pending = true;
      word.sent = false;
      word.write_warp = static_cast<std::uint8_t>(kMaxWarps + number);
      word.write_lane = 0;
      word.write_warp_epoch = barrier.phase;
    }
  }
  std::memset(block.shared.data() + address, 0xff, static_cast<std::size_t>(bytes));
  const auto begin = reinterpret_cast<std::uintptr_t>(from);
  counters().global_read_sectors += (begin + static_cast<unsigned>(bytes) - 1) / 32 - begin / 32 + 1;
  ++counters().bulk_copies;
  counters().bulk_copy_bytes += static_cast<std::uint64_t>(bytes);
  counters().async_copy_wavefronts += static_cast<std::uint64_t>(bytes + 127) / 128;  // all banks at once
  barrier.announced -= bytes;
  barrier.under_way += bytes;
  barrier.copies.push_back({address, from, bytes});
}

void clear_buffers() {
  for (Buffer* buffer : machine.buffers) delete buffer;
  machine.buffers.clear();
}

void add_buffer(const char* name, const void* pointer, std::uint64_t bytes, BufferKind kind) {
  auto* buffer = new Buffer;
  buffer->name = name;
  buffer->begin = reinterpret_cast<std::uintptr_t>(pointer);
  buffer->bytes = bytes;
  buffer->output = kind == BufferKind::kOutput;
  buffer->constant = kind == BufferKind::kConstant;
  buffer->sectors_read.resize(bytes / 32 + 2);
  if (buffer->output) buffer->written_by.resize(bytes / 4 + 2);
  machine.buffers.push_back(buffer);
}

bool run(const char* kernel, const Grid& grid, void (*entry)(const void*), const void* params, std::string& report) {
  const int threads = grid.threads;
  const int shared_bytes = grid.shared_bytes;
  if (threads <= 0 || threads % kWarpSize != 0 || threads > kMaxWarps * kWarpSize || shared_bytes < 0 ||
      shared_bytes > machine.options.shared_limit || grid.blocks_x < 1 || grid.blocks_x > 2147483647 ||
      grid.blocks_y < 1 || grid.blocks_y > 65535 || grid.cluster < 1 || grid.cluster > kMaxClusterBlocks ||
      grid.blocks_x % grid.cluster != 0) {
    report = std::string(kernel) + ": impossible launch: grid (" + std::to_string(grid.blocks_x) + ", " +
             std::to_string(grid.blocks_y) + "), clusters of " + std::to_string(grid.cluster) + ", " +
             std::to_string(threads) + " threads, " + std::to_string(shared_bytes) + " bytes of shared memory of " +
             std::to_string(machine.options.shared_limit);
    return false;
  }
  machine.launch = {kernel, threads, shared_bytes};
  machine.threads = threads;
  machine.entry = entry;
  machine.params = params;
  machine.faulted = false;
  machine.random = machine.options.seed;
  machine.serial_in_launch = 0;
  for (Buffer* buffer : machine.buffers) {
    for (std::uint32_t& writer : buffer->written_by) writer = writer == 0 ? 0 : kEarlierLaunch;
    if (grid.cluster > 1) buffer->cluster_words.resize(buffer->written_by.size());
  }
  machine.blocks.resize(static_cast<std::size_t>(grid.cluster));
  for (int rank = 0; rank < grid.cluster; ++rank) {
    Block& block = machine.blocks[static_cast<std::size_t>(rank)];
    block.rank = rank;
    block.shared.assign(static_cast<std::size_t>(shared_bytes), 0xff);
    if (block.words.size() < static_cast<std::size_t>(shared_bytes) / 4 + 1) {
      block.words.resize(static_cast<std::size_t>(shared_bytes) / 4 + 1);
    }
    block.warps.resize(static_cast<std::size_t>(threads / kWarpSize));
    block.read_stamps.resize(block.words.size() * block.warps.size());
    // Sends ask for the stamps of all warps, and these may be of other warps that had the numbers before.
    if (grid.cluster > 1) std::fill(block.read_stamps.begin(), block.read_stamps.end(), 0u);
    for (Warp& warp : block.warps) flush_sites(warp);
  }
  make_fibers(threads * grid.cluster);
  for (int y = 0; y < grid.blocks_y && !machine.faulted; ++y) {
    for (std::int64_t x = 0; x < grid.blocks_x && !machine.faulted; x += grid.cluster) {
      run_cluster({static_cast<unsigned>(x), static_cast<unsigned>(y)});
    }
  }
  if (machine.faulted) {
    // What the faulted launch had gathered must not count for the next one.
    for (Block& block : machine.blocks) {
      for (Warp& warp : block.warps) warp = Warp{};
    }
    report = std::string(kernel) + ": " + machine.report;
    if (machine.report.compare(0, 8, "deadlock") == 0) {
      const Index3 index = machine.blocks[0].index;
      report += grid.cluster > 1 ? "\n  in the cluster from block (" : "\n  in block (";
      report += std::to_string(index.x) + ", " + std::to_string(index.y) + ")";
      if (grid.cluster > 1) report += " on";
    }
    return false;
  }
  return true;
}

}  // namespace mvk::simt
