// Elementary functions of vectors and of plain numbers. One source works for float and double.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "cpu/lanes.h"

namespace atrousx {

// The constants of exp and log for a type. The degrees of the polynomials make the error of the
// series less than one rounding.
template <typename A>
struct MathConstants;

template <>
struct MathConstants<float> {
  using Bits = uint32_t;
  static constexpr int kFraction = 23, kBias = 127, kExpDegree = 7, kLogTerms = 4;
  static constexpr float kLowest = -87.0f;      // e^kLowest is above the smallest normal number
  static constexpr float kRounder = 0x1.8p23f;  // x + kRounder has x as an integer in its low bits
  // ln 2 in two parts. The first part has so few bits that n times this part is exact.
  static constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct MathConstants<double> {
  using Bits = uint64_t;
  static constexpr int kFraction = 52, kBias = 1023, kExpDegree = 13, kLogTerms = 10;
  static constexpr double kLowest = -708.0;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
};

template <typename A, int kLanes>
struct LaneMath {
  using Constants = MathConstants<A>;
  using V = Lanes<A, kLanes>;
  using Element = typename Constants::Bits;
  using Bits = Lanes<Element, kLanes>;

  static ATROUSX_ALWAYS_INLINE Bits bits(V v) {
    if constexpr (kLanes == 1)
      return std::bit_cast<Bits>(v);
    else
      return (Bits)v;
  }
  static ATROUSX_ALWAYS_INLINE V from_bits(Bits b) {
    if constexpr (kLanes == 1)
      return std::bit_cast<V>(b);
    else
      return (V)b;
  }

  static constexpr auto kInverseFactorials = [] {
    std::array<A, Constants::kExpDegree + 1> values{};
    double factorial = 1;
    for (int k = 0; k <= Constants::kExpDegree; factorial *= ++k)
      values[k] = static_cast<A>(1 / factorial);
    return values;
  }();

  // x = n ln 2 + r with |r| <= ln 2 / 2. e^r is computed by its Taylor series. 2^n is made of its
  // exponent bits, n + kBias. The bias is added together with kRounder.
  static ATROUSX_ALWAYS_INLINE V exp_nonpositive(V x) {
    constexpr A kBiasedRounder = Constants::kRounder + Constants::kBias;  // this sum is exact
    const V shifted = x * Constants::kLog2e + kBiasedRounder;
    const V n = shifted - kBiasedRounder;
    const V r = (x - n * Constants::kLn2High) - n * Constants::kLn2Low;
    V p = V{} + kInverseFactorials[Constants::kExpDegree];
    for (int k = Constants::kExpDegree - 1; k >= 0; --k) p = p * r + kInverseFactorials[k];
    const V power = p * from_bits(bits(shifted) << Constants::kFraction);
    // The comparison is false for NaN, so NaN stays NaN.
    return x < Constants::kLowest ? V{} : power;
  }

  // log x for x >= sqrt(1/2). x = 2^e m with m near 1, and log m = 2 artanh(s), s = (m - 1) /
  // (m + 1), is computed by its series.
  static ATROUSX_ALWAYS_INLINE V log_normal(V x) {
    constexpr Element kSqrtHalf = std::bit_cast<Element>(static_cast<A>(0.70710678118654752));
    const Bits above = bits(x) - kSqrtHalf;
    const Bits exponent = above >> Constants::kFraction;
    const V m = from_bits(bits(x) - (exponent << Constants::kFraction));
    // The exponent is small and not negative, so the low bits of kRounder hold it exactly.
    const V e =
        from_bits(exponent | std::bit_cast<Element>(Constants::kRounder)) - Constants::kRounder;
    const V s = (m - A(1)) / (m + A(1)), z = s * s;
    V p = V{};
    for (int k = Constants::kLogTerms; k >= 1; --k) p = p * z + A(1) / static_cast<A>(2 * k + 1);
    const V fraction = A(2) * s + A(2) * s * (p * z);
    const V result = e * Constants::kLn2High + (fraction + e * Constants::kLn2Low);
    return x == x ? result : x;
  }
};

// Returns e^x for x <= 0, to about one unit in the last place. Returns 0 for x < kLowest.
template <typename A>
ATROUSX_ALWAYS_INLINE A exp_nonpositive(A x) {
  return LaneMath<A, 1>::exp_nonpositive(x);
}

}  // namespace atrousx
