// Inverted residual, whole in one kernel: y = W_p · silu(dw(silu(W_e x + b_e)) + b_d) + b_p [+ x].
//
//   x      (B, H, W, C_in)  NHWC          y  (B, OH, OW, C_out)  NHWC
//   W_e    (hidden, C_in)   expand        dw  3×3 depthwise, stride s, dilation d       W_p  (C_out, hidden)  project
//
// A block owns a tile of kTileRows × kTileColumns output pixels and every channel of them. Its input tile with the halo
// goes to shared memory once. Then it walks over the hidden channels in chunks:
//
//     expand     tensor cores, input tile (shared) × weights (shared)  → SiLU → hidden chunk (shared)
//     depthwise  9 taps on pairs of channels, hidden chunk (shared)    → SiLU → registers
//     project    tensor cores, those registers are the A fragments     → accumulators (registers), over all chunks
//
// so that the hidden tensor never leaves the SM. The weights of a chunk are one contiguous record (the packing is
// mobilevit_kernels/native/inverted_residual.py) that cp.async fetches one chunk ahead.
//
// Which lane owns which output pixel: a warp's project tile is 2 rows × 8 columns, g = lane / 4, t = lane % 4:
//
//              column  0    1    2    3    4    5    6    7
//     row 2i          g=0  g=1  g=2  g=3  g=4  g=5  g=6  g=7      fragment row g
//     row 2i + 1      g=0  g=1  g=2  g=3  g=4  g=5  g=6  g=7      fragment row g + 8
//
// and of the 16 hidden channels of a k-step lane t holds 2t, 2t+1, 2t+8, 2t+9, as the A fragment wants them. Both
// pixels lie in one column: they share rows of taps (stride 1: 4 rows instead of 6), and what the depthwise step
// computes is the A fragment without a shuffle or a trip through shared memory. In the hidden chunk the four channels
// of a lane are neighbours, one 8-byte access.
//
// Dilation d: the pixels whose rows and columns have the same remainders by d make a map of their own on which the
// dilation is 1. A block works on one such phase; the halo stays one pixel.
//
// Stride 2: the columns of the input tile are stored even ones first, so that the taps of neighbouring output pixels
// are neighbours and free of bank conflicts.
//
// Split (sm_90 and newer): few tiles leave most SMs idle while each block walks over all chunks alone. There the blocks
// of a cluster take one tile, of 4 × 8 output pixels, and deal its chunks: block r of S takes the chunks r, r + S, …
// Each has the whole input tile, and ends with its own float sums of all 32 pixels and all output channels. Of those it
// sends pixel p to block p mod S, which adds up what the blocks have sent in the order of their ranks:
//
//     block 0:  sums of its depth groups, added ─┬─▶ pixels 0, S, …     in block 0 ─┬─▶ added, + bias + x → y
//     block 1:  sums of its depth groups, added ─┼─▶ pixels 0, S, …     in block 0 ─┘
//                                                └─▶ pixels 1, S + 1, … in block 1 ─── …
//
// Each sum travels once. Two barriers of the cluster are enough: before the first chunk (every block runs), and between
// sending and adding up. What is received lies in memory of its own.
//
// Bytes a tile: the input tile (halo included) and the output once; split, the input tile once a block, and (S − 1) / S
// of a block's sums to others. Expected to bind: shared-memory bandwidth, then MUFU (hidden · (halo pixels + output
// pixels) tanh); split, latency.
#pragma once

#include "common/async_copy.cuh"
#include "common/cluster.cuh"
#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/mma.cuh"
#include "common/overlap.cuh"
#include "common/warp.cuh"
#include "inverted_residual_record.cuh"

namespace mvk {

// Sizes that the kernel and its launcher share; everything in them is known before the launch.
template <class T, int kStrideOf, int kOutTilesOf, bool kLargeTile, bool kSplitOf>
struct InvertedResidualConfig {
  using Type = T;
  static constexpr int kStride = kStrideOf;
  static constexpr int kOutTiles = kOutTilesOf;  // 8-channel tiles of the accumulators: C_out ≤ 8·kOutTiles a pass
  // The large tile recomputes least: (10·18)/(8·16) = 1.41 expanded pixels an input pixel at stride 1,
  // (17·17)/(16·16) = 1.13 at stride 2. The small one (1.69, 1.20) is for GPUs with 99 KB of shared memory a block and
  // for wide inputs. Chunks of 64 hidden channels where they fit (fewer barriers, 213 bytes of shared memory an mma
  // against 341 for chunks of 32).
  //
  // Split, what counts is the time of one block. The small tile at both strides halves it, and twice as many blocks
  // run; eight warps have a chunk of 64 as the large tile's have.
  static constexpr bool kSplit = kSplitOf;
  static constexpr int kTileRows = kLargeTile && !kSplit ? 8 : 4;
  static constexpr int kTileColumns = kStride == 1 && !kSplit ? 16 : 8;
  static constexpr int kChunk = kLargeTile ? 64 : 32;  // hidden channels
  static constexpr int kWarps = kLargeTile ? 8 : 4;
  static constexpr int kThreads = 32 * kWarps;
  // Two blocks an SM (128 registers a thread) hide each other's barriers; 20 tiles of accumulators leave no room for
  // it.
  static constexpr int kBlocksPerSm = kOutTiles <= 12 ? (kLargeTile ? 2 : 4) : (kLargeTile ? 1 : 2);

  static constexpr int kOutPixels = kTileRows * kTileColumns;
  static constexpr int kPixelTiles = kOutPixels / 16;        // project tiles of 2 × 8 pixels
  static constexpr int kDepthGroups = kWarps / kPixelTiles;  // warps that share a project tile, each with its k-steps
  static constexpr int kInRows = (kTileRows - 1) * kStride + 3;
  static constexpr int kInColumns = (kTileColumns - 1) * kStride + 3;
  static constexpr int kEvenColumns = (kInColumns + 1) / 2;
  static constexpr int kPositions = kInRows * kInColumns;
  static constexpr int kChunkPairs = kChunk / 16;  // 16-channel groups of a chunk
  // Of warps, in the expand step. Split: a warp has few tiles of positions, and all of them may share a weight
  // fragment.
  static constexpr int kChannelGroups = kSplit ? kChunkPairs : 2;
  static constexpr int kPositionGroups = kWarps / kChannelGroups;
  // Expand tiles of 16 positions, as many for each group of warps: a tile too many costs a group nothing that another
  // does not wait for, and a condition in the inner loop costs all of them.
  static constexpr int kInTilesPerWarp = ceil_div(ceil_div(kPositions, 16), kPositionGroups);
  static constexpr int kInTiles = kInTilesPerWarp * kPositionGroups;
  // Expand tiles that share a weight fragment. Three cost 341 bytes of shared memory an mma, two 384, but beside 12
  // accumulator tiles and 128 registers a thread there is room for two.
  static constexpr int kTilesAtOnce =
      kOutTiles == 12 ? 2 : (kInTilesPerWarp > 3 && kOutTiles < 12 ? 3 : kInTilesPerWarp);
  static constexpr int kPairsPerWarp = kChunkPairs / kChannelGroups;
  // 8-byte accesses of four neighbouring positions have to cover the 32 banks: pitch ≡ 8 words (mod 16).
  static constexpr int kHiddenPitch = kChunk + 16;  // elements
  static constexpr int kHiddenBytes = kInTiles * 16 * kHiddenPitch * 2;

  static_assert(kPixelTiles * kDepthGroups == kWarps, "every warp has one project tile");
  static_assert(kChunkPairs % kDepthGroups == 0, "depth groups share the k-steps of a chunk evenly");
  static_assert(kPairsPerWarp * kChannelGroups == kChunkPairs, "channel groups share the chunk evenly");
  static_assert(kHiddenPitch / 2 % 16 == 8, "four positions × 8 words cover the banks once");
  static_assert(2 * kInTilesPerWarp <= 32, "one bit for each fragment row of a warp's expand tiles");
};

template <class T>
struct InvertedResidualParams {
  Global<const T> x;
  Global<const T> weights;   // [pass][chunk] records
  Global<const float> bias;  // (C_out,), of the project
  Global<T> y;
  int height, width;  // of x
  int out_height, out_width;
  int in_channels, hidden_channels, out_channels;
  int pass_channels;  // output channels a pass; blockIdx.y is the pass
  int dilation;
  int tiles_x, tiles_y;  // of one phase
  int chunks;
  bool residual;
};

constexpr int kMostClusterBlocks = 8;  // that every GPU with clusters takes

// An odd number of 16-byte units a row: eight rows of an ldmatrix lie in different banks.
MVK_HOST_DEVICE constexpr int odd_pitch(int channels) { return (channels / 8 | 1) * 8; }

// Split: floats a pixel of a block's own sums; 8-byte stores of four pixels cover the banks.
MVK_HOST_DEVICE constexpr int sum_pitch(int channels) { return ceil_div(channels, 32) * 32 + 8; }

// Split: pixels whose sums a block of the cluster receives, at most.
MVK_HOST_DEVICE constexpr int split_pixels(int pixels, int blocks) { return ceil_div(pixels, blocks); }

MVK_DEVICE void add_to(Floats4& sum, Floats4 part) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum.value[i] += part.value[i];
}

struct InvertedResidualLayout {
  int hidden;  // byte offsets; the input tile is at 0
  int records;
  int received;  // split: sums from all blocks of the cluster
  int bytes;
};

// blocks: of a cluster that shares a tile; 1: not split.
template <class Config>
MVK_HOST_DEVICE constexpr InvertedResidualLayout inverted_residual_layout(int in_channels, int pass_channels,
                                                                          int blocks) {
  InvertedResidualLayout layout{};
  layout.hidden = Config::kInTiles * 16 * odd_pitch(in_channels) * 2;
  layout.records = layout.hidden + Config::kHiddenBytes;
  const int record = inverted_residual_record(in_channels, Config::kChunk, pass_channels).bytes;
  const int loop_bytes = layout.records + 2 * record;
  if constexpr (Config::kSplit) {
    const int sum_bytes = layout.hidden + Config::kDepthGroups * Config::kOutPixels * sum_pitch(pass_channels) * 4;
    layout.received = loop_bytes > sum_bytes ? loop_bytes : sum_bytes;
    layout.bytes = layout.received + blocks * split_pixels(Config::kOutPixels, blocks) * pass_channels * 4;
    return layout;
  }
  // After the loop the hidden chunk and the records give way to partial sums, and those to the output tile.
  const int partial_bytes = Config::kDepthGroups == 1 ? 0 : Config::kWarps * 32 * ceil_div(pass_channels, 8) * 16;
  const int output_bytes = Config::kOutPixels * odd_pitch(pass_channels) * 2;
  const int end_bytes = layout.hidden + partial_bytes + output_bytes;
  layout.bytes = loop_bytes > end_bytes ? loop_bytes : end_bytes;
  return layout;
}

// Depthwise sums: fp16 adds nine products in fp16 pairs (one instruction a tap); bf16 has too few digits for that and
// adds in float.
template <class T>
struct TapSum;

template <>
struct TapSum<Half> {
  Pair<Half> sum;
  MVK_DEVICE void start(Floats2 bias) { sum = make_pair<Half>(bias.value[0], bias.value[1]); }
  MVK_DEVICE void tap(Pair<Half> hidden, Pair<Half> weight) { sum = fma(hidden, weight, sum); }
  MVK_DEVICE Pair<Half> silu() const { return silu_of_half(sum); }
};

template <>
struct TapSum<BFloat16> {
  float first, second;
  MVK_DEVICE void start(Floats2 bias) {
    first = bias.value[0];
    second = bias.value[1];
  }
  MVK_DEVICE void tap(Pair<BFloat16> hidden, Pair<BFloat16> weight) {
    first += low(hidden) * low(weight);
    second += high(hidden) * high(weight);
  }
  MVK_DEVICE Pair<BFloat16> silu() const { return make_pair<BFloat16>(silu_of_half(first), silu_of_half(second)); }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    inverted_residual_kernel(const InvertedResidualParams<typename Config::Type> params) {
  if constexpr (Config::kSplit && !clusters_exist()) return;
  using T = typename Config::Type;
  constexpr int kStride = Config::kStride;
  let_next_launch_begin();

  const int warp = warp_index();
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;

  // Which tile: blockIdx.x = ((image · d + phase row) · d + phase column) · tiles + tile; split, that is the cluster.
  const int rank = Config::kSplit ? cluster_block_rank() : 0;
  const int blocks = Config::kSplit ? cluster_blocks() : 1;
  int index = block_index_x() / blocks;
  const int tile_x = index % params.tiles_x;
  index /= params.tiles_x;
  const int tile_y = index % params.tiles_y;
  index /= params.tiles_y;
  const int dilation = params.dilation;
  const int phase_x = index % dilation;
  index /= dilation;
  const int phase_y = index % dilation;
  const int image = index / dilation;
  const int pass = block_index_y();
  const int first_out_channel = pass * params.pass_channels;
  const int rest_channels = params.out_channels - first_out_channel;
  const int out_channels = rest_channels < params.pass_channels ? rest_channels : params.pass_channels;
  const int out_tiles = out_channels / 8;

  const int in_channels = params.in_channels;
  const int in_pitch = odd_pitch(in_channels);
  const InvertedResidualLayout layout = inverted_residual_layout<Config>(in_channels, params.pass_channels, blocks);
  const InvertedResidualRecord record = inverted_residual_record(in_channels, Config::kChunk, params.pass_channels);
  const Shared<T> input = shared_region<T>("input", 0, Config::kInTiles * 16 * in_pitch);
  const Shared<T> hidden = shared_region<T>("hidden", layout.hidden, Config::kInTiles * 16 * Config::kHiddenPitch);

  // Row and column of x at a position of the input tile; they may lie outside of the map.
  const auto input_row = [&](int position) {
    return kStride * phase_y + dilation * (tile_y * Config::kTileRows * kStride - 1 + position / Config::kInColumns);
  };
  const auto input_column = [&](int position) {
    int column = position % Config::kInColumns;
    if (kStride == 2) {
      column = column < Config::kEvenColumns ? 2 * column : 2 * (column - Config::kEvenColumns) + 1;
    }
    return kStride * phase_x + dilation * (tile_x * Config::kTileColumns * kStride - 1 + column);
  };
  const auto inside = [&](int position) {
    const int row = input_row(position);
    const int column = input_column(position);
    return position < Config::kPositions && row >= 0 && row < params.height && column >= 0 && column < params.width;
  };

  const std::int64_t image_offset = static_cast<std::int64_t>(image) * params.height * params.width * in_channels;
  const auto fetch_input = [&] {
    const int units = in_channels / 8;
    for (int i = thread_index(); i < Config::kInTiles * 16 * units; i += Config::kThreads) {
      const int position = i / units;
      const int channel = i % units * 8;
      const bool valid = inside(position);
      const int pixel = valid ? input_row(position) * params.width + input_column(position) : 0;
      copy_async_16(input, position * in_pitch + channel, params.x,
                    image_offset + static_cast<std::int64_t>(pixel) * in_channels + channel, valid);
    }
  };
  const auto record_region = [&](int turn) {
    return shared_region<T>("record", layout.records + turn % 2 * record.bytes, record.bytes / 2);
  };
  // A block's chunk of turn 0, 1, …
  const auto fetch_record = [&](int turn) {
    const Shared<T> slot = record_region(turn);
    const int chunk = rank + turn * blocks;
    const std::int64_t source = (static_cast<std::int64_t>(pass) * params.chunks + chunk) * (record.bytes / 2);
    for (int i = thread_index() * 8; i < record.bytes / 2; i += Config::kThreads * 8) {
      copy_async_16(slot, i, params.weights, source + i);
    }
  };

  // Expand: this warp's position tiles are position_group + i·kPositionGroups, its channels every second 16 of a chunk.
  const int channel_group = warp % Config::kChannelGroups;
  const int position_group = warp / Config::kChannelGroups;
  // Bit 2i + j: fragment row g + 8j of expand tile i is a pixel of the map. Outside of it the hidden tensor is zero,
  // and not silu(bias).
  unsigned inside_bits = 0;
#pragma unroll
  for (int i = 0; i < Config::kInTilesPerWarp; ++i) {
    const int position = (position_group + i * Config::kPositionGroups) * 16 + g;
    inside_bits |= (inside(position) ? 1u : 0u) << (2 * i);
    inside_bits |= (inside(position + 8) ? 1u : 0u) << (2 * i + 1);
  }

  const auto expand = [&](Shared<T> slot, int pairs_in_chunk) {
#pragma unroll 1
    for (int p = 0; p < Config::kPairsPerWarp; ++p) {
      const int pair = channel_group + p * Config::kChannelGroups;
      if (pair >= pairs_in_chunk) break;
      const auto weights_of_step = [&](int step, FragmentB<T>(&b)[2]) {
        const Words4 words =
            slot.template load<Words4>(record.expand / 2 + ((step * Config::kChunkPairs + pair) * 32 + lane) * 8);
#pragma unroll
        for (int j = 0; j < 2; ++j) b[j] = FragmentB<T>{{{words.word[2 * j]}, {words.word[2 * j + 1]}}};
      };
#pragma unroll 1
      for (int first = 0; first < Config::kInTilesPerWarp; first += Config::kTilesAtOnce) {
        const auto tile_of = [&](int i) { return position_group + (first + i) * Config::kPositionGroups; };
        const auto has_tile = [&](int i) {
          return Config::kInTilesPerWarp % Config::kTilesAtOnce == 0 || first + i < Config::kInTilesPerWarp;
        };
        FragmentC sums[Config::kTilesAtOnce][2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const Floats2 bias = slot.template load<Floats2>(record.expand_bias / 2 + (pair * 16 + j * 8 + 2 * t) * 2);
#pragma unroll
          for (int i = 0; i < Config::kTilesAtOnce; ++i) {
            sums[i][j] = FragmentC{{bias.value[0], bias.value[1], bias.value[0], bias.value[1]}};
          }
        }
        // With 128 registers a thread there is room for the loads of one or two steps.
#pragma unroll(Config::kOutTiles > 12 ? 4 : Config::kOutTiles > 4 ? 1 : 2)
        for (int step = 0; step < in_channels / 16; ++step) {
          FragmentB<T> b[2];
          weights_of_step(step, b);
#pragma unroll
          for (int i = 0; i < Config::kTilesAtOnce; ++i) {
            if (!has_tile(i)) break;
            FragmentA<T> a;
            load_matrix_x4(a.reg, input, (tile_of(i) * 16 + lane % 16) * in_pitch + step * 16 + lane / 16 * 8);
#pragma unroll
            for (int j = 0; j < 2; ++j) mma_m16n8k16(sums[i][j], a, b[j]);
          }
        }
        if (in_channels % 16 != 0) {
          const int step = in_channels / 16;
          FragmentB<T> b[2];
          weights_of_step(step, b);
#pragma unroll
          for (int i = 0; i < Config::kTilesAtOnce; ++i) {
            if (!has_tile(i)) break;
            FragmentA<T> a;
            load_matrix_x2(a.reg[0], a.reg[1], input, (tile_of(i) * 16 + lane % 16) * in_pitch + step * 16);
#pragma unroll
            for (int j = 0; j < 2; ++j) mma_m16n8k8(sums[i][j], a, b[j]);
          }
        }
#pragma unroll
        for (int i = 0; i < Config::kTilesAtOnce; ++i) {
          if (!has_tile(i)) break;
          const int position = tile_of(i) * 16 + g;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const bool is_pixel = (inside_bits >> (2 * (first + i) + half) & 1u) != 0;
            Words2 channels;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const Pair<T> value =
                  make_pair<T>(silu_of_half(sums[i][j].value[2 * half]), silu_of_half(sums[i][j].value[2 * half + 1]));
              channels.word[j] = is_pixel ? value.bits : 0u;
            }
            hidden.store((position + 8 * half) * Config::kHiddenPitch + pair * 16 + t * 4, channels);
          }
        }
      }
    }
  };

  // Depthwise and project: this warp's project tile and its share of the k-steps.
  const int pixel_tile = warp % Config::kPixelTiles;
  const int depth_group = warp / Config::kPixelTiles;
  const int tile_row = pixel_tile / (Config::kTileColumns / 8) * 2;
  const int tile_column = pixel_tile % (Config::kTileColumns / 8) * 8 + g;
  FragmentC sums[Config::kOutTiles];
#pragma unroll
  for (int n = 0; n < Config::kOutTiles; ++n) sums[n] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};

  // The A fragment of one k-step: both pixels of this lane, four channels each.
  const auto depthwise = [&](Shared<T> slot, int pair) {
    FragmentA<T> a;
    Pair<T> taps[20];
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      const Words4 words = slot.template load<Words4>(record.depthwise / 2 + ((pair * 4 + t) * 5 + i) * 8);
#pragma unroll
      for (int j = 0; j < 4; ++j) taps[4 * i + j] = Pair<T>{words.word[j]};
    }
    TapSum<T> sum[2][2];  // [row][channel pair]
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const Floats2 bias = slot.template load<Floats2>(record.depthwise_bias / 2 + (pair * 16 + q * 8 + 2 * t) * 2);
      sum[0][q].start(bias);
      sum[1][q].start(bias);
    }
#pragma unroll
    for (int row = 0; row < kStride + 3; ++row) {
#pragma unroll
      for (int column = 0; column < 3; ++column) {
        const int position_column =
            kStride == 1 ? tile_column + column : tile_column + (column == 1 ? Config::kEvenColumns : column / 2);
        const int position = (tile_row * kStride + row) * Config::kInColumns + position_column;
        const Words2 words = hidden.template load<Words2>(position * Config::kHiddenPitch + pair * 16 + t * 4);
#pragma unroll
        for (int q = 0; q < 2; ++q) {
          if (row < 3) sum[0][q].tap(Pair<T>{words.word[q]}, taps[10 * q + 3 * row + column]);
          if (row >= kStride) sum[1][q].tap(Pair<T>{words.word[q]}, taps[10 * q + 3 * (row - kStride) + column]);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      a.reg[2 * q] = sum[0][q].silu();
      a.reg[2 * q + 1] = sum[1][q].silu();
    }
    return a;
  };

  // all_tiles: there are as many as accumulators; then no condition stands between two products.
  const auto project = [&](Shared<T> slot, int pair, const FragmentA<T>& a, auto all_tiles) {
    constexpr bool kAll = decltype(all_tiles)::value != 0;
    const int out_pairs = ceil_div(params.pass_channels, 16);
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; n += 2) {
      if (kAll || n < out_tiles) {
        const Words4 words =
            slot.template load<Words4>(record.project / 2 + ((pair * out_pairs + n / 2) * 32 + lane) * 8);
        mma_m16n8k16(sums[n], a, FragmentB<T>{{{words.word[0]}, {words.word[1]}}});
        if (kAll || n + 1 < out_tiles) mma_m16n8k16(sums[n + 1], a, FragmentB<T>{{{words.word[2]}, {words.word[3]}}});
      }
    }
  };

  fetch_record(0);
  wait_for_earlier_launches();
  fetch_input();
  copy_async_commit();
  for (int turn = 0; rank + turn * blocks < params.chunks; ++turn) {
    const int chunk = rank + turn * blocks;
    copy_async_wait<0>();
    // The record is there for all; all have left the hidden chunk and the other record.
    if (Config::kSplit && turn == 0) {
      sync_cluster();  // all blocks run: they may be sent to later
    } else {
      sync_block();
    }
    if (chunk + blocks < params.chunks) fetch_record(turn + 1);
    copy_async_commit();
    const Shared<T> slot = record_region(turn);
    const int rest_pairs = ceil_div(params.hidden_channels, 16) - chunk * Config::kChunkPairs;
    const int pairs = rest_pairs < Config::kChunkPairs ? rest_pairs : Config::kChunkPairs;
    expand(slot, pairs);
    sync_block();
    for (int pair = depth_group; pair < pairs; pair += Config::kDepthGroups) {
      const FragmentA<T> a = depthwise(slot, pair);
      if (out_tiles == Config::kOutTiles) {
        project(slot, pair, a, Constant<1>{});
      } else {
        project(slot, pair, a, Constant<0>{});
      }
    }
  }

  sync_block();
  // Row and column of y.
  const auto output_row = [&](int pixel) {
    return phase_y + dilation * (tile_y * Config::kTileRows + pixel / Config::kTileColumns);
  };
  const auto output_column = [&](int pixel) {
    return phase_x + dilation * (tile_x * Config::kTileColumns + pixel % Config::kTileColumns);
  };
  const auto output_offset = [&](int row, int column) {
    const std::int64_t pixel = (static_cast<std::int64_t>(image) * params.out_height + row) * params.out_width + column;
    return pixel * params.out_channels + first_out_channel;
  };

  if constexpr (Config::kSplit) {
    const int pitch = sum_pitch(params.pass_channels);
    const Shared<float> own =
        shared_region<float>("own sums", layout.hidden, Config::kDepthGroups * Config::kOutPixels * pitch);
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) {
      if (n >= out_tiles) break;
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const int pixel = (tile_row + row) * Config::kTileColumns + tile_column;
        own.store((depth_group * Config::kOutPixels + pixel) * pitch + n * 8 + 2 * t,
                  Floats2{{sums[n].value[2 * row], sums[n].value[2 * row + 1]}});
      }
    }
    sync_block();
    // A pixel is a warp's, four channels are a lane's: 16 bytes.
    const int received_pixels = split_pixels(Config::kOutPixels, blocks);
    const Shared<float> received =
        shared_region<float>("received sums", layout.received, blocks * received_pixels * params.pass_channels);
    const auto place_of = [&](int source, int pixel) {
      return (source * received_pixels + pixel / blocks) * params.pass_channels;
    };
#pragma unroll
    for (int pixel = warp; pixel < Config::kOutPixels; pixel += Config::kWarps) {
      const Remote<float> owner = of_block(received, pixel % blocks);
      const int place = place_of(rank, pixel);
      for (int channel = 4 * lane; channel < out_channels; channel += 128) {
        Floats4 sum = own.template load<Floats4>(pixel * pitch + channel);
#pragma unroll
        for (int group = 1; group < Config::kDepthGroups; ++group) {
          add_to(sum, own.template load<Floats4>((group * Config::kOutPixels + pixel) * pitch + channel));
        }
        owner.store(place + channel, sum);
      }
    }
    sync_cluster();
    for (int pixel = rank + warp * blocks; pixel < Config::kOutPixels; pixel += Config::kWarps * blocks) {
      const int row = output_row(pixel);
      const int column = output_column(pixel);
      if (row >= params.out_height || column >= params.out_width) continue;
      for (int channel = 4 * lane; channel < out_channels; channel += 128) {
        Floats4 sum = received.template load<Floats4>(place_of(0, pixel) + channel);
#pragma unroll
        for (int source = 1; source < kMostClusterBlocks; ++source) {
          if (source < blocks) add_to(sum, received.template load<Floats4>(place_of(source, pixel) + channel));
        }
        add_to(sum, params.bias.template load<Floats4>(first_out_channel + channel));
        if (params.residual) {
          const int position =
              (pixel / Config::kTileColumns + 1) * Config::kInColumns + pixel % Config::kTileColumns + 1;
          const Words2 x = input.template load<Words2>(position * in_pitch + first_out_channel + channel);
          add_to(sum, Floats4{{low(Pair<T>{x.word[0]}), high(Pair<T>{x.word[0]}), low(Pair<T>{x.word[1]}),
                               high(Pair<T>{x.word[1]})}});
        }
        params.y.store(output_offset(row, column) + channel, Words2{{make_pair<T>(sum.value[0], sum.value[1]).bits,
                                                                     make_pair<T>(sum.value[2], sum.value[3]).bits}});
      }
    }
    return;
  }

  // Partial sums of the other depth groups, each lane's in its own place.
  if constexpr (Config::kDepthGroups > 1) {
    const int lane_floats = out_tiles * 4;
    const Shared<float> partial = shared_region<float>("partial", layout.hidden, Config::kWarps * 32 * lane_floats);
    const auto slot_of = [&](int of_warp, int n) { return ((of_warp * out_tiles + n) * 32 + lane) * 4; };
    if (depth_group != 0) {
#pragma unroll
      for (int n = 0; n < Config::kOutTiles; ++n) {
        if (n >= out_tiles) break;
        partial.store(slot_of(warp, n),
                      Floats4{{sums[n].value[0], sums[n].value[1], sums[n].value[2], sums[n].value[3]}});
      }
    }
    sync_block();
    if (depth_group == 0) {
#pragma unroll
      for (int other = 1; other < Config::kDepthGroups; ++other) {
#pragma unroll
        for (int n = 0; n < Config::kOutTiles; ++n) {
          if (n >= out_tiles) break;
          const Floats4 part = partial.template load<Floats4>(slot_of(warp + other * Config::kPixelTiles, n));
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[n].value[i] += part.value[i];
        }
      }
    }
  }

  // Bias, residual and one rounding; through shared memory, so that the stores to y are whole sectors.
  const int out_pitch = odd_pitch(params.pass_channels);
  const int output_begin =
      layout.hidden + (Config::kDepthGroups == 1 ? 0 : Config::kWarps * 32 * ceil_div(params.pass_channels, 8) * 16);
  const Shared<T> output = shared_region<T>("output", output_begin, Config::kOutPixels * out_pitch);
  if (depth_group == 0) {
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) {
      if (n >= out_tiles) break;
      const Floats2 bias = params.bias.template load<Floats2>(first_out_channel + n * 8 + 2 * t);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float first = sums[n].value[2 * row] + bias.value[0];
        float second = sums[n].value[2 * row + 1] + bias.value[1];
        if (params.residual) {
          const int position = (tile_row + row + 1) * Config::kInColumns + tile_column + 1;
          const Pair<T> x = input.template load<Pair<T>>(position * in_pitch + first_out_channel + n * 8 + 2 * t);
          first += low(x);
          second += high(x);
        }
        const int pixel = (tile_row + row) * Config::kTileColumns + tile_column;
        output.store(pixel * out_pitch + n * 8 + 2 * t, make_pair<T>(first, second));
      }
    }
  }
  sync_block();
  for (int i = thread_index(); i < Config::kOutPixels * out_tiles; i += Config::kThreads) {
    const int pixel = i / out_tiles;
    const int channel = i % out_tiles * 8;
    const int row = output_row(pixel);
    const int column = output_column(pixel);
    if (row < params.out_height && column < params.out_width) {
      params.y.store(output_offset(row, column) + channel, output.template load<Words4>(pixel * out_pitch + channel));
    }
  }
}

}  // namespace mvk
