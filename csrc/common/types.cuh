// Storage types of the kernels: 16-bit floats, pairs of them in one register, and the words that vector accesses move.
//
// Kernels never name __half2 or __nv_bfloat162: a Pair<T> is 32 bits, and its arithmetic has one body for the GPU and
// one for the host simulator (csrc/simt/types.h), which needs no CUDA header at all.
#pragma once

#include <cstdint>

#ifdef MVK_SIMT
#define MVK_DEVICE inline
#define MVK_HOST_DEVICE inline
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define MVK_DEVICE __device__ __forceinline__
#define MVK_HOST_DEVICE __host__ __device__ __forceinline__
#endif

namespace mvk {

#ifdef MVK_SIMT
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};
#else
using Half = __half;
using BFloat16 = __nv_bfloat16;
#endif

// Two neighbouring 16-bit floats; the low half is the one at the lower address.
template <class T>
struct Pair {
  std::uint32_t bits;
};

struct alignas(8) Words2 {
  std::uint32_t word[2];
};

struct alignas(16) Words4 {
  std::uint32_t word[4];
};

struct alignas(8) Floats2 {
  float value[2];
};

struct alignas(16) Floats4 {
  float value[4];
};

template <class A, class B>
struct IsSame {
  static constexpr bool value = false;
};
template <class A>
struct IsSame<A, A> {
  static constexpr bool value = true;
};

// A where kFirst, else B.
template <bool kFirst, class A, class B>
struct Select {
  using Type = A;
};
template <class A, class B>
struct Select<false, A, B> {
  using Type = B;
};

// A number as a type, for a lambda that needs it at compile time.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

MVK_HOST_DEVICE constexpr int ceil_div(int dividend, int divisor) { return (dividend + divisor - 1) / divisor; }
MVK_HOST_DEVICE constexpr int round_up(int value, int multiple) { return ceil_div(value, multiple) * multiple; }

}  // namespace mvk

#ifdef MVK_SIMT
#include "../simt/types.h"
#else

namespace mvk {

namespace detail {

MVK_DEVICE __half2 native(Pair<Half> pair) { return *reinterpret_cast<const __half2*>(&pair.bits); }
MVK_DEVICE __nv_bfloat162 native(Pair<BFloat16> pair) { return *reinterpret_cast<const __nv_bfloat162*>(&pair.bits); }
MVK_DEVICE Pair<Half> wrap(__half2 value) { return {*reinterpret_cast<const std::uint32_t*>(&value)}; }
MVK_DEVICE Pair<BFloat16> wrap(__nv_bfloat162 value) { return {*reinterpret_cast<const std::uint32_t*>(&value)}; }

}  // namespace detail

// (low, high) rounded to nearest even.
template <class T>
MVK_DEVICE Pair<T> make_pair(float low, float high) {
  if constexpr (IsSame<T, Half>::value) {
    return detail::wrap(__floats2half2_rn(low, high));
  } else {
    return detail::wrap(__floats2bfloat162_rn(low, high));
  }
}

MVK_DEVICE float low(Pair<Half> pair) { return __low2float(detail::native(pair)); }
MVK_DEVICE float high(Pair<Half> pair) { return __high2float(detail::native(pair)); }
MVK_DEVICE float low(Pair<BFloat16> pair) { return __uint_as_float(pair.bits << 16); }
MVK_DEVICE float high(Pair<BFloat16> pair) { return __uint_as_float(pair.bits & 0xffff0000u); }

// a·b + c on both halves, rounded once.
template <class T>
MVK_DEVICE Pair<T> fma(Pair<T> a, Pair<T> b, Pair<T> c) {
  return detail::wrap(__hfma2(detail::native(a), detail::native(b), detail::native(c)));
}
template <class T>
MVK_DEVICE Pair<T> mul(Pair<T> a, Pair<T> b) {
  return detail::wrap(__hmul2(detail::native(a), detail::native(b)));
}
template <class T>
MVK_DEVICE Pair<T> add(Pair<T> a, Pair<T> b) {
  return detail::wrap(__hadd2(detail::native(a), detail::native(b)));
}

// Makes the compiler forget what it has computed from the pair: unpacking it again is cheaper than two registers.
template <class T>
MVK_DEVICE void forget(Pair<T>& pair) {
  asm volatile("" : "+r"(pair.bits));
}

}  // namespace mvk

#endif
