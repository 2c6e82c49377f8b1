// Bilinear resampling of [N, C, H, W] and its transpose, for any strides on both sides.
#pragma once

#include "../device.cuh"
#include "plan.h"

namespace atrousx {

// Position of a linear index in a 4-D tensor walked in memory order, so that neighbouring threads
// touch neighbouring addresses: W fastest when contiguous, C fastest when channels_last.
struct Position4 {
  int64_t n, c, h, w;
};

template <bool kChannelsLast>
__device__ __forceinline__ Position4 position_of(int64_t index, int64_t channels, int64_t height,
                                                 int64_t width) {
  Position4 p;
  if (kChannelsLast) {
    p.c = index % channels;
    index /= channels;
  }
  p.w = index % width;
  index /= width;
  p.h = index % height;
  index /= height;
  if (!kChannelsLast) {
    p.c = index % channels;
    index /= channels;
  }
  p.n = index;
  return p;
}

// Who: one thread owns one output element, in a grid-stride loop over the output's memory order.
// Reads: the 4 input elements around its source coordinate. Writes: its own element.
// Synchronisation: none.
template <typename T, bool kChannelsLast>
__global__ void upsample_bilinear2d_forward_kernel(const T* input,  // [N, C, H, W]
                                                   T* output,       // [N, C, OH, OW]
                                                   int64_t batch, int64_t channels,
                                                   BilinearPlan<Accumulate<T>> plan,
                                                   Strides4 input_strides,
                                                   Strides4 output_strides) {
  using A = Accumulate<T>;
  const int64_t count = batch * channels * plan.rows.out * plan.columns.out;
  for (int64_t i = global_thread(); i < count; i += global_threads()) {
    const Position4 p = position_of<kChannelsLast>(i, channels, plan.rows.out, plan.columns.out);
    const BilinearTap<A> row = plan.rows.tap(p.h), column = plan.columns.tap(p.w);
    const T* top = input + input_strides.offset(p.n, p.c, row.lower, 0);
    const T* bottom = input + input_strides.offset(p.n, p.c, row.upper, 0);
    const int64_t left = column.lower * input_strides.w, right = column.upper * input_strides.w;
    const A wx = column.weight, wy = row.weight;
    const A upper = (A(1) - wx) * static_cast<A>(top[left]) + wx * static_cast<A>(top[right]);
    const A lower = (A(1) - wx) * static_cast<A>(bottom[left]) + wx * static_cast<A>(bottom[right]);
    output[output_strides.offset(p.n, p.c, p.h, p.w)] =
        static_cast<T>((A(1) - wy) * upper + wy * lower);
  }
}

// Who: one thread owns one element of grad_input, in a grid-stride loop over its memory order.
// Reads: the outputs that read this input, in a fixed order. Writes: its own element.
// Synchronisation: none. Gathering instead of scattering is what makes the result deterministic.
template <typename T, bool kChannelsLast>
__global__ void upsample_bilinear2d_backward_kernel(const T* grad_output,  // [N, C, OH, OW]
                                                    T* grad_input,         // [N, C, H, W]
                                                    int64_t batch, int64_t channels,
                                                    BilinearPlan<Accumulate<T>> plan,
                                                    Strides4 grad_output_strides,
                                                    Strides4 grad_input_strides) {
  using A = Accumulate<T>;
  const int64_t count = batch * channels * plan.rows.in * plan.columns.in;
  for (int64_t i = global_thread(); i < count; i += global_threads()) {
    const Position4 p = position_of<kChannelsLast>(i, channels, plan.rows.in, plan.columns.in);
    const auto rows = plan.rows.readers(p.h), columns = plan.columns.readers(p.w);
    A sum = A(0);
    for (int64_t oh = rows.first; oh < rows.last; ++oh) {
      const A wy = plan.rows.weight_of(oh, p.h);
      if (wy == A(0)) continue;
      const T* line = grad_output + grad_output_strides.offset(p.n, p.c, oh, 0);
      A row_sum = A(0);
      for (int64_t ow = columns.first; ow < columns.last; ++ow) {
        const A wx = plan.columns.weight_of(ow, p.w);
        // A reader of weight 0 must not turn an infinite gradient elsewhere into NaN here.
        if (wx != A(0)) row_sum += wx * static_cast<A>(line[ow * grad_output_strides.w]);
      }
      sum += wy * row_sum;
    }
    grad_input[grad_input_strides.offset(p.n, p.c, p.h, p.w)] = static_cast<T>(sum);
  }
}

}  // namespace atrousx
