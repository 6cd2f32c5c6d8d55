// Launcher of the inverted residual's tile kernel with the hidden channels split over a cluster.
#include "inverted_residual_launch.cuh"

namespace mvk {

namespace {

template <class T, int kStride, bool kLargeTile, class Visit>
auto visit_width(int out_channels, const Visit& visit) {
  if (out_channels <= 128) return visit(InvertedResidualConfig<T, kStride, 16, kLargeTile, true>{});
  return visit(InvertedResidualConfig<T, kStride, 20, kLargeTile, true>{});
}

// visit(config) of the instance. Narrow outputs need none of their own: a block has an SM to itself, and its registers.
template <class T, class Visit>
auto visit_config(int stride, int chunk, int out_channels, const Visit& visit) {
  if (stride == 1 && chunk == 64) return visit_width<T, 1, true>(out_channels, visit);
  if (stride == 1) return visit_width<T, 1, false>(out_channels, visit);
  if (chunk == 64) return visit_width<T, 2, true>(out_channels, visit);
  return visit_width<T, 2, false>(out_channels, visit);
}

}  // namespace

int inverted_residual_cluster_shared_bytes(int in_channels, int out_channels, int stride, int chunk, int blocks) {
  return visit_config<Half>(stride, chunk, out_channels, [&](auto config) {
    using Config = decltype(config);
    return inverted_residual_layout<Config>(in_channels, inverted_residual_pass_channels(out_channels), blocks).bytes;
  });
}

Status inverted_residual_cluster(const InvertedResidualArguments& a, Stream stream) {
  const int chunks = ceil_div(a.hidden_channels, a.chunk);
  if (a.cluster_blocks < 2 || a.cluster_blocks > kMostClusterBlocks || a.cluster_blocks > chunks) {
    return fail(Status::kInvalidArgument,
                "inverted_residual: cluster_blocks: expected 0, or 2 to %d and no more than the %d chunks, got %d",
                kMostClusterBlocks, chunks, a.cluster_blocks);
  }
  const int limit = shared_memory_limit();
  const int needed =
      inverted_residual_cluster_shared_bytes(a.in_channels, a.out_channels, a.stride, a.chunk, a.cluster_blocks);
  if (needed > limit) {
    return fail(Status::kUnsupported,
                "inverted_residual: %d → %d → %d channels at stride %d, split over %d blocks, need %d bytes of shared "
                "memory a block, this device has %d",
                a.in_channels, a.hidden_channels, a.out_channels, a.stride, a.cluster_blocks, needed, limit);
  }
  const auto launch_it = [&](auto config) {
    return launch_inverted_residual<decltype(config)>("inverted_residual, split", a, stream);
  };
  return a.bfloat16 ? visit_config<BFloat16>(a.stride, a.chunk, a.out_channels, launch_it)
                    : visit_config<Half>(a.stride, a.chunk, a.out_channels, launch_it);
}

}  // namespace mvk
