// 16-bit floats, and roundings that the host does not have.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace ptx {

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// x with `digits` significant bits, to nearest even; below 2^minimum_exponent the spacing stays (subnormal numbers).
inline double rounded(double x, int digits, int minimum_exponent) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int spacing = std::max(std::ilogb(x), minimum_exponent) - digits + 1;
  return std::ldexp(std::nearbyint(std::ldexp(x, -spacing)), spacing);
}

// a·b + c for 16-bit floats such that rounding it once more gives what rounding the exact value would: where the sum is
// not exact, its last bit is set ("round to odd"). a·b is exact.
inline double fma_for_rounding(double a, double b, double c) {
  const double product = a * b;
  const double sum = product + c;
  if (!std::isfinite(sum)) return sum;
  const double from_c = sum - product;
  const double error = (product - (sum - from_c)) + (c - from_c);
  if (error == 0 || (bits_as<std::uint64_t>(sum) & 1u) != 0) return sum;
  return std::nextafter(sum,
                        error > 0 ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity());
}

// IEEE binary16: 5 bits of exponent, 10 of fraction.
struct Half {
  static double decode(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31;
    const int fraction = bits & 1023;
    double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) {
      magnitude = fraction != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
    }
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
  }
  static std::uint16_t encode(double x) {
    if (std::isnan(x)) return 0x7fff;
    const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const double magnitude = std::fabs(rounded(x, 11, -14));
    if (magnitude > 65504) return sign | 0x7c00;
    if (magnitude < std::ldexp(1, -14)) return sign | static_cast<std::uint16_t>(std::ldexp(magnitude, 24));
    const int exponent = std::ilogb(magnitude);
    const int fraction = static_cast<int>(std::ldexp(magnitude, 10 - exponent)) - 1024;
    return static_cast<std::uint16_t>(sign | (exponent + 15) << 10 | fraction);
  }
};

// The upper half of a float.
struct BFloat16 {
  static double decode(std::uint16_t bits) { return bits_as<float>(static_cast<std::uint32_t>(bits) << 16); }
  static std::uint16_t encode(double x) {
    if (std::isnan(x)) return 0x7fff;
    const float nearest = static_cast<float>(rounded(x, 8, -126));  // exact, or infinite
    return static_cast<std::uint16_t>(bits_as<std::uint32_t>(nearest) >> 16);
  }
};

template <class T>
std::uint32_t pack(double low, double high) {
  return static_cast<std::uint32_t>(T::encode(high)) << 16 | T::encode(low);
}
template <class T>
double low(std::uint32_t pair) {
  return T::decode(static_cast<std::uint16_t>(pair));
}
template <class T>
double high(std::uint32_t pair) {
  return T::decode(static_cast<std::uint16_t>(pair >> 16));
}

// Zero for subnormal numbers, with their sign (.ftz).
inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

}  // namespace ptx
