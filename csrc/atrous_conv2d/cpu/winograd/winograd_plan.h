// Minimal filtering (Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308): 3x3 filters without
// stride by fewer multiplications than they have live taps. How a map is divided for it, and when
// that pays; without torch.
//
// Along an axis pixels that share taps lie the dilation apart: a dilated filter is a plain one on
// every phase of the map. A phase is cut into tiles, whose sources x and filter g0 g1 g2 are
// transformed to a few numbers each, its points, multiplied, and transformed to the destinations y:
//
//   F(m, 3), m + 2 points   a tile of m pixels reads m + 2: the product of a polynomial of degree 2
//     and one of degree m - 1, transposed, by the values at 0, infinity, 1, -1, 2, -2, in this
//     order: the fewer pixels a tile has, the fewer of the filter's points it takes. m = 2:
//     (x0 - x2) g0,  (x3 - x1) g2,  (x1 + x2) (g0 + g1 + g2) / 2,  (x2 - x1) (g0 - g1 + g2) / 2
//     y0 = m0 + m2 + m3,  y1 = m2 - m3 + m1                            4 products for 6
//   pairs, 3 points         phases of two pixels x0 x1, all else is padding
//     (x0 - x1) g1,  x1 (g1 + g2),  x0 (g0 + g1)
//     y0 = m1 + m0,  y1 = m2 - m0                                      3 products for 4
//     (x0 + x1, g2 - g1 and g0 - g1 would do, too, and round more where no x is negative)
//   triples, 5 points       phases of three: y = (g1 + g2 S + (g0 - g2) L) x, where L x = (0, x0,
//   x1)
//     and S = L + its transpose has the eigenvalues 0, q, -q with q^2 = 2
//     (x0 - x2) g1 / 2,  (x0 + q x1 + x2) (g1 + q g2) / 4,  (x0 - q x1 + x2) (g1 - q g2) / 4,
//     x0 (g0 - g2),  x1 (g0 - g2)
//     y0 = m0 + m1 + m2,  y1 = q (m1 - m2) + m3,  y2 = m1 + m2 - m0 + m4       5 products for 7
//   quads, 7 points         phases of four, or of three and a zero, likewise: S has the eigenvalues
//     f, f - 1, 1 - f, -f with f^2 = f + 1, and three points take g0 - g2     7 products for 10
//
// A phase of fewer pixels has the first points of pairs and triples alone. In two dimensions
// points multiply: a tile is a pair of tiles of the axes.
//
// In float32 tiles of F(m, 3) have up to two pixels: more, with larger coefficients, would lose
// accuracy. Maps of a half type lose nothing by them where numbers are
// transformed and multiplied in float32: tiles have up to four.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "atrous_conv2d/plan.h"

namespace atrousx {

// The forms, by their points: F(2, 3) and, of half types, F(4, 3); pairs, triples and quads.
constexpr int kTilePoints = 4, kHalfPoints = 6, kPairPoints = 3, kTriplePoints = 5, kQuadPoints = 7;
// Whether a tile is a whole phase.
constexpr bool is_whole_phase(int form) { return form % 2 == 1; }
constexpr int winograd_most_pixels(int form) {
  return is_whole_phase(form) ? (form + 1) / 2 : form - 2;
}
constexpr int winograd_least_pixels(int form) { return form == kQuadPoints ? 3 : 1; }
// A filter's numbers: the last points of triples and quads share one.
constexpr int winograd_filters(int form) {
  return form == kTriplePoints ? 4 : form == kQuadPoints ? 5 : form;
}

// A tile along an axis: its form and its pixels.
struct WinogradTile {
  int form, pixels;

  constexpr int points() const {
    if (form == kTilePoints) return form;  // of one pixel, too: three would round more
    if (form == kPairPoints) return 2 * pixels - 1;
    if (form == kQuadPoints) return pixels + 3;
    return form == kTriplePoints && pixels == 1 ? 1 : pixels + 2;
  }
  constexpr int sources() const { return is_whole_phase(form) ? pixels : pixels + 2; }
};

// Equal tiles along an axis, each by its first destination; the others lie a step apart, and
// sources begin `offset` before it or, of whole phases, at it.
struct WinogradTiles {
  WinogradTile tile;
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

// Whether a form serves the axis.
inline bool winograd_serves(const TapAxis& any, int form) {
  const TapAxis axis = without_mirror(any);
  const bool plain = axis.taps == 3 && axis.scale == 1 && axis.divisor == 1 && axis.step > 0;
  const bool whole =
      axis.destinations == axis.sources && axis.offset == -axis.step &&
      axis.destinations <= winograd_most_pixels(form) * axis.step &&
      (form != kQuadPoints || axis.destinations >= winograd_least_pixels(form) * axis.step);
  const bool known = form >= kPairPoints && form <= kQuadPoints;
  return known && plain && (whole || !is_whole_phase(form));
}

// The forms of both axes, rows first.
using WinogradPoints = std::array<int, 2>;

inline int64_t winograd_filters(const WinogradPoints& points) {
  return int64_t{winograd_filters(points[0])} * winograd_filters(points[1]);
}
// Which of them a tile's point takes.
inline int64_t winograd_filter(int64_t row, int64_t column, const WinogradPoints& points) {
  const int64_t rows = winograd_filters(points[0]), columns = winograd_filters(points[1]);
  return std::min(row, rows - 1) * columns + std::min(column, columns - 1);
}

inline bool winograd_serves(const GatherShape& shape, const WinogradPoints& points) {
  return shape.groups == 1 && winograd_serves(shape.rows, points[0]) &&
         winograd_serves(shape.columns, points[1]);
}

// The tiles of an axis without mirror, the largest first: a phase has as many of those as fit, and
// one for the rest.
inline std::vector<WinogradTiles> winograd_tiles(const TapAxis& axis, int form) {
  const int64_t size = axis.destinations, step = axis.step, most = winograd_most_pixels(form);
  std::vector<WinogradTiles> all;
  for (int64_t pixels = most; pixels > 0; --pixels) {
    WinogradTiles tiles{{form, static_cast<int>(pixels)}, {}};
    for (int64_t phase = 0; phase < std::min(step, size); ++phase) {
      const int64_t count = ceil_div(size - phase, step), rest = count % most;
      for (int64_t first = 0; pixels == most && first < count - rest; first += most)
        tiles.firsts.push_back(phase + first * step);
      if (pixels == rest) tiles.firsts.push_back(phase + (count - rest) * step);
    }
    if (!tiles.firsts.empty()) all.push_back(std::move(tiles));
  }
  return all;
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
    return offsets(strides, rows_.tiles.tile.sources(), columns_.tiles.tile.sources(),
                   [](const Axis& axis, int64_t first) {
                     if (!is_whole_phase(axis.tiles.tile.form)) first += axis.axis.offset;
                     return [&axis, first](int i) {
                       const int64_t at = first + i * axis.axis.step;
                       return at < axis.axis.sources ? at : -1;
                     };
                   });
  }
  // Of each tile's destinations, rows first.
  std::vector<int64_t> destinations(const Strides4& strides) const {
    return offsets(strides, rows_.tiles.tile.pixels, columns_.tiles.tile.pixels,
                   [](const Axis& axis, int64_t first) {
                     return [&axis, first](int i) { return first + i * axis.axis.step; };
                   });
  }

 private:
  struct Axis {
    const TapAxis& axis;
    const WinogradTiles& tiles;
    int64_t count() const { return static_cast<int64_t>(tiles.firsts.size()); }
  };

  // Of high x wide pixels of each tile; from(axis, first)(i): the i-th of them along an axis,
  // negative if there is none.
  template <typename F>
  std::vector<int64_t> offsets(const Strides4& strides, int high, int wide, F&& from) const {
    std::vector<int64_t> result;
    result.reserve(count_ * high * wide);
    for (int64_t t = first_; t < first_ + count_; ++t) {
      const int64_t line = t / columns_.count(), n = line / rows_.count();
      const auto column = from(columns_, columns_.tiles.firsts[t % columns_.count()]);
      const auto row = from(rows_, rows_.tiles.firsts[line % rows_.count()]);
      for (int i = 0; i < high; ++i)
        for (int j = 0; j < wide; ++j)
          result.push_back(row(i) < 0 || column(j) < 0 ? -1
                                                       : strides.offset(n, 0, row(i), column(j)));
    }
    return result;
  }

  const Axis rows_, columns_;
  const int64_t first_, count_;
};

// The points of all tiles along an axis: as winograd_tiles has them, without a list of them. Phases
// have a pixel more up to the remainder of the axis by the step.
inline int64_t winograd_products(const TapAxis& axis, int form) {
  const int64_t most = winograd_most_pixels(form);
  const auto of_phase = [&](int64_t pixels) {
    const WinogradTile whole{form, static_cast<int>(most)};
    const WinogradTile rest{form, static_cast<int>(pixels % most)};
    return pixels / most * whole.points() + (rest.pixels > 0 ? rest.points() : 0);
  };
  const int64_t least = axis.destinations / axis.step, longer = axis.destinations % axis.step;
  const int64_t phases = std::min(axis.step, axis.destinations);
  return longer * of_phase(least + 1) + (phases - longer) * of_phase(least);
}

inline int64_t live_products(const TapAxis& axis) {
  int64_t products = 0;
  for (int64_t tap = 0; tap < axis.taps; ++tap) products += axis.span(tap).destinations.count;
  return products;
}

// What the rule weighs apart from sizes.
struct WinogradCosts {
  bool half;    // maps are of a half type
  double live;  // of a live product, in those of float32
  bool frozen;  // filters are transformed beforehand, not at every call
};

// The points by which a pass should go, or none where its live taps are the faster.
inline std::optional<WinogradPoints> winograd_pays(const GatherShape& shape,
                                                   const WinogradCosts& costs) {
  // Fewer channels, or outputs, do not outweigh the transforms of sources and sums.
  constexpr int64_t kLeastWidth = 32, kLeastFilters = 32 * 64;
  // Fewer are summed in too few pieces: whole phases would round almost twice as much as PyTorch.
  constexpr int64_t kLeastPairs = 64, kLeastTriples = 256;
  constexpr double kMostShare = 0.75;  // of the live products' cost
  // Of a number of a filter, transformed or not, in products: there are more in half types, where
  // products are fewer, too.
  const double pack_cost = costs.half ? 60 : 40;
  const int plain = costs.half ? kHalfPoints : kTilePoints;
  if (std::min(shape.outer, shape.inner) < kLeastWidth ||
      shape.outer * shape.inner < kLeastFilters || !winograd_serves(shape, {plain, plain}))
    return std::nullopt;
  const TapAxis rows = without_mirror(shape.rows), columns = without_mirror(shape.columns);
  const auto best = [&](const TapAxis& axis) {
    const bool pairs = shape.inner >= kLeastPairs && winograd_serves(axis, kPairPoints);
    return pairs && !costs.half ? kPairPoints : plain;
  };
  const auto cost = [&](const WinogradPoints& points) {
    const int64_t products =
        winograd_products(rows, points[0]) * winograd_products(columns, points[1]);
    const double packing =
        costs.frozen ? 0 : pack_cost * static_cast<double>(winograd_filters(points));
    return static_cast<double>(shape.batch * products) + packing;
  };
  WinogradPoints points{best(rows), best(columns)};
  for (int form : {kTriplePoints, kQuadPoints})
    if (!costs.half && shape.inner >= kLeastTriples && winograd_serves(shape, {form, form}) &&
        cost({form, form}) < cost(points))
      points = {form, form};
  const int64_t live = live_products(rows) * live_products(columns);
  const double otherwise = costs.live * static_cast<double>(shape.batch * live) +
                           (costs.frozen ? 0 : pack_cost * static_cast<double>(shape.taps()));
  if (cost(points) > kMostShare * otherwise) return std::nullopt;
  return points;
}

}  // namespace atrousx
