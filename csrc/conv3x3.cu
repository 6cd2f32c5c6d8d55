// Launcher of the dense 3×3 convolution: checks, picks the configuration, launches.
#include "conv3x3_launch.cuh"

namespace mvk {

namespace {

template <class Config>
Status launch_config(const Conv3x3Arguments& a, Stream stream) {
  return launch_conv3x3<conv3x3_kernel<Config>, typename Config::Type>(a, Config::kSubTiles, Config::kBlockTiles,
                                                                       Config::kThreads, Config::kSharedBytes, stream);
}

// Calls `use` with the configuration of a tile number and a number of output channels. The numbers are those of
// mobilevit_kernels/native/conv3x3_tiling.py.
template <class T, class Use>
auto with_config(int tile, int out_channels, const Use& use) {
  if (tile == 0) return use(Conv3x3Config<T, 1, 1, 8, 1>{});
  if (tile == 1) return use(Conv3x3Config<T, 1, 2, 4, 1>{});
  if (tile == 2) return use(Conv3x3Config<T, 2, 2, 2, 2>{});
  const int tiles_a_warp = tiles_of_half_a_pass(out_channels);
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
  if (a.tile < 0 || a.tile > 5) {
    return fail(Status::kInvalidArgument, "conv3x3: tile: expected 0 to 5, got %d", a.tile);
  }
  if (a.tile >= 4) return conv3x3_wgmma(a, stream);
  return a.bfloat16 ? launch_by_tile<BFloat16>(a, stream) : launch_by_tile<Half>(a, stream);
}

}  // namespace mvk
