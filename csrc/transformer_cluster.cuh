// Transformer stage of a MobileViT block for small batches and sequences of up to 64 tokens: 16 to 64 rows of whole
// sequences on a cluster of eight blocks, one launch.
//
//   X = unfold(W_in x);  L times: X += W_o · MHA(LN(X)) + b_o,  X += W_2 · silu(W_1 · LN(X) + b_1) + b_2;
//   y = silu(W_out · fold(LN(X)) + b_out)
//
//   x      (B, H, W, C)  NHWC      y  (B, H, W, C_out)  NHWC      X  (B·P, N, D): P sequences an image, N tokens each
//
// The stage, its numbers and what is folded into the weights are those of transformer.cuh; what differs is who computes
// what. Every product is split by output columns: a block multiplies all rows that it works on by its own slice of the
// weights, over the whole depth, and sends its columns, rounded to 16 bits, to the blocks that need them (distributed
// shared memory). So each weight is read by one block of a cluster (two where rows are split), no sum is spread over
// blocks, and the order of every sum is fixed: results do not depend on the place in the batch, nor on the schedule.
//
//     1 row group × 8 column blocks                2 row groups of 32 rows × 4 column blocks
//
//       block   0  1  2  3  4  5  6  7               rows  0 … 31   blocks 0  2  4  6
//       head    0  0  1  1  2  2  3  3               rows 32 … 63   blocks 1  3  5  7
//       columns of every product: an eighth each     columns: a fourth each, and head = rank / 2
//
// Blocks 2h and 2h + 1 serve head h. With one row group each makes half of the columns of its Q, K and V and sends them
// to the other, and they take half of the queries each; with two, each makes Q, K and V of its rows and sends K and V.
// A layer is five steps, each with an exchange behind it:
//
//     Q, K, V → the pair       attention: O → the row group       W_o: X → the row group
//     W_1, SiLU: hidden layer → the row group       W_2: X → the row group
//
// Exchanges have two forms, by stores or by sends (cluster_exchange.cuh). What a sender has to know is that the place is
// free again, and mostly the data tell: before X comes from a block, all its warps have read what the attention needed,
// and so on around the layer. Two cases need care. A block that has no columns of X gives none, so that warps without
// columns read nothing for them. And with two row groups the pair's other block gets nothing from this row group but K
// and V: before it sends the next ones, each warp tells it that it has left the hidden layer, which lies in their place.
//
// In a block, warps form a grid of row tiles × columns. LN(X) · W is a product with X, LayerNorm applied behind it,
// from rows that a warp holds in registers (common/linear.cuh). Weights are the column block's own stream, in the order
// of its use, [product][8-column tile][k-step of 16][lane][4 elements], 8 biases and 8 column sums behind each tile
// (packing: mobilevit_kernels/native/transformer_cluster.py). Four buffers hold the slices of a layer's four products;
// each is filled again as soon as its product is done, so that a whole layer is under way.
//
// A block and layer, counted on the simulator: KB of weights from L2, KB received from other blocks, mma (m16n8k16).
//
//     (N, D)      weights  exchange   mma       one sequence of 16 and four a cluster: the same weights
//     (64,  80)        31        23   284       (16,  96)    22     14 and  57     88 and  354
//     (64, 120)        65        33   568       (16, 144)    51     22 and  88    208 and  834
//     (64, 192)       147        51  1248       (16, 240)   123     36 and 145    496 and 1984
//
// What binds is latency: barriers (five a layer) and chains of dependent mma. Measured on an H200, one image of S: 14.1
// µs a layer for (64, 192), 12.0 for (16, 240), where bandwidth, mma and 300 clocks a barrier would be 3.7 at most; a
// third of a warp's time goes to the fence before a cluster barrier and to the wait behind it
// (benchmarks/results/nvidia-h200/2026-11-26).
//
// Above 500 lines: the steps share the block's regions, and read best in the order in which a row goes through them.
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
template <class T, int kDimOf, int kHeadTilesOf, int kClusterRowsOf, int kRowGroupsOf, bool kSendsOf>
struct TransformerClusterConfig {
  using Type = T;
  static constexpr bool kSends = kSendsOf;
  static constexpr int kBlocks = 8;  // of a cluster: the most that every GPU with clusters takes
  static constexpr int kHeads = 4;
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kDim = kDimOf;
  static constexpr int kHeadTiles = kHeadTilesOf;      // 8-channel tiles of a head, padding included
  static constexpr int kClusterRows = kClusterRowsOf;  // rows of the sequences of a cluster
  static constexpr int kRowGroups = kRowGroupsOf;
  static constexpr int kColumnBlocks = kBlocks / kRowGroups;
  static constexpr int kRows = kClusterRows / kRowGroups;  // rows that a block works on

  // The grid of warps: 16·kRowTiles rows each, and every kColumnWarps-th tile of the block's columns. Two tiles of rows
  // of 240 channels do not fit into a warp's registers beside the sums.
  static constexpr int kTiles = kDim / 8;
  static constexpr int kRowTiles = kRows >= 32 && kTiles <= 24 ? 2 : 1;
  static constexpr int kRowWarps = kRows / (16 * kRowTiles);
  static constexpr int kColumnWarps = kWarps / kRowWarps;

  // Depths of the products in k-steps of 16.
  static constexpr int kSteps = ceil_div(kTiles, 2);
  static constexpr int kHeadsSteps = kHeads * kHeadTiles / 2;
  static constexpr int kHiddenTiles = 2 * kTiles;
  static constexpr int kHiddenSteps = kTiles;

  // Columns that a block computes, in tiles of 8; the last blocks' slices are padded.
  static constexpr int kDimSlice = ceil_div(kTiles, kColumnBlocks);
  static constexpr int kHiddenSlice = ceil_div(kHiddenTiles, kColumnBlocks);
  static constexpr int kAttentionSlice = ceil_div(3 * kHeadTiles, kRowGroups == 1 ? 2 : 1);  // of [K | V | Q]

  MVK_HOST_DEVICE static constexpr int tile_elements(int steps) { return steps * 128 + 32; }
  MVK_HOST_DEVICE static constexpr int slice_elements(int steps, int tiles) { return tile_elements(steps) * tiles; }

  // The buffers of weights: [K | V | Q] and W_out, W_o, W_1, W_2 and W_in; begins in elements.
  static constexpr int kProjectionBuffer = slice_elements(kSteps, kAttentionSlice);
  static constexpr int kExpandBuffer = kProjectionBuffer + slice_elements(kHeadsSteps, kDimSlice);
  static constexpr int kReduceBuffer = kExpandBuffer + slice_elements(kSteps, kHiddenSlice);
  static constexpr int kLayerElements = kReduceBuffer + slice_elements(kHiddenSteps, kDimSlice);

  static constexpr int kRowPitch = odd_pitch(2 * kSteps);
  static constexpr int kQueryPitch = odd_pitch(kHeadTiles);
  static constexpr int kHeadsPitch = odd_pitch(kHeads * kHeadTiles);
  static constexpr int kHiddenPitch = odd_pitch(kHiddenTiles);

  // Bytes. What the attention needs and the hidden layer take turns, and x before and y behind them.
  static constexpr int kRowsBegin = kLayerElements * 2;
  static constexpr int kTurnsBegin = kRowsBegin + kRows * kRowPitch * 2;
  static constexpr int kQueriesBegin = kTurnsBegin + kClusterRows * key_pitch(kHeadTiles) * 2;
  static constexpr int kHeadsBegin = kQueriesBegin + kRows * kQueryPitch * 2;
  static constexpr int kAttentionEnd = kHeadsBegin + kRows * kHeadsPitch * 2;
  static constexpr int kHiddenEnd = kTurnsBegin + kRows * kHiddenPitch * 2;
  static constexpr int kLinesBegin = kAttentionEnd > kHiddenEnd ? kAttentionEnd : kHiddenEnd;
  static constexpr int kExchangesBegin = kLinesBegin + kRows * 8;
  using Exchanges = ClusterExchanges<kSends, kWarps>;
  static constexpr int kSharedBytes = kExchangesBegin + Exchanges::kBytes;

  // Queries of a block: all its rows, or half of them; 16 rows are too few to halve, and the pair's first block has
  // all.
  static constexpr int kQueryRows = kRowGroups == 2 || kRows == 16 ? kRows : kRows / 2;

  static constexpr int kMaxInChannels = 16 * kHiddenSteps;
  static constexpr int kMaxOutTiles = kAttentionSlice * kColumnBlocks;

  static_assert(kDim % 8 == 0 && kHeads * kHeadTiles * 8 >= kDim, "channels come in tiles of 8");
  static_assert(kRows % (16 * kRowTiles) == 0 && kWarps % kRowWarps == 0, "the warps form a whole grid");
  static_assert(kQueryRows <= 16 * kWarps, "a warp has one tile of queries");
  static_assert(kRows * odd_pitch(kAttentionSlice) <= kRows * kHiddenPitch, "y has room where the hidden layer was");
};

template <class T>
struct TransformerClusterParams {
  Global<const T> x;
  Global<const T> weights;  // a stream a column block
  Global<T> y;
  PatchMap map;
  int in_channels, out_channels;
  int layers;
  int sequence_rows;      // rows of a sequence, padding included
  int cluster_sequences;  // of a cluster
  int stream_elements;    // of a column block
  float epsilon;
  bool activation;
};

// sums[m][j] += a[m] · one k-step of tile first_tile + kColumnWarps·j of a slice, for the tiles below kSlice.
template <class Config, int kSlice, int kCount, class T>
MVK_DEVICE void multiply_step(FragmentC (&sums)[Config::kRowTiles][kCount], const FragmentA<T> (&a)[Config::kRowTiles],
                              Shared<T> slice, int steps, int step, int first_tile) {
  const int lane = lane_index();
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const int tile = first_tile + Config::kColumnWarps * j;
    if (Config::kColumnWarps * (j + 1) <= kSlice || tile < kSlice) {
      const Words2 words = slice.template load<Words2>(tile * Config::tile_elements(steps) + step * 128 + lane * 4);
#pragma unroll
      for (int m = 0; m < Config::kRowTiles; ++m) {
        mma_m16n8k16(sums[m][j], a[m], FragmentB<T>{{{words.word[0]}, {words.word[1]}}});
      }
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    transformer_cluster_kernel(const TransformerClusterParams<typename Config::Type> params) {
  if constexpr (!clusters_exist()) return;
  let_next_launch_begin();
  using T = typename Config::Type;
  constexpr int kRowTiles = Config::kRowTiles;
  constexpr int kHeadTiles = Config::kHeadTiles;
  constexpr int kColumnWarps = Config::kColumnWarps;
  constexpr int kRowPitch = Config::kRowPitch;
  using Rows = RowFragments<T, kRowTiles, Config::kTiles>;

  const int warp = shuffle(warp_index(), 0);  // so that the compiler knows it to be the same for all lanes
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const int rank = cluster_block_rank();
  const int row_group = rank % Config::kRowGroups;
  const int column_block = rank / Config::kRowGroups;
  const int first_row = warp / kColumnWarps * 16 * kRowTiles;  // of this warp, in the block's rows
  const int first_tile = warp % kColumnWarps;                  // of this warp, in the block's columns

  const Shared<T> weights = shared_region<T>("weights", 0, Config::kLayerElements);
  const Shared<T> rows = shared_region<T>("rows", Config::kRowsBegin, Config::kRows * kRowPitch);
  const Shared<T> input = shared_region<T>("input", Config::kTurnsBegin, Config::kRows * Config::kHiddenPitch);
  const Shared<T> keys_values =
      shared_region<T>("keys and values", Config::kTurnsBegin, Config::kClusterRows * key_pitch(kHeadTiles));
  const Shared<T> queries = shared_region<T>("queries", Config::kQueriesBegin, Config::kRows * Config::kQueryPitch);
  const Shared<T> heads = shared_region<T>("heads", Config::kHeadsBegin, Config::kRows * Config::kHeadsPitch);
  const Shared<T> hidden = shared_region<T>("hidden", Config::kTurnsBegin, Config::kRows * Config::kHiddenPitch);
  const Shared<T> output = shared_region<T>("output", Config::kTurnsBegin, Config::kRows * Config::kHiddenPitch);
  const Shared<float> lines = shared_region<float>("lines", Config::kLinesBegin, Config::kRows * 2);
  const auto exchanges = Config::Exchanges::at(Config::kExchangesBegin);

  // --- exchanges ---
  // What a block gets in an exchange: of `total` tiles of columns, `slice` of each column block, all but its own …
  const auto bytes_of_columns = [&](int total, int slice) {
    const int left = total - column_block * slice;
    return Config::kRows * 16 * (total - (left < 0 ? 0 : left < slice ? left : slice));
  };
  // … its partner's K, V and, where they share rows, Q …
  const auto bytes_of_keys = [&] {
    constexpr int kFirst = Config::kAttentionSlice;  // tiles that the pair's first block makes, of 3 · kHeadTiles
    const int tiles = Config::kRowGroups == 2 ? 2 * kHeadTiles : rank % 2 == 0 ? 3 * kHeadTiles - kFirst : kFirst;
    return Config::kRows * 16 * tiles;
  };
  // … and the other blocks' queries, of a head each.
  constexpr bool kFirstOfPairAttends = Config::kRowGroups == 1 && Config::kQueryRows == Config::kRows;
  const auto bytes_of_heads = [&] {
    const int blocks = kFirstOfPairAttends ? Config::kHeads : Config::kColumnBlocks;
    const int own = kFirstOfPairAttends && rank % 2 == 1 ? 0 : 1;
    return Config::kQueryRows * 16 * kHeadTiles * (blocks - own);
  };

  // --- the stream of weights ---
  const int in_steps = ceil_div(params.in_channels, 16);
  const int in_elements = Config::slice_elements(in_steps, Config::kDimSlice);
  const int out_slice = ceil_div(ceil_div(params.out_channels, 8), Config::kColumnBlocks);
  // Product i: 0 W_in, then four a layer, then W_out.
  const auto fetch_weights = [&](int product) {
    const int last = 1 + 4 * params.layers;
    if (product <= last) {
      const int layer = (product - 1) / 4;
      const int kind = (product + 3) % 4;  // the buffer
      int begin = Config::kReduceBuffer;
      int end = begin + in_elements;
      std::int64_t source = std::int64_t{column_block} * params.stream_elements;
      if (product > 0) {
        begin = kind == 0 ? 0 : kind == 1 ? Config::kProjectionBuffer : kind == 2 ? Config::kExpandBuffer : begin;
        end = kind == 0   ? Config::kProjectionBuffer
              : kind == 1 ? Config::kExpandBuffer
              : kind == 2 ? Config::kReduceBuffer
                          : Config::kLayerElements;
        if (product == last) end = Config::slice_elements(Config::kSteps, out_slice);
        source += in_elements + std::int64_t{layer} * Config::kLayerElements + begin;
      }
#pragma unroll 1
      for (int i = 8 * thread_index(); i < end - begin; i += 8 * Config::kThreads) {
        copy_async_16(weights, begin + i, params.weights, source + i);
      }
    }
    copy_async_commit();
  };
  // Ends a product and begins the next one: its weights and what the block got are there, for all of its threads.
  int product = 0;
  const auto next_product = [&](int exchange, int use, int bytes) {
    copy_async_wait<2>();
    exchanges.finish(exchange, use, bytes);
    fetch_weights(product + 4);
    ++product;
  };

  // --- rows and pixels ---
  // The pixel of one of the block's rows, −1 where it is padding.
  const auto pixel_of = [&](int row) {
    const int cluster_row = row_group * Config::kRows + row;
    const int place = cluster_row / params.sequence_rows;
    const int sequence = block_index_x() / Config::kBlocks * params.cluster_sequences + place;
    const int token = cluster_row % params.sequence_rows;
    const bool exists =
        place < params.cluster_sequences && token < params.map.tokens && sequence < params.map.sequences;
    return exists ? params.map.pixel_of(sequence, token) : -1;
  };

  // --- steps ---
  // Rows of X in registers, and the lines of their LayerNorm. Every warp has a part in these: all have to call.
  const auto load_rows = [&](Rows& own, RowLines<kRowTiles>& own_lines) {
    compute_lines<Config::kTiles, Config::kRows, Config::kWarps>(lines, rows, kRowPitch, 0, params.epsilon);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int step = 0; step < Config::kSteps; ++step) {
        load_fragment(own.fragment[m][step], rows, kRowPitch, first_row + 16 * m, step);
      }
    }
    sync_block();
    load_lines(own_lines, lines, first_row);
  };
  const auto bias_of = [&](Shared<T> slice, int steps, int tile) {
    return slice.template load<Floats2>(tile * Config::tile_elements(steps) + steps * 128 + 4 * t);
  };
  // The other blocks with this row group.
  const auto for_row_group = [&](const auto& visit) {
#pragma unroll
    for (int i = 1; i < Config::kColumnBlocks; ++i) visit((rank + Config::kRowGroups * i) % Config::kBlocks);
  };
  // Those of them with columns of X, which alone read the hidden layer. Of the others nothing comes that tells that it
  // is there: sent to them, it might still be on its way when K and V of the next layer come to the same place.
  constexpr int kReaders = ceil_div(Config::kTiles, Config::kDimSlice);
  const auto for_readers = [&](const auto& visit) {
    for_row_group([&](int peer) {
      if (!Config::kSends || peer / Config::kRowGroups < kReaders) visit(peer);
    });
  };
  const auto for_partner = [&](const auto& visit) { visit(rank ^ 1); };

  // X = [X + b +] a · W for the block's columns of X, to the row group; `a` is a region of `steps` k-steps.
  const auto multiply_into_rows = [&](Shared<T> region, int pitch, int steps, Shared<T> slice, bool add, int exchange) {
    constexpr int kSlice = Config::kDimSlice;
    constexpr int kCount = ceil_div(kSlice, kColumnWarps);
    FragmentC sums[kRowTiles][kCount];
    const auto column_of = [&](int j) {
      const int tile = first_tile + kColumnWarps * j;
      const int column_tile = column_block * kSlice + tile;
      return tile < kSlice && column_tile < Config::kTiles ? 8 * column_tile : -1;
    };
    const auto leave = [&] {
      if (Config::kRowGroups == 2 && exchange == Exchange::kRowsFromHidden) exchanges.tell(exchange, rank ^ 1);
    };
    if (column_of(0) < 0) return leave();  // and reads nothing: nobody waits for this warp
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int column = column_of(j);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        sums[m][j] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
        if (add && column >= 0) {
          const Floats2 bias = bias_of(slice, steps, first_tile + kColumnWarps * j);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = first_row + 16 * m + 8 * half + g;
            const Pair<T> pair = rows.template load<Pair<T>>(row * kRowPitch + column + 2 * t);
            sums[m][j].value[2 * half] = low(pair) + bias.value[0];
            sums[m][j].value[2 * half + 1] = high(pair) + bias.value[1];
          }
        }
      }
    }
    // Few sums: every second k-step adds to sums of its own, so that a product waits for the one before the last.
    constexpr int kChains = kRowTiles * kCount <= 2 ? 2 : 1;
    FragmentC second[kRowTiles][kCount] = {};
    const auto add_step = [&](FragmentC(&to)[kRowTiles][kCount], int step) {
      FragmentA<T> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) load_fragment(a[m], region, pitch, first_row + 16 * m, step);
      multiply_step<Config, kSlice>(to, a, slice, steps, step, first_tile);
    };
#pragma unroll 4
    for (int step = 0; step < steps; step += kChains) {
      add_step(sums, step);
      if (kChains == 2 && step + 1 < steps) add_step(second, step + 1);
    }
    if constexpr (kChains == 2) add_sums(sums, second);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = first_row + 16 * m;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (column_of(j) >= 0) store_tile(rows, kRowPitch, row, column_of(j), sums[m][j]);
      }
      give_tiles<kCount>(exchanges.way(exchange), rows, kRowPitch, row, column_of, for_row_group);
    }
    leave();
  };

  // sums = LN(X) · W + b for the block's columns; tile j of the warp is first + kColumnWarps·j of the slice.
  const auto multiply_norm = [&](auto& sums, const Rows& own, const RowLines<kRowTiles>& own_lines, Shared<T> slice,
                                 int first, auto slice_tiles) {
    constexpr int kSlice = decltype(slice_tiles)::value;
    constexpr int kCount = ceil_div(kSlice, kColumnWarps);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) sums[m][j] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
    }
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
      FragmentA<T> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = own.fragment[m][step];
      multiply_step<Config, kSlice>(sums, a, slice, Config::kSteps, step, first);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int tile = first + kColumnWarps * j;
      if (kColumnWarps * (j + 1) <= kSlice || tile < kSlice) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          apply_norm(sums[m][j], slice, tile * Config::tile_elements(Config::kSteps) + Config::kSteps * 128, own_lines,
                     m);
        }
      }
    }
  };

  // This block's tiles of [K | V | Q] of its head. K and V go to both blocks of the pair; Q too, where they share rows.
  const auto make_attention_operands = [&] {
    constexpr int kSlice = Config::kAttentionSlice;
    constexpr int kCount = ceil_div(kSlice, kColumnWarps);
    Rows own;
    RowLines<kRowTiles> own_lines;
    load_rows(own, own_lines);
    FragmentC sums[kRowTiles][kCount];
    multiply_norm(sums, own, own_lines, weights.part(0, Config::kProjectionBuffer), first_tile, Constant<kSlice>{});
    const int slice_begin = Config::kRowGroups == 1 ? rank % 2 * kSlice : 0;
    const auto tile_of = [&](int j) {  // of [K | V | Q]; −1: none
      const int tile = first_tile + kColumnWarps * j;
      return tile < kSlice && slice_begin + tile < 3 * kHeadTiles ? slice_begin + tile : -1;
    };
    const auto key_column = [&](int j) { return tile_of(j) < 2 * kHeadTiles ? 8 * tile_of(j) : -1; };
    const auto query_column = [&](int j) { return 8 * (tile_of(j) - 2 * kHeadTiles); };
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = first_row + 16 * m;
      const int key_row = row_group * Config::kRows + row;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (key_column(j) >= 0) store_tile(keys_values, key_pitch(kHeadTiles), key_row, key_column(j), sums[m][j]);
        if (query_column(j) >= 0) store_tile(queries, Config::kQueryPitch, row, query_column(j), sums[m][j]);
      }
      const auto way = exchanges.way(Exchange::kKeys);
      give_tiles<kCount>(way, keys_values, key_pitch(kHeadTiles), key_row, key_column, for_partner);
      if constexpr (Config::kRowGroups == 1) {
        give_tiles<kCount>(way, queries, Config::kQueryPitch, row, query_column, for_partner);
      }
    }
  };

  // softmax(Q·Kᵀ)·V of the block's queries, to the row group.
  const auto attend = [&] {
    if (16 * warp >= Config::kQueryRows || (kFirstOfPairAttends && rank % 2 == 1)) return;
    const int row = 16 * warp + (Config::kRowGroups == 1 ? rank % 2 * Config::kQueryRows : 0);
    RowFragments<T, 1, kHeadTiles> own;
    load_row_tile(own, 0, queries, Config::kQueryPitch, row);
    const int cluster_row = row_group * Config::kRows + row;
    const KeyRange ranges[1] = {{cluster_row / params.sequence_rows * params.sequence_rows, params.map.tokens}};
    Attention<T, 1, kHeadTiles, kHeadTiles> attention;
    attention.start(0, 1.0f);
    attention.attend(own, keys_values, Config::kClusterRows, ranges);
    const auto means = attention.finish();
    const auto column_of = [&](int j) { return 8 * (rank / 2 * kHeadTiles + j); };
#pragma unroll
    for (int j = 0; j < kHeadTiles; ++j) {
      heads.store((row + g) * Config::kHeadsPitch + column_of(j) + 2 * t, means.at(0, j, 0));
      heads.store((row + g + 8) * Config::kHeadsPitch + column_of(j) + 2 * t, means.at(0, j, 1));
    }
    give_tiles<kHeadTiles>(exchanges.way(Exchange::kHeads), heads, Config::kHeadsPitch, row, column_of, for_row_group);
  };

  // The block's columns of silu(W_1 · LN(X) + b_1), to the row group. W_1 and b_1 are halved for the SiLU.
  const auto make_hidden = [&] {
    constexpr int kSlice = Config::kHiddenSlice;
    constexpr int kCount = ceil_div(kSlice, kColumnWarps);
    Rows own;
    RowLines<kRowTiles> own_lines;
    load_rows(own, own_lines);
    FragmentC sums[kRowTiles][kCount];
    const Shared<T> slice =
        weights.part(Config::kExpandBuffer, Config::slice_elements(Config::kSteps, Config::kHiddenSlice));
    multiply_norm(sums, own, own_lines, slice, first_tile, Constant<kSlice>{});
    const auto column_of = [&](int j) {
      const int tile = first_tile + kColumnWarps * j;
      const int column_tile = column_block * kSlice + tile;
      return tile < kSlice && column_tile < Config::kHiddenTiles ? 8 * column_tile : -1;
    };
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int row = first_row + 16 * m;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (column_of(j) < 0) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][j].value[i] = silu_of_half(sums[m][j].value[i]);
        store_tile(hidden, Config::kHiddenPitch, row, column_of(j), sums[m][j]);
      }
      give_tiles<kCount>(exchanges.way(Exchange::kHidden), hidden, Config::kHiddenPitch, row, column_of, for_readers);
    }
  };

  // y = silu(W_out · LN(X) + b_out), the block's columns. W_out and b_out are halved.
  const auto multiply_output = [&] {
    Rows own;
    RowLines<kRowTiles> own_lines;
    load_rows(own, own_lines);
    const int slice_begin = column_block * out_slice;
    const Shared<T> slice = weights.part(0, Config::slice_elements(Config::kSteps, out_slice));
    std::int64_t offset[kRowTiles];  // of a row in y, for lanes that store one
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      offset[m] = static_cast<std::int64_t>(pixel_of(first_row + 16 * m + lane % 16)) * params.out_channels;
    }
#pragma unroll 1
    for (int tile = first_tile; tile < out_slice; tile += kColumnWarps) {
      if (8 * (slice_begin + tile) >= params.out_channels) break;
      FragmentC sums[kRowTiles][1];
      multiply_norm(sums, own, own_lines, slice, tile, Constant<kColumnWarps>{});  // one tile a warp
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float half = sums[m][0].value[i];
          sums[m][0].value[i] = params.activation ? silu_of_half(half) : 2.0f * half;
        }
        store_tile(output, odd_pitch(Config::kAttentionSlice), first_row + 16 * m, 8 * tile, sums[m][0]);
      }
      sync_warp();
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        if (lane < 16 && offset[m] >= 0) {
          const int row = first_row + 16 * m + lane;
          params.y.store(offset[m] + 8 * (slice_begin + tile),
                         output.template load<Words4>(row * odd_pitch(Config::kAttentionSlice) + 8 * tile));
        }
      }
    }
  };

  for (int i = 0; i < 4; ++i) fetch_weights(i);
  exchanges.start();
  wait_for_earlier_launches();
  // x, four loads under way a thread; zeros in padded rows and channels.
  const int row_units = 2 * in_steps;  // of 16 bytes
  const int in_pitch = odd_pitch(row_units);
  constexpr int kUnderWay = 4;
#pragma unroll 1
  for (int first = thread_index(); first < Config::kRows * row_units; first += kUnderWay * Config::kThreads) {
    Words4 words[kUnderWay];
#pragma unroll
    for (int i = 0; i < kUnderWay; ++i) {
      const int unit = first + i * Config::kThreads;
      const int channel = unit % row_units * 8;
      const int pixel = unit < Config::kRows * row_units ? pixel_of(unit / row_units) : -1;
      words[i] = Words4{};
      if (pixel >= 0 && channel < params.in_channels) {
        words[i] = params.x.template load<Words4>(static_cast<std::int64_t>(pixel) * params.in_channels + channel);
      }
    }
#pragma unroll
    for (int i = 0; i < kUnderWay; ++i) {
      const int unit = first + i * Config::kThreads;
      if (unit < Config::kRows * row_units) input.store(unit / row_units * in_pitch + unit % row_units * 8, words[i]);
    }
  }
  if constexpr (Config::kTiles % 2 != 0) {  // the channels that fill the last k-step
#pragma unroll 1
    for (int row = thread_index(); row < Config::kRows; row += Config::kThreads) {
      rows.store(row * kRowPitch + Config::kDim, Words4{});
    }
  }
  copy_async_wait<3>();
  sync_cluster();
  const auto slice_of = [&](int begin, int steps) {
    return weights.part(begin, Config::slice_elements(steps, Config::kDimSlice));
  };
  const int bytes_of_rows = bytes_of_columns(Config::kTiles, Config::kDimSlice);
  const int bytes_of_hidden =
      column_block < kReaders ? bytes_of_columns(Config::kHiddenTiles, Config::kHiddenSlice) : 0;
  const int told_bytes = Config::kRowGroups == 2 ? Config::Exchanges::kToldBytes : 0;
  multiply_into_rows(input, in_pitch, in_steps, slice_of(Config::kReduceBuffer, in_steps), false,
                     Exchange::kRowsFromHidden);
  next_product(Exchange::kRowsFromHidden, 0, bytes_of_rows + told_bytes);
#pragma unroll 1
  for (int layer = 0; layer < params.layers; ++layer) {
    make_attention_operands();
    next_product(Exchange::kKeys, layer, bytes_of_keys());
    attend();
    exchanges.finish(Exchange::kHeads, layer, bytes_of_heads());
    multiply_into_rows(heads, Config::kHeadsPitch, Config::kHeadsSteps,
                       slice_of(Config::kProjectionBuffer, Config::kHeadsSteps), true, Exchange::kRowsFromHeads);
    next_product(Exchange::kRowsFromHeads, layer, bytes_of_rows);
    make_hidden();
    next_product(Exchange::kHidden, layer, bytes_of_hidden);
    multiply_into_rows(hidden, Config::kHiddenPitch, Config::kHiddenSteps,
                       slice_of(Config::kReduceBuffer, Config::kHiddenSteps), true, Exchange::kRowsFromHidden);
    next_product(Exchange::kRowsFromHidden, layer + 1, bytes_of_rows + told_bytes);
  }
  multiply_output();
}

}  // namespace mvk
