// Tiles of 16 rows between registers, shared memory and the other blocks of a cluster, and how blocks exchange them.
//
// Regions hold rows of 16-bit channels at a pitch of an odd number of 16-byte units: neither fragments nor 16-byte
// units meet bank conflicts.
#pragma once

#include "common/cluster.cuh"
#include "common/linear.cuh"
#include "common/mbarrier.cuh"

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

// The lines of the LayerNorm (common/linear.cuh) of rows [first_row, first_row + kRows), scale and shift of one after
// the other: each computed once, by 16 lanes, where warps that share rows would each compute all of them.
template <int kTiles, int kRows, int kWarps, class T>
MVK_DEVICE void compute_lines(Shared<float> lines, Shared<T> rows, int pitch, int first_row, float epsilon) {
  static_assert(kRows % (2 * kWarps) == 0, "all warps have as many rows");
  constexpr int kUnits = ceil_div(kTiles, 16);  // of 8 channels, a lane's
  constexpr float kPerChannel = 1.0f / (8 * kTiles);
  const int part = lane_index() % 16;
  const auto sum_of_row = [](float value) {
#pragma unroll
    for (int mask = 1; mask < 16; mask *= 2) value += shuffle_xor(value, mask);
    return value;
  };
#pragma unroll(kRows / (2 * kWarps) <= 2 ? 2 : 1)
  for (int i = 0; i < kRows / (2 * kWarps); ++i) {
    const int row = 2 * (warp_index() + kWarps * i) + lane_index() / 16;
    float values[kUnits][8];
    float sum = 0.0f;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int tile = part + 16 * u;
      Words4 words{};
      if (tile < kTiles) words = rows.template load<Words4>((first_row + row) * pitch + 8 * tile);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        values[u][2 * j] = low(Pair<T>{words.word[j]});
        values[u][2 * j + 1] = high(Pair<T>{words.word[j]});
        sum += values[u][2 * j] + values[u][2 * j + 1];
      }
    }
    const float mean = sum_of_row(sum) * kPerChannel;
    float squares = 0.0f;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (part + 16 * u < kTiles) {
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = multiply_add(values[u][j] - mean, values[u][j] - mean, squares);
      }
    }
    const float scale = rsqrt_approx(multiply_add(sum_of_row(squares), kPerChannel, epsilon));
    if (part == 0) lines.store(2 * row, Floats2{{scale, -mean * scale}});
  }
}

// Those of the rows g and g + 8 of each row tile of this warp; `row` counts as in compute_lines().
template <int kRowTiles>
MVK_DEVICE void load_lines(RowLines<kRowTiles>& own, Shared<float> lines, int row) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Floats2 line = lines.template load<Floats2>(2 * (row + 16 * m + 8 * half + lane_index() / 4));
      own.scale[m][half] = line.value[0];
      own.shift[m][half] = line.value[1];
    }
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

// How what a warp gives gets to another block.
struct ByStore {  // they are there behind a sync_cluster()
  static constexpr bool kSends = false;

  template <class T, class V>
  MVK_DEVICE void operator()(Shared<T> region, int peer, int offset, V value) const {
    of_block(region, peer).store(offset, value);
  }
};
struct BySend {  // they report to this barrier of the other block
  static constexpr bool kSends = true;
  Shared<std::uint64_t> barriers;
  int index;

  template <class T, class V>
  MVK_DEVICE void operator()(Shared<T> region, int peer, int offset, V value) const {
    of_block(region, peer).send(offset, value, barrier_of_block(barriers, index, peer));
  }
};

// Brings kCount tiles of 16 rows that this warp has stored to the same place in other blocks, 16 bytes a lane.
// column_of(j): where tile j begins, −1: nowhere; for_each_peer(visit) calls visit(rank) for each block.
template <int kCount, class T, class Way, class ColumnOf, class ForEachPeer>
MVK_DEVICE void give_tiles(const Way& way, Shared<T> region, int pitch, int row, const ColumnOf& column_of,
                           const ForEachPeer& for_each_peer) {
  constexpr int kPairs = ceil_div(kCount, 2);  // of tiles: half a warp has a tile
  const int lane = lane_index();
  const auto offset_of = [&](int pair) {
    const int j = 2 * pair + lane / 16;
    const int column = column_of(j);
    return column >= 0 && j < kCount ? (row + lane % 16) * pitch + column : -1;
  };
  Words4 words[kPairs];
  const auto load = [&](int pair) {
    if (offset_of(pair) >= 0) words[pair] = region.template load<Words4>(offset_of(pair));
  };
  const auto give = [&](int pair) {
    if (offset_of(pair) >= 0) for_each_peer([&](int peer) { way(region, peer, offset_of(pair), words[pair]); });
  };
  sync_warp();
  if constexpr (Way::kSends) {
    // Whoever gets a word knows then that this warp has read them all: the place may be sent to.
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) load(pair);
    sync_warp();
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) give(pair);
  } else {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      load(pair);
      give(pair);
    }
  }
}

// What blocks give to each other in a layer. Each exchange has a barrier of its own, where they send.
struct Exchange {
  static constexpr int kKeys = 0;            // K and V, and Q where the pair of a head shares rows
  static constexpr int kHeads = 1;           // O
  static constexpr int kRowsFromHeads = 2;   // X, of W_o
  static constexpr int kHidden = 3;          // the hidden layer
  static constexpr int kRowsFromHidden = 4;  // X, of W_in and of W_2
  static constexpr int kCount = 5;
};

// The exchanges of a cluster's blocks, in two forms.
//
// Without kSends an exchange is stores and a cluster barrier, whose release is a fence of the whole GPU. With it, what a
// block gets reports to a barrier in its memory, at which its own warps arrive too, and nobody waits for a block that
// gives it nothing. No barrier tells then that a place is free again for the next time: a sender has to know it from
// what it has got since. Where that is not so, the other block's warps tell() it.
template <bool kSends, int kWarps>
struct ClusterExchanges {
  Shared<std::uint64_t> barriers;
  Shared<std::uint32_t> told;  // a word of each of the pair's other block's warps; nobody reads them

  static constexpr int kToldBytes = 4 * kWarps;  // what the other block's warps tell in an exchange
  static constexpr int kToldBegin = round_up(8 * Exchange::kCount, 16);
  static constexpr int kBytes = kSends ? kToldBegin + kToldBytes : 0;

  MVK_DEVICE static ClusterExchanges at(int byte_begin) {
    return {shared_region<std::uint64_t>("barriers", byte_begin, kSends ? Exchange::kCount : 0),
            shared_region<std::uint32_t>("told", byte_begin + (kSends ? kToldBegin : 0), kSends ? kWarps : 0)};
  }

  // By all threads, before a sync_cluster().
  MVK_DEVICE void start() const {
    if (kSends && thread_index() == 0) {
      for (int i = 0; i < Exchange::kCount; ++i) barrier_init(barriers, i, kWarps);
      publish_barriers();
    }
  }

  MVK_DEVICE auto way(int exchange) const {
    if constexpr (kSends) {
      return BySend{barriers, exchange};
    } else {
      return ByStore{};
    }
  }

  // This warp has left what block `peer` is going to send to after this exchange.
  MVK_DEVICE void tell(int exchange, int peer) const {
    if constexpr (kSends) {
      sync_warp();
      if (lane_index() == 0) way(exchange)(told, peer, warp_index(), 0u);
    }
  }

  // The `use`-th time, from 0: the `bytes` that this block gets, and what its threads did before, are there for all of
  // them. Without kSends it is so for the whole cluster.
  MVK_DEVICE void finish(int exchange, int use, int bytes) const {
    if constexpr (kSends) {
      sync_warp();
      if (thread_index() == 0) {
        barrier_arrive_expecting(barriers, exchange, bytes);
      } else if (lane_index() == 0) {
        barrier_arrive(barriers, exchange);
      }
      barrier_wait_for_cluster(barriers, exchange, use % 2);
    } else {
      sync_cluster();
    }
  }
};

}  // namespace mvk
