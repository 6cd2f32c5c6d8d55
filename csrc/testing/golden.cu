// One tiny kernel a primitive: registers in, registers out. The tests compare the result with formulas of their own, on
// the simulator and on a GPU: kernel and simulator share an author, the hardware does not.
//
// A block is one warp. Lane l of block b reads kGoldenInputs words from in[(32·b + l)·kGoldenInputs] and writes
// kGoldenOutputs words.
#include "../common/async_copy.cuh"
#include "../common/cluster.cuh"
#include "../common/launch.cuh"
#include "../common/math.cuh"
#include "../common/mbarrier.cuh"
#include "../common/mma.cuh"
#include "../common/overlap.cuh"
#include "../common/warp.cuh"
#include "../common/wgmma.cuh"
#include "testing.h"

namespace mvk {

namespace {

struct GoldenParams {
  Global<const std::uint32_t> in;
  Global<std::uint32_t> out;
};

struct Registers {
  std::uint32_t in[kGoldenInputs];
  std::uint32_t out[kGoldenOutputs];
};

MVK_DEVICE float to_float(std::uint32_t bits) { return *reinterpret_cast<const float*>(&bits); }
MVK_DEVICE std::uint32_t to_bits(float value) { return *reinterpret_cast<const std::uint32_t*>(&value); }

template <class T, int kDepth>
struct GoldenMma {
  static MVK_DEVICE void run(Registers& r) {
    FragmentA<T> a;
    FragmentB<T> b;
    FragmentC c;
    for (int i = 0; i < 4; ++i) a.reg[i].bits = r.in[i];
    for (int i = 0; i < 2; ++i) b.reg[i].bits = r.in[4 + i];
    for (int i = 0; i < 4; ++i) c.value[i] = to_float(r.in[6 + i]);
    if constexpr (kDepth == 16) {
      mma_m16n8k16(c, a, b);
    } else {
      mma_m16n8k8(c, a, b);
    }
    for (int i = 0; i < 4; ++i) r.out[i] = to_bits(c.value[i]);
  }
};

struct GoldenMmaHalf {
  static MVK_DEVICE void run(Registers& r) {
    FragmentA<Half> a;
    FragmentB<Half> b;
    for (int i = 0; i < 4; ++i) a.reg[i].bits = r.in[i];
    for (int i = 0; i < 2; ++i) b.reg[i].bits = r.in[4 + i];
    FragmentCHalf c{{{r.in[6]}, {r.in[7]}}};
    mma_m16n8k16(c, a, b);
    r.out[0] = c.reg[0].bits;
    r.out[1] = c.reg[1].bits;
  }
};

enum class MatrixLoad { kX4, kX4Transposed, kX2 };

// Lane l stores its first four words as row l of 8 elements, then all load.
template <MatrixLoad kLoad>
struct GoldenMatrixLoad {
  static MVK_DEVICE void run(Registers& r) {
    const Shared<Half> rows = shared_region<Half>("rows", 0, 256);
    rows.store(lane_index() * 8, Words4{{r.in[0], r.in[1], r.in[2], r.in[3]}});
    sync_warp();
    Pair<Half> reg[4] = {};
    if constexpr (kLoad == MatrixLoad::kX4) load_matrix_x4(reg, rows, lane_index() * 8);
    if constexpr (kLoad == MatrixLoad::kX4Transposed) load_matrix_x4_transposed(reg, rows, lane_index() * 8);
    if constexpr (kLoad == MatrixLoad::kX2) load_matrix_x2(reg[0], reg[1], rows, lane_index() * 8);
    for (int i = 0; i < 4; ++i) r.out[i] = reg[i].bits;
  }
};

struct GoldenShuffle {
  static MVK_DEVICE void run(Registers& r) {
    r.out[0] = shuffle(r.in[0], lane_index() * 7 % 32);
    r.out[1] = shuffle_up(r.in[0], 3);
    r.out[2] = shuffle_down(r.in[0], 5);
    r.out[3] = shuffle_xor(r.in[0], 9);
  }
};

struct GoldenFloatFunctions {
  static MVK_DEVICE void run(Registers& r) {
    const float x = to_float(r.in[0]);
    r.out[0] = to_bits(tanh_approx(x));
    r.out[1] = to_bits(exp2_approx(x));
    r.out[2] = to_bits(reciprocal_approx(x));
    r.out[3] = to_bits(rsqrt_approx(x));
  }
};

struct GoldenHalfFunctions {
  static MVK_DEVICE void run(Registers& r) {
    r.out[0] = tanh_approx(Pair<Half>{r.in[0]}).bits;
    r.out[1] = exp2_approx(Pair<Half>{r.in[0]}).bits;
  }
};

template <class T>
struct GoldenPairs {
  static MVK_DEVICE void run(Registers& r) {
    r.out[0] = fma(Pair<T>{r.in[0]}, Pair<T>{r.in[1]}, Pair<T>{r.in[2]}).bits;
    r.out[1] = mul(Pair<T>{r.in[0]}, Pair<T>{r.in[1]}).bits;
    r.out[2] = add(Pair<T>{r.in[0]}, Pair<T>{r.in[1]}).bits;
    r.out[3] = make_pair<T>(to_float(r.in[3]), to_float(r.in[4])).bits;
  }
};

template <class Body>
__global__ void golden_kernel(const GoldenParams params) {
  wait_for_earlier_launches();
  Registers r = {};
  const std::int64_t lane = std::int64_t{block_index_x()} * 32 + lane_index();
  for (int i = 0; i < kGoldenInputs; ++i) r.in[i] = params.in.load<std::uint32_t>(lane * kGoldenInputs + i);
  Body::run(r);
  for (int i = 0; i < kGoldenOutputs; ++i) params.out.store(lane * kGoldenOutputs + i, r.out[i]);
}

// Lane l copies its first four words through shared memory, except every third lane, which asks for zeros.
__global__ void golden_async_copy_kernel(const GoldenParams params) {
  wait_for_earlier_launches();
  const std::int64_t lane = std::int64_t{block_index_x()} * 32 + lane_index();
  const Shared<std::uint32_t> words = shared_region<std::uint32_t>("words", 0, 128);
  copy_async_16(words, lane_index() * 4, params.in, lane * kGoldenInputs, lane_index() % 3 != 0);
  copy_async_commit();
  copy_async_wait<0>();
  sync_warp();
  const Words4 neighbour = words.load<Words4>((lane_index() + 1) % 32 * 4);
  for (int i = 0; i < kGoldenOutputs; ++i) params.out.store(lane * kGoldenOutputs + i, neighbour.word[i]);
}

// Blocks of two warpgroups; inputs and outputs are those of eight warps. Three rounds through a ring of two slots: a
// bulk copy brings warp 2 · round's inputs, the warps of a group add theirs to shared memory, and each lane sums up
// what its own and the next lane's words of the slot are, and what the next warp of its group has put down. The last
// warp to leave a slot fills it again.
__global__ void golden_barriers_kernel(const GoldenParams params) {
  if constexpr (!clusters_exist()) return;
  wait_for_earlier_launches();
  constexpr int kWords = 32 * kGoldenInputs;
  const int warp = warp_index();
  const int lane = lane_index();
  const std::int64_t first = std::int64_t{block_index_x()} * 8;
  const Shared<std::uint32_t> ring = shared_region<std::uint32_t>("ring", 0, 2 * kWords);
  const Shared<std::uint32_t> words = shared_region<std::uint32_t>("words", 8 * kWords, 8 * 32);
  const auto barriers = shared_region<std::uint64_t>("barriers", 8 * kWords + 1024, 2);
  const auto left = shared_region<std::uint32_t>("left", 8 * kWords + 1040, 2);
  const auto fetch = [&](int round) {
    barrier_arrive_expecting(barriers, round % 2, 4 * kWords);
    copy_bulk(ring, round % 2 * kWords, params.in, (first + 2 * round) * kWords, 4 * kWords, barriers, round % 2);
  };
  if (thread_index() == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(barriers, i, 1);
      count_init(left, i);
    }
    publish_barriers();
    fetch(0);
    fetch(1);
  }
  sync_block();
  std::uint32_t sums[kGoldenOutputs] = {};
  for (int round = 0; round < 3; ++round) {
    barrier_wait(barriers, round % 2, round / 2);
    for (int i = 0; i < kGoldenInputs; ++i) {
      sums[i % 2] += ring.load<std::uint32_t>(round % 2 * kWords + (lane + i % 2) % 32 * kGoldenInputs + i);
    }
    sync_warp();
    if (lane == 0 && count_arrive(left, round % 2, 8) && round == 0) fetch(2);
    words.store(warp * 32 + lane, sums[0] + static_cast<std::uint32_t>(warp));
    sync_warpgroup();
    sums[2] = sums[2] * 3 + words.load<std::uint32_t>((warp / 4 * 4 + (warp + 1) % 4) * 32 + lane);
    sync_warpgroup();
  }
  for (int i = 0; i < kGoldenOutputs; ++i) {
    params.out.store(((first + warp) * 32 + lane) * kGoldenOutputs + i, sums[i]);
  }
}

// Clusters of four blocks. Lane l of rank r writes its words 0 … 3, 4 … 5 and 6 to rank r + 1, and after a barrier
// reads word 7 of rank r + 2; its output is what came, exclusive-ored, beside its rank and the size of the cluster.
__global__ void golden_cluster_kernel(const GoldenParams params) {
  if constexpr (!clusters_exist()) return;
  wait_for_earlier_launches();
  const int lane = lane_index();
  const int rank = cluster_block_rank();
  const std::int64_t first = (std::int64_t{block_index_x()} * 32 + lane) * kGoldenInputs;
  const Shared<std::uint32_t> inbox = shared_region<std::uint32_t>("inbox", 0, 32 * 8);
  const Shared<std::uint32_t> outbox = shared_region<std::uint32_t>("outbox", 1024, 32 * 4);
  outbox.store(lane, params.in.load<std::uint32_t>(first + 7));
  outbox.store(32 + 2 * lane, params.in.load<Words2>(first + 8));
  sync_cluster();
  const Remote<std::uint32_t> to = of_block(inbox, (rank + 1) % 4);
  to.store(lane * 4, params.in.load<Words4>(first));
  to.store(128 + lane * 2, params.in.load<Words2>(first + 4));
  to.store(192 + lane, params.in.load<std::uint32_t>(first + 6));
  const Remote<std::uint32_t> from = of_block(outbox, (rank + 2) % 4);
  const std::uint32_t single = from.load<std::uint32_t>(lane);
  const Words2 two = from.load<Words2>(32 + 2 * lane);
  sync_cluster();
  const Words4 four = inbox.load<Words4>(lane * 4);
  const Words2 pair = inbox.load<Words2>(128 + lane * 2);
  const std::int64_t out = (std::int64_t{block_index_x()} * 32 + lane) * kGoldenOutputs;
  params.out.store(out, four.word[0] ^ four.word[1] << 1 ^ four.word[2] << 2 ^ four.word[3] << 3);
  params.out.store(out + 1, pair.word[0] ^ pair.word[1] << 1 ^ inbox.load<std::uint32_t>(192 + lane) << 2);
  params.out.store(out + 2, single ^ two.word[0] << 1 ^ two.word[1] << 2);
  params.out.store(out + 3, static_cast<std::uint32_t>(rank * 16 + cluster_blocks()));
}

// Clusters of four blocks that send to each other in three rounds, through two inboxes: in each round a lane's four words
// go to rank r + 1, two to r + 2 and one to r + 3, changed by what has come so far. That a peer has left an inbox is
// known from what it sent in the round after.
__global__ void golden_send_kernel(const GoldenParams params) {
  if constexpr (!clusters_exist()) return;
  wait_for_earlier_launches();
  constexpr int kInbox = 32 * 7;
  const int lane = lane_index();
  const int rank = cluster_block_rank();
  const std::int64_t first = (std::int64_t{block_index_x()} * 32 + lane) * kGoldenInputs;
  const Shared<std::uint32_t> inbox = shared_region<std::uint32_t>("inbox", 0, 2 * kInbox);
  const auto barriers = shared_region<std::uint64_t>("barriers", 8 * kInbox, 2);
  if (lane == 0) {
    for (int i = 0; i < 2; ++i) barrier_init(barriers, i, 1);
    publish_barriers();
  }
  sync_cluster();
  std::uint32_t state = params.in.load<std::uint32_t>(first + 7);
  for (int round = 0; round < 3; ++round) {
    const int box = round % 2 * kInbox;
    const auto announce = [&] {
      if (lane == 0) barrier_arrive_expecting(barriers, round % 2, 4 * kInbox);
    };
    if (round != 1) announce();
    Words4 four = params.in.load<Words4>(first);
    Words2 two = params.in.load<Words2>(first + 4);
    four.word[round] ^= state;
    two.word[1] += state;
    const auto send = [&](int distance, int place, auto value) {
      const int peer = (rank + distance) % 4;
      of_block(inbox, peer).send(box + place, value, barrier_of_block(barriers, round % 2, peer));
    };
    send(1, 4 * lane, four);
    send(2, 128 + 2 * lane, two);
    send(3, 192 + lane, params.in.load<std::uint32_t>(first + 6) - state);
    if (round == 1) announce();
    barrier_wait_for_cluster(barriers, round % 2, round / 2);
    four = inbox.load<Words4>(box + 4 * lane);
    two = inbox.load<Words2>(box + 128 + 2 * lane);
    state = state * 5 + (four.word[0] ^ four.word[1] << 1 ^ four.word[2] << 2 ^ four.word[3] << 3);
    state = state * 3 + (two.word[0] ^ two.word[1] << 1);
    state = state * 7 + inbox.load<std::uint32_t>(box + 192 + lane);
    sync_warp();
  }
  const std::int64_t out = (std::int64_t{block_index_x()} * 32 + lane) * kGoldenOutputs;
  for (int i = 0; i < kGoldenOutputs; ++i) params.out.store(out + i, state + static_cast<std::uint32_t>(i));
}

// One warpgroup and one product of 64 × 32 by 32 × 72, in two k-steps, added to what the sums are first or not. Of the
// words in: an image of shared memory (A at element 0 in cores 72 apart along rows, 592 along k; B at 2368, 80 and 728
// apart), then for each thread four registers of A's first k-step and four of its second, and 36 sums; then whether
// they are added to. Words out: the sums of each thread.
constexpr int kGoldenWgmmaImage = 2640;

template <class T, bool kRegisters, bool kTransposed>
__global__ void golden_wgmma_kernel(const GoldenParams params) {
  if constexpr (!wgmma_exists()) return;
  wait_for_earlier_launches();
  const int thread = warp_index() * 32 + lane_index();
  const Shared<T> image = shared_region<T>("image", 0, 2 * kGoldenWgmmaImage);
  for (int i = thread; i < kGoldenWgmmaImage; i += 128) image.store(2 * i, params.in.load<std::uint32_t>(i));
  publish_matrices();
  sync_block();
  const int own = kGoldenWgmmaImage + thread * 44;
  FragmentA<T> a[2];
  FragmentC sums[9];
  for (int i = 0; i < 8; ++i) a[i / 4].reg[i % 4].bits = params.in.load<std::uint32_t>(own + i);
  for (int i = 0; i < 36; ++i) sums[i / 4].value[i % 4] = to_float(params.in.load<std::uint32_t>(own + 8 + i));
  const bool adds = params.in.load<std::uint32_t>(kGoldenWgmmaImage + 128 * 44) != 0;
  pin(sums);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const MatrixInShared<T, kTransposed> b{image, 2368 + 2 * 728 * step, 80, 728};
    if constexpr (kRegisters) {
      wgmma(sums, a[step], b, adds || step > 0);
    } else {
      wgmma(sums, MatrixInShared<T>{image, 2 * 592 * step, 72, 592}, b, adds || step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin(sums);
  for (int i = 0; i < 36; ++i) params.out.store(thread * 36 + i, to_bits(sums[i / 4].value[i % 4]));
}

struct Golden {
  const char* name;
  Status (*run)(const LaunchShape&, Stream, const GoldenParams&);
};

template <auto kKernel, int kCluster = 1>
Status run(const LaunchShape& shape, Stream stream, const GoldenParams& params) {
  LaunchShape with_cluster = shape;
  with_cluster.cluster = kCluster;
  with_cluster.shared_bytes *= kCluster;
  return launch<kKernel>("golden", with_cluster, stream, params);
}

// A block for the words of 48 warps.
template <auto kKernel>
Status run_wgmma(const LaunchShape& shape, Stream stream, const GoldenParams& params) {
  if (!runs_sm_90a()) return fail(Status::kUnsupported, "golden: wgmma needs compute capability 9.0");
  if (shape.blocks_x != 48) return fail(Status::kInvalidArgument, "golden: warps: expected 48 for wgmma");
  return launch<kKernel>("golden", {1, 1, 128, 4 * kGoldenWgmmaImage}, stream, params);
}

Status run_barriers(const LaunchShape& shape, Stream stream, const GoldenParams& params) {
  if (shape.blocks_x % 8 != 0) return fail(Status::kInvalidArgument, "golden: warps: expected multiples of 8");
  const int shared_bytes = 2 * 4 * 32 * kGoldenInputs + 1024 + 32;
  return launch<golden_barriers_kernel>("golden", {shape.blocks_x / 8, 1, 256, shared_bytes}, stream, params);
}

const Golden kGoldens[] = {
    {"mma_m16n8k16_float16", run<golden_kernel<GoldenMma<Half, 16>>>},
    {"mma_m16n8k16_bfloat16", run<golden_kernel<GoldenMma<BFloat16, 16>>>},
    {"mma_m16n8k8_float16", run<golden_kernel<GoldenMma<Half, 8>>>},
    {"mma_m16n8k8_bfloat16", run<golden_kernel<GoldenMma<BFloat16, 8>>>},
    {"mma_m16n8k16_half_sums", run<golden_kernel<GoldenMmaHalf>>},
    {"load_matrix_x4", run<golden_kernel<GoldenMatrixLoad<MatrixLoad::kX4>>>},
    {"load_matrix_x4_transposed", run<golden_kernel<GoldenMatrixLoad<MatrixLoad::kX4Transposed>>>},
    {"load_matrix_x2", run<golden_kernel<GoldenMatrixLoad<MatrixLoad::kX2>>>},
    {"shuffle", run<golden_kernel<GoldenShuffle>>},
    {"float_functions", run<golden_kernel<GoldenFloatFunctions>>},
    {"half_functions", run<golden_kernel<GoldenHalfFunctions>>},
    {"pairs_float16", run<golden_kernel<GoldenPairs<Half>>>},
    {"pairs_bfloat16", run<golden_kernel<GoldenPairs<BFloat16>>>},
    {"async_copy", run<golden_async_copy_kernel>},
    {"cluster", run<golden_cluster_kernel, 4>},
    {"send", run<golden_send_kernel, 4>},
    {"barriers", run_barriers},
    {"wgmma_shared_float16", run_wgmma<golden_wgmma_kernel<Half, false, false>>},
    {"wgmma_shared_transposed_float16", run_wgmma<golden_wgmma_kernel<Half, false, true>>},
    {"wgmma_registers_float16", run_wgmma<golden_wgmma_kernel<Half, true, false>>},
    {"wgmma_registers_transposed_float16", run_wgmma<golden_wgmma_kernel<Half, true, true>>},
    {"wgmma_shared_bfloat16", run_wgmma<golden_wgmma_kernel<BFloat16, false, false>>},
    {"wgmma_shared_transposed_bfloat16", run_wgmma<golden_wgmma_kernel<BFloat16, false, true>>},
    {"wgmma_registers_bfloat16", run_wgmma<golden_wgmma_kernel<BFloat16, true, false>>},
    {"wgmma_registers_transposed_bfloat16", run_wgmma<golden_wgmma_kernel<BFloat16, true, true>>},
};

bool equal(const char* a, const char* b) {
  while (*a != '\0' && *a == *b) {
    ++a;
    ++b;
  }
  return *a == *b;
}

}  // namespace

Status golden(const char* name, const void* in, void* out, int warps, Stream stream) {
  for (const Golden& candidate : kGoldens) {
    if (!equal(candidate.name, name)) continue;
    GoldenParams params;
    params.in =
        Global<const std::uint32_t>(static_cast<const std::uint32_t*>(in), std::int64_t{warps} * 32 * kGoldenInputs);
    params.out = Global<std::uint32_t>(static_cast<std::uint32_t*>(out), std::int64_t{warps} * 32 * kGoldenOutputs);
    return candidate.run({warps, 1, 32, 512}, stream, params);
  }
  return fail(Status::kInvalidArgument, "golden: name: no primitive test is called '%s'", name);
}

}  // namespace mvk
