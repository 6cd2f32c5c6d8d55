// Launchers of the head: checks, picks the configurations, launches.
#include "head.cuh"
#include "launchers.h"

namespace mvk {

namespace {

template <class Config>
Status launch_features(const HeadFeaturesArguments& a, Stream stream) {
  using T = typename Config::Type;
  HeadFeaturesParams<T> params;
  const std::int64_t pixels = std::int64_t{a.batch} * a.height * a.width;
  params.pixels = static_cast<int>(pixels);
  params.group_pixels = Config::kPool ? a.height * a.width : Config::kChunk;
  params.groups = Config::kPool ? a.batch : ceil_div(params.pixels, Config::kChunk);
  params.in_channels = a.in_channels;
  params.hidden_channels = a.hidden_channels;
  params.out_tiles = 2 * ceil_div(a.hidden_channels, 16);
  params.x = Global<const T>(static_cast<const T*>(a.x), pixels * a.in_channels);
  params.weights = Global<const T>(static_cast<const T*>(a.weights),
                                   std::int64_t{ceil_div(a.in_channels, 16)} * params.out_tiles * Config::kFragment);
  params.bias = Global<const float>(a.bias, a.hidden_channels);
  params.y = Global<T>(static_cast<T*>(a.y), (Config::kPool ? a.batch : pixels) * a.hidden_channels);
  LaunchShape shape;
  shape.blocks_x = ceil_div(params.groups, Config::kGroups);
  shape.blocks_y = ceil_div(params.out_tiles, Config::kBlockTiles);
  shape.threads = Config::kThreads;
  shape.shared_bytes = Config::kSharedBytes;
  return launch<head_features_kernel<Config>>("head_features", shape, stream, params);
}

// The large block (two groups × 128 channels) reads half the pixels and weights of four small ones (one × 32); it needs
// enough of itself to fill the processors. Both give the same bits.
template <class T, bool kPool>
Status launch_features_by_size(const HeadFeaturesArguments& a, Stream stream) {
  constexpr int kProcessors = 132;
  const std::int64_t groups = kPool ? a.batch : std::int64_t{a.batch} * a.height * a.width / 64;
  const bool large = groups / 2 * ceil_div(a.hidden_channels, 128) >= kProcessors;
  return large ? launch_features<HeadConfig<T, 2, 4, kPool>>(a, stream)
               : launch_features<HeadConfig<T, 1, 1, kPool>>(a, stream);
}

template <class T>
Status launch_features_by_pool(const HeadFeaturesArguments& a, Stream stream) {
  return a.pool ? launch_features_by_size<T, true>(a, stream) : launch_features_by_size<T, false>(a, stream);
}

template <class Config>
Status launch_classifier(const HeadClassifierArguments& a, Stream stream) {
  using T = typename Config::Type;
  const int out_tiles = ceil_div(a.out_features, 8);
  HeadClassifierParams<T> params;
  params.x = Global<const T>(static_cast<const T*>(a.x), std::int64_t{a.rows} * a.in_features);
  params.weights =
      Global<const T>(static_cast<const T*>(a.weights), std::int64_t{ceil_div(a.in_features, 16)} * out_tiles * 128);
  params.bias = Global<const float>(a.bias, a.out_features);
  params.y = Global<T>(static_cast<T*>(a.y), std::int64_t{a.rows} * a.out_features);
  params.rows = a.rows;
  params.in_features = a.in_features;
  params.out_features = a.out_features;
  LaunchShape shape;
  shape.blocks_x = ceil_div(out_tiles, Config::kOutTiles);
  shape.blocks_y = ceil_div(a.rows, 16 * Config::kRowTiles);
  shape.threads = Config::kThreads;
  shape.shared_bytes = Config::kSharedBytes;
  return launch<head_classifier_kernel<Config>>("head_classifier", shape, stream, params);
}

// Up to 64 images 16 × 8 outputs a block, so that a thousand classes make 125 blocks; beyond, 64 × 32, which read a
// quarter of the weights and of the features again. Both give the same bits.
template <class T>
Status launch_classifier_by_rows(const HeadClassifierArguments& a, Stream stream) {
  return a.rows <= 64 ? launch_classifier<HeadClassifierConfig<T, 1, 1>>(a, stream)
                      : launch_classifier<HeadClassifierConfig<T, 4, 4>>(a, stream);
}

}  // namespace

Status head_features(const HeadFeaturesArguments& a, Stream stream) {
  if (a.in_channels < 8 || a.in_channels % 8 != 0 || a.hidden_channels < 8 || a.hidden_channels % 8 != 0) {
    return fail(Status::kInvalidArgument,
                "head_features: expected channels that are multiples of 8, got in %d, hidden %d", a.in_channels,
                a.hidden_channels);
  }
  if (std::int64_t{a.in_channels} * a.hidden_channels > 2147483647 / 2) {
    return fail(Status::kInvalidArgument, "head_features: expected fewer than 2^30 weights, got %d → %d channels",
                a.in_channels, a.hidden_channels);
  }
  if (a.batch < 1 || a.height < 1 || a.width < 1 || std::int64_t{a.batch} * a.height * a.width > 2147483647 - 64) {
    return fail(Status::kInvalidArgument,
                "head_features: expected between 1 and 2^31 - 65 pixels, got batch %d, %d × %d pixels", a.batch,
                a.height, a.width);
  }
  return a.bfloat16 ? launch_features_by_pool<BFloat16>(a, stream) : launch_features_by_pool<Half>(a, stream);
}

Status head_classifier(const HeadClassifierArguments& a, Stream stream) {
  if (a.in_features < 8 || a.in_features % 8 != 0 || a.out_features < 2 || a.out_features % 2 != 0) {
    return fail(Status::kInvalidArgument,
                "head_classifier: expected features that are a multiple of 8 and an even number of outputs, got %d and "
                "%d",
                a.in_features, a.out_features);
  }
  if (a.rows < 1 || a.rows > 65535 * 16) {
    return fail(Status::kInvalidArgument, "head_classifier: expected between 1 and %d rows, got %d", 65535 * 16,
                a.rows);
  }
  return a.bfloat16 ? launch_classifier_by_rows<BFloat16>(a, stream) : launch_classifier_by_rows<Half>(a, stream);
}

}  // namespace mvk
