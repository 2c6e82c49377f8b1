// The transpose of bilinear resampling, gathered: no atomics, the same sums in the same order.
#pragma once

#include "upsample_bilinear2d_kernels.cuh"

namespace atrousx {

// A block, or a thread, takes a few input rows: gradients between two of them are
// read once and the lower row's share is kept for its turn.
constexpr int kGatherRows = 4;

// Calls visit(row, weight) for pixel rows that read input rows [begin, end), in order, and
// finish(h) after the last pixel row whose gradients row h, and finish(h + 1), take. The row before
// `begin` comes first: its pixel rows have a share in `begin`, but it is finished by others.
template <typename A, typename Visit, typename Finish>
__device__ __forceinline__ void over_reading_rows(const BilinearAxis<A>& axis, int64_t begin,
                                                  int64_t end, Visit&& visit, Finish&& finish) {
  int64_t current = max_of<int64_t>(begin - 1, 0);
  const int64_t last = axis.readers(end - 1).last;
  for (int64_t o = axis.readers(current).first; o < last; ++o) {
    const auto tap = NeighbourTap<A>::of(axis, o);
    if (tap.lower < current) continue;
    if (tap.lower >= end) break;
    for (; current < tap.lower; ++current) finish(current);
    visit(o, tap.weight);
  }
  for (; current < end; ++current) finish(current);
}

constexpr int kNarrowThreads = 256;

// How a backward of short pixels is cut up: a block takes `columns` input columns, so few that the
// gradients that reach them fill at most one vector a thread.
struct NarrowJobs {
  int64_t maps, chunks, tiles, columns;

  // columns is 0 where a single one's gradients would be too many.
  template <typename A>
  static NarrowJobs make(int64_t maps, int64_t pixel, const BilinearPlan<A>& plan, int vector) {
    const int64_t room = int64_t{kNarrowThreads} * vector;
    int64_t columns = min_of(plan.columns.in, room / pixel);
    while (columns > 0 && !fits(plan.columns, pixel, columns, room, vector))
      columns = columns * 3 / 4;
    return {maps, ceil_div<int64_t>(plan.rows.in, kGatherRows),
            columns > 0 ? ceil_div(plan.columns.in, columns) : 0, columns};
  }
  ATROUSX_HOST_DEVICE int64_t count() const { return maps * chunks * tiles; }

 private:
  template <typename A>
  static bool fits(const BilinearAxis<A>& axis, int64_t pixel, int64_t columns, int64_t room,
                   int vector) {
    for (int64_t w = 0; w < axis.in; w += columns) {
      const int64_t first = axis.readers(w).first * pixel / vector * vector;
      if (axis.readers(min_of(axis.in, w + columns) - 1).last * pixel - first > room) return false;
    }
    return true;
  }
};

// Who: a block owns kGatherRows input rows of jobs.columns columns; a thread, kVector neighbouring
// numbers of the gradients that reach them, which it sums down the rows; then numbers of the input
// row, which it gathers from these sums. Reads: each gradient once, twice at a tile's borders.
// Writes: its input numbers. Synchronisation: sums and column taps lie in shared memory; a barrier
// before they are read and one before they are overwritten. No atomics: the order is always the
// same.
template <typename T, int kVector>
__global__ void __launch_bounds__(kNarrowThreads, 3)
    upsample_bilinear2d_backward_narrow_kernel(const T* grad_output,  // [maps, OH, OW, pixel]
                                               T* grad_input,         // [maps, H, W, pixel]
                                               NarrowJobs jobs, int64_t pixel,
                                               BilinearPlan<Accumulate<T>> plan) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(A, sums, kNarrowThreads * kVector);
  ATROUSX_SHARED(NeighbourTap<A>, taps, kNarrowThreads * kVector);
  const int64_t in_row = plan.columns.in * pixel, out_row = plan.columns.out * pixel;
  const int slot = threadIdx.x * kVector;
  for (int64_t job = blockIdx.x; job < jobs.count(); job += gridDim.x) {
    const int64_t begin = job / jobs.tiles % jobs.chunks * kGatherRows;
    const int64_t end = min_of(plan.rows.in, begin + kGatherRows);
    const int64_t map = job / jobs.tiles / jobs.chunks;
    const int64_t column = job % jobs.tiles * jobs.columns;
    const int64_t column_end = min_of(plan.columns.in, column + jobs.columns);
    const int64_t first = plan.columns.readers(column).first;
    const int64_t last = plan.columns.readers(column_end - 1).last;
    const int64_t number = first * pixel / kVector * kVector + slot;
    const bool inside = number < last * pixel;
    __syncthreads();  // the taps and sums of the job before have been read
    for (int64_t o = first + threadIdx.x; o < last; o += kNarrowThreads)
      taps[o - first] = NeighbourTap<A>::of(plan.columns, o);
    const T* from = grad_output + map * plan.rows.out * out_row + number;
    T* to = grad_input + map * plan.rows.in * in_row;
    A here[kVector] = {}, next[kVector] = {};
    over_reading_rows(
        plan.rows, begin, end,
        [&](int64_t oh, A weight) {
          if (!inside) return;
          const auto pack = *reinterpret_cast<const Pack<T, kVector>*>(from + oh * out_row);
          ATROUSX_UNROLL
          for (int v = 0; v < kVector; ++v) {
            const A g = static_cast<A>(pack.values[v]);
            here[v] += (A(1) - weight) * g;
            // A weight of 0 must not turn an infinite gradient into NaN in the next row.
            if (weight != A(0)) next[v] += weight * g;
          }
        },
        [&](int64_t h) {
          ATROUSX_UNROLL
          for (int v = 0; v < kVector; ++v) {
            sums[slot + v] = here[v];
            here[v] = next[v];
            next[v] = A(0);
          }
          if (h < begin) return;
          __syncthreads();  // sums, and at first taps, are complete
          const int64_t origin = first * pixel / kVector * kVector;
          for (int64_t i = column * pixel + threadIdx.x; i < column_end * pixel;
               i += kNarrowThreads) {
            const int64_t w = static_cast<uint32_t>(i) / static_cast<uint32_t>(pixel);
            const auto range = plan.columns.readers(w);
            A sum = A(0);
            for (int64_t o = range.first; o < range.last; ++o) {
              const A weight = taps[o - first].weight_at(w);
              if (weight != A(0)) sum += weight * sums[o * pixel + (i - w * pixel) - origin];
            }
            to[h * in_row + i] = static_cast<T>(sum);
          }
          __syncthreads();  // the sums have been read; the next row's overwrite them
        });
  }
}

constexpr int kWideThreads = 128, kStripColumns = 4;

// How a backward of long pixels is cut up: a thread takes kStripColumns input columns.
struct WideJobs {
  int64_t maps, chunks, strips, vectors;

  static WideJobs make(int64_t maps, int64_t rows, int64_t columns, int64_t pixel, int vector) {
    return {maps, ceil_div<int64_t>(rows, kGatherRows), ceil_div<int64_t>(columns, kStripColumns),
            pixel / vector};
  }
  ATROUSX_HOST_DEVICE int64_t count() const { return maps * chunks * strips * vectors; }
};

// Who: a thread owns kVector neighbouring channels of kGatherRows x kStripColumns input pixels, in
// a grid-stride loop, channels fastest. Reads: the gradients that reach these, a few pixels in
// flight; those at its borders are read by its neighbours, too, out of a cache. Writes: its pixels.
// Synchronisation: none.
template <typename T, int kVector>
__global__ void __launch_bounds__(kWideThreads, kVector == 1 ? 4 : 2)
    upsample_bilinear2d_backward_wide_kernel(const T* grad_output,  // [maps, OH, OW, pixel]
                                             T* grad_input,         // [maps, H, W, pixel]
                                             WideJobs jobs, int64_t pixel,
                                             BilinearPlan<Accumulate<T>> plan) {
  using A = Accumulate<T>;
  constexpr int kFlight = kVector == 1 && sizeof(T) < 8 ? 8 : 4;
  const int64_t in_row = plan.columns.in * pixel, out_row = plan.columns.out * pixel;
  for (int64_t job = global_thread(); job < jobs.count(); job += global_threads()) {
    const int64_t channel = job % jobs.vectors * kVector;
    const int64_t column = job / jobs.vectors % jobs.strips * kStripColumns;
    const int64_t begin = job / jobs.vectors / jobs.strips % jobs.chunks * kGatherRows;
    const int64_t map = job / jobs.vectors / jobs.strips / jobs.chunks;
    const int64_t end = min_of(plan.rows.in, begin + kGatherRows);
    const int64_t column_end = min_of(plan.columns.in, column + kStripColumns);
    const int64_t first = plan.columns.readers(column).first;
    const int64_t last = plan.columns.readers(column_end - 1).last;
    const T* from = grad_output + map * plan.rows.out * out_row + channel;
    T* to = grad_input + map * plan.rows.in * in_row + column * pixel + channel;
    A here[kStripColumns][kVector] = {}, next[kStripColumns][kVector] = {};
    over_reading_rows(
        plan.rows, begin, end,
        [&](int64_t oh, A row_weight) {
          A sums[kStripColumns][kVector] = {};
          for (int64_t o = first; o < last; o += kFlight) {
            Pack<T, kVector> packs[kFlight];
            ATROUSX_UNROLL
            for (int f = 0; f < kFlight; ++f) {
              const int64_t at = oh * out_row + min_of(o + f, last - 1) * pixel;
              packs[f] = *reinterpret_cast<const Pack<T, kVector>*>(from + at);
            }
            ATROUSX_UNROLL
            for (int f = 0; f < kFlight; ++f) {
              if (o + f >= last) continue;
              const auto tap = NeighbourTap<A>::of(plan.columns, o + f);
              ATROUSX_UNROLL
              for (int s = 0; s < kStripColumns; ++s) {
                const A weight = tap.weight_at(column + s);
                if (weight == A(0)) continue;
                ATROUSX_UNROLL
                for (int v = 0; v < kVector; ++v)
                  sums[s][v] += weight * static_cast<A>(packs[f].values[v]);
              }
            }
          }
          ATROUSX_UNROLL
          for (int s = 0; s < kStripColumns; ++s) {
            ATROUSX_UNROLL
            for (int v = 0; v < kVector; ++v) {
              here[s][v] += (A(1) - row_weight) * sums[s][v];
              if (row_weight != A(0)) next[s][v] += row_weight * sums[s][v];
            }
          }
        },
        [&](int64_t h) {
          ATROUSX_UNROLL
          for (int s = 0; s < kStripColumns; ++s) {
            Pack<T, kVector> pack;
            ATROUSX_UNROLL
            for (int v = 0; v < kVector; ++v) {
              pack.values[v] = static_cast<T>(here[s][v]);
              here[s][v] = next[s][v];
              next[s][v] = A(0);
            }
            if (h >= begin && column + s < column_end)
              *reinterpret_cast<Pack<T, kVector>*>(to + h * in_row + s * pixel) = pack;
          }
        });
  }
}

// Pixels shorter than this are taken by the kernel for short ones: a warp's loads of one pixel
// each would fill no sector of memory.
constexpr int64_t kWidePixel = 8;

}  // namespace atrousx
