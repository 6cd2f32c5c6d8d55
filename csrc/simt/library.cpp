// C interface of the simulator's library, for ctypes: the launchers, the buffers they may touch, the counters.
#include <cstring>

#include "../launchers.h"
#include "../testing/testing.h"
#include "runtime.h"

using namespace mvk;

namespace {

// A launcher's own checks throw nothing; describing memory that nobody registered does.
template <class Call>
int guarded(const Call& call) {
  try {
    return static_cast<int>(call());
  } catch (const simt::BadView& bad) {
    return static_cast<int>(fail(Status::kSimulator, "%s", bad.message.c_str()));
  }
}

}  // namespace

extern "C" {

const char* mvk_last_error() { return last_error(); }
void mvk_set_seed(std::uint64_t seed) { simt::options().seed = seed; }
void mvk_set_shared_limit(int bytes) { simt::options().shared_limit = bytes; }
void mvk_set_multiprocessors(int count) { simt::options().multiprocessors = count; }
void mvk_clear_buffers() { simt::clear_buffers(); }
void mvk_add_buffer(const char* name, const void* pointer, std::uint64_t bytes, int kind) {
  simt::add_buffer(name, pointer, bytes, static_cast<simt::BufferKind>(kind));
}
void mvk_reset_counters() { simt::counters() = simt::Counters{}; }
// Counters is a plain row of 64-bit numbers; mobilevit_kernels/simt names them in the same order.
int mvk_counters(std::uint64_t* values, int capacity) {
  constexpr int kCount = sizeof(simt::Counters) / sizeof(std::uint64_t);
  if (capacity >= kCount) std::memcpy(values, &simt::counters(), sizeof(simt::Counters));
  return kCount;
}
int mvk_launched_shared_bytes() { return simt::last_launch().shared_bytes; }
int mvk_buffer_count() { return static_cast<int>(simt::buffers().size()); }
// Bytes that lanes read, distinct bytes read (whole sectors), bytes written.
void mvk_buffer_traffic(int index, std::uint64_t* values) {
  const simt::Buffer& buffer = *simt::buffers()[static_cast<std::size_t>(index)];
  std::uint64_t sectors = 0;
  for (const std::uint8_t read : buffer.sectors_read) sectors += read;
  values[0] = buffer.read_bytes;
  values[1] = 32 * sectors;
  values[2] = buffer.write_bytes;
}

int mvk_inverted_residual_shared_bytes(int in_channels, int out_channels, int stride, int chunk) {
  return inverted_residual_shared_bytes(in_channels, out_channels, stride, chunk);
}
int mvk_inverted_residual_cluster_shared_bytes(int in_channels, int out_channels, int stride, int chunk, int blocks) {
  return inverted_residual_cluster_shared_bytes(in_channels, out_channels, stride, chunk, blocks);
}
int mvk_inverted_residual_rows_shared_bytes(int in_channels, int hidden_channels, int out_channels, int stride,
                                            int limit) {
  return inverted_residual_rows_shared_bytes(in_channels, hidden_channels, out_channels, stride, limit);
}
int mvk_inverted_residual_rows_dealt_pixels(int in_channels, int hidden_channels, int out_channels, int stride,
                                            int limit) {
  return inverted_residual_rows_dealt_pixels(in_channels, hidden_channels, out_channels, stride, limit);
}
long long mvk_inverted_residual_rows_workspace_bytes(int in_channels, int out_channels, int stride, int batch,
                                                     int height, int width) {
  return inverted_residual_rows_workspace_bytes(in_channels, out_channels, stride, batch, height, width);
}
int mvk_inverted_residual(const InvertedResidualArguments* arguments) {
  return guarded([&] { return inverted_residual(*arguments, Stream{}); });
}

int mvk_transformer_shared_bytes(int instance_dim, int head_tiles, int instance_rows, int all_head_tiles) {
  return transformer_shared_bytes(instance_dim, head_tiles, instance_rows, all_head_tiles);
}
int mvk_transformer(const TransformerArguments* arguments) {
  return guarded([&] { return transformer(*arguments, Stream{}); });
}
int mvk_transformer_cluster_shared_bytes(int dim, int cluster_rows, int sends) {
  return transformer_cluster_shared_bytes(dim, cluster_rows, sends != 0);
}
int mvk_transformer_cluster(const TransformerClusterArguments* arguments) {
  return guarded([&] { return transformer_cluster(*arguments, Stream{}); });
}
int mvk_transformer_wgmma_shared_bytes(int dim, int tokens) { return transformer_wgmma_shared_bytes(dim, tokens); }
int mvk_transformer_wgmma(const TransformerWgmmaArguments* arguments) {
  return guarded([&] { return transformer_wgmma(*arguments, Stream{}); });
}
int mvk_unfold_attention_fold(const UnfoldAttentionFoldArguments* arguments) {
  return guarded([&] { return unfold_attention_fold(*arguments, Stream{}); });
}
int mvk_resize(const ResizeArguments* arguments) {
  return guarded([&] { return resize(*arguments, Stream{}); });
}
int mvk_conv3x3(const Conv3x3Arguments* arguments) {
  return guarded([&] { return conv3x3(*arguments, Stream{}); });
}

int mvk_stem(const StemArguments* arguments) {
  return guarded([&] { return stem(*arguments, Stream{}); });
}
int mvk_head_features(const HeadFeaturesArguments* arguments) {
  return guarded([&] { return head_features(*arguments, Stream{}); });
}
int mvk_head_classifier(const HeadClassifierArguments* arguments) {
  return guarded([&] { return head_classifier(*arguments, Stream{}); });
}

int mvk_golden(const char* name, const void* in, void* out, int warps) {
  return guarded([&] { return golden(name, in, out, warps, Stream{}); });
}
int mvk_planted(int fault, const std::uint32_t* in, std::uint32_t* out) {
  return guarded([&] { return planted(fault, in, out); });
}

}  // extern "C"
