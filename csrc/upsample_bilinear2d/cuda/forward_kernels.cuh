// Bilinear resampling of dense maps, in both memory formats.
//
// A map is rows of numbers. `pixel` adjacent numbers are resampled with the same weights: 1 in
// contiguous maps, where each channel is a map, or C in channels_last maps. Kernels move 16 bytes
// at a time (kVector numbers) if rows are a multiple of that, otherwise single numbers.
#pragma once

#include "cuda/device.cuh"
#include "upsample_bilinear2d/plan.h"

namespace atrousx {

template <typename T>
constexpr int kFullVector = 16 / static_cast<int>(sizeof(T));

template <typename T, int kVector>
struct alignas(kVector * sizeof(T)) Pack {
  T values[kVector];
};

// Two neighbours of an axis, and the weight of the second. The weight is 0 if there is no second.
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

// Vectors that a thread of the forward owns. Single numbers come four at a time: otherwise the
// fixed cost of a row would dominate.
template <int kVector>
constexpr int kForwardVectors = kVector == 1 ? 4 : 1;

// Blocks that must fit on a multiprocessor, or 0 to let the compiler decide. For four float32
// numbers it chooses ten blocks on 8.6 and 8.9, which spills registers. Nine blocks leave enough
// registers.
template <int kVector>
constexpr int kForwardBlocks = kVector == 4 ? 9 : 0;

// How a forward is cut into jobs. A block takes `rows` rows of the vectors of all maps, side by
// side, so that no lane is idle where a row ends.
struct ForwardJobs {
  using HoldsNoAddress = void;
  int64_t vectors, row_vectors, tiles, rows, chunks;

  static ForwardJobs make(int64_t maps, int64_t rows, int64_t row_numbers, int vector) {
    const int64_t per_row = row_numbers / vector, all = maps * per_row;
    const int64_t chunks = ceil_div<int64_t>(rows, kForwardRows);
    const int64_t in_tile = int64_t{kForwardThreads} * (vector == 1 ? kForwardVectors<1> : 1);
    return {all, per_row, ceil_div(all, in_tile), ceil_div(rows, chunks), chunks};
  }
  ATROUSX_HOST_DEVICE int64_t count() const { return tiles * chunks; }
};

// A few neighbouring numbers of a row of one map, and where each finds its two inputs.
template <typename T, int kVector>
struct ColumnVector {
  using A = Accumulate<T>;
  const T* map;  // [H, W, pixel]
  int32_t left[kVector], step[kVector];
  A weight[kVector], upper[kVector], lower[kVector];

  __device__ __forceinline__ void place(const BilinearAxis<A>& axis, const T* map_, uint32_t number,
                                        uint32_t pixel) {
    map = map_;
    ATROUSX_UNROLL
    for (int v = 0; v < kVector; ++v) {
      const uint32_t column = (number + v) / pixel;
      const auto tap = NeighbourTap<A>::of(axis, column);
      left[v] = static_cast<int32_t>(tap.lower * pixel + (number + v - column * pixel));
      step[v] = tap.weight != A(0) ? static_cast<int32_t>(pixel) : 0;
      weight[v] = tap.weight;
    }
  }

  __device__ __forceinline__ void resample(int64_t row_at, A (&values)[kVector]) const {
    A first[kVector], second[kVector];
    ATROUSX_UNROLL
    for (int v = 0; v < kVector; ++v) {
      first[v] = static_cast<A>(map[row_at + left[v]]);
      second[v] = static_cast<A>(map[row_at + left[v] + step[v]]);
    }
    ATROUSX_UNROLL
    for (int v = 0; v < kVector; ++v)
      values[v] = (A(1) - weight[v]) * first[v] + weight[v] * second[v];
  }

  __device__ __forceinline__ void move_up() {
    ATROUSX_UNROLL
    for (int v = 0; v < kVector; ++v) upper[v] = lower[v];
  }

  __device__ __forceinline__ Pack<T, kVector> blend(A row_weight) const {
    Pack<T, kVector> pack;
    ATROUSX_UNROLL
    for (int v = 0; v < kVector; ++v)
      pack.values[v] = static_cast<T>(
          row_weight != A(0) ? (A(1) - row_weight) * upper[v] + row_weight * lower[v] : upper[v]);
    return pack;
  }
};

// Who: a thread owns kForwardVectors vectors of kVector numbers, a block's width apart, in up to
// kForwardRows output rows; blocks take jobs in turn. Reads: each input row that its outputs blend,
// interpolated along the row as it is read. It is read once for all output rows between it and the
// next, and twice at a chunk's border. Writes: its numbers. Synchronisation: the taps of the rows
// are computed once per block, in shared memory.
template <typename T, int kVector>
__global__ void __launch_bounds__(kForwardThreads, kForwardBlocks<kVector>)
    upsample_bilinear2d_forward_kernel(const T* input,  // [maps, H, W, pixel]
                                       T* output,       // [maps, OH, OW, pixel]
                                       ForwardJobs jobs, int64_t pixel,
                                       BilinearPlan<Accumulate<T>> plan) {
  using A = Accumulate<T>;
  constexpr int kCount = kForwardVectors<kVector>;
  ATROUSX_SHARED(NeighbourTap<A>, taps, kForwardRows);
  const int64_t in_row = plan.columns.in * pixel, out_row = plan.columns.out * pixel;
  for (int64_t job = blockIdx.x; job < jobs.count(); job += gridDim.x) {
    const int64_t first = job / jobs.tiles * jobs.rows;
    const int rows = static_cast<int>(min_of(jobs.rows, plan.rows.out - first));
    __syncthreads();  // the previous job's taps have been read
    if (static_cast<int>(threadIdx.x) < rows)
      taps[threadIdx.x] = NeighbourTap<A>::of(plan.rows, first + threadIdx.x);
    __syncthreads();  // the taps are complete
    const int64_t start = job % jobs.tiles * (kForwardThreads * kCount);
    const int64_t start_map = start / jobs.row_vectors;
    const auto place = static_cast<uint32_t>(start - start_map * jobs.row_vectors);
    ColumnVector<T, kVector> columns[kCount];
    T* to[kCount];
    bool inside[kCount];
    ATROUSX_UNROLL
    for (int k = 0; k < kCount; ++k) {
      const uint32_t ahead = k * kForwardThreads + threadIdx.x;
      inside[k] = start + ahead < jobs.vectors;
      const uint32_t at = inside[k] ? place + ahead : place;
      const auto row_vectors = static_cast<uint32_t>(jobs.row_vectors);
      const int64_t map = start_map + at / row_vectors;
      const uint32_t number = at % row_vectors * kVector;
      columns[k].place(plan.columns, input + map * plan.rows.in * in_row, number,
                       static_cast<uint32_t>(pixel));
      to[k] = output + (map * plan.rows.out + first) * out_row + number;
    }
    int64_t held_upper = -1, held_lower = -1;
    for (int r = 0; r < rows; ++r) {
      const NeighbourTap<A> tap = taps[r];
      if (held_upper != tap.lower) {
        ATROUSX_UNROLL
        for (int k = 0; k < kCount; ++k) {
          if (held_lower == tap.lower)
            columns[k].move_up();
          else
            columns[k].resample(tap.lower * in_row, columns[k].upper);
        }
        held_upper = tap.lower;
      }
      if (tap.weight != A(0) && held_lower != tap.lower + 1) {
        held_lower = tap.lower + 1;
        ATROUSX_UNROLL
        for (int k = 0; k < kCount; ++k) columns[k].resample(held_lower * in_row, columns[k].lower);
      }
      ATROUSX_UNROLL
      for (int k = 0; k < kCount; ++k) {
        const auto pack = columns[k].blend(tap.weight);
        if (inside[k]) *reinterpret_cast<Pack<T, kVector>*>(to[k]) = pack;
        to[k] += out_row;
      }
    }
  }
}

}  // namespace atrousx
