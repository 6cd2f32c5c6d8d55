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
// memory, with the conversion of the image values (about 20 instructions each) close behind.
#pragma once

#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/mma.cuh"
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
  static constexpr int kPairsPerThread = ceil_div(kInRows * kPairs, kThreads);
  static constexpr int kFragment = 32 * 8;  // elements of the B fragments of an 8-channel tile, both k-steps

  static_assert(kPairs % 32 == 2, "element 8 of three tap rows: 3g, 3g + 2 and 3g + 4 words apart, all in other banks");
};

template <class T, class ImageType>
struct StemParams {
  Global<const ImageType> image;
  Global<const T> weights;   // B fragments [8-channel tile][lane][8], halved
  Global<const float> bias;  // (C_out,), halved
  Global<T> y;
  std::int64_t stride_image;  // in elements
  int stride_channel, stride_row, stride_column;
  int height, width;
  int out_height, out_width, out_channels;
  int tiles_x, tiles_y;
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
  const int tile_y = block_index_x() / params.tiles_x % params.tiles_y;
  const int image = block_index_x() / params.tiles_x / params.tiles_y;

  // The normalised image tile, a pair of elements at a time. All loads of a thread first: device memory binds, and what
  // hides its latency is bytes under way.
  const Shared<T> tile = shared_region<T>("tile", 0, Config::kTile);
  const int first_row = 2 * tile_y * Config::kRows - 1;
  const int first_column = 2 * tile_x * Config::kColumns - 1;
  using Value = ImageValue<typename Config::Image>;
  using Raw = typename Value::Raw;
  const std::int64_t image_offset = image * params.stride_image;
  Raw raw[Config::kPairsPerThread][2];
  unsigned inside = 0;  // bit 2i + j: element j of pair i is a pixel of the image
#pragma unroll
  for (int i = 0; i < Config::kPairsPerThread; ++i) {
    const int pair = thread_index() + i * Config::kThreads;
    const int row_of_tile = pair / Config::kPairs;
    const int row = first_row + row_of_tile;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int index = pair % Config::kPairs * 2 + j;
      const int channel = index % Config::kChannels;
      const int column = first_column + index / Config::kChannels;
      const bool valid = row_of_tile < Config::kInRows && index < Config::kInElements && row >= 0 &&
                         row < params.height && column >= 0 && column < params.width;
      const int offset = channel * params.stride_channel + row * params.stride_row + column * params.stride_column;
      raw[i][j] = valid ? params.image.template load<Raw>(image_offset + offset) : Raw{0};
      inside |= (valid ? 1u : 0u) << (2 * i + j);
    }
  }
#pragma unroll
  for (int i = 0; i < Config::kPairsPerThread; ++i) {
    const int pair = thread_index() + i * Config::kThreads;
    float value[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int channel = (pair % Config::kPairs * 2 + j) % Config::kChannels;
      const float scale = channel == 0 ? params.scale0 : channel == 1 ? params.scale1 : params.scale2;
      const float shift = channel == 0 ? params.shift0 : channel == 1 ? params.shift1 : params.shift2;
      const float normalized = Value::decode(raw[i][j]) * scale + shift;
      value[j] = (inside >> (2 * i + j) & 1u) != 0 ? normalized : 0.0f;
    }
    if (pair < Config::kInRows * Config::kPairs) tile.store(pair * 2, make_pair<T>(value[0], value[1]));
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
    FragmentC sums[2][2];  // [mma tile][8-channel tile]
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const std::int64_t fragment = first_channel / 8 + n;
      const Words4 words = params.weights.template load<Words4>(fragment * Config::kFragment + lane * 8);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        sums[m][n] = FragmentC{{0.0f, 0.0f, 0.0f, 0.0f}};
        mma_m16n8k16(sums[m][n], a[m][0], FragmentB<T>{{{words.word[0]}, {words.word[1]}}});
        mma_m16n8k16(sums[m][n], a[m][1], FragmentB<T>{{{words.word[2]}, {words.word[3]}}});
      }
    }
    const int channel = first_channel + 4 * t;
    if (channel >= params.out_channels || row >= params.out_height) continue;
    const Floats4 bias = params.bias.template load<Floats4>(channel);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = tile_x * Config::kColumns + 16 * m + 8 * half + g;
        if (column >= params.out_width) continue;
        Words2 channels;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float first = silu_of_half(sums[m][n].value[2 * half] + bias.value[2 * n]);
          const float second = silu_of_half(sums[m][n].value[2 * half + 1] + bias.value[2 * n + 1]);
          channels.word[n] = make_pair<T>(first, second).bits;
        }
        const std::int64_t pixel =
            (static_cast<std::int64_t>(image) * params.out_height + row) * params.out_width + column;
        params.y.store(pixel * params.out_channels + channel, channels);
      }
    }
  }
}

}  // namespace mvk
