// The gradient of the cross-entropy of bilinearly upsampled logits. The gradient of the upsampled
// logits is never stored.
#pragma once

#include "upsample_cross_entropy/cuda/forward_kernels.cuh"

namespace atrousx {

constexpr int kSlopeChannels = 4;

// The gradient of the reduced loss with respect to the loss of each pixel.
template <typename A>
struct PixelGradient {
  const A* grad;               // [N, OH, OW] if per_pixel, otherwise []
  const double* total_weight;  // [] for the mean, otherwise null
  bool per_pixel;

  __device__ __forceinline__ A at(int64_t pixel) const {
    if (per_pixel) return grad[pixel];
    return total_weight == nullptr ? *grad : static_cast<A>(*grad / *total_weight);
  }
};

// How the backward is cut into jobs. A block takes `columns` logits of a row. There are so few that
// each pixel column that reads them gets its own thread. If that is impossible, it takes a single
// column.
struct SlopeJobs {
  using HoldsNoAddress = void;
  int64_t batch, rows, tiles, columns;

  template <typename A>
  static SlopeJobs make(int64_t batch, const BilinearPlan<A>& plan) {
    int64_t columns = min_of<int64_t>(plan.columns.in, kLossThreads);
    while (columns > 1 && !fits(plan.columns, columns)) columns = columns * 3 / 4;
    return {batch, plan.rows.in, ceil_div(plan.columns.in, columns), columns};
  }
  ATROUSX_HOST_DEVICE int64_t count() const { return batch * rows * tiles; }

 private:
  template <typename A>
  static bool fits(const BilinearAxis<A>& axis, int64_t columns) {
    for (int64_t w = 0; w < axis.in; w += columns)
      if (axis.readers(min_of(axis.in, w + columns) - 1).last - axis.readers(w).first >
          kLossThreads)
        return false;
    return true;
  }
};

// What the slopes of all pixels depend on.
template <typename A, typename Label>
struct SlopePixels {
  const Label* target;  // [N, OH, OW]
  const A* log_sum;     // [N, OH, OW]
  const PixelGradient<A>& gradient;
  const PixelLoss<A>& loss;
  A total;  // loss.total_weight()
  const BilinearPlan<A>& plan;
};

// Sums the slopes of kSlopeChannels channels, from channel c on, down the pixels of a column.
// `first` is the pixel in row 0 of this column. Each slope is multiplied by the weight with which
// its pixel reads row h of the logits.
template <typename T, typename Label>
__device__ __forceinline__ void sum_slopes(const SlopePixels<Accumulate<T>, Label>& pixels,
                                           const LogitColumn<T>& column, int64_t first, int64_t h,
                                           int64_t c, Accumulate<T> (&sums)[kSlopeChannels]) {
  using A = Accumulate<T>;
  const auto& [target, log_sum, gradient, loss, total, plan] = pixels;
  ColumnWalk<T> walks[kSlopeChannels];
  const auto range = plan.rows.readers(h);
  for (int64_t oh = range.first; oh < range.last; ++oh) {
    const BilinearTap<A> row = plan.rows.tap(oh);
    const A share =
        (row.lower == h ? A(1) - row.weight : A(0)) + (row.upper == h ? row.weight : A(0));
    const int64_t at = first + oh * plan.columns.out;
    const auto label = static_cast<int64_t>(target[at]);
    if (share == A(0) || loss.ignored(label)) continue;
    const A lse = log_sum[at], scale = loss.softmax_scale(label, total);
    const A grad = share * gradient.at(at);
    ATROUSX_UNROLL
    for (int i = 0; i < kSlopeChannels; ++i) {
      const int64_t channel = min_of(c + i, loss.channels - 1);
      const A v = walks[i].value(column, channel, row);
      A slope = scale * std::exp(v - lse) - loss.spread() * loss.weight(channel);
      if (label == channel) slope -= (A(1) - loss.smoothing) * loss.weight(channel);
      sums[i] += grad * slope;
    }
  }
}

// Who: a block owns jobs.columns logits of a row, every channel. First a thread owns a column of
// the pixels that read this row, and sums their slopes. Then it owns logits, and gathers their
// gradients from these sums. Reads: labels, log-sums and gradients of the pixels, once for every
// kSlopeChannels channels and for each of the two rows of logits around them; and these logits.
// Writes: the gradients of its logits. Synchronisation: sums and column taps are in shared memory,
// with one barrier before they are read and one before they are overwritten. There are no atomics,
// so the order is always the same.
template <typename T, typename Label>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks<T>)
    upsample_cross_entropy_backward_kernel(PixelGradient<Accumulate<T>> gradient,
                                           const T* logits,               // [N, C, H, W]
                                           const Label* target,           // [N, OH, OW]
                                           const Accumulate<T>* log_sum,  // [N, OH, OW]
                                           T* grad_logits,                // [N, C, H, W]
                                           SlopeJobs jobs, BilinearPlan<Accumulate<T>> plan,
                                           PixelLoss<Accumulate<T>> loss, Strides4 strides,
                                           Strides4 grad_logits_strides) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(A, sums, kSlopeChannels * kLossThreads);
  ATROUSX_SHARED(A, totals, kSlopeChannels * kLossThreads);
  ATROUSX_SHARED(BilinearTap<A>, taps, kLossThreads);
  const int thread = threadIdx.x;
  const SlopePixels<A, Label> pixels{target, log_sum, gradient, loss, loss.total_weight(), plan};
  for (int64_t job = blockIdx.x; job < jobs.count(); job += gridDim.x) {
    const int64_t n = job / jobs.tiles / jobs.rows, h = job / jobs.tiles % jobs.rows;
    const int64_t begin = job % jobs.tiles * jobs.columns;
    const int columns = static_cast<int>(min_of(plan.columns.in - begin, jobs.columns));
    const int64_t first = plan.columns.readers(begin).first;
    const int64_t last = plan.columns.readers(begin + columns - 1).last;
    for (int64_t c = 0; c < loss.channels; c += kSlopeChannels) {
      for (int i = thread; i < kSlopeChannels * columns; i += kLossThreads) totals[i] = A(0);
      for (int64_t piece = first; piece < last; piece += kLossThreads) {
        const int64_t ow = piece + thread;
        A partial[kSlopeChannels] = {};
        if (ow < last) {
          const LogitColumn<T> column{logits + n * strides.n, strides, plan.columns.tap(ow)};
          taps[thread] = column.tap;
          const int64_t top = n * plan.rows.out * plan.columns.out + ow;
          sum_slopes(pixels, column, top, h, c, partial);
        }
        ATROUSX_UNROLL
        for (int i = 0; i < kSlopeChannels; ++i) sums[i * kLossThreads + thread] = partial[i];
        __syncthreads();  // sums and taps are complete
        for (int i = thread; i < kSlopeChannels * columns; i += kLossThreads) {
          const int64_t w = begin + i % columns;
          const A* from = sums + i / columns * kLossThreads;
          const auto range = plan.columns.readers(w);
          A sum = A(0);
          for (int64_t o = max_of(range.first, piece);
               o < min_of(range.last, min_of(last, piece + kLossThreads)); ++o) {
            const BilinearTap<A> tap = taps[o - piece];
            const A share =
                (tap.lower == w ? A(1) - tap.weight : A(0)) + (tap.upper == w ? tap.weight : A(0));
            if (share != A(0)) sum += share * from[o - piece];
          }
          totals[i] += sum;
        }
        __syncthreads();  // sums and taps have been read; the next piece overwrites them
      }
      for (int i = thread; i < kSlopeChannels * columns; i += kLossThreads) {
        const int64_t channel = c + i / columns;
        if (channel < loss.channels)
          grad_logits[grad_logits_strides.offset(n, channel, h, begin + i % columns)] =
              static_cast<T>(totals[i]);
      }
    }
  }
}

}  // namespace atrousx
