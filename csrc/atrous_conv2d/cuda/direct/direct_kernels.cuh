// Kernels of atrous convolution for groups that are too narrow to fill the tile of a matrix
// product.
#pragma once

#include "atrous_conv2d/plan.h"
#include "cuda/device.cuh"

namespace atrousx {

constexpr int kDirectThreads = 256;

// The sum of x[c] * y[c] over `count` channels that are a stride apart. It keeps four partial sums:
// their additions are independent, and round less than one long sum.
template <typename T>
__device__ __forceinline__ Accumulate<T> dot(const T* x, int64_t x_stride, const T* y,
                                             int64_t y_stride, int64_t count) {
  using A = Accumulate<T>;
  A sums[4] = {A(0), A(0), A(0), A(0)};
  for (int64_t first = 0; first < count; first += 4) {
    ATROUSX_UNROLL
    for (int i = 0; i < 4; ++i)
      if (first + i < count)
        sums[i] +=
            static_cast<A>(x[(first + i) * x_stride]) * static_cast<A>(y[(first + i) * y_stride]);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Forward and grad-input of narrow groups. Who: one thread owns one destination, in a grid-stride
// loop in memory order. Reads: its live taps in every source channel of its group. Writes: its own
// element. Synchronisation: none.
template <typename T>
__global__ void atrous_conv2d_gather_direct_kernel(
    const T* source,  // [N, groups * inner, source rows, source columns]
    const T* weight,  // any strides, see WeightStrides
    Epilogue<T> epilogue,
    T* destination,  // [N, groups * outer, rows, columns]
    GatherShape shape, Strides4 source_strides, WeightStrides weight_strides,
    Strides4 destination_strides) {
  using A = Accumulate<T>;
  const int64_t channels = shape.groups * shape.outer, width = shape.columns.destinations;
  const int64_t plane = shape.rows.destinations * width;
  const bool channels_first = destination_strides.c != 1;  // neighbouring threads own pixels
  for (int64_t i = global_thread(); i < shape.batch * channels * plane; i += global_threads()) {
    const int64_t channel = channels_first ? i / plane % channels : i % channels;
    const int64_t pixel = channels_first ? i % plane : i / channels % plane;
    const int64_t n = i / plane / channels, row = pixel / width, column = pixel % width;
    const int64_t group = channel / shape.outer;
    const T* from = source + source_strides.offset(n, group * shape.inner, 0, 0);
    const T* by =
        weight + group * weight_strides.group + channel % shape.outer * weight_strides.outer;
    A sum(0);
    for (int64_t kh = 0; kh < shape.rows.taps; ++kh) {
      const int64_t h = shape.rows.source(row, kh);
      if (h < 0) continue;
      for (int64_t kw = 0; kw < shape.columns.taps; ++kw) {
        const int64_t w = shape.columns.source(column, kw);
        if (w < 0) continue;
        const T* x = from + source_strides.offset(0, 0, h, w);
        const T* y = by + kh * weight_strides.h + kw * weight_strides.w;
        sum += dot(x, source_strides.c, y, weight_strides.inner, shape.inner);
      }
    }
    destination[destination_strides.offset(n, channel, row, column)] =
        epilogue.finish(sum, channel, epilogue.residual_strides.offset(n, channel, row, column));
  }
}

// Grad-weight of narrow groups. Who: a block owns one weight; blocks take weights in turn. Reads:
// the live pixels of its tap, shared among the threads. Writes: its element. Synchronisation: a
// tree of sums in shared memory, always in the same order. blockDim.x is a power of two, at most
// kDirectThreads.
template <typename T>
__global__ void __launch_bounds__(kDirectThreads)
    atrous_conv2d_grad_weight_direct_kernel(const T* grad_output,  // [N, K, OH, OW]
                                            const T* input,        // [N, C, H, W]
                                            T* grad_weight,        // [K, C / groups, KH, KW]
                                            GatherShape shape, Strides4 grad_output_strides,
                                            Strides4 input_strides, Strides4 grad_weight_strides) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(A, sums, kDirectThreads);
  const int64_t taps = shape.rows.taps * shape.columns.taps;
  const int64_t weights = shape.groups * shape.outer * shape.inner * taps;
  for (int64_t job = blockIdx.x; job < weights; job += gridDim.x) {
    const int64_t kh = job % taps / shape.columns.taps, kw = job % shape.columns.taps;
    const int64_t c = job / taps % shape.inner, k = job / taps / shape.inner;
    const TapSpan rows = shape.rows.span(kh), columns = shape.columns.span(kw);
    const int64_t pixels = shape.batch * rows.destinations.count * columns.destinations.count;
    const T* from = input + input_strides.offset(0, k / shape.outer * shape.inner + c, 0, 0);
    const T* by = grad_output + grad_output_strides.offset(0, k, 0, 0);
    A sum = A(0);
    for (int64_t p = threadIdx.x; p < pixels; p += blockDim.x) {
      const int64_t column = p % columns.destinations.count, line = p / columns.destinations.count;
      const int64_t row = line % rows.destinations.count, n = line / rows.destinations.count;
      sum += static_cast<A>(
                 from[input_strides.offset(n, 0, rows.source_first + row * rows.source_step,
                                           columns.source_first + column * columns.source_step)]) *
             static_cast<A>(by[grad_output_strides.offset(n, 0, rows.destinations.at(row),
                                                          columns.destinations.at(column))]);
    }
    sums[threadIdx.x] = sum;
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
      __syncthreads();  // the sums of the previous level are complete
      if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    // No barrier is needed: only thread 0 reads sums[0], and it wrote sums[0] itself.
    if (threadIdx.x == 0)
      grad_weight[grad_weight_strides.offset(k, c, kh, kw)] = static_cast<T>(sums[0]);
    __syncthreads();  // the last level has been read; the next job overwrites it
  }
}

}  // namespace atrousx
