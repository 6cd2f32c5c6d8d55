// Launcher of attention across patches: checks, picks the instance, launches.
#include "launchers.h"
#include "unfold_attention_fold.cuh"

namespace mvk {

namespace {

template <class Config>
Status launch_config(const UnfoldAttentionFoldArguments& a, Stream stream) {
  using T = typename Config::Type;
  const std::int64_t pixels = std::int64_t{a.batch} * a.height * a.width;
  UnfoldAttentionFoldParams<T> params;
  params.qkv = Global<const T>(static_cast<const T*>(a.qkv), pixels * 3 * a.dim);
  params.y = Global<T>(static_cast<T*>(a.y), pixels * a.dim);
  params.map = patch_map(a.batch, a.height, a.width, a.patch_height, a.patch_width);
  params.dim = a.dim;
  params.head_dim = a.dim / a.num_heads;
  params.row_tiles = ceil_div(params.map.tokens, Config::kRows);
  params.scale = (a.scale < 0 ? -a.scale : a.scale) * 1.44269504088896f;
  params.query_factor = a.scale < 0 ? -1.0f : 1.0f;
  if (a.scale == 0) {  // all scores are equal: they are zero, and their scale is of no matter
    params.scale = 1.0f;
    params.query_factor = 0.0f;
  }
  LaunchShape shape;
  shape.blocks_x = std::int64_t{params.map.sequences} * params.row_tiles;
  shape.blocks_y = a.num_heads;
  shape.threads = Config::kThreads;
  shape.shared_bytes = Config::kSharedBytes;
  return launch<unfold_attention_fold_kernel<Config>>("unfold_attention_fold", shape, stream, params);
}

// The published head dims 16 to 60 without waste, and others up to 128.
template <class T>
Status launch_by_head(const UnfoldAttentionFoldArguments& a, Stream stream) {
  const int tiles = ceil_div(a.dim / a.num_heads, 8);
  if (tiles <= 2) return launch_config<UnfoldAttentionFoldConfig<T, 2>>(a, stream);
  if (tiles <= 3) return launch_config<UnfoldAttentionFoldConfig<T, 3>>(a, stream);
  if (tiles <= 4) return launch_config<UnfoldAttentionFoldConfig<T, 4>>(a, stream);
  if (tiles <= 5) return launch_config<UnfoldAttentionFoldConfig<T, 5>>(a, stream);
  if (tiles <= 6) return launch_config<UnfoldAttentionFoldConfig<T, 6>>(a, stream);
  if (tiles <= 8) return launch_config<UnfoldAttentionFoldConfig<T, 8>>(a, stream);
  return launch_config<UnfoldAttentionFoldConfig<T, 16>>(a, stream);
}

}  // namespace

Status unfold_attention_fold(const UnfoldAttentionFoldArguments& a, Stream stream) {
  if (a.batch < 1 || a.height < 1 || a.width < 1 || a.patch_height < 1 || a.patch_width < 1 ||
      a.height % a.patch_height != 0 || a.width % a.patch_width != 0) {
    return fail(Status::kInvalidArgument,
                "unfold_attention_fold: expected whole patches, got batch %d, %d × %d pixels, patches of %d × %d",
                a.batch, a.height, a.width, a.patch_height, a.patch_width);
  }
  const int head_dim = a.num_heads > 0 && a.dim % a.num_heads == 0 ? a.dim / a.num_heads : 0;
  if (head_dim < 1 || head_dim > 128 || head_dim % 2 != 0) {
    return fail(Status::kInvalidArgument,
                "unfold_attention_fold: expected heads of an even number of channels up to 128, got %d channels in %d "
                "heads",
                a.dim, a.num_heads);
  }
  return a.bfloat16 ? launch_by_head<BFloat16>(a, stream) : launch_by_head<Half>(a, stream);
}

}  // namespace mvk
