// Approximate functions of the special-function unit (MUFU) and what is built on them.
//
// Errors as the PTX ISA states them; the simulator adds an error of that size to the exact value:
//   tanh.approx.f32   relative 2^-11          ex2.approx.ftz.f32  relative 2^-22
//   tanh.approx.f16x2 absolute 2^-10.987      ex2.approx.f16x2    relative 2^-9.9
//   rcp.approx.ftz.f32  1 ulp                 rsqrt.approx.ftz.f32 relative 2^-22.9
#pragma once

#include "types.cuh"

#ifdef MVK_SIMT
#include "../simt/math.h"
#else

namespace mvk {

MVK_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MVK_DEVICE Pair<Half> tanh_approx(Pair<Half> x) {
  Pair<Half> y;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(y.bits) : "r"(x.bits));
  return y;
}
MVK_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MVK_DEVICE Pair<Half> exp2_approx(Pair<Half> x) {
  Pair<Half> y;
  asm("ex2.approx.f16x2 %0, %1;" : "=r"(y.bits) : "r"(x.bits));
  return y;
}
MVK_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MVK_DEVICE float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x, in a register of its own. Sums that begin as copies of loaded words are what ptxas leaves in the loaded registers
// all through a loop, and moves to where mma takes them and back in every turn; of a computed value it makes no copy.
MVK_DEVICE float computed(float x) {
  float y;
  asm volatile("add.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
}
// The same of a pair: x·1 − 0.
template <class T>
MVK_DEVICE Pair<T> computed(Pair<T> x) {
  Pair<T> y;
  if constexpr (IsSame<T, Half>::value) {
    asm volatile("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y.bits) : "r"(x.bits), "r"(0x3c003c00u), "r"(0x80008000u));
  } else {
    asm volatile("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y.bits) : "r"(x.bits), "r"(0x3f803f80u), "r"(0x80008000u));
  }
  return y;
}

// The larger one; the other where one is NaN.
MVK_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }

// a·b + c, rounded once. Kernels that have to give the same bits write it out: which products and sums the compiler
// joins differs from one to the next.
MVK_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

}  // namespace mvk

#endif

namespace mvk {

// SiLU from half its argument, u = x / 2: x·sigmoid(x) = u·tanh(u) + u, one MUFU. The half is free: it is folded into
// the weights before.
MVK_DEVICE float silu_of_half(float u) { return multiply_add(u, tanh_approx(u), u); }

// The same on a pair: fp16 in fp16 arithmetic, bf16 in float, as bf16 has too few digits for the sum.
MVK_DEVICE Pair<Half> silu_of_half(Pair<Half> u) { return fma(u, tanh_approx(u), u); }
MVK_DEVICE Pair<BFloat16> silu_of_half(Pair<BFloat16> u) {
  return make_pair<BFloat16>(silu_of_half(low(u)), silu_of_half(high(u)));
}

}  // namespace mvk
