// How the tile kernel of the inverted residual is launched, whole tiles or split ones. Their instances are two files,
// so that they compile at the same time.
#pragma once

#include "inverted_residual.cuh"
#include "launchers.h"

namespace mvk {

// 20 accumulator tiles; wider outputs take several passes over the tile.
constexpr int inverted_residual_pass_channels(int out_channels) { return out_channels < 160 ? out_channels : 160; }

template <class Config>
Status launch_inverted_residual(const char* name, const InvertedResidualArguments& a, Stream stream) {
  using T = typename Config::Type;
  const std::int64_t in_pixels = std::int64_t{a.batch} * a.height * a.width;
  const int out_height = (a.height - 1) / a.stride + 1;
  const int out_width = (a.width - 1) / a.stride + 1;
  const int pass_channels = inverted_residual_pass_channels(a.out_channels);
  const int passes = ceil_div(a.out_channels, pass_channels);
  const int chunks = ceil_div(a.hidden_channels, Config::kChunk);
  const std::int64_t record_bytes = inverted_residual_record(a.in_channels, Config::kChunk, pass_channels).bytes;
  InvertedResidualParams<T> params;
  params.x = Global<const T>(static_cast<const T*>(a.x), in_pixels * a.in_channels);
  params.weights = Global<const T>(static_cast<const T*>(a.weights), passes * chunks * record_bytes / 2);
  params.bias = Global<const float>(a.bias, a.out_channels);
  params.y = Global<T>(static_cast<T*>(a.y), std::int64_t{a.batch} * out_height * out_width * a.out_channels);
  params.height = a.height;
  params.width = a.width;
  params.out_height = out_height;
  params.out_width = out_width;
  params.in_channels = a.in_channels;
  params.hidden_channels = a.hidden_channels;
  params.out_channels = a.out_channels;
  params.pass_channels = pass_channels;
  params.dilation = a.dilation;
  params.tiles_x = ceil_div(ceil_div(out_width, a.dilation), Config::kTileColumns);
  params.tiles_y = ceil_div(ceil_div(out_height, a.dilation), Config::kTileRows);
  params.chunks = chunks;
  params.residual = a.residual;
  LaunchShape shape;
  const int blocks = Config::kSplit ? a.cluster_blocks : 1;
  shape.blocks_x = std::int64_t{a.batch} * a.dilation * a.dilation * params.tiles_x * params.tiles_y * blocks;
  shape.blocks_y = passes;
  shape.threads = Config::kThreads;
  shape.shared_bytes = inverted_residual_layout<Config>(a.in_channels, pass_channels, blocks).bytes;
  shape.cluster = blocks;
  return launch<inverted_residual_kernel<Config>>(name, shape, stream, params);
}

}  // namespace mvk
