// Minimal filtering (Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308) computes 3x3 filters
// without stride with fewer multiplications than they have live taps. This file says how a map is
// divided for it, and when it pays. It does not need torch.
//
// Along an axis, pixels that share taps lie the dilation apart. So a dilated filter is a plain
// filter on every phase of the map. A phase is cut into tiles. The sources x of a tile and the
// filter g0 g1 g2 are each transformed to a few numbers, the points. The points are multiplied, and
// the products m are transformed to the destinations y:
//
//   F(m, 3), m + 2 points   A tile of m pixels reads m + 2. This transposes the product of two
//     polynomials, of degrees 2 and m - 1, by their values at 0, infinity, 1, -1, 2, -2, in this
//     order. A tile with fewer pixels uses fewer of the filter's points. For m = 2:
//     (x0 - x2) g0,  (x3 - x1) g2,  (x1 + x2) (g0 + g1 + g2) / 2,  (x2 - x1) (g0 - g1 + g2) / 2
//     y0 = m0 + m2 + m3,  y1 = m2 - m3 + m1                            4 products for 6
//   pairs, 3 points         Phases of two pixels x0 x1; all else is padding.
//     (x0 - x1) g1,  x1 (g1 + g2),  x0 (g0 + g1)
//     y0 = m1 + m0,  y1 = m2 - m0                                      3 products for 4
//     (x0 + x1, g2 - g1 and g0 - g1 would also work, but round more if no x is negative.)
//   triples, 5 points       Phases of three: y = (g1 + g2 S + (g0 - g2) L) x, where
//     L x = (0, x0, x1), and S = L + its transpose has the eigenvalues 0, q, -q with q^2 = 2.
//     (x0 - x2) g1 / 2,  (x0 + q x1 + x2) (g1 + q g2) / 4,  (x0 - q x1 + x2) (g1 - q g2) / 4,
//     x0 (g0 - g2),  x1 (g0 - g2)
//     y0 = m0 + m1 + m2,  y1 = q (m1 - m2) + m3,  y2 = m1 + m2 - m0 + m4       5 products for 7
//   quads, 7 points         Phases of four, or of three and a zero, in the same way. S has the
//     eigenvalues f, f - 1, 1 - f, -f (f^2 = f + 1). Three points use g0 - g2.  7 products for 10
//
// In pairs and triples, a phase with fewer pixels has only the first points. In two dimensions a
// tile is a pair of tiles of the axes, and the numbers of points multiply.
//
// In float32, tiles of F(m, 3) have at most two pixels. Larger tiles have larger coefficients and
// would lose accuracy. For half types, transforms and products are in float32, so larger tiles lose
// nothing. Their tiles have up to four pixels.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "atrous_conv2d/plan.h"

namespace atrousx {

// The forms of tiles along an axis. A form's number is the number of points of its largest tile.
// Operators and packed weights use it.
enum class WinogradForm : int { kPairs = 3, kF2 = 4, kTriples = 5, kF4 = 6, kQuads = 7 };

// The properties of a form.
struct WinogradTraits {
  WinogradForm form;
  bool half;                      // for half types, else for float32
  bool whole_phase;               // a tile is a whole phase
  bool mixes;                     // may differ from the form along the other axis
  int least_pixels, most_pixels;  // per tile
  std::array<int, 5> points;      // by the number of a tile's pixels
  int filters;                    // numbers of a transformed filter; the last points may share one
  int64_t least_channels;         // with fewer, a sum has too few pieces, and whole phases would
                                  // round almost twice as much as PyTorch
  double filter_cost;             // of one number of a filter, transformed or not, in products
};

// A tile of F(2, 3) with one pixel has four points, too, because three would round more. Filters
// cost more for half types, which have more filter numbers and fewer products.
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

// Equal tiles along an axis. `firsts` holds each tile's first destination; its other destinations
// lie a step apart. Its first source is at the first destination plus `offset`. For a whole phase
// both are the same.
struct WinogradTiles {
  WinogradTile tile;
  std::vector<int64_t> firsts;
};

// The axis with its taps in the order in which the step is positive.
inline TapAxis without_mirror(TapAxis axis) {
  if (axis.step < 0) {
    axis.offset += 2 * axis.step;
    axis.step = -axis.step;
  }
  return axis;
}

// Whether a form can be used on the axis.
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

// The forms with these numbers, for half types or for float32. None if there are no such forms, or
// if they cannot be combined.
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

// Points of the largest tile along an axis.
constexpr int winograd_most_points(WinogradForm form) {
  return traits(form).points[traits(form).most_pixels];
}

inline int64_t winograd_filters(const WinogradPoints& points) {
  return int64_t{traits(points[0]).filters} * traits(points[1]).filters;
}
// Which number of a transformed filter a point of a tile is multiplied by.
inline int64_t winograd_filter(int64_t row, int64_t column, const WinogradPoints& points) {
  const int64_t rows = traits(points[0]).filters, columns = traits(points[1]).filters;
  return std::min(row, rows - 1) * columns + std::min(column, columns - 1);
}

inline bool winograd_serves(const GatherShape& shape, const WinogradPoints& points) {
  return shape.groups == 1 && winograd_serves(shape.rows, points[0]) &&
         winograd_serves(shape.columns, points[1]);
}

// The tiles of an axis without mirror, the largest first. A phase has as many largest tiles as fit,
// and one smaller tile for the rest.
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

// Where some tiles of a batch read and write. They are tiles [first, first + count) of these rows
// and columns; the column changes fastest.
class WinogradOffsets {
 public:
  WinogradOffsets(const TapAxis& rows, const TapAxis& columns, const WinogradTiles& row_tiles,
                  const WinogradTiles& column_tiles, int64_t first, int64_t count)
      : rows_{rows, row_tiles}, columns_{columns, column_tiles}, first_(first), count_(count) {}

  // Where the sources of each tile lie, rows first; -1 in padding.
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
  // Where the destinations of each tile lie, rows first.
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

  // Offsets of high x wide pixels of each tile. from(axis, first)(i): the place of pixel i along an
  // axis, or a negative number if there is no such pixel.
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

// The number of points of all tiles along an axis, without making a list of the tiles. If the step
// does not divide the axis, the first phases have one pixel more: as many phases as the remainder.
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

// What the decision depends on besides sizes.
struct WinogradCosts {
  bool half;    // maps are of a half type
  double live;  // cost of a live product, relative to one in float32
  bool frozen;  // filters are transformed beforehand, not at every call
};

// Whether a pass can use both forms, and has enough channels for them to round little.
inline bool winograd_fits(const GatherShape& shape, const WinogradPoints& points, bool half) {
  for (const WinogradForm form : points)
    if (traits(form).half != half || shape.inner < traits(form).least_channels) return false;
  return winograd_serves(shape, points);
}

// The forms that a pass should use, given the cost of forms. It uses pairs even if they fit only
// one axis. It uses triples and quads if they fit both and cost less.
template <typename Cost>
WinogradPoints winograd_choice(const GatherShape& shape, bool half, const Cost& cost) {
  using enum WinogradForm;
  const WinogradForm plain = half ? kF4 : kF2;
  WinogradPoints points{plain, plain};
  if (winograd_fits(shape, {kPairs, plain}, half)) points[0] = kPairs;
  if (winograd_fits(shape, {plain, kPairs}, half)) points[1] = kPairs;
  for (const WinogradForm form : {kTriples, kQuads})
    if (winograd_fits(shape, {form, form}, half) && cost({form, form}) < cost(points))
      points = {form, form};
  return points;
}

// The forms that a pass should use, or none if its live taps are faster.
inline std::optional<WinogradPoints> winograd_pays(const GatherShape& shape,
                                                   const WinogradCosts& costs) {
  using enum WinogradForm;
  // With fewer channels or outputs the transforms of sources and sums would cost too much.
  constexpr int64_t kLeastWidth = 32, kLeastFilters = 32 * 64;
  constexpr double kMostShare = 0.75;  // of the cost of the live products
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
  const WinogradPoints points = winograd_choice(shape, costs.half, cost);
  const int64_t live = live_products(rows) * live_products(columns);
  const double otherwise =
      costs.live * static_cast<double>(shape.batch * live) +
      traits(plain).filter_cost * static_cast<double>(costs.frozen ? 0 : shape.taps());
  if (cost(points) > kMostShare * otherwise) return std::nullopt;
  return points;
}

}  // namespace atrousx
