// Transformer stage of a MobileViT block for small batches and sequences of up to 256 tokens, each on a cluster of
// eight blocks, one launch. The stage, its numbers and what is folded into the weights are those of transformer.cuh.
//
// Beside attention, rows have nothing to do with each other: a block owns 32 of the 256 rows for all products but those
// of Q, K and V, whose columns belong to heads. That leaves three exchanges a layer (distributed shared memory):
//
//       block   0  1  2  3  4  5  6  7      rows   0 … 127   blocks 0  2  4  6   (row group 0)
//       head    0  0  1  1  2  2  3  3      rows 128 … 255   blocks 1  3  5  7   (row group 1)
//       own rows of a group: 0 … 31 blocks 0 and 1, 32 … 63 blocks 2 and 3, …
//
//     Q, K, V of a head and the group's rows: K and V → the other block of the head
//     attention of a head and the group's rows: O → the owner of each row
//     W_o, W_1, SiLU, W_2 of the own rows: X → the row group
//
// They have two forms, by stores or by sends (cluster_exchange.cuh). A block's O and X come when all its warps have left
// what the exchanges before brought; but the other block of its head gets neither, so its warps tell it when they have
// left the hidden layer, which lies where K and V come next.
//
// Splitting all products by columns, as transformer_cluster.cuh does for short sequences, would exchange X twice and
// the hidden layer too: 158 KB a block and layer at D = 144, which nothing hides.
//
// Weights come as one stream of chunks in the order of their use, through a ring of three cp.async slots, one block
// barrier a chunk. A chunk is some k-steps of 16 of all columns, [k-step][8-column tile][lane][4 elements]; behind a
// product's last chunk lie 8 biases and 8 column sums a tile. A table holds where each chunk begins and how long it is,
// for each head: only Q, K and V differ. Packing: mobilevit_kernels/native/transformer_cluster.py.
//
// A block and layer, counted on the simulator: KB of weights from L2, KB received from other blocks, mma (m16n8k16).
//
//     D =  64     48    23   1024
//     D =  96    107    35   1920
//     D = 144    246    55   4016
//
// What binds is latency. Measured on an H200, one image of S: 22.9 µs a layer at D = 144, where bandwidth, mma and 300
// clocks a barrier would be 6.2 (benchmarks/results/nvidia-h200/2026-11-26).
#pragma once

#include "attention.cuh"
#include "cluster_exchange.cuh"
#include "common/async_copy.cuh"
#include "common/launch.cuh"
#include "common/linear.cuh"
#include "common/overlap.cuh"
#include "common/patches.cuh"

namespace mvk {

// Sizes that the kernel, its launcher and (by name) its packing share; everything in them is known before the launch.
template <class T, int kDimOf, int kHeadTilesOf, bool kSendsOf>
struct TransformerClusterLongConfig {
  using Type = T;
  static constexpr bool kSends = kSendsOf;
  static constexpr int kBlocks = 8;  // of a cluster: the most that every GPU with clusters takes
  static constexpr int kHeads = 4;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kDim = kDimOf;
  static constexpr int kHeadTiles = kHeadTilesOf;  // 8-channel tiles of a head, padding included
  static constexpr int kClusterRows = 256;
  static constexpr int kRowGroups = 2;
  static constexpr int kRows = kClusterRows / kRowGroups;
  static constexpr int kOwnRows = kRows / kHeads;
  static constexpr int kRowTiles = 2;  // of a warp, in every product

  // Q, K and V: four warps of 32 rows × two of columns. The other products: all warps have the own rows.
  static constexpr int kAttentionColumnWarps = kWarps / (kRows / (16 * kRowTiles));
  static constexpr int kOwnColumnWarps = kWarps / (kOwnRows / (16 * kRowTiles));

  static constexpr int kTiles = kDim / 8;
  static constexpr int kSteps = kTiles / 2;
  static constexpr int kHiddenTiles = 2 * kTiles;
  static constexpr int kAttentionTiles = 3 * kHeadTiles;  // [K | V | Q] of a head

  // K-steps of a chunk: of a product with D columns, of one with up to 2·D. Q, K and V are one chunk.
  static constexpr int kChunkSteps = kDim <= 64 ? 8 : 6;
  static constexpr int kWideChunkSteps = kChunkSteps / 2;
  MVK_HOST_DEVICE static constexpr int chunk_elements(int steps, int tiles) { return (steps * 128 + 32) * tiles; }
  static constexpr int kAttentionChunk = (kSteps * 128 + 32) * kAttentionTiles;
  static constexpr int kWideChunk = (kWideChunkSteps * 128 + 32) * kHiddenTiles;
  static constexpr int kSlotElements = kAttentionChunk > kWideChunk ? kAttentionChunk : kWideChunk;
  static constexpr int kSlots = 3;

  static constexpr int kRowPitch = odd_pitch(kTiles);
  static constexpr int kQueryPitch = odd_pitch(kHeadTiles);
  static constexpr int kHeadsPitch = odd_pitch(kHeads * kHeadTiles);
  static constexpr int kHiddenPitch = odd_pitch(kHiddenTiles);

  // Bytes. The hidden layer takes the place of K and V, and x before and y behind them.
  static constexpr int kRowsBegin = kSlots * kSlotElements * 2;
  static constexpr int kTurnsBegin = kRowsBegin + kRows * kRowPitch * 2;
  static constexpr int kQueriesBegin = kTurnsBegin + kClusterRows * key_pitch(kHeadTiles) * 2;
  static constexpr int kHeadsBegin = kQueriesBegin + kRows * kQueryPitch * 2;
  static constexpr int kLinesBegin = kHeadsBegin + kOwnRows * kHeadsPitch * 2;
  static constexpr int kExchangesBegin = kLinesBegin + kOwnRows * 8;
  using Exchanges = ClusterExchanges<kSends, kWarps>;
  static constexpr int kSharedBytes = kExchangesBegin + Exchanges::kBytes;

  // What a block gets in an exchange, in bytes: of its partner, and of the other blocks with the row group.
  static constexpr int kKeysBytes = kRows * 16 * 2 * kHeadTiles;
  static constexpr int kHeadsBytes = (kHeads - 1) * kOwnRows * 16 * kHeadTiles;
  static constexpr int kRowsBytes = (kHeads - 1) * kOwnRows * 16 * kTiles + Exchanges::kToldBytes;

  static constexpr int kMaxChannels = 8 * kHiddenTiles;  // of x and of y

  static_assert(kDim % 16 == 0 && kHeads * kHeadTiles * 8 >= kDim, "channels come in k-steps of 16");
  static_assert(kRows == 16 * kWarps, "a warp has one tile of queries");
  static_assert(kOwnRows * kHiddenPitch <= kClusterRows * key_pitch(kHeadTiles), "the hidden layer fits");
  static_assert((kChunkSteps * 128 + 32) * kTiles <= kSlotElements, "a chunk fits into a slot");
};

// Where a chunk lies in the stream, in units of 16 bytes: word[0] its begin, word[1] its length.
using ClusterChunkPlace = Words2;

template <class T>
struct TransformerClusterLongParams {
  Global<const T> x;
  Global<const T> weights;            // the stream
  Global<const std::uint32_t> table;  // [head][chunk] ClusterChunkPlace, in the order of use
  Global<T> y;
  PatchMap map;
  int in_channels, out_channels;
  int layers;
  int chunks;  // of a head
  float epsilon;
  bool activation;
};

// sums[m][j] += a[m] · tile first_tile + kColumnWarps·j of one k-step, for the tiles below `tiles`; kAlways of them
// are.
template <int kColumnWarps, int kAlways, int kRowTiles, int kCount, class T>
MVK_DEVICE void multiply_tiles(FragmentC (&sums)[kRowTiles][kCount], const FragmentA<T> (&a)[kRowTiles], Shared<T> step,
                               int first_tile, int tiles) {
  const int lane = lane_index();
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const int tile = first_tile + kColumnWarps * j;
    if (j < kAlways || tile < tiles) {
      const Words2 words = step.template load<Words2>(tile * 128 + lane * 4);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        mma_m16n8k16(sums[m][j], a[m], FragmentB<T>{{{words.word[0]}, {words.word[1]}}});
      }
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    transformer_cluster_long_kernel(const TransformerClusterLongParams<typename Config::Type> params) {
  if constexpr (!clusters_exist()) return;
  let_next_launch_begin();
  using T = typename Config::Type;
  constexpr int kRowTiles = Config::kRowTiles;
  constexpr int kTiles = Config::kTiles;
  constexpr int kHeadTiles = Config::kHeadTiles;
  constexpr int kRowPitch = Config::kRowPitch;
  using Rows = RowFragments<T, kRowTiles, kTiles>;

  const int warp = shuffle(warp_index(), 0);  // so that the compiler knows it to be the same for all lanes
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const int rank = cluster_block_rank();
  const int row_group = rank % Config::kRowGroups;
  const int head = rank / Config::kRowGroups;
  const int own_row = head * Config::kOwnRows;  // where the own rows begin, in the group's rows

  const Shared<T> ring = shared_region<T>("ring", 0, Config::kSlots * Config::kSlotElements);
  const Shared<T> rows = shared_region<T>("rows", Config::kRowsBegin, Config::kRows * kRowPitch);
  const Shared<T> input = shared_region<T>("input", Config::kTurnsBegin, Config::kOwnRows * Config::kHiddenPitch);
  const Shared<T> keys_values =
      shared_region<T>("keys and values", Config::kTurnsBegin, Config::kClusterRows * key_pitch(kHeadTiles));
  const Shared<T> queries = shared_region<T>("queries", Config::kQueriesBegin, Config::kRows * Config::kQueryPitch);
  const Shared<T> heads = shared_region<T>("heads", Config::kHeadsBegin, Config::kOwnRows * Config::kHeadsPitch);
  const Shared<T> hidden = shared_region<T>("hidden", Config::kTurnsBegin, Config::kOwnRows * Config::kHiddenPitch);
  const Shared<T> output = shared_region<T>("output", Config::kTurnsBegin, Config::kOwnRows * Config::kHiddenPitch);
  const Shared<float> lines = shared_region<float>("lines", Config::kLinesBegin, Config::kOwnRows * 2);
  const auto exchanges = Config::Exchanges::at(Config::kExchangesBegin);

  // --- the stream of weights ---
  int next_chunk = 0;
  int slot = 0;  // of the chunk that is taken next
  const auto fetch_chunk = [&](int to_slot) {
    if (next_chunk < params.chunks) {
      const int entry = head * params.chunks + next_chunk;
      const ClusterChunkPlace place = params.table.template load<ClusterChunkPlace>(2 * entry);
      const int units = static_cast<int>(place.word[1]);
      const std::int64_t source = static_cast<std::int64_t>(place.word[0]) * 8;
#pragma unroll 1
      for (int i = thread_index(); i < units; i += Config::kThreads) {
        copy_async_16(ring, to_slot * Config::kSlotElements + i * 8, params.weights, source + i * 8);
      }
      ++next_chunk;
    }
    copy_async_commit();
  };
  // The next chunk, there for all, as is what the block's threads stored before. All warps have left the chunk before
  // it, whose slot is filled again.
  const auto take_chunk = [&] {
    copy_async_wait<Config::kSlots - 2>();
    sync_block();
    fetch_chunk(slot == 0 ? Config::kSlots - 1 : slot - 1);
    const Shared<T> chunk = ring.part(slot * Config::kSlotElements, Config::kSlotElements);
    slot = slot + 1 < Config::kSlots ? slot + 1 : 0;
    return chunk;
  };

  // --- rows and pixels ---
  // The pixel of one of the own rows, −1 where it is padding.
  const auto pixel_of = [&](int row) {
    const int token = row_group * Config::kRows + own_row + row;
    const int sequence = block_index_x() / Config::kBlocks;
    return token < params.map.tokens && sequence < params.map.sequences ? params.map.pixel_of(sequence, token) : -1;
  };

  // --- steps ---
  // Rows of X from `row` on in registers.
  const auto load_rows = [&](Rows& own, int row) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) load_row_tile(own, m, rows, kRowPitch, row + 16 * m);
  };
  const auto for_row_group = [&](const auto& visit) {
#pragma unroll
    for (int i = 1; i < Config::kHeads; ++i) visit((rank + Config::kRowGroups * i) % Config::kBlocks);
  };
  const auto for_partner = [&](const auto& visit) { visit(rank ^ 1); };

  // The own rows of X = [X +] a · W + b; `a` is a region of the own rows and `steps` k-steps.
  const auto multiply_into_rows = [&](Shared<T> region, int pitch, int steps, bool add, bool give) {
    constexpr int kColumnWarps = Config::kOwnColumnWarps;
    constexpr int kCount = ceil_div(kTiles, kColumnWarps);
    FragmentC sums[kRowTiles][kCount] = {};
    Shared<T> chunk = ring;
    int chunk_steps = 0;
#pragma unroll 1
    for (int first = 0; first < steps; first += Config::kChunkSteps) {
      chunk = take_chunk();
      const auto multiply_step = [&](int step) {
        FragmentA<T> a[kRowTiles];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) load_fragment(a[m], region, pitch, 16 * m, first + step);
        multiply_tiles<kColumnWarps, kTiles / kColumnWarps>(sums, a, chunk.part(step * kTiles * 128, kTiles * 128),
                                                            warp, kTiles);
      };
      chunk_steps = steps - first < Config::kChunkSteps ? steps - first : Config::kChunkSteps;
      if (chunk_steps == Config::kChunkSteps) {  // so that the loads of one step are under way during another
#pragma unroll
        for (int step = 0; step < Config::kChunkSteps; ++step) multiply_step(step);
      } else {
#pragma unroll 1
        for (int step = 0; step < chunk_steps; ++step) multiply_step(step);
      }
    }
    const Shared<T> ends = chunk.part(chunk_steps * kTiles * 128, kTiles * 32);
    const auto column_of = [&](int j) {
      const int tile = warp + kColumnWarps * j;
      return tile < kTiles ? 8 * tile : -1;
    };
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = own_row + 16 * m;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int column = column_of(j);
        if (column < 0) continue;
        const Floats2 bias = ends.template load<Floats2>(column * 4 + 4 * t);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Pair<T> pair{0u};
          if (add) pair = rows.template load<Pair<T>>((row + 8 * half + g) * kRowPitch + column + 2 * t);
          sums[m][j].value[2 * half] += low(pair) + bias.value[0];
          sums[m][j].value[2 * half + 1] += high(pair) + bias.value[1];
        }
        store_tile(rows, kRowPitch, row, column, sums[m][j]);
      }
      if (give) {
        give_tiles<kCount>(exchanges.way(Exchange::kRowsFromHidden), rows, kRowPitch, row, column_of, for_row_group);
      }
    }
    if (give) exchanges.tell(Exchange::kRowsFromHidden, rank ^ 1);
  };

  // sums = LN(X) · W + b of the own rows, for `tiles` tiles of columns, at most 2·D channels.
  constexpr int kWideCount = ceil_div(Config::kHiddenTiles, Config::kOwnColumnWarps);
  const auto multiply_norm = [&](FragmentC(&sums)[kRowTiles][kWideCount], int tiles) {
    Shared<T> chunk = take_chunk();  // X is there
    compute_lines<kTiles, Config::kOwnRows, Config::kWarps>(lines, rows, kRowPitch, own_row, params.epsilon);
    Rows own;
    load_rows(own, own_row);
    sync_block();
    RowLines<kRowTiles> own_lines;
    load_lines(own_lines, lines, 0);
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
      if (step != 0 && step % Config::kWideChunkSteps == 0) chunk = take_chunk();
      FragmentA<T> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = own.fragment[m][step];
      multiply_tiles<Config::kOwnColumnWarps, 0>(
          sums, a, chunk.part(step % Config::kWideChunkSteps * tiles * 128, tiles * 128), warp, tiles);
    }
    const Shared<T> ends = chunk.part(((Config::kSteps - 1) % Config::kWideChunkSteps + 1) * tiles * 128, tiles * 32);
#pragma unroll
    for (int j = 0; j < kWideCount; ++j) {
      const int tile = warp + Config::kOwnColumnWarps * j;
      if (tile < tiles) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) apply_norm(sums[m][j], ends, tile * 32, own_lines, m);
      }
    }
  };

  // [K | V | Q] of the head for the group's rows; K and V go to the other block of the head.
  const auto make_attention_operands = [&] {
    constexpr int kColumnWarps = Config::kAttentionColumnWarps;
    constexpr int kCount = ceil_div(Config::kAttentionTiles, kColumnWarps);
    const int first_row = warp / kColumnWarps * 16 * kRowTiles;
    const int first_tile = warp % kColumnWarps;
    const Shared<T> chunk = take_chunk();
    Rows own;
    load_rows(own, first_row);
    RowLines<kRowTiles> own_lines;  // two warps have these rows
    layer_norm_lines<false>(own_lines, own, Config::kDim, params.epsilon);
    FragmentC sums[kRowTiles][kCount] = {};
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
      FragmentA<T> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = own.fragment[m][step];
      multiply_tiles<kColumnWarps, Config::kAttentionTiles / kColumnWarps>(
          sums, a, chunk.part(step * Config::kAttentionTiles * 128, Config::kAttentionTiles * 128), first_tile,
          Config::kAttentionTiles);
    }
    const Shared<T> ends = chunk.part(Config::kSteps * Config::kAttentionTiles * 128, Config::kAttentionTiles * 32);
    const auto tile_of = [&](int j) { return first_tile + kColumnWarps * j; };
    const auto key_column = [&](int j) { return tile_of(j) < 2 * kHeadTiles ? 8 * tile_of(j) : -1; };
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = first_row + 16 * m;
      const int key_row = row_group * Config::kRows + row;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int tile = tile_of(j);
        if (tile >= Config::kAttentionTiles) continue;
        apply_norm(sums[m][j], ends, tile * 32, own_lines, m);
        if (tile < 2 * kHeadTiles) {
          store_tile(keys_values, key_pitch(kHeadTiles), key_row, 8 * tile, sums[m][j]);
        } else {
          store_tile(queries, Config::kQueryPitch, row, 8 * (tile - 2 * kHeadTiles), sums[m][j]);
        }
      }
      give_tiles<kCount>(exchanges.way(Exchange::kKeys), keys_values, key_pitch(kHeadTiles), key_row, key_column,
                         for_partner);
    }
  };

  // softmax(Q·Kᵀ)·V of the head for a warp's 16 rows of the group, to their owner.
  const auto attend = [&] {
    const int row = 16 * warp;
    RowFragments<T, 1, kHeadTiles> own;
    load_row_tile(own, 0, queries, Config::kQueryPitch, row);
    const KeyRange ranges[1] = {{0, params.map.tokens}};
    Attention<T, 1, kHeadTiles, kHeadTiles> attention;
    attention.start(0, 1.0f);
    attention.attend(own, keys_values, Config::kClusterRows, ranges);
    const auto means = attention.finish();
    // They take the place of the warp's queries, from where they go on in 16-byte units.
    sync_warp();
#pragma unroll
    for (int j = 0; j < kHeadTiles; ++j) {
      queries.store((row + g) * Config::kQueryPitch + 8 * j + 2 * t, means.at(0, j, 0));
      queries.store((row + g + 8) * Config::kQueryPitch + 8 * j + 2 * t, means.at(0, j, 1));
    }
    sync_warp();
    const int owner = row / Config::kOwnRows * Config::kRowGroups + row_group;
    const auto way = exchanges.way(Exchange::kHeads);
#pragma unroll
    for (int j = 0; j < kHeadTiles; j += 2) {
      const int tile = j + lane / 16;
      if (tile < kHeadTiles) {
        const Words4 words = queries.template load<Words4>((row + lane % 16) * Config::kQueryPitch + 8 * tile);
        const int place = (row % Config::kOwnRows + lane % 16) * Config::kHeadsPitch + 8 * (head * kHeadTiles + tile);
        if (owner == rank) {
          heads.store(place, words);
        } else {
          way(heads, owner, place, words);
        }
      }
    }
  };

  // silu(W_1 · LN(X) + b_1) of the own rows. W_1 and b_1 are halved for the SiLU.
  const auto make_hidden = [&] {
    FragmentC sums[kRowTiles][kWideCount] = {};
    multiply_norm(sums, Config::kHiddenTiles);
#pragma unroll
    for (int j = 0; j < kWideCount; ++j) {
      const int tile = warp + Config::kOwnColumnWarps * j;
      if (tile >= Config::kHiddenTiles) continue;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][j].value[i] = silu_of_half(sums[m][j].value[i]);
        store_tile(hidden, Config::kHiddenPitch, 16 * m, 8 * tile, sums[m][j]);
      }
    }
  };

  // y = silu(W_out · LN(X) + b_out) of the own rows. W_out and b_out are halved.
  const auto multiply_output = [&] {
    const int tiles = params.out_channels / 8;
    FragmentC sums[kRowTiles][kWideCount] = {};
    multiply_norm(sums, tiles);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int pixel = pixel_of(16 * m + lane % 16);
#pragma unroll
      for (int j = 0; j < kWideCount; ++j) {
        const int tile = warp + Config::kOwnColumnWarps * j;
        if (tile >= tiles) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float half = sums[m][j].value[i];
          sums[m][j].value[i] = params.activation ? silu_of_half(half) : 2.0f * half;
        }
        store_tile(output, Config::kHiddenPitch, 16 * m, 8 * tile, sums[m][j]);
        sync_warp();
        if (lane < 16 && pixel >= 0) {
          params.y.store(static_cast<std::int64_t>(pixel) * params.out_channels + 8 * tile,
                         output.template load<Words4>((16 * m + lane) * Config::kHiddenPitch + 8 * tile));
        }
      }
    }
  };

  for (int i = 0; i < Config::kSlots - 1; ++i) fetch_chunk(i);
  exchanges.start();
  wait_for_earlier_launches();
  // x of the own rows; zeros in padded rows and channels.
  const int in_steps = ceil_div(params.in_channels, 16);
  const int row_units = 2 * in_steps;  // of 16 bytes
  const int in_pitch = odd_pitch(row_units);
#pragma unroll 2
  for (int unit = thread_index(); unit < Config::kOwnRows * row_units; unit += Config::kThreads) {
    const int channel = unit % row_units * 8;
    const int pixel = pixel_of(unit / row_units);
    Words4 words{};
    if (pixel >= 0 && channel < params.in_channels) {
      words = params.x.template load<Words4>(static_cast<std::int64_t>(pixel) * params.in_channels + channel);
    }
    input.store(unit / row_units * in_pitch + channel, words);
  }
  sync_cluster();  // all blocks are there
  multiply_into_rows(input, in_pitch, in_steps, false, params.layers > 0);
#pragma unroll 1
  for (int layer = 0; layer < params.layers; ++layer) {
    exchanges.finish(Exchange::kRowsFromHidden, layer, Config::kRowsBytes);
    make_attention_operands();
    exchanges.finish(Exchange::kKeys, layer, Config::kKeysBytes);
    attend();
    exchanges.finish(Exchange::kHeads, layer, Config::kHeadsBytes);
    multiply_into_rows(heads, Config::kHeadsPitch, Config::kHeads * kHeadTiles / 2, true, false);
    make_hidden();
    multiply_into_rows(hidden, Config::kHiddenPitch, kTiles, true, layer + 1 < params.layers);
  }
  multiply_output();
}

}  // namespace mvk
