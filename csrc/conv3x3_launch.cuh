// How the kernels of the dense 3×3 convolution are launched.
#pragma once

#include "conv3x3.cuh"
#include "launchers.h"

namespace mvk {

// Output channels are dealt in pairs of 8-channel tiles.
inline int out_tiles_of(int out_channels) { return 2 * ceil_div(out_channels, 16); }

// The tiles of 8 output channels that a warp of two side by side takes: as few passes over the pixels as 96 channels a
// pass allow, and the passes alike.
inline int tiles_of_half_a_pass(int out_channels) {
  const int out_tiles = out_tiles_of(out_channels);
  return ceil_div(out_tiles, 2 * ceil_div(out_tiles, 12));
}

// A block of kKernel takes sub_tiles of 8×8 pixels and block_tiles of 8 output channels.
template <auto kKernel, class T>
Status launch_conv3x3(const Conv3x3Arguments& a, int sub_tiles, int block_tiles, int threads, int shared_bytes,
                      Stream stream) {
  const std::int64_t image_pixels = std::int64_t{a.batch} * a.height * a.width;
  const int in_channels = a.first_channels + a.second_channels;
  Conv3x3Params<T> params;
  params.x = Global<const T>(static_cast<const T*>(a.x), image_pixels * a.first_channels);
  params.x2 = Global<const T>(static_cast<const T*>(a.x2), image_pixels * a.second_channels);
  params.out_tiles = out_tiles_of(a.out_channels);
  params.bias = Global<const float>(a.bias, a.out_channels);
  params.y = Global<T>(static_cast<T*>(a.y), image_pixels * a.out_channels);
  params.height = a.height;
  params.width = a.width;
  params.first_channels = a.first_channels;
  params.second_channels = a.second_channels;
  params.out_channels = a.out_channels;
  params.dilation = a.dilation;
  params.tiles_x = ceil_div(ceil_div(a.width, a.dilation), 8);
  params.tiles_y = ceil_div(ceil_div(a.height, a.dilation), 8);
  const std::int64_t all_sub_tiles = std::int64_t{a.batch} * a.dilation * a.dilation * params.tiles_x * params.tiles_y;
  const std::int64_t weights = std::int64_t{ceil_div(in_channels, 16)} * 9 * params.out_tiles * 128;
  if (weights > 2147483647) {
    return fail(Status::kInvalidArgument, "conv3x3: expected fewer than 2^31 weights, got %d → %d channels",
                in_channels, a.out_channels);
  }
  if (image_pixels > 2147483647 || all_sub_tiles > 2147483647) {
    return fail(Status::kInvalidArgument, "conv3x3: expected fewer than 2^31 pixels, got batch %d of %d × %d", a.batch,
                a.height, a.width);
  }
  params.sub_tiles = static_cast<int>(all_sub_tiles);
  params.weights = Global<const T>(static_cast<const T*>(a.weights), weights);
  params.silu = a.silu;
  LaunchShape shape;
  shape.blocks_x = ceil_div(params.sub_tiles, sub_tiles);
  shape.blocks_y = ceil_div(params.out_tiles, block_tiles);
  shape.threads = threads;
  shape.shared_bytes = shared_bytes;
  return launch<kKernel>("conv3x3", shape, stream, params);
}

}  // namespace mvk
