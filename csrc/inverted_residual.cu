// Launcher of the inverted residual: checks, picks the configuration, launches.
#include "inverted_residual_launch.cuh"

namespace mvk {

namespace {

template <class T, int kStride, int kOutTiles, bool kLargeTile>
Status launch_tiles(const InvertedResidualArguments& arguments, Stream stream) {
  using Config = InvertedResidualConfig<T, kStride, kOutTiles, kLargeTile, false>;
  return launch_inverted_residual<Config>("inverted_residual", arguments, stream);
}

template <class T, int kStride, bool kLargeTile>
Status launch_by_out_tiles(const InvertedResidualArguments& arguments, Stream stream) {
  const int out_tiles = arguments.out_channels / 8;
  if (out_tiles <= 4) return launch_tiles<T, kStride, 4, kLargeTile>(arguments, stream);
  if (out_tiles <= 8) return launch_tiles<T, kStride, 8, kLargeTile>(arguments, stream);
  if (out_tiles <= 12) return launch_tiles<T, kStride, 12, kLargeTile>(arguments, stream);
  if (out_tiles <= 16) return launch_tiles<T, kStride, 16, kLargeTile>(arguments, stream);
  return launch_tiles<T, kStride, 20, kLargeTile>(arguments, stream);
}

template <class T, int kStride>
Status launch_by_tile(const InvertedResidualArguments& arguments, Stream stream) {
  if (arguments.chunk == 64) return launch_by_out_tiles<T, kStride, true>(arguments, stream);
  return launch_by_out_tiles<T, kStride, false>(arguments, stream);
}

template <class T>
Status launch_by_stride(const InvertedResidualArguments& arguments, Stream stream) {
  return arguments.stride == 1 ? launch_by_tile<T, 1>(arguments, stream) : launch_by_tile<T, 2>(arguments, stream);
}

}  // namespace

int inverted_residual_shared_bytes(int in_channels, int out_channels, int stride, int chunk) {
  // The layout does not depend on the dtype, nor on the number of accumulator tiles.
  const auto bytes = [&](auto config) {
    using Config = decltype(config);
    return inverted_residual_layout<Config>(in_channels, inverted_residual_pass_channels(out_channels), 1).bytes;
  };
  if (stride == 1 && chunk == 64) return bytes(InvertedResidualConfig<Half, 1, 4, true, false>{});
  if (stride == 1) return bytes(InvertedResidualConfig<Half, 1, 4, false, false>{});
  if (chunk == 64) return bytes(InvertedResidualConfig<Half, 2, 4, true, false>{});
  return bytes(InvertedResidualConfig<Half, 2, 4, false, false>{});
}

Status inverted_residual(const InvertedResidualArguments& a, Stream stream) {
  const auto positive_multiple_of_8 = [](int value) { return value > 0 && value % 8 == 0; };
  if (!positive_multiple_of_8(a.in_channels) || !positive_multiple_of_8(a.hidden_channels) ||
      !positive_multiple_of_8(a.out_channels)) {
    return fail(Status::kInvalidArgument,
                "inverted_residual: expected channels that are multiples of 8, got in %d, hidden %d, out %d",
                a.in_channels, a.hidden_channels, a.out_channels);
  }
  if (a.batch < 1 || a.height < 1 || a.width < 1) {
    return fail(Status::kInvalidArgument, "inverted_residual: expected a non-empty input, got batch %d, %d × %d pixels",
                a.batch, a.height, a.width);
  }
  if (a.stride != 1 && a.stride != 2) {
    return fail(Status::kInvalidArgument, "inverted_residual: stride: expected 1 or 2, got %d", a.stride);
  }
  if (a.dilation < 1) {
    return fail(Status::kInvalidArgument, "inverted_residual: dilation: expected a positive number, got %d",
                a.dilation);
  }
  if (a.residual && (a.stride != 1 || a.in_channels != a.out_channels)) {
    return fail(Status::kInvalidArgument,
                "inverted_residual: residual: expected stride 1 and equal channels, got %d, %d → %d", a.stride,
                a.in_channels, a.out_channels);
  }
  if (a.chunk != 32 && a.chunk != 64) {
    return fail(Status::kInvalidArgument, "inverted_residual: chunk: expected 32 or 64, got %d", a.chunk);
  }
  if (a.cluster_blocks != 0) return inverted_residual_cluster(a, stream);
  const int limit = shared_memory_limit();
  // The row kernel counts pixels in 32 bits.
  const bool small = std::int64_t{a.batch} * a.height * (a.width + 3) < 2147483647;
  if (a.row_weights != nullptr && a.dilation == 1 && small &&
      inverted_residual_rows_shared_bytes(a.in_channels, a.hidden_channels, a.out_channels, a.stride, limit) > 0) {
    return inverted_residual_rows(a, stream);
  }
  const int needed = inverted_residual_shared_bytes(a.in_channels, a.out_channels, a.stride, a.chunk);
  if (needed > limit) {
    return fail(
        Status::kUnsupported,
        "inverted_residual: %d → %d → %d channels at stride %d need %d bytes of shared memory a block, this device "
        "has %d",
        a.in_channels, a.hidden_channels, a.out_channels, a.stride, needed, limit);
  }
  return a.bfloat16 ? launch_by_stride<BFloat16>(a, stream) : launch_by_stride<Half>(a, stream);
}

}  // namespace mvk
