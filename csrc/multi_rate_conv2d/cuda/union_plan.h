// Summed branches as one convolution over the union of their taps. This file computes which taps
// are live where, for passes with stride 1 that keep the map's size. It needs no torch.
//
// For each pass, rows and columns are live independently. The borders of all passes together cut an
// axis into few classes. Within a class every pass has the same live taps. Pairs of a row class and
// a column class are cut into tiles of pixels, numbered across the batch.
#pragma once

#include <optional>

#include "atrous_conv2d/plan_cache.h"
#include "multi_rate_conv2d/plan.h"

namespace atrousx {

// A pass's taps along an axis: tap t of destination d reads d + offset + t * step.
struct UnionTaps {
  int count, offset, step;

  // The live taps at a destination. They are adjacent, because sources ascend or descend with the
  // taps.
  ATROUSX_HOST_DEVICE constexpr void live(int destination, int extent, int& first,
                                          int& live_count) const {
    first = 0;
    live_count = 0;
    for (int t = 0; t < count; ++t) {
      const int source = destination + offset + t * step;
      if (source >= 0 && source < extent && live_count++ == 0) first = t;
    }
  }
};

// The plan is small enough to be a kernel's argument, together with the addresses of the weights.
struct UnionPlan {
  using HoldsNoAddress = void;
  static constexpr int kMaxPasses = 16, kMaxClasses = 20;

  int height, width, passes, row_classes, column_classes;
  UnionTaps rows[kMaxPasses], columns[kMaxPasses];
  int first_row[kMaxClasses + 1], first_column[kMaxClasses + 1];  // of each class, then the extent
  int first_tile[kMaxClasses * kMaxClasses + 1];  // of each pair, then the number of tiles
  int tile_pixels;

  ATROUSX_HOST_DEVICE constexpr int tiles() const {
    return first_tile[row_classes * column_classes];
  }
};

// Up to tile_pixels pixels of a pair of classes, numbered across the batch, columns fastest.
struct UnionTile {
  int row, column, rows, columns;  // the rectangle of the pair
  int64_t first, pixels;

  struct Pixel {
    int64_t n, row, column;
  };
  ATROUSX_HOST_DEVICE constexpr Pixel pixel(int64_t i) const {
    const int64_t line = (first + i) / columns;
    return {line / rows, row + line % rows, column + (first + i) % columns};
  }
};

ATROUSX_HOST_DEVICE constexpr UnionTile union_tile(const UnionPlan& plan, int index,
                                                   int64_t batch) {
  int pair = 0, end = plan.row_classes * plan.column_classes;
  while (end - pair > 1) {  // first_tile[pair] <= index < first_tile[end]
    const int middle = (pair + end) / 2;
    plan.first_tile[middle] <= index ? pair = middle : end = middle;
  }
  const int r = pair / plan.column_classes, c = pair % plan.column_classes;
  UnionTile tile{plan.first_row[r],
                 plan.first_column[c],
                 plan.first_row[r + 1] - plan.first_row[r],
                 plan.first_column[c + 1] - plan.first_column[c],
                 int64_t{index - plan.first_tile[pair]} * plan.tile_pixels,
                 0};
  tile.pixels = min_of<int64_t>(plan.tile_pixels, batch * tile.rows * tile.columns - tile.first);
  return tile;
}

// Writes where each class of an axis begins, then the axis's extent. Returns the number of classes,
// or 0 if there are too many.
inline int union_classes(const std::vector<TapAxis>& axes, int* first) {
  std::vector<int64_t> borders = {0, axes[0].destinations};
  for (const TapAxis& axis : axes)
    for (int64_t t = 0; t < axis.taps; ++t) {
      const Progression live = axis.span(t).destinations;
      if (live.count == 0) continue;
      borders.push_back(live.first);
      borders.push_back(live.at(live.count));
    }
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  if (borders.size() > UnionPlan::kMaxClasses + 1) return 0;
  std::copy(borders.begin(), borders.end(), first);
  return static_cast<int>(borders.size()) - 1;
}

inline UnionTaps union_taps(const TapAxis& axis) {
  return {static_cast<int>(axis.taps), static_cast<int>(axis.offset), static_cast<int>(axis.step)};
}

// Returns the plan of passes over one map of N images, or nothing if it does not fit.
inline std::optional<UnionPlan> union_plan(const std::vector<RatePass>& passes, int64_t batch,
                                           int64_t tile_pixels) {
  const GatherShape& shape = passes[0].shape;
  const int64_t height = shape.rows.destinations, width = shape.columns.destinations;
  UnionPlan plan{};
  if (passes.size() > UnionPlan::kMaxPasses || batch * height * width > INT32_MAX) return {};
  std::vector<TapAxis> rows, columns;
  for (const RatePass& pass : passes) {
    rows.push_back(pass.shape.rows);
    columns.push_back(pass.shape.columns);
    for (const TapAxis& axis : {rows.back(), columns.back()})
      if (std::max(std::abs(axis.offset), std::abs(axis.step * axis.taps)) > INT32_MAX / 4)
        return {};
    plan.rows[plan.passes] = union_taps(rows.back());
    plan.columns[plan.passes++] = union_taps(columns.back());
  }
  plan.height = static_cast<int>(height);
  plan.width = static_cast<int>(width);
  plan.row_classes = union_classes(rows, plan.first_row);
  plan.column_classes = union_classes(columns, plan.first_column);
  if (plan.row_classes * plan.column_classes == 0) return {};
  plan.tile_pixels = static_cast<int>(tile_pixels);
  for (int pair = 0; pair < plan.row_classes * plan.column_classes; ++pair) {
    const int r = pair / plan.column_classes, c = pair % plan.column_classes;
    const int64_t pixels = batch * (plan.first_row[r + 1] - plan.first_row[r]) *
                           (plan.first_column[c + 1] - plan.first_column[c]);
    plan.first_tile[pair + 1] =
        plan.first_tile[pair] + static_cast<int>(ceil_div(pixels, tile_pixels));
  }
  return plan;
}

// The arguments on which union_plan depends: the row axis and the column axis of each pass, and the
// sizes.
struct UnionPlanKey {
  std::vector<TapAxis> axes;
  int64_t batch, tile_pixels;

  bool operator==(const UnionPlanKey&) const = default;
};

// Returns union_plan(...), cached for the geometries used last.
inline std::shared_ptr<const std::optional<UnionPlan>> cached_union_plan(
    const std::vector<RatePass>& passes, int64_t batch, int64_t tile_pixels) {
  static auto* const cache = new LruCache<UnionPlanKey, std::optional<UnionPlan>, kMostPlans>;
  UnionPlanKey key{{}, batch, tile_pixels};
  for (const RatePass& pass : passes) {
    key.axes.push_back(pass.shape.rows);
    key.axes.push_back(pass.shape.columns);
  }
  return cache->get(key, [&] { return union_plan(passes, batch, tile_pixels); });
}

}  // namespace atrousx
