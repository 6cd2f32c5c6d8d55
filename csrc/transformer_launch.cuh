// Instances of the transformer kernel, and how one is launched. Each dtype's instances are a file of their own, so that
// they compile at the same time.
#pragma once

#include "launchers.h"
#include "transformer.cuh"

namespace mvk {

struct TransformerInstance {
  int dim;
  int head_tiles;
  int rows;
  int (*shared_bytes)(int tiles);
  Status (*launch)(const TransformerArguments&, Stream);
};

struct TransformerInstances {
  const TransformerInstance* first;
  int count;
};

TransformerInstances transformer_instances_float16();
TransformerInstances transformer_instances_bfloat16();

template <class Config>
Status launch_transformer(const TransformerArguments& a, Stream stream) {
  using T = typename Config::Type;
  const int own_head_tiles = ceil_div(a.dim / a.num_heads, 8);
  const int shared_bytes = Config::shared_bytes(a.num_heads * own_head_tiles);
  const int limit = shared_memory_limit();
  if (shared_bytes > limit) {
    return fail(Status::kUnsupported,
                "transformer: %d channels in %d heads need %d bytes of shared memory a block, this device has %d",
                a.dim, a.num_heads, shared_bytes, limit);
  }
  const std::int64_t pixels = std::int64_t{a.batch} * a.height * a.width;
  const std::int64_t rows = a.split ? std::int64_t{a.blocks} * Config::kRows : 0;
  const std::int64_t keys_values = rows * a.num_heads * 16 * Config::kHeadTiles;
  TransformerParams<T> params;
  params.x = Global<const T>(static_cast<const T*>(a.x), pixels * a.in_channels);
  params.weights = Global<const T>(static_cast<const T*>(a.weights), std::int64_t{a.weight_units} * 8);
  params.table = Global<const std::uint32_t>(static_cast<const std::uint32_t*>(a.table), std::int64_t{a.chunks} * 4);
  params.biases = Global<const float>(a.biases, (a.num_layers > 0 ? a.num_layers : 1) * 2 * Config::kDim);
  params.y = Global<T>(static_cast<T*>(a.y), pixels * a.out_channels);
  params.in_channels = a.in_channels;
  params.out_channels = a.out_channels;
  params.dim = a.dim;
  params.map = patch_map(a.batch, a.height, a.width, a.patch_height, a.patch_width);
  params.sequence_rows = a.sequence_rows;
  params.block_rows = a.block_rows;
  params.heads = a.num_heads;
  params.own_head_tiles = own_head_tiles;
  params.hidden_groups = ceil_div(a.hidden_channels, 16);
  params.epsilon = a.epsilon;
  params.split = a.split;
  params.activation = a.activation;
  LaunchShape shape;
  shape.blocks_x = a.blocks;
  shape.blocks_y = 1;
  shape.threads = Config::kThreads;
  shape.shared_bytes = shared_bytes;
  if (!a.split) {
    params.starts = true;
    params.ends = true;
    params.first_layer = 0;
    params.last_layer = a.num_layers;
    params.first_chunk = 0;
    params.end_chunk = a.chunks;
    return launch<transformer_kernel<Config>>("transformer", shape, stream, params);
  }

  // The second half of the table is in the order of these launches. Two layers' K and V take turns.
  T* const workspace = static_cast<T*>(a.workspace);
  T* const turns[2] = {workspace, workspace + keys_values};
  params.rows = Global<T>(workspace + 2 * keys_values, rows * ceil_div(Config::kTiles, 2) * 16);
  const auto chunks_of = [](int records, int a_chunk) { return ceil_div(records, a_chunk); };
  const int input_chunks = chunks_of(ceil_div(a.in_channels, 16), Config::kPanels);
  const int key_value_chunks = a.num_heads * chunks_of(Config::kHeadTiles, Config::kPanels);
  const int layer_chunks = a.num_heads * chunks_of(Config::kQueryPanels, Config::kPanels) +
                           chunks_of(ceil_div(a.num_heads * own_head_tiles, 2), Config::kPanels) +
                           chunks_of(params.hidden_groups, Config::kGroups);
  params.end_chunk = a.chunks;
  for (int i = 0; i <= a.num_layers; ++i) {
    params.starts = i == 0;
    params.ends = i == a.num_layers;
    params.first_layer = i == 0 ? 0 : i - 1;
    params.last_layer = i;
    params.first_chunk = params.end_chunk;
    params.end_chunk += i == 0 ? input_chunks : layer_chunks;
    params.end_chunk += params.ends ? chunks_of(ceil_div(a.out_channels, 16), Config::kPanels) : key_value_chunks;
    params.keys_values_in = Global<const T>(turns[(i + 1) % 2], keys_values);
    params.keys_values_out = Global<T>(turns[i % 2], keys_values);
    const Status status = launch<transformer_kernel<Config>>("transformer, split", shape, stream, params);
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

template <class Config>
constexpr TransformerInstance transformer_instance() {
  return {Config::kDim, Config::kHeadTiles, Config::kRows, &Config::shared_bytes, &launch_transformer<Config>};
}

// mobilevit_kernels/native/transformer_plan.py has the same table, with its reasons, and chooses.
template <class T>
TransformerInstances transformer_instances() {
  static constexpr TransformerInstance kInstances[] = {
      transformer_instance<TransformerConfig<T, 64, 2, 2, 8, false>>(),
      transformer_instance<TransformerConfig<T, 80, 3, 2, 8, false>>(),
      transformer_instance<TransformerConfig<T, 96, 3, 2, 8, false>>(),
      transformer_instance<TransformerConfig<T, 120, 4, 2, 8, false>>(),
      transformer_instance<TransformerConfig<T, 144, 5, 2, 8, false>>(),
      transformer_instance<TransformerConfig<T, 192, 6, 1, 8, false>>(),
      transformer_instance<TransformerConfig<T, 240, 8, 1, 8, false>>(),
      transformer_instance<TransformerConfig<T, 64, 2, 1, 4, false>>(),
      transformer_instance<TransformerConfig<T, 80, 3, 1, 4, false>>(),
      transformer_instance<TransformerConfig<T, 96, 3, 1, 4, false>>(),
      transformer_instance<TransformerConfig<T, 120, 4, 1, 4, false>>(),
      transformer_instance<TransformerConfig<T, 144, 5, 1, 4, false>>(),
      transformer_instance<TransformerConfig<T, 192, 6, 1, 4, false>>(),
      transformer_instance<TransformerConfig<T, 240, 8, 1, 4, false>>(),
      transformer_instance<TransformerConfig<T, 64, 8, 1, 4, true>>(),
      transformer_instance<TransformerConfig<T, 128, 16, 1, 4, true>>(),
      transformer_instance<TransformerConfig<T, 256, 8, 1, 4, true>>(),
      transformer_instance<TransformerConfig<T, 256, 16, 1, 4, true>>(),
  };
  return {kInstances, sizeof(kInstances) / sizeof(kInstances[0])};
}

}  // namespace mvk
