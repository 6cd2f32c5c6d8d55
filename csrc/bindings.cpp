// pybind11 bindings of the launchers: pointers and streams come as integers, errors go out as exceptions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <type_traits>

#include "launcher_fields.h"
#include "plan.h"
#include "testing/testing.h"

namespace py = pybind11;

namespace {

void raise_unless_ok(mvk::Status status) {
  if (status == mvk::Status::kOk) return;
  if (status == mvk::Status::kInvalidArgument) throw py::value_error(mvk::last_error());
  throw std::runtime_error(mvk::last_error());
}

mvk::Stream stream_at(std::uintptr_t address) { return mvk::Stream{reinterpret_cast<cudaStream_t>(address), false}; }

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

// Fills an argument struct from keywords. A pointer is an address, or (base, offset), which goes to `pointers`.
template <class Arguments>
Arguments filled(const char* launcher, const py::dict& values, std::vector<mvk::Plan::Pointer>* pointers) {
  Arguments arguments{};
  std::size_t used = 0;
  mvk::visit_fields(arguments, [&](const char* name, auto& field) {
    using Field = std::remove_reference_t<decltype(field)>;
    PyObject* const found = PyDict_GetItemString(values.ptr(), name);
    if (found == nullptr) {
      if (mvk::is_optional_field(launcher, name)) return;
      throw py::type_error(std::string(launcher) + ": missing argument '" + name + "'");
    }
    ++used;
    const auto value = py::reinterpret_borrow<py::object>(found);
    try {
      if constexpr (std::is_pointer_v<Field>) {
        if (pointers != nullptr && py::isinstance<py::tuple>(value)) {
          const auto place = value.cast<std::pair<int, std::uintptr_t>>();
          const auto offset = reinterpret_cast<char*>(&field) - reinterpret_cast<char*>(&arguments);
          pointers->push_back({static_cast<std::size_t>(offset), place.first, place.second});
        } else {
          field = reinterpret_cast<Field>(value.cast<std::uintptr_t>());
        }
      } else if constexpr (std::is_enum_v<Field>) {
        field = static_cast<Field>(value.cast<int>());
      } else {
        field = value.cast<Field>();
      }
    } catch (const py::cast_error&) {
      throw py::type_error(std::string(launcher) + ": " + name + ": cannot take " +
                           py::repr(value).cast<std::string>());
    }
  });
  if (used != values.size()) {
    throw py::type_error(std::string(launcher) + ": an argument that it does not have, among " +
                         py::str(py::list(values)).cast<std::string>());
  }
  return arguments;
}

template <class Arguments>
void add_typed(mvk::Plan& plan, const char* name, mvk::Status (*launcher)(const Arguments&, mvk::Stream),
               const py::dict& values) {
  std::vector<mvk::Plan::Pointer> pointers;
  const auto arguments = filled<Arguments>(name, values, &pointers);
  plan.add(launcher, arguments, std::move(pointers));
}

void add_to_plan(mvk::Plan& plan, const std::string& launcher, const py::dict& values) {
  bool found = false;
  mvk::visit_launchers([&](const char* name, auto function) {
    if (launcher != name) return;
    found = true;
    add_typed(plan, name, function, values);
  });
  if (!found) throw py::value_error("launcher: there is none called '" + launcher + "'");
}

mvk::Bases bases_for(const mvk::Plan& plan, const std::vector<std::uintptr_t>& addresses) {
  mvk::Bases bases{{0}};
  bases.address.insert(bases.address.end(), addresses.begin(), addresses.end());
  if (static_cast<int>(bases.address.size()) < plan.bases()) {
    throw py::value_error("addresses: expected " + std::to_string(plan.bases() - 1) + ", got " +
                          std::to_string(addresses.size()));
  }
  return bases;
}

void run_plan(const mvk::Plan& plan, int device, std::uintptr_t stream, const std::vector<std::uintptr_t>& addresses,
              bool overlap) {
  const mvk::Bases bases = bases_for(plan, addresses);
  const DeviceGuard guard(device);
  raise_unless_ok(plan.run(bases, stream_at(stream), overlap));
}

// What a run would give to the launcher of a step, by name.
py::dict values_of(const mvk::Plan& plan, int index, const std::vector<std::uintptr_t>& addresses) {
  py::dict values;
  for (const mvk::Plan::Value& value : plan.values(index, bases_for(plan, addresses))) {
    values[value.name] = value.is_pointer ? py::object(py::int_(value.address)) : py::object(py::float_(value.number));
  }
  return values;
}

template <class Arguments>
void define_launcher(py::module_& module, const char* name, mvk::Status (*launcher)(const Arguments&, mvk::Stream)) {
  module.def(
      name,
      [name, launcher](int device, std::uintptr_t stream, const py::kwargs& values) {
        const auto arguments = filled<Arguments>(name, values, nullptr);
        const DeviceGuard guard(device);
        raise_unless_ok(launcher(arguments, stream_at(stream)));
      },
      py::arg("device"), py::arg("stream"));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Launchers of the CUDA kernels: raw pointers, sizes, device index and stream.";
  module.attr("architectures") = MVK_ARCHITECTURES;
  module.attr("cuda_version") = CUDART_VERSION;
  mvk::visit_launchers([&](const char* name, auto launcher) { define_launcher(module, name, launcher); });
  module.def("inverted_residual_shared_bytes", &mvk::inverted_residual_shared_bytes);
  module.def("inverted_residual_cluster_shared_bytes", &mvk::inverted_residual_cluster_shared_bytes);
  module.def("inverted_residual_rows_shared_bytes", &mvk::inverted_residual_rows_shared_bytes);
  module.def("inverted_residual_rows_dealt_pixels", &mvk::inverted_residual_rows_dealt_pixels);
  module.def("inverted_residual_rows_workspace_bytes", &mvk::inverted_residual_rows_workspace_bytes);
  module.def("transformer_shared_bytes", &mvk::transformer_shared_bytes);
  module.def("transformer_cluster_shared_bytes", &mvk::transformer_cluster_shared_bytes);
  module.def("transformer_wgmma_shared_bytes", &mvk::transformer_wgmma_shared_bytes);

  // mobilevit_kernels/plan.py makes one for each shape. Local: the tests load a second build into the same process.
  py::class_<mvk::Plan>(module, "Plan", py::module_local())
      .def(py::init<>())
      .def("add", &add_to_plan, py::arg("launcher"), py::arg("values"))
      .def("run", &run_plan, py::arg("device"), py::arg("stream"), py::arg("addresses"), py::arg("overlap"))
      .def("values", &values_of, py::arg("index"), py::arg("addresses"))
      .def("__len__", &mvk::Plan::size);

  module.def("golden", [](int device, std::uintptr_t stream, const std::string& name, std::uintptr_t in,
                          std::uintptr_t out, int warps) {
    const DeviceGuard guard(device);
    raise_unless_ok(mvk::golden(name.c_str(), reinterpret_cast<const void*>(in), reinterpret_cast<void*>(out), warps,
                                stream_at(stream)));
  });
}
