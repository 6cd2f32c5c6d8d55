// A PTX module, decoded once: kernels as arrays of instructions whose operands are places in a register file.
//
// A warp's register file is one block of bytes. Every register has 32 lanes of its own width one after the other (a
// predicate's are bytes, 0 or 1), and so have immediates and special registers: a source operand is always a place.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "fault.h"

namespace ptx {

constexpr int kLanes = 32;
using Mask = std::uint32_t;  // a bit a lane
constexpr Mask kAllLanes = 0xffffffffu;

class Warp;
struct Instruction;

using Execute = void (*)(Warp&, const Instruction&, Mask active);

// What the machine itself does for an instruction, beside its `execute`.
enum class Flow : std::uint8_t {
  kNone,
  kBranch,
  kExit,
  kBlockBarrier,
  kPartBarrier,
  kPoll,
  kClusterArrive,
  kClusterWait
};

// Which lanes have to be there together.
enum class Convergence : std::uint8_t {
  kNone,
  kAligned,    // all lanes of the warp
  kMemberMask  // exactly those of the last operand
};

// One row of the instruction table.
struct Operation {
  std::vector<int> widths;  // bytes of a lane's operands, destinations first; 0: a register of any width
  Execute execute = nullptr;
  Flow flow = Flow::kNone;
  Convergence convergence = Convergence::kNone;
};

// By the whole opcode as PTX spells it; " unpack" is added where the destination of a mov is in braces, " pack" where
// its source is, " registers" where A of a wgmma is, " part" to a bar.sync of a number of threads.
const std::unordered_map<std::string, Operation>& instruction_table();

struct Instruction {
  const Operation* operation = nullptr;
  std::vector<std::uint32_t> operand;  // places in the register file
  std::vector<std::uint8_t> width;     // bytes of a lane there
  int operands = 0;
  std::array<std::int64_t, 3> displacement{};  // of addresses, in order
  bool has_guard = false;
  bool guard_value = true;  // @%p, else @!%p
  std::uint32_t guard = 0;
  int target = 0;  // of a branch
  int line = 0;    // of the module's text, from 1
};

// Special registers that a kernel reads: their places are filled in for each warp.
enum class Special { kThreadX, kBlockX, kBlockY, kClusterRank, kClusterBlocks };

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<std::uint64_t> executed;   // how many warps have executed each instruction
  std::vector<unsigned char> registers;  // a register file at the start: immediates, and all ones elsewhere
  std::vector<std::pair<Special, std::uint32_t>> specials;
  int parameter_bytes = 0;
  int max_threads = 1024;
  const std::vector<std::string>* text = nullptr;

  std::string describe(const Instruction& instruction) const;
};

struct Module {
  int target = 0;  // 90 of sm_90a
  std::vector<std::string> text;
  std::vector<std::unique_ptr<Kernel>> kernels;
};

// Raises Fault, with the line, on anything that it does not know.
std::unique_ptr<Module> parse(const std::string& text);

// Where dynamic shared memory begins in a block's window; not zero, so that a forgotten base shows.
constexpr std::uint32_t kSharedBase = 1024;

}  // namespace ptx
