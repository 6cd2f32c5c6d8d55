// The host SIMT simulator: one fiber a thread, clusters of blocks one after another, warps in a seeded random order.
//
// A kernel runs between two of its primitives at full host speed; each primitive (csrc/common, with its bodies here)
// checks, counts and may switch to another thread. docs/simulator.md says what is modelled and what is caught.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mvk::simt {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 32;
constexpr int kMaxClusterBlocks = 8;  // what every GPU with clusters takes
constexpr std::uint32_t kFullMask = 0xffffffffu;

// A place in a kernel's source. As a default argument, Where::here() is the place of the primitive's caller.
struct Where {
  const char* file;
  int line;

  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Exact counts over one or more launches. Bytes are those that lanes ask for; sectors are 32 bytes, counted once a
// warp-wide access; wavefronts are shared-memory cycles, conflicts those above the fewest possible.
struct Counters {
  std::uint64_t blocks = 0;
  std::uint64_t global_read_bytes = 0;
  std::uint64_t global_write_bytes = 0;
  std::uint64_t global_read_sectors = 0;
  std::uint64_t global_write_sectors = 0;
  std::uint64_t shared_load_wavefronts = 0;
  std::uint64_t shared_load_conflicts = 0;
  std::uint64_t shared_store_wavefronts = 0;
  std::uint64_t shared_store_conflicts = 0;
  std::uint64_t matrix_load_wavefronts = 0;
  std::uint64_t matrix_load_conflicts = 0;
  std::uint64_t async_copy_wavefronts = 0;  // of bulk copies, too
  std::uint64_t async_copy_conflicts = 0;
  std::uint64_t mma_m16n8k16 = 0;
  std::uint64_t mma_m16n8k8 = 0;
  std::uint64_t mufu = 0;               // results, counted per lane
  std::uint64_t pair_arithmetic = 0;    // instructions on pairs of 16-bit floats, counted per lane
  std::uint64_t shuffles = 0;           // warp instructions
  std::uint64_t block_barriers = 0;     // barriers completed by a block
  std::uint64_t warp_barriers = 0;      // barriers completed by a warp
  std::uint64_t cluster_barriers = 0;   // barriers completed by a cluster
  std::uint64_t remote_read_bytes = 0;  // of another block's shared memory
  std::uint64_t remote_write_bytes = 0;
  std::uint64_t wgmma_m16n8k16 = 0;      // work of wgmma, in m16n8k16
  std::uint64_t wgmma_shared_bytes = 0;  // of A and B in shared memory, read once a warpgroup
  std::uint64_t warpgroup_barriers = 0;  // barriers completed by a warpgroup
  std::uint64_t bulk_copies = 0;
  std::uint64_t bulk_copy_bytes = 0;  // read from global and written to shared memory
};

inline Counters& counters() {
  static Counters instance;
  return instance;
}

// What the blocks of a cluster did to 4 bytes of an output, by the cluster's epoch.
struct ClusterWord {
  std::uint64_t write_epoch = 0;
  std::uint64_t read_epoch = 0;
  std::uint32_t reading_blocks = 0;  // mask of ranks, in read_epoch
};

// A range of host memory that kernels may touch, and what they did to it.
struct Buffer {
  std::string name;
  std::uintptr_t begin = 0;
  std::uint64_t bytes = 0;
  bool output = false;           // starts out unwritten; a read before a write is a fault
  bool constant = false;         // no launch writes it: it may be read before wait_for_earlier_launches()
  std::uint64_t read_bytes = 0;  // asked for by lanes
  std::uint64_t write_bytes = 0;
  std::vector<std::uint8_t> sectors_read;  // one flag each 32 bytes
  std::vector<std::uint32_t> written_by;   // per 4 bytes: serial number of the block that wrote it, 0: none
  std::vector<ClusterWord> cluster_words;  // per 4 bytes of an output, in launches of clusters
};

struct LaunchRecord {
  const char* kernel;
  int threads;
  int shared_bytes;
};

struct Index3 {
  unsigned x = 0;
  unsigned y = 0;
};

// What the fiber that is running may ask about itself.
struct ThreadIdentity {
  int thread = 0;
  Index3 block;
  int cluster_rank = 0;
  int cluster_blocks = 1;
};
extern ThreadIdentity current;

// --- for the primitives -------------------------------------------------------------------------------------------

// Ends the launch with a message that starts with the place and the thread.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fault(Where where, const char* format, ...);

// Blocks the thread until all 32 lanes of its warp have called the same primitive at the same place. The last one to
// arrive gets true and every lane's argument, acts for all, and calls release_warp().
bool gather_warp(const char* primitive, void* argument, Where where);
void** warp_arguments();
void release_warp();

void sync_block(Where where);
void sync_warp(Where where);
void sync_warpgroup(Where where);
void wait_for_earlier_launches();
void sync_cluster(Where where);

enum class SharedAccess : std::uint8_t { kLoad, kStore, kMatrixLoad };

// Checks one lane's access, records it for the race detector and for the warp-wide counters.
void* shared_access(SharedAccess kind, const char* region, int byte_begin, int byte_count, int byte_offset, int bytes,
                    Where where);
// The same for the shared memory of the cluster's block `rank`; its bytes are counted, its banks are not.
void* remote_access(bool write, int rank, const char* region, int byte_begin, int byte_count, int byte_offset,
                    int bytes, Where where);
// Checks and records the read of one row of ldmatrix, by the whole warp; count_matrix_rows() counts it.
const void* matrix_row(const char* region, int byte_begin, int byte_count, int byte_offset, Where where);
// The same for wgmma: who wrote it has to have published it since.
const void* published_row(const char* region, int byte_begin, int byte_count, int byte_offset, Where where);
// This thread publishes what it has written to shared memory, and what of its copies has been waited for.
void publish_matrices();
// wgmma.cpp: at the begin of a cluster, and when a thread leaves the kernel.
void forget_wgmma_products();
void check_no_wgmma_products();
// Counts one group of eight rows of 16 bytes.
void count_matrix_rows(const int* byte_addresses, int rows);

struct GlobalView {
  std::uintptr_t begin = 0;
  std::uint64_t bytes = 0;
  Buffer* buffer = nullptr;
};
GlobalView global_view(const void* pointer, std::uint64_t bytes);
void* global_access(bool write, const GlobalView& view, std::int64_t byte_offset, int bytes, Where where);
void global_prefetch(const GlobalView& view, std::int64_t byte_offset, Where where);

void copy_async(const char* region, int byte_begin, int byte_count, int byte_offset, const GlobalView& source,
                std::int64_t source_offset, bool valid, Where where);
void copy_async_commit();
void copy_async_wait(int pending, Where where);

// mbarriers at a byte of a region. A count of arrivals is one that nobody waits for: `arrivals` 0.
void barrier_init(const char* region, int byte_begin, int byte_count, int byte_offset, int arrivals, Where where);
void publish_barriers();
void barrier_arrive(const char* region, int byte_begin, int byte_count, int byte_offset, int expected_bytes,
                    Where where);
void barrier_wait(const char* region, int byte_begin, int byte_count, int byte_offset, int parity, bool for_cluster,
                  Where where);
bool count_arrive(const char* region, int byte_begin, int byte_count, int byte_offset, int arrivals, Where where);
void copy_bulk(const char* region, int byte_begin, int byte_count, int byte_offset, const GlobalView& source,
               std::int64_t source_offset, int bytes, int barrier_address, Where where);
// To the shared memory of the cluster's block `rank`, reported to the barrier that lies there.
void send(int rank, const char* region, int byte_begin, int byte_count, int byte_offset, const void* value, int bytes,
          int barrier_address, Where where);

int dynamic_shared_bytes();

// --- for launchers and bindings -----------------------------------------------------------------------------------

struct Options {
  std::uint64_t seed = 0;
  int shared_limit = 232448;  // 227 KB, what a block of sm_90 may have
  int multiprocessors = 1;    // what persistent kernels size their grid by
};
Options& options();

void clear_buffers();
enum class BufferKind : int { kInput = 0, kOutput = 1, kConstant = 2 };
void add_buffer(const char* name, const void* pointer, std::uint64_t bytes, BufferKind kind);
const std::vector<Buffer*>& buffers();
const LaunchRecord& last_launch();

struct Grid {
  std::int64_t blocks_x;
  int blocks_y;
  int threads;
  int shared_bytes;
  int cluster;  // blocks of a cluster, along x
};

// Runs a grid; false where a fault was found, with the message in `report`.
bool run(const char* kernel, const Grid& grid, void (*entry)(const void*), const void* params, std::string& report);

// Thrown by global_view() outside a kernel: a launcher describes memory that nobody registered.
struct BadView {
  std::string message;
};

}  // namespace mvk::simt
