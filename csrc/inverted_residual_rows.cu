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
};

// The most m-tiles a step that fit into registers without spills: they share each weight fragment. Side by side they
// lose 2 columns of 32 to the overlap of strips, against 2 of 16 for one alone, but at stride 1 the old rows of 192 or
// 256 hidden channels then take 24 or 32 KB a warp, so that 4 warps would fit beside the weights; there the tiles lie
// below each other. float16 wants 12 warps or a larger tile; bfloat16's depthwise products take 40 registers more.
constexpr Served kServed[] = {
    {1, 16, 16, {2, 2, 12}, {2, 2, 8}},   //
    {1, 16, 32, {2, 2, 12}, {2, 2, 8}},   //
    {1, 24, 24, {2, 2, 12}, {2, 2, 8}},   //
    {1, 48, 48, {1, 3, 8}, {1, 2, 8}},    //
    {1, 64, 64, {1, 3, 8}, {1, 2, 8}},    //
    {2, 16, 24, {2, 2, 12}, {2, 2, 12}},  //
    {2, 24, 48, {2, 2, 12}, {2, 2, 8}},   //
    {2, 32, 48, {2, 2, 12}, {2, 2, 8}},   //
    {2, 32, 64, {2, 2, 12}, {2, 2, 8}},   //
    {2, 48, 64, {2, 2, 8}, {2, 2, 8}},    //
    {2, 64, 80, {2, 2, 8}, {2, 2, 8}},    //
    {2, 64, 96, {2, 2, 8}, {2, 2, 8}},    //
};
constexpr int kServedCount = sizeof(kServed) / sizeof(kServed[0]);
constexpr int kMinWarps = 8;  // of a block: fewer hardly hide each other's latency, and the tile kernel does

template <class T, int kIndex>
struct ConfigAt {
  static constexpr Served kShape = kServed[kIndex];
  static_assert(kShape.half.column_tiles == kShape.bfloat16.column_tiles, "both dtypes need the same shared memory");
  static constexpr WarpTile kTile = IsSame<T, Half>::value ? kShape.half : kShape.bfloat16;
  using Config = InvertedResidualRowsConfig<T, kShape.stride, kShape.in_channels, kShape.out_channels,
                                            kTile.column_tiles, kTile.step_rows, kTile.max_warps>;
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

// Dealt: shared memory of a block.
template <class Config>
int dealt_bytes(int chunks, int warps) {
  const int old_rows = ceil_div(chunks, warps) * Config::kWindowBytes;
  return chunks * Config::kRecord.bytes + Config::kLastRowBytes + warps * (old_rows + Config::kPartialBytes);
}

// Shared memory of a warp beside the weights.
template <class Config>
constexpr int warp_bytes(int chunks) {
  return chunks * Config::kWindowBytes + Config::kLastRowBytes;
}

// Warps of a block beside the weights in `limit` bytes, the same number on each of an SM's four schedulers; 0: too few.
template <class Config>
int block_warps(int chunks, int limit) {
  const int fit = (limit - chunks * Config::kRecord.bytes) / warp_bytes<Config>(chunks) / 4 * 4;
  return fit < kMinWarps ? 0 : fit < Config::kMaxWarps ? fit : Config::kMaxWarps;
}

// Whether there is a kernel that deals: narrower shapes have fewer chunks than warps.
template <class Config>
constexpr bool kCanBeDealt = Config::kInChannels >= 32;

// Dealt: warps of a block, at most 8, each with the same number of chunks or one fewer; 0: it does not fit, or a warp
// would have all chunks but a few anyway.
template <class Config>
int dealt_warps(int chunks, int limit) {
  constexpr int kMost = 8;
  if (!kCanBeDealt<Config> || chunks < kMost) return 0;
  const int warps = ceil_div(chunks, ceil_div(chunks, kMost));
  return dealt_bytes<Config>(chunks, warps) <= limit ? warps : 0;
}

// Output rows of a segment. More segments fill the last round of the warps better, and each costs a filling step, which
// takes a third of a whole one (counted in instructions: 0.27 to 0.37). The count that ends soonest; of equals, the
// fewest segments.
int choose_segment_rows(int strips, int out_height, int rows_a_step, int warps) {
  const int steps = ceil_div(out_height, rows_a_step);
  int best_steps = steps;
  std::int64_t best_time = 0;
  for (int segment_steps = steps; segment_steps >= 1; --segment_steps) {
    const std::int64_t items = std::int64_t{strips} * ceil_div(steps, segment_steps);
    const std::int64_t rounds = (items + warps - 1) / warps;
    const std::int64_t time = rounds * (3 * segment_steps + 1);
    if (best_time == 0 || time < best_time) {
      best_time = time;
      best_steps = segment_steps;
    }
    if (rounds > 16) break;  // what is left to gain is less than a filling step
  }
  return best_steps * rows_a_step;
}

template <class Config, bool kDealt>
Status launch_config(const InvertedResidualArguments& a, Stream stream) {
  using T = typename Config::Type;
  const std::int64_t in_pixels = std::int64_t{a.batch} * a.height * a.width;
  const int chunks = ceil_div(a.hidden_channels, Config::kChunk);
  InvertedResidualRowsParams<T> params;
  params.batch = a.batch;
  params.height = a.height;
  params.width = a.width;
  params.out_height = (a.height - 1) / a.stride + 1;
  params.out_width = (a.width - 1) / a.stride + 1;
  params.x = Global<const T>(static_cast<const T*>(a.x), in_pixels * a.in_channels);
  params.weights = Global<const T>(static_cast<const T*>(a.row_weights), chunks * (Config::kRecord.bytes / 2));
  params.bias = Global<const float>(a.bias, a.out_channels);
  params.y =
      Global<T>(static_cast<T*>(a.y), std::int64_t{a.batch} * params.out_height * params.out_width * a.out_channels);
  params.chunks = chunks;
  const int limit = shared_memory_limit();
  params.block_warps = kDealt ? dealt_warps<Config>(chunks, limit) : block_warps<Config>(chunks, limit);
  if (params.block_warps == 0) {
    return fail(Status::kUnsupported, "inverted_residual: %d → %d → %d channels at stride %d cannot be dealt to warps",
                a.in_channels, a.hidden_channels, a.out_channels, a.stride);
  }
  params.strips = ceil_div(a.batch * (params.out_width + 1) - 1, Config::kStripOutputs);
  const int multiprocessors = multiprocessor_count();
  params.segment_rows = choose_segment_rows(params.strips, params.out_height, Config::kOutRows,
                                            kDealt ? multiprocessors : params.block_warps * multiprocessors);
  params.items = params.strips * ceil_div(params.out_height, params.segment_rows);
  params.blocks = params.items < multiprocessors ? params.items : multiprocessors;
  params.residual = a.residual;
  LaunchShape shape;
  shape.blocks_x = params.blocks;
  shape.blocks_y = 1;
  shape.threads = 32 * params.block_warps;
  shape.shared_bytes = kDealt ? dealt_bytes<Config>(chunks, params.block_warps)
                              : chunks * Config::kRecord.bytes + params.block_warps * warp_bytes<Config>(chunks);
  return launch<inverted_residual_rows_kernel<Config, kDealt>>("inverted_residual_rows", shape, stream, params);
}

}  // namespace

int inverted_residual_rows_shared_bytes(int in_channels, int hidden_channels, int out_channels, int stride, int limit) {
  // Of float16; a block in bfloat16 has at most as many warps, each with as much.
  return visit_config<Half>(stride, in_channels, out_channels, [&](auto config) {
    using Config = decltype(config);
    const int chunks = ceil_div(hidden_channels, Config::kChunk);
    const int warps = block_warps<Config>(chunks, limit);
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

Status inverted_residual_rows(const InvertedResidualArguments& a, Stream stream) {
  const auto launch_it = [&](auto config) {
    using Config = decltype(config);
    if constexpr (kCanBeDealt<Config>) {
      if (a.dealt) return static_cast<int>(launch_config<Config, true>(a, stream));
    }
    return static_cast<int>(launch_config<Config, false>(a, stream));
  };
  return static_cast<Status>(a.bfloat16 ? visit_config<BFloat16>(a.stride, a.in_channels, a.out_channels, launch_it)
                                        : visit_config<Half>(a.stride, a.in_channels, a.out_channels, launch_it));
}

}  // namespace mvk
