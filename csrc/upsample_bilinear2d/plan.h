// Geometry of bilinear resampling along one axis, shared by host and device: which input samples an
// output sample reads, and which output samples read an input sample. The backward gathers by the
// latter.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#include "portable.h"

namespace atrousx {

// out = (1 - weight) * in[lower] + weight * in[upper]
template <typename A>
struct BilinearTap {
  int64_t lower, upper;
  A weight;
};

// One axis of the resampling, in PyTorch's conventions (F.interpolate, mode="bilinear"):
//   align_corners: x = o * (in - 1) / (out - 1)
//   otherwise:     x = max(0, (o + 0.5) * scale - 0.5),  scale = in / out, or 1 / scale_factor
// A is the accumulation type. PyTorch also computes coordinates in it, so the numbers are the same.
template <typename A>
struct BilinearAxis {
  int64_t in, out;
  A scale;
  bool align_corners;

  static BilinearAxis make(int64_t in, int64_t out, bool align_corners,
                           std::optional<double> scale_factor) {
    A scale;
    // Equal sizes mean a copy, whatever the scale factor (1.2 of 3 pixels is 3), as in PyTorch.
    if (in == out)
      scale = A(1);
    else if (align_corners)
      scale = out > 1 ? static_cast<A>(in - 1) / static_cast<A>(out - 1) : A(0);
    else if (scale_factor.has_value() && *scale_factor > 0)
      scale = static_cast<A>(1.0 / *scale_factor);
    else
      scale = static_cast<A>(in) / static_cast<A>(out);
    return {in, out, scale, align_corners};
  }

  ATROUSX_HOST_DEVICE A coordinate(int64_t o) const {
    if (align_corners) return scale * static_cast<A>(o);
    return max_of(scale * (static_cast<A>(o) + A(0.5)) - A(0.5), A(0));
  }

  ATROUSX_HOST_DEVICE BilinearTap<A> tap(int64_t o) const {
    // A tiny scale factor takes x far past the map, even to infinity. So x is limited before it
    // becomes an integer. `in` may have been rounded up when converted to A, so the integer is
    // limited, too.
    const A x = min_of(coordinate(o), static_cast<A>(in));
    const int64_t lower = min_of(static_cast<int64_t>(x), in - 1);
    const int64_t upper = min_of(lower + 1, in - 1);
    const A weight = min_of(max_of(x - static_cast<A>(lower), A(0)), A(1));
    return {lower, upper, weight};
  }

  // The weight with which output o reads input i.
  ATROUSX_HOST_DEVICE A weight_of(int64_t o, int64_t i) const {
    const BilinearTap<A> t = tap(o);
    return (t.lower == i ? A(1) - t.weight : A(0)) + (t.upper == i ? t.weight : A(0));
  }

  // Every output that reads input i lies in [first, last). The ends may include a few that do not,
  // so that rounding in this inverse never drops one. Outputs past a border read the pixel at the
  // border.
  struct Range {
    int64_t first, last;
  };
  ATROUSX_HOST_DEVICE Range readers(int64_t i) const {
    if (!(scale > A(0))) return {0, out};
    const A shift = align_corners ? A(0) : A(0.5);
    // A huge scale factor takes these far past the outputs. So they are limited before they become
    // integers.
    const A end = static_cast<A>(out);
    const A low = min_of((static_cast<A>(i) - A(1) + shift) / scale - shift, end);
    const A high = (static_cast<A>(i) + A(1) + shift) / scale - shift;
    const int64_t slack = 2;
    int64_t first = i == 0 || !(low > A(0)) ? 0 : static_cast<int64_t>(low) - slack;
    int64_t last =
        i == in - 1 || !(high < end) ? out : static_cast<int64_t>(max_of(high, A(0))) + 1 + slack;
    first = min_of(max_of(first, int64_t{0}), out);
    last = min_of(max_of(last, first), out);
    return {first, last};
  }
};

template <typename A>
struct BilinearPlan {
  using HoldsNoAddress = void;
  BilinearAxis<A> rows, columns;
};

}  // namespace atrousx
