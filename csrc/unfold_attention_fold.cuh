// Attention across patches on a projected map: y = fold(softmax(q·kᵀ·scale)·v), q, k, v = unfold(qkv).
//
//   qkv  (B, H, W, 3·D)  NHWC, channels q, k, v, each (heads, head_dim)        y  (B, H, W, D)  NHWC
//
// Unfold and fold are index arithmetic (common/patches.cuh). A block owns 64 rows (queries) of one sequence and one
// head, each of its four warps 16 of them as in attention.cuh, and walks over the sequence's keys, 64 at a time: gather
// K and V of 64 pixels into shared memory, barrier, attend, barrier.
//
// The scores are scaled in float32 behind the product, so q is not rounded again; only its sign or zero is in q.
//
// Bytes: q and y once, k and v once a block, from L2 but for the first. Expected to bind: device memory at small N,
// special functions (one exponential a score) at N ≥ 256.
#pragma once

#include "attention.cuh"
#include "common/launch.cuh"
#include "common/overlap.cuh"
#include "common/patches.cuh"

namespace mvk {

template <class T, int kHeadTilesOf>
struct UnfoldAttentionFoldConfig {
  using Type = T;
  static constexpr int kHeadTiles = kHeadTilesOf;  // 8-channel tiles of a head; smaller heads are padded with zeros
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeyPitch = key_pitch(kHeadTiles);
  static constexpr int kSharedBytes = kRows * kKeyPitch * 2;

  static_assert(kRows % kKeyStep == 0, "the key loop takes whole steps");
};

template <class T>
struct UnfoldAttentionFoldParams {
  Global<const T> qkv;
  Global<T> y;
  PatchMap map;
  int dim, head_dim;
  int row_tiles;       // blocks of a sequence
  float scale;         // |scale| · log2 e
  float query_factor;  // the sign of the scale, or 0
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    unfold_attention_fold_kernel(const UnfoldAttentionFoldParams<typename Config::Type> params) {
  using T = typename Config::Type;
  constexpr int kHeadTiles = Config::kHeadTiles;
  constexpr int kPairs = 8 * kHeadTiles;  // of K and V of one key
  let_next_launch_begin();
  wait_for_earlier_launches();

  const int warp = shuffle(warp_index(), 0);  // so that the compiler knows it to be the same for all lanes
  const int g = lane_index() / 4;
  const int t = lane_index() % 4;
  const int sequence = block_index_x() / params.row_tiles;
  const int first_row = block_index_x() % params.row_tiles * Config::kRows;
  const int first_channel = block_index_y() * params.head_dim;
  const Shared<T> keys_values = shared_region<T>("keys and values", 0, Config::kRows * Config::kKeyPitch);

  // Where the channels of this head begin in a token's pixel; the token has to be one of the sequence.
  const auto channels_of = [&](int token, int channels, int first) {
    return static_cast<std::int64_t>(params.map.pixel_of(sequence, token)) * channels + first + first_channel;
  };
  const auto row_of = [&](int half) { return first_row + warp * 16 + 8 * half + g; };

  const auto load_queries = [&] {
    RowFragments<T, 1, kHeadTiles> queries;
    const Pair<T> factor = make_pair<T>(params.query_factor, params.query_factor);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool valid = row_of(half) < params.map.tokens;
      const std::int64_t offset = valid ? channels_of(row_of(half), 3 * params.dim, 0) : 0;
#pragma unroll
      for (int j = 0; j < kHeadTiles; ++j) {
        const int channel = 8 * j + 2 * t;
        Pair<T> pair{0u};
        if (valid && channel < params.head_dim) pair = params.qkv.template load<Pair<T>>(offset + channel);
        queries.at(0, j, half) = mul(pair, factor);
      }
    }
    return queries;
  };

  // Neighbouring threads take neighbouring pairs of channels; what is no key or no channel becomes zero.
  const auto load_keys_values = [&](int first_key) {
#pragma unroll 1
    for (int i = thread_index(); i < Config::kRows * kPairs; i += Config::kThreads) {
      const int key = first_key + i / kPairs;
      const int place = i % kPairs * 2;  // channel of [K | V], padding included
      const int part = place / (8 * kHeadTiles);
      const int channel = place % (8 * kHeadTiles);
      Pair<T> pair{0u};
      if (key < params.map.tokens && channel < params.head_dim) {
        pair = params.qkv.template load<Pair<T>>(channels_of(key, 3 * params.dim, (1 + part) * params.dim) + channel);
      }
      keys_values.store(i / kPairs * Config::kKeyPitch + place, pair);
    }
  };

  const RowFragments<T, 1, kHeadTiles> queries = load_queries();
  Attention<T, 1, kHeadTiles, kHeadTiles> attention;
  attention.start(0, params.scale);
#pragma unroll 1
  for (int first_key = 0; first_key < params.map.tokens; first_key += Config::kRows) {
    sync_block();  // all have left the keys before
    load_keys_values(first_key);
    sync_block();
    const int rest = params.map.tokens - first_key;
    const KeyRange ranges[1] = {{0, rest < Config::kRows ? rest : Config::kRows}};
    attention.attend(queries, keys_values, Config::kRows, ranges);
  }
  const auto means = attention.finish();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row_of(half) >= params.map.tokens) continue;
    const std::int64_t offset = channels_of(row_of(half), params.dim, 0);
#pragma unroll
    for (int j = 0; j < kHeadTiles; ++j) {
      const int channel = 8 * j + 2 * t;
      if (channel < params.head_dim) params.y.store(offset + channel, means.at(0, j, half));
    }
  }
}

}  // namespace mvk
