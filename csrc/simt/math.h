// The special-function unit of the simulator: the exact value plus an error of the size that the PTX ISA allows.
//
// The error is a function of the argument's bits alone, so that results do not depend on the schedule.
#pragma once

#include <cmath>

#include "../common/math.cuh"
#include "runtime.h"

namespace mvk {

namespace simt {

// Uniform in [-1, 1], from the bits of x.
inline float noise(float x) {
  std::uint32_t h = bits_from_float(x) * 0x9e3779b1u;
  h = (h ^ h >> 15) * 0x85ebca77u;
  h = (h ^ h >> 13) * 0xc2b2ae3du;
  h ^= h >> 16;
  return static_cast<float>(h) * 0x1p-31f - 1.0f;
}

inline float with_relative_error(double exact, float bound, float x) {
  return static_cast<float>(exact * (1.0 + static_cast<double>(bound) * noise(x)));
}

}  // namespace simt

inline float tanh_approx(float x) {
  ++simt::counters().mufu;
  return simt::with_relative_error(std::tanh(static_cast<double>(x)), 0x1p-11f, x);
}
inline Pair<Half> tanh_approx(Pair<Half> x) {
  simt::counters().mufu += 2;
  // 2^-10.987 absolute in all, of which rounding to float16 takes up to 2^-12.
  const auto one = [](float value) { return std::tanh(value) + 2.4e-4f * simt::noise(value); };
  return make_pair<Half>(one(low(x)), one(high(x)));
}
inline float exp2_approx(float x) {
  ++simt::counters().mufu;
  const float y = simt::with_relative_error(std::exp2(static_cast<double>(x)), 0x1p-22f, x);
  return y < 0x1p-126f ? 0.0f : y;
}
inline Pair<Half> exp2_approx(Pair<Half> x) {
  simt::counters().mufu += 2;
  // 2^-9.9 relative in all, of which rounding to float16 takes up to 2^-11.
  const auto one = [](float value) { return simt::with_relative_error(std::exp2(value), 5.6e-4f, value); };
  return make_pair<Half>(one(low(x)), one(high(x)));
}
inline float reciprocal_approx(float x) {
  ++simt::counters().mufu;
  return simt::with_relative_error(1.0 / x, 0x1p-23f, x);
}
inline float rsqrt_approx(float x) {
  ++simt::counters().mufu;
  return simt::with_relative_error(1.0 / std::sqrt(static_cast<double>(x)), 0x1p-23f, x);
}

inline float computed(float x) { return x + 0.0f; }
template <class T>
Pair<T> computed(Pair<T> x) {
  return x;
}
inline float max_of(float a, float b) { return std::fmax(a, b); }

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

}  // namespace mvk
