// Launcher of the transformer stage on clusters: checks, picks the instance.
#include "transformer_cluster_launch.cuh"

namespace mvk {

namespace {

const TransformerClusterInstance* find_instance(int dim, int rows, bool sends, bool bfloat16) {
  const TransformerClusterInstances instances =
      bfloat16 ? transformer_cluster_instances_bfloat16() : transformer_cluster_instances_float16();
  for (int i = 0; i < instances.count; ++i) {
    const TransformerClusterInstance& instance = instances.first[i];
    if (instance.dim == dim && instance.rows == rows && instance.sends == sends) return &instance;
  }
  return nullptr;
}

}  // namespace

int transformer_cluster_shared_bytes(int dim, int cluster_rows, bool sends) {
  const TransformerClusterInstance* const instance = find_instance(dim, cluster_rows, sends, false);
  return instance == nullptr ? 0 : instance->shared_bytes;
}

Status transformer_cluster(const TransformerClusterArguments& a, Stream stream) {
  if (a.in_channels < 1 || a.in_channels % 8 != 0 || a.out_channels < 1 || a.out_channels % 8 != 0) {
    return fail(Status::kInvalidArgument,
                "transformer_cluster: expected channels that are multiples of 8, got in %d, out %d", a.in_channels,
                a.out_channels);
  }
  if (a.batch < 1 || a.height < 1 || a.width < 1 || a.patch_height < 1 || a.patch_width < 1 ||
      a.height % a.patch_height != 0 || a.width % a.patch_width != 0) {
    return fail(Status::kInvalidArgument,
                "transformer_cluster: expected whole patches, got batch %d, %d × %d pixels, patches of %d × %d",
                a.batch, a.height, a.width, a.patch_height, a.patch_width);
  }
  const TransformerClusterInstance* const instance = find_instance(a.dim, a.cluster_rows, a.sends, a.bfloat16);
  if (instance == nullptr) {
    return fail(Status::kInvalidArgument, "transformer_cluster: no kernel of %d channels and %d rows a cluster%s",
                a.dim, a.cluster_rows, a.sends ? " that sends" : "");
  }
  const int tokens = a.height / a.patch_height * (a.width / a.patch_width);
  if (a.sequence_rows < tokens || a.sequence_rows % 16 != 0 || a.cluster_rows % a.sequence_rows != 0 ||
      (a.cluster_rows > 64 && a.sequence_rows != a.cluster_rows)) {
    return fail(Status::kInvalidArgument,
                "transformer_cluster: expected sequences of whole tiles that fill %d rows, got %d tokens in %d rows",
                a.cluster_rows, tokens, a.sequence_rows);
  }
  return instance->launch(a, stream);
}

}  // namespace mvk
