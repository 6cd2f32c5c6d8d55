// Instances of the transformer kernel on clusters, and how one is launched. Each dtype's instances are a file of their
// own, so that they compile at the same time.
#pragma once

#include "launchers.h"
#include "transformer_cluster.cuh"
#include "transformer_cluster_long.cuh"

namespace mvk {

struct TransformerClusterInstance {
  int dim;
  int rows;    // of a cluster
  bool sends;  // blocks send to each other, without cluster barriers
  int shared_bytes;
  Status (*launch)(const TransformerClusterArguments&, Stream);
};

struct TransformerClusterInstances {
  const TransformerClusterInstance* first;
  int count;
};

TransformerClusterInstances transformer_cluster_instances_float16();
TransformerClusterInstances transformer_cluster_instances_bfloat16();

template <class Config>
Status launch_transformer_cluster(const TransformerClusterArguments& a, Stream stream) {
  using T = typename Config::Type;
  const int out_slice = ceil_div(ceil_div(a.out_channels, 8), Config::kColumnBlocks);
  if (a.in_channels > Config::kMaxInChannels || out_slice > Config::kAttentionSlice) {
    return fail(Status::kInvalidArgument,
                "transformer_cluster: expected at most %d channels in and %d out with dim %d, got %d and %d",
                Config::kMaxInChannels, 8 * Config::kMaxOutTiles, Config::kDim, a.in_channels, a.out_channels);
  }
  const int stream_elements = Config::slice_elements(ceil_div(a.in_channels, 16), Config::kDimSlice) +
                              a.num_layers * Config::kLayerElements + Config::slice_elements(Config::kSteps, out_slice);
  if (a.weight_units * 8 != stream_elements * Config::kColumnBlocks) {
    return fail(Status::kInvalidArgument, "transformer_cluster: weights: expected %d units of 16 bytes, got %d",
                stream_elements * Config::kColumnBlocks / 8, a.weight_units);
  }
  const int limit = shared_memory_limit();
  if (Config::kSharedBytes > limit) {
    return fail(Status::kUnsupported,
                "transformer_cluster: dim %d needs %d bytes of shared memory a block, this device has %d", Config::kDim,
                Config::kSharedBytes, limit);
  }
  const std::int64_t pixels = std::int64_t{a.batch} * a.height * a.width;
  TransformerClusterParams<T> params;
  params.x = Global<const T>(static_cast<const T*>(a.x), pixels * a.in_channels);
  params.weights = Global<const T>(static_cast<const T*>(a.weights), std::int64_t{a.weight_units} * 8);
  params.y = Global<T>(static_cast<T*>(a.y), pixels * a.out_channels);
  params.map = patch_map(a.batch, a.height, a.width, a.patch_height, a.patch_width);
  params.in_channels = a.in_channels;
  params.out_channels = a.out_channels;
  params.layers = a.num_layers;
  params.sequence_rows = a.sequence_rows;
  params.cluster_sequences = Config::kClusterRows / a.sequence_rows;
  params.stream_elements = stream_elements;
  params.epsilon = a.epsilon;
  params.activation = a.activation;
  LaunchShape shape;
  shape.blocks_x = std::int64_t{ceil_div(params.map.sequences, params.cluster_sequences)} * Config::kBlocks;
  shape.blocks_y = 1;
  shape.threads = Config::kThreads;
  shape.shared_bytes = Config::kSharedBytes;
  shape.cluster = Config::kBlocks;
  return launch<transformer_cluster_kernel<Config>>("transformer_cluster", shape, stream, params);
}

template <class Config>
Status launch_transformer_cluster_long(const TransformerClusterArguments& a, Stream stream) {
  using T = typename Config::Type;
  if (a.in_channels > Config::kMaxChannels || a.out_channels > Config::kMaxChannels) {
    return fail(Status::kInvalidArgument,
                "transformer_cluster: expected at most %d channels in and out with dim %d, got %d and %d",
                Config::kMaxChannels, Config::kDim, a.in_channels, a.out_channels);
  }
  const auto chunks_of = [](int steps, int a_chunk) { return ceil_div(steps, a_chunk); };
  const int chunks = chunks_of(ceil_div(a.in_channels, 16), Config::kChunkSteps) +
                     a.num_layers * (1 + chunks_of(Config::kHeads * Config::kHeadTiles / 2, Config::kChunkSteps) +
                                     chunks_of(Config::kSteps, Config::kWideChunkSteps) +
                                     chunks_of(Config::kTiles, Config::kChunkSteps)) +
                     chunks_of(Config::kSteps, Config::kWideChunkSteps);
  if (a.table == nullptr || a.chunks != chunks) {
    return fail(Status::kInvalidArgument, "transformer_cluster: table: expected %d chunks a head, got %d", chunks,
                a.table == nullptr ? 0 : a.chunks);
  }
  const int limit = shared_memory_limit();
  if (Config::kSharedBytes > limit) {
    return fail(Status::kUnsupported,
                "transformer_cluster: dim %d needs %d bytes of shared memory a block, this device has %d", Config::kDim,
                Config::kSharedBytes, limit);
  }
  const std::int64_t pixels = std::int64_t{a.batch} * a.height * a.width;
  TransformerClusterLongParams<T> params;
  params.x = Global<const T>(static_cast<const T*>(a.x), pixels * a.in_channels);
  params.weights = Global<const T>(static_cast<const T*>(a.weights), std::int64_t{a.weight_units} * 8);
  params.table = Global<const std::uint32_t>(static_cast<const std::uint32_t*>(a.table),
                                             std::int64_t{Config::kHeads} * chunks * 2);
  params.y = Global<T>(static_cast<T*>(a.y), pixels * a.out_channels);
  params.map = patch_map(a.batch, a.height, a.width, a.patch_height, a.patch_width);
  params.in_channels = a.in_channels;
  params.out_channels = a.out_channels;
  params.layers = a.num_layers;
  params.chunks = chunks;
  params.epsilon = a.epsilon;
  params.activation = a.activation;
  LaunchShape shape;
  shape.blocks_x = std::int64_t{params.map.sequences} * Config::kBlocks;
  shape.blocks_y = 1;
  shape.threads = Config::kThreads;
  shape.shared_bytes = Config::kSharedBytes;
  shape.cluster = Config::kBlocks;
  return launch<transformer_cluster_long_kernel<Config>>("transformer_cluster, long", shape, stream, params);
}

template <class Config>
constexpr TransformerClusterInstance transformer_cluster_long_instance() {
  return {Config::kDim, Config::kClusterRows, Config::kSends, Config::kSharedBytes,
          &launch_transformer_cluster_long<Config>};
}

template <class Config>
constexpr TransformerClusterInstance transformer_cluster_instance() {
  return {Config::kDim, Config::kClusterRows, Config::kSends, Config::kSharedBytes,
          &launch_transformer_cluster<Config>};
}

// mobilevit_kernels/native/transformer_plan.py has the same table, with its reasons, and chooses.
template <class T>
TransformerClusterInstances transformer_cluster_instances() {
  static constexpr TransformerClusterInstance kInstances[] = {
      transformer_cluster_long_instance<TransformerClusterLongConfig<T, 64, 2, false>>(),
      transformer_cluster_long_instance<TransformerClusterLongConfig<T, 96, 3, false>>(),
      transformer_cluster_long_instance<TransformerClusterLongConfig<T, 144, 5, false>>(),
      transformer_cluster_long_instance<TransformerClusterLongConfig<T, 64, 2, true>>(),
      transformer_cluster_long_instance<TransformerClusterLongConfig<T, 96, 3, true>>(),
      transformer_cluster_long_instance<TransformerClusterLongConfig<T, 144, 5, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 80, 3, 64, 2, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 120, 4, 64, 2, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 192, 6, 64, 2, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 96, 3, 16, 1, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 144, 5, 16, 1, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 240, 8, 16, 1, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 96, 3, 64, 1, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 144, 5, 64, 1, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 240, 8, 64, 1, false>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 80, 3, 64, 2, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 120, 4, 64, 2, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 192, 6, 64, 2, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 96, 3, 16, 1, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 144, 5, 16, 1, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 240, 8, 16, 1, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 96, 3, 64, 1, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 144, 5, 64, 1, true>>(),
      transformer_cluster_instance<TransformerClusterConfig<T, 240, 8, 64, 1, true>>(),
  };
  return {kInstances, sizeof(kInstances) / sizeof(kInstances[0])};
}

}  // namespace mvk
