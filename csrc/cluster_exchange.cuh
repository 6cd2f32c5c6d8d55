// Tiles of 16 rows between registers, shared memory and the other blocks of a cluster.
//
// Regions hold rows of 16-bit channels at a pitch of an odd number of 16-byte units: neither fragments nor 16-byte
// units meet bank conflicts.
#pragma once

#include "common/cluster.cuh"
#include "common/linear.cuh"

namespace mvk {

// Elements of a row of `tiles` 8-channel tiles.
MVK_HOST_DEVICE constexpr int odd_pitch(int tiles) { return (tiles | 1) * 8; }

// The A fragment of rows [row, row + 16) and a k-step of 16 channels.
template <class T>
MVK_DEVICE void load_fragment(FragmentA<T>& a, Shared<T> region, int pitch, int row, int step) {
  const int lane = lane_index();
  load_matrix_x4(a.reg, region, (row + lane % 16) * pitch + 16 * step + lane / 16 * 8);
}

// Rows [row, row + 16) as row tile m.
template <class T, int kRowTiles, int kTiles>
MVK_DEVICE void load_row_tile(RowFragments<T, kRowTiles, kTiles>& rows, int m, Shared<T> region, int pitch, int row) {
#pragma unroll
  for (int step = 0; step < kTiles / 2; ++step) load_fragment(rows.fragment[m][step], region, pitch, row, step);
  if constexpr (kTiles % 2 != 0) {
    load_matrix_x2(rows.at(m, kTiles - 1, 0), rows.at(m, kTiles - 1, 1), region,
                   (row + lane_index() % 16) * pitch + 8 * (kTiles - 1));
  }
}

// LayerNorm and bias behind a product with rows of X (common/linear.cuh): at `offset` lie the tile's 8 biases and 8
// column sums, in float.
template <class T, int kRowTiles>
MVK_DEVICE void apply_norm(FragmentC& sums, Shared<T> ends, int offset, const RowLines<kRowTiles>& lines, int m) {
  const int t = lane_index() % 4;
  const Floats2 bias = ends.template load<Floats2>(offset + 4 * t);
  const Floats2 column_sum = ends.template load<Floats2>(offset + 16 + 4 * t);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float added = multiply_add(lines.shift[m][i / 2], column_sum.value[i % 2], bias.value[i % 2]);
    sums.value[i] = multiply_add(sums.value[i], lines.scale[m][i / 2], added);
  }
}

// Rounds 16 rows × 8 columns.
template <class T>
MVK_DEVICE void store_tile(Shared<T> region, int pitch, int row, int column, const FragmentC& sums) {
  const int g = lane_index() / 4;
  const int t = lane_index() % 4;
  region.store((row + g) * pitch + column + 2 * t, make_pair<T>(sums.value[0], sums.value[1]));
  region.store((row + g + 8) * pitch + column + 2 * t, make_pair<T>(sums.value[2], sums.value[3]));
}

// Sends kCount tiles of 16 rows that this warp has stored to the same place in other blocks, 16 bytes a lane.
// column_of(j): where tile j begins, −1: nowhere; for_each_peer(send) calls send(rank) for each block.
template <int kCount, class T, class ColumnOf, class ForEachPeer>
MVK_DEVICE void send_tiles(Shared<T> region, int pitch, int row, const ColumnOf& column_of,
                           const ForEachPeer& for_each_peer) {
  const int lane = lane_index();
  sync_warp();
#pragma unroll
  for (int j = 0; j < kCount; j += 2) {
    const int column = column_of(j + lane / 16);
    if (column >= 0 && j + lane / 16 < kCount) {
      const int offset = (row + lane % 16) * pitch + column;
      const Words4 words = region.template load<Words4>(offset);
      for_each_peer([&](int peer) { of_block(region, peer).store(offset, words); });
    }
  }
}

}  // namespace mvk
