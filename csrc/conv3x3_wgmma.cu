// Launcher of the dense 3×3 convolution on wgmma: picks the configuration.
#include "conv3x3_launch.cuh"
#include "conv3x3_wgmma.cuh"

namespace mvk {

namespace {

template <class Config>
Status launch_config(const Conv3x3Arguments& a, Stream stream) {
  return launch_conv3x3<conv3x3_wgmma_kernel<Config>, typename Config::Type>(
      a, Config::kBlockSubTiles, Config::kOutTiles, Config::kThreads, Config::kSharedBytes, stream);
}

template <class T, int kSubTiles>
Status launch_by_width(const Conv3x3Arguments& a, Stream stream) {
  const int half = tiles_of_half_a_pass(a.out_channels);
  if (half <= 3) return launch_config<Conv3x3WgmmaConfig<T, kSubTiles, 6>>(a, stream);
  if (half == 4) return launch_config<Conv3x3WgmmaConfig<T, kSubTiles, 8>>(a, stream);
  if (half == 5) return launch_config<Conv3x3WgmmaConfig<T, kSubTiles, 10>>(a, stream);
  return launch_config<Conv3x3WgmmaConfig<T, kSubTiles, 12>>(a, stream);
}

template <class T>
Status launch_by_tile(const Conv3x3Arguments& a, Stream stream) {
  return a.tile == 4 ? launch_by_width<T, 1>(a, stream) : launch_by_width<T, 2>(a, stream);
}

}  // namespace

Status conv3x3_wgmma(const Conv3x3Arguments& a, Stream stream) {
  if (!runs_sm_90a()) {
    return fail(Status::kUnsupported,
                "conv3x3: tile: wgmma needs a GPU of compute capability 9.0 and a build for sm_90a, got %d", a.tile);
  }
  return a.bfloat16 ? launch_by_tile<BFloat16>(a, stream) : launch_by_tile<Half>(a, stream);
}

}  // namespace mvk
