// pybind11 bindings of the launchers: pointers and streams come as integers, errors go out as exceptions.
#include <pybind11/pybind11.h>

#include <string>

#include "launchers.h"
#include "testing/testing.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void raise_unless_ok(mvk::Status status) {
  if (status == mvk::Status::kOk) return;
  if (status == mvk::Status::kInvalidArgument) throw py::value_error(mvk::last_error());
  throw std::runtime_error(mvk::last_error());
}

// Makes `device` current for a launch, and the one before it again afterwards.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    if (cudaGetDevice(&before_) != cudaSuccess) throw std::runtime_error("no CUDA device can be used here");
    if (before_ != device_ && cudaSetDevice(device_) != cudaSuccess) {
      throw std::runtime_error("cannot use CUDA device " + std::to_string(device_));
    }
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int before_ = 0;
};

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Launchers of the CUDA kernels: raw pointers, sizes, device index and stream.";
  module.attr("architectures") = MVK_ARCHITECTURES;
  module.attr("cuda_version") = CUDART_VERSION;
  module.def(
      "inverted_residual",
      [](int device, std::uintptr_t stream, std::uintptr_t x, std::uintptr_t weights, std::uintptr_t row_weights,
         std::uintptr_t bias, std::uintptr_t y, int batch, int height, int width, int in_channels, int hidden_channels,
         int out_channels, int stride, int dilation, int chunk, bool residual, bool bfloat16) {
        const DeviceGuard guard(device);
        mvk::InvertedResidualArguments arguments{};
        arguments.x = pointer<const void>(x);
        arguments.weights = pointer<const void>(weights);
        arguments.row_weights = pointer<const void>(row_weights);
        arguments.bias = pointer<const float>(bias);
        arguments.y = pointer<void>(y);
        arguments.batch = batch;
        arguments.height = height;
        arguments.width = width;
        arguments.in_channels = in_channels;
        arguments.hidden_channels = hidden_channels;
        arguments.out_channels = out_channels;
        arguments.stride = stride;
        arguments.dilation = dilation;
        arguments.chunk = chunk;
        arguments.residual = residual;
        arguments.bfloat16 = bfloat16;
        raise_unless_ok(mvk::inverted_residual(arguments, reinterpret_cast<mvk::Stream>(stream)));
      },
      py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("weights"), py::arg("row_weights"), py::arg("bias"),
      py::arg("y"), py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("in_channels"),
      py::arg("hidden_channels"), py::arg("out_channels"), py::arg("stride"), py::arg("dilation"), py::arg("chunk"),
      py::arg("residual"), py::arg("bfloat16"));
  module.def("inverted_residual_shared_bytes", &mvk::inverted_residual_shared_bytes);
  module.def("inverted_residual_rows_shared_bytes", &mvk::inverted_residual_rows_shared_bytes);
  module.def(
      "transformer",
      [](int device, std::uintptr_t stream, std::uintptr_t x, std::uintptr_t weights, std::uintptr_t table,
         std::uintptr_t biases, std::uintptr_t y, std::uintptr_t workspace, int batch, int height, int width,
         int in_channels, int dim, int hidden_channels, int num_layers, int out_channels, int num_heads,
         int patch_height, int patch_width, int instance_dim, int head_tiles, int instance_rows, int sequence_rows,
         int block_rows, int blocks, int chunks, int weight_units, float epsilon, bool split, bool activation,
         bool bfloat16) {
        const DeviceGuard guard(device);
        mvk::TransformerArguments arguments{};
        arguments.x = pointer<const void>(x);
        arguments.weights = pointer<const void>(weights);
        arguments.table = pointer<const void>(table);
        arguments.biases = pointer<const float>(biases);
        arguments.y = pointer<void>(y);
        arguments.workspace = pointer<void>(workspace);
        arguments.batch = batch;
        arguments.height = height;
        arguments.width = width;
        arguments.in_channels = in_channels;
        arguments.dim = dim;
        arguments.hidden_channels = hidden_channels;
        arguments.num_layers = num_layers;
        arguments.out_channels = out_channels;
        arguments.num_heads = num_heads;
        arguments.patch_height = patch_height;
        arguments.patch_width = patch_width;
        arguments.instance_dim = instance_dim;
        arguments.head_tiles = head_tiles;
        arguments.instance_rows = instance_rows;
        arguments.sequence_rows = sequence_rows;
        arguments.block_rows = block_rows;
        arguments.blocks = blocks;
        arguments.chunks = chunks;
        arguments.weight_units = weight_units;
        arguments.epsilon = epsilon;
        arguments.split = split;
        arguments.activation = activation;
        arguments.bfloat16 = bfloat16;
        raise_unless_ok(mvk::transformer(arguments, reinterpret_cast<mvk::Stream>(stream)));
      },
      py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("weights"), py::arg("table"), py::arg("biases"),
      py::arg("y"), py::arg("workspace") = 0, py::arg("batch"), py::arg("height"), py::arg("width"),
      py::arg("in_channels"), py::arg("dim"), py::arg("hidden_channels"), py::arg("num_layers"),
      py::arg("out_channels"), py::arg("num_heads"), py::arg("patch_height"), py::arg("patch_width"),
      py::arg("instance_dim"), py::arg("head_tiles"), py::arg("instance_rows"), py::arg("sequence_rows"),
      py::arg("block_rows"), py::arg("blocks"), py::arg("chunks"), py::arg("weight_units"), py::arg("epsilon"),
      py::arg("split"), py::arg("activation"), py::arg("bfloat16"));
  module.def("transformer_shared_bytes", &mvk::transformer_shared_bytes);
  module.def(
      "transformer_cluster",
      [](int device, std::uintptr_t stream, std::uintptr_t x, std::uintptr_t weights, std::uintptr_t table,
         std::uintptr_t y, int batch, int height, int width, int in_channels, int dim, int num_layers, int out_channels,
         int patch_height, int patch_width, int cluster_rows, int sequence_rows, int chunks, int weight_units,
         float epsilon, bool activation, bool bfloat16) {
        const DeviceGuard guard(device);
        mvk::TransformerClusterArguments arguments{};
        arguments.x = pointer<const void>(x);
        arguments.weights = pointer<const void>(weights);
        arguments.table = pointer<const void>(table);
        arguments.y = pointer<void>(y);
        arguments.batch = batch;
        arguments.height = height;
        arguments.width = width;
        arguments.in_channels = in_channels;
        arguments.dim = dim;
        arguments.num_layers = num_layers;
        arguments.out_channels = out_channels;
        arguments.patch_height = patch_height;
        arguments.patch_width = patch_width;
        arguments.cluster_rows = cluster_rows;
        arguments.sequence_rows = sequence_rows;
        arguments.chunks = chunks;
        arguments.weight_units = weight_units;
        arguments.epsilon = epsilon;
        arguments.activation = activation;
        arguments.bfloat16 = bfloat16;
        raise_unless_ok(mvk::transformer_cluster(arguments, reinterpret_cast<mvk::Stream>(stream)));
      },
      py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("weights"), py::arg("table") = 0, py::arg("y"),
      py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("in_channels"), py::arg("dim"),
      py::arg("num_layers"), py::arg("out_channels"), py::arg("patch_height"), py::arg("patch_width"),
      py::arg("cluster_rows"), py::arg("sequence_rows"), py::arg("chunks"), py::arg("weight_units"), py::arg("epsilon"),
      py::arg("activation"), py::arg("bfloat16"));
  module.def("transformer_cluster_shared_bytes", &mvk::transformer_cluster_shared_bytes);
  module.def(
      "unfold_attention_fold",
      [](int device, std::uintptr_t stream, std::uintptr_t qkv, std::uintptr_t y, int batch, int height, int width,
         int dim, int num_heads, int patch_height, int patch_width, float scale, bool bfloat16) {
        const DeviceGuard guard(device);
        mvk::UnfoldAttentionFoldArguments arguments{};
        arguments.qkv = pointer<const void>(qkv);
        arguments.y = pointer<void>(y);
        arguments.batch = batch;
        arguments.height = height;
        arguments.width = width;
        arguments.dim = dim;
        arguments.num_heads = num_heads;
        arguments.patch_height = patch_height;
        arguments.patch_width = patch_width;
        arguments.scale = scale;
        arguments.bfloat16 = bfloat16;
        raise_unless_ok(mvk::unfold_attention_fold(arguments, reinterpret_cast<mvk::Stream>(stream)));
      },
      py::arg("device"), py::arg("stream"), py::arg("qkv"), py::arg("y"), py::arg("batch"), py::arg("height"),
      py::arg("width"), py::arg("dim"), py::arg("num_heads"), py::arg("patch_height"), py::arg("patch_width"),
      py::arg("scale"), py::arg("bfloat16"));
  module.def(
      "conv3x3",
      [](int device, std::uintptr_t stream, std::uintptr_t x, std::uintptr_t x2, std::uintptr_t weights,
         std::uintptr_t bias, std::uintptr_t y, int batch, int height, int width, int first_channels,
         int second_channels, int out_channels, int dilation, int tile, bool silu, bool bfloat16) {
        const DeviceGuard guard(device);
        mvk::Conv3x3Arguments arguments{};
        arguments.x = pointer<const void>(x);
        arguments.x2 = pointer<const void>(x2);
        arguments.weights = pointer<const void>(weights);
        arguments.bias = pointer<const float>(bias);
        arguments.y = pointer<void>(y);
        arguments.batch = batch;
        arguments.height = height;
        arguments.width = width;
        arguments.first_channels = first_channels;
        arguments.second_channels = second_channels;
        arguments.out_channels = out_channels;
        arguments.dilation = dilation;
        arguments.tile = tile;
        arguments.silu = silu;
        arguments.bfloat16 = bfloat16;
        raise_unless_ok(mvk::conv3x3(arguments, reinterpret_cast<mvk::Stream>(stream)));
      },
      py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("x2") = 0, py::arg("weights"), py::arg("bias"),
      py::arg("y"), py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("first_channels"),
      py::arg("second_channels"), py::arg("out_channels"), py::arg("dilation"), py::arg("tile"), py::arg("silu"),
      py::arg("bfloat16"));
  module.def(
      "stem",
      [](int device, std::uintptr_t stream, std::uintptr_t x, std::uintptr_t weights, std::uintptr_t bias,
         std::uintptr_t y, long long stride_image, long long stride_channel, long long stride_row,
         long long stride_column, int batch, int height, int width, int out_channels, int image, float scale0,
         float scale1, float scale2, float shift0, float shift1, float shift2, bool bfloat16) {
        const DeviceGuard guard(device);
        mvk::StemArguments arguments{};
        arguments.x = pointer<const void>(x);
        arguments.weights = pointer<const void>(weights);
        arguments.bias = pointer<const float>(bias);
        arguments.y = pointer<void>(y);
        arguments.stride_image = stride_image;
        arguments.stride_channel = stride_channel;
        arguments.stride_row = stride_row;
        arguments.stride_column = stride_column;
        arguments.batch = batch;
        arguments.height = height;
        arguments.width = width;
        arguments.out_channels = out_channels;
        arguments.image = static_cast<mvk::ImageType>(image);
        arguments.scale0 = scale0;
        arguments.scale1 = scale1;
        arguments.scale2 = scale2;
        arguments.shift0 = shift0;
        arguments.shift1 = shift1;
        arguments.shift2 = shift2;
        arguments.bfloat16 = bfloat16;
        raise_unless_ok(mvk::stem(arguments, reinterpret_cast<mvk::Stream>(stream)));
      },
      py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("weights"), py::arg("bias"), py::arg("y"),
      py::arg("stride_image"), py::arg("stride_channel"), py::arg("stride_row"), py::arg("stride_column"),
      py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("out_channels"), py::arg("image"),
      py::arg("scale0"), py::arg("scale1"), py::arg("scale2"), py::arg("shift0"), py::arg("shift1"), py::arg("shift2"),
      py::arg("bfloat16"));
  module.def(
      "head_features",
      [](int device, std::uintptr_t stream, std::uintptr_t x, std::uintptr_t weights, std::uintptr_t bias,
         std::uintptr_t y, int batch, int height, int width, int in_channels, int hidden_channels, bool pool,
         bool bfloat16) {
        const DeviceGuard guard(device);
        mvk::HeadFeaturesArguments arguments{};
        arguments.x = pointer<const void>(x);
        arguments.weights = pointer<const void>(weights);
        arguments.bias = pointer<const float>(bias);
        arguments.y = pointer<void>(y);
        arguments.batch = batch;
        arguments.height = height;
        arguments.width = width;
        arguments.in_channels = in_channels;
        arguments.hidden_channels = hidden_channels;
        arguments.pool = pool;
        arguments.bfloat16 = bfloat16;
        raise_unless_ok(mvk::head_features(arguments, reinterpret_cast<mvk::Stream>(stream)));
      },
      py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("weights"), py::arg("bias"), py::arg("y"),
      py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("in_channels"), py::arg("hidden_channels"),
      py::arg("pool"), py::arg("bfloat16"));
  module.def(
      "head_classifier",
      [](int device, std::uintptr_t stream, std::uintptr_t x, std::uintptr_t weights, std::uintptr_t bias,
         std::uintptr_t y, int rows, int in_features, int out_features, bool bfloat16) {
        const DeviceGuard guard(device);
        mvk::HeadClassifierArguments arguments{};
        arguments.x = pointer<const void>(x);
        arguments.weights = pointer<const void>(weights);
        arguments.bias = pointer<const float>(bias);
        arguments.y = pointer<void>(y);
        arguments.rows = rows;
        arguments.in_features = in_features;
        arguments.out_features = out_features;
        arguments.bfloat16 = bfloat16;
        raise_unless_ok(mvk::head_classifier(arguments, reinterpret_cast<mvk::Stream>(stream)));
      },
      py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("weights"), py::arg("bias"), py::arg("y"),
      py::arg("rows"), py::arg("in_features"), py::arg("out_features"), py::arg("bfloat16"));
  module.def("golden", [](int device, std::uintptr_t stream, const std::string& name, std::uintptr_t in,
                          std::uintptr_t out, int warps) {
    const DeviceGuard guard(device);
    raise_unless_ok(mvk::golden(name.c_str(), pointer<const void>(in), pointer<void>(out), warps,
                                reinterpret_cast<mvk::Stream>(stream)));
  });
}
