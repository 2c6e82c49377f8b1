// The last step of every grad-weight that is split over pixels.
#pragma once

#include "atrous_conv2d/plan.h"
#include "cuda/device.cuh"

namespace atrousx {

// Who: one thread owns the weights of an output channel and an input channel at `taps_at_once`
// taps, in a grid-stride loop. Reads: their parts, in order. Writes: its elements of grad_weight.
// In a contiguous weight these lie side by side; in a channels_last weight the elements of
// neighbouring threads do. Synchronisation: none.
template <typename T>
__global__ void atrous_conv2d_sum_parts_kernel(
    const Accumulate<T>* parts,  // [splits, taps, K, C / groups]
    T* grad_weight,              // [K, C / groups, KH, KW]
    int64_t splits, GatherShape shape, Strides4 strides, int64_t taps_at_once) {
  const int64_t pairs = shape.groups * shape.outer * shape.inner;
  const int64_t taps = shape.rows.taps * shape.columns.taps;
  const int64_t items = pairs * ceil_div(taps, taps_at_once);
  for (int64_t item = global_thread(); item < items; item += global_threads()) {
    const int64_t pair = item % pairs, first = item / pairs * taps_at_once;
    T* to = grad_weight + strides.offset(pair / shape.inner, pair % shape.inner, 0, 0);
    for (int64_t tap = first; tap < min_of(first + taps_at_once, taps); ++tap) {
      const Accumulate<T>* from = parts + tap * pairs + pair;
      Accumulate<T> sum(0);
      for (int64_t s = 0; s < splits; ++s) sum += from[s * taps * pairs];
      to[tap / shape.columns.taps * strides.h + tap % shape.columns.taps * strides.w] =
          static_cast<T>(sum);
    }
  }
}

}  // namespace atrousx
