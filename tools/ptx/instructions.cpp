// The instruction table: every opcode that the library's kernels compile to, after the PTX ISA 9.0, chapter 9.7.
//
// An instruction that works lane by lane is one line: its types, destination first, and what it computes. What is not
// in the table is refused when a module is parsed.
#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "machine.h"
#include "numbers.h"

namespace ptx {

namespace {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using f32 = float;
using pred = bool;

using Table = std::unordered_map<std::string, Operation>;

// Calls function(lane) for the active lanes; for all of them in a loop that vectorises.
template <class F>
inline void for_lanes(Mask active, F&& function) {
  if (active == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) function(lane);
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((active >> lane & 1u) != 0) function(lane);
    }
  }
}

template <class D, class... S, class F, std::size_t... kIndex>
inline void run_lanes(Warp& warp, const Instruction& i, Mask active, const F& function,
                      std::index_sequence<kIndex...>) {
  D* const destination = warp.lanes<D>(i.operand[0]);
  const std::tuple<const S*...> sources(warp.lanes<S>(i.operand[kIndex + 1])...);
  for_lanes(active, [&](int lane) { destination[lane] = function(std::get<kIndex>(sources)[lane]...); });
}

// d = function(a, b, …), lane by lane.
template <class D, class... S, class F>
Operation lanewise(F function) {
  static const F held = function;
  Operation operation;
  operation.widths = {sizeof(D), sizeof(S)...};
  operation.execute = [](Warp& warp, const Instruction& i, Mask active) {
    run_lanes<D, S...>(warp, i, active, held, std::index_sequence_for<S...>());
  };
  return operation;
}

// What is not lane by lane.
Operation whole(std::vector<int> widths, Execute execute, Convergence convergence = Convergence::kNone,
                Flow flow = Flow::kNone) {
  Operation operation;
  operation.widths = std::move(widths);
  operation.execute = execute;
  operation.convergence = convergence;
  operation.flow = flow;
  return operation;
}

// --- 9.7.1 integer arithmetic ----------------------------------------------------------------------------------------

template <class T>
T divisor(T b) {
  if (b == 0) throw Fault("an integer division by zero");
  return b;
}

void add_integer_arithmetic(Table& table) {
  table["add.s32"] = lanewise<u32, u32, u32>([](u32 a, u32 b) { return a + b; });
  table["add.s64"] = lanewise<u64, u64, u64>([](u64 a, u64 b) { return a + b; });
  table["sub.s16"] = lanewise<u16, u16, u16>([](u16 a, u16 b) { return static_cast<u16>(a - b); });
  table["sub.s32"] = lanewise<u32, u32, u32>([](u32 a, u32 b) { return a - b; });
  table["sub.s64"] = lanewise<u64, u64, u64>([](u64 a, u64 b) { return a - b; });
  table["mul.lo.s16"] = lanewise<u16, u16, u16>([](u16 a, u16 b) { return static_cast<u16>(u32{a} * b); });
  table["mul.lo.s32"] = lanewise<u32, u32, u32>([](u32 a, u32 b) { return a * b; });
  table["mul.lo.s64"] = lanewise<u64, u64, u64>([](u64 a, u64 b) { return a * b; });
  table["mul.hi.s32"] = lanewise<s32, s32, s32>([](s32 a, s32 b) { return static_cast<s32>(s64{a} * b >> 32); });
  table["mul.wide.s32"] = lanewise<s64, s32, s32>([](s32 a, s32 b) { return s64{a} * b; });
  table["mul.wide.u32"] = lanewise<u64, u32, u32>([](u32 a, u32 b) { return u64{a} * b; });
  table["mul.wide.u16"] = lanewise<u32, u16, u16>([](u16 a, u16 b) { return u32{a} * b; });
  table["mad.lo.s32"] = lanewise<u32, u32, u32, u32>([](u32 a, u32 b, u32 c) { return a * b + c; });
  table["div.s32"] = lanewise<s32, s32, s32>([](s32 a, s32 b) { return static_cast<s32>(s64{a} / divisor(b)); });
  table["div.u32"] = lanewise<u32, u32, u32>([](u32 a, u32 b) { return a / divisor(b); });
  table["div.s64"] = lanewise<s64, s64, s64>([](s64 a, s64 b) { return b == -1 ? -a : a / divisor(b); });
  table["rem.s32"] = lanewise<s32, s32, s32>([](s32 a, s32 b) { return static_cast<s32>(s64{a} % divisor(b)); });
  table["rem.u32"] = lanewise<u32, u32, u32>([](u32 a, u32 b) { return a % divisor(b); });
  table["neg.s32"] = lanewise<u32, u32>([](u32 a) { return 0u - a; });
  table["min.s32"] = lanewise<s32, s32, s32>([](s32 a, s32 b) { return a < b ? a : b; });
  table["max.s32"] = lanewise<s32, s32, s32>([](s32 a, s32 b) { return a > b ? a : b; });
  // Bits `position` and up, `length` of them, of b are replaced by the low ones of a.
  table["bfi.b32"] = lanewise<u32, u32, u32, u32, u32>([](u32 a, u32 b, u32 position, u32 length) {
    const u64 field = ((u64{1} << std::min(length & 255u, 32u)) - 1) << std::min(position & 255u, 32u);
    return static_cast<u32>((b & ~field) | ((u64{a} << std::min(position & 255u, 32u)) & field));
  });
}

// --- 9.7.3 floating-point arithmetic; 9.7.4 half precision -----------------------------------------------------------

// The documented error of tanh.approx.f32 is 2^-11, relative: the exact value, rounded to 11 bits.
double coarse_tanh(double x) { return rounded(std::tanh(x), 11, -1074); }

template <class T, class F>
Operation pairwise(F function) {
  static const F held = function;
  return lanewise<u32, u32>([](u32 a) { return pack<T>(held(low<T>(a)), held(high<T>(a))); });
}

template <class T>
void add_pair_arithmetic(Table& table, const std::string& type) {
  table["add" + type] =
      lanewise<u32, u32, u32>([](u32 a, u32 b) { return pack<T>(low<T>(a) + low<T>(b), high<T>(a) + high<T>(b)); });
  table["mul" + type] =
      lanewise<u32, u32, u32>([](u32 a, u32 b) { return pack<T>(low<T>(a) * low<T>(b), high<T>(a) * high<T>(b)); });
  table["fma.rn" + type] = lanewise<u32, u32, u32, u32>([](u32 a, u32 b, u32 c) {
    return pack<T>(fma_for_rounding(low<T>(a), low<T>(b), low<T>(c)),
                   fma_for_rounding(high<T>(a), high<T>(b), high<T>(c)));
  });
}

void add_float_arithmetic(Table& table) {
  table["add.f32"] = lanewise<f32, f32, f32>([](f32 a, f32 b) { return a + b; });
  table["sub.f32"] = lanewise<f32, f32, f32>([](f32 a, f32 b) { return a - b; });
  table["mul.f32"] = lanewise<f32, f32, f32>([](f32 a, f32 b) { return a * b; });
  table["fma.rn.f32"] = lanewise<f32, f32, f32, f32>([](f32 a, f32 b, f32 c) { return std::fma(a, b, c); });
  table["neg.f32"] = lanewise<f32, f32>([](f32 a) { return -a; });
  // Of a number and a NaN the number.
  table["max.f32"] = lanewise<f32, f32, f32>([](f32 a, f32 b) { return a > b || std::isnan(b) ? a : b; });
  table["rcp.rn.f32"] = lanewise<f32, f32>([](f32 a) { return 1.0f / a; });
  // Exact up to the rounding to float: less than the documented errors, which are given with csrc/common/math.cuh.
  table["rcp.approx.ftz.f32"] = lanewise<f32, f32>([](f32 a) { return flushed(1.0f / flushed(a)); });
  table["rsqrt.approx.ftz.f32"] =
      lanewise<f32, f32>([](f32 a) { return static_cast<f32>(1.0 / std::sqrt(static_cast<double>(flushed(a)))); });
  table["ex2.approx.ftz.f32"] =
      lanewise<f32, f32>([](f32 a) { return flushed(static_cast<f32>(std::exp2(static_cast<double>(flushed(a))))); });
  table["tanh.approx.f32"] = lanewise<f32, f32>([](f32 a) { return static_cast<f32>(coarse_tanh(a)); });
  table["tanh.approx.f16x2"] = pairwise<Half>([](double a) { return std::tanh(a); });
  table["ex2.approx.f16x2"] = pairwise<Half>([](double a) { return std::exp2(a); });
  add_pair_arithmetic<Half>(table, ".f16x2");
  add_pair_arithmetic<BFloat16>(table, ".bf16x2");
}

// --- 9.7.6 comparison and selection; 9.7.8 logic and shift -----------------------------------------------------------

template <class T>
void add_comparisons(Table& table, const std::string& type) {
  table["setp.eq." + type] = lanewise<pred, T, T>([](T a, T b) { return a == b; });
  table["setp.ne." + type] = lanewise<pred, T, T>([](T a, T b) { return a != b; });
  table["setp.lt." + type] = lanewise<pred, T, T>([](T a, T b) { return a < b; });
  table["setp.le." + type] = lanewise<pred, T, T>([](T a, T b) { return a <= b; });
  table["setp.gt." + type] = lanewise<pred, T, T>([](T a, T b) { return a > b; });
  table["setp.ge." + type] = lanewise<pred, T, T>([](T a, T b) { return a >= b; });
}

template <class T>
Operation selection() {
  return lanewise<T, T, T, pred>([](T a, T b, pred c) { return c ? a : b; });
}

template <class T>
void add_logic(Table& table, const std::string& type) {
  table["and." + type] = lanewise<T, T, T>([](T a, T b) { return static_cast<T>(a & b); });
  table["or." + type] = lanewise<T, T, T>([](T a, T b) { return static_cast<T>(a | b); });
  table["xor." + type] = lanewise<T, T, T>([](T a, T b) { return static_cast<T>(a ^ b); });
}

void add_comparison_logic_shift(Table& table) {
  add_comparisons<s16>(table, "s16");
  add_comparisons<s32>(table, "s32");
  add_comparisons<u32>(table, "u32");
  add_comparisons<s64>(table, "s64");
  table["setp.eq.b32"] = table["setp.eq.s32"];
  table["setp.gt.f32"] = lanewise<pred, f32, f32>([](f32 a, f32 b) { return a > b; });
  table["setp.leu.f32"] = lanewise<pred, f32, f32>([](f32 a, f32 b) { return !(a > b); });  // or one is a NaN
  table["selp.b32"] = table["selp.u32"] = selection<u32>();
  table["selp.f32"] = selection<f32>();
  table["selp.b64"] = selection<u64>();
  table["selp.u16"] = selection<u16>();
  add_logic<pred>(table, "pred");
  add_logic<u16>(table, "b16");
  add_logic<u32>(table, "b32");
  add_logic<u64>(table, "b64");
  table["not.pred"] = lanewise<pred, pred>([](pred a) { return !a; });
  table["not.b32"] = lanewise<u32, u32>([](u32 a) { return ~a; });
  // Shifts by the width or more give zero, or the sign.
  table["shl.b32"] = lanewise<u32, u32, u32>([](u32 a, u32 b) { return b < 32 ? a << b : 0; });
  table["shl.b64"] = lanewise<u64, u64, u32>([](u64 a, u32 b) { return b < 64 ? a << b : 0; });
  table["shr.u32"] = lanewise<u32, u32, u32>([](u32 a, u32 b) { return b < 32 ? a >> b : 0; });
  table["shr.u64"] = lanewise<u64, u64, u32>([](u64 a, u32 b) { return b < 64 ? a >> b : 0; });
  table["shr.s32"] = lanewise<s32, s32, u32>([](s32 a, u32 b) { return a >> std::min(b, 31u); });
}

// --- 9.7.9 data movement and conversion ------------------------------------------------------------------------------

// From T to every width: the low bits, or zeros or the sign above.
template <class T>
void add_integer_conversions(Table& table, const std::string& type) {
  table["cvt.u16." + type] = table["cvt.s16." + type] = lanewise<u16, T>([](T a) { return static_cast<u16>(a); });
  table["cvt.u32." + type] = table["cvt.s32." + type] = lanewise<u32, T>([](T a) { return static_cast<u32>(a); });
  table["cvt.u64." + type] = table["cvt.s64." + type] = lanewise<u64, T>([](T a) { return static_cast<u64>(a); });
}

void add_moves_conversions(Table& table) {
  table["mov.pred"] = lanewise<pred, pred>([](pred a) { return a; });
  table["mov.b32"] = table["mov.u32"] = table["mov.f32"] = lanewise<u32, u32>([](u32 a) { return a; });
  table["mov.b64"] = table["mov.u64"] = lanewise<u64, u64>([](u64 a) { return a; });
  // mov.b32 {low, high}, a
  table["mov.b32 unpack"] = whole({2, 2, 4}, [](Warp& warp, const Instruction& i, Mask active) {
    u16* const low_half = warp.lanes<u16>(i.operand[0]);
    u16* const high_half = warp.lanes<u16>(i.operand[1]);
    const u32* const a = warp.lanes<u32>(i.operand[2]);
    for_lanes(active, [&](int lane) {
      const u32 value = a[lane];
      low_half[lane] = static_cast<u16>(value);
      high_half[lane] = static_cast<u16>(value >> 16);
    });
  });
  add_integer_conversions<u16>(table, "u16");
  add_integer_conversions<s16>(table, "s16");
  add_integer_conversions<u32>(table, "u32");
  add_integer_conversions<s32>(table, "s32");
  add_integer_conversions<u64>(table, "u64");
  add_integer_conversions<s64>(table, "s64");
  table["cvt.rn.f32.s32"] = lanewise<f32, s32>([](s32 a) { return static_cast<f32>(a); });
  table["cvt.rn.f32.u16"] = lanewise<f32, u16>([](u16 a) { return static_cast<f32>(a); });
  // Towards zero; beyond the range its end, of a NaN zero.
  table["cvt.rzi.s32.f32"] = lanewise<s32, f32>([](f32 a) {
    if (std::isnan(a)) return 0;
    return static_cast<s32>(std::clamp(static_cast<double>(a), double{INT_MIN}, double{INT_MAX}));
  });
  table["cvt.f32.f16"] = lanewise<f32, u16>([](u16 a) { return static_cast<f32>(Half::decode(a)); });
  // cvt.….f32 d, a, b: a goes into the upper half.
  table["cvt.rn.f16x2.f32"] = lanewise<u32, f32, f32>([](f32 a, f32 b) { return pack<Half>(b, a); });
  table["cvt.rn.bf16x2.f32"] = lanewise<u32, f32, f32>([](f32 a, f32 b) { return pack<BFloat16>(b, a); });
  // Global addresses are generic ones.
  table["cvta.to.global.u64"] = table["mov.u64"];
  table["mapa.shared::cluster.u32"] = whole({4, 4, 4}, [](Warp& warp, const Instruction& i, Mask active) {
    u32* const d = warp.lanes<u32>(i.operand[0]);
    const u32* const a = warp.lanes<u32>(i.operand[1]);
    const u32* const rank = warp.lanes<u32>(i.operand[2]);
    const u32 blocks = static_cast<u32>(warp.block().cluster->blocks->size());
    for_lanes(active, [&](int lane) {
      if (rank[lane] >= blocks) throw Fault(format("block %u of a cluster of %u", rank[lane], blocks));
      d[lane] = (rank[lane] + 1) << kRankShift | a[lane];
    });
  });
}

// No generic addresses: what is in shared memory the compiler has to know.
enum class Space { kParameters, kGlobal, kShared, kSharedCluster };

// Reads or writes `bytes` of one lane at an address of a space.
template <Space kSpace>
void read(Warp& warp, int lane, u64 address, int bytes, void* to) {
  Block& block = warp.block();
  if constexpr (kSpace == Space::kParameters) {
    if (address % static_cast<unsigned>(bytes) != 0 ||
        address + static_cast<unsigned>(bytes) > static_cast<unsigned>(block.parameter_bytes)) {
      throw Fault(format("read of %d bytes at byte %llu of %d bytes of parameters", bytes,
                         static_cast<unsigned long long>(address), block.parameter_bytes));
    }
    std::memcpy(to, block.parameters + address, static_cast<std::size_t>(bytes));
  } else if constexpr (kSpace == Space::kShared) {
    block.shared.read(static_cast<u32>(address), bytes, to);
  } else if constexpr (kSpace == Space::kSharedCluster) {
    const u32 inside = static_cast<u32>(address) & ((1u << kRankShift) - 1);
    warp.block_of(static_cast<u32>(address)).shared.read(inside, bytes, to);
  } else {
    block.global->check(address, bytes, false, warp.before_wait(lane));
    std::memcpy(to, reinterpret_cast<const void*>(address), static_cast<std::size_t>(bytes));
  }
}

template <Space kSpace>
void write(Warp& warp, int lane, u64 address, int bytes, const void* from) {
  Block& block = warp.block();
  if constexpr (kSpace == Space::kShared) {
    block.shared.write(static_cast<u32>(address), bytes, from);
  } else if constexpr (kSpace == Space::kSharedCluster) {
    const u32 inside = static_cast<u32>(address) & ((1u << kRankShift) - 1);
    warp.block_of(static_cast<u32>(address)).shared.write(inside, bytes, from);
  } else {
    static_assert(kSpace == Space::kGlobal, "what the kernels write to");
    block.global->check(address, bytes, true, warp.before_wait(lane));
    std::memcpy(reinterpret_cast<void*>(address), from, static_cast<std::size_t>(bytes));
  }
}

// A lane's address from operand `index`, the displacement added.
u64 address_of(Warp& warp, const Instruction& i, int index, int lane, int which = 0) {
  const u64 base = i.width[static_cast<std::size_t>(index)] == 4
                       ? u64{warp.lanes<u32>(i.operand[static_cast<std::size_t>(index)])[lane]}
                       : warp.lanes<u64>(i.operand[static_cast<std::size_t>(index)])[lane];
  return base + static_cast<u64>(i.displacement[static_cast<std::size_t>(which)]);
}

// ld.SPACE.vN.T {d, …}, [a]: N values T, each extended to the width of its register.
template <Space kSpace, class T, int kCount>
void load(Warp& warp, const Instruction& i, Mask active) {
  for_lanes(active, [&](int lane) {
    T values[kCount];
    read<kSpace>(warp, lane, address_of(warp, i, kCount, lane), sizeof(values), values);
    for (std::size_t k = 0; k < kCount; ++k) {
      if (i.width[k] == 2) warp.lanes<u16>(i.operand[k])[lane] = static_cast<u16>(values[k]);
      if (i.width[k] == 4) warp.lanes<u32>(i.operand[k])[lane] = static_cast<u32>(values[k]);
      if (i.width[k] == 8) warp.lanes<u64>(i.operand[k])[lane] = static_cast<u64>(values[k]);
    }
  });
}

// st.SPACE.vN.T [a], {b, …}
template <Space kSpace, class T, int kCount>
void store(Warp& warp, const Instruction& i, Mask active) {
  for_lanes(active, [&](int lane) {
    T values[kCount];
    for (std::size_t k = 0; k < kCount; ++k) values[k] = warp.lanes<T>(i.operand[k + 1])[lane];
    write<kSpace>(warp, lane, address_of(warp, i, 0, lane), sizeof(values), values);
  });
}

template <Space kSpace, class T, int kCount = 1>
Operation loading() {
  std::vector<int> widths(kCount + 1, 0);
  return whole(widths, load<kSpace, T, kCount>);
}
template <Space kSpace, class T, int kCount = 1>
Operation storing() {
  std::vector<int> widths(kCount + 1, sizeof(T));
  widths[0] = 0;
  return whole(widths, store<kSpace, T, kCount>);
}

void add_loads_stores(Table& table) {
  table["ld.param.u8"] = loading<Space::kParameters, u8>();
  table["ld.param.v4.u8"] = loading<Space::kParameters, u8, 4>();
  table["ld.param.u32"] = table["ld.param.f32"] = loading<Space::kParameters, u32>();
  table["ld.param.v2.u32"] = table["ld.param.v2.f32"] = loading<Space::kParameters, u32, 2>();
  table["ld.param.u64"] = loading<Space::kParameters, u64>();

  table["ld.global.u8"] = loading<Space::kGlobal, u8>();
  table["ld.global.u16"] = loading<Space::kGlobal, u16>();
  table["ld.global.u32"] = table["ld.global.f32"] = loading<Space::kGlobal, u32>();
  table["ld.global.v2.u32"] = table["ld.global.v2.f32"] = loading<Space::kGlobal, u32, 2>();
  table["ld.global.v4.u32"] = table["ld.global.v4.f32"] = loading<Space::kGlobal, u32, 4>();
  table["st.global.u32"] = table["st.global.f32"] = storing<Space::kGlobal, u32>();
  table["st.global.v2.u32"] = storing<Space::kGlobal, u32, 2>();
  table["st.global.v4.u32"] = table["st.global.v4.f32"] = storing<Space::kGlobal, u32, 4>();

  table["ld.shared.u16"] = loading<Space::kShared, u16>();
  table["ld.shared.s32"] = loading<Space::kShared, s32>();
  table["ld.shared.u32"] = loading<Space::kShared, u32>();
  table["ld.shared.v2.u32"] = table["ld.shared.v2.f32"] = loading<Space::kShared, u32, 2>();
  table["ld.shared.v4.u32"] = table["ld.shared.v4.f32"] = loading<Space::kShared, u32, 4>();
  table["st.shared.u32"] = storing<Space::kShared, u32>();
  table["st.shared.v2.u32"] = table["st.shared.v2.f32"] = storing<Space::kShared, u32, 2>();
  table["st.shared.v4.u32"] = table["st.shared.v4.f32"] = storing<Space::kShared, u32, 4>();

  table["ld.shared::cluster.b32"] = loading<Space::kSharedCluster, u32>();
  table["ld.shared::cluster.v2.b32"] = loading<Space::kSharedCluster, u32, 2>();
  table["st.shared::cluster.b32"] = storing<Space::kSharedCluster, u32>();
  table["st.shared::cluster.v2.b32"] = storing<Space::kSharedCluster, u32, 2>();
  table["st.shared::cluster.v4.b32"] = storing<Space::kSharedCluster, u32, 4>();
}

// cp.async.cg.shared.global [to], [from], 16, from_bytes: the rest of the 16 is zeros. The bytes come with the wait.
void async_copy(Warp& warp, const Instruction& i, Mask active) {
  const u32* const size = warp.lanes<u32>(i.operand[2]);
  const u32* const from_bytes = warp.lanes<u32>(i.operand[3]);
  for_lanes(active, [&](int lane) {
    if (size[lane] != 16 || from_bytes[lane] > 16) {
      throw Fault(format("cp.async.cg of %u bytes, %u of them from memory", size[lane], from_bytes[lane]));
    }
    const u64 from = address_of(warp, i, 1, lane, 1);
    // The address has to be aligned even where nothing is read.
    if (from % 16 != 0) throw Fault(format("cp.async from %#llx", static_cast<unsigned long long>(from)));
    if (from_bytes[lane] > 0) warp.block().global->check(from, 16, false, warp.before_wait(lane));
    warp.copy(lane, static_cast<u32>(address_of(warp, i, 0, lane)), reinterpret_cast<const void*>(from),
              static_cast<int>(from_bytes[lane]));
  });
}

void prefetch(Warp& warp, const Instruction& i, Mask active) {
  for_lanes(active, [&](int lane) {
    warp.block().global->check(address_of(warp, i, 0, lane), 1, false, warp.before_wait(lane));
  });
}

void add_async_copies(Table& table) {
  table["prefetch.global.L2"] = whole({8}, prefetch);
  table["cp.async.cg.shared.global"] = whole({4, 8, 4, 4}, async_copy);
  table["cp.async.commit_group"] =
      whole({}, [](Warp& warp, const Instruction&, Mask active) { warp.commit_copies(active); });
  table["cp.async.wait_group"] = whole({4}, [](Warp& warp, const Instruction& i, Mask active) {
    warp.wait_for_copies(active, warp.lanes<s32>(i.operand[0])[0]);
  });
}

// --- 9.7.9.25 cp.async.bulk; 9.7.13.15 mbarrier ----------------------------------------------------------------------

MemoryBarrier& barrier_of(Block& block, u64 address) {
  const auto found = block.barriers.find(static_cast<u32>(address));
  if (found == block.barriers.end()) {
    throw Fault(format("no mbarrier was initialised at %#llx", static_cast<unsigned long long>(address)));
  }
  return found->second;
}

// mbarrier.init [address], arrivals
void init_barrier(Warp& warp, const Instruction& i, Mask active) {
  for_lanes(active, [&](int lane) {
    const u32 address = static_cast<u32>(address_of(warp, i, 0, lane));
    const u64 nothing = 0;
    warp.block().shared.write(address, 8, &nothing);
    const u32 arrivals = warp.lanes<u32>(i.operand[1])[lane];
    if (arrivals == 0 || arrivals > (1u << 20) - 1) throw Fault(format("an mbarrier of %u arrivals", arrivals));
    MemoryBarrier barrier;
    barrier.expected = static_cast<int>(arrivals);
    if (!warp.block().barriers.try_emplace(address, barrier).second) throw Fault("an mbarrier is initialised twice");
  });
}

// mbarrier.arrive _, [address]; with expect_tx _, [address], bytes
template <bool kBytes>
void arrive(Warp& warp, const Instruction& i, Mask active) {
  for_lanes(active, [&](int lane) {
    MemoryBarrier& barrier = barrier_of(warp.block(), address_of(warp, i, 1, lane));
    if (barrier.arrived == barrier.expected) throw Fault("more arrivals at an mbarrier than end its phase");
    if constexpr (kBytes) barrier.bytes += warp.lanes<u32>(i.operand[2])[lane];
    ++barrier.arrived;
    barrier.end_phase();
    ++warp.block().events;
  });
}

// mbarrier.try_wait.parity p, [address], parity: what is on its way comes now.
void try_wait(Warp& warp, const Instruction& i, Mask active) {
  pred* const over = warp.lanes<pred>(i.operand[0]);
  for_lanes(active, [&](int lane) {
    MemoryBarrier& barrier = barrier_of(warp.block(), address_of(warp, i, 1, lane));
    for (const MemoryBarrier::Copy& copy : barrier.copies) {
      const auto* const from = static_cast<const char*>(copy.from == nullptr ? copy.sent : copy.from);
      for (int byte = 0; byte < copy.bytes; byte += 16) {
        const int size = std::min(copy.bytes - byte, 16);
        warp.block().shared.land(copy.to + static_cast<u32>(byte), from + byte, size, size);
      }
      barrier.bytes -= copy.bytes;
      ++warp.block().events;
    }
    if (!barrier.copies.empty()) {
      barrier.copies.clear();
      barrier.end_phase();
    }
    over[lane] = static_cast<u32>(barrier.phase & 1) != warp.lanes<u32>(i.operand[2])[lane];
    if (!over[lane]) warp.poll_again();
  });
}

// cp.async.bulk….complete_tx::bytes [to], [from], bytes, [mbarrier]
void bulk_copy(Warp& warp, const Instruction& i, Mask active) {
  for_lanes(active, [&](int lane) {
    const u32 to = static_cast<u32>(address_of(warp, i, 0, lane));
    const u64 from = address_of(warp, i, 1, lane, 1);
    const u32 bytes = warp.lanes<u32>(i.operand[2])[lane];
    if (bytes == 0 || bytes % 16 != 0) throw Fault(format("cp.async.bulk of %u bytes", bytes));
    MemoryBarrier& barrier = barrier_of(warp.block(), address_of(warp, i, 3, lane, 2));
    for (u32 byte = 0; byte < bytes; byte += 16) {
      warp.block().global->check(from + byte, 16, false, warp.before_wait(lane));
      warp.block().shared.begin_copy(to + byte, 16);
    }
    barrier.copies.push_back({to, reinterpret_cast<const void*>(from), static_cast<int>(bytes)});
    ++warp.block().events;
  });
}

// 9.7.9.12 st.async….complete_tx::bytes.vN.b32 [to], {b, …}, [mbarrier]: both in one block of the cluster.
template <int kCount>
void send(Warp& warp, const Instruction& i, Mask active) {
  for_lanes(active, [&](int lane) {
    const u32 to = static_cast<u32>(address_of(warp, i, 0, lane));
    const u32 at = static_cast<u32>(address_of(warp, i, kCount + 1, lane, 1));
    if (to >> kRankShift != at >> kRankShift || to >> kRankShift == 0) {
      throw Fault(format("st.async to %#x reports to the mbarrier at %#x", to, at));
    }
    constexpr u32 kInside = (1u << kRankShift) - 1;
    Block& block = warp.block_of(to);
    block.shared.begin_copy(to & kInside, 4 * kCount);
    MemoryBarrier::Copy copy{to & kInside, nullptr, 4 * kCount};
    for (std::size_t k = 0; k < kCount; ++k) copy.sent[k] = warp.lanes<u32>(i.operand[k + 1])[lane];
    barrier_of(block, at & kInside).copies.push_back(copy);
    ++block.events;
  });
}

// atom.inc d, [address], b: d is what was there, and there is one more, or zero where it was b or more.
void increment(Warp& warp, const Instruction& i, Mask active) {
  for_lanes(active, [&](int lane) {
    const u32 address = static_cast<u32>(address_of(warp, i, 1, lane));
    u32 value = 0;
    warp.block().shared.read(address, 4, &value);
    warp.lanes<u32>(i.operand[0])[lane] = value;
    value = value >= warp.lanes<u32>(i.operand[2])[lane] ? 0 : value + 1;
    warp.block().shared.write(address, 4, &value);
  });
}

void add_barriers_in_memory(Table& table) {
  table["mbarrier.init.shared::cta.b64"] = whole({4, 4}, init_barrier);
  table["mbarrier.arrive.shared::cta.b64"] = whole({0, 4}, arrive<false>);
  table["mbarrier.arrive.expect_tx.shared::cta.b64"] = whole({0, 4, 4}, arrive<true>);
  table["mbarrier.try_wait.parity.shared::cta.b64"] = whole({1, 4, 4}, try_wait, Convergence::kNone, Flow::kPoll);
  table["mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64"] =
      table["mbarrier.try_wait.parity.shared::cta.b64"];
  table["st.async.shared::cluster.mbarrier::complete_tx::bytes.b32"] = whole({0, 4, 0}, send<1>);
  table["st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32"] = whole({0, 4, 4, 0}, send<2>);
  table["st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32"] = whole({0, 4, 4, 4, 4, 0}, send<4>);
  table["fence.mbarrier_init.release.cluster"] = whole({}, nullptr);
  table["cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"] = whole({4, 8, 4, 4}, bulk_copy);
  table["atom.acq_rel.cta.shared::cta.inc.u32"] = whole({4, 4, 4}, increment);
}

// --- 9.7.9.6 shfl.sync: d|p, a, b, c, membermask; 9.7.13 vote.sync ---------------------------------------------------

enum class Shuffle { kUp, kDown, kButterfly, kIndex };

template <Shuffle kMode>
void shuffle(Warp& warp, const Instruction& i, Mask active) {
  u32* const d = warp.lanes<u32>(i.operand[0]);
  pred* const p = warp.lanes<pred>(i.operand[1]);
  std::array<u32, kLanes> a;
  std::copy_n(warp.lanes<u32>(i.operand[2]), kLanes, a.begin());
  const u32* const b = warp.lanes<u32>(i.operand[3]);
  const u32* const c = warp.lanes<u32>(i.operand[4]);
  for_lanes(active, [&](int lane) {
    const int offset = static_cast<int>(b[lane] & 31);
    const int clamp = static_cast<int>(c[lane] & 31);
    const int segment = static_cast<int>(c[lane] >> 8 & 31);
    const int last = (lane & segment) | (clamp & ~segment);
    const int first = lane & segment;
    int source = 0;
    bool valid = false;
    switch (kMode) {
      case Shuffle::kUp:
        source = lane - offset;
        valid = source >= last;
        break;
      case Shuffle::kDown:
        source = lane + offset;
        valid = source <= last;
        break;
      case Shuffle::kButterfly:
        source = lane ^ offset;
        valid = source <= last;
        break;
      case Shuffle::kIndex:
        source = first | (offset & ~segment);
        valid = source <= last;
        break;
    }
    if (!valid) source = lane;
    if ((active >> source & 1u) == 0) throw Fault(format("shfl from lane %d, which is not active", source));
    d[lane] = a[static_cast<std::size_t>(source)];
    p[lane] = valid;
  });
}

// vote.sync.any.pred p, a, membermask
void vote_any(Warp& warp, const Instruction& i, Mask active) {
  pred* const p = warp.lanes<pred>(i.operand[0]);
  const pred* const a = warp.lanes<pred>(i.operand[1]);
  bool any = false;
  for_lanes(active, [&](int lane) { any = any || a[lane]; });
  for_lanes(active, [&](int lane) { p[lane] = any; });
}

// --- 9.7.12 control flow; 9.7.13 synchronisation ---------------------------------------------------------------------

void add_control_synchronisation(Table& table) {
  table["bra"] = table["bra.uni"] = whole({}, nullptr, Convergence::kNone, Flow::kBranch);
  table["ret"] = whole({}, nullptr, Convergence::kNone, Flow::kExit);
  table["bar.sync"] = whole(
      {4},
      [](Warp& warp, const Instruction& i, Mask) {
        if (warp.lanes<u32>(i.operand[0])[0] != 0) throw Fault("named barriers are not implemented");
      },
      Convergence::kAligned, Flow::kBlockBarrier);
  // bar.sync barrier, threads
  table["bar.sync part"] = whole(
      {4, 4},
      [](Warp& warp, const Instruction& i, Mask) {
        const u32 number = warp.lanes<u32>(i.operand[0])[0];
        const u32 threads = warp.lanes<u32>(i.operand[1])[0];
        if (number == 0 || number > 15) throw Fault(format("a barrier of part of the block, number %u", number));
        if (threads == 0 || threads % kLanes != 0) throw Fault(format("a barrier of %u threads", threads));
        PartBarrier& part = warp.block().parts[number];
        const int warps = static_cast<int>(threads / kLanes);
        if (part.waiting > 0 && part.warps != warps) throw Fault("a barrier of different numbers of threads");
        part.warps = warps;
        warp.part = static_cast<int>(number);
      },
      Convergence::kAligned, Flow::kPartBarrier);
  table["bar.warp.sync"] = whole({4}, nullptr, Convergence::kMemberMask);
  table["barrier.cluster.arrive.release.aligned"] = whole({}, nullptr, Convergence::kAligned, Flow::kClusterArrive);
  table["barrier.cluster.wait.acquire.aligned"] = whole({}, nullptr, Convergence::kAligned, Flow::kClusterWait);
  table["shfl.sync.up.b32"] = whole({4, 1, 4, 4, 4, 4}, shuffle<Shuffle::kUp>, Convergence::kMemberMask);
  table["shfl.sync.down.b32"] = whole({4, 1, 4, 4, 4, 4}, shuffle<Shuffle::kDown>, Convergence::kMemberMask);
  table["shfl.sync.bfly.b32"] = whole({4, 1, 4, 4, 4, 4}, shuffle<Shuffle::kButterfly>, Convergence::kMemberMask);
  table["shfl.sync.idx.b32"] = whole({4, 1, 4, 4, 4, 4}, shuffle<Shuffle::kIndex>, Convergence::kMemberMask);
  table["vote.sync.any.pred"] = whole({1, 1, 4}, vote_any, Convergence::kMemberMask);
  table["griddepcontrol.launch_dependents"] = whole({}, nullptr);
  table["griddepcontrol.wait"] =
      whole({}, [](Warp& warp, const Instruction&, Mask active) { warp.wait_for_earlier_launches(active); });
}

// --- 9.7.14 warp-level matrix instructions ---------------------------------------------------------------------------

// ldmatrix.m8n8.xN: lane 8·m + r has the address of row r of matrix m, eight 16-bit elements. Lane l receives elements
// 2·(l % 4) and the next of row l / 4; with .trans rows and columns change places.
template <int kMatrices, bool kTransposed>
void load_matrix(Warp& warp, const Instruction& i, Mask) {
  u16 matrix[kMatrices][8][8];
  for (int lane = 0; lane < 8 * kMatrices; ++lane) {
    const u32 address = static_cast<u32>(address_of(warp, i, kMatrices, lane));
    warp.block().shared.read(address, 16, matrix[lane / 8][lane % 8]);
  }
  for (int m = 0; m < kMatrices; ++m) {
    u32* const d = warp.lanes<u32>(i.operand[static_cast<std::size_t>(m)]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4;
      const int column = 2 * (lane % 4);
      const u32 first = kTransposed ? matrix[m][column][row] : matrix[m][row][column];
      const u32 second = kTransposed ? matrix[m][column + 1][row] : matrix[m][row][column + 1];
      d[lane] = first | second << 16;
    }
  }
}

// The value of every 16-bit pattern.
template <class T>
const float* decoded() {
  static const std::vector<float> kValues = [] {
    std::vector<float> values(65536);
    for (int bits = 0; bits < 65536; ++bits) values[bits] = static_cast<float>(T::decode(static_cast<u16>(bits)));
    return values;
  }();
  return kValues.data();
}

// mma.m16n8kK.row.col: D = A · B + C. With group = lane / 4 and t = lane % 4, figures "MMA .m16n8k8" and ".m16n8k16":
//   a_i: row group (+ 8 where i & 2), column 2·t + (i & 1) (+ 8 where i & 4)      i = 0 … K / 2 − 1
//   b_i: row 2·t + (i & 1) (+ 8 where i & 2), column group                        i = 0 … K / 4 − 1
//   c_i: row group (+ 8 where i & 2), column 2·t + (i & 1)                        i = 0 … 3
// Products and their sums are exact here up to double precision, then rounded to the type of D; the hardware's are
// float32 sums in an order of its own.
template <class T, int kDepth, bool kHalfSums>
void multiply(Warp& warp, const Instruction& i, Mask) {
  constexpr std::size_t kSums = kHalfSums ? 2 : 4;  // registers of C and D
  constexpr std::size_t kA = kDepth / 4;            // of A, two elements each
  constexpr std::size_t kB = kDepth / 8;
  const float* const value = decoded<T>();
  float a[16][kDepth];
  float b[kDepth][8];
  double sums[16][8];
  const auto lanes_of = [&](std::size_t operand) { return warp.lanes<u32>(i.operand[operand]); };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4;
    const int column = 2 * (lane % 4);
    for (std::size_t k = 0; k < kA; ++k) {
      const u32 pair = lanes_of(kSums + k)[lane];
      float* const to = &a[group + (k & 1 ? 8 : 0)][column + (k & 2 ? 8 : 0)];
      to[0] = value[pair & 0xffff];
      to[1] = value[pair >> 16];
    }
    for (std::size_t k = 0; k < kB; ++k) {
      const u32 pair = lanes_of(kSums + kA + k)[lane];
      const int row = column + (k & 1 ? 8 : 0);
      b[row][group] = value[pair & 0xffff];
      b[row + 1][group] = value[pair >> 16];
    }
    for (int k = 0; k < 4; ++k) {
      const u32 word = lanes_of(kSums + kA + kB + static_cast<std::size_t>(kHalfSums ? k / 2 : k))[lane];
      double& to = sums[group + (k & 2 ? 8 : 0)][column + (k & 1)];
      to = kHalfSums ? static_cast<double>(value[(k & 1) != 0 ? word >> 16 : word & 0xffff]) : bits_as<float>(word);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      const double scale = a[row][k];
      for (int column = 0; column < 8; ++column) sums[row][column] += scale * static_cast<double>(b[k][column]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int half = 0; half < 2; ++half) {
      const double* const from = &sums[lane / 4 + 8 * half][2 * (lane % 4)];
      if constexpr (kHalfSums) {
        lanes_of(static_cast<std::size_t>(half))[lane] = pack<Half>(from[0], from[1]);
      } else {
        lanes_of(static_cast<std::size_t>(2 * half))[lane] = bits_as<u32>(static_cast<float>(from[0]));
        lanes_of(static_cast<std::size_t>(2 * half + 1))[lane] = bits_as<u32>(static_cast<float>(from[1]));
      }
    }
  }
}

template <class T, int kDepth, bool kHalfSums = false>
Operation multiplication() {
  const std::size_t registers = 2 * (kHalfSums ? 2 : 4) + kDepth / 4 + kDepth / 8;
  return whole(std::vector<int>(registers, 4), multiply<T, kDepth, kHalfSums>, Convergence::kAligned);
}

void add_matrices(Table& table) {
  table["ldmatrix.sync.aligned.m8n8.x2.shared.b16"] = whole({4, 4, 4}, load_matrix<2, false>, Convergence::kAligned);
  table["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] =
      whole({4, 4, 4, 4, 4}, load_matrix<4, false>, Convergence::kAligned);
  table["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] =
      whole({4, 4, 4, 4, 4}, load_matrix<4, true>, Convergence::kAligned);
  table["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = multiplication<Half, 16>();
  table["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = multiplication<BFloat16, 16>();
  table["mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"] = multiplication<Half, 8>();
  table["mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32"] = multiplication<BFloat16, 8>();
  table["mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"] = multiplication<Half, 16, true>();
}

// --- 9.7.15 asynchronous warpgroup-level matrix instructions ---------------------------------------------------------

// A matrix in shared memory as its descriptor has it, "Matrix descriptor format": bits 0-13 the start, 16-29 the
// leading and 32-45 the stride dimension offset, in units of 16 bytes; bits 62-63 the swizzling, of which there is none
// here. Core matrices are 8 rows of 16 bytes; the stride offset leads to the next one along M or N, the leading offset
// along K.
class DescribedMatrix {
 public:
  DescribedMatrix(Warp& warp, u64 descriptor, bool transposed)
      : warp_(warp),
        start_(field(descriptor, 0)),
        leading_(field(descriptor, 16)),
        stride_(field(descriptor, 32)),
        transposed_(transposed) {
    const u64 known = u64{0x3fff} | u64{0x3fff} << 16 | u64{0x3fff} << 32;
    if ((descriptor & ~known) != 0) {
      throw Fault(format("a matrix descriptor with other bits than start and offsets, %#llx",
                         static_cast<unsigned long long>(descriptor)));
    }
  }

  // The core matrix that has rows (columns of B) 8 · outer … and k from 8 · half on: element (row, k).
  void read_core(int outer, int half, u16 (&core)[8][8]) const {
    u16 lines[8][8];
    for (u32 line = 0; line < 8; ++line) {
      const u32 address = start_ + static_cast<u32>(outer) * stride_ + static_cast<u32>(half) * leading_ + 16 * line;
      warp_.block().shared.read(address, 16, lines[line]);
    }
    for (int row = 0; row < 8; ++row) {
      for (int k = 0; k < 8; ++k) core[row][k] = transposed_ ? lines[k][row] : lines[row][k];
    }
  }

 private:
  static u32 field(u64 descriptor, int first_bit) { return static_cast<u32>(descriptor >> first_bit & 0x3fff) << 4; }

  Warp& warp_;
  u32 start_, leading_, stride_;
  bool transposed_;
};

// wgmma.mma_async.m64nNk16 {d, …}, a, b, scale-d, imm-scale-a, imm-scale-b, …: D = A · B + D, or A · B where scale-d is
// false. a is a descriptor, or four registers as of mma.m16n8k16; behind the scales stand whether A (if it is in shared
// memory) and B are transposed. A warp computes rows 16 · (warp % 4) … of the 64. Here the result is there at once:
// that the code waits for it is the simulator's to check.
template <class T, bool kRegisters>
void multiply_warpgroup(Warp& warp, const Instruction& i, Mask) {
  const auto sums = static_cast<std::size_t>(i.operands - (kRegisters ? 9 : 7));
  const int columns = static_cast<int>(2 * sums);
  const std::size_t b_operand = sums + (kRegisters ? 4 : 1);
  const auto immediate = [&](std::size_t operand) { return warp.lanes<s32>(i.operand[operand])[0]; };
  const auto descriptor = [&](std::size_t operand) {
    const u64* const lanes = warp.lanes<u64>(i.operand[operand]);
    for (int lane = 1; lane < kLanes; ++lane) {
      if (lanes[lane] != lanes[0]) throw Fault("lanes have different matrix descriptors");
    }
    return lanes[0];
  };
  if (immediate(b_operand + 2) != 1 || immediate(b_operand + 3) != 1) throw Fault("wgmma with a negated operand");
  const float* const value = decoded<T>();
  std::vector<std::array<float, 16>> b(static_cast<std::size_t>(columns));
  const DescribedMatrix right(warp, descriptor(b_operand), immediate(static_cast<std::size_t>(i.operands - 1)) != 0);
  u16 core[8][8];
  for (int n = 0; n < columns; n += 8) {
    for (int half = 0; half < 2; ++half) {
      right.read_core(n / 8, half, core);
      for (int column = 0; column < 8; ++column) {
        for (int k = 0; k < 8; ++k) {
          b[static_cast<std::size_t>(n + column)][static_cast<std::size_t>(8 * half + k)] = value[core[column][k]];
        }
      }
    }
  }
  float a[16][16];
  if constexpr (kRegisters) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (std::size_t k = 0; k < 4; ++k) {
        const u32 pair = warp.lanes<u32>(i.operand[sums + k])[lane];
        float* const to = &a[lane / 4 + (k & 1 ? 8 : 0)][2 * (lane % 4) + (k & 2 ? 8 : 0)];
        to[0] = value[pair & 0xffff];
        to[1] = value[pair >> 16];
      }
    }
  } else {
    const DescribedMatrix left(warp, descriptor(sums), immediate(static_cast<std::size_t>(i.operands - 2)) != 0);
    for (int outer = 0; outer < 2; ++outer) {
      for (int half = 0; half < 2; ++half) {
        left.read_core(2 * (warp.index() % 4) + outer, half, core);
        for (int row = 0; row < 8; ++row) {
          for (int k = 0; k < 8; ++k) a[8 * outer + row][8 * half + k] = value[core[row][k]];
        }
      }
    }
  }
  const bool adds = warp.lanes<pred>(i.operand[b_operand + 1])[0];
  for (std::size_t s = 0; s < sums; ++s) {
    u32* const d = warp.lanes<u32>(i.operand[s]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const float* const row = a[lane / 4 + (s & 2 ? 8 : 0)];
      const std::array<float, 16>& column = b[s / 4 * 8 + static_cast<std::size_t>(2 * (lane % 4)) + (s & 1)];
      double sum = adds ? static_cast<double>(bits_as<float>(d[lane])) : 0.0;
      for (std::size_t k = 0; k < 16; ++k) sum += static_cast<double>(row[k]) * static_cast<double>(column[k]);
      d[lane] = bits_as<u32>(static_cast<float>(sum));
    }
  }
}

template <class T, bool kRegisters>
Operation warpgroup_multiplication(int columns) {
  std::vector<int> widths(static_cast<std::size_t>(columns / 2), 4);
  const std::vector<int> behind =
      kRegisters ? std::vector<int>{4, 4, 4, 4, 8, 1, 4, 4, 4} : std::vector<int>{8, 8, 1, 4, 4, 4, 4};
  widths.insert(widths.end(), behind.begin(), behind.end());
  return whole(widths, multiply_warpgroup<T, kRegisters>, Convergence::kAligned);
}

void add_warpgroup_matrices(Table& table) {
  for (int columns = 8; columns <= 256; columns += 8) {
    const std::string name = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(columns) + "k16.f32.";
    table[name + "f16.f16"] = warpgroup_multiplication<Half, false>(columns);
    table[name + "f16.f16 registers"] = warpgroup_multiplication<Half, true>(columns);
    table[name + "bf16.bf16"] = warpgroup_multiplication<BFloat16, false>(columns);
    table[name + "bf16.bf16 registers"] = warpgroup_multiplication<BFloat16, true>(columns);
  }
  table["wgmma.fence.sync.aligned"] = whole({}, nullptr, Convergence::kAligned);
  table["wgmma.commit_group.sync.aligned"] = whole({}, nullptr, Convergence::kAligned);
  table["wgmma.wait_group.sync.aligned"] = whole({4}, nullptr, Convergence::kAligned);
  table["fence.proxy.async.shared::cta"] = whole({}, nullptr);
}

}  // namespace

const Table& instruction_table() {
  static const Table kTable = [] {
    Table table;
    add_integer_arithmetic(table);
    add_float_arithmetic(table);
    add_comparison_logic_shift(table);
    add_moves_conversions(table);
    add_loads_stores(table);
    add_async_copies(table);
    add_barriers_in_memory(table);
    add_control_synchronisation(table);
    add_matrices(table);
    add_warpgroup_matrices(table);
    return table;
  }();
  return kTable;
}

}  // namespace ptx
