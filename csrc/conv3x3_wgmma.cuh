// Dense 3×3 convolution on wgmma (sm_90a): the same implicit matrix product as conv3x3.cuh, with shared memory as the
// operand of both sides.
//
// A warpgroup owns kSubTiles sub-tiles of 8 × 8 pixels, each the 64 rows of a wgmma, and kOutTiles · 8 output channels;
// a block is kWarpgroups of them beside each other. Warp w of a warpgroup holds of the sums rows 2w and 2w + 1 of a
// sub-tile, g = lane / 4, t = lane % 4:
//
//              column  0    1    2    3    4    5    6    7
//     row 2w          g=0  g=1  g=2  g=3  g=4  g=5  g=6  g=7      values 0 and 1 of a C fragment
//     row 2w + 1      g=0  g=1  g=2  g=3  g=4  g=5  g=6  g=7      values 2 and 3
//
// The halo tiles lie in shared memory in planes of 8 input channels, one 16-byte word a position, 10 × 10 positions a
// sub-tile. Eight positions of a row are a core matrix of wgmma without swizzling, the next row lies ten words further:
// so each of the nine taps is the same matrix with another begin, and nothing is loaded into registers at all.
//
// One step is 16 input channels and a column of taps (dx), as in conv3x3.cuh; weights and, at the first column, tiles
// come two steps ahead. A ring of four slots, and not three, lets the products of a step run on behind the next
// step's barrier. Output channels are dealt in the same way, and stored so.
//
// Shared memory gives 2048 + 256 · kOutTiles bytes for 4 · kOutTiles m16n8k16 of work: 107 bytes each at twelve tiles,
// where the tensor cores take 128.
#pragma once

#include "common/async_copy.cuh"
#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/overlap.cuh"
#include "common/warp.cuh"
#include "common/wgmma.cuh"
#include "conv3x3.cuh"

namespace mvk {

template <class T, int kSubTilesOf, int kOutTilesOf>
struct Conv3x3WgmmaConfig {
  using Type = T;
  static constexpr int kSubTiles = kSubTilesOf;  // of a warpgroup
  static constexpr int kOutTiles = kOutTilesOf;
  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = 128 * kWarpgroups;
  static constexpr int kBlockSubTiles = kWarpgroups * kSubTiles;
  static constexpr int kColumns = 8 * kOutTiles;

  static constexpr int kSide = 8;
  static constexpr int kHaloSide = kSide + 2;
  static constexpr int kHalo = kHaloSide * kHaloSide;
  static constexpr int kPositions = kBlockSubTiles * kHalo;
  // Elements. Four words behind a plane put the two planes of a position into different banks.
  static constexpr int kPlane = kPositions * 8 + 32;
  static constexpr int kTile = 2 * kPlane;
  static constexpr int kSlot = 3 * 16 * kColumns;  // [dy][plane][column][8]
  static constexpr int kSlots = 4;
  static constexpr int kTileCopies = ceil_div(2 * kPositions, kThreads);  // of 16 bytes, a thread and slice
  static constexpr int kWeightCopies = ceil_div(kSlot / 8, kThreads);     // the same, a thread and step

  // Byte offsets in shared memory.
  static constexpr int kTiles = round_up(kPositions * 4, 16);  // the table of pixels comes first
  static constexpr int kRing = kTiles + 2 * kTile * 2;
  static constexpr int kSharedBytes = kRing + kSlots * kSlot * 2;

  static_assert(kPlane * 2 % 128 == 64, "eight lanes of a copy write four positions of two planes");
  static_assert(2 * kSharedBytes <= 227 * 1024, "two blocks an SM, with 128 registers a thread");
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 2)
    conv3x3_wgmma_kernel(const Conv3x3Params<typename Config::Type> params) {
  if constexpr (!wgmma_exists()) return;
  using T = typename Config::Type;
  let_next_launch_begin();
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const int warp = shuffle(warp_index(), 0);  // so that the compiler knows it to be the same for all lanes
  const int first_sub_tile = block_index_x() * Config::kBlockSubTiles;
  const int own_sub_tile = warp / 4 * Config::kSubTiles;  // of the block, the warpgroup's first
  const int first_column = block_index_y() * Config::kColumns;
  const int in_channels = params.first_channels + params.second_channels;
  const int slices = ceil_div(in_channels, 16);

  const Shared<int> pixels = shared_region<int>("pixels", 0, Config::kPositions);
  fill_halo_pixels<Config::kPositions, Config::kThreads>(pixels, params, first_sub_tile);
  sync_block();

  const auto tile_region = [&](int slice) {
    return shared_region<T>("tile", Config::kTiles + slice % 2 * Config::kTile * 2, Config::kTile);
  };
  const auto ring_slot = [&](int step) {
    return shared_region<T>("weights", Config::kRing + step % Config::kSlots * Config::kSlot * 2, Config::kSlot);
  };
  const int plane = thread_index() % 2;
  const auto fetch_tile = [&](int slice) {
    const Shared<T> tile = tile_region(slice);
    const int channel = (2 * slice + plane) * 8;
    const bool second = channel >= params.first_channels;
    const Global<const T> source = second && channel < in_channels ? params.x2 : params.x;
    const int channels = second ? params.second_channels : params.first_channels;
    const int channel_of_source = second ? channel - params.first_channels : channel;
#pragma unroll
    for (int i = 0; i < Config::kTileCopies; ++i) {
      const int position = thread_index() / 2 + i * (Config::kThreads / 2);
      if (position >= Config::kPositions) break;
      const int pixel = pixels.template load<int>(position);
      const bool valid = pixel >= 0 && channel < in_channels;
      const std::int64_t offset = static_cast<std::int64_t>(pixel) * channels + channel_of_source;
      copy_async_16(tile, plane * Config::kPlane + position * 8, source, valid ? offset : 0, valid);
    }
  };
  const int all_columns = 8 * params.out_tiles;  // of the weights [16 input channels][dx][dy][8 k][column][8]
  int weight_offsets[Config::kWeightCopies];     // of the first step; −1: beyond the output channels
#pragma unroll
  for (int i = 0; i < Config::kWeightCopies; ++i) {
    const int place = thread_index() + i * Config::kThreads;
    const int column = first_column + place % Config::kColumns;
    weight_offsets[i] = column < all_columns ? (place / Config::kColumns * all_columns + column) * 8 : -1;
  }
  const auto fetch_weights = [&](int step) {
    const Shared<T> slot = ring_slot(step);
    const int step_offset = step * 3 * 16 * all_columns;
#pragma unroll
    for (int i = 0; i < Config::kWeightCopies; ++i) {
      const int place = thread_index() + i * Config::kThreads;
      if (place >= Config::kSlot / 8) break;
      const bool valid = weight_offsets[i] >= 0;
      copy_async_16(slot, place * 8, params.weights, valid ? step_offset + weight_offsets[i] : 0, valid);
    }
  };

  FragmentC sums[Config::kSubTiles][Config::kOutTiles];
  const auto multiply = [&](int slice, int dx) {
    const Shared<T> tile = tile_region(slice);
    const Shared<T> slot = ring_slot(3 * slice + dx);
    wgmma_fence();
#pragma unroll
    for (int dy = 0; dy < 3; ++dy) {
      const MatrixInShared<T> b{slot, dy * 16 * Config::kColumns, 64, 8 * Config::kColumns};
#pragma unroll
      for (int s = 0; s < Config::kSubTiles; ++s) {
        const int position = (own_sub_tile + s) * Config::kHalo + dy * Config::kHaloSide + dx;
        const MatrixInShared<T> a{tile, position * 8, 8 * Config::kHaloSide, Config::kPlane};
        wgmma(sums[s], a, b, slice > 0 || dx > 0 || dy > 0);
      }
    }
    wgmma_commit();
  };

  fetch_weights(0);
  wait_for_earlier_launches();
  fetch_tile(0);
  copy_async_commit();
  fetch_weights(1);
  copy_async_commit();
#pragma unroll
  for (int s = 0; s < Config::kSubTiles; ++s) pin(sums[s]);
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
#pragma unroll
    for (int dx = 0; dx < 3; ++dx) {
      const int step = 3 * slice + dx;
      copy_async_wait<1>();
      publish_matrices();
      // What this step reads is there for all; all have ended the step before the last, whose slot comes next. So have
      // they, at dx = 1, the last step that read the tile which comes next.
      sync_block();
      if (dx == 1 && slice + 1 < slices) fetch_tile(slice + 1);
      if (step + 2 < 3 * slices) fetch_weights(step + 2);
      copy_async_commit();
      multiply(slice, dx);
      wgmma_wait<1>();
    }
  }
  wgmma_wait<0>();
#pragma unroll
  for (int s = 0; s < Config::kSubTiles; ++s) pin(sums[s]);

  const auto activate = [&](float value) { return params.silu ? silu_of_half(0.5f * value) : value; };
#pragma unroll
  for (int n = 0; n < Config::kOutTiles; n += 2) {
    const int channel = first_column + 8 * n + 4 * t;
    if (channel >= params.out_channels) break;
    const Floats4 bias = params.bias.template load<Floats4>(channel);
#pragma unroll
    for (int s = 0; s < Config::kSubTiles; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = 2 * (warp % 4) + half;
        const int position = (own_sub_tile + s) * Config::kHalo + (row + 1) * Config::kHaloSide + g + 1;
        const int pixel = pixels.template load<int>(position);
        if (pixel < 0) continue;
        Words2 words;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const FragmentC& sum = sums[s][n + i];
          words.word[i] = make_pair<T>(activate(sum.value[2 * half] + bias.value[2 * i]),
                                       activate(sum.value[2 * half + 1] + bias.value[2 * i + 1]))
                              .bits;
        }
        params.y.store(static_cast<std::int64_t>(pixel) * params.out_channels + channel, words);
      }
    }
  }
}

}  // namespace mvk
