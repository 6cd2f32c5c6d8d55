// Stem: 3×3 convolution, stride 2, padding 1, on images of three channels as they come: y = silu(W * n(image) + b).
//
//   image  (B, 3, H, W) by its strides: NCHW or NHWC; uint8, float16, bfloat16 or float32
//   n(v) = v · scale[c] + shift[c] in float32, rounded once to the compute type, zero outside of the image
//   W  (C_out, 3, 3, 3)      y  (B, ⌈H/2⌉, ⌈W/2⌉, C_out)  NHWC
//
// The padding comes after the normalisation: the border is exact, and nothing of the mean is folded into the bias.
//
// A block owns 8 × 32 output pixels and every channel of them. It reads its 17 × 65 image pixels once, normalises and
// rounds them, and keeps them in shared memory in NHWC order, so that the nine values of one row of taps (three pixels,
// three channels) are neighbours: elements 6 · column … 6 · column + 8, of which pairs begin at even places. Warp w
// owns row w of the output pixels as two mma tiles of 16, g = lane / 4, t = lane % 4:
//
//     mma tile m    rows g, g + 8  =  columns 16m + g, 16m + g + 8
//     k = 0 …  7    tap row 0, elements 0 … 7   (lane t: the pair 2t, 2t + 1)
//     k = 8 … 15    tap row 1, elements 0 … 7
//     k = 16 … 23   tap row 2, elements 0 … 7
//     k = 24, 26, 28    element 8 of tap rows 0, 1, 2   (lane t: row t; the other half of the pair is zero)
//     tile pair n   lane t  =  channels 16n + 4t … 16n + 4t + 3: four lanes store a sector
//
// K = 27 padded to 32 and two mma a tile. A fragments are four 4-byte loads without bank conflicts (rows of 98 words).
// B fragments stay in registers, straight from global memory.
//
// Per output pixel: 54 · C_out flops, 12 image values, C_out values written, C_out tanh. Expected to bind: device
// memory. Values one by one made an H200 wait for them (168 µs for 256 float16 images of 256×256, where the bytes take
// 55), so 16-bit images whose rows of a channel are aligned come in vectors of eight.
#pragma once

#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/mma.cuh"
#include "common/overlap.cuh"
#include "common/warp.cuh"

namespace mvk {

template <class T, class ImageType>
struct StemConfig {
  using Type = T;
  using Image = ImageType;
  static constexpr int kRows = 8;  // of output pixels
  static constexpr int kColumns = 32;
  static constexpr int kThreads = 32 * kRows;
  static constexpr int kChannels = 3;
  static constexpr int kInRows = 2 * kRows + 1;
  static constexpr int kInElements = (2 * kColumns + 1) * kChannels;  // of a row
  static constexpr int kPairs = ceil_div(kInElements, 2);             // 4-byte words of a row
  static constexpr int kTile = kInRows * kPairs * 2;                  // elements
  static constexpr int kSharedBytes = kTile * 2;
  static constexpr int kVector = 8;         // 16-bit values of an aligned load
  static constexpr int kPairThreads = 128;  // side by side over the pairs of a row; 30 of them have none
  static constexpr int kRowsPerThread = ceil_div(kInRows, kThreads / kPairThreads);
  static constexpr int kFragment = 32 * 8;  // elements of the B fragments of an 8-channel tile, both k-steps

  static_assert(kPairs <= kPairThreads && kThreads % kPairThreads == 0, "a pair of every second row for each thread");
  static_assert(kPairs % 32 == 2, "element 8 of three tap rows: 3g, 3g + 2 and 3g + 4 words apart, all in other banks");
};

template <class T, class ImageType>
struct StemParams {
  Global<const ImageType> image;
  Global<const T> weights;   // B fragments [8-channel tile][lane][8], halved
  Global<const float> bias;  // (C_out,), halved
  Global<T> y;
  int stride_image, stride_channel, stride_row, stride_column;  // of the image, in elements
  int height, width;
  int out_height, out_width, out_channels;
  bool planar;  // 16-bit NCHW whose rows begin at multiples of 16 bytes
  int tiles_x;  // blockIdx.x = tile row · tiles_x + tile column, blockIdx.y = image
  float scale0, scale1, scale2;
  float shift0, shift1, shift2;
};

// An image value as it lies in memory, and as a float.
template <class ImageType>
struct ImageValue {
  using Raw = ImageType;  // uint8 or float
  static MVK_DEVICE float decode(Raw raw) { return static_cast<float>(raw); }
};
template <>
struct ImageValue<Half> {
  using Raw = std::uint16_t;
  static MVK_DEVICE float decode(Raw raw) { return low(Pair<Half>{raw}); }
};
template <>
struct ImageValue<BFloat16> {
  using Raw = std::uint16_t;
  static MVK_DEVICE float decode(Raw raw) { return low(Pair<BFloat16>{raw}); }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    stem_kernel(const StemParams<typename Config::Type, typename Config::Image> params) {
  using T = typename Config::Type;
  const int lane = lane_index();
  const int g = lane / 4;
  const int t = lane % 4;
  const int tile_x = block_index_x() % params.tiles_x;
  const int tile_y = block_index_x() / params.tiles_x;
  const int image = block_index_y();
  let_next_launch_begin();
  wait_for_earlier_launches();

  // The normalised image tile. All loads of a thread come first: device memory binds, and what hides its latency is
  // bytes under way.
  using Value = ImageValue<typename Config::Image>;
  using Raw = typename Value::Raw;
  const Shared<T> tile = shared_region<T>("tile", 0, Config::kTile);
  const int first_row = 2 * tile_y * Config::kRows - 1;
  const auto load_any = [&] {
    // A thread takes one pair of elements of every second row, so that column, channel and statistics are worked out
    // once.
    const int pair = thread_index() % Config::kPairThreads;
    const int thread_row = thread_index() / Config::kPairThreads;
    bool inside[2];  // the element's column is one of the image
    int offset[2];
    float scale[2];
    float shift[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int index = 2 * pair + j;
      const int channel = index % Config::kChannels;
      const int column = 2 * tile_x * Config::kColumns - 1 + index / Config::kChannels;
      inside[j] = index < Config::kInElements && column >= 0 && column < params.width;
      offset[j] = image * params.stride_image + channel * params.stride_channel + column * params.stride_column;
      scale[j] = channel == 0 ? params.scale0 : channel == 1 ? params.scale1 : params.scale2;
      shift[j] = channel == 0 ? params.shift0 : channel == 1 ? params.shift1 : params.shift2;
    }
    const auto row_of = [&](int i) { return thread_row + i * (Config::kThreads / Config::kPairThreads); };
    const auto exists = [&](int i, int j) {
      const int row = first_row + row_of(i);
      return inside[j] && row_of(i) < Config::kInRows && row >= 0 && row < params.height;
    };
    Raw raw[Config::kRowsPerThread][2];
#pragma unroll
    for (int i = 0; i < Config::kRowsPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = (first_row + row_of(i)) * params.stride_row + offset[j];
        raw[i][j] = exists(i, j) ? params.image.template load<Raw>(at) : Raw{0};
      }
    }
#pragma unroll
    for (int i = 0; i < Config::kRowsPerThread; ++i) {
      float value[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float normalized = Value::decode(raw[i][j]) * scale[j] + shift[j];
        value[j] = exists(i, j) ? normalized : 0.0f;
      }
      if (pair < Config::kPairs && row_of(i) < Config::kInRows) {
        tile.store((row_of(i) * Config::kPairs + pair) * 2, make_pair<T>(value[0], value[1]));
      }
    }
  };
  const auto load_planar = [&] {
    // A thread takes eight neighbouring pixels of a row, 16 bytes of each channel; eight threads a row, columns 0 … 63
    // of the block. The pair of elements that a thread's pixels begin in has the last value of the thread before it, or
    // of column −1.
    constexpr int kVector = Config::kVector;
    constexpr int kAcross = 2 * Config::kColumns / kVector;
    const int vector = thread_index() % kAcross;
    const int own_row = thread_index() / kAcross;
    const int column = 2 * tile_x * Config::kColumns + kVector * vector;
    const bool row_inside =
        own_row < Config::kInRows && first_row + own_row >= 0 && first_row + own_row < params.height;
    const bool inside = row_inside && column < params.width;
    const bool has_before = row_inside && vector == 0 && column > 0;
    const int at = image * params.stride_image + (first_row + own_row) * params.stride_row + column;
    Words4 words[Config::kChannels];
    Raw before[Config::kChannels];
#pragma unroll
    for (int c = 0; c < Config::kChannels; ++c) {
      words[c] = inside ? params.image.template load<Words4>(at + c * params.stride_channel) : Words4{};
      before[c] = has_before ? params.image.template load<Raw>(at + c * params.stride_channel - 1) : Raw{0};
    }
    const float scale[Config::kChannels] = {params.scale0, params.scale1, params.scale2};
    const float shift[Config::kChannels] = {params.shift0, params.shift1, params.shift2};
    const auto normalized = [&](Raw raw, int c, bool exists) {
      const float value = Value::decode(raw) * scale[c] + shift[c];
      return exists ? value : 0.0f;
    };
    const auto element = [&](int i) {  // of the thread's 24, in NHWC order
      const int pixel = i / Config::kChannels;
      const std::uint32_t word = words[i % Config::kChannels].word[pixel / 2];
      return normalized(static_cast<Raw>(pixel % 2 == 0 ? word & 0xffffu : word >> 16), i % Config::kChannels, inside);
    };
    constexpr int kElements = kVector * Config::kChannels;
    const Pair<T> last = make_pair<T>(element(kElements - 1), 0.0f);
    Pair<T> left = shuffle_up(last, 1);
    if (vector == 0) left = make_pair<T>(normalized(before[2], 2, has_before), 0.0f);
    if (own_row >= Config::kInRows) return;
    // Element 0 of the thread is element 3 + 24·vector of the row: the upper half of a pair.
    const int first_pair = own_row * Config::kPairs + 1 + kElements / 2 * vector;
    tile.store(2 * first_pair, Pair<T>{(left.bits & 0xffffu) | (make_pair<T>(0.0f, element(0)).bits & 0xffff0000u)});
#pragma unroll
    for (int i = 1; i + 1 < kElements; i += 2) {
      tile.store(2 * (first_pair + (i + 1) / 2), make_pair<T>(element(i), element(i + 1)));
    }
    if (vector == 0) {
      tile.store(2 * (first_pair - 1),
                 make_pair<T>(normalized(before[0], 0, has_before), normalized(before[1], 1, has_before)));
    }
    if (vector == kAcross - 1) tile.store(2 * (first_pair + kElements / 2), last);
  };
  if constexpr (sizeof(Raw) == 2) {
    if (params.planar) {
      load_planar();
    } else {
      load_any();
    }
  } else {
    load_any();
  }
  sync_block();

  FragmentA<T> a[2][2];  // [mma tile][k-step]
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto load = [&](int tap_row, int pair) {
        const int word = (2 * warp_index() + tap_row) * Config::kPairs + 3 * (16 * m + 8 * half + g) + pair;
        return tile.template load<Pair<T>>(2 * word);
      };
      a[m][0].reg[half] = load(0, t);
      a[m][0].reg[2 + half] = load(1, t);
      a[m][1].reg[half] = load(2, t);
      const Pair<T> last = load(t < 3 ? t : 0, 4);
      a[m][1].reg[2 + half] = Pair<T>{t < 3 ? last.bits & 0xffffu : 0u};
    }
  }

  const int row = tile_y * Config::kRows + warp_index();
  for (int first_channel = 0; first_channel < params.out_channels; first_channel += 16) {
    const int channel = first_channel + 4 * t;
    const bool exists_channel = channel < params.out_channels;
    const Floats4 bias = exists_channel ? params.bias.template load<Floats4>(channel) : Floats4{{0, 0, 0, 0}};
    FragmentC sums[2][2];  // [mma tile][8-channel tile]
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int fragment = first_channel / 8 + n;
      const Words4 words = params.weights.template load<Words4>(fragment * Config::kFragment + lane * 8);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float first = bias.value[2 * n];
        const float second = bias.value[2 * n + 1];
        sums[m][n] = FragmentC{{first, second, first, second}};
        mma_m16n8k16(sums[m][n], a[m][0], FragmentB<T>{{{words.word[0]}, {words.word[1]}}});
        mma_m16n8k16(sums[m][n], a[m][1], FragmentB<T>{{{words.word[2]}, {words.word[3]}}});
      }
    }
    if (!exists_channel || row >= params.out_height) continue;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = tile_x * Config::kColumns + 16 * m + 8 * half + g;
        if (column >= params.out_width) continue;
        Words2 channels;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float* sum = sums[m][n].value + 2 * half;
          channels.word[n] = make_pair<T>(silu_of_half(sum[0]), silu_of_half(sum[1])).bits;
        }
        const int pixel = (image * params.out_height + row) * params.out_width + column;
        params.y.store(pixel * params.out_channels + channel, channels);
      }
    }
  }
}

}  // namespace mvk
