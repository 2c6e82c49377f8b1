// Adds the softmax of bilinearly upsampled logits to a sum.
#pragma once

#include "upsample_bilinear2d/cuda/upsampled_pixel.cuh"

namespace atrousx {

// Who: one thread owns one pixel of the sum, in a grid-stride loop, columns fastest. Reads: the
// four logits around its source coordinate, mirrored if `flip`, channel by channel: once for the
// maximum, once for the sum of exponentials, once for the probabilities. Writes: every channel of
// its pixel. Synchronisation: none.
template <typename T>
__global__ void upsample_softmax_add_kernel(const T* logits,     // [N, C, H, W]
                                            Accumulate<T>* sum,  // [N, C, OH, OW]
                                            int64_t batch, int64_t channels,
                                            BilinearPlan<Accumulate<T>> plan, Accumulate<T> alpha,
                                            bool flip, Strides4 strides, Strides4 sum_strides) {
  using A = Accumulate<T>;
  const int64_t plane = plan.rows.out * plan.columns.out;
  for (int64_t i = global_thread(); i < batch * plane; i += global_threads()) {
    const int64_t n = i / plane, oh = i % plane / plan.columns.out, ow = i % plan.columns.out;
    BilinearTap<A> column = plan.columns.tap(ow);
    if (flip) {
      column.lower = plan.columns.in - 1 - column.lower;
      column.upper = plan.columns.in - 1 - column.upper;
    }
    const UpsampledPixel<T> pixel(logits, strides, n, plan.rows.tap(oh), column);
    A best = pixel.value(0), total = A(0);
    for (int64_t c = 1; c < channels; ++c) best = max_of(best, pixel.value(c));
    for (int64_t c = 0; c < channels; ++c) total += std::exp(pixel.value(c) - best);
    const A scale = alpha / total;
    A* to = sum + sum_strides.offset(n, 0, oh, ow);
    for (int64_t c = 0; c < channels; ++c)
      to[c * sum_strides.c] += scale * std::exp(pixel.value(c) - best);
  }
}

}  // namespace atrousx
