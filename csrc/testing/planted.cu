// Kernels with faults planted in them, for the tests of the simulator (tests/test_simulator.py names them in this
// order). This file is compiled for the simulator alone: on a GPU these faults would show up sometimes, or never.
#ifdef MVK_SIMT

#include "../common/async_copy.cuh"
#include "../common/cluster.cuh"
#include "../common/launch.cuh"
#include "../common/mbarrier.cuh"
#include "../common/mma.cuh"
#include "../common/overlap.cuh"
#include "../common/warp.cuh"
#include "../common/wgmma.cuh"
#include "testing.h"

namespace mvk {

namespace {

enum Fault : int {
  kNone,
  kMissingBlockBarrier,
  kWaitDropped,
  kWaitOffByOne,
  kSlotReusedTooEarly,
  kSkippedBarrier,
  kDivergentBarrier,
  kMissingWarpBarrier,
  kMissingWarpBarrierBeforeMatrixLoad,
  kOverlappingRegions,
  kSharedOutOfBounds,
  kUninitialisedShared,
  kGlobalReadOutOfBounds,
  kGlobalWriteOutOfBounds,
  kMisaligned,
  kTwoBlocksOneOutput,
  kDivergentShuffle,
  kUnwrittenGlobal,
  kWriteToInput,
  kEarlyExit,
  kWriteUnderCopy,
  kReadBeforeEarlierLaunches,
  kNoWaitForEarlierLaunches,
  kMissingClusterBarrier,
  kMissingFirstClusterBarrier,
  kRemoteWriteWithoutBarrier,
  kRemoteOutOfBounds,
  kRemoteRankOutOfBounds,
  kRemoteUninitialised,
  kRemoteReadUnderCopy,
  kSkippedClusterBarrier,
  kDivergentClusterBarrier,
  kBlockLeavesEarly,
  kGlobalExchangeWithoutBarrier,
  kGlobalOverwriteWithoutBarrier,
  kWgmmaUnpublished,
  kWgmmaWithoutFence,
  kWgmmaWithoutCommit,
  kWgmmaWithoutWait,
  kWgmmaOperandOverwritten,
  kWgmmaFragmentOverwritten,
  kWgmmaMisaligned,
  kWgmmaOutOfBounds,
  kWgmmaByPartOfAWarpgroup,
  kBulkReadBeforeWait,
  kBulkReadAfterAnothersWait,
  kBulkAnnouncedTooFew,
  kBulkAnnouncedTooMany,
  kBulkOddSize,
  kBulkSlotReusedTooEarly,
  kBulkLeftUnderWay,
  kBarrierWithoutInit,
  kBarrierUnpublished,
  kBarrierWithoutBlockBarrier,
  kBarrierArrivalMissing,
  kBarrierOneArrivalTooMany,
  kBarrierArrivalWithoutWarpBarrier,
  kMissingWarpgroupBarrier,
  kSkippedWarpgroupBarrier,
  kSendPlaceNotFree,
  kSendReadBeforeWait,
  kSendWithoutWarpBarrier,
  kSendMoreThanAnnounced,
  kSendLessThanAnnounced,
  kSendTwiceInAPhase,
  kSendBarrierNotReady,
  kSendWaitNotForCluster,
  kBankConflicts,
};

struct PlantedParams {
  Global<const std::uint32_t> in;
  Global<std::uint32_t> out;
  int fault;
};

constexpr int kThreads = 64;
constexpr int kStages = 4;

// A ring of two slots filled by cp.async; each thread adds up what a thread of the other warp copied.
__global__ void ring_kernel(const PlantedParams params) {
  const int fault = params.fault;
  const int thread = thread_index();
  const int partner = (thread + 32) % kThreads;
  const Shared<std::uint32_t> ring = shared_region<std::uint32_t>("ring", 0, 2 * kThreads * 4);
  const auto fetch = [&](int stage) {
    copy_async_16(ring, (stage % 2 * kThreads + thread) * 4, params.in, thread % 16 * 16 + stage * 4);
    copy_async_commit();
  };
  std::uint32_t sum = 0;
  if (fault == kNoWaitForEarlierLaunches) return;
  if (fault != kReadBeforeEarlierLaunches) wait_for_earlier_launches();
  fetch(0);
  for (int stage = 0; stage < kStages; ++stage) {
    if (stage + 1 < kStages) {
      fetch(stage + 1);
      if (fault == kWaitOffByOne) copy_async_wait<2>();
      if (fault != kWaitDropped && fault != kWaitOffByOne) copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    if (fault != kMissingBlockBarrier) sync_block();
    sum += ring.load<Words4>((stage % 2 * kThreads + partner) * 4).word[0];
    if (fault == kWriteUnderCopy && stage == 0) ring.store(((stage + 1) % 2 * kThreads + thread) * 4, 1u);
    if (fault != kSlotReusedTooEarly) sync_block();
  }
  if (fault == kSkippedBarrier && warp_index() == 1) return;
  if (fault == kDivergentBarrier && warp_index() == 1) {
    sync_block();
  } else {
    sync_block();
  }
  params.out.store(block_index_x() * kThreads + thread, sum);
}

// Lanes of one warp hand values to each other through shared memory.
__global__ void exchange_kernel(const PlantedParams params) {
  wait_for_earlier_launches();
  const int fault = params.fault;
  const int lane = lane_index();
  const Shared<std::uint32_t> words = shared_region<std::uint32_t>("words", 0, 32);
  const Shared<Half> rows = shared_region<Half>("rows", fault == kOverlappingRegions ? 112 : 128, 32 * 40);
  words.store(lane, params.in.load<std::uint32_t>(lane));
  if (fault != kMissingWarpBarrier) sync_warp();
  std::uint32_t value = words.load<std::uint32_t>((lane + 1) % 32);
  if (fault == kOverlappingRegions) sync_warp();
  const int pitch = fault == kBankConflicts ? 32 : 40;
  rows.store(lane * pitch, Words4{{value, value, value, value}});
  if (fault != kMissingWarpBarrierBeforeMatrixLoad) sync_warp();
  if (fault == kOverlappingRegions) value += words.load<std::uint32_t>(lane);
  Pair<Half> reg[4];
  load_matrix_x4(reg, rows, lane * pitch);
  value += reg[0].bits;
  if (fault == kSharedOutOfBounds) value += words.load<std::uint32_t>(lane + 1);
  if (fault == kUninitialisedShared) value += rows.load<Pair<Half>>(lane * pitch + 8).bits;
  if (fault == kGlobalReadOutOfBounds) value += params.in.load<std::uint32_t>(240 + lane);
  if (fault == kGlobalWriteOutOfBounds) params.out.store(240 + lane, value);
  if (fault == kMisaligned) value += params.in.load<Words2>(2 * lane + 1).word[0];
  if (fault == kUnwrittenGlobal) value += params.out.load<std::uint32_t>(128 + lane);
  if (fault == kWriteToInput)
    Global<std::uint32_t>(const_cast<std::uint32_t*>(params.in.pointer()), 256).store(0, value);
  if (fault == kEarlyExit && lane == 7) return;
  if (fault == kDivergentShuffle) {
    if (lane < 16) value = shuffle_xor(value, 1);
  } else {
    value = shuffle_xor(value, 1);
  }
  sync_warp();
  params.out.store((fault == kTwoBlocksOneOutput ? 0 : block_index_x() * 32) + 128 + lane, value);
}

// Blocks of a cluster hand words to each other, through shared and then through global memory.
__global__ void cluster_kernel(const PlantedParams params) {
  wait_for_earlier_launches();
  const int fault = params.fault;
  const int lane = lane_index();
  const int rank = cluster_block_rank();
  const int next = (rank + 1) % cluster_blocks();
  const Shared<std::uint32_t> inbox = shared_region<std::uint32_t>("inbox", 0, 64);
  const Shared<std::uint32_t> outbox = shared_region<std::uint32_t>("outbox", 256, 128);
  if (fault == kSkippedClusterBarrier && rank == 1) return;
  if (fault != kMissingFirstClusterBarrier) sync_cluster();
  of_block(inbox, next).store(fault == kRemoteOutOfBounds ? lane + 40 : lane, params.in.load<std::uint32_t>(lane));
  if (fault == kRemoteWriteWithoutBarrier) inbox.store(lane, 0u);
  outbox.store(lane, static_cast<std::uint32_t>(rank));
  if (fault == kRemoteReadUnderCopy) {
    if (lane >= 8) copy_async_16(outbox, lane * 4, params.in, lane * 4);
    copy_async_commit();
  }
  if (fault != kMissingClusterBarrier) sync_cluster();
  std::uint32_t value = inbox.load<std::uint32_t>(lane);
  const Remote<std::uint32_t> others = of_block(outbox, fault == kRemoteRankOutOfBounds ? rank + 1 : next);
  value += others.load<std::uint32_t>(fault == kRemoteReadUnderCopy ? lane + 32 : lane);
  if (fault == kRemoteUninitialised) value += of_block(inbox, next).load<std::uint32_t>(lane + 32);
  params.out.store(192 + 32 * rank + lane, value);
  if (fault == kBlockLeavesEarly) return;
  if (fault == kDivergentClusterBarrier && rank == 1) {
    sync_cluster();
  } else if (fault != kGlobalExchangeWithoutBarrier) {
    sync_cluster();
  }
  value = params.out.load<std::uint32_t>(192 + 32 * next + lane);
  if (fault != kGlobalOverwriteWithoutBarrier) sync_cluster();
  params.out.store(192 + 32 * rank + lane, value);
}

// A warpgroup multiplies 64 × 16 by 16 × 16 twice, with A in shared memory and in registers.
__global__ void wgmma_kernel(const PlantedParams params) {
  wait_for_earlier_launches();
  const int fault = params.fault;
  const Shared<Half> left = shared_region<Half>("left", 0, 64 * 16);
  const Shared<Half> right = shared_region<Half>("right", 64 * 16 * 2, 16 * 16);
  const std::uint32_t word = params.in.load<std::uint32_t>(thread_index());
  for (int i = thread_index(); i < 64 * 16 / 2; i += 128) left.store(2 * i, word);
  if (thread_index() < 128) right.store(2 * thread_index(), word);
  if (fault != kWgmmaUnpublished) publish_matrices();
  sync_block();
  MatrixInShared<Half> a{left, 0, 64, 512};
  if (fault == kWgmmaMisaligned) a.begin = 4;
  if (fault == kWgmmaOutOfBounds) a.depth_step = 576;
  FragmentA<Half> fragment{{{word}, {word}, {word}, {word}}};
  FragmentC sums[2] = {};
  if (fault != kWgmmaWithoutFence) wgmma_fence();
  wgmma(sums, a, MatrixInShared<Half>{right, 0, 64, 128});
  wgmma(sums, fragment, MatrixInShared<Half, true>{right, 0, 128, 64});
  if (fault != kWgmmaWithoutCommit) wgmma_commit();
  if (fault == kWgmmaWithoutWait) return;
  if (fault == kWgmmaFragmentOverwritten) fragment.reg[3].bits = ~word;
  sync_block();
  if (fault == kWgmmaOperandOverwritten && thread_index() == 33) right.store(6, ~word);
  wgmma_wait<0>();
}

// Two warpgroups. Chunks of 256 bytes come through a ring of two slots, the last warp to leave one fills it again; the
// warps hand sums to each other by a barrier in memory, those of a warpgroup by its own barrier.
__global__ void barrier_kernel(const PlantedParams params) {
  wait_for_earlier_launches();
  const int fault = params.fault;
  const int warp = warp_index();
  const int lane = lane_index();
  const Shared<std::uint32_t> ring = shared_region<std::uint32_t>("ring", 0, 128);
  const Shared<std::uint32_t> handed = shared_region<std::uint32_t>("handed", 512, 256);
  const Shared<std::uint64_t> barriers = shared_region<std::uint64_t>("barriers", 1536, 4);
  const Shared<std::uint32_t> left = shared_region<std::uint32_t>("left", 1568, 2);
  const auto fetch = [&](int chunk) {
    const int more = fault == kBulkAnnouncedTooFew ? -16 : fault == kBulkAnnouncedTooMany ? 16 : 0;
    barrier_arrive_expecting(barriers, chunk % 2, 256 + more);
    copy_bulk(ring, chunk % 2 * 64, params.in, chunk * 64, fault == kBulkOddSize ? 248 : 256, barriers, chunk % 2);
  };
  if (thread_index() == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(barriers, i, 1);
      count_init(left, i);
    }
    if (fault != kBarrierWithoutInit) barrier_init(barriers, 2, 8);
    if (fault != kBarrierUnpublished) publish_barriers();
    fetch(0);
    fetch(1);
  }
  if (fault != kBarrierWithoutBlockBarrier) sync_block();
  std::uint32_t sum = 0;
  for (int chunk = 0; chunk < 4; ++chunk) {
    const bool waits = fault == kBulkReadAfterAnothersWait ? warp != 3 : fault != kBulkReadBeforeWait;
    if (waits && !(fault == kBulkLeftUnderWay && chunk == 3)) barrier_wait(barriers, chunk % 2, chunk / 2);
    if (fault == kBulkLeftUnderWay && chunk == 3) continue;
    const auto read = [&] { sum += ring.load<std::uint32_t>(chunk % 2 * 64 + lane); };
    if (fault != kBulkSlotReusedTooEarly) read();
    sync_warp();
    if (lane == 0 && count_arrive(left, chunk % 2, 8) && chunk < 2) fetch(chunk + 2);
    if (fault == kBulkSlotReusedTooEarly) read();
  }
  handed.store(thread_index(), sum);
  if (fault != kMissingWarpgroupBarrier && !(fault == kSkippedWarpgroupBarrier && warp == 6)) sync_warpgroup();
  sum += handed.load<std::uint32_t>(thread_index() / 128 * 128 + (thread_index() + 32) % 128);
  sync_warpgroup();
  handed.store(thread_index(), sum);
  if (fault != kBarrierArrivalWithoutWarpBarrier) sync_warp();
  if (lane == 0 && !(fault == kBarrierArrivalMissing && warp == 5)) barrier_arrive(barriers, 2);
  if (fault == kBarrierOneArrivalTooMany && thread_index() == 0) {
    barrier_wait(barriers, 2, 0);
    for (int i = 0; i < 2; ++i) barrier_arrive_expecting(barriers, 0, 16);
  }
  barrier_wait(barriers, 2, 0);
  sum += handed.load<std::uint32_t>((thread_index() + 96) % 256);
  if (warp == 7) params.out.store(lane, sum);
}

// Two blocks of a cluster send to each other in three rounds, through two inboxes. A warp sends when it has read what
// came in the round before, so that whoever has waited for a round knows the inbox before it to be free again.
__global__ void send_kernel(const PlantedParams params) {
  wait_for_earlier_launches();
  const int fault = params.fault;
  const int warp = warp_index();
  const int lane = lane_index();
  const int peer = 1 - cluster_block_rank();
  const Shared<std::uint32_t> inbox = shared_region<std::uint32_t>("inbox", 0, 2 * kThreads);
  const Shared<std::uint64_t> barriers = shared_region<std::uint64_t>("barriers", 512, 2);
  if (fault == kSendBarrierNotReady) sync_cluster();
  if (thread_index() == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(barriers, i, 2);
    publish_barriers();
  }
  if (fault == kSendBarrierNotReady) {
    sync_block();
  } else {
    sync_cluster();
  }
  std::uint32_t sum = params.in.load<std::uint32_t>(thread_index());
  for (int round = 0; round < 3; ++round) {
    const int box = fault == kSendPlaceNotFree ? 0 : round % 2 * kThreads;
    const Remote<std::uint32_t> others_inbox = of_block(inbox, peer);
    const RemoteBarrier barrier = barrier_of_block(barriers, round % 2, peer);
    if (fault != kSendWithoutWarpBarrier) sync_warp();
    others_inbox.send(box + thread_index(), sum, barrier);
    if (fault == kSendTwiceInAPhase && lane == 3) others_inbox.send(box + thread_index(), sum, barrier);
    sync_warp();
    const int more = fault == kSendMoreThanAnnounced ? -4 : fault == kSendLessThanAnnounced ? 4 : 0;
    if (lane == 0 && warp == 0) barrier_arrive_expecting(barriers, round % 2, 4 * kThreads + more);
    if (lane == 0 && warp == 1) barrier_arrive(barriers, round % 2);
    if (fault == kSendWaitNotForCluster) {
      barrier_wait(barriers, round % 2, round / 2);
    } else if (fault != kSendReadBeforeWait || warp == 0) {
      barrier_wait_for_cluster(barriers, round % 2, round / 2);
    }
    sum += inbox.load<std::uint32_t>(box + thread_index() % 32 + 32 * (1 - warp));
  }
  if (warp == 0 && block_index_x() == 0) params.out.store(lane, sum);
}

}  // namespace

Status planted(int fault, const std::uint32_t* in, std::uint32_t* out) {
  PlantedParams params;
  params.in = Global<const std::uint32_t>(in, 256);
  params.out = Global<std::uint32_t>(out, 256);
  params.fault = fault;
  const Status ring = launch<ring_kernel>("ring", {2, 1, kThreads, 2 * kThreads * 16}, Stream{}, params);
  if (ring != Status::kOk) return ring;
  const Status exchange = launch<exchange_kernel>("exchange", {2, 1, 32, 128 + 32 * 80}, Stream{}, params);
  if (exchange != Status::kOk) return exchange;
  const Status cluster = launch<cluster_kernel>("cluster", {2, 1, 32, 768, 2}, Stream{}, params);
  if (cluster != Status::kOk) return cluster;
  const int threads = fault == kWgmmaByPartOfAWarpgroup ? 96 : 128;
  const Status wgmma = launch<wgmma_kernel>("wgmma", {1, 1, threads, (64 + 16) * 16 * 2}, Stream{}, params);
  if (wgmma != Status::kOk) return wgmma;
  const Status barrier = launch<barrier_kernel>("barrier", {1, 1, 256, 1584}, Stream{}, params);
  if (barrier != Status::kOk) return barrier;
  return launch<send_kernel>("send", {2, 1, kThreads, 528, 2}, Stream{}, params);
}

}  // namespace mvk

#endif
