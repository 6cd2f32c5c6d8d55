// Transformer stage of a MobileViT block in one kernel, like transformer.cuh, with its products on wgmma (sm_90a).
//
// A block owns kRows = 64 · kWarpgroups rows of X, whole sequences of exactly kTokens rows; a warpgroup's 64 rows are
// those of a wgmma, and 16 of them each of its warps':
//
//     rows   0 …  63   warpgroup 0   warp 0: rows 0 … 15, warp 1: rows 16 … 31, …
//     rows  64 … 127   warpgroup 1
//         …                           lane (g, t) of a warp holds of its sums rows g and g + 8, columns 8j + 2t and the
//                                     next, as with mma.sync
//
// What products read lies in shared memory in planes of 8 channels, one 16-byte word a row: X, the heads' results, K
// and V. Eight rows of a plane are a core matrix of wgmma without swizzling, and the 4-byte stores of a warp's sums
// cover one in all 32 banks. A sequence's K is, in planes, B of Q·Kᵀ, and its V is the transposed B of P·V.
//
// X stays in shared memory, in 16 bits, and is A of the products behind a LayerNorm as it is: mean and deviation are
// applied to the sums (common/linear.cuh). Q, scores, exponentials and the MLP's hidden layer stay in registers, as A.
//
// Weights come as a stream of chunks in the order of their use, through a ring of three or four slots, each chunk in
// planes of 8 k: [plane][column][8 k], behind a LayerNorm followed by the biases and the sums of the columns, in
// floats:
//
//     W_in          kDim columns, kDepth k-steps a chunk, until all channels are read
//     L times:      a head's [W_k | W_v | W_q], kDepth k-steps a chunk, biases and sums behind the last one, four
//     times;
//                   W_o, kDepth k-steps a chunk; kHidden columns of W_1, then kHidden rows of W_2, until all are read
//     W_out         kHidden columns a chunk
//
// The packing is mobilevit_kernels/native/transformer_wgmma.py.
//
// No barrier of the block stands in the way: warpgroups drift apart, by up to as many chunks as there are slots, so
// that one multiplies while another works on its sums.
//   - A chunk is one bulk copy, which ends a phase of its slot's mbarrier `full`; every warp waits for that. The last
//     warp to leave a slot, by a count of those that have, fills it with the chunk kSlots further on.
//   - X and the heads' results are written and read, as A, by one warpgroup: a barrier of its own lies between.
//   - K and V of a sequence of 64 tokens are one warpgroup's, too; of 16, one warp's. Of 256 they are the block's:
//     every warp arrives at `stored` when it has written a head's, and waits for it before it reads. Where there is
//     memory for K and V of two heads, that is enough: who has waited knows that all have read the head before. Else
//     every warp arrives at `read` as well, and waits for that before it writes the next head's.
//
// Registers: 128 a thread with four warpgroups, of which W_2's sums take kDim / 2, and a chunk's hidden columns
// 3/4 · kHidden; at kDim ≥ 192 they leave room for two warpgroups.
#pragma once

#include "attention.cuh"
#include "common/launch.cuh"
#include "common/linear.cuh"
#include "common/mbarrier.cuh"
#include "common/overlap.cuh"
#include "common/patches.cuh"
#include "common/wgmma.cuh"

namespace mvk {

MVK_HOST_DEVICE constexpr int larger(int a, int b) { return a > b ? a : b; }

// kHiddenOf and kDepthOf: how the weights are cut, see above.
template <class T, int kDimOf, int kTokensOf, int kWarpgroupsOf, int kHiddenOf, int kDepthOf>
struct TransformerWgmmaConfig {
  using Type = T;
  static constexpr int kDim = kDimOf;        // channels of a row
  static constexpr int kTokens = kTokensOf;  // rows of a sequence
  static constexpr int kHidden = kHiddenOf;
  static constexpr int kDepth = kDepthOf;
  static constexpr int kHeads = 4;
  static constexpr int kHeadDim = kDim / kHeads;
  static constexpr int kTiles = kDim / 8;
  static constexpr int kHeadTiles = ceil_div(kHeadDim, 8);  // heads are padded with zeros
  static constexpr int kSteps = ceil_div(kDim, 16);         // k-steps of a row
  static constexpr int kWarps = 4 * kWarpgroupsOf;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr bool kInWarp = kTokens == 16;  // a sequence is a warp's rows

  // Elements of the chunks.
  static constexpr int kHeadColumns = 3 * 8 * kHeadTiles;
  static constexpr int kHeadElements = kHeadColumns * 16 * kDepth;
  static constexpr int kHeadEnds = kHeadColumns * 4;
  static constexpr int kSlabElements = kDim * 16 * kDepth;
  static constexpr int kPanelFragments = kHidden * 16 * kSteps;
  static constexpr int kPanelElements = kPanelFragments + kHidden * 4;
  static constexpr int kReduceElements = kDim * kHidden;
  static constexpr int kSlotElements =
      larger(larger(kHeadElements + kHeadEnds, kSlabElements), larger(kPanelElements, kReduceElements));

  // Chunks of a product, and of a layer.
  static constexpr int kDepthChunks = kSteps / kDepth;
  static constexpr int kGroups = 2 * kDim / kHidden;
  static constexpr int kLayerChunks = (kHeads + 1) * kDepthChunks + 2 * kGroups;
  static constexpr int kLayerElements = kHeads * (kDepthChunks * kHeadElements + kHeadEnds) +
                                        kDepthChunks * kSlabElements + kGroups * (kPanelElements + kReduceElements);

  // Shared memory, in bytes: the second K and V and the fourth slot where they fit.
  static constexpr int kPlane = kRows * 8;  // elements
  static constexpr int kHeadBytes = kHeadTiles * kPlane * 2;
  static constexpr int kBarrierBytes = 96;
  static constexpr int kLimit = 232448;
  static constexpr int kHeadsBegin = kTiles * kPlane * 2;
  static constexpr int kKeysBegin = 2 * kHeadsBegin;
  static constexpr int kLeast = kKeysBegin + (kInWarp ? 1 : 2) * kHeadBytes + 3 * kSlotElements * 2 + kBarrierBytes;
  static constexpr int kBuffers = kTokens > 64 && kLeast + 2 * kHeadBytes <= kLimit ? 2 : 1;  // of K and V
  static constexpr int kSlots = kLeast + (kBuffers - 1) * 2 * kHeadBytes + kSlotElements * 2 <= kLimit ? 4 : 3;
  static constexpr int kValuesBegin = kKeysBegin + (kInWarp ? 0 : kBuffers * kHeadBytes);
  static constexpr int kRingBegin = kValuesBegin + kBuffers * kHeadBytes;
  static constexpr int kBarriersBegin = kRingBegin + kSlots * kSlotElements * 2;
  static constexpr int kBarriers = kSlots + 2;  // `full` of each slot, then `stored` and `read`
  static constexpr int kCountsBegin = round_up(kBarriersBegin + 8 * kBarriers, 16);
  static constexpr int kSharedBytes = kCountsBegin + 4 * kSlots;

  static_assert(kDim % 8 == 0 && kHeadDim % 2 == 0, "channels come in tiles of 8, those of a head in pairs");
  static_assert(kSteps % kDepth == 0 && 2 * kDim % kHidden == 0, "chunks are equal");
  static_assert(kHidden % 16 == 0, "hidden columns are k-steps of the next product");
  static_assert(kTokens == 16 || kTokens == 64 || kTokens == kRows,
                "a sequence is a warp's, a warpgroup's or a block's");
  static_assert(kSlotElements % 8 == 0 && kHeads % 2 == 0, "copies are aligned; a layer leaves parities as they were");
  static_assert(kSharedBytes <= kLeast + (kBuffers - 1) * 2 * kHeadBytes + (kSlots - 3) * kSlotElements * 2,
                "kBarrierBytes are enough");
};

template <class T>
struct TransformerWgmmaParams {
  Global<const T> x;
  Global<const T> weights;
  Global<const float> biases;  // [layer][b_o | b_2][kDim]
  Global<T> y;
  PatchMap map;
  int in_channels, out_channels, layers;
  int in_chunks, out_chunks;
  float epsilon;
  bool activation;
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    transformer_wgmma_kernel(const TransformerWgmmaParams<typename Config::Type> params) {
  if constexpr (!wgmma_exists()) return;
  using T = typename Config::Type;
  constexpr int kTiles = Config::kTiles;
  constexpr int kHeadTiles = Config::kHeadTiles;
  constexpr int kPlane = Config::kPlane;
  constexpr int kQuerySteps = ceil_div(kHeadTiles, 2);
  using AllSums = FragmentC[kTiles];
  using HeadSums = FragmentC[3 * kHeadTiles];
  using HiddenSums = FragmentC[Config::kHidden / 8];
  using HeadRows = RowFragments<T, 1, kHeadTiles>;
  let_next_launch_begin();

  const int warp = shuffle(warp_index(), 0);  // so that the compiler knows it to be the same for all lanes
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const Shared<T> rows = shared_region<T>("rows", 0, kTiles * kPlane);
  const Shared<T> heads = shared_region<T>("heads", Config::kHeadsBegin, kTiles * kPlane);
  const Shared<T> keys = shared_region<T>("keys", Config::kKeysBegin, Config::kBuffers * kHeadTiles * kPlane);
  const Shared<T> values = shared_region<T>("values", Config::kValuesBegin, Config::kBuffers * kHeadTiles * kPlane);
  const Shared<T> ring = shared_region<T>("ring", Config::kRingBegin, Config::kSlots * Config::kSlotElements);
  const auto barriers = shared_region<std::uint64_t>("barriers", Config::kBarriersBegin, Config::kBarriers);
  const auto left = shared_region<std::uint32_t>("left", Config::kCountsBegin, Config::kSlots);
  constexpr int kStored = Config::kSlots;
  constexpr int kRead = Config::kSlots + 1;

  // --- the stream of weights ---
  const int layer_chunks_end = params.in_chunks + params.layers * Config::kLayerChunks;
  struct Piece {
    int begin, elements;  // of the stream
  };
  const auto piece_of = [&](int chunk) -> Piece {
    if (chunk < params.in_chunks) return {chunk * Config::kSlabElements, Config::kSlabElements};
    int begin = params.in_chunks * Config::kSlabElements;
    if (chunk >= layer_chunks_end) {
      begin += params.layers * Config::kLayerElements + (chunk - layer_chunks_end) * Config::kPanelElements;
      return {begin, Config::kPanelElements};
    }
    begin += (chunk - params.in_chunks) / Config::kLayerChunks * Config::kLayerElements;
    int place = (chunk - params.in_chunks) % Config::kLayerChunks;
    constexpr int kOfAHead = Config::kDepthChunks * Config::kHeadElements + Config::kHeadEnds;
    if (place < Config::kHeads * Config::kDepthChunks) {
      const int part = place % Config::kDepthChunks;
      begin += place / Config::kDepthChunks * kOfAHead + part * Config::kHeadElements;
      return {begin, Config::kHeadElements + (part == Config::kDepthChunks - 1 ? Config::kHeadEnds : 0)};
    }
    begin += Config::kHeads * kOfAHead;
    place -= Config::kHeads * Config::kDepthChunks;
    if (place < Config::kDepthChunks) return {begin + place * Config::kSlabElements, Config::kSlabElements};
    begin += Config::kDepthChunks * Config::kSlabElements;
    place -= Config::kDepthChunks;
    begin += place / 2 * (Config::kPanelElements + Config::kReduceElements);
    if (place % 2 == 0) return {begin, Config::kPanelElements};
    return {begin + Config::kPanelElements, Config::kReduceElements};
  };
  // By one warp of the block.
  const auto fetch_chunk = [&](int number, int to_slot) {
    if (number >= layer_chunks_end + params.out_chunks) return;
    const Piece piece = piece_of(number);
    if (lane == 0) {
      barrier_arrive_expecting(barriers, to_slot, 2 * piece.elements);
      copy_bulk(ring, to_slot * Config::kSlotElements, params.weights, piece.begin, 2 * piece.elements, barriers,
                to_slot);
    }
  };
  unsigned number = 0;  // of this warp's chunk; one register for slot and parity, too
  const auto take_chunk = [&] {
    const int slot = static_cast<int>(number % Config::kSlots);
    barrier_wait(barriers, slot, static_cast<int>(number / Config::kSlots % 2));
    return ring.part(slot * Config::kSlotElements, Config::kSlotElements);
  };
  // All products and loads of this warp that read the chunk are done.
  const auto leave_chunk = [&] {
    sync_warp();
    const int slot = static_cast<int>(number % Config::kSlots);
    // A vote, so that the compiler works out what to fetch in registers of the warp: lanes have none to spare.
    if (any_lane(lane == 0 && count_arrive(left, slot, Config::kWarps))) {
      fetch_chunk(static_cast<int>(number) + Config::kSlots, slot);
    }
    ++number;
  };
  // What this warpgroup has stored is there for its products.
  const auto publish_rows = [&] {
    publish_matrices();
    sync_warpgroup();
  };

  // --- rows and pixels ---
  const auto row_of = [&](int half) { return warp * 16 + 8 * half + g; };
  // The pixel of a row, −1 behind the last sequence.
  const auto pixel_of = [&](int row) {
    const int sequence = block_index_x() * (Config::kRows / Config::kTokens) + row / Config::kTokens;
    return sequence < params.map.sequences ? params.map.pixel_of(sequence, row % Config::kTokens) : -1;
  };
  // Where the pair of channels 8 · tile + 2t of this lane's rows lies in planes.
  const auto pair_place = [&](int tile, int half) { return tile * kPlane + row_of(half) * 8 + 2 * t; };
  const auto pair_of = [](const FragmentC& sums, int half) {
    return make_pair<T>(sums.value[2 * half], sums.value[2 * half + 1]);
  };

  // --- products ---
  // The 16 rows · 8 · kCount columns of a chunk from k-step `step` on, as B.
  const auto columns_of = [](Shared<T> chunk, int step, auto count) {
    constexpr int kColumns = 8 * decltype(count)::value;
    return MatrixInShared<T>{chunk, step * 16 * kColumns, 64, 8 * kColumns};
  };
  // sums += the warpgroup's rows in `map`, k-steps from first_step on, · chunk; the first k-step of all sets them. Of
  // an odd number of planes the last one stands in for the next: its weights are zero.
  const auto multiply_rows = [&](auto& sums, Shared<T> map, int first_step, Shared<T> chunk, auto steps) {
    using Count = Constant<sizeof(sums) / sizeof(FragmentC)>;
    pin(sums);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < decltype(steps)::value; ++s) {
      const int step = first_step + s;
      const MatrixInShared<T> a{map, 2 * step * kPlane + warp / 4 * 512, 64, 2 * step + 1 < kTiles ? kPlane : 0};
      wgmma(sums, a, columns_of(chunk, s, Count{}), step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(sums);
  };

  // --- LayerNorm ---
  Floats4 line{};  // of the next one: scale of rows g and g + 8, then their shift
  // What a LayerNorm before the product and the bias make of its sums; `ends` is where biases and sums begin.
  const auto apply_norm = [&](auto& sums, Shared<T> chunk, int ends) {
    constexpr int kCount = sizeof(sums) / sizeof(FragmentC);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int place = ends + 2 * (8 * j + 2 * t);
      const Floats2 bias = chunk.template load<Floats2>(place);
      const Floats2 column_sum = chunk.template load<Floats2>(place + 2 * 8 * kCount);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float offset = multiply_add(line.value[2 + i / 2], column_sum.value[i % 2], bias.value[i % 2]);
        sums[j].value[i] = multiply_add(sums[j].value[i], line.value[i / 2], offset);
      }
    }
  };
  // X = sums, where `finish` has had each tile of them, and the line of the LayerNorm behind it. No product of the
  // warpgroup reads X any more.
  const auto keep_rows = [&](AllSums& sums, const auto& finish) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      finish(sums[j], j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Pair<T> rounded = pair_of(sums[j], half);
        rows.store(pair_place(j, half), rounded);
        sums[j].value[2 * half] = low(rounded);
        sums[j].value[2 * half + 1] = high(rounded);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto value_of = [&](int tile, int i) { return sums[tile].value[2 * half + i]; };
      layer_norm_line<false, kTiles>(line.value[half], line.value[2 + half], value_of, Config::kDim, params.epsilon);
    }
    publish_rows();
  };
  // X += sums + bias.
  const auto add_to_rows = [&](AllSums& sums, int bias_row) {
    keep_rows(sums, [&](FragmentC& tile, int j) {
      const Floats2 bias = params.biases.template load<Floats2>(bias_row * Config::kDim + 8 * j + 2 * t);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Pair<T> before = rows.template load<Pair<T>>(pair_place(j, half));
        tile.value[2 * half] += low(before) + bias.value[0];
        tile.value[2 * half + 1] += high(before) + bias.value[1];
      }
    });
  };

  // --- steps ---
  // X = W_in · x. Lane t takes channels 4t … 4t + 3 of 16 with one load; the rows of W_in are packed accordingly.
  const auto multiply_input = [&] {
    AllSums sums;
    std::int64_t offset[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      offset[half] = static_cast<std::int64_t>(pixel_of(row_of(half))) * params.in_channels;
    }
#pragma unroll 1
    for (int first = 0; first < params.in_chunks; ++first) {
      FragmentA<T> a[Config::kDepth];
#pragma unroll
      for (int s = 0; s < Config::kDepth; ++s) {
        const int channel = 16 * (first * Config::kDepth + s) + 4 * t;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Words2 words{{0u, 0u}};
          if (offset[half] >= 0 && channel < params.in_channels) {
            words = params.x.template load<Words2>(offset[half] + channel);
          }
          a[s].reg[half] = {words.word[0]};
          a[s].reg[2 + half] = {words.word[1]};
        }
      }
      const Shared<T> chunk = take_chunk();
      pin(sums);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < Config::kDepth; ++s) {
        wgmma(sums, a[s], columns_of(chunk, s, Constant<kTiles>{}), first > 0 || s > 0);
      }
      wgmma_commit();
      wgmma_wait<0>();
      pin(sums);
      leave_chunk();
    }
    keep_rows(sums, [](FragmentC&, int) {});
  };

  // A head's K, V and Q, in this order.
  const auto project_head = [&](HeadSums& sums) {
#pragma unroll
    for (int i = 0; i < Config::kDepthChunks; ++i) {
      const Shared<T> chunk = take_chunk();
      multiply_rows(sums, rows, i * Config::kDepth, chunk, Constant<Config::kDepth>{});
      if (i == Config::kDepthChunks - 1) apply_norm(sums, chunk, Config::kHeadElements);
      leave_chunk();
    }
  };
  const auto round_tiles = [](HeadRows& to, const HeadSums& sums, int first) {
    if constexpr (kHeadTiles % 2 != 0) {
      to.fragment[0][kQuerySteps - 1].reg[2] = to.fragment[0][kQuerySteps - 1].reg[3] = {0u};
    }
#pragma unroll
    for (int j = 0; j < kHeadTiles; ++j) to.round(0, j, sums[first + j]);
  };
  // A head's result, to where W_o reads it: heads lie without gaps.
  const auto store_head = [&](const HeadRows& result, int head) {
#pragma unroll
    for (int j = 0; j < kHeadTiles; ++j) {
      const int channel = head * Config::kHeadDim + 8 * j + 2 * t;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (8 * j + 2 * t < Config::kHeadDim) {
          heads.store(channel / 8 * kPlane + row_of(half) * 8 + channel % 8, result.at(0, j, half));
        }
      }
    }
  };
  const auto all_groups = [](int, int) { return true; };

  // One lane arrives for its warp.
  const auto arrive = [&](int barrier) {
    sync_warp();
    if (lane == 0) barrier_arrive(barriers, barrier);
  };
  // The attention of a head over the sequences of the block, 64 keys at a time.
  const auto attend = [&](int head) {
    constexpr bool kOfBlock = Config::kTokens > 64;
    const int parity_of_head = head % 2;
    const int buffer = Config::kBuffers == 1 ? 0 : head % 2 * kHeadTiles * kPlane;
    HeadRows queries;
    {
      HeadSums sums;
      project_head(sums);
      if constexpr (!kOfBlock) sync_warpgroup();
      if constexpr (kOfBlock && Config::kBuffers == 1) barrier_wait(barriers, kRead, parity_of_head ^ 1);
#pragma unroll
      for (int j = 0; j < kHeadTiles; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          keys.store(buffer + pair_place(j, half), pair_of(sums[j], half));
          values.store(buffer + pair_place(j, half), pair_of(sums[kHeadTiles + j], half));
        }
      }
      round_tiles(queries, sums, 2 * kHeadTiles);
    }
    if constexpr (kOfBlock) {
      publish_matrices();
      arrive(kStored);
      barrier_wait(barriers, kStored, parity_of_head);
    } else {
      publish_rows();
    }
    FragmentC sums[1][kHeadTiles];
#pragma unroll
    for (int j = 0; j < kHeadTiles; ++j) sums[0][j] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
    OnlineSoftmax<1> softmax;
    softmax.start(1.0f);
    const int first_key = warp * 16 / Config::kTokens * Config::kTokens;
#pragma unroll 1
    for (int key = first_key; key < first_key + Config::kTokens; key += 64) {
      FragmentC scores[1][8];
      pin(scores[0]);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kQuerySteps; ++s) {
        // Behind an odd number of planes Q is zero, whatever stands in for K.
        const int next_plane = 2 * s + 1 < kHeadTiles ? kPlane : 0;
        wgmma(scores[0], queries.fragment[0][s],
              MatrixInShared<T>{keys, buffer + 2 * s * kPlane + key * 8, 64, next_plane}, s > 0);
      }
      wgmma_commit();
      wgmma_wait<0>();
      pin(scores[0]);
      FragmentA<T> exponentials[1][4];
      softmax.step(exponentials, sums, scores, all_groups);
      pin(sums[0]);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        wgmma(sums[0], exponentials[0][s], MatrixInShared<T, true>{values, buffer + (key + 16 * s) * 8, kPlane, 64});
      }
      wgmma_commit();
      wgmma_wait<0>();
      pin(sums[0]);
    }
    if constexpr (kOfBlock && Config::kBuffers == 1) arrive(kRead);
    store_head(softmax.template means<T>(sums), head);
  };

  // The same where a warp's rows are a sequence: 16 keys are too few for wgmma. A C fragment of K is, rounded, the B
  // fragment of Kᵀ; V's is not, and goes through shared memory.
  const auto attend_in_warp = [&](int head) {
    HeadSums projected;
    project_head(projected);
    HeadRows own_keys;
    HeadRows queries;
    round_tiles(own_keys, projected, 0);
    round_tiles(queries, projected, 2 * kHeadTiles);
#pragma unroll
    for (int j = 0; j < kHeadTiles; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        values.store(pair_place(j, half), pair_of(projected[kHeadTiles + j], half));
      }
    }
    sync_warp();
    FragmentC scores[1][2] = {};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int s = 0; s < kHeadTiles / 2; ++s) {
        mma_m16n8k16(scores[0][n], queries.fragment[0][s],
                     FragmentB<T>{{own_keys.at(0, 2 * s, n), own_keys.at(0, 2 * s + 1, n)}});
      }
      if constexpr (kHeadTiles % 2 != 0) {
        mma_m16n8k8(scores[0][n], queries.fragment[0][kHeadTiles / 2],
                    FragmentB<T>{{own_keys.at(0, kHeadTiles - 1, n), {}}});
      }
    }
    FragmentC sums[1][kHeadTiles] = {};
    OnlineSoftmax<1> softmax;
    softmax.start(1.0f);
    FragmentA<T> exponentials[1][1];
    softmax.step(exponentials, sums, scores, all_groups);
#pragma unroll
    for (int j = 0; j < kHeadTiles; j += 2) {
      // Channels of tile j at keys 0 … 7 and 8 … 15, then of tile j + 1, if there is one.
      const int tile = j + 1 < kHeadTiles ? j + lane / 16 : j;
      Pair<T> words[4];
      load_matrix_x4_transposed(words, values, tile * kPlane + (warp * 16 + lane % 16) * 8);
      mma_m16n8k16(sums[0][j], exponentials[0][0], FragmentB<T>{{words[0], words[1]}});
      if (j + 1 < kHeadTiles) mma_m16n8k16(sums[0][j + 1], exponentials[0][0], FragmentB<T>{{words[2], words[3]}});
    }
    store_head(softmax.template means<T>(sums), head);
  };

  // X += W_o · [heads] + b_o
  const auto project_heads = [&](int layer) {
    publish_rows();
    AllSums sums;
#pragma unroll
    for (int i = 0; i < Config::kDepthChunks; ++i) {
      multiply_rows(sums, heads, i * Config::kDepth, take_chunk(), Constant<Config::kDepth>{});
      leave_chunk();
    }
    add_to_rows(sums, 2 * layer);
  };

  // kHidden columns of half of W · LN(X) + b.
  const auto multiply_panel_of = [&](HiddenSums& sums) {
    const Shared<T> chunk = take_chunk();
    multiply_rows(sums, rows, 0, chunk, Constant<Config::kSteps>{});
    apply_norm(sums, chunk, Config::kPanelFragments);
    leave_chunk();
  };

  // X += W_2 · silu(W_1 · LN(X) + b_1) + b_2, kHidden hidden channels at a time. W_1 and b_1 are halved for the SiLU.
  const auto multiply_mlp = [&](int layer) {
    AllSums sums;
#pragma unroll 1
    for (int group = 0; group < Config::kGroups; ++group) {
      RowFragments<T, 1, Config::kHidden / 8> hidden;
      {
        HiddenSums half_hidden;
        multiply_panel_of(half_hidden);
#pragma unroll
        for (int j = 0; j < Config::kHidden / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) half_hidden[j].value[i] = silu_of_half(half_hidden[j].value[i]);
          hidden.round(0, j, half_hidden[j]);
        }
      }
      const Shared<T> chunk = take_chunk();
      pin(sums);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < Config::kHidden / 16; ++s) {
        wgmma(sums, hidden.fragment[0][s], columns_of(chunk, s, Constant<kTiles>{}), group > 0 || s > 0);
      }
      wgmma_commit();
      wgmma_wait<0>();
      pin(sums);
      leave_chunk();
    }
    sync_warpgroup();
    add_to_rows(sums, 2 * layer + 1);
  };

  // y = silu(W_out · LN(X) + b_out). W_out and b_out are halved; its columns are packed so that lane t holds channels
  // 4t … 4t + 3 of 16.
  const auto multiply_output = [&] {
    std::int64_t offset[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      offset[half] = static_cast<std::int64_t>(pixel_of(row_of(half))) * params.out_channels;
    }
#pragma unroll 1
    for (int panel = 0; panel < params.out_chunks; ++panel) {
      HiddenSums sums;
      multiply_panel_of(sums);
#pragma unroll
      for (int j = 0; j < Config::kHidden / 8; j += 2) {
        const int channel = panel * Config::kHidden + 8 * j + 4 * t;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Words2 words;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            FragmentC& of = sums[j + i];
#pragma unroll
            for (int k = 2 * half; k < 2 * half + 2; ++k) {
              of.value[k] = params.activation ? silu_of_half(of.value[k]) : 2.0f * of.value[k];
            }
            words.word[i] = pair_of(of, half).bits;
          }
          if (offset[half] >= 0 && channel < params.out_channels) {
            params.y.store(offset[half] + channel, words);
          }
        }
      }
    }
  };

  if (thread_index() == 0) {
    for (int i = 0; i < Config::kSlots; ++i) {
      barrier_init(barriers, i, 1);
      count_init(left, i);
    }
    barrier_init(barriers, kStored, Config::kWarps);
    barrier_init(barriers, kRead, Config::kWarps);
    publish_barriers();
    for (int i = 0; i < Config::kSlots; ++i) fetch_chunk(i, i);
  }
  sync_block();
  wait_for_earlier_launches();
  multiply_input();
#pragma unroll 1
  for (int layer = 0; layer < params.layers; ++layer) {
#pragma unroll 1
    for (int head = 0; head < Config::kHeads; ++head) {
      if constexpr (Config::kInWarp) {
        attend_in_warp(head);
      } else {
        attend(head);
      }
    }
    project_heads(layer);
    multiply_mlp(layer);
  }
  multiply_output();
}

}  // namespace mvk
