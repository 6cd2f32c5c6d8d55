// A network's launches in order, ready to be run with one call: argument structs whose activations are offsets from a
// base that is known only when it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "launcher_fields.h"

namespace mvk {

// Where a pointer of a launch begins: a packed weight's own address, the workspace, the input, or the i-th output.
enum class Base : int { kAddress = 0, kWorkspace = 1, kInput = 2, kFirstOutput = 3 };

// What a run gives to a plan: addresses by Base.
struct Bases {
  std::vector<std::uintptr_t> address;  // [kAddress] is 0
};

class Plan {
 public:
  // A field of an argument struct that becomes a pointer when the plan runs.
  struct Pointer {
    std::size_t field;  // byte offset in the struct
    int base;           // Base, or kFirstOutput + i
    std::uintptr_t offset;
  };

  // A field's value in a run; what is no pointer is a number.
  struct Value {
    const char* name;
    bool is_pointer;
    std::uintptr_t address;
    double number;
  };

  template <class Arguments>
  void add(Status (*launcher)(const Arguments&, Stream), const Arguments& arguments, std::vector<Pointer> pointers) {
    for (const Pointer& pointer : pointers) bases_ = pointer.base >= bases_ ? pointer.base + 1 : bases_;
    steps_.push_back(std::make_unique<TypedStep<Arguments>>(launcher, arguments, std::move(pointers)));
  }

  int size() const { return static_cast<int>(steps_.size()); }
  // What run() would give to the launcher of step `index`.
  std::vector<Value> values(int index, const Bases& bases) const {
    return steps_.at(static_cast<std::size_t>(index))->values(bases);
  }
  // Addresses that a run needs, kAddress included.
  int bases() const { return bases_; }

  // Launches everything on `stream`; from the second launch on each may overlap with the end of the one before it.
  Status run(const Bases& bases, Stream stream, bool overlap) const {
    for (const auto& step : steps_) {
      const Status status = step->run(bases, stream);
      if (status != Status::kOk) return status;
      stream.overlaps = overlap;
    }
    return Status::kOk;
  }

 private:
  struct Step {
    virtual ~Step() = default;
    virtual Status run(const Bases& bases, Stream stream) const = 0;
    virtual std::vector<Value> values(const Bases& bases) const = 0;
  };

  template <class Arguments>
  struct TypedStep : Step {
    Status (*launcher)(const Arguments&, Stream);
    Arguments arguments;
    std::vector<Pointer> pointers;

    TypedStep(Status (*of_launcher)(const Arguments&, Stream), const Arguments& with, std::vector<Pointer> which)
        : launcher(of_launcher), arguments(with), pointers(std::move(which)) {}

    Status run(const Bases& bases, Stream stream) const override { return launcher(filled(bases), stream); }

    std::vector<Value> values(const Bases& bases) const override {
      std::vector<Value> all;
      Arguments with = filled(bases);
      visit_fields(with, [&](const char* name, auto field) {
        if constexpr (std::is_pointer_v<decltype(field)>) {
          all.push_back({name, true, reinterpret_cast<std::uintptr_t>(field), 0.0});
        } else {
          all.push_back({name, false, 0, static_cast<double>(field)});
        }
      });
      return all;
    }

    // A copy: runs on other streams and threads share the plan.
    Arguments filled(const Bases& bases) const {
      Arguments filled = arguments;
      for (const Pointer& pointer : pointers) {
        const std::uintptr_t address = bases.address[static_cast<std::size_t>(pointer.base)] + pointer.offset;
        std::memcpy(reinterpret_cast<char*>(&filled) + pointer.field, &address, sizeof(address));
      }
      return filled;
    }
  };

  std::vector<std::unique_ptr<Step>> steps_;
  int bases_ = 1;
};

}  // namespace mvk
