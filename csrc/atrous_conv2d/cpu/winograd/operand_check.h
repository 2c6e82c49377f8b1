// What minimal filtering (winograd_plan.h) asks of the numbers it transforms. Its rounding errors
// are relative to the largest source of a tile and the largest tap of a filter; those of a plain
// sum are relative to each product. Where few products make a result, or where numbers are near the
// ends of their range, a pass goes by its live taps.
#pragma once

#include <algorithm>
#include <array>

#include "tensor.h"

namespace atrousx {

// Whether minimal filtering may be chosen at all: not at precision "highest".
bool winograd_allowed();

// Whether a map may be transformed. terms: the products that make one result.
bool winograd_suits_map(const Tensor& map, int64_t terms);
// Whether 3x3 filters, [K, C, 3, 3], may be.
bool winograd_suits_filters(const Tensor& weight);

// Of |x|: the largest, the sum, and the sum of squares. A NaN or infinity makes the sum one, too.
struct Magnitudes {
  double largest = 0, sum = 0, squares = 0, count = 0;

  void add(const Magnitudes& other) {
    largest = std::max(largest, other.largest);
    sum += other.sum;
    squares += other.squares;
    count += other.count;
  }
  // Which share of the numbers would make the same sums if they were equal and all others zero.
  double share() const { return sum * sum / (count * squares); }
};

// The same of each tap of 3x3 filters.
using TapMagnitudes = std::array<Magnitudes, 9>;

// Of packed filters, [9, count] in float32: what their transform is about to read.
TapMagnitudes measure_packed_taps(const float* taps, int64_t count);
// Whether filters that measure so, of which zeros may be padding, may be transformed.
bool winograd_suits_taps(const TapMagnitudes& taps, int64_t filters, bool half);

}  // namespace atrousx
