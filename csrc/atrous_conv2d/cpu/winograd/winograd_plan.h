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

// The forms of tiles along an axis. A form's number, which operators and packed weights have, is
// that of its largest tile's points.
enum class WinogradForm : int { kPairs = 3, kF2 = 4, kTriples = 5, kF4 = 6, kQuads = 7 };

// What tells forms apart.
struct WinogradTraits {
  WinogradForm form;
  bool half;                      // of half types, or of float32
  bool whole_phase;               // a tile is a whole phase
  bool mixes;                     // with another such form along the other axis
  int least_pixels, most_pixels;  // of a tile
  std::array<int, 5> points;      // of a tile of so many pixels
  int filters;                    // a filter's numbers; the last points may share one
  int64_t least_channels;         // fewer are summed in too few pieces: whole phases would round
                                  // almost twice as much as PyTorch
  double filter_cost;             // of a filter's number, transformed or not, in products
};

// A tile of F(2, 3) has four points if it has one pixel, too: three would round more. Filters cost
// more in half types, of which there are more numbers, and fewer products.
constexpr std::array<WinogradTraits, 5> kWinogradForms{{
    {WinogradForm::kPairs, false, true, true, 1, 2, {0, 1, 3}, 3, 64, 40},
    {WinogradForm::kF2, false, false, true, 1, 2, {0, 4, 4}, 4, 32, 40},
    {WinogradForm::kTriples, false, true, false, 1, 3, {0, 1, 4, 5}, 4, 256, 40},
    {WinogradForm::kF4, true, false, false, 1, 4, {0, 3, 4, 5, 6}, 6, 32, 60},
    {WinogradForm::kQuads, false, true, false, 3, 4, {0, 0, 0, 6, 7}, 5, 256, 40},
}};

constexpr const WinogradTraits& traits(WinogradForm form) {
  switch (form) {
    case WinogradForm::kPairs:
      return kWinogradForms[0];
    case WinogradForm::kF2:
      return kWinogradForms[1];
    case WinogradForm::kTriples:
      return kWinogradForms[2];
    case WinogradForm::kF4:
      return kWinogradForms[3];
    default:
      return kWinogradForms[4];
  }
}
static_assert([] {
  for (const WinogradTraits& own : kWinogradForms)
    if (traits(own.form).form != own.form) return false;
  return true;
}());
constexpr int64_t form_number(WinogradForm form) { return static_cast<int64_t>(form); }

// A tile along an axis: its form and its pixels.
struct WinogradTile {
  WinogradForm form;
  int pixels;

  constexpr int points() const { return traits(form).points[pixels]; }
  constexpr int sources() const { return traits(form).whole_phase ? pixels : pixels + 2; }
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
inline bool winograd_serves(const TapAxis& any, WinogradForm form) {
  const TapAxis axis = without_mirror(any);
  const WinogradTraits& own = traits(form);
  const bool plain = axis.taps == 3 && axis.scale == 1 && axis.divisor == 1 && axis.step > 0;
  if (!plain || !own.whole_phase) return plain;
  // Every phase must be one tile.
  return axis.destinations == axis.sources && axis.offset == -axis.step &&
         axis.destinations <= own.most_pixels * axis.step &&
         (own.least_pixels == 1 || axis.destinations >= own.least_pixels * axis.step);
}

// The forms of both axes, rows first.
using WinogradPoints = std::array<WinogradForm, 2>;

// Forms by their numbers, or none where no tiles of a half type or of float32 have these.
inline std::optional<WinogradPoints> points_by_numbers(int64_t rows, int64_t columns, bool half) {
  const WinogradTraits* found[2] = {};
  for (const WinogradTraits& own : kWinogradForms) {
    if (own.half == half && form_number(own.form) == rows) found[0] = &own;
    if (own.half == half && form_number(own.form) == columns) found[1] = &own;
  }
  if (found[0] == nullptr || found[1] == nullptr) return std::nullopt;
  if (found[0] != found[1] && !(found[0]->mixes && found[1]->mixes)) return std::nullopt;
  return WinogradPoints{found[0]->form, found[1]->form};
}

// Of a largest tile along an axis.
constexpr int winograd_most_points(WinogradForm form) {
  return traits(form).points[traits(form).most_pixels];
}

inline int64_t winograd_filters(const WinogradPoints& points) {
  return int64_t{traits(points[0]).filters} * traits(points[1]).filters;
}
// Which of them a tile's point takes.
inline int64_t winograd_filter(int64_t row, int64_t column, const WinogradPoints& points) {
  const int64_t rows = traits(points[0]).filters, columns = traits(points[1]).filters;
  return std::min(row, rows - 1) * columns + std::min(column, columns - 1);
}

inline bool winograd_serves(const GatherShape& shape, const WinogradPoints& points) {
  return shape.groups == 1 && winograd_serves(shape.rows, points[0]) &&
         winograd_serves(shape.columns, points[1]);
}

// The tiles of an axis without mirror, the largest first: a phase has as many of those as fit, and
// one for the rest.
inline std::vector<WinogradTiles> winograd_tiles(const TapAxis& axis, WinogradForm form) {
  const int64_t size = axis.destinations, step = axis.step, most = traits(form).most_pixels;
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
                     first += axis.before;
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
    // From a tile's first destination to its first source.
    int64_t before = traits(tiles.tile.form).whole_phase ? 0 : axis.offset;
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
inline int64_t winograd_products(const TapAxis& axis, WinogradForm form) {
  const int64_t most = traits(form).most_pixels;
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

// Whether tiles of both forms may be had for a pass, and round as little as they should.
inline bool winograd_fits(const GatherShape& shape, const WinogradPoints& points, bool half) {
  for (const WinogradForm form : points)
    if (traits(form).half != half || shape.inner < traits(form).least_channels) return false;
  return winograd_serves(shape, points);
}

// The points by which a pass should go, or none where its live taps are the faster.
inline std::optional<WinogradPoints> winograd_pays(const GatherShape& shape,
                                                   const WinogradCosts& costs) {
  using enum WinogradForm;
  // Fewer channels, or outputs, do not outweigh the transforms of sources and sums.
  constexpr int64_t kLeastWidth = 32, kLeastFilters = 32 * 64;
  constexpr double kMostShare = 0.75;  // of the live products' cost
  const WinogradForm plain = costs.half ? kF4 : kF2;
  if (std::min(shape.outer, shape.inner) < kLeastWidth ||
      shape.outer * shape.inner < kLeastFilters || !winograd_serves(shape, {plain, plain}))
    return std::nullopt;
  const TapAxis rows = without_mirror(shape.rows), columns = without_mirror(shape.columns);
  const auto cost = [&](const WinogradPoints& points) {
    const int64_t products =
        winograd_products(rows, points[0]) * winograd_products(columns, points[1]);
    const double packing = traits(points[0]).filter_cost *
                           static_cast<double>(costs.frozen ? 0 : winograd_filters(points));
    return static_cast<double>(shape.batch * products) + packing;
  };
  // Pairs where they serve one axis, too; triples and quads where they serve both and cost less.
  WinogradPoints points{plain, plain};
  if (winograd_fits(shape, {kPairs, plain}, costs.half)) points[0] = kPairs;
  if (winograd_fits(shape, {plain, kPairs}, costs.half)) points[1] = kPairs;
  for (const WinogradForm form : {kTriples, kQuads})
    if (winograd_fits(shape, {form, form}, costs.half) && cost({form, form}) < cost(points))
      points = {form, form};
  const int64_t live = live_products(rows) * live_products(columns);
  const double otherwise =
      costs.live * static_cast<double>(shape.batch * live) +
      traits(plain).filter_cost * static_cast<double>(costs.frozen ? 0 : shape.taps());
  if (cost(points) > kMostShare * otherwise) return std::nullopt;
  return points;
}

}  // namespace atrousx
