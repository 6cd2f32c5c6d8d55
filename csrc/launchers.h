// The library's launchers: raw device pointers, sizes and a stream in, a status out.
#pragma once

#include "common/status.h"
#include "common/stream.h"

namespace mvk {

struct InvertedResidualArguments {
  const void* x;            // (batch, height, width, in_channels), 16-byte aligned
  const void* weights;      // packed for `chunk`
  const void* row_weights;  // packed for the row kernel, which serves where it can; null: it may not
  const float* bias;        // (out_channels,)
  void* y;                  // (batch, ⌈height / stride⌉, ⌈width / stride⌉, out_channels), 16-byte aligned
  int batch, height, width;
  int in_channels, hidden_channels, out_channels;
  int stride, dilation;
  int chunk;  // hidden channels a step, 32 or 64: what the weights are packed for
  bool residual;
  bool bfloat16;  // else float16
};

Status inverted_residual(const InvertedResidualArguments& arguments, Stream stream);

// The row kernel (inverted_residual_rows.cuh); inverted_residual() calls it where it serves.
Status inverted_residual_rows(const InvertedResidualArguments& arguments, Stream stream);

// Dynamic shared memory of a block of the row kernel where a block may have `limit` bytes; 0: it does not serve this
// shape there.
int inverted_residual_rows_shared_bytes(int in_channels, int hidden_channels, int out_channels, int stride, int limit);

// Dynamic shared memory of a block of the tile kernel, in bytes.
int inverted_residual_shared_bytes(int in_channels, int out_channels, int stride, int chunk);

struct TransformerArguments {
  const void* x;        // (batch, height, width, in_channels), 16-byte aligned
  const void* weights;  // packed for num_heads and the instance
  const void* table;    // (2, chunks, 2) int32
  const float* biases;  // (num_layers, 2, instance_dim)
  void* y;              // (batch, height, width, out_channels), 16-byte aligned
  void* workspace;      // split: K and V of two layers, then X
  int batch, height, width;
  int in_channels, dim, hidden_channels, num_layers, out_channels;
  int num_heads, patch_height, patch_width;
  int instance_dim, head_tiles, instance_rows;  // which instance of the kernel
  int sequence_rows;                            // rows of a sequence, padding included
  int block_rows;                               // rows of sequences that a block owns
  int blocks;
  int chunks;        // of the stream, in one order
  int weight_units;  // 16-byte units of `weights`
  float epsilon;     // of the LayerNorms
  bool split;        // a launch a layer, K and V through the workspace
  bool activation;   // SiLU at the end
  bool bfloat16;     // else float16
};

Status transformer(const TransformerArguments& arguments, Stream stream);

// Dynamic shared memory of a block of an instance, in bytes; 0: there is no such instance. all_head_tiles: num_heads ·
// ⌈head_dim / 8⌉.
int transformer_shared_bytes(int instance_dim, int head_tiles, int instance_rows, int all_head_tiles);

struct UnfoldAttentionFoldArguments {
  const void* qkv;  // (batch, height, width, 3 · dim), 16-byte aligned
  void* y;          // (batch, height, width, dim), 16-byte aligned
  int batch, height, width;
  int dim, num_heads, patch_height, patch_width;
  float scale;
  bool bfloat16;  // else float16
};

Status unfold_attention_fold(const UnfoldAttentionFoldArguments& arguments, Stream stream);

}  // namespace mvk
