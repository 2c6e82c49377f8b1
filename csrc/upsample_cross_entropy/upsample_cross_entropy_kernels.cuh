// Cross-entropy of bilinearly upsampled logits and its gradient, without the upsampled logits.
#pragma once

#include "../device.cuh"
#include "../upsample_bilinear2d/upsampled_pixel.cuh"
#include "plan.h"

namespace atrousx {

constexpr int kLossThreads = 128;

// Who: a block owns one row of pixels, its threads take columns in turn; blocks take rows in turn.
// Reads: the logits around each pixel, twice (maximum, then sum of exponentials), and its label.
// Writes: each pixel's log-sum and, if asked for, loss; the row's loss and weight.
// Synchronisation: a tree of sums in shared memory, the same one every time.
template <typename T, typename Label>
__global__ void __launch_bounds__(kLossThreads)
    upsample_cross_entropy_forward_kernel(const T* logits,              // [N, C, H, W]
                                          const Label* target,          // [N, OH, OW]
                                          Accumulate<T>* log_sum,       // [N, OH, OW]
                                          Accumulate<T>* pixel_losses,  // [N, OH, OW] or null
                                          double* row_loss,             // [N, OH]
                                          double* row_weight,           // [N, OH]
                                          int64_t batch, BilinearPlan<Accumulate<T>> plan,
                                          PixelLoss<Accumulate<T>> loss, Strides4 strides) {
  using A = Accumulate<T>;
  ATROUSX_SHARED(double, losses, kLossThreads);
  ATROUSX_SHARED(double, weights, kLossThreads);
  const int thread = threadIdx.x;
  const A total = loss.total_weight();
  for (int64_t line = blockIdx.x; line < batch * plan.rows.out; line += gridDim.x) {
    const BilinearTap<A> row = plan.rows.tap(line % plan.rows.out);
    double sum = 0, weight = 0;
    for (int64_t ow = thread; ow < plan.columns.out; ow += kLossThreads) {
      const UpsampledPixel<T> pixel(logits, strides, line / plan.rows.out, row,
                                    plan.columns.tap(ow));
      const int64_t at = line * plan.columns.out + ow;
      const int64_t label = static_cast<int64_t>(target[at]);
      A best = pixel.value(0), exponentials = A(0), weighted = A(0);
      for (int64_t c = 1; c < loss.channels; ++c) best = max_of(best, pixel.value(c));
      for (int64_t c = 0; c < loss.channels; ++c) {
        const A v = pixel.value(c);
        exponentials += std::exp(v - best);
        weighted += loss.weight(c) * v;
      }
      const A lse = best + std::log(exponentials);
      const A own = loss.valid(label) ? pixel.value(label) : A(0);
      const A value = loss.loss(label, lse, own, weighted, total);
      log_sum[at] = lse;
      if (pixel_losses != nullptr) pixel_losses[at] = value;
      sum += static_cast<double>(value);
      weight += static_cast<double>(loss.pixel_weight(label));
    }
    losses[thread] = sum;
    weights[thread] = weight;
    for (int half = kLossThreads / 2; half > 0; half /= 2) {
      __syncthreads();  // the sums of the previous level are complete
      if (thread < half) {
        losses[thread] += losses[thread + half];
        weights[thread] += weights[thread + half];
      }
    }
    if (thread == 0) {
      row_loss[line] = losses[0];
      row_weight[line] = weights[0];
    }
    __syncthreads();  // the last level has been read; the next row overwrites it
  }
}

// Who: one thread owns one element of grad_logits, in a grid-stride loop, columns fastest.
// Reads: every pixel that this logit reaches, in a fixed order: its label, log-sum and gradient,
// and the four logits around it. Writes: its own element. Synchronisation: none. The gradient of
// pixel (n, oh, ow) lies at n * grad_strides.n + oh * .h + ow * .w.
template <typename T, typename Label>
__global__ void upsample_cross_entropy_backward_kernel(
    const Accumulate<T>* grad,     // one per pixel, strides may be 0
    const T* logits,               // [N, C, H, W]
    const Label* target,           // [N, OH, OW]
    const Accumulate<T>* log_sum,  // [N, OH, OW]
    T* grad_logits,                // [N, C, H, W]
    int64_t batch, BilinearPlan<Accumulate<T>> plan, PixelLoss<Accumulate<T>> loss,
    Strides4 strides, Strides4 grad_strides, Strides4 grad_logits_strides) {
  using A = Accumulate<T>;
  const int64_t plane = plan.rows.in * plan.columns.in;
  const A total = loss.total_weight();
  for (int64_t i = global_thread(); i < batch * loss.channels * plane; i += global_threads()) {
    const int64_t n = i / plane / loss.channels, c = i / plane % loss.channels;
    const int64_t h = i % plane / plan.columns.in, w = i % plan.columns.in;
    const auto rows = plan.rows.readers(h), columns = plan.columns.readers(w);
    A sum = A(0);
    for (int64_t oh = rows.first; oh < rows.last; ++oh) {
      const A wy = plan.rows.weight_of(oh, h);
      if (wy == A(0)) continue;
      const BilinearTap<A> row = plan.rows.tap(oh);
      for (int64_t ow = columns.first; ow < columns.last; ++ow) {
        const A wx = plan.columns.weight_of(ow, w);
        const int64_t at = (n * plan.rows.out + oh) * plan.columns.out + ow;
        const int64_t label = static_cast<int64_t>(target[at]);
        if (wx == A(0) || loss.ignored(label)) continue;
        const UpsampledPixel<T> pixel(logits, strides, n, row, plan.columns.tap(ow));
        A slope = loss.softmax_scale(label, total) * std::exp(pixel.value(c) - log_sum[at]) -
                  loss.spread() * loss.weight(c);
        if (label == c) slope -= (A(1) - loss.smoothing) * loss.weight(c);
        sum += wy * wx * slope * grad[grad_strides.offset(n, 0, oh, ow)];
      }
    }
    grad_logits[grad_logits_strides.offset(n, c, h, w)] = static_cast<T>(sum);
  }
}

}  // namespace atrousx
