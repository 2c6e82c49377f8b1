// Interleaves the lanes of two vectors, and separates them again. A stride of two needs this.
#pragma once

#include "cpu/lanes.h"

namespace atrousx {

// Lane `lane` of a result is lane of(lane) of two vectors. Lanes of the second one count from
// kLanes.
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

// Returns the first or the second half of a[0] b[0] a[1] b[1] ...
template <int kLanes, bool kSecond, typename Vector>
ATROUSX_ALWAYS_INLINE Vector zip_lanes(Vector a, Vector b) {
  return pick_lanes<ZipLane<kLanes, kSecond>>(a, b, std::make_index_sequence<kLanes>{});
}

// Returns every second lane of a and b, a first. It begins with the first or with the second lane.
template <int kLanes, bool kSecond, typename Vector>
ATROUSX_ALWAYS_INLINE Vector unzip_lanes(Vector a, Vector b) {
  return pick_lanes<UnzipLane<kLanes, kSecond>>(a, b, std::make_index_sequence<kLanes>{});
}

}  // namespace atrousx
