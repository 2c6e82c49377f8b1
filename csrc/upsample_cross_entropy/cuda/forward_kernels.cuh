// Cross-entropy of bilinearly upsampled logits. The upsampled logits are never stored.
#pragma once

#include <limits>

#include "cuda/device.cuh"
#include "upsample_bilinear2d/plan.h"
#include "upsample_cross_entropy/plan.h"

namespace atrousx {

constexpr int kLossThreads = 128, kLossRows = 8;

// Blocks that must fit on a multiprocessor. This number leaves enough registers per thread.
template <typename T>
constexpr int kLossBlocks = sizeof(T) == 8 ? 2 : 4;

// A column of pixels: the logits along it, already interpolated along their rows.
template <typename T>
struct LogitColumn {
  using A = Accumulate<T>;
  const T* logits;  // of one image
  Strides4 strides;
  BilinearTap<A> tap;

  __device__ __forceinline__ A at(int64_t c, int64_t h) const {
    const T* row = logits + strides.offset(0, c, h, 0);
    return (A(1) - tap.weight) * static_cast<A>(row[tap.lower * strides.w]) +
           tap.weight * static_cast<A>(row[tap.upper * strides.w]);
  }
};

// The values of one channel down a column. Two rows of logits around a pixel stay in registers
// until a pixel lies between two other rows.
template <typename T>
struct ColumnWalk {
  using A = Accumulate<T>;
  A upper, lower;
  int64_t held = -2;

  __device__ __forceinline__ A value(const LogitColumn<T>& column, int64_t c,
                                     const BilinearTap<A>& row) {
    if (row.lower != held) {
      upper = row.lower == held + 1 ? lower : column.at(c, row.lower);
      lower = column.at(c, row.upper);
      held = row.lower;
    }
    return (A(1) - row.weight) * upper + row.weight * lower;
  }
};

// How the forward is cut into jobs. A block takes kLossRows pixels of kLossThreads columns.
struct LossJobs {
  using HoldsNoAddress = void;
  int64_t batch, chunks, tiles;

  static LossJobs make(int64_t batch, int64_t rows, int64_t columns) {
    return {batch, ceil_div<int64_t>(rows, kLossRows), ceil_div<int64_t>(columns, kLossThreads)};
  }
  ATROUSX_HOST_DEVICE int64_t count() const { return batch * chunks * tiles; }
};

// Returns to every thread the sum of the block's values, always added in the same order. `room` has
// one number per thread. It can be reused when the call returns.
__device__ __forceinline__ double block_sum(double value, double* room, int threads) {
  const int thread = threadIdx.x;
  room[thread] = value;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();  // the sums of the previous level are complete
    if (thread < half) room[thread] += room[thread + half];
  }
  __syncthreads();  // the last level is complete
  const double sum = room[0];
  __syncthreads();  // it has been read
  return sum;
}

// Who: a thread owns up to kLossRows neighbouring pixels of a column; blocks take jobs in turn.
// Reads: the logits around its pixels, twice (maximum, then sum of exponentials), and the labels.
// Writes: the log-sum and, if requested, the loss of each pixel; the loss and the weight of a job.
// Synchronisation: trees of sums in shared memory, always in the same order.
template <typename T, typename Label>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks<T>)
    upsample_cross_entropy_forward_kernel(const T* logits,              // [N, C, H, W]
                                          const Label* target,          // [N, OH, OW]
                                          Accumulate<T>* log_sum,       // [N, OH, OW]
                                          Accumulate<T>* pixel_losses,  // [N, OH, OW] or null
                                          double* job_loss,             // [jobs]
                                          double* job_weight,           // [jobs]
                                          LossJobs jobs, BilinearPlan<Accumulate<T>> plan,
                                          PixelLoss<Accumulate<T>> loss, Strides4 strides) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(double, room, kLossThreads);
  const A total = loss.total_weight();
  for (int64_t job = blockIdx.x; job < jobs.count(); job += gridDim.x) {
    const int64_t n = job / jobs.tiles / jobs.chunks;
    const int64_t first = job / jobs.tiles % jobs.chunks * kLossRows;
    const int64_t ow = job % jobs.tiles * kLossThreads + threadIdx.x;
    const int rows = static_cast<int>(min_of<int64_t>(kLossRows, plan.rows.out - first));
    double sum = 0, weight = 0;
    if (ow < plan.columns.out) {
      const LogitColumn<T> column{logits + n * strides.n, strides, plan.columns.tap(ow)};
      BilinearTap<A> taps[kLossRows];
      A best[kLossRows], exponentials[kLossRows], weighted[kLossRows];
      ATROUSX_UNROLL
      for (int k = 0; k < kLossRows; ++k) {
        taps[k] = plan.rows.tap(min_of(first + k, plan.rows.out - 1));
        best[k] = -std::numeric_limits<A>::infinity();
        exponentials[k] = weighted[k] = A(0);
      }
      for (int64_t c = 0; c < loss.channels; ++c) {
        ColumnWalk<T> walk;
        ATROUSX_UNROLL
        for (int k = 0; k < kLossRows; ++k)
          best[k] = max_of(best[k], walk.value(column, c, taps[k]));
      }
      for (int64_t c = 0; c < loss.channels; ++c) {
        ColumnWalk<T> walk;
        const A share = loss.smoothing == A(0) ? A(0) : loss.weight(c);
        ATROUSX_UNROLL
        for (int k = 0; k < kLossRows; ++k) {
          const A v = walk.value(column, c, taps[k]);
          exponentials[k] += std::exp(v - best[k]);
          if (share != A(0)) weighted[k] += share * v;
        }
      }
      ATROUSX_UNROLL
      for (int k = 0; k < kLossRows; ++k) {
        if (k >= rows) continue;
        const int64_t at = (n * plan.rows.out + first + k) * plan.columns.out + ow;
        const auto label = static_cast<int64_t>(target[at]);
        const A lse = best[k] + std::log(exponentials[k]);
        ColumnWalk<T> walk;
        const A own = loss.valid(label) ? walk.value(column, label, taps[k]) : A(0);
        const A value = loss.loss(label, lse, own, weighted[k], total);
        log_sum[at] = lse;
        if (pixel_losses != nullptr) pixel_losses[at] = value;
        sum += static_cast<double>(value);
        weight += static_cast<double>(loss.pixel_weight(label));
      }
    }
    sum = block_sum(sum, room, kLossThreads);
    weight = block_sum(weight, room, kLossThreads);
    if (threadIdx.x == 0) {
      job_loss[job] = sum;
      job_weight[job] = weight;
    }
  }
}

// Who: one block does everything. Reads: the sums of the jobs. Writes: the reduced loss (unless
// `loss` is null) and the total weight. Synchronisation: trees of sums in shared memory.
template <typename A>
__global__ void __launch_bounds__(kLossThreads)
    upsample_cross_entropy_total_kernel(const double* job_loss,    // [jobs]
                                        const double* job_weight,  // [jobs]
                                        int64_t jobs, bool mean,
                                        A* loss,                 // [] or null
                                        double* total_weight) {  // []
  ATROUSX_SHARED(double, room, kLossThreads);
  double sum = 0, weight = 0;
  for (int64_t job = threadIdx.x; job < jobs; job += kLossThreads) {
    sum += job_loss[job];
    weight += job_weight[job];
  }
  sum = block_sum(sum, room, kLossThreads);
  weight = block_sum(weight, room, kLossThreads);
  if (threadIdx.x != 0) return;
  *total_weight = weight;
  if (loss != nullptr) *loss = static_cast<A>(mean ? sum / weight : sum);
}

}  // namespace atrousx
