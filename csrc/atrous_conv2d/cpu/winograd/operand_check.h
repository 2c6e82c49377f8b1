// The conditions that numbers must meet before minimal filtering (winograd_plan.h) transforms them.
// Its rounding errors are relative to the largest source of a tile and the largest tap of a filter.
// The errors of a plain sum are relative to each product. So a pass computes its live taps without
// transforms if few products make a result, or if numbers are near the ends of their range.
#pragma once

#include <algorithm>
#include <array>

#include "tensor.h"

namespace atrousx {

// Whether minimal filtering may be chosen at all. Precision "highest" forbids it.
bool winograd_allowed();

// Whether a map may be transformed. terms: the number of products in one result.
bool winograd_suits_map(const Tensor& map, int64_t terms);
// Whether 3x3 filters, [K, C, 3, 3], may be transformed.
bool winograd_suits_filters(const Tensor& weight);

// The largest |x|, the sum of |x| and the sum of squares. If a number is NaN or infinite, so is the
// sum.
struct Magnitudes {
  double largest = 0, sum = 0, squares = 0, count = 0;

  void add(const Magnitudes& other) {
    largest = std::max(largest, other.largest);
    sum += other.sum;
    squares += other.squares;
    count += other.count;
  }
  // The share of the numbers that would give the same sums if they were equal and all others zero.
  double share() const { return sum * sum / (count * squares); }
};

// The magnitudes of each tap of 3x3 filters.
using TapMagnitudes = std::array<Magnitudes, 9>;

// Measures packed filters, [9, count] in float32, just before they are transformed.
TapMagnitudes measure_packed_taps(const float* taps, int64_t count);
// Whether filters with these magnitudes may be transformed. The packed taps may include zeros as
// padding, so `filters` says how many filters there are.
bool winograd_suits_taps(const TapMagnitudes& taps, int64_t filters, bool half);

}  // namespace atrousx
