// Dense 3×3 convolution, stride 1, padding = dilation, on one input or two: y = act(W * cat(x, x2) + b), act SiLU or
// none.
//
//   x  (B, H, W, C1)  x2  (B, H, W, C2)  NHWC      W  (C_out, C1 + C2, 3, 3)      y  (B, H, W, C_out)  NHWC
//
// An implicit matrix product: pixels × (channels · taps) times (channels · taps) × output channels. The unit of pixels
// is a sub-tile of 8 × 8; a block owns kSubTiles of them (of any images) × kBlockTiles · 8 output channels, and goes
// over the input channels in slices of 16 · kDepthGroups:
//
//     halo tile   10 × 10 positions of each sub-tile, one slice deep, in shared memory once; the nine taps are offsets
//     weights     of a slice and one column of taps, B fragments, through a ring of three slots
//
// One step is a slice and a column of taps (dx): its weights and, at the first column, its tile arrive two steps ahead
// by cp.async, with one barrier a step. The second input is another pointer: a 16-byte unit of eight channels lies in
// one of them. The concatenation is never made.
//
// A warp owns the 64 pixels of one sub-tile as four mma tiles of two rows each, g = lane / 4, t = lane % 4:
//
//              column  0    1    2    3    4    5    6    7
//     row m           g=0  g=1  g=2  g=3  g=4  g=5  g=6  g=7      mma tile m, fragment row g
//     row m + 4       g=0  g=1  g=2  g=3  g=4  g=5  g=6  g=7      mma tile m, fragment row g + 8
//
// and kOutTiles · 8 output channels. It loads halo rows j and j + 4, j = 0 … 5, by one ldmatrix each for every dx, and
// serves the three dy from registers: the A fragment of (tile m, dy) is that of j = m + dy. With four tiles sharing
// each B fragment that is 3072 / (12 · kOutTiles) + 64 bytes of shared memory an mma, 107 at six tiles; below 206 the
// matrix pipe of an H200 binds, and not shared memory. (Rows 2j and 2j + 1 would be five ldmatrix, and moves between
// registers for dy = 1.)
//
// Depth groups: warps that share pixels and channels and take every kDepthGroups-th 16 input channels; their sums are
// added at the end in a fixed order. They shorten the chain of steps where there are few blocks.
//
// Output channels are dealt so that lane t of a pair of tiles holds four neighbours: tile n, column pair t is channels
// 16·(n / 2) + 4t + 2·(n % 2) and the next. Four lanes store a whole sector of 32 bytes, without shared memory.
//
// Dilation d: the pixels whose rows and columns have the same remainders by d make a map of their own on which the
// dilation is 1; sub-tiles are cut from these d² maps.
//
// Per output: 18·(C1 + C2) flops. Device memory sees inputs, weights and output once; L2 gives a block
// 200·(C1 + C2)·kSubTiles bytes of pixels and 144·(C1 + C2)·kBlockTiles bytes of weights. Expected to bind: the matrix
// pipe for large batches, L2 and the latency of the steps for small ones (mobilevit_kernels/native/conv3x3_tiling.py).
#pragma once

#include "common/async_copy.cuh"
#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/mma.cuh"
#include "common/overlap.cuh"
#include "common/warp.cuh"

namespace mvk {

template <class T, int kSubTilesOf, int kChannelWarpsOf, int kDepthGroupsOf, int kOutTilesOf>
struct Conv3x3Config {
  using Type = T;
  static constexpr int kSubTiles = kSubTilesOf;
  static constexpr int kChannelWarps = kChannelWarpsOf;  // warps side by side over the output channels
  static constexpr int kDepthGroups = kDepthGroupsOf;    // warps over the input channels
  static constexpr int kOutTiles = kOutTilesOf;          // 8-channel tiles of a warp
  static constexpr int kWarps = kSubTiles * kChannelWarps * kDepthGroups;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlockTiles = kChannelWarps * kOutTiles;
  // 16 · kOutTiles accumulators a thread: up to four tiles leave room for two blocks an SM (128 registers a thread).
  static constexpr int kBlocksPerSm = kOutTiles <= 4 ? 2 : 1;

  static constexpr int kSide = 8;  // of a sub-tile
  static constexpr int kHaloSide = kSide + 2;
  static constexpr int kHalo = kHaloSide * kHaloSide;  // positions
  static constexpr int kPositions = kSubTiles * kHalo;
  static constexpr int kUnits = 2 * kDepthGroups;    // of 16 bytes, a position of a slice
  static constexpr int kPitch = (kUnits + 1) * 8;    // elements; odd in units: eight positions lie in different banks
  static constexpr int kTile = kPositions * kPitch;  // elements
  static constexpr int kFragment = 32 * 4;           // elements of one B fragment
  static constexpr int kSlot = kDepthGroups * 3 * kBlockTiles * kFragment;

  static constexpr int kTileCopies = ceil_div(kPositions * kUnits, kThreads);  // of 16 bytes, a thread and slice
  static constexpr int kWeightCopies = ceil_div(kSlot / 8, kThreads);          // the same, a thread and step

  // Byte offsets in shared memory.
  static constexpr int kTiles = round_up(kPositions * 4, 16);  // the table of pixels comes first
  static constexpr int kRing = kTiles + 2 * kTile * 2;
  static constexpr int kSharedBytes = kRing + 3 * kSlot * 2;
  // After the loop the tiles give way to the partial sums of the depth groups but the first.
  static constexpr int kPartialFloats = (kDepthGroups - 1) * kSubTiles * kChannelWarps * 4 * kOutTiles * 32 * 4;

  static_assert(kThreads % kUnits == 0, "a thread copies the same unit of every position");
  static_assert(kSide == 8, "an mma tile is two rows of eight pixels");
  static_assert(kRing % 16 == 0 && kTile * 2 % 16 == 0, "cp.async writes 16 bytes at multiples of 16");
  static_assert(kSharedBytes <= 99 * 1024, "every GPU from sm_80 on has that much for a block");
  static_assert(kTiles + kPartialFloats * 4 <= kSharedBytes, "the partial sums fit where tiles and ring were");
};

template <class T>
struct Conv3x3Params {
  Global<const T> x;
  Global<const T> x2;        // absent where second_channels is 0
  Global<const T> weights;   // B fragments [16 input channels][dx][dy][8-channel tile][lane][4]
  Global<const float> bias;  // (C_out,)
  Global<T> y;
  int height, width;
  int first_channels, second_channels, out_channels;
  int dilation;
  int tiles_x, tiles_y;  // sub-tiles of one of the d² maps
  int sub_tiles;         // of the whole batch
  int out_tiles;         // of 8 channels, an even number
  bool silu;
};

// The pixel of x at each position of the halo tiles of a block, 10 × 10 a sub-tile; −1 outside of the map.
template <int kPositions, int kThreads, class T>
MVK_DEVICE void fill_halo_pixels(Shared<int> pixels, const Conv3x3Params<T>& params, int first_sub_tile) {
  constexpr int kSide = 8;
  constexpr int kHaloSide = kSide + 2;
  for (int position = thread_index(); position < kPositions; position += kThreads) {
    int index = first_sub_tile + position / (kHaloSide * kHaloSide);
    const bool exists = index < params.sub_tiles;
    const int tile_x = index % params.tiles_x;
    index /= params.tiles_x;
    const int tile_y = index % params.tiles_y;
    index /= params.tiles_y;
    const int phase_x = index % params.dilation;
    index /= params.dilation;
    const int phase_y = index % params.dilation;
    const int image = index / params.dilation;
    const int halo_row = position % (kHaloSide * kHaloSide) / kHaloSide;
    const int halo_column = position % kHaloSide;
    const int row = phase_y + params.dilation * (tile_y * kSide + halo_row - 1);
    const int column = phase_x + params.dilation * (tile_x * kSide + halo_column - 1);
    const bool inside = exists && row >= 0 && row < params.height && column >= 0 && column < params.width;
    pixels.store(position, inside ? (image * params.height + row) * params.width + column : -1);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    conv3x3_kernel(const Conv3x3Params<typename Config::Type> params) {
  using T = typename Config::Type;
  let_next_launch_begin();
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const int sub_tile = warp_index() % Config::kSubTiles;
  const int channel_warp = warp_index() / Config::kSubTiles % Config::kChannelWarps;
  const int depth_group = warp_index() / (Config::kSubTiles * Config::kChannelWarps);
  const int first_sub_tile = block_index_x() * Config::kSubTiles;
  const int block_tile = block_index_y() * Config::kBlockTiles;         // of the output channels, the block's first
  const int warp_tile = block_tile + channel_warp * Config::kOutTiles;  // the warp's first
  const int in_channels = params.first_channels + params.second_channels;
  const int depth_steps = ceil_div(in_channels, 16);
  const int slices = ceil_div(depth_steps, Config::kDepthGroups);

  const Shared<int> pixels = shared_region<int>("pixels", 0, Config::kPositions);
  fill_halo_pixels<Config::kPositions, Config::kThreads>(pixels, params, first_sub_tile);
  sync_block();

  const auto tile_region = [&](int slice) {
    return shared_region<T>("tile", Config::kTiles + slice % 2 * Config::kTile * 2, Config::kTile);
  };
  const auto ring_slot = [&](int dx) {
    return shared_region<T>("weights", Config::kRing + dx * Config::kSlot * 2, Config::kSlot);
  };
  // What a thread copies never changes but for the slice: its unit of a position, its places in the ring.
  const int unit = thread_index() % Config::kUnits;
  const int first_position = thread_index() / Config::kUnits;
  const auto fetch_tile = [&](int slice) {
    const Shared<T> tile = tile_region(slice);
    const int channel = (slice * Config::kUnits + unit) * 8;
    const bool second = channel >= params.first_channels;
    const Global<const T> source = second && channel < in_channels ? params.x2 : params.x;
    const int channels = second ? params.second_channels : params.first_channels;
    const int channel_of_source = second ? channel - params.first_channels : channel;
#pragma unroll
    for (int i = 0; i < Config::kTileCopies; ++i) {
      const int position = first_position + i * (Config::kThreads / Config::kUnits);
      if (position >= Config::kPositions) break;
      const int pixel = pixels.template load<int>(position);
      const bool valid = pixel >= 0 && channel < in_channels;
      const std::int64_t offset = static_cast<std::int64_t>(pixel) * channels + channel_of_source;
      copy_async_16(tile, position * Config::kPitch + unit * 8, source, valid ? offset : 0, valid);
    }
  };
  constexpr int kFragmentUnits = Config::kFragment / 8;
  int weight_offsets[Config::kWeightCopies];  // of the first slice and dx = 0; −1: beyond the output channels
#pragma unroll
  for (int i = 0; i < Config::kWeightCopies; ++i) {
    const int place = thread_index() + i * Config::kThreads;
    const int tile = block_tile + place / kFragmentUnits % Config::kBlockTiles;
    const int row = place / kFragmentUnits / Config::kBlockTiles;  // 3 · depth group + dy
    const int fragment = (row / 3 * 9 + row % 3) * params.out_tiles + tile;
    weight_offsets[i] = tile < params.out_tiles ? fragment * Config::kFragment + place % kFragmentUnits * 8 : -1;
  }
  const auto fetch_weights = [&](int slice, int dx) {
    const Shared<T> slot = ring_slot(dx);
    const int step_offset = (slice * Config::kDepthGroups * 9 + dx * 3) * params.out_tiles * Config::kFragment;
#pragma unroll
    for (int i = 0; i < Config::kWeightCopies; ++i) {
      const int place = thread_index() + i * Config::kThreads;
      if (place >= Config::kSlot / 8) break;
      if constexpr (Config::kDepthGroups > 1) {
        const int row = place / kFragmentUnits / Config::kBlockTiles;
        if (slice * Config::kDepthGroups + row / 3 >= depth_steps) break;
      }
      const bool valid = weight_offsets[i] >= 0;
      copy_async_16(slot, place * 8, params.weights, valid ? step_offset + weight_offsets[i] : 0, valid);
    }
  };

  FragmentC sums[4][Config::kOutTiles];
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) sums[m][n] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
  }

  const bool has_pixels = first_sub_tile + sub_tile < params.sub_tiles;
  const int lane_position = sub_tile * Config::kHalo + lane / 8 % 2 * 4 * Config::kHaloSide + lane % 8;
  const auto accumulate = [&](int slice, int dx) {
    if (!has_pixels || slice * Config::kDepthGroups + depth_group >= depth_steps) return;
    const Shared<T> tile = tile_region(slice);
    const Shared<T> slot = ring_slot(dx);
    FragmentA<T> rows[6];  // halo rows j and j + 4
#pragma unroll
    for (int j = 0; j < 6; ++j) {
      const int position = lane_position + j * Config::kHaloSide + dx;
      load_matrix_x4(rows[j].reg, tile, position * Config::kPitch + depth_group * 16 + lane / 16 * 8);
    }
#pragma unroll
    for (int dy = 0; dy < 3; ++dy) {
#pragma unroll
      for (int n = 0; n < Config::kOutTiles; ++n) {
        const int fragment = (depth_group * 3 + dy) * Config::kBlockTiles + channel_warp * Config::kOutTiles + n;
        const Words2 words = slot.template load<Words2>(fragment * Config::kFragment + lane * 4);
        const FragmentB<T> b{{{words.word[0]}, {words.word[1]}}};
#pragma unroll
        for (int m = 0; m < 4; ++m) mma_m16n8k16(sums[m][n], rows[m + dy], b);
      }
    }
  };

  fetch_weights(0, 0);
  wait_for_earlier_launches();
  fetch_tile(0);
  copy_async_commit();
  fetch_weights(0, 1);
  copy_async_commit();
  for (int slice = 0; slice < slices; ++slice) {
#pragma unroll
    for (int dx = 0; dx < 3; ++dx) {
      copy_async_wait<1>();
      // What this step reads is there for all; all have left the step before, whose slot comes next.
      sync_block();
      if (dx == 0) {
        fetch_weights(slice, 2);
      } else if (slice + 1 < slices) {
        if (dx == 1) fetch_tile(slice + 1);
        fetch_weights(slice + 1, dx - 1);
      }
      copy_async_commit();
      accumulate(slice, dx);
    }
  }

  if constexpr (Config::kDepthGroups > 1) {
    sync_block();
    const Shared<float> partial = shared_region<float>("partial", Config::kTiles, Config::kPartialFloats);
    constexpr int kWarpsOfGroup = Config::kSubTiles * Config::kChannelWarps;
    const auto slot_of = [&](int group, int m, int n) {
      const int warp = (group - 1) * kWarpsOfGroup + warp_index() % kWarpsOfGroup;
      return (((warp * 4 + m) * Config::kOutTiles + n) * 32 + lane) * 4;
    };
    if (depth_group != 0) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < Config::kOutTiles; ++n) {
          const FragmentC& sum = sums[m][n];
          partial.store(slot_of(depth_group, m, n), Floats4{{sum.value[0], sum.value[1], sum.value[2], sum.value[3]}});
        }
      }
    }
    sync_block();
    if (depth_group != 0) return;
#pragma unroll
    for (int group = 1; group < Config::kDepthGroups; ++group) {
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < Config::kOutTiles; ++n) {
          const Floats4 part = partial.template load<Floats4>(slot_of(group, m, n));
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][n].value[i] += part.value[i];
        }
      }
    }
  }

  const auto activate = [&](float value) { return params.silu ? silu_of_half(0.5f * value) : value; };
  const auto channel_of = [&](int n) { return (warp_tile + n) / 2 * 16 + 4 * t + (warp_tile + n) % 2 * 2; };
#pragma unroll
  for (int n = 0; n < Config::kOutTiles; ++n) {
    if (channel_of(n) >= params.out_channels) break;
    const Floats2 bias = params.bias.template load<Floats2>(channel_of(n));
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n].value[i] = activate(sums[m][n].value[i] + bias.value[i % 2]);
    }
  }
#pragma unroll
  for (int row = 0; row < 8; ++row) {
    const int pixel = pixels.template load<int>(sub_tile * Config::kHalo + (row + 1) * Config::kHaloSide + g + 1);
    if (pixel < 0) continue;
    const std::int64_t begin = static_cast<std::int64_t>(pixel) * params.out_channels;
    const auto value_of = [&](int n) {
      const FragmentC& sum = sums[row % 4][n];
      return make_pair<T>(sum.value[row / 4 * 2], sum.value[row / 4 * 2 + 1]);
    };
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) {
      if (channel_of(n) >= params.out_channels) break;
      if constexpr (Config::kOutTiles % 2 == 1) {
        params.y.store(begin + channel_of(n), value_of(n));
      } else if (n % 2 == 0) {
        params.y.store(begin + channel_of(n), Words2{{value_of(n).bits, value_of(n + 1).bits}});
      }
    }
  }
}

}  // namespace mvk
