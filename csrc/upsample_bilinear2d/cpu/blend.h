// Loops over rows of numbers on the CPU, for both memory formats: widening and blending.
#pragma once

#include "cpu/lanes.h"

namespace atrousx {

// Loops over a row by vectors. The last vector ends with the row and may repeat a few elements.
// So a loop must not read what it has written.
template <int kBytes>
struct Rows {
  // to[j] = from[j]
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void convert(const T* from, A* to, int64_t count) {
    constexpr int kLanes = kLanesIn<kBytes, Accumulate<T>>;
    if (count < kLanes) {
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<A>(from[j]);
      return;
    }
    for (int64_t j = 0; j < count; j += kLanes) {
      const int64_t at = min_of(j, count - kLanes);
      store_lanes<kLanes>(to + at, load_lanes<kLanes>(from + at));
    }
  }

  // to[j] = (1 - weight) top[j] + weight bottom[j]
  template <typename T, typename U, typename A>
  static ATROUSX_ALWAYS_INLINE void blend(const T* top, const T* bottom, A weight, U* to,
                                          int64_t count) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    const A rest = A(1) - weight;
    if (count < kLanes) {
      for (int64_t j = 0; j < count; ++j)
        to[j] = static_cast<U>(rest * static_cast<A>(top[j]) + weight * static_cast<A>(bottom[j]));
      return;
    }
    for (int64_t j = 0; j < count; j += kLanes) {
      const int64_t at = min_of(j, count - kLanes);
      store_lanes<kLanes>(
          to + at, rest * load_lanes<kLanes>(top + at) + weight * load_lanes<kLanes>(bottom + at));
    }
  }
};

}  // namespace atrousx
