// Head: f = mean over the pixels of silu(W x + b), then y = C f + c; or the map silu(W x + b) alone.
//
//   x  (B, P, C_in)  NHWC with P = H · W      W  (hidden, C_in)      f  (B, hidden)      C  (classes, hidden)
//
// head_features_kernel. A block owns kGroups groups of pixels × kChannelWarps · kOutTiles · 8 hidden channels; a group
// is an image (pooled), or any 64 pixels in a row (map). A warp owns one group and kOutTiles · 8 channels, and walks
// over the group's pixels 64 at a time, four mma tiles of 16:
//
//     mma tile m    rows g, g + 8  =  pixels 16m + g, 16m + g + 8          g = lane / 4, t = lane % 4
//     tile pair n   lane t         =  channels 16n + 4t … 16n + 4t + 3     (dealt as in conv3x3.cuh)
//
// A step is 32 input channels of the block's pixels and weights, fetched two steps ahead by cp.async through a ring of
// three slots, one barrier a step. An image is pooled inside one warp: over its pixels in the accumulators' lanes, in
// order, and over the eight g at the end. No atomics, and the same bits whatever the batch and the block's size.
// Neither the map of hidden channels nor its SiLU leave the registers.
//
// Per image: 2 · P · C_in · hidden flops, P · hidden tanh. L2 gives a block P · C_in values of pixels a group and
// C_in values of weights a channel. Expected to bind: L2 at small batches, then the matrix pipe.
//
// head_classifier_kernel. A block owns 16 · kRowTiles images × 8 · kOutTiles classes; its four warps share the hidden
// channels, every fourth 16 each, read their fragments from global memory straight away (nothing is used twice by one
// warp but what registers hold), and add up in a fixed order through shared memory. At batch 1 the bytes of the weights
// bind, spread over classes / 8 blocks.
#pragma once

#include "common/async_copy.cuh"
#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/mma.cuh"
#include "common/overlap.cuh"
#include "common/warp.cuh"

namespace mvk {

template <class T, int kGroupsOf, int kOutTilesOf, bool kPoolOf>
struct HeadConfig {
  using Type = T;
  static constexpr int kGroups = kGroupsOf;      // images of a block, or runs of 64 pixels
  static constexpr int kOutTiles = kOutTilesOf;  // 8-channel tiles of a warp
  static constexpr bool kPool = kPoolOf;
  static constexpr int kChannelWarps = 4;
  static constexpr int kThreads = 32 * kGroups * kChannelWarps;
  static constexpr int kBlocksPerSm = 2;
  static constexpr int kBlockTiles = kChannelWarps * kOutTiles;
  static constexpr int kChunk = 64;          // pixels of a group at a time
  static constexpr int kDepth = 2;           // k-steps of 16 channels a step
  static constexpr int kUnits = 2 * kDepth;  // of 16 bytes, a pixel
  static constexpr int kPitch = kUnits * 8;  // elements
  static constexpr int kFragment = 32 * 4;   // elements of one B fragment
  static constexpr int kPixels = kGroups * kChunk * kPitch;
  static constexpr int kWeights = kDepth * kBlockTiles * kFragment;
  static constexpr int kSharedBytes = 3 * 2 * (kPixels + kWeights);
  static constexpr int kPixelCopies = kGroups * kChunk * kUnits / kThreads;       // of 16 bytes, a thread and step
  static constexpr int kDepthsAtOnce = kThreads / (kFragment / 8 * kBlockTiles);  // k-steps of weights a copy
  static constexpr int kWeightCopies = kDepth / kDepthsAtOnce;

  static_assert(kPixelCopies * kThreads == kGroups * kChunk * kUnits, "every thread copies as many pixels");
  static_assert(kWeightCopies * kThreads == kWeights / 8, "every thread copies as many weights, of whole k-steps");
  static_assert(kThreads % kUnits == 0, "a thread copies the same unit of every pixel");
  static_assert(kUnits == 4, "the swizzle is of four units");
};

template <class T>
struct HeadFeaturesParams {
  Global<const T> x;
  Global<const T> weights;   // B fragments [16 input channels][8-channel tile][lane][4], halved
  Global<const float> bias;  // (hidden,), halved
  Global<T> y;               // (B, hidden), or (B, P, hidden)
  int in_channels, hidden_channels;
  int groups;        // images, or ⌈B·P / 64⌉
  int group_pixels;  // P, or 64
  int pixels;        // B·P
  int out_tiles;     // of 8 channels, an even number
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    head_features_kernel(const HeadFeaturesParams<typename Config::Type> params) {
  using T = typename Config::Type;
  let_next_launch_begin();
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const int group = warp_index() % Config::kGroups;
  const int channel_warp = warp_index() / Config::kGroups;
  const int first_group = block_index_x() * Config::kGroups;
  const int block_tile = block_index_y() * Config::kBlockTiles;
  const int warp_tile = block_tile + channel_warp * Config::kOutTiles;
  const int depth_steps = ceil_div(params.in_channels, 16);
  const int slices = ceil_div(depth_steps, Config::kDepth);
  const int chunks = ceil_div(params.group_pixels, Config::kChunk);

  // Pixels of a group; the batch ends inside the last group of a map.
  const auto pixels_of = [&](int of_group) {
    const int rest = params.pixels - (first_group + of_group) * params.group_pixels;
    return rest < params.group_pixels ? rest : params.group_pixels;
  };
  // Where unit `unit` of a pixel lies among its four: two pixels fill the 32 banks, and so do eight rows of an
  // ldmatrix.
  const auto swizzled = [](int row, int unit) { return unit ^ row / 2 % 4; };
  const auto pixels_slot = [&](int step) {
    return shared_region<T>("pixels", step % 3 * Config::kPixels * 2, Config::kPixels);
  };
  const auto weights_slot = [&](int step) {
    return shared_region<T>("weights", (3 * Config::kPixels + step % 3 * Config::kWeights) * 2, Config::kWeights);
  };
  // What a thread copies never changes but for the slice and the chunk: its unit of a pixel, its places in a slot.
  const int unit = thread_index() % Config::kUnits;
  const int first_row_of_slot = thread_index() / Config::kUnits;
  constexpr int kFragmentUnits = Config::kFragment / 8;
  const int weight_tile = block_tile + thread_index() / kFragmentUnits % Config::kBlockTiles;
  const int weight_depth = thread_index() / kFragmentUnits / Config::kBlockTiles;
  const int weight_offset =
      (weight_depth * params.out_tiles + weight_tile) * Config::kFragment + thread_index() % kFragmentUnits * 8;
  const auto fetch_pixels = [&](int step, int chunk, int slice) {
    const Shared<T> pixels = pixels_slot(step);
    const int channel = (slice * Config::kUnits + unit) * 8;
#pragma unroll
    for (int i = 0; i < Config::kPixelCopies; ++i) {
      const int row = first_row_of_slot + i * (Config::kThreads / Config::kUnits);
      const int of_group = row / Config::kChunk;
      const int pixel = chunk * Config::kChunk + row % Config::kChunk;
      const bool valid =
          first_group + of_group < params.groups && pixel < pixels_of(of_group) && channel < params.in_channels;
      const std::int64_t row_of_x = (first_group + of_group) * params.group_pixels + pixel;
      copy_async_16(pixels, row * Config::kPitch + swizzled(row, unit) * 8, params.x,
                    valid ? row_of_x * params.in_channels + channel : 0, valid);
    }
  };
  const auto fetch_weights = [&](int step, int slice) {
    const Shared<T> weights = weights_slot(step);
    const int depth_fragments = params.out_tiles * Config::kFragment;  // elements of one k-step
#pragma unroll
    for (int i = 0; i < Config::kWeightCopies; ++i) {
      const int depth_step = slice * Config::kDepth + i * Config::kDepthsAtOnce;
      if (depth_step + weight_depth >= depth_steps) break;
      const bool valid = weight_tile < params.out_tiles;
      copy_async_16(weights, (thread_index() + i * Config::kThreads) * 8, params.weights,
                    valid ? depth_step * depth_fragments + weight_offset : 0, valid);
    }
  };

  const bool has_pixels = first_group + group < params.groups;
  const auto channel_of = [&](int n) { return (warp_tile + n) / 2 * 16 + 4 * t + (warp_tile + n) % 2 * 2; };
  FragmentC sums[4][Config::kOutTiles];
  Floats2 pooled[Config::kOutTiles];
#pragma unroll
  for (int n = 0; n < Config::kOutTiles; ++n) pooled[n] = Floats2{{0.0f, 0.0f}};

  const auto accumulate = [&](int step, int slice) {
    if (!has_pixels) return;
    const Shared<T> pixels = pixels_slot(step);
    const Shared<T> weights = weights_slot(step);
#pragma unroll
    for (int depth = 0; depth < Config::kDepth; ++depth) {
      if (slice * Config::kDepth + depth >= depth_steps) break;
      FragmentB<T> b[Config::kOutTiles];
#pragma unroll
      for (int n = 0; n < Config::kOutTiles; ++n) {
        const int fragment = depth * Config::kBlockTiles + channel_warp * Config::kOutTiles + n;
        const Words2 words = weights.template load<Words2>(fragment * Config::kFragment + lane * 4);
        b[n] = FragmentB<T>{{{words.word[0]}, {words.word[1]}}};
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        FragmentA<T> a;
        const int row = group * Config::kChunk + 16 * m + lane % 16;
        load_matrix_x4(a.reg, pixels, row * Config::kPitch + swizzled(row, 2 * depth + lane / 16) * 8);
#pragma unroll
        for (int n = 0; n < Config::kOutTiles; ++n) mma_m16n8k16(sums[m][n], a, b[n]);
      }
    }
  };
  // Bias, SiLU, and into the pool or out to the map.
  const auto finish_chunk = [&](int chunk) {
    const int rows = has_pixels ? pixels_of(group) - chunk * Config::kChunk : 0;
    const std::int64_t first_row = (first_group + group) * params.group_pixels + chunk * Config::kChunk;
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) {
      if (channel_of(n) >= params.hidden_channels) break;
      const Floats2 bias = params.bias.template load<Floats2>(channel_of(n));
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = 16 * m + 8 * half + g;
          if (row >= rows) continue;
          const float first = silu_of_half(sums[m][n].value[2 * half] + bias.value[0]);
          const float second = silu_of_half(sums[m][n].value[2 * half + 1] + bias.value[1]);
          if constexpr (Config::kPool) {
            pooled[n].value[0] += first;
            pooled[n].value[1] += second;
          } else {
            params.y.store((first_row + row) * params.hidden_channels + channel_of(n), make_pair<T>(first, second));
          }
        }
      }
    }
  };

  const int steps = chunks * slices;
  int next_chunk = 0;
  int next_slice = 0;
  const auto fetch_next = [&](int step) {
    if (step < steps) {
      if (step >= 2) fetch_weights(step, next_slice);
      fetch_pixels(step, next_chunk, next_slice);
    }
    copy_async_commit();
    if (++next_slice == slices) {
      next_slice = 0;
      ++next_chunk;
    }
  };
  fetch_weights(0, 0);
  if (steps > 1) fetch_weights(1, slices > 1 ? 1 : 0);
  wait_for_earlier_launches();
  fetch_next(0);
  fetch_next(1);
  int step = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < Config::kOutTiles; ++n) sums[m][n] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
    }
    for (int slice = 0; slice < slices; ++slice, ++step) {
      copy_async_wait<1>();
      // What this step reads is there for all; all have left the step before, whose slot comes next.
      sync_block();
      fetch_next(step + 2);
      accumulate(step, slice);
    }
    finish_chunk(chunk);
  }

  if constexpr (Config::kPool) {
    const float scale = 1.0f / static_cast<float>(params.group_pixels);
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) pooled[n].value[i] += shuffle_xor(pooled[n].value[i], mask);
      }
      if (g == 0 && has_pixels && channel_of(n) < params.hidden_channels) {
        params.y.store(static_cast<std::int64_t>(first_group + group) * params.hidden_channels + channel_of(n),
                       make_pair<T>(pooled[n].value[0] * scale, pooled[n].value[1] * scale));
      }
    }
  }
}

template <class T, int kRowTilesOf, int kOutTilesOf>
struct HeadClassifierConfig {
  using Type = T;
  static constexpr int kRowTiles = kRowTilesOf;  // of 16 images
  static constexpr int kOutTiles = kOutTilesOf;  // of 8 classes
  static constexpr int kWarps = 4;               // over the hidden channels
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStepsAtOnce = kRowTiles == 1 ? 5 : 1;  // latency binds a small block: loads of many steps
  static constexpr int kPartialFloats = kWarps * kRowTiles * kOutTiles * 32 * 4;
  static constexpr int kSharedBytes = kPartialFloats * 4;
};

template <class T>
struct HeadClassifierParams {
  Global<const T> x;                    // (rows, in_features)
  Global<const T> weights;              // B fragments [16 features][8-class tile][lane][4]
  Global<const float> bias;             // (out_features,)
  Global<T> y;                          // (rows, out_features)
  int rows, in_features, out_features;  // out_features is even
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    head_classifier_kernel(const HeadClassifierParams<typename Config::Type> params) {
  using T = typename Config::Type;
  let_next_launch_begin();
  wait_for_earlier_launches();
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const int warp = warp_index();
  const int first_row = block_index_y() * 16 * Config::kRowTiles;
  const int first_tile = block_index_x() * Config::kOutTiles;
  const int out_tiles = ceil_div(params.out_features, 8);
  const int depth_steps = ceil_div(params.in_features, 16);

  FragmentC sums[Config::kRowTiles][Config::kOutTiles];
#pragma unroll
  for (int m = 0; m < Config::kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) sums[m][n] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
  }
#pragma unroll(Config::kStepsAtOnce)
  for (int step = warp; step < depth_steps; step += Config::kWarps) {
    FragmentA<T> a[Config::kRowTiles];
#pragma unroll
    for (int m = 0; m < Config::kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first_row + 16 * m + 8 * (i % 2) + g;
        const int feature = 16 * step + 8 * (i / 2) + 2 * t;
        const bool valid = row < params.rows && feature < params.in_features;
        const std::int64_t offset = static_cast<std::int64_t>(row) * params.in_features + feature;
        a[m].reg[i] = valid ? params.x.template load<Pair<T>>(offset) : Pair<T>{0};
      }
    }
#pragma unroll
    for (int n = 0; n < Config::kOutTiles; ++n) {
      if (first_tile + n >= out_tiles) break;
      const std::int64_t fragment = static_cast<std::int64_t>(step) * out_tiles + first_tile + n;
      const Words2 words = params.weights.template load<Words2>((fragment * 32 + lane) * 4);
      const FragmentB<T> b{{{words.word[0]}, {words.word[1]}}};
#pragma unroll
      for (int m = 0; m < Config::kRowTiles; ++m) mma_m16n8k16(sums[m][n], a[m], b);
    }
  }

  const Shared<float> partial = shared_region<float>("partial", 0, Config::kPartialFloats);
  constexpr int kTiles = Config::kRowTiles * Config::kOutTiles;
  const auto slot_of = [&](int of_warp, int tile) { return ((of_warp * kTiles + tile) * 32 + lane) * 4; };
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const FragmentC& sum = sums[tile / Config::kOutTiles][tile % Config::kOutTiles];
    partial.store(slot_of(warp, tile), Floats4{{sum.value[0], sum.value[1], sum.value[2], sum.value[3]}});
  }
  sync_block();
  for (int tile = warp; tile < kTiles; tile += Config::kWarps) {
    const int column = (first_tile + tile % Config::kOutTiles) * 8 + 2 * t;
    if (column >= params.out_features) continue;
    Floats4 total = partial.template load<Floats4>(slot_of(0, tile));
#pragma unroll
    for (int other = 1; other < Config::kWarps; ++other) {
      const Floats4 part = partial.template load<Floats4>(slot_of(other, tile));
#pragma unroll
      for (int i = 0; i < 4; ++i) total.value[i] += part.value[i];
    }
    const Floats2 bias = params.bias.template load<Floats2>(column);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + tile / Config::kOutTiles * 16 + 8 * half + g;
      if (row >= params.rows) continue;
      params.y.store(static_cast<std::int64_t>(row) * params.out_features + column,
                     make_pair<T>(total.value[2 * half] + bias.value[0], total.value[2 * half + 1] + bias.value[1]));
    }
  }
}

}  // namespace mvk
