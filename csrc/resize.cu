// Launcher of the bilinear resize: checks and launches.
#include "launchers.h"
#include "resize.cuh"

namespace mvk {

namespace {

template <class T>
Status launch_resize(const ResizeArguments& a, Stream stream) {
  const std::int64_t out_pixels = std::int64_t{a.batch} * a.out_height * a.out_width;
  ResizeParams<T> params;
  params.x = Global<const T>(static_cast<const T*>(a.x), std::int64_t{a.batch} * a.height * a.width * a.channels);
  params.y = Global<T>(static_cast<T*>(a.y), out_pixels * a.channels);
  params.height = a.height;
  params.width = a.width;
  params.channels = a.channels;
  params.out_height = a.out_height;
  params.out_width = a.out_width;
  params.row_scale = static_cast<float>(a.height) / static_cast<float>(a.out_height);
  params.column_scale = static_cast<float>(a.width) / static_cast<float>(a.out_width);
  params.vectors = out_pixels * (a.channels / kResizeChannels);
  params.silu = a.silu;
  LaunchShape shape;
  shape.blocks_x = (params.vectors + kResizeThreads - 1) / kResizeThreads;
  shape.blocks_y = 1;
  shape.threads = kResizeThreads;
  shape.shared_bytes = 0;
  return launch<resize_kernel<T>>("resize", shape, stream, params);
}

}  // namespace

Status resize(const ResizeArguments& a, Stream stream) {
  if (a.channels < kResizeChannels || a.channels % kResizeChannels != 0) {
    return fail(Status::kInvalidArgument, "resize: expected channels that are a multiple of 8, got %d", a.channels);
  }
  if (a.batch < 1 || a.height < 1 || a.width < 1 || a.out_height < 1 || a.out_width < 1) {
    return fail(Status::kInvalidArgument, "resize: expected maps, got batch %d, %d × %d → %d × %d pixels", a.batch,
                a.height, a.width, a.out_height, a.out_width);
  }
  return a.bfloat16 ? launch_resize<BFloat16>(a, stream) : launch_resize<Half>(a, stream);
}

}  // namespace mvk
