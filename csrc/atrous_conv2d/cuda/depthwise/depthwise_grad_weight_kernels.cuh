// Grad-weight of a depthwise convolution of dense maps, in parts. atrous_conv2d_sum_parts_kernel
// sums the parts in order. grad_output is read once for every kTapsAtOnce taps, whose sums stay in
// registers.
#pragma once

#include "atrous_conv2d/cuda/depthwise/depthwise_kernels.cuh"

namespace atrousx {

// Channels_last. Who: a block owns a chunk of kChunkVectors vectors of channels at one part of the
// batch's pixels. A thread owns one vector at every kGradPixels-th pixel. Reads: grad_output at its
// pixels, and the input at its live taps. Writes: its chunk of `parts`. Synchronisation: one
// barrier for the tables, and two per tap for a sum over pixels in shared memory, in a fixed order.
template <typename T>
__global__ void __launch_bounds__(kPlaneThreads, 2)
    atrous_conv2d_depthwise_grad_weight_kernel(const T* grad_output,  // [N, OH, OW, C]
                                               const T* input,        // [N, H, W, C]
                                               Accumulate<T>* parts,  // [splits, KH, KW, C]
                                               int64_t splits, GatherShape shape,
                                               Strides4 grad_output_strides,
                                               Strides4 input_strides) {
  using A = Accumulate<T>;
  constexpr int kValues = kDepthwiseVector<T>;
  constexpr int kChunk = kChunkVectors * kValues;
  constexpr int kGradPixels = kPlaneThreads / kChunkVectors;
  static_assert(kChunk <= kPlaneThreads, "a thread writes one channel");
  ATROUSX_DYNAMIC_SHARED(A, partial);  // [kGradPixels, kChunk], then the tables
  const int kernel_h = static_cast<int>(shape.rows.taps);
  const int kernel_w = static_cast<int>(shape.columns.taps);
  const int taps = kernel_h * kernel_w;
  int* row_table = reinterpret_cast<int*>(partial + kGradPixels * kChunk);
  int* column_table = row_table + shape.rows.destinations * kernel_h;
  fill_tap_table(shape.rows, row_table);
  fill_tap_table(shape.columns, column_table);
  __syncthreads();  // the tables are complete
  const int width = static_cast<int>(shape.columns.destinations);
  const int plane = static_cast<int>(shape.rows.destinations) * width;
  const int pixels = static_cast<int>(shape.batch) * plane;
  const int part = static_cast<int>(ceil_div<int64_t>(pixels, splits));
  const int vector = static_cast<int>(threadIdx.x) % kChunkVectors;
  const int lane = static_cast<int>(threadIdx.x) / kChunkVectors;
  const int64_t chunks = ceil_div<int64_t>(shape.groups, kChunk);
  for (int64_t job = blockIdx.x; job < chunks * splits; job += gridDim.x) {
    const int64_t first_channel = job % chunks * kChunk, split = job / chunks;
    const int64_t channel = first_channel + vector * kValues;
    const int64_t first = min_of<int64_t>(split * part, pixels);
    const int end = static_cast<int>(min_of<int64_t>(first + part, pixels));
    for (int first_tap = 0; first_tap < taps; first_tap += kTapsAtOnce) {
      A sums[kTapsAtOnce][kValues] = {};
      for (int p = static_cast<int>(first) + lane; p < end && channel < shape.groups;
           p += kGradPixels) {
        const int n = p / plane, row = p % plane / width, column = p % width;
        const T* from = input + n * input_strides.n + channel;
        const auto grad = *reinterpret_cast<const DepthwiseVector<T>*>(
            grad_output + grad_output_strides.offset(n, 0, row, column) + channel);
        int kh = first_tap / kernel_w, kw = first_tap % kernel_w;
        ATROUSX_UNROLL
        for (int t = 0; t < kTapsAtOnce; ++t) {
          const bool exists = first_tap + t < taps;
          const int h = exists ? row_table[row * kernel_h + kh] : -1;
          const int w = exists ? column_table[column * kernel_w + kw] : -1;
          if (h >= 0 && w >= 0) {
            const auto x = *reinterpret_cast<const DepthwiseVector<T>*>(from + h * input_strides.h +
                                                                        w * input_strides.w);
            ATROUSX_UNROLL
            for (int e = 0; e < kValues; ++e)
              sums[t][e] += static_cast<A>(grad.values[e]) * static_cast<A>(x.values[e]);
          }
          if (++kw == kernel_w) kw = 0, ++kh;
        }
      }
      ATROUSX_UNROLL
      for (int t = 0; t < kTapsAtOnce; ++t) {
        if (first_tap + t >= taps) break;
        ATROUSX_UNROLL
        for (int e = 0; e < kValues; ++e)
          partial[lane * kChunk + e * kChunkVectors + vector] = sums[t][e];
        __syncthreads();  // the sums of this tap are complete
        const int c = static_cast<int>(threadIdx.x);
        if (c < kChunk && first_channel + c < shape.groups) {
          A sum(0);
          for (int l = 0; l < kGradPixels; ++l)
            sum += partial[l * kChunk + c % kValues * kChunkVectors + c / kValues];
          parts[(split * taps + first_tap + t) * shape.groups + first_channel + c] = sum;
        }
        __syncthreads();  // all threads have read the sums; the next tap overwrites them
      }
    }
  }
}

// Planes. Who: a block owns kPlanes channels at one part of the images. A thread owns every
// kPlaneThreads-th pixel of each. Reads: the planes of the input, through shared memory, and those
// of grad_output. Writes: its channels of `parts`. Synchronisation: two barriers per image and two
// per sum. Sums go over lanes by shuffles, then over warps in order.
template <typename T, int kPlanes>
__global__ void __launch_bounds__(kPlaneThreads, 2)
    atrous_conv2d_depthwise_planes_grad_weight_kernel(
        const T* grad_output,  // [N, C, OH, OW], contiguous
        const T* input,        // [N, C, H, W], contiguous
        Accumulate<T>* parts,  // [splits, KH, KW, C]
        int64_t splits, GatherShape shape) {
  using A = Accumulate<T>;
  constexpr int kSums = kTapsAtOnce * kPlanes, kWarps = kPlaneThreads / 32;
  static_assert(kSums <= kPlaneThreads, "a thread writes one sum");
  ATROUSX_SHARED(A, partial, kWarps * kSums);
  ATROUSX_DYNAMIC_SHARED(A, planes);  // the staged planes, then the tables
  const int kernel_h = static_cast<int>(shape.rows.taps);
  const int kernel_w = static_cast<int>(shape.columns.taps);
  const int taps = kernel_h * kernel_w;
  const int source_width = static_cast<int>(shape.columns.sources);
  const int source_plane = static_cast<int>(shape.rows.sources) * source_width;
  int* row_table = reinterpret_cast<int*>(planes + staged_planes<T>(source_plane, kPlanes));
  int* column_table = row_table + shape.rows.destinations * kernel_h;
  fill_tap_table(shape.rows, row_table);
  fill_tap_table(shape.columns, column_table);
  const int width = static_cast<int>(shape.columns.destinations);
  const int plane = static_cast<int>(shape.rows.destinations) * width;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t blocks = ceil_div<int64_t>(shape.groups, kPlanes);
  const int64_t part = ceil_div(shape.batch, splits);
  for (int64_t job = blockIdx.x; job < blocks * splits; job += gridDim.x) {
    const int64_t first_channel = job % blocks * kPlanes, split = job / blocks;
    const int count = static_cast<int>(min_of<int64_t>(kPlanes, shape.groups - first_channel));
    const int64_t end = min_of((split + 1) * part, shape.batch);
    for (int first_tap = 0; first_tap < taps; first_tap += kTapsAtOnce) {
      A sums[kTapsAtOnce][kPlanes] = {};
      for (int64_t n = split * part; n < end; ++n) {
        const int64_t first = n * shape.groups + first_channel;
        const A* values =
            planes + stage_values(input + first * source_plane, count * source_plane, planes);
        __syncthreads();  // planes and tables are complete
        for (int p = thread; p < plane; p += kPlaneThreads) {
          const int row = p / width, column = p % width;
          A grad[kPlanes];
          ATROUSX_UNROLL
          for (int q = 0; q < kPlanes; ++q)
            grad[q] = q < count ? static_cast<A>(grad_output[(first + q) * plane + p]) : A(0);
          int kh = first_tap / kernel_w, kw = first_tap % kernel_w;
          ATROUSX_UNROLL
          for (int t = 0; t < kTapsAtOnce; ++t) {
            const bool exists = first_tap + t < taps;
            const int h = exists ? row_table[row * kernel_h + kh] : -1;
            const int w = exists ? column_table[column * kernel_w + kw] : -1;
            // Planes beyond `count` are summed too, but not stored.
            if (h >= 0 && w >= 0) {
              ATROUSX_UNROLL
              for (int q = 0; q < kPlanes; ++q)
                sums[t][q] += grad[q] * values[q * source_plane + h * source_width + w];
            }
            if (++kw == kernel_w) kw = 0, ++kh;
          }
        }
        __syncthreads();  // all threads have read the planes; the next image overwrites them
      }
      ATROUSX_UNROLL
      for (int t = 0; t < kTapsAtOnce; ++t) ATROUSX_UNROLL
      for (int q = 0; q < kPlanes; ++q) {
        A sum = sums[t][q];
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (thread % 32 == 0) partial[thread / 32 * kSums + t * kPlanes + q] = sum;
      }
      __syncthreads();  // the warps' sums are complete
      const int tap = first_tap + thread / kPlanes, q = thread % kPlanes;
      if (thread < kSums && tap < taps && q < count) {
        A sum(0);
        for (int warp = 0; warp < kWarps; ++warp) sum += partial[warp * kSums + thread];
        parts[(split * taps + tap) * shape.groups + first_channel + q] = sum;
      }
      __syncthreads();  // all threads have read the sums; the next taps overwrite them
    }
  }
}

}  // namespace atrousx
