// Depthwise convolution (one group per channel) of dense maps. Memory bandwidth is the limit: a map
// is read from device memory once, and the taps find it in L1 or shared memory. There is one method
// per layout:
//   channels_last  a thread owns a 16-byte vector of channels at a pixel
//   planes (NCHW)  a block stages kPlanes planes in shared memory; a thread owns a pixel of each
// For other layouts see direct/direct_kernels.cuh.
#pragma once

#include "atrous_conv2d/cuda/depthwise/depthwise_plan.h"
#include "cuda/device.cuh"

namespace atrousx {

template <typename T>
struct alignas(16) DepthwiseVector {
  T values[kDepthwiseVector<T>];
};

// The sources that taps read along an axis: [destinations, taps], -1 where a tap is dead, in shared
// memory. The table is computed once per block, so that pixels need no division.
__device__ __forceinline__ void fill_tap_table(const TapAxis& axis, int* table) {
  const int count = static_cast<int>(axis.destinations * axis.taps);
  const int taps = static_cast<int>(axis.taps);
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    table[i] = static_cast<int>(axis.source(i / taps, i % taps));
}

// One vector of channels in the accumulation type, as it lies in shared memory. The order lets
// eight neighbouring threads read all banks: pieces of 16 bytes, those of eight vectors in a row.
template <typename T>
struct ChunkRow {
  using A = Accumulate<T>;
  static constexpr int kWords = kDepthwiseVector<A>;
  static constexpr int kBlocks = kDepthwiseVector<T> / kWords;

  static __device__ __forceinline__ int place(int channel) {
    const int vector = channel / kDepthwiseVector<T>, e = channel % kDepthwiseVector<T>;
    return e / kWords * (kChunkVectors * kWords) + vector * kWords + e % kWords;
  }
  static __device__ __forceinline__ void load(const A* row, int vector,
                                              A (&values)[kDepthwiseVector<T>]) {
    ATROUSX_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const auto block =
          *reinterpret_cast<const DepthwiseVector<A>*>(row + (b * kChunkVectors + vector) * kWords);
      ATROUSX_UNROLL
      for (int e = 0; e < kWords; ++e) values[b * kWords + e] = block.values[e];
    }
  }
};

// Forward and grad-input, channels_last. Who: a block owns a chunk of kChunkVectors vectors of
// channels at one part of an image's pixels, and takes such jobs in turn. A thread owns one vector
// at every kPixelsAtOnce-th pixel. A block's pixels are neighbours, so its taps often hit L1.
// Reads: the vectors of its live taps; the chunk's weights, through shared memory. Writes: its
// vectors, once. Synchronisation: two barriers per job.
template <typename T>
__global__ void __launch_bounds__(kDepthwiseThreads, 2)
    atrous_conv2d_depthwise_kernel(const T* source,  // [N, source rows, columns, C]
                                   const T* weight,  // [C, KH, KW], any strides
                                   Epilogue<T> epilogue,
                                   T* destination,  // [N, rows, columns, C]
                                   int64_t parts, GatherShape shape, Strides4 source_strides,
                                   WeightStrides weight_strides, Strides4 destination_strides) {
  using A = Accumulate<T>;
  constexpr int kValues = kDepthwiseVector<T>;
  constexpr int kChunk = kChunkVectors * kValues;
  constexpr int kTogether = 3;         // loads in flight at once
  ATROUSX_DYNAMIC_SHARED(A, weights);  // [KH, KW, kChunk], then the tables
  const int kernel_h = static_cast<int>(shape.rows.taps);
  const int kernel_w = static_cast<int>(shape.columns.taps);
  int* row_table = reinterpret_cast<int*>(weights + kernel_h * kernel_w * kChunk);
  int* column_table = row_table + shape.rows.destinations * kernel_h;
  fill_tap_table(shape.rows, row_table);
  fill_tap_table(shape.columns, column_table);
  const int width = static_cast<int>(shape.columns.destinations);
  const int pixels = static_cast<int>(shape.rows.destinations) * width;
  const int part = static_cast<int>(ceil_div<int64_t>(pixels, parts));
  const int vector = static_cast<int>(threadIdx.x) % kChunkVectors;
  const int line_step = static_cast<int>(source_strides.h);
  const int pixel_step = static_cast<int>(source_strides.w);
  const int64_t chunks = ceil_div<int64_t>(shape.groups, kChunk);
  for (int64_t job = blockIdx.x; job < shape.batch * chunks * parts; job += gridDim.x) {
    const int64_t first_channel = job % chunks * kChunk, n = job / chunks / parts;
    const int first_pixel = static_cast<int>(job / chunks % parts) * part;
    const int end = min_of(first_pixel + part, pixels);
    for (int i = threadIdx.x; i < kernel_h * kernel_w * kChunk; i += kDepthwiseThreads) {
      const int tap = i / kChunk, c = i % kChunk;
      if (first_channel + c < shape.groups)
        weights[tap * kChunk + ChunkRow<T>::place(c)] = static_cast<A>(
            weight[(first_channel + c) * weight_strides.group + tap / kernel_w * weight_strides.h +
                   tap % kernel_w * weight_strides.w]);
    }
    __syncthreads();  // the chunk's weights and the tables are complete
    const int64_t channel = first_channel + vector * kValues;
    const T* from = source + n * source_strides.n + channel;
    const int start = first_pixel + static_cast<int>(threadIdx.x) / kChunkVectors;
    for (int p = start; p < end && channel < shape.groups; p += kPixelsAtOnce) {
      const int row = p / width, column = p % width;
      A sums[kValues] = {};
      for (int kh = 0; kh < kernel_h; ++kh) {
        const int h = row_table[row * kernel_h + kh];
        if (h < 0) continue;
        const T* line = from + h * line_step;
        for (int kw = 0; kw < kernel_w; kw += kTogether) {
          DepthwiseVector<T> x[kTogether];
          bool live[kTogether];
          ATROUSX_UNROLL
          for (int j = 0; j < kTogether; ++j) {
            const int w = kw + j < kernel_w ? column_table[column * kernel_w + kw + j] : -1;
            live[j] = w >= 0;
            if (live[j]) x[j] = *reinterpret_cast<const DepthwiseVector<T>*>(line + w * pixel_step);
          }
          ATROUSX_UNROLL
          for (int j = 0; j < kTogether; ++j) {
            if (!live[j]) continue;
            A y[kValues];
            ChunkRow<T>::load(weights + (kh * kernel_w + kw + j) * kChunk, vector, y);
            ATROUSX_UNROLL
            for (int e = 0; e < kValues; ++e) sums[e] += static_cast<A>(x[j].values[e]) * y[e];
          }
        }
      }
      DepthwiseVector<T> result;
      ATROUSX_UNROLL
      for (int e = 0; e < kValues; ++e)
        result.values[e] = epilogue.finish(
            sums[e], channel + e, epilogue.residual_strides.offset(n, channel + e, row, column));
      *reinterpret_cast<DepthwiseVector<T>*>(
          destination + destination_strides.offset(n, 0, row, column) + channel) = result;
    }
    __syncthreads();  // all threads have read the weights; the next job overwrites them
  }
}

// Copies `count` contiguous values to shared memory and converts them to the accumulation type. It
// reads whole vectors where possible. Value i is stored at to[i + shift], so that vectors stay
// aligned; the function returns `shift`. `to` must have room for one vector more than `count`.
template <typename T>
__device__ __forceinline__ int stage_values(const T* from, int count, Accumulate<T>* to) {
  using A = Accumulate<T>;
  constexpr int kValues = kDepthwiseVector<T>, kWords = kDepthwiseVector<A>;
  const int shift =
      static_cast<int>(reinterpret_cast<uintptr_t>(from) % sizeof(DepthwiseVector<T>) / sizeof(T));
  const int vectors = ceil_div(count + shift, kValues);
  for (int v = threadIdx.x; v < vectors; v += blockDim.x) {
    const int first = v * kValues - shift;
    DepthwiseVector<T> x{};
    if (first >= 0 && first + kValues <= count) {
      x = *reinterpret_cast<const DepthwiseVector<T>*>(from + first);
    } else {
      ATROUSX_UNROLL
      for (int e = 0; e < kValues; ++e)
        if (first + e >= 0 && first + e < count) x.values[e] = from[first + e];
    }
    ATROUSX_UNROLL
    for (int b = 0; b < kValues; b += kWords) {
      DepthwiseVector<A> wide;
      ATROUSX_UNROLL
      for (int e = 0; e < kWords; ++e) wide.values[e] = static_cast<A>(x.values[b + e]);
      *reinterpret_cast<DepthwiseVector<A>*>(to + v * kValues + b) = wide;
    }
  }
  return shift;
}

template <typename A, int kPlanes>
struct alignas(min_of<size_t>(16, kPlanes * sizeof(A))) PlaneWeights {
  A values[kPlanes];
};

// Forward and grad-input, planes. Who: a block owns kPlanes planes that lie side by side in memory,
// and takes such jobs in turn. A thread owns every kPlaneThreads-th pixel of each. Reads: the
// source planes, once, through shared memory; their weights. Writes: its pixels, once.
// Synchronisation: two barriers per job.
template <typename T, int kPlanes>
__global__ void __launch_bounds__(kPlaneThreads) atrous_conv2d_depthwise_planes_kernel(
    const T* source,  // [N, C, source rows, columns], contiguous
    const T* weight,  // [C, KH, KW], any strides
    Epilogue<T> epilogue,
    T* destination,  // [N, C, rows, columns], contiguous
    GatherShape shape, WeightStrides weight_strides) {
  using A = Accumulate<T>;
  ATROUSX_DYNAMIC_SHARED(A, weights);  // [KH, KW, kPlanes], then the planes, then the tables
  const int kernel_h = static_cast<int>(shape.rows.taps);
  const int kernel_w = static_cast<int>(shape.columns.taps);
  const int taps = kernel_h * kernel_w;
  const int source_width = static_cast<int>(shape.columns.sources);
  const int source_plane = static_cast<int>(shape.rows.sources) * source_width;
  A* planes = weights + staged_weights<T>(taps, kPlanes);
  int* row_table = reinterpret_cast<int*>(planes + staged_planes<T>(source_plane, kPlanes));
  int* column_table = row_table + shape.rows.destinations * kernel_h;
  fill_tap_table(shape.rows, row_table);
  fill_tap_table(shape.columns, column_table);
  const int width = static_cast<int>(shape.columns.destinations);
  const int plane = static_cast<int>(shape.rows.destinations) * width;
  const int64_t total = shape.batch * shape.groups;
  for (int64_t job = blockIdx.x; job < ceil_div<int64_t>(total, kPlanes); job += gridDim.x) {
    const int64_t first = job * kPlanes;
    const int count = static_cast<int>(min_of<int64_t>(kPlanes, total - first));
    for (int i = threadIdx.x; i < taps * count; i += kPlaneThreads) {
      const int tap = i / count, q = i % count;
      weights[tap * kPlanes + q] = static_cast<A>(
          weight[(first + q) % shape.groups * weight_strides.group +
                 tap / kernel_w * weight_strides.h + tap % kernel_w * weight_strides.w]);
    }
    const A* values =
        planes + stage_values(source + first * source_plane, count * source_plane, planes);
    __syncthreads();  // weights, planes and tables are complete
    for (int p = threadIdx.x; p < plane; p += kPlaneThreads) {
      const int row = p / width, column = p % width;
      A sums[kPlanes] = {};
      for (int kh = 0; kh < kernel_h; ++kh) {
        const int h = row_table[row * kernel_h + kh];
        if (h < 0) continue;
        for (int kw = 0; kw < kernel_w; ++kw) {
          const int w = column_table[column * kernel_w + kw];
          if (w < 0) continue;
          const A* x = values + h * source_width + w;
          const auto y = *reinterpret_cast<const PlaneWeights<A, kPlanes>*>(
              weights + (kh * kernel_w + kw) * kPlanes);
          // Planes beyond `count` are summed too, but not stored.
          ATROUSX_UNROLL
          for (int q = 0; q < kPlanes; ++q) sums[q] += x[q * source_plane] * y.values[q];
        }
      }
      ATROUSX_UNROLL
      for (int q = 0; q < kPlanes; ++q) {
        if (q >= count) continue;
        const int64_t c = (first + q) % shape.groups, n = (first + q) / shape.groups;
        destination[(first + q) * plane + p] =
            epilogue.finish(sums[q], c, epilogue.residual_strides.offset(n, c, row, column));
      }
    }
    __syncthreads();  // all threads have read weights and planes; the next job overwrites them
  }
}

}  // namespace atrousx
