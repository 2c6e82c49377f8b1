// Two vectors' lanes taken by turns, and put back: what a stride of two does to neighbours.
#pragma once

#include "cpu/lanes.h"

namespace atrousx {

// Which of the lanes of two vectors, counted through, lane `lane` of a result is.
template <int kLanes, bool kSecond>
struct ZipLane {
  static constexpr int of(int lane) {
    return lane % 2 * kLanes + (kSecond ? kLanes / 2 : 0) + lane / 2;
  }
};
template <int kLanes, bool kSecond>
struct UnzipLane {
  static constexpr int of(int lane) { return 2 * lane + kSecond; }
};

template <typename Lane, typename Vector, size_t... kLane>
ATROUSX_ALWAYS_INLINE Vector pick_lanes(Vector a, Vector b, std::index_sequence<kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lane::of(kLane)...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t>;
  return __builtin_shuffle(a, b,
                           Lanes<Index, sizeof...(kLane)>{static_cast<Index>(Lane::of(kLane))...});
#endif
}

// a[0] b[0] a[1] b[1] ..., the first half of that, or the second.
template <int kLanes, bool kSecond, typename Vector>
ATROUSX_ALWAYS_INLINE Vector zip_lanes(Vector a, Vector b) {
  return pick_lanes<ZipLane<kLanes, kSecond>>(a, b, std::make_index_sequence<kLanes>{});
}

// Of the lanes of a and then b every second one, from the first on or from the second.
template <int kLanes, bool kSecond, typename Vector>
ATROUSX_ALWAYS_INLINE Vector unzip_lanes(Vector a, Vector b) {
  return pick_lanes<UnzipLane<kLanes, kSecond>>(a, b, std::make_index_sequence<kLanes>{});
}

}  // namespace atrousx
