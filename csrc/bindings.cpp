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
  module.def("golden", [](int device, std::uintptr_t stream, const std::string& name, std::uintptr_t in,
                          std::uintptr_t out, int warps) {
    const DeviceGuard guard(device);
    raise_unless_ok(mvk::golden(name.c_str(), pointer<const void>(in), pointer<void>(out), warps,
                                reinterpret_cast<mvk::Stream>(stream)));
  });
}
