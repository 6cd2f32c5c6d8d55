// Launcher of the dense 3×3 convolution: checks, picks the configuration, launches.
#include "conv3x3.cuh"
#include "launchers.h"

namespace mvk {

namespace {

// Output channels are dealt in pairs of 8-channel tiles.
int out_tiles_of(int out_channels) { return 2 * ceil_div(out_channels, 16); }

template <class Config>
Status launch_config(const Conv3x3Arguments& a, Stream stream) {
  using T = typename Config::Type;
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
  params.tiles_x = ceil_div(ceil_div(a.width, a.dilation), Config::kSide);
  params.tiles_y = ceil_div(ceil_div(a.height, a.dilation), Config::kSide);
  const std::int64_t sub_tiles = std::int64_t{a.batch} * a.dilation * a.dilation * params.tiles_x * params.tiles_y;
  const std::int64_t weights = std::int64_t{ceil_div(in_channels, 16)} * 9 * params.out_tiles * Config::kFragment;
  if (weights > 2147483647) {
    return fail(Status::kInvalidArgument, "conv3x3: expected fewer than 2^31 weights, got %d → %d channels",
                in_channels, a.out_channels);
  }
  if (image_pixels > 2147483647 || sub_tiles > 2147483647) {
    return fail(Status::kInvalidArgument, "conv3x3: expected fewer than 2^31 pixels, got batch %d of %d × %d", a.batch,
                a.height, a.width);
  }
  params.sub_tiles = static_cast<int>(sub_tiles);
  params.weights = Global<const T>(static_cast<const T*>(a.weights), weights);
  params.silu = a.silu;
  LaunchShape shape;
  shape.blocks_x = ceil_div(params.sub_tiles, Config::kSubTiles);
  shape.blocks_y = ceil_div(params.out_tiles, Config::kBlockTiles);
  shape.threads = Config::kThreads;
  shape.shared_bytes = Config::kSharedBytes;
  return launch<conv3x3_kernel<Config>>("conv3x3", shape, stream, params);
}

// Calls `use` with the configuration of a tile number and a number of output channels. The numbers are those of
// mobilevit_kernels/native/conv3x3_tiling.py.
template <class T, class Use>
auto with_config(int tile, int out_channels, const Use& use) {
  if (tile == 0) return use(Conv3x3Config<T, 1, 1, 8, 1>{});
  if (tile == 1) return use(Conv3x3Config<T, 1, 2, 4, 1>{});
  if (tile == 2) return use(Conv3x3Config<T, 2, 2, 2, 2>{});
  // As few passes over the pixels as 96 channels a pass allow, and the passes alike.
  const int out_tiles = out_tiles_of(out_channels);
  const int tiles_a_warp = ceil_div(out_tiles, 2 * ceil_div(out_tiles, 12));
  if (tiles_a_warp <= 3) return use(Conv3x3Config<T, 4, 2, 1, 3>{});
  if (tiles_a_warp == 4) return use(Conv3x3Config<T, 4, 2, 1, 4>{});
  if (tiles_a_warp == 5) return use(Conv3x3Config<T, 4, 2, 1, 5>{});
  return use(Conv3x3Config<T, 4, 2, 1, 6>{});
}

template <class T>
Status launch_by_tile(const Conv3x3Arguments& a, Stream stream) {
  return with_config<T>(a.tile, a.out_channels,
                        [&](auto config) { return launch_config<decltype(config)>(a, stream); });
}

}  // namespace

Status conv3x3(const Conv3x3Arguments& a, Stream stream) {
  if (a.first_channels < 8 || a.first_channels % 8 != 0 || a.second_channels < 0 || a.second_channels % 8 != 0 ||
      a.out_channels < 8 || a.out_channels % 8 != 0) {
    return fail(Status::kInvalidArgument,
                "conv3x3: expected channels that are multiples of 8, got in %d and %d, out %d", a.first_channels,
                a.second_channels, a.out_channels);
  }
  if (a.batch < 1 || a.height < 1 || a.width < 1) {
    return fail(Status::kInvalidArgument, "conv3x3: expected a non-empty input, got batch %d, %d × %d pixels", a.batch,
                a.height, a.width);
  }
  if (a.dilation < 1) {
    return fail(Status::kInvalidArgument, "conv3x3: dilation: expected a positive number, got %d", a.dilation);
  }
  if (a.tile < 0 || a.tile > 3) {
    return fail(Status::kInvalidArgument, "conv3x3: tile: expected 0, 1, 2 or 3, got %d", a.tile);
  }
  return a.bfloat16 ? launch_by_tile<BFloat16>(a, stream) : launch_by_tile<Half>(a, stream);
}

}  // namespace mvk
