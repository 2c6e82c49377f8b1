// Loops over a block of upsampled logits, [channels, kBlockPitch]: what the loss and its gradient
// do with the values while they lie in the innermost cache.
#pragma once

#include "../upsample_bilinear2d/cpu_cells.h"
#include "../vector_math.h"

namespace atrousx {

// best[j] = max over channels, sum[j] = sum over channels of exp(value - best)
struct SoftmaxSums {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* values, int64_t channels, int64_t count, A* best,
                                        A* sum) {
    for (int64_t j = 0; j < count; ++j) {
      best[j] = values[j];
      sum[j] = A(0);
    }
    for (int64_t c = 1; c < channels; ++c)
      for (int64_t j = 0; j < count; ++j) best[j] = max_of(best[j], values[c * kBlockPitch + j]);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t j = 0; j < count; ++j)
        sum[j] += exp_nonpositive(values[c * kBlockPitch + j] - best[j]);
  }
};

// weighted[j] = sum over channels of weight * value; a null weight is 1.
struct WeightedSums {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* values, const A* class_weight, int64_t channels,
                                        int64_t count, A* weighted) {
    for (int64_t j = 0; j < count; ++j) weighted[j] = A(0);
    for (int64_t c = 0; c < channels; ++c) {
      const A w = class_weight == nullptr ? A(1) : class_weight[c];
      for (int64_t j = 0; j < count; ++j) weighted[j] += w * values[c * kBlockPitch + j];
    }
  }
};

// values[c][j] = scale[j] * exp(value - lse[j]) - spread[j] * weight[c]: the gradient but for the
// term of the pixel's own label.
struct SoftmaxSlopes {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(A* values, int64_t channels, int64_t count, const A* lse,
                                        const A* scale, const A* spread, const A* class_weight) {
    for (int64_t c = 0; c < channels; ++c) {
      A* row = values + c * kBlockPitch;
      const A w = class_weight == nullptr ? A(1) : class_weight[c];
      for (int64_t j = 0; j < count; ++j)
        row[j] = scale[j] * exp_nonpositive(row[j] - lse[j]) - spread[j] * w;
      // The lanes past the block's end meet weights of zero and must be finite.
      for (int64_t j = count; j < kBlockPitch; ++j) row[j] = A(0);
    }
  }
};

// The transpose of InterpolateBlock: adds a block's gradients to a row of inputs.
struct GatherBlock {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* values,  // [channels, kBlockPitch]
                                        int64_t channels, int64_t width, const Cell* cells,
                                        int64_t cell_count,
                                        const A* weight_lower,  // padded, at the first cell
                                        const A* weight_upper,
                                        A* row) {  // [channels, width]
    for (int64_t c = 0; c < channels; ++c) {
      const A *from = values + c * kBlockPitch, *wl = weight_lower, *wu = weight_upper;
      A* to = row + c * width;
      for (int64_t k = 0; k < cell_count; ++k) {
        A lower[kCellLanes] = {}, upper[kCellLanes] = {};
        for (int64_t j = 0; j < cells[k].count; j += kCellLanes) {
          const A* g = from + (cells[k].first - cells[0].first) + j;
          for (int64_t lane = 0; lane < kCellLanes; ++lane) {
            lower[lane] += wl[lane] * g[lane];
            upper[lane] += wu[lane] * g[lane];
          }
          wl += kCellLanes;
          wu += kCellLanes;
        }
        for (int64_t half = kCellLanes / 2; half > 0; half /= 2)
          for (int64_t lane = 0; lane < half; ++lane) {
            lower[lane] += lower[lane + half];
            upper[lane] += upper[lane + half];
          }
        to[cells[k].lower] += lower[0];
        to[cells[k].upper] += upper[0];
      }
    }
  }
};

// lower += (1 - weight) * row, upper += weight * row
struct AddToRows {
  template <typename A>
  static ATROUSX_ALWAYS_INLINE void run(const A* row, A weight, A* lower, A* upper, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      lower[j] += (A(1) - weight) * row[j];
      upper[j] += weight * row[j];
    }
  }
};

}  // namespace atrousx
