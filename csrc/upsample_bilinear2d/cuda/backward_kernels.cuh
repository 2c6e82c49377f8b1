// The transpose of bilinear resampling, as a gather: no atomics, the same sums in the same order.
#pragma once

#include "upsample_bilinear2d/cuda/forward_kernels.cuh"

namespace atrousx {

constexpr int kGatherThreads = 256;

// Gradients that a thread sums down the rows. With short pixels it is one vector, because rows are
// then seldom longer than a block. Otherwise it is enough to keep sufficient bytes in flight.
template <typename T, bool kShort, int kVector>
constexpr int kGatherNumbers = kShort                           ? kVector
                               : sizeof(T) == 8                 ? 4
                               : kVector == 1 && sizeof(T) == 2 ? 12
                                                                : 8;

// Blocks that must fit on a multiprocessor. This number leaves enough registers per thread.
template <typename T, int kCount>
constexpr int kGatherBlocks = kCount > 2 || sizeof(T) == 8 ? 2 : 3;

// How a backward is cut into jobs. A block takes `rows` input rows of `columns` input columns, and
// `slice` numbers of every pixel. The gradients that reach one such row fit the block's threads.
struct GatherJobs {
  using HoldsNoAddress = void;
  int64_t maps, chunks, tiles, slices;
  int64_t rows, columns, slice;

  // columns is 0 if the gradients of a single column would be too many.
  template <typename A>
  static GatherJobs make(int64_t maps, int64_t pixel, const BilinearPlan<A>& plan, int vector,
                         int numbers) {
    constexpr int64_t kLeastColumns = 8, kLeastSlice = 8, kLeastJobs = 800;
    const int64_t room = int64_t{kGatherThreads} * numbers;
    int64_t slice = pixel, columns = fitting(plan.columns, slice, room, vector);
    // Tiles read their borders twice. So wide tiles with few numbers per pixel are better than
    // narrow tiles with many.
    while (columns < min_of(kLeastColumns, plan.columns.in) && slice > kLeastSlice) {
      slice = ceil_div<int64_t>(slice, 2 * vector) * vector;
      columns = fitting(plan.columns, slice, room, vector);
    }
    GatherJobs jobs{maps,
                    1,
                    columns > 0 ? ceil_div(plan.columns.in, columns) : 0,
                    ceil_div(pixel, slice),
                    2 * 16,
                    columns,
                    slice};
    do {
      jobs.rows /= 2;
      jobs.chunks = ceil_div(plan.rows.in, jobs.rows);
    } while (jobs.rows > 4 && jobs.count() < kLeastJobs);
    return jobs;
  }
  ATROUSX_HOST_DEVICE int64_t count() const { return maps * chunks * tiles * slices; }

 private:
  template <typename A>
  static int64_t fitting(const BilinearAxis<A>& axis, int64_t slice, int64_t room, int vector) {
    int64_t columns = min_of(axis.in, room / slice);
    while (columns > 0 && !fits(axis, slice, columns, room, vector))
      columns -= ceil_div<int64_t>(columns, 8);
    return columns;
  }
  template <typename A>
  static bool fits(const BilinearAxis<A>& axis, int64_t slice, int64_t columns, int64_t room,
                   int vector) {
    for (int64_t w = 0; w < axis.in; w += columns) {
      const int64_t first = axis.readers(w).first * slice / vector * vector;
      if (axis.readers(min_of(axis.in, w + columns) - 1).last * slice - first > room) return false;
    }
    return true;
  }
};

// Taps of neighbouring outputs in shared memory. Taps that do not fit are computed again.
template <typename A>
struct HeldTaps {
  NeighbourTap<A>* held;  // [room]
  int64_t first;
  int room;

  __device__ __forceinline__ void hold(const BilinearAxis<A>& axis, int64_t last) const {
    for (int64_t o = first + threadIdx.x; o < min_of(last, first + room); o += kGatherThreads)
      held[o - first] = NeighbourTap<A>::of(axis, o);
  }
  __device__ __forceinline__ NeighbourTap<A> at(const BilinearAxis<A>& axis, int64_t o) const {
    return o - first < room ? held[o - first] : NeighbourTap<A>::of(axis, o);
  }
};

// Calls visit(row, weight) for the pixel rows that read input rows [begin, end), in order. Calls
// finish(h) after the last pixel row that contributes to rows h and h + 1. It starts with the input
// row before `begin`, whose pixel rows also contribute to `begin`; another job finishes that row.
template <typename A, typename Visit, typename Finish>
__device__ __forceinline__ void over_reading_rows(const BilinearAxis<A>& axis,
                                                  const HeldTaps<A>& taps, int64_t begin,
                                                  int64_t end, Visit&& visit, Finish&& finish) {
  int64_t current = max_of<int64_t>(begin - 1, 0);
  const int64_t last = axis.readers(end - 1).last;
  for (int64_t o = taps.first; o < last; ++o) {
    const auto tap = taps.at(axis, o);
    if (tap.lower < current) continue;
    if (tap.lower >= end) break;
    for (; current < tap.lower; ++current) finish(current);
    visit(o, tap.weight);
  }
  for (; current < end; ++current) finish(current);
}

// The gradients that a thread sums down the rows: kCount vectors, a block's width apart. While a
// row is added, the gradients of the next row are being loaded.
template <typename T, int kVector, int kCount>
struct RowSums {
  using A = Accumulate<T>;
  const T* from;  // the first number that reaches the job, in row 0
  int64_t out_row, out_rows, loaded = -1;
  int32_t offset[kCount];
  Pack<T, kVector> ahead[kCount];
  A here[kCount][kVector] = {}, next[kCount][kVector] = {};

  __device__ __forceinline__ void load(int64_t oh) {
    ATROUSX_UNROLL
    for (int k = 0; k < kCount; ++k)
      ahead[k] = *reinterpret_cast<const Pack<T, kVector>*>(from + oh * out_row + offset[k]);
    loaded = oh;
  }
  __device__ __forceinline__ void add(int64_t oh, A weight) {
    if (loaded != oh) load(oh);
    Pack<T, kVector> packs[kCount];
    ATROUSX_UNROLL
    for (int k = 0; k < kCount; ++k) packs[k] = ahead[k];
    load(min_of(oh + 1, out_rows - 1));
    ATROUSX_UNROLL
    for (int k = 0; k < kCount; ++k) {
      ATROUSX_UNROLL
      for (int v = 0; v < kVector; ++v) {
        const A g = static_cast<A>(packs[k].values[v]);
        here[k][v] += (A(1) - weight) * g;
        // Without this check a weight of 0 would turn an infinite gradient into NaN in the next
        // row.
        if (weight != A(0)) next[k][v] += weight * g;
      }
    }
  }
  __device__ __forceinline__ void finish(A* sums) {
    ATROUSX_UNROLL
    for (int k = 0; k < kCount; ++k) {
      ATROUSX_UNROLL
      for (int v = 0; v < kVector; ++v) {
        sums[(k * kGatherThreads + threadIdx.x) * kVector + v] = here[k][v];
        here[k][v] = next[k][v];
        next[k][v] = A(0);
      }
    }
  }
};

// Who: a block owns jobs.rows input rows of jobs.columns columns, and jobs.slice numbers of each
// pixel. First a thread owns some of the gradients that reach them, and sums these down the rows.
// Then it owns numbers of the input row, and gathers them from these sums. Reads: each gradient
// once, twice at a job's borders. Writes: its input numbers. Synchronisation: sums and taps are in
// shared memory, with one barrier before they are read and one before they are overwritten. There
// are no atomics, so the order is always the same.
template <typename T, int kVector, int kNumbers>
__global__ void __launch_bounds__(kGatherThreads, kGatherBlocks<T, kNumbers / kVector>)
    upsample_bilinear2d_backward_kernel(const T* grad_output,  // [maps, OH, OW, pixel]
                                        T* grad_input,         // [maps, H, W, pixel]
                                        GatherJobs jobs, int64_t pixel,
                                        BilinearPlan<Accumulate<T>> plan) {
  using A = Accumulate<T>;
  constexpr int kCount = kNumbers / kVector, kRowTaps = 256;
  ATROUSX_SHARED(A, sums, kGatherThreads * kNumbers);
  ATROUSX_SHARED(NeighbourTap<A>, column_taps, kGatherThreads * kVector);
  ATROUSX_SHARED(NeighbourTap<A>, row_taps, kRowTaps);
  const int64_t in_row = plan.columns.in * pixel, out_row = plan.columns.out * pixel;
  for (int64_t job = blockIdx.x; job < jobs.count(); job += gridDim.x) {
    const int64_t channel = job % jobs.slices * jobs.slice;
    const int64_t column = job / jobs.slices % jobs.tiles * jobs.columns;
    const int64_t begin = job / jobs.slices / jobs.tiles % jobs.chunks * jobs.rows;
    const int64_t map = job / jobs.slices / jobs.tiles / jobs.chunks;
    const int64_t end = min_of(plan.rows.in, begin + jobs.rows);
    const int64_t column_end = min_of(plan.columns.in, column + jobs.columns);
    const auto slice = static_cast<uint32_t>(min_of(jobs.slice, pixel - channel));
    // A scale factor may leave the last columns unread. Then no gradient reaches the job: it loads
    // the last gradients of each row, and uses none.
    const int64_t first = min_of(plan.columns.readers(column).first, plan.columns.out - 1);
    const int64_t last = plan.columns.readers(column_end - 1).last;
    // Whole pixels are one run of numbers. It begins at a multiple of the vector length, at or
    // before the first number.
    const int64_t origin =
        jobs.slices == 1 ? first * pixel / kVector * kVector : first * pixel + channel;
    const auto shift = static_cast<int32_t>(first * pixel + channel - origin);
    const auto count = static_cast<int32_t>((last - first) * slice) + shift;
    RowSums<T, kVector, kCount> rows;
    rows.from = grad_output + map * plan.rows.out * out_row + origin;
    rows.out_row = out_row;
    rows.out_rows = plan.rows.out;
    ATROUSX_UNROLL
    for (int k = 0; k < kCount; ++k) {
      // Threads beyond the end load the last vector. Their sums are not used.
      const int32_t number = min_of<int32_t>((k * kGatherThreads + threadIdx.x) * kVector,
                                             (count - 1) / kVector * kVector);
      rows.offset[k] = jobs.slices == 1 ? number
                                        : static_cast<int32_t>(number / slice * pixel) +
                                              static_cast<int32_t>(number % slice);
    }
    const HeldTaps<A> columns{column_taps, first, kGatherThreads * kVector};
    const HeldTaps<A> reading{row_taps, plan.rows.readers(max_of<int64_t>(begin - 1, 0)).first,
                              kRowTaps};
    __syncthreads();  // the previous job's taps and sums have been read
    columns.hold(plan.columns, last);
    reading.hold(plan.rows, plan.rows.readers(end - 1).last);
    __syncthreads();  // the taps are complete
    T* to = grad_input + map * plan.rows.in * in_row + column * pixel + channel;
    over_reading_rows(
        plan.rows, reading, begin, end, [&](int64_t oh, A weight) { rows.add(oh, weight); },
        [&](int64_t h) {
          rows.finish(sums);
          if (h < begin) return;
          __syncthreads();  // the sums are complete
          const auto numbers = static_cast<uint32_t>(column_end - column) * slice;
          for (uint32_t i = threadIdx.x; i < numbers; i += kGatherThreads) {
            const uint32_t w = i / slice, c = i - w * slice;
            const auto range = plan.columns.readers(column + w);
            const A* from = sums + shift + c;
            A sum = A(0);
            for (int64_t o = range.first; o < range.last; ++o) {
              const A weight = columns.at(plan.columns, o).weight_at(column + w);
              if (weight != A(0)) sum += weight * from[(o - first) * slice];
            }
            to[h * in_row + w * pixel + c] = static_cast<T>(sum);
          }
          __syncthreads();  // the sums have been read; the next row overwrites them
        });
  }
}

// For maps that grow so much that the gradients of one column are too many for a block. Who: a
// thread owns one number of the input, in a grid-stride loop. Reads: every gradient that reaches
// it. Writes: its number. Synchronisation: none.
template <typename T>
__global__ void upsample_bilinear2d_backward_far_kernel(
    const T* grad_output,  // [maps, OH, OW, pixel]
    T* grad_input,         // [maps, H, W, pixel]
    int64_t maps, int64_t pixel, BilinearPlan<Accumulate<T>> plan) {
  using A = Accumulate<T>;
  const int64_t count = maps * plan.rows.in * plan.columns.in * pixel;
  for (int64_t i = global_thread(); i < count; i += global_threads()) {
    const int64_t c = i % pixel, w = i / pixel % plan.columns.in;
    const int64_t h = i / pixel / plan.columns.in % plan.rows.in;
    const int64_t map = i / pixel / plan.columns.in / plan.rows.in;
    const auto rows = plan.rows.readers(h), columns = plan.columns.readers(w);
    A sum = A(0);
    for (int64_t oh = rows.first; oh < rows.last; ++oh) {
      const A row_weight = NeighbourTap<A>::of(plan.rows, oh).weight_at(h);
      if (row_weight == A(0)) continue;
      const T* from = grad_output + (map * plan.rows.out + oh) * plan.columns.out * pixel + c;
      A along = A(0);
      for (int64_t ow = columns.first; ow < columns.last; ++ow) {
        const A weight = NeighbourTap<A>::of(plan.columns, ow).weight_at(w);
        if (weight != A(0)) along += weight * static_cast<A>(from[ow * pixel]);
      }
      sum += row_weight * along;
    }
    grad_input[i] = static_cast<T>(sum);
  }
}

// A pixel with fewer numbers than this is short.
constexpr int64_t kShortPixel = 8;

}  // namespace atrousx
