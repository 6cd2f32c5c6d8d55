// Launcher of the transformer stage on wgmma: checks, picks the instance.
#include "launchers.h"
#include "transformer_wgmma.cuh"

namespace mvk {

namespace {

struct TransformerWgmmaInstance {
  int dim;
  int tokens;
  int shared_bytes;
  Status (*launch)(const TransformerWgmmaArguments&, Stream);
};

template <class Config>
Status launch_transformer_wgmma(const TransformerWgmmaArguments& a, Stream stream) {
  using T = typename Config::Type;
  const int in_chunks = ceil_div(a.in_channels, 16 * Config::kDepth);
  const int out_chunks = ceil_div(a.out_channels, Config::kHidden);
  const int units = (in_chunks * Config::kSlabElements + a.num_layers * Config::kLayerElements +
                     out_chunks * Config::kPanelElements) /
                    8;
  if (a.weight_units != units) {
    return fail(Status::kInvalidArgument, "transformer_wgmma: weights: expected %d units of 16 bytes, got %d", units,
                a.weight_units);
  }
  const int limit = shared_memory_limit();
  if (Config::kSharedBytes > limit) {
    return fail(Status::kUnsupported,
                "transformer_wgmma: dim %d needs %d bytes of shared memory a block, this device has %d", Config::kDim,
                Config::kSharedBytes, limit);
  }
  const std::int64_t pixels = std::int64_t{a.batch} * a.height * a.width;
  TransformerWgmmaParams<T> params;
  params.x = Global<const T>(static_cast<const T*>(a.x), pixels * a.in_channels);
  params.weights = Global<const T>(static_cast<const T*>(a.weights), std::int64_t{a.weight_units} * 8);
  params.biases = Global<const float>(a.biases, (a.num_layers > 0 ? a.num_layers : 1) * 2 * Config::kDim);
  params.y = Global<T>(static_cast<T*>(a.y), pixels * a.out_channels);
  params.map = patch_map(a.batch, a.height, a.width, a.patch_height, a.patch_width);
  params.in_channels = a.in_channels;
  params.out_channels = a.out_channels;
  params.layers = a.num_layers;
  params.in_chunks = in_chunks;
  params.out_chunks = out_chunks;
  params.epsilon = a.epsilon;
  params.activation = a.activation;
  LaunchShape shape;
  shape.blocks_x = ceil_div(params.map.sequences, Config::kRows / Config::kTokens);
  shape.blocks_y = 1;
  shape.threads = Config::kThreads;
  shape.shared_bytes = Config::kSharedBytes;
  return launch<transformer_wgmma_kernel<Config>>("transformer_wgmma", shape, stream, params);
}

template <class Config>
constexpr TransformerWgmmaInstance instance_of() {
  return {Config::kDim, Config::kTokens, Config::kSharedBytes, &launch_transformer_wgmma<Config>};
}

// mobilevit_kernels/native/transformer_plan.py has the same table.
template <class T>
const TransformerWgmmaInstance* find_instance(int dim, int tokens) {
  static constexpr TransformerWgmmaInstance kInstances[] = {
      instance_of<TransformerWgmmaConfig<T, 64, 256, 4, 64, 4>>(),
      instance_of<TransformerWgmmaConfig<T, 96, 256, 4, 64, 6>>(),
      instance_of<TransformerWgmmaConfig<T, 144, 256, 4, 48, 3>>(),
      instance_of<TransformerWgmmaConfig<T, 80, 64, 4, 80, 5>>(),
      instance_of<TransformerWgmmaConfig<T, 120, 64, 4, 48, 4>>(),
      instance_of<TransformerWgmmaConfig<T, 192, 64, 2, 64, 4>>(),
      instance_of<TransformerWgmmaConfig<T, 96, 16, 4, 64, 6>>(),
      instance_of<TransformerWgmmaConfig<T, 144, 16, 4, 48, 3>>(),
      instance_of<TransformerWgmmaConfig<T, 240, 16, 2, 48, 3>>(),
  };
  for (const TransformerWgmmaInstance& instance : kInstances) {
    if (instance.dim == dim && instance.tokens == tokens) return &instance;
  }
  return nullptr;
}

}  // namespace

int transformer_wgmma_shared_bytes(int dim, int tokens) {
  const TransformerWgmmaInstance* const instance = find_instance<Half>(dim, tokens);
  return instance == nullptr ? 0 : instance->shared_bytes;
}

Status transformer_wgmma(const TransformerWgmmaArguments& a, Stream stream) {
  if (a.in_channels < 1 || a.in_channels % 8 != 0 || a.out_channels < 1 || a.out_channels % 8 != 0) {
    return fail(Status::kInvalidArgument,
                "transformer_wgmma: expected channels that are multiples of 8, got in %d, out %d", a.in_channels,
                a.out_channels);
  }
  if (a.batch < 1 || a.height < 1 || a.width < 1 || a.patch_height < 1 || a.patch_width < 1 ||
      a.height % a.patch_height != 0 || a.width % a.patch_width != 0) {
    return fail(Status::kInvalidArgument,
                "transformer_wgmma: expected whole patches, got batch %d, %d × %d pixels, patches of %d × %d", a.batch,
                a.height, a.width, a.patch_height, a.patch_width);
  }
  const int tokens = a.height / a.patch_height * (a.width / a.patch_width);
  const TransformerWgmmaInstance* const instance =
      a.bfloat16 ? find_instance<BFloat16>(a.dim, tokens) : find_instance<Half>(a.dim, tokens);
  if (instance == nullptr) {
    return fail(Status::kInvalidArgument, "transformer_wgmma: no kernel of %d channels and %d tokens", a.dim, tokens);
  }
  if (!runs_sm_90a()) {
    return fail(Status::kUnsupported,
                "transformer_wgmma: wgmma needs a GPU of compute capability 9.0 and a build for sm_90a");
  }
  return instance->launch(a, stream);
}

}  // namespace mvk
