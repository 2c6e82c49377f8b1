// Labels of bilinearly upsampled logits. The upsampled logits are never stored.
#pragma once

#include "cuda/device.cuh"
#include "upsample_bilinear2d/plan.h"

namespace atrousx {

// Who: one thread owns one output pixel, in a grid-stride loop, columns fastest. Reads: the four
// logits around its source coordinate, channel by channel. Writes: its label and, if requested, the
// label's probability. Synchronisation: none. As in torch.argmax, the first of equal values wins,
// and NaN wins over every number.
template <typename T, typename Label>
__global__ void upsample_argmax_kernel(const T* logits,             // [N, C, H, W]
                                       Label* labels,               // [N, OH, OW]
                                       Accumulate<T>* probability,  // [N, OH, OW] or null
                                       int64_t batch, int64_t channels,
                                       BilinearPlan<Accumulate<T>> plan, Strides4 strides) {
  using A = Accumulate<T>;
  const int64_t plane = plan.rows.out * plan.columns.out;
  for (int64_t i = global_thread(); i < batch * plane; i += global_threads()) {
    const int64_t n = i / plane, oh = i % plane / plan.columns.out, ow = i % plan.columns.out;
    const BilinearTap<A> row = plan.rows.tap(oh), column = plan.columns.tap(ow);
    const T* top = logits + strides.offset(n, 0, row.lower, 0);
    const T* bottom = logits + strides.offset(n, 0, row.upper, 0);
    const int64_t left = column.lower * strides.w, right = column.upper * strides.w;
    A best = A(0), sum = A(0);
    int64_t label = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = c * strides.c;
      const A first = (A(1) - row.weight) * static_cast<A>(top[at + left]) +
                      row.weight * static_cast<A>(bottom[at + left]);
      const A second = (A(1) - row.weight) * static_cast<A>(top[at + right]) +
                       row.weight * static_cast<A>(bottom[at + right]);
      const A value = (A(1) - column.weight) * first + column.weight * second;
      if (c == 0 || (!(value <= best) && best == best)) {
        // The sum of exponentials is rescaled to the new maximum.
        if (probability != nullptr && c > 0) sum *= std::exp(best - value);
        best = value;
        label = c;
      }
      if (probability != nullptr) sum += std::exp(value - best);
    }
    labels[i] = static_cast<Label>(label);
    if (probability != nullptr) probability[i] = A(1) / sum;
  }
}

}  // namespace atrousx
