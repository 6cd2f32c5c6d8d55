// Launcher of the transformer stage: checks, picks the instance.
#include "transformer_launch.cuh"

namespace mvk {

namespace {

const TransformerInstance* find_instance(int dim, int head_tiles, int rows, bool bfloat16) {
  const TransformerInstances instances = bfloat16 ? transformer_instances_bfloat16() : transformer_instances_float16();
  for (int i = 0; i < instances.count; ++i) {
    const TransformerInstance& instance = instances.first[i];
    if (instance.dim == dim && instance.head_tiles == head_tiles && instance.rows == rows) return &instance;
  }
  return nullptr;
}

}  // namespace

int transformer_shared_bytes(int instance_dim, int head_tiles, int rows, int all_head_tiles) {
  const TransformerInstance* const instance = find_instance(instance_dim, head_tiles, rows, false);
  return instance == nullptr ? 0 : instance->shared_bytes(all_head_tiles);
}

Status transformer(const TransformerArguments& a, Stream stream) {
  if (a.in_channels < 1 || a.in_channels % 8 != 0 || a.out_channels < 1 || a.out_channels % 8 != 0 || a.dim < 1 ||
      a.dim % 8 != 0) {
    return fail(Status::kInvalidArgument,
                "transformer: expected channels that are multiples of 8, got in %d, dim %d, out %d", a.in_channels,
                a.dim, a.out_channels);
  }
  if (a.batch < 1 || a.height < 1 || a.width < 1 || a.patch_height < 1 || a.patch_width < 1 ||
      a.height % a.patch_height != 0 || a.width % a.patch_width != 0) {
    return fail(Status::kInvalidArgument,
                "transformer: expected whole patches, got batch %d, %d × %d pixels, patches of %d × %d", a.batch,
                a.height, a.width, a.patch_height, a.patch_width);
  }
  const TransformerInstance* const instance = find_instance(a.instance_dim, a.head_tiles, a.instance_rows, a.bfloat16);
  if (instance == nullptr || a.num_heads < 1 || a.dim > instance->dim ||
      a.dim / a.num_heads > 8 * instance->head_tiles) {
    return fail(Status::kInvalidArgument,
                "transformer: no kernel of %d channels, %d a head and %d rows a block for %d channels in %d heads",
                a.instance_dim, 8 * a.head_tiles, a.instance_rows, a.dim, a.num_heads);
  }
  return instance->launch(a, stream);
}

}  // namespace mvk
