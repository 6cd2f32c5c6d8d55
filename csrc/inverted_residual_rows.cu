// Launcher of the inverted residual's row kernel: which shapes it serves, how the work is cut, the launch.
#include <utility>

#include "inverted_residual_rows.cuh"
#include "launchers.h"

namespace mvk {

namespace {

// What a warp does at a time, and how many of them a block has at most: 12 leave a thread 168 registers, 8 leave 255.
struct WarpTile {
  int column_tiles, step_rows, max_warps;
};

// A shape that the row kernel serves.
struct Served {
  int stride, in_channels, out_channels;
  WarpTile half, bfloat16;
  int passes = 1;
};

// The most m-tiles a step that fit into registers without spills: they share each weight fragment. Side by side they
// lose 2 columns of 32 to the overlap of strips, against 2 of 16 for one alone, but at stride 1 the old rows of 192 or
// 256 hidden channels then take 24 or 32 KB a warp, so that 4 warps would fit beside the weights; there the tiles lie
// below each other. float16 wants 12 warps or a larger tile; bfloat16's depthwise products take 40 registers more.
constexpr Served kServed[] = {
    {1, 16, 16, {2, 2, 12}, {2, 2, 8}},    //
    {1, 16, 32, {2, 2, 12}, {2, 2, 8}},    //
    {1, 24, 24, {2, 2, 12}, {2, 2, 8}},    //
    {1, 48, 48, {1, 3, 8}, {1, 2, 8}},     //
    {1, 64, 64, {1, 3, 8}, {1, 2, 8}},     //
    {2, 16, 24, {2, 2, 12}, {2, 2, 12}},   //
    {2, 24, 48, {2, 2, 12}, {2, 2, 8}},    //
    {2, 32, 48, {2, 2, 12}, {2, 2, 8}},    //
    {2, 32, 64, {2, 2, 12}, {2, 2, 8}},    //
    {2, 48, 64, {2, 2, 8}, {2, 2, 8}},     //
    {2, 64, 80, {2, 2, 8}, {2, 2, 8}},     //
    {2, 64, 96, {2, 2, 8}, {2, 2, 8}},     //
    {2, 80, 96, {2, 2, 8}, {2, 2, 8}, 2},  //
    {2, 96, 128, {2, 2, 8}, {2, 2, 8}, 2},
};
constexpr int kServedCount = sizeof(kServed) / sizeof(kServed[0]);
constexpr int kMinWarps = 8;  // of a block: fewer hardly hide each other's latency, and the tile kernel does

template <class T, int kIndex>
struct ConfigAt {
  static constexpr Served kShape = kServed[kIndex];
  static_assert(kShape.half.column_tiles == kShape.bfloat16.column_tiles, "both dtypes need the same shared memory");
  static constexpr WarpTile kTile = IsSame<T, Half>::value ? kShape.half : kShape.bfloat16;
  using Config = InvertedResidualRowsConfig<T, kShape.stride, kShape.in_channels, kShape.out_channels,
                                            kTile.column_tiles, kTile.step_rows, kTile.max_warps, kShape.passes>;
};

// visit(Config{}) for the configuration of a shape; 0 where there is none.
template <class T, class Visit, int... kIndices>
int visit_config(int stride, int in_channels, int out_channels, const Visit& visit,
                 std::integer_sequence<int, kIndices...>) {
  int result = 0;
  ((kServed[kIndices].stride == stride && kServed[kIndices].in_channels == in_channels &&
    kServed[kIndices].out_channels == out_channels &&
    ((result = visit(typename ConfigAt<T, kIndices>::Config{})), true)) ||
   ...);
  return result;
}
template <class T, class Visit>
int visit_config(int stride, int in_channels, int out_channels, const Visit& visit) {
  return visit_config<T>(stride, in_channels, out_channels, visit, std::make_integer_sequence<int, kServedCount>{});
}

// Chunks of the pass that has more.
template <class Config>
int pass_chunks(int hidden_channels) {
  return ceil_div(ceil_div(hidden_channels, Config::kChunk), Config::kPasses);
}

// Shared memory of a warp beside the weights.
template <class Config>
constexpr int warp_bytes(int chunks) {
  return chunks * Config::kWindowBytes + Config::kLastRowBytes;
}

// Dealt: shared memory of a block.
template <class Config>
int dealt_bytes(int chunks, int warps) {
  const int own = warp_bytes<Config>(ceil_div(chunks, warps)) + Config::kPartialBytes;
  return chunks * Config::kRecord.bytes + warps * own;
}

// Warps of a block beside the weights in `limit` bytes, the same number on each of an SM's four schedulers; 0: too few.
template <class Config>
int block_warps(int chunks, int limit) {
  const int fit = (limit - chunks * Config::kRecord.bytes) / warp_bytes<Config>(chunks) / 4 * 4;
  return fit < kMinWarps ? 0 : fit < Config::kMaxWarps ? fit : Config::kMaxWarps;
}

// Whether there is a kernel that deals: narrower shapes have fewer chunks than warps.
template <class Config>
constexpr bool kCanBeDealt = Config::kInChannels >= 32 && Config::kPasses == 1;

// Dealt: warps of a block, at most 8, each with the same number of chunks or one fewer; 0: it does not fit, or a warp
// would have all chunks but a few anyway.
template <class Config>
int dealt_warps(int chunks, int limit) {
  constexpr int kMost = 8;
  if (!kCanBeDealt<Config> || chunks < kMost) return 0;
  const int warps = ceil_div(chunks, ceil_div(chunks, kMost));
  return dealt_bytes<Config>(chunks, warps) <= limit ? warps : 0;
}

// How strips of `steps` steps are dealt to `warps`: in runs of all strips' steps, laid end to end. Each run begins with
// a filling step, which takes a third of a whole one (counted in instructions: 0.27 to 0.37), and so does a strip that
// begins within one.
struct Runs {
  int strip_steps, run_steps;
};

// Either strips are cut into runs of their own, the last one of a strip shorter; or each warp has one run, all but the
// last equally long, wherever strips end. What ends soonest; of equals, the fewest runs.
Runs choose_runs(int strips, int steps, int warps) {
  const int run_steps = static_cast<int>((std::int64_t{strips} * steps + warps - 1) / warps);
  Runs best{steps, run_steps};
  std::int64_t best_time = 3 * run_steps + 1 + ceil_div(run_steps - 1, steps);
  for (int own_steps = steps; own_steps >= 1; --own_steps) {
    const std::int64_t runs = std::int64_t{strips} * ceil_div(steps, own_steps);
    const std::int64_t rounds = (runs + warps - 1) / warps;
    const std::int64_t time = rounds * (3 * own_steps + 1);
    if (time < best_time) {
      best_time = time;
      best = {round_up(steps, own_steps), own_steps};
    }
    if (rounds > 16) break;  // what is left to gain is less than a filling step
  }
  return best;
}

template <class Config>
int strips_of(int batch, int width) {
  return ceil_div(batch * ((width - 1) / Config::kStride + 2) - 1, Config::kStripOutputs);
}

// One launch, of `chunks` chunks from `first_chunk` on.
template <class Config, RowsForm kForm>
Status launch_form(const InvertedResidualArguments& a, Stream stream, int first_chunk, int chunks) {
  using T = typename Config::Type;
  constexpr bool kDealt = kForm == RowsForm::kDealt;
  constexpr int kRecordCount = Config::kRecord.bytes / 2;
  const std::int64_t in_pixels = std::int64_t{a.batch} * a.height * a.width;
  InvertedResidualRowsParams<T> params;
  params.batch = a.batch;
  params.height = a.height;
  params.width = a.width;
  params.out_height = (a.height - 1) / a.stride + 1;
  params.out_width = (a.width - 1) / a.stride + 1;
  params.x = Global<const T>(static_cast<const T*>(a.x), in_pixels * a.in_channels);
  params.weights =
      Global<const T>(static_cast<const T*>(a.row_weights) + first_chunk * kRecordCount, chunks * kRecordCount);
  params.bias = Global<const float>(a.bias, a.out_channels);
  params.y =
      Global<T>(static_cast<T*>(a.y), std::int64_t{a.batch} * params.out_height * params.out_width * a.out_channels);
  params.chunks = chunks;
  const int limit = shared_memory_limit();
  params.block_warps =
      kDealt ? dealt_warps<Config>(chunks, limit) : block_warps<Config>(pass_chunks<Config>(a.hidden_channels), limit);
  if (params.block_warps == 0) {
    return fail(Status::kUnsupported, "inverted_residual: %d → %d → %d channels at stride %d cannot be dealt to warps",
                a.in_channels, a.hidden_channels, a.out_channels, a.stride);
  }
  params.strips = strips_of<Config>(a.batch, a.width);
  const int multiprocessors = multiprocessor_count();
  const int steps = ceil_div(params.out_height, Config::kOutRows);
  if (Config::kPasses > 1) {
    params.sums =
        Global<float>(static_cast<float*>(a.workspace), std::int64_t{params.strips} * steps * Config::kStepSums);
  }
  const Runs runs = choose_runs(params.strips, steps, kDealt ? multiprocessors : params.block_warps * multiprocessors);
  params.strip_steps = runs.strip_steps;
  params.run_steps = runs.run_steps;
  params.runs = ceil_div(params.strips * runs.strip_steps, runs.run_steps);
  params.blocks = params.runs < multiprocessors ? params.runs : multiprocessors;
  params.residual = a.residual;
  LaunchShape shape;
  shape.blocks_x = params.blocks;
  shape.blocks_y = 1;
  shape.threads = 32 * params.block_warps;
  shape.shared_bytes = kDealt ? dealt_bytes<Config>(chunks, params.block_warps)
                              : chunks * Config::kRecord.bytes + params.block_warps * warp_bytes<Config>(chunks);
  return launch<inverted_residual_rows_kernel<Config, kForm>>("inverted_residual_rows", shape, stream, params);
}

template <class Config>
Status launch_config(const InvertedResidualArguments& a, Stream stream) {
  const int chunks = ceil_div(a.hidden_channels, Config::kChunk);
  if constexpr (Config::kPasses > 1) {
    if (a.workspace == nullptr) {
      return fail(Status::kInvalidArgument, "inverted_residual: expected a workspace for %d → %d → %d channels",
                  a.in_channels, a.hidden_channels, a.out_channels);
    }
    const int first = pass_chunks<Config>(a.hidden_channels);
    const Status status = launch_form<Config, RowsForm::kFirstPass>(a, stream, 0, first);
    return status != Status::kOk ? status : launch_form<Config, RowsForm::kLastPass>(a, stream, first, chunks - first);
  } else {
    if constexpr (kCanBeDealt<Config>) {
      if (a.dealt) return launch_form<Config, RowsForm::kDealt>(a, stream, 0, chunks);
    }
    return launch_form<Config, RowsForm::kWhole>(a, stream, 0, chunks);
  }
}

}  // namespace

int inverted_residual_rows_shared_bytes(int in_channels, int hidden_channels, int out_channels, int stride, int limit) {
  // Of float16; a block in bfloat16 has at most as many warps, each with as much.
  return visit_config<Half>(stride, in_channels, out_channels, [&](auto config) {
    using Config = decltype(config);
    const int chunks = pass_chunks<Config>(hidden_channels);
    const int warps = block_warps<Config>(chunks, limit);
    if (Config::kPasses > ceil_div(hidden_channels, Config::kChunk)) return 0;
    return warps == 0 ? 0 : chunks * Config::kRecord.bytes + warps * warp_bytes<Config>(chunks);
  });
}

int inverted_residual_rows_dealt_pixels(int in_channels, int hidden_channels, int out_channels, int stride, int limit) {
  return visit_config<Half>(stride, in_channels, out_channels, [&](auto config) {
    using Config = decltype(config);
    const int chunks = ceil_div(hidden_channels, Config::kChunk);
    const int warps = block_warps<Config>(chunks, limit);
    // Eight chunks are too short a walk to be worth two barriers a step: 12.4 µs dealt, 7.8 not, for 32 → 128 → 64 at
    // stride 2 and one image of 128×128 on an H200. Sixteen are (64 → 256 → 64, 64×64: 12.8 and 15.7).
    constexpr int kFewestChunks = 12;
    if (warps == 0 || chunks < kFewestChunks || dealt_warps<Config>(chunks, limit) == 0) return 0;
    return warps * Config::kStripOutputs * Config::kOutRows / 4;
  });
}

long long inverted_residual_rows_workspace_bytes(int in_channels, int out_channels, int stride, int batch, int height,
                                                 int width) {
  long long bytes = 0;
  visit_config<Half>(stride, in_channels, out_channels, [&](auto config) {
    using Config = decltype(config);
    const int steps = ceil_div((height - 1) / stride + 1, Config::kOutRows);
    if (Config::kPasses > 1) bytes = 4LL * strips_of<Config>(batch, width) * steps * Config::kStepSums;
    return 0;
  });
  return bytes;
}

Status inverted_residual_rows(const InvertedResidualArguments& a, Stream stream) {
  const auto launch_it = [&](auto config) { return static_cast<int>(launch_config<decltype(config)>(a, stream)); };
  return static_cast<Status>(a.bfloat16 ? visit_config<BFloat16>(a.stride, a.in_channels, a.out_channels, launch_it)
                                        : visit_config<Half>(a.stride, a.in_channels, a.out_channels, launch_it));
}

}  // namespace mvk
