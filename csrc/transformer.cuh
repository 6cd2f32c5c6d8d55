// Transformer stage of a MobileViT block, whole in one kernel:
//
//   X = unfold(W_in x);  L times: X += W_o · MHA(LN(X)) + b_o,  X += W_2 · silu(W_1 · LN(X) + b_1) + b_2;
//   y = silu(W_out · fold(LN(X)) + b_out)
//
//   x      (B, H, W, C)  NHWC      y  (B, H, W, C_out)  NHWC      X  (B·P, N, D): P sequences an image, N tokens each
//
// Unfold and fold are index arithmetic (common/patches.cuh). All that attends to each other lies in one block, so the
// stage needs no second kernel.
//
// A block owns kRows rows of X: whole sequences, each padded to 16 rows or a multiple of 32. Its warps own 16·kRowTiles
// consecutive rows each, every channel of them, from the first product to the last. With kRowTiles = 2:
//
//     rows    0 …  31   warp 0     a tile of 16 rows, g = lane / 4, t = lane % 4:
//     rows   32 …  63   warp 1
//         …                           row g      channels 8j + 2t, 8j + 2t + 1 of every 8-channel tile j
//     rows  224 … 255   warp 7        row g + 8  the same channels, the same lane
//
// that is the layout of mma.sync's A fragment, so a quad of lanes holds a whole row, and X stays in those registers, in
// 16 bits. A LayerNorm is two floats a row: its affine part is folded into the next weights, its mean and deviation are
// applied behind the product (common/linear.cuh). A head's K and V go to shared memory, where all rows of a sequence
// meet; Q, scores and the head's result stay in registers (attention.cuh), and so does the MLP's hidden layer: fc1's 16
// columns after SiLU are fc2's A fragment. The results of all heads wait in shared memory for W_o, each lane's own.
//
// Weights come as a stream of chunks in the order of their use, through a ring of cp.async slots: one block barrier a
// chunk, which is also the barrier between writing a head's K and V and reading them. The packing is
// mobilevit_kernels/native/transformer.py; a table holds where each chunk begins and how long it is.
//
// Where a sequence has more rows than a block, the layers are launches of their own and K and V go through global
// memory
// ("split"): launch 0 computes X and the K and V of layer 0, launch l + 1 the rest of layer l and the K and V of layer
// l + 1. A block then owns rows of one sequence, and takes its keys kRows at a time; the steps are the same. Small
// blocks (kRows = 64) make a small batch fill the GPU in this way; the choice is native/transformer_plan.py.
//
// Bytes: x and y once; every block reads all weights, from L2. Expected to bind: the tensor cores at d ≥ 120, special
// functions (softmax, SiLU) below; with 64 or 128 rows a block the weights from L2.
//
// Above 500 lines: the steps share the rows in registers, and read best in the order in which a row goes through them.
#pragma once

#include "attention.cuh"
#include "common/async_copy.cuh"
#include "common/launch.cuh"
#include "common/linear.cuh"
#include "common/overlap.cuh"
#include "common/patches.cuh"

namespace mvk {

// Sizes that the kernel, its launcher and (by name) its packing share; everything in them is known before the launch.
template <class T, int kDimOf, int kHeadTilesOf, int kRowTilesOf, int kWarpsOf, bool kPaddedOf>
struct TransformerConfig {
  using Type = T;
  static constexpr int kDim = kDimOf;         // channels of a row
  static constexpr bool kPadded = kPaddedOf;  // the rows may have fewer, padded with zeros
  static constexpr int kTiles = kDim / 8;
  static constexpr int kHeadTiles = kHeadTilesOf;  // 8-channel tiles of a head; smaller heads are padded with zeros
  // Tiles of V that one pass of the attention sums up: beside 256 channels there is no room for more.
  static constexpr int kValueTiles = kTiles > 16 && kHeadTiles > 8 ? 8 : kHeadTiles;
  static constexpr int kQueryPanels = ceil_div(kHeadTiles, 2);
  // Where a head's last tile has at most four channels, those of K and V share it. Heads of an instance for one width
  // are four or more: fewer would be wider than their tiles.
  static constexpr int kLastChannels = kPadded ? 0 : kDim / 4 % 8;
  static constexpr bool kJoined = kLastChannels > 0 && kLastChannels <= 4;
  static constexpr int kRowTiles = kRowTilesOf;  // tiles of 16 rows a warp
  static constexpr int kWarps = kWarpsOf;
  static constexpr int kBlocksPerSm = 8 / kWarps;  // with 255 registers a thread
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = kWarps * 16 * kRowTiles;

  // A slot holds kPanels panels of W_q, W_k, W_v or W_out, or as many slabs of W_in or W_o, or kPanels / 2 groups of a
  // panel of W_1 and a slab of W_2. Four halve the barriers; at 144 channels they would take the large block out of
  // 163 KB of shared memory, at 240 the small one out of 99.
  static constexpr int kPanels = kDim <= 120 || kDim == 192 ? 4 : 2;
  static constexpr int kPanelElements = norm_panel_elements(kTiles);
  static constexpr int kSlabElements = slab_elements(kTiles);
  static constexpr int kGroupElements = kPanelElements + kSlabElements;
  static constexpr int kSlotElements = kPanels * (kPanelElements > kSlabElements ? kPanelElements : kSlabElements);
  static constexpr int kGroups = kPanels / 2;
  // Where shared memory is scarcest, less is in flight.
  static constexpr int kSlots = kDim > 240 || (kDim == 192 && kWarps == 4) ? 2 : 3;
  // K-steps of X that the MLP parks in shared memory, where X (2 registers a tile), the sums (4) and what else there is
  // do not fit into 255 registers.
  static constexpr int kParkedSteps = kRowTiles * kTiles > 32 ? 3 : 0;

  static constexpr int kKeyPitch = key_pitch(kHeadTiles);
  static constexpr int kRingBegin = kRows * kKeyPitch * 2;  // bytes; K and V lie before
  static constexpr int kLinesBegin = kRingBegin + kSlots * kSlotElements * 2;
  static constexpr int kHeadsBegin = kLinesBegin + kThreads * kRowTiles * 16;

  // Shared memory of a block: K and V of a head, the ring, the LayerNorm's lines, the results of all heads, which have
  // `tiles` 8-channel tiles together.
  static constexpr int shared_bytes(int tiles) { return kHeadsBegin + kRows * tiles * 16; }

  static_assert(kDim % 8 == 0, "channels come in tiles of 8");
  static_assert(kHeadTiles % kValueTiles == 0, "the passes of the attention are equal");
  static_assert(kRows % kKeyStep == 0, "the key loop takes whole steps");
};

// Where a chunk lies in the stream, in units of 16 bytes: word[0] its begin, word[1] its length.
using ChunkPlace = Words2;

template <class T>
struct TransformerParams {
  Global<const T> x;
  Global<const T> weights;            // the stream
  Global<const std::uint32_t> table;  // ChunkPlace of every chunk in the order of their use
  Global<const float> biases;         // [layer][b_o | b_2][kDim]
  Global<T> y;
  Global<T> rows;                  // split: X between launches, in the order of lanes
  Global<const T> keys_values_in;  // split: [sequence][head][row][K | V] of this layer …
  Global<T> keys_values_out;       // … and of the next
  PatchMap map;
  int in_channels, out_channels, dim;
  int sequence_rows;  // rows of a sequence, padding included
  int block_rows;     // rows of whole sequences in a block
  int heads, hidden_groups;
  int own_head_tiles;           // tiles of a head that hold channels, at most kHeadTiles
  int first_layer, last_layer;  // layers [first, last)
  int first_chunk, end_chunk;
  float epsilon;
  bool split, starts, ends;  // starts: from x; ends: to y
  bool activation;
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    transformer_kernel(const TransformerParams<typename Config::Type> params) {
  using T = typename Config::Type;
  constexpr int kRowTiles = Config::kRowTiles;
  constexpr int kTiles = Config::kTiles;
  constexpr int kHeadTiles = Config::kHeadTiles;
  using Rows = RowFragments<T, kRowTiles, kTiles>;
  using HeadRows = RowFragments<T, kRowTiles, kHeadTiles>;
  using PanelSums = FragmentC[kRowTiles][2];
  using Whole = Constant<16>;  // columns of a panel
  using AllSums = FragmentC[kRowTiles][kTiles];
  constexpr int kKept = kTiles / 2 - Config::kParkedSteps;
  let_next_launch_begin();

  const int warp = shuffle(warp_index(), 0);  // so that the compiler knows it to be the same for all lanes
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const Shared<T> keys_values = shared_region<T>("keys and values", 0, Config::kRows * Config::kKeyPitch);
  const Shared<T> ring = shared_region<T>("ring", Config::kRingBegin, Config::kSlots * Config::kSlotElements);
  const Shared<float> lines = shared_region<float>("lines", Config::kLinesBegin, Config::kThreads * kRowTiles * 4);

  // --- the stream of weights ---
  int next_chunk = params.first_chunk;
  int slot = 0;  // of the chunk that is taken next
  const auto fetch_chunk = [&](int to_slot) {
    if (next_chunk < params.end_chunk) {
      const ChunkPlace place = params.table.template load<ChunkPlace>(2 * next_chunk);
      const int units = static_cast<int>(place.word[1]);
      const std::int64_t source = static_cast<std::int64_t>(place.word[0]) * 8;
#pragma unroll 1
      for (int first = 0; first < units; first += Config::kThreads) {
        const int i = first + thread_index();
        if (i < units) copy_async_16(ring, to_slot * Config::kSlotElements + i * 8, params.weights, source + i * 8);
      }
      ++next_chunk;
    }
    copy_async_commit();
  };
  // The next chunk, there for all. All warps have left the chunk before it, whose slot is filled again.
  const auto take_chunk = [&] {
    copy_async_wait<Config::kSlots - 2>();
    sync_block();
    fetch_chunk(slot == 0 ? Config::kSlots - 1 : slot - 1);
    const Shared<T> chunk = ring.part(slot * Config::kSlotElements, Config::kSlotElements);
    slot = slot + 1 < Config::kSlots ? slot + 1 : 0;
    return chunk;
  };

  // --- rows and pixels ---
  const auto row_of = [&](int m, int half) { return (warp * kRowTiles + m) * 16 + 8 * half + g; };
  // The pixel of a row, −1 where it is padding.
  const auto pixel_of = [&](int row) {
    const int global_row = block_index_x() * params.block_rows + row;
    const int sequence = global_row / params.sequence_rows;
    const int token = global_row % params.sequence_rows;
    const bool exists = row < params.block_rows && token < params.map.tokens && sequence < params.map.sequences;
    return exists ? params.map.pixel_of(sequence, token) : -1;
  };
  const auto clear = [](PanelSums& sums) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) sums[m][0] = sums[m][1] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
  };

  // --- steps ---
  Rows rows;
  // The lines of the next LayerNorm wait in shared memory, each lane's own: registers are scarce while they are needed.
  const auto line_word = [&](int m) { return ((warp * kRowTiles + m) * 32 + lane) * 4; };
  const auto normalize = [&] {
    RowLines<kRowTiles> now;
    layer_norm_lines<Config::kPadded>(now, rows, params.dim, params.epsilon);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        forget(rows.at(m, j, 0));
        forget(rows.at(m, j, 1));
      }
      lines.store(line_word(m), Floats4{{now.scale[m][0], now.scale[m][1], now.shift[m][0], now.shift[m][1]}});
    }
  };
  const auto slab_of = [&](Shared<T> chunk, int step) {
    return chunk.part(step % Config::kPanels * Config::kSlabElements, Config::kSlabElements);
  };
  // sums = X, for a product that is added to X.
  const auto start_sums = [&](AllSums& sums) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          sums[m][j].value[2 * half] = low(rows.at(m, j, half));
          sums[m][j].value[2 * half + 1] = high(rows.at(m, j, half));
        }
      }
    }
  };
  const auto add_bias = [&](AllSums& sums, int bias_row) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const Floats2 bias = params.biases.template load<Floats2>(bias_row * Config::kDim + 8 * j + 2 * t);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][j].value[i] += bias.value[i % 2];
      }
    }
  };
  const auto round_rows = [&](const AllSums& sums) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) rows.round(m, j, sums[m][j]);
    }
  };

  // X = W_in · x. Lane t takes channels 4t … 4t + 3 of 16 with one load; the rows of W_in are packed accordingly.
  const auto multiply_input = [&] {
    AllSums sums;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) sums[m][j] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
    }
    std::int64_t offset[kRowTiles][2];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        offset[m][half] = static_cast<std::int64_t>(pixel_of(row_of(m, half))) * params.in_channels;
      }
    }
    const int steps = ceil_div(params.in_channels, 16);
    FragmentA<T> coming[kRowTiles];
    const auto load_step = [&](int step) {
      const int channel = 16 * step + 4 * t;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Words2 words{{0u, 0u}};
          if (offset[m][half] >= 0 && channel < params.in_channels) {
            words = params.x.template load<Words2>(offset[m][half] + channel);
          }
          coming[m].reg[half] = {words.word[0]};
          coming[m].reg[2 + half] = {words.word[1]};
        }
      }
    };
    load_step(0);
    Shared<T> chunk = ring;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      if (step % Config::kPanels == 0) chunk = take_chunk();
      FragmentA<T> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = coming[m];
      if (step + 1 < steps) load_step(step + 1);
      multiply_slab<kRowTiles, kTiles, T>(sums, a, slab_of(chunk, step));
    }
    round_rows(sums);
  };

  // What a LayerNorm before the product and the bias make of a panel's sums.
  const auto apply_norm = [&](PanelSums& sums, Shared<T> panel, auto columns) {
    using Ends = PanelEnds<decltype(columns)::value>;
    const Ends ends(panel, kTiles);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const Floats4 line = lines.template load<Floats4>(line_word(m));
#pragma unroll
      for (int j = 0; j < Ends::kTiles; ++j) ends.apply(sums[m][j], j, line);
    }
  };
  // A panel of W · LN(X) + b.
  const auto norm_panel = [&](PanelSums& sums, Shared<T> chunk, int panel, auto columns) {
    const Shared<T> part = chunk.part(panel * Config::kPanelElements, Config::kPanelElements);
    clear(sums);
    multiply_panel<kTiles, decltype(columns)::value>(sums, part,
                                                     [&](int m, int step) { return rows.fragment[m][step]; });
    apply_norm(sums, part, columns);
  };

  // Q of one head, in registers.
  const auto make_queries = [&](HeadRows& queries) {
    Shared<T> chunk = ring;
#pragma unroll
    for (int panel = 0; panel < Config::kQueryPanels; ++panel) {
      if (panel % Config::kPanels == 0) chunk = take_chunk();
      PanelSums sums;
      if (panel < kHeadTiles / 2) {
        norm_panel(sums, chunk, panel % Config::kPanels, Whole{});
      } else if constexpr (kHeadTiles % 2 != 0) {
        norm_panel(sums, chunk, panel % Config::kPanels, Constant<Config::kJoined ? 4 : 8>{});  // all that is left
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        queries.round(m, 2 * panel, sums[m][0]);
        if (2 * panel + 1 < kHeadTiles) queries.round(m, 2 * panel + 1, sums[m][1]);
      }
    }
  };

  // Split: the block's rows are those from own_row() on of one sequence; head_row is where a head's K and V begin.
  const auto own_row = [&] { return block_index_x() * params.block_rows % params.sequence_rows; };
  const auto head_row = [&](int head) {
    const int own_sequence = block_index_x() * params.block_rows / params.sequence_rows;
    return static_cast<std::int64_t>(own_sequence * params.heads + head) * params.sequence_rows;
  };

  // K and V of one head, to shared memory or, for the next launch, to global memory.
  const auto make_keys_values = [&](int head) {
    const std::int64_t first_row = params.split ? head_row(head) + own_row() : 0;
    const auto store = [&](int row, int channel, Pair<T> pair) {
      if (params.split) {
        params.keys_values_out.store((first_row + row) * 16 * kHeadTiles + channel, pair);
      } else {
        keys_values.store(row * Config::kKeyPitch + channel, pair);
      }
    };
    const auto pair_of = [](const FragmentC& sums, int half) {
      return make_pair<T>(sums.value[2 * half], sums.value[2 * half + 1]);
    };
    constexpr int kWholePanels = Config::kJoined ? kHeadTiles - 1 : kHeadTiles;
    Shared<T> chunk = ring;
#pragma unroll 1
    for (int panel = 0; panel < kWholePanels; ++panel) {
      if (panel % Config::kPanels == 0) chunk = take_chunk();
      PanelSums sums;
      norm_panel(sums, chunk, panel % Config::kPanels, Whole{});
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int tile = 2 * panel + j;
            const int place = Config::kJoined && tile >= kWholePanels ? tile + 1 : tile;
            store(row_of(m, half), 8 * place + 2 * t, pair_of(sums[m][j], half));
          }
        }
      }
    }
    if constexpr (Config::kJoined) {
      if (kWholePanels % Config::kPanels == 0) chunk = take_chunk();
      PanelSums sums;
      norm_panel(sums, chunk, kWholePanels % Config::kPanels, Constant<8>{});
      // Columns 0 … 3 are K's last channels, 4 … 7 V's; behind both come zeros. While the lanes of K store channels,
      // those of V store zeros: no two meet in a bank.
      const bool of_keys = t < 2;
      const int channel = 8 * (of_keys ? kWholePanels : kWholePanels + kHeadTiles) + t % 2 * 2;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Pair<T> pair = pair_of(sums[m][0], half);
          store(row_of(m, half), channel + (of_keys ? 0 : 4), of_keys ? pair : Pair<T>{0});
          store(row_of(m, half), channel + (of_keys ? 4 : 0), of_keys ? Pair<T>{0} : pair);
        }
      }
    }
  };

  // The heads' results wait in shared memory for W_o: each lane's own fragments, in a place that no other lane touches.
  const int head_tiles = params.heads * params.own_head_tiles;
  const Shared<T> heads =
      shared_region<T>("heads", Config::kHeadsBegin, Config::kWarps * kRowTiles * head_tiles * 32 * 4);
  const auto head_word = [&](int m, int tile) {
    return (((warp * kRowTiles + m) * head_tiles + tile) * 32 + lane) * 4;
  };

  // Split: as many keys of a sequence as the region has rows.
  const auto load_keys_values = [&](int head, int first_key) {
    constexpr int kUnits = 2 * kHeadTiles;  // of 16 bytes a row
    const std::int64_t source = (head_row(head) + first_key) * kUnits * 8;
    sync_block();  // all have left the keys before
#pragma unroll 1
    for (int i = thread_index(); i < Config::kRows * kUnits; i += Config::kThreads) {
      copy_async_16(keys_values, i / kUnits * Config::kKeyPitch + i % kUnits * 8, params.keys_values_in,
                    source + i * 8);
    }
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();
  };

  // The attention of one head, to its place in `heads`. Not split: its K and V are in shared memory, there for all.
  const auto attend = [&](const HeadRows& queries, int head) {
#pragma unroll 1
    for (int value_tile = 0; value_tile < kHeadTiles; value_tile += Config::kValueTiles) {
      Attention<T, kRowTiles, kHeadTiles, Config::kValueTiles> attention;
      attention.start(value_tile, 1.0f);
#pragma unroll 1
      for (int first_key = 0; first_key < (params.split ? params.map.tokens : 1); first_key += Config::kRows) {
        if (params.split) load_keys_values(head, first_key);
        const int rest = params.map.tokens - first_key;
        KeyRange ranges[kRowTiles];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          const int row = (warp * kRowTiles + m) * 16;
          if (params.split) {
            ranges[m] = {0, rest < Config::kRows ? rest : Config::kRows};
          } else if (row < params.block_rows) {
            ranges[m] = {row / params.sequence_rows * params.sequence_rows, params.map.tokens};
          } else {
            ranges[m] = {row, 16};  // behind the last sequence; to itself, so that it holds finite numbers
          }
        }
        attention.attend(queries, keys_values, Config::kRows, ranges);
      }
      const auto means = attention.finish();
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int j = 0; j < Config::kValueTiles; ++j) {
          const int tile = value_tile + j;
          if (tile < params.own_head_tiles) {
            heads.store(head_word(m, head * params.own_head_tiles + tile),
                        Words2{{means.at(m, j, 0).bits, means.at(m, j, 1).bits}});
          }
        }
      }
    }
  };

  // 16-byte places of the lane's own in `heads`, where no heads are waiting.
  const auto parked = [&](int m, int i) { return ((warp * kRowTiles + m) * head_tiles + 2 * i) * 128 + lane * 8; };

  // X = X + W_o · [heads] + b_o
  const auto project_heads = [&](int layer) {
    AllSums sums;
    start_sums(sums);
    Shared<T> chunk = ring;
#pragma unroll 1
    for (int step = 0; step < ceil_div(head_tiles, 2); ++step) {
      if (step % Config::kPanels == 0) chunk = take_chunk();
      FragmentA<T> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          Words2 words{{0u, 0u}};
          if (2 * step + j < head_tiles) words = heads.template load<Words2>(head_word(m, 2 * step + j));
          a[m].reg[2 * j] = {words.word[0]};
          a[m].reg[2 * j + 1] = {words.word[1]};
        }
      }
      multiply_slab<kRowTiles, kTiles, T>(sums, a, slab_of(chunk, step));
    }
    add_bias(sums, 2 * layer);
    round_rows(sums);
  };

  // X += W_2 · silu(W_1 · LN(X) + b_1) + b_2, 16 hidden channels at a time. W_1 and b_1 are halved for the SiLU.
  const auto multiply_mlp = [&](int layer) {
    sync_warp();  // the parked fragments come where other lanes had their heads
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int step = kKept; step < kTiles / 2; ++step) {
        const FragmentA<T>& a = rows.fragment[m][step];
        heads.store(parked(m, step - kKept), Words4{{a.reg[0].bits, a.reg[1].bits, a.reg[2].bits, a.reg[3].bits}});
      }
    }
    AllSums sums;
    start_sums(sums);
    Shared<T> chunk = ring;
#pragma unroll 1
    for (int group = 0; group < params.hidden_groups; ++group) {
      if (group % Config::kGroups == 0) chunk = take_chunk();
      const Shared<T> part = chunk.part(group % Config::kGroups * Config::kGroupElements, Config::kGroupElements);
      PanelSums half_hidden;
      clear(half_hidden);
      multiply_panel<kTiles, 16>(half_hidden, part, [&](int m, int step) {
        if (step < kKept || step == kTiles / 2) return rows.fragment[m][step];
        const Words4 words = heads.template load<Words4>(parked(m, step - kKept));
        return FragmentA<T>{{{words.word[0]}, {words.word[1]}, {words.word[2]}, {words.word[3]}}};
      });
      apply_norm(half_hidden, part, Whole{});
      RowFragments<T, kRowTiles, 2> hidden;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          for (int i = 0; i < 4; ++i) half_hidden[m][j].value[i] = silu_of_half(half_hidden[m][j].value[i]);
          hidden.round(m, j, half_hidden[m][j]);
        }
      }
      FragmentA<T> a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = hidden.fragment[m][0];
      multiply_slab<kRowTiles, kTiles, T>(sums, a, part.part(Config::kPanelElements, Config::kSlabElements));
    }
    add_bias(sums, 2 * layer + 1);
    round_rows(sums);
  };

  // y = silu(W_out · LN(X) + b_out). W_out and b_out are halved; its columns are packed so that lane t holds channels
  // 4t … 4t + 3 of 16.
  const auto multiply_output = [&] {
    std::int64_t offset[kRowTiles][2];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        offset[m][half] = static_cast<std::int64_t>(pixel_of(row_of(m, half))) * params.out_channels;
      }
    }
    Shared<T> chunk = ring;
#pragma unroll 1
    for (int panel = 0; panel < ceil_div(params.out_channels, 16); ++panel) {
      if (panel % Config::kPanels == 0) chunk = take_chunk();
      PanelSums sums;
      norm_panel(sums, chunk, panel % Config::kPanels, Whole{});
      const int channel = 16 * panel + 4 * t;
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float half = sums[m][j].value[i];
            sums[m][j].value[i] = params.activation ? silu_of_half(half) : 2.0f * half;
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (offset[m][half] >= 0 && channel < params.out_channels) {
            Words2 words;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              words.word[j] = make_pair<T>(sums[m][j].value[2 * half], sums[m][j].value[2 * half + 1]).bits;
            }
            params.y.store(offset[m][half] + channel, words);
          }
        }
      }
    }
  };

  // Split: X between launches, one 16-byte word a fragment, in the order of lanes.
  const auto row_word = [&](int m, int fragment) {
    constexpr int kFragments = (kTiles + 1) / 2;
    const std::int64_t tile = (static_cast<std::int64_t>(block_index_x()) * Config::kWarps + warp) * kRowTiles + m;
    return ((tile * kFragments + fragment) * 32 + lane) * 8;
  };
  const auto load_rows = [&] {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int fragment = 0; fragment < (kTiles + 1) / 2; ++fragment) {
        const Words4 words = params.rows.template load<Words4>(row_word(m, fragment));
#pragma unroll
        for (int i = 0; i < 4; ++i) rows.fragment[m][fragment].reg[i] = {words.word[i]};
      }
    }
  };
  const auto store_rows = [&] {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int fragment = 0; fragment < (kTiles + 1) / 2; ++fragment) {
        Words4 words{};
#pragma unroll
        for (int i = 0; i < (kTiles - 2 * fragment < 2 ? 2 : 4); ++i) {
          words.word[i] = rows.fragment[m][fragment].reg[i].bits;
        }
        params.rows.store(row_word(m, fragment), words);
      }
    }
  };

  for (int i = 0; i < Config::kSlots - 1; ++i) fetch_chunk(i);
  wait_for_earlier_launches();
  if (params.starts) {
    multiply_input();
  } else {
    load_rows();
  }
  normalize();
#pragma unroll 1
  for (int layer = params.first_layer; layer < params.last_layer; ++layer) {
#pragma unroll 1
    for (int head = 0; head < params.heads; ++head) {
      // The first chunk of K and V waits for all warps to leave the head before, the first of Q for K and V.
      if (!params.split) make_keys_values(head);
      HeadRows queries;
      make_queries(queries);
      attend(queries, head);
    }
    project_heads(layer);
    normalize();
    multiply_mlp(layer);
    normalize();
  }
  if (params.ends) {
    multiply_output();
  } else {
#pragma unroll 1
    for (int head = 0; head < params.heads; ++head) make_keys_values(head);
    store_rows();
  }
}

}  // namespace mvk
