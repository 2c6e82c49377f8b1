// Rows of sums turned into columns of a result, on the CPU.
#pragma once

#include "cpu/lanes.h"

namespace atrousx {

// to[k * stride + i] = sums[from[i] + k] for a square of i and k, a vector wide.
template <int kBytes>
struct TurnSquare {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* sums, const int64_t* from, T* to, int64_t stride) {
    constexpr int kSide = kLanesIn<kBytes, A>;
    atrousx::Lanes<A, kSide> rows[kSide];
    for (int i = 0; i < kSide; ++i) rows[i] = load_lanes<kSide>(sums + from[i]);
    transpose_lanes(rows);
    for (int k = 0; k < kSide; ++k) store_lanes<kSide>(to + k * stride, rows[k]);
  }
};

// to[k * stride + i] = sums[from[i] + k]: by squares, the last of which overlap the ones before.
template <typename T, typename A>
void turn(const A* sums, const int64_t* from, int64_t run, int64_t outputs, T* to, int64_t stride) {
  const int64_t side = vector_bytes() / static_cast<int64_t>(sizeof(A));
  if (run < side || outputs < side) {
    for (int64_t k = 0; k < outputs; ++k)
      for (int64_t i = 0; i < run; ++i) to[k * stride + i] = static_cast<T>(sums[from[i] + k]);
    return;
  }
  for (int64_t k = 0; k < outputs; k += side) {
    const int64_t row = std::min(k, outputs - side);
    for (int64_t i = 0; i < run; i += side) {
      const int64_t column = std::min(i, run - side);
      run_with_lanes<TurnSquare>(sums + row, from + column, to + row * stride + column, stride);
    }
  }
}

}  // namespace atrousx
