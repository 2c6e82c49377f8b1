// Elementary functions written so that a loop over them vectorises under any instruction set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "cpu_dispatch.h"

namespace atrousx {

// e^x for x <= 0, to about one unit in the last place; below the smallest normal number it is 0.
// x = n ln 2 + r with |r| <= ln 2 / 2: e^r by its Taylor series, 2^n through the exponent bits.
template <typename A>
ATROUSX_ALWAYS_INLINE A exp_nonpositive(A x);

template <>
ATROUSX_ALWAYS_INLINE float exp_nonpositive(float x) {
  constexpr float kLowest = -87.0f;
  const float n = __builtin_rintf(x * 1.44269504f);
  // ln 2 in two parts: the first has few enough bits that n times it is exact.
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = (static_cast<int32_t>(n < kLowest * 1.45f ? 0.0f : n) + 127) << 23;
  const float power = p * std::bit_cast<float>(exponent);
  // NaN compares false and passes through.
  return x < kLowest ? 0.0f : power;
}

template <>
ATROUSX_ALWAYS_INLINE double exp_nonpositive(double x) {
  constexpr double kLowest = -708.0;
  const double n = __builtin_rint(x * 1.4426950408889634);
  const double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const int64_t exponent = (static_cast<int64_t>(n < kLowest * 1.45 ? 0.0 : n) + 1023) << 52;
  const double power = p * std::bit_cast<double>(exponent);
  return x < kLowest ? 0.0 : power;
}

}  // namespace atrousx
