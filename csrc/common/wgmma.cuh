// wgmma: asynchronous matrix products of a warpgroup, four warps one after the other (sm_90a alone; PTX ISA,
// "Asynchronous Warpgroup Level Matrix Instructions").
//
// One instruction is D += A · B with D 64 × N in registers, A 64 × 16 in registers or shared memory, B 16 × N in shared
// memory. Warp w of the warpgroup holds rows 16w … 16w + 15, as the A and C fragments of common/mma.cuh: a C fragment
// for each 8 columns. All four warps call all of the words below together.
//
//   pin(sums);                   the compiler moves nothing that touches sums across this line
//   wgmma_fence();               registers that products are going to use are written; before the first product and
//   wgmma(sums, a, b, true);     whenever sums or a were touched since
//   …
//   wgmma_commit();              closes a group of products
//   wgmma_wait<n>();             until at most the n newest groups are under way: sums may be read, a and shared memory
//                                overwritten
//   pin(sums);                   and none of what does so comes before
//
// Between writing a matrix to shared memory, by stores or by cp.async that was waited for, and the products that read
// it lie a publish_matrices() of each thread that wrote, then a barrier of those that wrote and those that multiply.
#pragma once

#include "mma.cuh"

namespace mvk {

// A matrix of 16-bit numbers in shared memory, not swizzled: 8 × 8 cores of 128 bytes in one piece, whose 8 rows of 16
// bytes are rows of A or columns of B with eight neighbouring k. kTransposed: eight neighbouring columns of B at one k.
// Offsets are in elements, multiples of 8.
template <class T, bool kTransposed = false>
struct MatrixInShared {
  Shared<T> region;
  int begin;       // of the first core, in `region`
  int outer_step;  // from a core to the next one in rows of A or columns of B
  int depth_step;  // from a core to the next one in k
};

// For the compiler, a product ends where it is issued: without this it reads sums before the wait, and ptxas then makes
// every product wait for itself (its note C7514).
template <int kTiles>
MVK_DEVICE void pin([[maybe_unused]] FragmentC (&sums)[kTiles]) {
#ifndef MVK_SIMT
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[j].value[i])::"memory");
  }
#endif
}

}  // namespace mvk

#ifdef MVK_SIMT
#include "../simt/wgmma.h"
#else

// Whether the words below are more than nothing: sm_90a is the only architecture that has them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MVK_WGMMA_EXISTS 1
#else
#define MVK_WGMMA_EXISTS 0
#endif

#include "wgmma_operands.cuh"

namespace mvk {

MVK_DEVICE constexpr bool wgmma_exists() { return MVK_WGMMA_EXISTS != 0; }

MVK_DEVICE void wgmma_fence() {
#if MVK_WGMMA_EXISTS
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}
MVK_DEVICE void wgmma_commit() {
#if MVK_WGMMA_EXISTS
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#endif
}
template <int kPending>
MVK_DEVICE void wgmma_wait() {
#if MVK_WGMMA_EXISTS
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
#endif
}
MVK_DEVICE void publish_matrices() {
#if MVK_WGMMA_EXISTS
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}

// The 64-bit descriptor of the PTX ISA: start, leading and stride offset in units of 16 bytes, no swizzle.
template <class T, bool kTransposed>
MVK_DEVICE std::uint64_t matrix_descriptor(const MatrixInShared<T, kTransposed>& matrix) {
  const std::uint32_t start = matrix.region.address(matrix.begin) >> 4;
  const auto leading = static_cast<std::uint32_t>(matrix.depth_step / 8);
  const auto stride = static_cast<std::uint32_t>(matrix.outer_step / 8);
  return std::uint64_t{stride} << 32 | leading << 16 | start;
}

// The instruction for n · 8 columns; `flags` are its last immediates, whether A and B are transposed.
#define MVK_WGMMA(n, type, kind, flags, ...)                                                                 \
  if constexpr (kTiles == n) {                                                                               \
    asm volatile("{\n.reg .pred add;\nsetp.ne.s32 add, " MVK_ADD_##kind##_##n                                \
                 ", 0;\n"                                                                                    \
                 "wgmma.mma_async.sync.aligned.m64n" MVK_COLUMNS_##n "k16.f32." type "." type " {" MVK_D_##n \
                 "}, " MVK_##kind##_##n ", add, 1, 1, " flags ";\n}\n"                                       \
                 : MVK_SUMS_##n                                                                              \
                 : __VA_ARGS__);                                                                             \
  }
// Of all widths that kernels use.
#define MVK_WGMMA_OF_ANY_WIDTH(type, kind, flags, ...) \
  MVK_WGMMA(2, type, kind, flags, __VA_ARGS__)         \
  MVK_WGMMA(3, type, kind, flags, __VA_ARGS__)         \
  MVK_WGMMA(4, type, kind, flags, __VA_ARGS__)         \
  MVK_WGMMA(5, type, kind, flags, __VA_ARGS__)         \
  MVK_WGMMA(6, type, kind, flags, __VA_ARGS__)         \
  MVK_WGMMA(8, type, kind, flags, __VA_ARGS__)         \
  MVK_WGMMA(9, type, kind, flags, __VA_ARGS__)         \
  MVK_WGMMA(10, type, kind, flags, __VA_ARGS__)        \
  MVK_WGMMA(12, type, kind, flags, __VA_ARGS__)        \
  MVK_WGMMA(15, type, kind, flags, __VA_ARGS__)        \
  MVK_WGMMA(18, type, kind, flags, __VA_ARGS__)        \
  MVK_WGMMA(24, type, kind, flags, __VA_ARGS__)        \
  MVK_WGMMA(30, type, kind, flags, __VA_ARGS__)

MVK_HOST_DEVICE constexpr bool is_wgmma_width(int tiles) {
  return (tiles >= 2 && tiles <= 6) || tiles == 8 || tiles == 9 || tiles == 10 || tiles == 12 || tiles == 15 ||
         tiles == 18 || tiles == 24 || tiles == 30;
}

// D += A · B for kTiles · 8 columns; without `accumulate` D = A · B. A in shared memory.
template <int kTiles, class T, bool kTransposed>
MVK_DEVICE void wgmma(FragmentC (&sums)[kTiles], const MatrixInShared<T>& a, const MatrixInShared<T, kTransposed>& b,
                      bool accumulate = true) {
  static_assert(is_wgmma_width(kTiles), "add this width to MVK_WGMMA_OF_ANY_WIDTH");
#if MVK_WGMMA_EXISTS
  const std::uint64_t first = matrix_descriptor(a);
  const std::uint64_t second = matrix_descriptor(b);
  const int add = accumulate ? 1 : 0;
  if constexpr (IsSame<T, Half>::value && !kTransposed) {
    MVK_WGMMA_OF_ANY_WIDTH("f16", SHARED, "0, 0", "l"(first), "l"(second), "r"(add))
  } else if constexpr (!kTransposed) {
    MVK_WGMMA_OF_ANY_WIDTH("bf16", SHARED, "0, 0", "l"(first), "l"(second), "r"(add))
  } else if constexpr (IsSame<T, Half>::value) {
    MVK_WGMMA_OF_ANY_WIDTH("f16", SHARED, "0, 1", "l"(first), "l"(second), "r"(add))
  } else {
    MVK_WGMMA_OF_ANY_WIDTH("bf16", SHARED, "0, 1", "l"(first), "l"(second), "r"(add))
  }
#endif
}

// The same with A in registers: this warp's 16 rows.
template <int kTiles, class T, bool kTransposed>
MVK_DEVICE void wgmma(FragmentC (&sums)[kTiles], const FragmentA<T>& a, const MatrixInShared<T, kTransposed>& b,
                      bool accumulate = true) {
  static_assert(is_wgmma_width(kTiles), "add this width to MVK_WGMMA_OF_ANY_WIDTH");
#if MVK_WGMMA_EXISTS
  const std::uint64_t second = matrix_descriptor(b);
  const int add = accumulate ? 1 : 0;
#define MVK_INPUTS "r"(a.reg[0].bits), "r"(a.reg[1].bits), "r"(a.reg[2].bits), "r"(a.reg[3].bits), "l"(second), "r"(add)
  if constexpr (IsSame<T, Half>::value && !kTransposed) {
    MVK_WGMMA_OF_ANY_WIDTH("f16", REGISTERS, "0", MVK_INPUTS)
  } else if constexpr (!kTransposed) {
    MVK_WGMMA_OF_ANY_WIDTH("bf16", REGISTERS, "0", MVK_INPUTS)
  } else if constexpr (IsSame<T, Half>::value) {
    MVK_WGMMA_OF_ANY_WIDTH("f16", REGISTERS, "1", MVK_INPUTS)
  } else {
    MVK_WGMMA_OF_ANY_WIDTH("bf16", REGISTERS, "1", MVK_INPUTS)
  }
#undef MVK_INPUTS
#endif
}

}  // namespace mvk

#undef MVK_WGMMA_OF_ANY_WIDTH
#undef MVK_WGMMA

#endif
