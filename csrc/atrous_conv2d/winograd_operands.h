// What minimal filtering (winograd.h) asks of the numbers it transforms. Its rounding errors are
// relative to the largest source of a tile and the largest tap of a filter; those of a plain sum
// are relative to each product. Where few products make a result, or where numbers are near the
// ends of their range, a pass goes by its live taps.
#pragma once

#include "../tensor.h"

namespace atrousx {

// Whether minimal filtering may be chosen at all: not at precision "highest".
bool winograd_allowed();

// Whether a map may be transformed. terms: the products that make one result.
bool winograd_suits_map(const Tensor& map, int64_t terms);
// Whether 3x3 filters, [K, C, 3, 3], may be.
bool winograd_suits_filters(const Tensor& weight);

}  // namespace atrousx
