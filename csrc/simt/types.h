// 16-bit floats on the host: the same values as on the GPU, bit for bit.
#pragma once

#include <array>
#include <cstring>

#include "../common/types.cuh"
#include "runtime.h"

namespace mvk {

namespace simt {

inline float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline std::uint32_t bits_from_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float decode_half(std::uint32_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = bits >> 10 & 31u;
  const std::uint32_t mantissa = bits & 1023u;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

// A table look-up is several times faster than the conversion, and mma's model converts 384 values a call.
inline const std::array<float, 65536>& half_table() {
  static const std::array<float, 65536> table = [] {
    std::array<float, 65536> values;
    for (std::uint32_t bits = 0; bits < 65536; ++bits) values[bits] = decode_half(bits);
    return values;
  }();
  return table;
}
inline const float* const kHalfTable = half_table().data();

inline std::uint16_t encode_half(float value) {
  const std::uint32_t bits = bits_from_float(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7fffu);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded mantissa in the low bits
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_from_float(shifted) - 0x3f000000u));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

inline std::uint16_t encode_bfloat16(float value) {
  const std::uint32_t bits = bits_from_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

template <class T>
float decode(std::uint16_t bits) {
  if constexpr (IsSame<T, Half>::value) return kHalfTable[bits];
  return float_from_bits(static_cast<std::uint32_t>(bits) << 16);
}
template <class T>
std::uint16_t encode(float value) {
  if constexpr (IsSame<T, Half>::value) return encode_half(value);
  return encode_bfloat16(value);
}

}  // namespace simt

template <class T>
Pair<T> make_pair(float low, float high) {
  return {simt::encode<T>(low) | static_cast<std::uint32_t>(simt::encode<T>(high)) << 16};
}
template <class T>
float low(Pair<T> pair) {
  return simt::decode<T>(static_cast<std::uint16_t>(pair.bits));
}
template <class T>
float high(Pair<T> pair) {
  return simt::decode<T>(static_cast<std::uint16_t>(pair.bits >> 16));
}

// The product of two 16-bit floats is exact in double, so that only the sum's rounding remains.
template <class T>
Pair<T> fma(Pair<T> a, Pair<T> b, Pair<T> c) {
  ++simt::counters().pair_arithmetic;
  return make_pair<T>(static_cast<float>(static_cast<double>(low(a)) * low(b) + low(c)),
                      static_cast<float>(static_cast<double>(high(a)) * high(b) + high(c)));
}
template <class T>
Pair<T> mul(Pair<T> a, Pair<T> b) {
  ++simt::counters().pair_arithmetic;
  return make_pair<T>(low(a) * low(b), high(a) * high(b));
}
template <class T>
Pair<T> add(Pair<T> a, Pair<T> b) {
  ++simt::counters().pair_arithmetic;
  return make_pair<T>(low(a) + low(b), high(a) + high(b));
}

template <class T>
void forget(Pair<T>&) {}

}  // namespace mvk
