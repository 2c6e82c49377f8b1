// Bilinear resampling of dense maps, in both memory formats.
//
// A map is rows of numbers, `pixel` of which lie side by side and are resampled alike: 1 where maps
// are contiguous, then each channel is a map, or C where they are channels_last. Kernels move 16
// bytes at a time (kVector numbers) where rows are a multiple of that, else single numbers.
#pragma once

#include "../device.cuh"
#include "plan.h"

namespace atrousx {

template <typename T>
constexpr int kFullVector = 16 / static_cast<int>(sizeof(T));

template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Pack {
  T values[kVector];
};

// Two neighbours of an axis and the second one's weight: 0, also where there is no second.
template <typename A>
struct NeighbourTap {
  int64_t lower;
  A weight;

  static __device__ __forceinline__ NeighbourTap of(const BilinearAxis<A>& axis, int64_t o) {
    const BilinearTap<A> tap = axis.tap(o);
    return {tap.lower, tap.upper > tap.lower ? tap.weight : A(0)};
  }
  // The weight with which this output reads input i.
  __device__ __forceinline__ A weight_at(int64_t i) const {
    return lower == i ? A(1) - weight : lower + 1 == i ? weight : A(0);
  }
};

constexpr int kForwardThreads = 128, kForwardRows = 32;

// How a forward is cut up: a block takes kForwardRows rows of kForwardThreads vectors.
struct ForwardJobs {
  int64_t maps, chunks, tiles;

  static ForwardJobs make(int64_t maps, int64_t rows, int64_t row_numbers, int vector) {
    return {maps, ceil_div<int64_t>(rows, kForwardRows),
            ceil_div<int64_t>(row_numbers, int64_t{kForwardThreads} * vector)};
  }
  ATROUSX_HOST_DEVICE int64_t count() const { return maps * chunks * tiles; }
};

// A few neighbouring numbers of a row: where each finds its two inputs in a row of the input.
template <typename T, int kVector>
struct ColumnVector {
  using A = Accumulate<T>;
  int32_t left[kVector], step[kVector];
  A weight[kVector];

  __device__ __forceinline__ ColumnVector(const BilinearAxis<A>& axis, uint32_t number,
                                          uint32_t pixel) {
    ATROUSX_UNROLL
    for (int v = 0; v < kVector; ++v) {
      const uint32_t column = (number + v) / pixel;
      const auto tap = NeighbourTap<A>::of(axis, column);
      left[v] = static_cast<int32_t>(tap.lower * pixel + (number + v - column * pixel));
      step[v] = tap.weight != A(0) ? static_cast<int32_t>(pixel) : 0;
      weight[v] = tap.weight;
    }
  }

  __device__ __forceinline__ void resample(const T* row, A (&values)[kVector]) const {
    A first[kVector], second[kVector];
    ATROUSX_UNROLL
    for (int v = 0; v < kVector; ++v) {
      first[v] = static_cast<A>(row[left[v]]);
      second[v] = static_cast<A>(row[left[v] + step[v]]);
    }
    ATROUSX_UNROLL
    for (int v = 0; v < kVector; ++v)
      values[v] = (A(1) - weight[v]) * first[v] + weight[v] * second[v];
  }
};

// Who: a thread owns kVector neighbouring numbers of up to kForwardRows output rows; blocks take
// jobs in turn. Reads: each input row that these blend, resampled along itself as it is read: once
// for all rows between it and the next, twice at a chunk's border. Writes: its numbers.
// Synchronisation: the rows' taps are computed once a block, in shared memory.
template <typename T, int kVector>
__global__ void __launch_bounds__(kForwardThreads)
    upsample_bilinear2d_forward_kernel(const T* input,  // [maps, H, W, pixel]
                                       T* output,       // [maps, OH, OW, pixel]
                                       ForwardJobs jobs, int64_t pixel,
                                       BilinearPlan<Accumulate<T>> plan) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(NeighbourTap<A>, taps, kForwardRows);
  const int64_t in_row = plan.columns.in * pixel, out_row = plan.columns.out * pixel;
  for (int64_t job = blockIdx.x; job < jobs.count(); job += gridDim.x) {
    const int64_t first = job / jobs.tiles % jobs.chunks * kForwardRows;
    const int64_t map = job / jobs.tiles / jobs.chunks;
    const int rows = static_cast<int>(min_of<int64_t>(kForwardRows, plan.rows.out - first));
    __syncthreads();  // the taps of the job before have been read
    if (static_cast<int>(threadIdx.x) < rows)
      taps[threadIdx.x] = NeighbourTap<A>::of(plan.rows, first + threadIdx.x);
    __syncthreads();  // the taps are there
    const int64_t number = (job % jobs.tiles * kForwardThreads + threadIdx.x) * kVector;
    if (number >= out_row) continue;
    const ColumnVector<T, kVector> columns(plan.columns, static_cast<uint32_t>(number),
                                           static_cast<uint32_t>(pixel));
    const T* from = input + map * plan.rows.in * in_row;
    T* to = output + (map * plan.rows.out + first) * out_row + number;
    A upper[kVector], lower[kVector];
    int64_t held_upper = -1, held_lower = -1;
    for (int k = 0; k < rows; ++k, to += out_row) {
      const NeighbourTap<A> tap = taps[k];
      if (held_upper != tap.lower) {
        if (held_lower == tap.lower) {
          ATROUSX_UNROLL
          for (int v = 0; v < kVector; ++v) upper[v] = lower[v];
        } else {
          columns.resample(from + tap.lower * in_row, upper);
        }
        held_upper = tap.lower;
      }
      const bool mixed = tap.weight != A(0);
      if (mixed && held_lower != tap.lower + 1) {
        held_lower = tap.lower + 1;
        columns.resample(from + held_lower * in_row, lower);
      }
      Pack<T, kVector> pack;
      ATROUSX_UNROLL
      for (int v = 0; v < kVector; ++v)
        pack.values[v] = static_cast<T>(
            mixed ? (A(1) - tap.weight) * upper[v] + tap.weight * lower[v] : upper[v]);
      *reinterpret_cast<Pack<T, kVector>*>(to) = pack;
    }
  }
}

}  // namespace atrousx
