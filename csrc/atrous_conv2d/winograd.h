// Minimal filtering (Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308): 3x3 filters without
// stride by fewer multiplications than they have live taps. How a map is divided for it, and when
// that pays; without torch.
//
// Along an axis pixels that share taps lie the dilation apart: a dilated filter is a plain one on
// every phase of the map. A phase is cut into tiles of two pixels, in one of two forms:
//
//   F(2, 3), 4 points       sources x0..x3, a filter g0 g1 g2, destinations y0 y1
//     (x0 - x2) g0,  (x1 + x2) (g0 + g1 + g2) / 2,  (x2 - x1) (g0 - g1 + g2) / 2,  (x1 - x3) g2
//     y0 = m0 + m1 + m2,  y1 = m1 - m2 - m3                            4 products for 6
//   pairs, 3 points         phases of two pixels x0 x1, all else is padding
//     (x0 - x1) g1,  x1 (g1 + g2),  x0 (g0 + g1)
//     y0 = m1 + m0,  y1 = m2 - m0                                      3 products for 4
//     (x0 + x1, g2 - g1 and g0 - g1 would do, too, and round more where no x is negative)
//
// A phase of a single pixel has the first point of the second form alone. In two dimensions points
// multiply: a tile is a pair of tiles of the axes. Coefficients are 0, 1, -1 and 1/2: tiles of more
// pixels, with larger ones, would lose accuracy.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "plan.h"

namespace atrousx {

constexpr int kTilePoints = 4, kPairPoints = 3;  // the forms, by the points of a filter

// Sources and destinations of a tile along an axis, by its points. Sources of an F(2, 3) tile begin
// `offset` before its first destination, those of the others at it.
constexpr int winograd_sources(int points) { return points == 4 ? 4 : points == 3 ? 2 : 1; }
constexpr int winograd_destinations(int points) { return points == 1 ? 1 : 2; }

// Tiles along an axis that have the same points: each by its first destination; the second, where
// there is one, lies a step further on.
struct WinogradTiles {
  int points;
  std::vector<int64_t> firsts;
};

// The axis with its taps in the order of positive steps.
inline TapAxis without_mirror(TapAxis axis) {
  if (axis.step < 0) {
    axis.offset += 2 * axis.step;
    axis.step = -axis.step;
  }
  return axis;
}

// Whether a filter of so many points serves the axis.
inline bool winograd_serves(const TapAxis& any, int points) {
  const TapAxis axis = without_mirror(any);
  const bool plain = axis.taps == 3 && axis.scale == 1 && axis.divisor == 1 && axis.step > 0;
  const bool pairs = axis.destinations == axis.sources && axis.offset == -axis.step &&
                     axis.destinations <= 2 * axis.step;
  return plain && (points == kTilePoints || (points == kPairPoints && pairs));
}

// A filter's points along both axes, rows first.
using WinogradPoints = std::array<int, 2>;

// Which of a filter's points a tile's `own` point is, the tile having so many along its columns.
inline int64_t filter_point(int64_t own, int tile_columns, const WinogradPoints& filter) {
  return own / tile_columns * filter[1] + own % tile_columns;
}

inline bool winograd_serves(const GatherShape& shape, const WinogradPoints& points) {
  return shape.groups == 1 && winograd_serves(shape.rows, points[0]) &&
         winograd_serves(shape.columns, points[1]);
}

// The tiles of an axis without mirror.
inline std::vector<WinogradTiles> winograd_tiles(const TapAxis& axis, int points) {
  const int64_t size = axis.destinations, step = axis.step;
  if (points == kPairPoints) {
    WinogradTiles pairs{3, {}}, singles{1, {}};
    for (int64_t d = 0; d < std::min(step, size); ++d)
      (d + step < size ? pairs : singles).firsts.push_back(d);
    return {pairs, singles};
  }
  WinogradTiles tiles{4, {}};
  for (int64_t phase = 0; phase < std::min(step, size); ++phase)
    for (int64_t d = phase; d < size; d += 2 * step) tiles.firsts.push_back(d);
  return {tiles};
}

// Where some tiles of a batch read and write: tiles [first, first + count) of these rows and
// columns, columns fastest.
class WinogradOffsets {
 public:
  WinogradOffsets(const TapAxis& rows, const TapAxis& columns, const WinogradTiles& row_tiles,
                  const WinogradTiles& column_tiles, int64_t first, int64_t count)
      : rows_{rows, row_tiles}, columns_{columns, column_tiles}, first_(first), count_(count) {}

  // Of each tile's sources, rows first; -1 in padding.
  std::vector<int64_t> sources(const Strides4& strides) const {
    return offsets(strides, winograd_sources(rows_.tiles.points),
                   winograd_sources(columns_.tiles.points),
                   [](const Axis& axis, int64_t tile, int i) {
                     const int64_t begin = axis.tiles.points == kTilePoints ? axis.axis.offset : 0;
                     const int64_t at = axis.tiles.firsts[tile] + begin + i * axis.axis.step;
                     return at < axis.axis.sources ? at : -1;
                   });
  }
  // Of each tile's destinations, rows first; -1 past the map.
  std::vector<int64_t> destinations(const Strides4& strides) const {
    return offsets(strides, winograd_destinations(rows_.tiles.points),
                   winograd_destinations(columns_.tiles.points),
                   [](const Axis& axis, int64_t tile, int i) {
                     const int64_t at = axis.tiles.firsts[tile] + i * axis.axis.step;
                     return at < axis.axis.destinations ? at : -1;
                   });
  }

 private:
  struct Axis {
    const TapAxis& axis;
    const WinogradTiles& tiles;
    int64_t count() const { return static_cast<int64_t>(tiles.firsts.size()); }
  };

  // at(axis, tile, i): the i-th place of a tile along an axis, negative if there is none.
  template <typename F>
  std::vector<int64_t> offsets(const Strides4& strides, int high, int wide, F&& at) const {
    std::vector<int64_t> result;
    result.reserve(count_ * high * wide);
    for (int64_t t = first_; t < first_ + count_; ++t) {
      const int64_t column = t % columns_.count(), line = t / columns_.count();
      const int64_t n = line / rows_.count(), row = line % rows_.count();
      int64_t w[4];
      for (int j = 0; j < wide; ++j) w[j] = at(columns_, column, j);
      for (int i = 0; i < high; ++i) {
        const int64_t h = at(rows_, row, i);
        for (int j = 0; j < wide; ++j)
          result.push_back(h < 0 || w[j] < 0 ? -1 : strides.offset(n, 0, h, w[j]));
      }
    }
    return result;
  }

  const Axis rows_, columns_;
  const int64_t first_, count_;
};

inline int64_t winograd_products(const TapAxis& axis, int points) {
  int64_t products = 0;
  for (const WinogradTiles& tiles : winograd_tiles(axis, points))
    products += tiles.points * static_cast<int64_t>(tiles.firsts.size());
  return products;
}

inline int64_t live_products(const TapAxis& axis) {
  int64_t products = 0;
  for (int64_t tap = 0; tap < axis.taps; ++tap) products += axis.span(tap).destinations.count;
  return products;
}

// The points by which a pass in float32 should go, or none where its live taps are the faster.
// frozen: filters are transformed beforehand, not at every call.
inline std::optional<WinogradPoints> winograd_pays(const GatherShape& shape, bool frozen) {
  // Fewer channels, or outputs, do not outweigh the transforms of sources and sums.
  constexpr int64_t kLeastWidth = 32, kLeastFilters = 32 * 64;
  // So few are summed in one piece: pairs would round more than twice as much as PyTorch does.
  constexpr int64_t kLeastPairs = 64;
  constexpr double kMostShare = 0.75;  // of the live products
  // What packing a filter costs, in products for each number of it, transformed or not.
  constexpr double kPointCost = 90, kTapCost = 60;
  const WinogradPoints plain{kTilePoints, kTilePoints};
  if (std::min(shape.outer, shape.inner) < kLeastWidth ||
      shape.outer * shape.inner < kLeastFilters || !winograd_serves(shape, plain))
    return std::nullopt;
  const TapAxis rows = without_mirror(shape.rows), columns = without_mirror(shape.columns);
  const auto best = [&](const TapAxis& axis) {
    const bool pairs = shape.inner >= kLeastPairs && winograd_serves(axis, kPairPoints);
    return pairs ? kPairPoints : kTilePoints;
  };
  const WinogradPoints points{best(rows), best(columns)};
  const int64_t live = live_products(rows) * live_products(columns);
  const int64_t minimal =
      winograd_products(rows, points[0]) * winograd_products(columns, points[1]);
  const double before = frozen ? 0 : kPointCost * points[0] * points[1];
  const double otherwise = frozen ? 0 : kTapCost * static_cast<double>(shape.taps());
  if (static_cast<double>(shape.batch * minimal) + before >
      kMostShare * (static_cast<double>(shape.batch * live) + otherwise))
    return std::nullopt;
  return points;
}

}  // namespace atrousx
