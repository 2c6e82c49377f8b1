// The tap plan: which filter taps read data at which pixels. Host and device code share it, and it
// does not use torch. A tap that would read padding is dead, and most kernels skip it. README.md
// names the exceptions.
//
// A gathering pass (forward or grad-input) sums values of a source map into a destination map.
// Along one axis
//   source = (destination * scale + offset + tap * step) / divisor
// A tap is live where the division is exact and the source lies on its map:
//   forward     oh -> ih   scale = stride, offset = -padding, step =  dilation, divisor = 1
//   grad-input  ih -> oh   scale = 1,      offset =  padding, step = -dilation, divisor = stride
// Rows and columns are live independently of each other. Along an axis, destinations with the same
// live taps form a class. There are few classes. The destinations of a class are an arithmetic
// progression, and so are its taps. All pixels of one row class and one column class have the same
// list of live taps, in every image of the batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "portable.h"

namespace atrousx {

struct Progression {
  int64_t first, step, count;

  ATROUSX_HOST_DEVICE constexpr int64_t at(int64_t i) const { return first + i * step; }
};

// The destinations at which one tap is live, and the sources that it reads there.
// destinations.at(j) reads source_first + j * source_step.
struct TapSpan {
  Progression destinations;
  int64_t source_first, source_step;
};

struct TapAxis {
  int64_t destinations, sources, taps;
  int64_t scale, offset, step, divisor;  // scale or divisor is 1, or both

  bool operator==(const TapAxis&) const = default;

  static TapAxis forward(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t padding,
                         int64_t dilation) {
    return {out, in, taps, stride, -padding, dilation, 1};
  }
  static TapAxis grad_input(int64_t in, int64_t out, int64_t taps, int64_t stride, int64_t padding,
                            int64_t dilation) {
    return {in, out, taps, 1, padding, -dilation, stride};
  }

  ATROUSX_HOST_DEVICE constexpr int64_t numerator(int64_t destination, int64_t tap) const {
    return destination * scale + offset + tap * step;
  }

  // Returns the source that a tap reads, or -1 where the tap is dead.
  ATROUSX_HOST_DEVICE constexpr int64_t source(int64_t destination, int64_t tap) const {
    const int64_t n = numerator(destination, tap);
    if (n < 0 || n % divisor != 0) return -1;
    return n / divisor < sources ? n / divisor : -1;
  }

  ATROUSX_HOST_DEVICE constexpr TapSpan span(int64_t tap) const {
    // The first destination with an exact division. If divisor is not 1, scale is 1.
    const int64_t remainder = (offset + tap * step) % divisor;
    const int64_t phase = remainder > 0 ? divisor - remainder : -remainder;
    const int64_t source_first = numerator(phase, tap) / divisor;
    const int64_t candidates =
        phase < destinations ? ceil_div<int64_t>(destinations - phase, divisor) : 0;
    // From one candidate to the next the source moves by `scale`.
    const int64_t begin =
        min_of(source_first < 0 ? ceil_div<int64_t>(-source_first, scale) : 0, candidates);
    const int64_t end =
        source_first < sources ? min_of(ceil_div(sources - source_first, scale), candidates) : 0;
    return {{phase + begin * divisor, divisor, max_of(end - begin, int64_t{0})},
            source_first + begin * scale,
            scale};
  }
};

// Destinations with the same live taps. For taps.at(i), destinations.at(j) reads
// source_first + j * source_per_destination + i * source_per_tap.
struct AxisClass {
  Progression destinations, taps;
  int64_t source_first, source_per_destination, source_per_tap;
};

// Returns all classes of an axis, also those without a live tap. Each destination of the axis is in
// exactly one class. The cost depends on the number of taps, not on the size of the map.
inline std::vector<AxisClass> axis_classes(const TapAxis& axis) {
  std::vector<AxisClass> classes;
  // The distance between taps whose division is exact at the same destinations.
  const int64_t tap_step = axis.divisor / std::gcd(axis.divisor, axis.step);
  for (int64_t phase = 0; phase < std::min(axis.divisor, axis.destinations); ++phase) {
    std::vector<int64_t> borders = {phase};  // where the set of live taps changes
    for (int64_t k = 0; k < axis.taps; ++k) {
      const Progression live = axis.span(k).destinations;
      if (live.count == 0 || live.first % axis.divisor != phase) continue;
      borders.push_back(live.first);
      borders.push_back(live.at(live.count));
    }
    std::sort(borders.begin(), borders.end());
    borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
    for (size_t b = 0; b < borders.size(); ++b) {
      const int64_t first = borders[b];
      if (first >= axis.destinations) break;
      const int64_t end =
          b + 1 < borders.size() ? std::min(borders[b + 1], axis.destinations) : axis.destinations;
      Progression taps{0, tap_step, 0};
      for (int64_t k = 0; k < axis.taps; ++k)
        if (axis.source(first, k) >= 0 && taps.count++ == 0) taps.first = k;
      classes.push_back({{first, axis.divisor, ceil_div(end - first, axis.divisor)},
                         taps,
                         taps.count > 0 ? axis.source(first, taps.first) : 0,
                         axis.scale,
                         axis.step * tap_step / axis.divisor});
    }
  }
  return classes;
}

// A part of the destinations of a row class and a column class. The pixels of such a pair are
// numbered through the whole batch, columns fastest. This tile holds [first, first + pixels).
struct Tile {
  AxisClass rows, columns;
  int64_t first, pixels;

  struct Pixel {
    int64_t n, row, column;  // row and column are numbers within the classes
  };
  ATROUSX_HOST_DEVICE constexpr Pixel pixel(int64_t i) const {
    const int64_t line = (first + i) / columns.destinations.count;
    return {line / rows.destinations.count, line % rows.destinations.count,
            (first + i) % columns.destinations.count};
  }
  ATROUSX_HOST_DEVICE constexpr int64_t destination_offset(const Pixel& p,
                                                           const Strides4& strides) const {
    return strides.offset(p.n, 0, rows.destinations.at(p.row), columns.destinations.at(p.column));
  }
  // Returns the offset that the first live tap of a pixel reads. Live tap (i, j) reads this offset
  // plus tap_offset(i, j).
  ATROUSX_HOST_DEVICE constexpr int64_t source_offset(const Pixel& p,
                                                      const Strides4& strides) const {
    return strides.offset(p.n, 0, rows.source_first + p.row * rows.source_per_destination,
                          columns.source_first + p.column * columns.source_per_destination);
  }
  ATROUSX_HOST_DEVICE constexpr int64_t tap_offset(int64_t i, int64_t j,
                                                   const Strides4& strides) const {
    return strides.offset(0, 0, i * rows.source_per_tap, j * columns.source_per_tap);
  }
  ATROUSX_HOST_DEVICE constexpr int64_t live_taps() const {
    return rows.taps.count * columns.taps.count;
  }
};

// A list of tiles that is small enough to be the argument of a kernel. It needs no copy to the
// device, so a CUDA graph can capture the launch. An axis with more than kMaxClasses classes needs
// several plans (tap_plans).
struct TapPlan {
  using HoldsNoAddress = void;
  static constexpr int kMaxClasses = 12;

  int row_count, column_count;
  AxisClass rows[kMaxClasses], columns[kMaxClasses];
  int64_t tile_pixels;
  int64_t first_tile[kMaxClasses * kMaxClasses + 1];  // of each pair, then the number of tiles

  ATROUSX_HOST_DEVICE constexpr int64_t tiles() const {
    return first_tile[row_count * column_count];
  }

  ATROUSX_HOST_DEVICE constexpr Tile tile(int64_t index, int64_t batch) const {
    int pair = 0;
    while (first_tile[pair + 1] <= index) ++pair;
    const AxisClass &r = rows[pair / column_count], &c = columns[pair % column_count];
    // The tiles are of about equal size, because a tile of a few pixels would read as much of the
    // weight as a full one.
    const int64_t total = batch * r.destinations.count * c.destinations.count;
    const int64_t i = index - first_tile[pair], count = first_tile[pair + 1] - first_tile[pair];
    const int64_t first = i * total / count;
    return {r, c, first, (i + 1) * total / count - first};
  }
};

inline std::vector<TapPlan> tap_plans(const TapAxis& row_axis, const TapAxis& column_axis,
                                      int64_t batch, int64_t tile_pixels) {
  constexpr size_t kMax = TapPlan::kMaxClasses;
  const auto rows = axis_classes(row_axis), columns = axis_classes(column_axis);
  std::vector<TapPlan> plans;
  for (size_t r = 0; r < rows.size(); r += kMax)
    for (size_t c = 0; c < columns.size(); c += kMax) {
      TapPlan plan{};
      plan.row_count = static_cast<int>(std::min(kMax, rows.size() - r));
      plan.column_count = static_cast<int>(std::min(kMax, columns.size() - c));
      std::copy_n(rows.begin() + r, plan.row_count, plan.rows);
      std::copy_n(columns.begin() + c, plan.column_count, plan.columns);
      plan.tile_pixels = tile_pixels;
      for (int pair = 0; pair < plan.row_count * plan.column_count; ++pair)
        plan.first_tile[pair + 1] =
            plan.first_tile[pair] +
            ceil_div(batch * plan.rows[pair / plan.column_count].destinations.count *
                         plan.columns[pair % plan.column_count].destinations.count,
                     tile_pixels);
      plans.push_back(plan);
    }
  return plans;
}

// The sizes of a gathering pass. Within a group, each of `outer` destination channels is a sum over
// `inner` source channels. In the forward pass `outer` counts output channels and `inner` input
// channels. In grad-input it is the reverse.
struct GatherShape {
  using HoldsNoAddress = void;
  TapAxis rows, columns;
  int64_t batch, groups, outer, inner;

  ATROUSX_HOST_DEVICE int64_t taps() const { return rows.taps * columns.taps; }
};

// Element strides of a weight, with the names of the pass that reads it.
struct WeightStrides {
  using HoldsNoAddress = void;
  int64_t group, outer, inner, h, w;
};

// The epilogue of a sum: max(0, sum + bias + residual), where each part is optional. It is computed
// in the accumulation type and rounded once. The residual may be the destination itself. Several
// passes then add to it in place.
template <typename T>
struct Epilogue {
  const T* bias = nullptr;      // [groups * outer] or null
  const T* residual = nullptr;  // [N, groups * outer, rows, columns], any strides, or null
  Strides4 residual_strides{};
  bool relu = false;

  // `residual_offset` is the offset of the element's residual. NaN stays NaN.
  ATROUSX_HOST_DEVICE T finish(Accumulate<T> sum, int64_t channel, int64_t residual_offset) const {
    using A = Accumulate<T>;
    if (bias != nullptr) sum += static_cast<A>(bias[channel]);
    if (residual != nullptr) sum += static_cast<A>(residual[residual_offset]);
    return static_cast<T>(relu && sum < A(0) ? A(0) : sum);
  }
};

// The sizes of a convolution: input [N, C, H, W], weight [K, C/groups, KH, KW],
// output [N, K, OH, OW]. The padding is that above and left of the map.
struct ConvGeometry {
  int64_t batch, channels, height, width;
  int64_t outputs, kernel_h, kernel_w, groups;
  int64_t out_h, out_w;
  int64_t stride_h, stride_w, padding_top, padding_left, dilation_h, dilation_w;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return outputs / groups; }

  GatherShape forward() const {
    return {TapAxis::forward(height, out_h, kernel_h, stride_h, padding_top, dilation_h),
            TapAxis::forward(width, out_w, kernel_w, stride_w, padding_left, dilation_w),
            batch,
            groups,
            group_outputs(),
            group_channels()};
  }
  GatherShape grad_input() const {
    return {TapAxis::grad_input(height, out_h, kernel_h, stride_h, padding_top, dilation_h),
            TapAxis::grad_input(width, out_w, kernel_w, stride_w, padding_left, dilation_w),
            batch,
            groups,
            group_channels(),
            group_outputs()};
  }
  WeightStrides forward_weight(const Strides4& s) const {
    return {group_outputs() * s.n, s.n, s.c, s.h, s.w};
  }
  WeightStrides grad_input_weight(const Strides4& s) const {
    return {group_outputs() * s.n, s.c, s.n, s.h, s.w};
  }
};

// Groups that are too narrow for a tile of a matrix product go to the direct kernels.
inline bool gathers_directly(const GatherShape& shape) { return shape.outer < 8; }
inline bool grad_weight_directly(const ConvGeometry& g) {
  return g.group_channels() * g.group_outputs() < 64;
}

// Returns into how many parts grad-weight splits its pixels, for about `wanted` tasks in all. The
// parts are summed in order. So the number may depend only on sizes and not on the number of
// threads.
inline int64_t grad_weight_splits(int64_t tasks, int64_t pixels, int64_t wanted) {
  constexpr int64_t kLeastPixels = 512;
  const int64_t useful = max_of(pixels / kLeastPixels, int64_t{1});
  return min_of(ceil_div(wanted, max_of(tasks, int64_t{1})), useful);
}

}  // namespace atrousx
