// The value of a bilinearly upsampled pixel, for kernels that use it without storing it.
#pragma once

#include "cuda/device.cuh"
#include "upsample_bilinear2d/plan.h"

namespace atrousx {

// One upsampled pixel. It computes any channel's value from the four logits around it.
template <typename T>
struct UpsampledPixel {
  using A = Accumulate<T>;
  const T *top, *bottom;
  int64_t left, right, channel_stride;
  A wx, wy;

  __device__ __forceinline__ UpsampledPixel(const T* logits, const Strides4& strides, int64_t n,
                                            const BilinearTap<A>& row, const BilinearTap<A>& column)
      : top(logits + strides.offset(n, 0, row.lower, 0)),
        bottom(logits + strides.offset(n, 0, row.upper, 0)),
        left(column.lower * strides.w),
        right(column.upper * strides.w),
        channel_stride(strides.c),
        wx(column.weight),
        wy(row.weight) {}

  __device__ __forceinline__ A value(int64_t c) const {
    const int64_t at = c * channel_stride;
    const A first =
        (A(1) - wy) * static_cast<A>(top[at + left]) + wy * static_cast<A>(bottom[at + left]);
    const A second =
        (A(1) - wy) * static_cast<A>(top[at + right]) + wy * static_cast<A>(bottom[at + right]);
    return (A(1) - wx) * first + wx * second;
  }
};

}  // namespace atrousx
