// Finished sums on their way to memory on the CPU, where channels are neighbours there: an
// Epilogue applied to a pixel's channels by vectors.
#pragma once

#include "../cpu_lanes.h"
#include "plan.h"

namespace atrousx {

// What is added to a pixel's channels; the residual's channels lie `residual_step` apart.
template <typename T>
struct PixelTail {
  const T *bias, *residual;  // [channels] or null
  int64_t residual_step;
  bool relu;
};

// to[c] = max(0, sums[c] + bias[c] + residual[c]), as Epilogue::finish has it.
template <int kBytes>
struct FinishPixel {
  template <typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* sums, int64_t channels, PixelTail<T> tail, T* to) {
    constexpr int kLanes = kLanesIn<kBytes, A>;
    int64_t c = 0;
    if (tail.residual == nullptr || tail.residual_step == 1)
      for (; c + kLanes <= channels; c += kLanes) finish<kLanes>(sums, c, c, tail, to);
    for (; c < channels; ++c) finish<1>(sums, c, c * tail.residual_step, tail, to);
  }

 private:
  template <int kLanes, typename T, typename A>
  static ATROUSX_ALWAYS_INLINE void finish(const A* sums, int64_t c, int64_t residual,
                                           const PixelTail<T>& tail, T* to) {
    using Vector = Lanes<A, kLanes>;
    Vector v = load_lanes<kLanes>(sums + c);
    if (tail.bias != nullptr) v += load_lanes<kLanes>(tail.bias + c);
    if (tail.residual != nullptr) v += load_lanes<kLanes>(tail.residual + residual);
    if (tail.relu) v = v < Vector{} ? Vector{} : v;  // NaN stays
    store_lanes<kLanes>(to + c, v);
  }
};

}  // namespace atrousx
