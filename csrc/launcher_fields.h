// The launchers and the fields of their arguments by name, for whoever fills them in at run time: the bindings and the
// compiled plans.
#pragma once

#include <cstring>

#include "launchers.h"

namespace mvk {

// visit(name, field) for every field of an argument struct, in order. Fields are pointers, int, long long, float, bool
// or ImageType.
template <class Visit>
void visit_fields(InvertedResidualArguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("weights", a.weights);
  visit("row_weights", a.row_weights);
  visit("bias", a.bias);
  visit("y", a.y);
  visit("workspace", a.workspace);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("in_channels", a.in_channels);
  visit("hidden_channels", a.hidden_channels);
  visit("out_channels", a.out_channels);
  visit("stride", a.stride);
  visit("dilation", a.dilation);
  visit("chunk", a.chunk);
  visit("cluster_blocks", a.cluster_blocks);
  visit("residual", a.residual);
  visit("dealt", a.dealt);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(TransformerArguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("weights", a.weights);
  visit("table", a.table);
  visit("biases", a.biases);
  visit("y", a.y);
  visit("workspace", a.workspace);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("in_channels", a.in_channels);
  visit("dim", a.dim);
  visit("hidden_channels", a.hidden_channels);
  visit("num_layers", a.num_layers);
  visit("out_channels", a.out_channels);
  visit("num_heads", a.num_heads);
  visit("patch_height", a.patch_height);
  visit("patch_width", a.patch_width);
  visit("instance_dim", a.instance_dim);
  visit("head_tiles", a.head_tiles);
  visit("instance_rows", a.instance_rows);
  visit("sequence_rows", a.sequence_rows);
  visit("block_rows", a.block_rows);
  visit("blocks", a.blocks);
  visit("chunks", a.chunks);
  visit("weight_units", a.weight_units);
  visit("epsilon", a.epsilon);
  visit("split", a.split);
  visit("activation", a.activation);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(TransformerClusterArguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("weights", a.weights);
  visit("table", a.table);
  visit("y", a.y);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("in_channels", a.in_channels);
  visit("dim", a.dim);
  visit("num_layers", a.num_layers);
  visit("out_channels", a.out_channels);
  visit("patch_height", a.patch_height);
  visit("patch_width", a.patch_width);
  visit("cluster_rows", a.cluster_rows);
  visit("sequence_rows", a.sequence_rows);
  visit("chunks", a.chunks);
  visit("weight_units", a.weight_units);
  visit("epsilon", a.epsilon);
  visit("sends", a.sends);
  visit("activation", a.activation);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(TransformerWgmmaArguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("weights", a.weights);
  visit("biases", a.biases);
  visit("y", a.y);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("in_channels", a.in_channels);
  visit("dim", a.dim);
  visit("num_layers", a.num_layers);
  visit("out_channels", a.out_channels);
  visit("patch_height", a.patch_height);
  visit("patch_width", a.patch_width);
  visit("weight_units", a.weight_units);
  visit("epsilon", a.epsilon);
  visit("activation", a.activation);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(ResizeArguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("y", a.y);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("out_height", a.out_height);
  visit("out_width", a.out_width);
  visit("channels", a.channels);
  visit("silu", a.silu);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(UnfoldAttentionFoldArguments& a, Visit&& visit) {
  visit("qkv", a.qkv);
  visit("y", a.y);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("dim", a.dim);
  visit("num_heads", a.num_heads);
  visit("patch_height", a.patch_height);
  visit("patch_width", a.patch_width);
  visit("scale", a.scale);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(Conv3x3Arguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("x2", a.x2);
  visit("weights", a.weights);
  visit("bias", a.bias);
  visit("y", a.y);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("first_channels", a.first_channels);
  visit("second_channels", a.second_channels);
  visit("out_channels", a.out_channels);
  visit("dilation", a.dilation);
  visit("tile", a.tile);
  visit("silu", a.silu);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(StemArguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("weights", a.weights);
  visit("bias", a.bias);
  visit("y", a.y);
  visit("stride_image", a.stride_image);
  visit("stride_channel", a.stride_channel);
  visit("stride_row", a.stride_row);
  visit("stride_column", a.stride_column);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("out_channels", a.out_channels);
  visit("image", a.image);
  visit("scale0", a.scale0);
  visit("scale1", a.scale1);
  visit("scale2", a.scale2);
  visit("shift0", a.shift0);
  visit("shift1", a.shift1);
  visit("shift2", a.shift2);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(HeadFeaturesArguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("weights", a.weights);
  visit("bias", a.bias);
  visit("y", a.y);
  visit("batch", a.batch);
  visit("height", a.height);
  visit("width", a.width);
  visit("in_channels", a.in_channels);
  visit("hidden_channels", a.hidden_channels);
  visit("pool", a.pool);
  visit("bfloat16", a.bfloat16);
}

template <class Visit>
void visit_fields(HeadClassifierArguments& a, Visit&& visit) {
  visit("x", a.x);
  visit("weights", a.weights);
  visit("bias", a.bias);
  visit("y", a.y);
  visit("rows", a.rows);
  visit("in_features", a.in_features);
  visit("out_features", a.out_features);
  visit("bfloat16", a.bfloat16);
}

// visit(name, launcher) for every launcher.
template <class Visit>
void visit_launchers(Visit&& visit) {
  visit("stem", &stem);
  visit("conv3x3", &conv3x3);
  visit("inverted_residual", &inverted_residual);
  visit("transformer", &transformer);
  visit("transformer_cluster", &transformer_cluster);
  visit("transformer_wgmma", &transformer_wgmma);
  visit("resize", &resize);
  visit("unfold_attention_fold", &unfold_attention_fold);
  visit("head_features", &head_features);
  visit("head_classifier", &head_classifier);
}

// Fields that may be left out: null then.
inline bool is_optional_field(const char* launcher, const char* field) {
  const auto are = [&](const char* of_launcher, const char* optional) {
    return std::strcmp(launcher, of_launcher) == 0 && std::strcmp(field, optional) == 0;
  };
  return are("conv3x3", "x2") || are("transformer", "workspace") || are("inverted_residual", "workspace") ||
         are("transformer_cluster", "table");
}

}  // namespace mvk
