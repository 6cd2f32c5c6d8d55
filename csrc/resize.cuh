// Bilinear resize of a map, align_corners = false, and SiLU behind it where it is asked for: a map whose sides are no
// multiples of the patch goes through it on its way into the transformer stage and back.
//
//   x  (B, H, W, C)  NHWC      y  (B, H', W', C)  NHWC
//
// A thread owns 8 channels (16 bytes) of one output pixel: four loads, neighbouring threads take neighbouring channels.
// Sums in float32, one rounding. Per output value: 4 reads (of neighbours' lines: from L1 as a rule), 1 write, 6 flops.
// Device memory binds.
#pragma once

#include "common/launch.cuh"
#include "common/math.cuh"
#include "common/memory.cuh"
#include "common/overlap.cuh"
#include "common/warp.cuh"

namespace mvk {

constexpr int kResizeThreads = 256;
constexpr int kResizeChannels = 8;  // of a thread

template <class T>
struct ResizeParams {
  Global<const T> x;
  Global<T> y;
  int height, width, channels;
  int out_height, out_width;
  float row_scale, column_scale;  // input pixels an output pixel
  std::int64_t vectors;           // of 8 channels in y
  bool silu;
};

// The two input positions around an output position, and the weight of the second.
struct ResizeTaps {
  int first, second;
  float weight;

  MVK_DEVICE ResizeTaps(int position, float scale, int size) {
    const float source = scale * (static_cast<float>(position) + 0.5f) - 0.5f;
    const float inside = source > 0.0f ? source : 0.0f;
    first = static_cast<int>(inside);
    if (first > size - 1) first = size - 1;
    second = first < size - 1 ? first + 1 : first;
    weight = inside - static_cast<float>(first);
  }
};

template <class T>
__global__ void __launch_bounds__(kResizeThreads) resize_kernel(const ResizeParams<T> params) {
  let_next_launch_begin();
  wait_for_earlier_launches();
  const std::int64_t vector = std::int64_t{block_index_x()} * kResizeThreads + thread_index();
  if (vector >= params.vectors) return;
  const int vectors_a_pixel = params.channels / kResizeChannels;
  const std::int64_t pixel = vector / vectors_a_pixel;
  const int channel = static_cast<int>(vector % vectors_a_pixel) * kResizeChannels;
  const std::int64_t row_of_batch = pixel / params.out_width;
  const ResizeTaps columns(static_cast<int>(pixel % params.out_width), params.column_scale, params.width);
  const ResizeTaps rows(static_cast<int>(row_of_batch % params.out_height), params.row_scale, params.height);
  const std::int64_t first_row = row_of_batch / params.out_height * params.height;

  const auto load = [&](int row, int column) {
    const std::int64_t from = (first_row + row) * params.width + column;
    return params.x.template load<Words4>(from * params.channels + channel);
  };
  const Words4 upper_left = load(rows.first, columns.first);
  const Words4 upper_right = load(rows.first, columns.second);
  const Words4 lower_left = load(rows.second, columns.first);
  const Words4 lower_right = load(rows.second, columns.second);
  const auto mix = [&](float a, float b, float c, float d) {
    const float upper = (1.0f - columns.weight) * a + columns.weight * b;
    const float lower = (1.0f - columns.weight) * c + columns.weight * d;
    const float value = (1.0f - rows.weight) * upper + rows.weight * lower;
    return params.silu ? silu_of_half(0.5f * value) : value;
  };
  Words4 result;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Pair<T> a{upper_left.word[i]};
    const Pair<T> b{upper_right.word[i]};
    const Pair<T> c{lower_left.word[i]};
    const Pair<T> d{lower_right.word[i]};
    result.word[i] = make_pair<T>(mix(low(a), low(b), low(c), low(d)), mix(high(a), high(b), high(c), high(d))).bits;
  }
  params.y.store(vector * kResizeChannels, result);
}

}  // namespace mvk
