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
  void* workspace;          // of the row kernel, where it needs one
  int batch, height, width;
  int in_channels, hidden_channels, out_channels;
  int stride, dilation;
  int chunk;           // hidden channels a step, 32 or 64: what the weights are packed for
  int cluster_blocks;  // blocks of a cluster that share a tile's chunks, 2 to 8; 0: not split
  bool residual;
  bool dealt;     // the row kernel deals the hidden channels to the warps of a block: for few pixels
  bool bfloat16;  // else float16
};

Status inverted_residual(const InvertedResidualArguments& arguments, Stream stream);

// The row kernel (inverted_residual_rows.cuh); inverted_residual() calls it where it serves.
Status inverted_residual_rows(const InvertedResidualArguments& arguments, Stream stream);

// Dynamic shared memory of a block of the row kernel where a block may have `limit` bytes; 0: it does not serve this
// shape there.
int inverted_residual_rows_shared_bytes(int in_channels, int hidden_channels, int out_channels, int stride, int limit);

// Device memory that the row kernel needs while it runs, in bytes: for the sums between two passes.
long long inverted_residual_rows_workspace_bytes(int in_channels, int out_channels, int stride, int batch, int height,
                                                 int width);

// Up to how many output pixels a multiprocessor the row kernel had better deal the hidden channels to a block's warps;
// 0: it cannot.
int inverted_residual_rows_dealt_pixels(int in_channels, int hidden_channels, int out_channels, int stride, int limit);

// Dynamic shared memory of a block of the tile kernel, in bytes.
int inverted_residual_shared_bytes(int in_channels, int out_channels, int stride, int chunk);

// The tile kernel, split over clusters; inverted_residual() calls it where there are cluster_blocks.
Status inverted_residual_cluster(const InvertedResidualArguments& arguments, Stream stream);

// Dynamic shared memory of each of the blocks of such a cluster, in bytes.
int inverted_residual_cluster_shared_bytes(int in_channels, int out_channels, int stride, int chunk, int blocks);

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

struct ResizeArguments {
  const void* x;  // (batch, height, width, channels), 16-byte aligned
  void* y;        // (batch, out_height, out_width, channels), 16-byte aligned
  int batch, height, width;
  int out_height, out_width;
  int channels;
  bool silu;      // behind the resize
  bool bfloat16;  // else float16
};

Status resize(const ResizeArguments& arguments, Stream stream);

// The same stage on clusters of eight blocks, in one launch: heads of dim / 4 channels, MLP of 2 · dim.
struct TransformerClusterArguments {
  const void* x;        // (batch, height, width, in_channels), 16-byte aligned
  const void* weights;  // packed for the instance; 16-byte aligned
  const void* table;    // (4, chunks, 2) int32, with clusters of 256 rows; else null
  void* y;              // (batch, height, width, out_channels), 16-byte aligned
  int batch, height, width;
  int in_channels, dim, num_layers, out_channels;
  int patch_height, patch_width;
  int cluster_rows;   // rows of a cluster: with `dim`, which instance of the kernel
  int sequence_rows;  // rows of a sequence, padding included; a divisor of cluster_rows
  int chunks;         // of the table, a head
  int weight_units;   // 16-byte units of `weights`
  float epsilon;      // of the LayerNorms
  bool sends;         // the instance whose blocks send to each other, without cluster barriers
  bool activation;    // SiLU at the end
  bool bfloat16;      // else float16
};

Status transformer_cluster(const TransformerClusterArguments& arguments, Stream stream);

// Dynamic shared memory of a block of an instance, in bytes; 0: there is no such instance.
int transformer_cluster_shared_bytes(int dim, int cluster_rows, bool sends);

// The same stage on wgmma, in one launch, for whole sequences of as many tokens as an instance takes: heads of dim / 4
// channels, MLP of 2 · dim.
struct TransformerWgmmaArguments {
  const void* x;        // (batch, height, width, in_channels), 16-byte aligned
  const void* weights;  // packed for the instance; 16-byte aligned
  const float* biases;  // (num_layers, 2, dim)
  void* y;              // (batch, height, width, out_channels), 16-byte aligned
  int batch, height, width;
  int in_channels, dim, num_layers, out_channels;
  int patch_height, patch_width;
  int weight_units;  // 16-byte units of `weights`
  float epsilon;     // of the LayerNorms
  bool activation;   // SiLU at the end
  bool bfloat16;     // else float16
};

Status transformer_wgmma(const TransformerWgmmaArguments& arguments, Stream stream);

// Dynamic shared memory of a block of an instance, in bytes; 0: there is no such instance.
int transformer_wgmma_shared_bytes(int dim, int tokens);

struct UnfoldAttentionFoldArguments {
  const void* qkv;  // (batch, height, width, 3 · dim), 16-byte aligned
  void* y;          // (batch, height, width, dim), 16-byte aligned
  int batch, height, width;
  int dim, num_heads, patch_height, patch_width;
  float scale;
  bool bfloat16;  // else float16
};

Status unfold_attention_fold(const UnfoldAttentionFoldArguments& arguments, Stream stream);

struct Conv3x3Arguments {
  const void* x;        // (batch, height, width, first_channels), 16-byte aligned
  const void* x2;       // (batch, height, width, second_channels), 16-byte aligned; null where second_channels is 0
  const void* weights;  // B fragments, see Conv3x3Params; with tiles 4 and 5 as conv3x3_wgmma.cuh has them
  const float* bias;    // (out_channels,)
  void* y;              // (batch, height, width, out_channels), 16-byte aligned
  int batch, height, width;
  int first_channels, second_channels, out_channels;
  int dilation;
  int tile;  // 8×8-pixel tiles × output channels a block: 0: 1 × 8, 1: 1 × 16, 2: 2 × 32, 3: 4 × up to 96; on wgmma
             // 4: 2 × up to 96, 5: 4 × up to 96
  bool silu;
  bool bfloat16;  // else float16
};

Status conv3x3(const Conv3x3Arguments& arguments, Stream stream);

// The kernel on wgmma; conv3x3() calls it for the tiles that it has.
Status conv3x3_wgmma(const Conv3x3Arguments& arguments, Stream stream);

enum class ImageType : int { kUInt8 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat32 = 3 };

struct StemArguments {
  const void* x;        // (batch, 3, height, width) by its strides, without gaps
  const void* weights;  // B fragments, halved, see StemParams; 16-byte aligned
  const float* bias;    // (out_channels,), halved; 16-byte aligned
  void* y;              // (batch, ⌈height / 2⌉, ⌈width / 2⌉, out_channels), 16-byte aligned
  long long stride_image, stride_channel, stride_row, stride_column;  // of x, in elements
  int batch, height, width;
  int out_channels;
  ImageType image;
  float scale0, scale1, scale2;  // image value · scale + shift, by channel
  float shift0, shift1, shift2;
  bool bfloat16;  // else float16
};

Status stem(const StemArguments& arguments, Stream stream);

struct HeadFeaturesArguments {
  const void* x;        // (batch, height, width, in_channels), 16-byte aligned
  const void* weights;  // B fragments, halved, see HeadFeaturesParams
  const float* bias;    // (hidden_channels,), halved
  void* y;              // pooled: (batch, hidden_channels), else (batch, height, width, hidden_channels)
  int batch, height, width;
  int in_channels, hidden_channels;
  bool pool;
  bool bfloat16;  // else float16
};

Status head_features(const HeadFeaturesArguments& arguments, Stream stream);

struct HeadClassifierArguments {
  const void* x;        // (rows, in_features)
  const void* weights;  // B fragments, see HeadClassifierParams
  const float* bias;    // (out_features,)
  void* y;              // (rows, out_features), out_features even
  int rows, in_features, out_features;
  bool bfloat16;  // else float16
};

Status head_classifier(const HeadClassifierArguments& arguments, Stream stream);

}  // namespace mvk
