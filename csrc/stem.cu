// Launcher of the stem: checks, picks the types, launches.
#include "launchers.h"
#include "stem.cuh"

namespace mvk {

namespace {

template <class T, class Image>
Status launch_part(const StemArguments& a, Stream stream) {
  using Config = StemConfig<T, Image>;
  const int out_height = (a.height + 1) / 2;
  const int out_width = (a.width + 1) / 2;
  StemParams<T, Image> params;
  params.image = Global<const Image>(static_cast<const Image*>(a.x),
                                     std::int64_t{a.batch} * Config::kChannels * a.height * a.width);
  params.weights =
      Global<const T>(static_cast<const T*>(a.weights), 2 * ceil_div(a.out_channels, 16) * Config::kFragment);
  params.bias = Global<const float>(a.bias, a.out_channels);
  params.y = Global<T>(static_cast<T*>(a.y), std::int64_t{a.batch} * out_height * out_width * a.out_channels);
  params.stride_image = static_cast<int>(a.stride_image);
  params.stride_channel = static_cast<int>(a.stride_channel);
  params.stride_row = static_cast<int>(a.stride_row);
  params.stride_column = static_cast<int>(a.stride_column);
  params.height = a.height;
  params.width = a.width;
  params.out_height = out_height;
  params.out_width = out_width;
  params.out_channels = a.out_channels;
  params.tiles_x = ceil_div(out_width, Config::kColumns);
  params.scale0 = a.scale0;
  params.scale1 = a.scale1;
  params.scale2 = a.scale2;
  params.shift0 = a.shift0;
  params.shift1 = a.shift1;
  params.shift2 = a.shift2;
  constexpr int kVector = StemConfig<T, Image>::kVector;
  params.planar = sizeof(Image) == 2 && a.stride_column == 1 && a.width % kVector == 0 && a.stride_row % kVector == 0 &&
                  a.stride_channel % kVector == 0 && a.stride_image % kVector == 0 &&
                  reinterpret_cast<std::uintptr_t>(a.x) % 16 == 0;
  LaunchShape shape;
  shape.blocks_x = std::int64_t{params.tiles_x} * ceil_div(out_height, Config::kRows);
  shape.blocks_y = a.batch;
  shape.threads = Config::kThreads;
  shape.shared_bytes = Config::kSharedBytes;
  return launch<stem_kernel<Config>>("stem", shape, stream, params);
}

// The kernel counts image values and outputs in 32 bits and images in blockIdx.y: a larger batch goes in parts.
template <class T, class Image>
Status launch_types(const StemArguments& a, Stream stream) {
  const std::int64_t image_values = std::int64_t{StemConfig<T, Image>::kChannels} * a.height * a.width;
  const std::int64_t image_outputs = std::int64_t{(a.height + 1) / 2} * ((a.width + 1) / 2) * a.out_channels;
  const std::int64_t fitting = 2147483647 / (image_values > image_outputs ? image_values : image_outputs);
  const int most = static_cast<int>(fitting < 65535 ? fitting : 65535);
  for (int first = 0; first < a.batch; first += most) {
    StemArguments part = a;
    part.x = static_cast<const Image*>(a.x) + first * image_values;
    part.y = static_cast<T*>(a.y) + first * image_outputs;
    part.batch = a.batch - first < most ? a.batch - first : most;
    const Status status = launch_part<T, Image>(part, stream);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

template <class T>
Status launch_by_image(const StemArguments& a, Stream stream) {
  switch (a.image) {
    case ImageType::kUInt8:
      return launch_types<T, std::uint8_t>(a, stream);
    case ImageType::kFloat16:
      return launch_types<T, Half>(a, stream);
    case ImageType::kBFloat16:
      return launch_types<T, BFloat16>(a, stream);
    case ImageType::kFloat32:
      return launch_types<T, float>(a, stream);
  }
  return fail(Status::kInvalidArgument, "stem: image: expected a type number 0 … 3, got %d", static_cast<int>(a.image));
}

}  // namespace

Status stem(const StemArguments& a, Stream stream) {
  if (a.out_channels < 8 || a.out_channels % 8 != 0) {
    return fail(Status::kInvalidArgument, "stem: expected output channels that are a multiple of 8, got %d",
                a.out_channels);
  }
  if (a.batch < 1 || a.height < 1 || a.width < 1) {
    return fail(Status::kInvalidArgument, "stem: expected non-empty images, got batch %d, %d × %d pixels", a.batch,
                a.height, a.width);
  }
  const std::int64_t outputs = std::int64_t{(a.height + 1) / 2} * ((a.width + 1) / 2) * a.out_channels;
  if (std::int64_t{a.height} * a.width > 2147483647 / 3 || outputs > 2147483647) {
    return fail(Status::kInvalidArgument, "stem: expected fewer than 2^31 values an image, got %d × %d pixels, out %d",
                a.height, a.width, a.out_channels);
  }
  return a.bfloat16 ? launch_by_image<BFloat16>(a, stream) : launch_by_image<Half>(a, stream);
}

}  // namespace mvk
