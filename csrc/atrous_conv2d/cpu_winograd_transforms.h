// What minimal filtering makes of a tile's sources, of filters and of sums; see winograd.h.
#pragma once

#include <algorithm>

#include "../cpu_lanes.h"
#include "winograd.h"

namespace atrousx {

// A tile along an axis, as a type.
template <int kTileForm, int kTilePixels>
struct TileOf {
  static constexpr WinogradTile kTile{kTileForm, kTilePixels};
  static constexpr int kForm = kTileForm, kPixels = kTilePixels;
  static constexpr int kPoints = kTile.points(), kSources = kTile.sources();
};

constexpr float kRootOfTwo = 1.41421356f, kGolden = 1.61803399f;

// What turning twice multiplies by, inverted.
constexpr float kQuadScale = 0.138196601f;

// Four numbers by the eigenvectors of quads, unnormalised; it is its own transpose and, but for a
// factor, its own inverse.
template <typename V>
ATROUSX_ALWAYS_INLINE void turn_quad(const V& x0, const V& x1, const V& x2, const V& x3, V* to) {
  const V even0 = x0 + x3, even1 = x1 + x2, odd0 = x0 - x3, odd1 = x1 - x2;
  to[0] = even0 + even1 * kGolden;
  to[1] = odd0 * kGolden + odd1;
  to[2] = even0 * kGolden - even1;
  to[3] = odd0 - odd1 * kGolden;
}

// The transforms along an axis, of numbers or vectors.
//
// What six points' filters are divided by, sources are multiplied by.
template <typename Tile, typename V>
ATROUSX_ALWAYS_INLINE void transform_axis(const V* x, V* points) {
  constexpr bool kHalf = Tile::kForm == kHalfPoints;
  constexpr float kZero = kHalf ? 4 : 1, kOne = kHalf ? -3 : 1;
  constexpr int kPixels = Tile::kPixels;
  if constexpr (Tile::kForm == kPairPoints && kPixels == 2) {
    points[0] = x[0] - x[1];
    points[1] = x[1];
    points[2] = x[0];
  } else if constexpr (Tile::kForm == kPairPoints) {
    points[0] = x[0];
  } else if constexpr (Tile::kForm == kTriplePoints) {
    const V ends = kPixels == 3 ? x[0] + x[kPixels - 1] : x[0];
    points[0] = kPixels == 3 ? x[0] - x[kPixels - 1] : kPixels == 2 ? x[0] : x[0] * 2.f;
    if constexpr (kPixels > 1) {
      points[1] = ends + x[1] * kRootOfTwo;
      points[2] = ends - x[1] * kRootOfTwo;
      points[3] = x[0];
    }
    if constexpr (kPixels > 2) points[4] = x[1];
  } else if constexpr (Tile::kForm == kQuadPoints) {
    turn_quad(x[0], x[1], x[2], kPixels == 4 ? x[kPixels - 1] : V{}, points);
    for (int i = 0; i + 1 < kPixels; ++i) points[4 + i] = x[i];
  } else if constexpr (kPixels == 1 && kHalf) {
    points[0] = (x[0] - x[1]) * 4.f;
    points[1] = x[2] - x[1];
    points[2] = x[1] * -6.f;
  } else if constexpr (kPixels == 1) {
    points[0] = x[0];
    points[1] = x[2];
    points[2] = x[1];
    points[3] = -x[1];
  } else if constexpr (kPixels == 2) {
    points[0] = (x[0] - x[2]) * kZero;
    points[1] = x[3] - x[1];
    points[2] = (x[1] + x[2]) * kOne;
    points[3] = (x[2] - x[1]) * kOne;
  } else if constexpr (kPixels == 3) {
    const V odd = x[3] - x[1];
    points[0] = (x[0] - x[2]) * 4.f + odd * 2.f;
    points[1] = x[4] - x[2] - odd * 2.f;
    points[2] = (x[3] - x[2] - x[1] * 2.f) * 3.f;
    points[3] = x[3] - x[2] * 3.f + x[1] * 2.f;
    points[4] = odd * 4.f;
  } else {
    const V even1 = x[4] - x[2] * 4.f, odd1 = x[3] - x[1] * 4.f;
    const V even2 = x[4] - x[2], odd2 = (x[3] - x[1]) * 2.f;
    points[0] = x[0] * 4.f - x[2] * 5.f + x[4];
    points[1] = x[1] * 4.f - x[3] * 5.f + x[5];
    points[2] = even1 + odd1;
    points[3] = even1 - odd1;
    points[4] = even2 + odd2;
    points[5] = even2 - odd2;
  }
}

template <typename Tile, typename V>
ATROUSX_ALWAYS_INLINE void transform_axis_back(const V* m, V* y) {
  if constexpr (Tile::kForm == kPairPoints && Tile::kPixels == 2) {
    y[0] = m[1] + m[0];
    y[1] = m[2] - m[0];
  } else if constexpr (Tile::kForm == kPairPoints) {
    y[0] = m[0];
  } else if constexpr (Tile::kForm == kTriplePoints) {
    y[0] = m[0];
    if constexpr (Tile::kPixels > 1) {
      y[0] = m[0] + (m[1] + m[2]);
      y[1] = (m[1] - m[2]) * kRootOfTwo + m[3];
    }
    if constexpr (Tile::kPixels > 2) y[2] = (m[1] + m[2]) - m[0] + m[4];
  } else if constexpr (Tile::kForm == kQuadPoints) {
    const V even0 = m[0] + m[2] * kGolden, even1 = m[0] * kGolden - m[2];
    const V odd0 = m[1] * kGolden + m[3], odd1 = m[1] - m[3] * kGolden;
    y[0] = even0 + odd0;
    y[1] = even1 + odd1 + m[4];
    y[2] = even1 - odd1 + m[5];
    if constexpr (Tile::kPixels > 3) y[3] = even0 - odd0 + m[6];
  } else if constexpr (Tile::kPoints == 3) {
    y[0] = m[0] + m[1] + m[2];
  } else if constexpr (Tile::kPixels == 1) {
    y[0] = m[0] + m[1] + (m[2] + m[3]);
  } else if constexpr (Tile::kPixels == 2) {
    y[0] = m[0] + m[2] + m[3];
    y[1] = m[2] - m[3] + m[1];
  } else if constexpr (Tile::kPixels == 3) {
    y[0] = m[0] + m[2] + m[3] + m[4];
    y[1] = m[2] - m[3] + m[4] * 2.f;
    y[2] = m[2] + m[3] + m[4] * 4.f + m[1];
  } else {
    const V even1 = m[2] + m[3], odd1 = m[2] - m[3], even2 = m[4] + m[5], odd2 = m[4] - m[5];
    y[0] = m[0] + even1 + even2;
    y[1] = odd1 + odd2 * 2.f;
    y[2] = even1 + even2 * 4.f;
    y[3] = odd1 + odd2 * 8.f + m[1];
  }
}

// The transpose of transform_axis_back.
template <typename Tile, typename V>
ATROUSX_ALWAYS_INLINE void transform_gradient_axis(const V* y, V* m) {
  if constexpr (Tile::kForm == kPairPoints && Tile::kPixels == 2) {
    m[0] = y[0] - y[1];
    m[1] = y[0];
    m[2] = y[1];
  } else if constexpr (Tile::kForm == kPairPoints) {
    m[0] = y[0];
  } else if constexpr (Tile::kForm == kTriplePoints) {
    constexpr int kPixels = Tile::kPixels;
    m[0] = kPixels == 3 ? y[0] - y[kPixels - 1] : y[0];
    if constexpr (kPixels > 1) {
      const V ends = kPixels == 3 ? y[0] + y[kPixels - 1] : y[0];
      m[1] = ends + y[1] * kRootOfTwo;
      m[2] = ends - y[1] * kRootOfTwo;
      m[3] = y[1];
    }
    if constexpr (kPixels > 2) m[4] = y[2];
  } else if constexpr (Tile::kForm == kQuadPoints) {
    constexpr int kPixels = Tile::kPixels;
    turn_quad(y[0], y[1], y[2], kPixels == 4 ? y[kPixels - 1] : V{}, m);
    for (int i = 0; i + 1 < kPixels; ++i) m[4 + i] = y[i + 1];
  } else {
    constexpr int kPixels = Tile::kPixels;
    m[0] = y[0];
    m[1] = y[kPixels - 1];
    if constexpr (kPixels == 1) {
      for (int i = 2; i < Tile::kPoints; ++i) m[i] = y[0];
    } else {
      V even = y[0], odd = y[1];
      if constexpr (kPixels > 2) even += y[2];
      if constexpr (kPixels > 3) odd += y[3];
      m[2] = even + odd;
      m[3] = even - odd;
    }
    if constexpr (kPixels > 2) {
      V even = y[0] + y[2] * 4.f, odd = y[1] * 2.f;
      if constexpr (kPixels > 3) odd += y[3] * 8.f;
      m[4] = even + odd;
      if constexpr (kPixels > 3) m[5] = even - odd;
    }
  }
}

template <int kForm, typename V>
ATROUSX_ALWAYS_INLINE void transform_filter_axis(const V* g, V* points) {
  if constexpr (kForm == kPairPoints) {
    points[0] = g[1];
    points[1] = g[2] + g[1];
    points[2] = g[0] + g[1];
  } else if constexpr (kForm == kTriplePoints) {
    points[0] = g[1] * 0.5f;
    points[1] = (g[1] + g[2] * kRootOfTwo) * 0.25f;
    points[2] = (g[1] - g[2] * kRootOfTwo) * 0.25f;
    points[3] = g[0] - g[2];
  } else if constexpr (kForm == kQuadPoints) {
    const V own = g[1] * kQuadScale, large = g[2] * (kQuadScale * kGolden);
    const V small = g[2] * (kQuadScale * (kGolden - 1));
    points[0] = own + large;
    points[1] = own + small;
    points[2] = own - small;
    points[3] = own - large;
    points[4] = g[0] - g[2];
  } else if constexpr (kForm == kTilePoints) {
    points[0] = g[0];
    points[1] = g[2];
    points[2] = (g[0] + g[1] + g[2]) * 0.5f;
    points[3] = (g[0] - g[1] + g[2]) * 0.5f;
  } else {
    const V even1 = (g[0] + g[2]) * (-1 / 6.f), odd1 = g[1] * (-1 / 6.f);
    const V even2 = (g[0] + g[2] * 4.f) * (1 / 24.f), odd2 = g[1] * (1 / 12.f);
    points[0] = g[0] * 0.25f;
    points[1] = g[2];
    points[2] = even1 + odd1;
    points[3] = even1 - odd1;
    points[4] = even2 + odd2;
    points[5] = even2 - odd2;
  }
}

// Its transpose.
template <int kForm, typename V>
ATROUSX_ALWAYS_INLINE void transform_filter_gradient_axis(const V* points, V* g) {
  if constexpr (kForm == kPairPoints) {
    g[0] = points[2];
    g[1] = points[0] + points[1] + points[2];
    g[2] = points[1];
  } else if constexpr (kForm == kTriplePoints) {
    g[0] = points[3];
    g[1] = points[0] * 0.5f + (points[1] + points[2]) * 0.25f;
    g[2] = (points[1] - points[2]) * (0.25f * kRootOfTwo) - points[3];
  } else if constexpr (kForm == kQuadPoints) {
    g[0] = points[4];
    g[1] = (points[0] + points[1] + points[2] + points[3]) * kQuadScale;
    g[2] = (points[0] - points[3]) * (kQuadScale * kGolden) +
           (points[1] - points[2]) * (kQuadScale * (kGolden - 1)) - points[4];
  } else if constexpr (kForm == kTilePoints) {
    const V even = (points[2] + points[3]) * 0.5f;
    g[0] = points[0] + even;
    g[1] = (points[2] - points[3]) * 0.5f;
    g[2] = even + points[1];
  } else {
    const V even1 = (points[2] + points[3]) * (-1 / 6.f);
    const V odd1 = (points[2] - points[3]) * (-1 / 6.f);
    const V even2 = (points[4] + points[5]) * (1 / 24.f);
    const V odd2 = (points[4] - points[5]) * (1 / 12.f);
    g[0] = points[0] * 0.25f + even1 + even2;
    g[1] = odd1 + odd2;
    g[2] = even1 + even2 * 4.f + points[1];
  }
}

// Calls f with the forms of both axes as integral constants: of a half type's, or of float32's.
template <bool kHalf, typename F>
void with_forms(const WinogradPoints& points, F&& f) {
  const auto constant = [&]<int kRows, int kColumns>(std::integer_sequence<int, kRows, kColumns>) {
    f(std::integral_constant<int, kRows>{}, std::integral_constant<int, kColumns>{});
  };
  const auto with_columns = [&](auto rows) {
    if (points[1] == kTilePoints) return constant(std::integer_sequence<int, rows, kTilePoints>{});
    constant(std::integer_sequence<int, rows, kPairPoints>{});
  };
  if constexpr (kHalf)
    constant(std::integer_sequence<int, kHalfPoints, kHalfPoints>{});
  else if (points[0] == kTriplePoints)  // along both axes, and so are quads
    constant(std::integer_sequence<int, kTriplePoints, kTriplePoints>{});
  else if (points[0] == kQuadPoints)
    constant(std::integer_sequence<int, kQuadPoints, kQuadPoints>{});
  else if (points[0] == kTilePoints)
    with_columns(std::integral_constant<int, kTilePoints>{});
  else
    with_columns(std::integral_constant<int, kPairPoints>{});
}

template <int kForm, typename F>
void with_pixels(int pixels, F&& f) {
  constexpr int kLeast = winograd_least_pixels(kForm);
  [&]<int... kMore>(std::integer_sequence<int, kMore...>) {
    (void)((pixels == kLeast + kMore && (f(TileOf<kForm, kLeast + kMore>{}), true)) || ...);
  }(std::make_integer_sequence<int, winograd_most_pixels(kForm) - kLeast + 1>{});
}

// Calls f with the tiles of both axes as TileOfs.
template <bool kHalf, typename F>
void with_tiles(const WinogradTile& rows, const WinogradTile& columns, F&& f) {
  with_forms<kHalf>({rows.form, columns.form}, [&](auto row_form, auto column_form) {
    with_pixels<row_form>(rows.pixels, [&](auto r) {
      with_pixels<column_form>(columns.pixels, [&](auto c) { f(r, c); });
    });
  });
}

// Where a form's points lie, rows first; a tile has the first of either axis.
struct TilePlanes {
  int64_t row, column;  // from one point to the next

  constexpr int64_t offset(int i, int j) const { return i * row + j * column; }
};

// Some channels of tiles' pixels become [points, tiles, width]. offsets: of
// each tile's pixels, rows first; negative where there is none, and zeros are read.
// Axes says which pixels those are, and transforms along either axis.
template <typename RowTile, typename ColumnTile, typename Axes>
struct TransformTiles {
  static constexpr int kRows = RowTile::kPoints, kHigh = Axes::template kPixels<RowTile>;
  static constexpr int kColumns = ColumnTile::kPoints, kWide = Axes::template kPixels<ColumnTile>;

  template <int kBytes>
  struct Loop {
    template <typename T, typename A>
    static ATROUSX_ALWAYS_INLINE void run(const T* source, const int64_t* offsets, int64_t tiles,
                                          int64_t channels, int64_t width, TilePlanes planes,
                                          A* to) {
      constexpr int kLanes = kLanesIn<kBytes, A>;
      constexpr int kAhead = 2;  // tiles: their pixels lie too far apart for the CPU to foresee
      // Vectors of a cache line; each asks for its share of a later tile's.
      constexpr int kShares = 64 / (kLanes * static_cast<int>(sizeof(T)));
      constexpr int kPixels = kHigh * kWide;
      for (int64_t t = 0; t < tiles; ++t, offsets += kPixels, to += width) {
        const int64_t* const ahead = offsets + (t + kAhead < tiles ? kAhead * kPixels : 0);
        int64_t c = 0;
        for (; c + kLanes <= channels; c += kLanes) {
          for (int i = c / kLanes % kShares; i < kPixels; i += kShares)
            __builtin_prefetch(source + ahead[i] + c);
          transform<kLanes>(source + c, offsets, to + c, planes);
        }
        if (c + kLanes / 2 <= channels) {
          transform<kLanes / 2>(source + c, offsets, to + c, planes);
          c += kLanes / 2;
        }
        for (; c < channels; ++c) transform<1>(source + c, offsets, to + c, planes);
      }
    }

   private:
    template <int kLanes, typename T, typename A>
    static ATROUSX_ALWAYS_INLINE void transform(const T* source, const int64_t* offsets, A* to,
                                                TilePlanes planes) {
      using Vector = Lanes<A, kLanes>;
      Vector columns[kWide][kRows];
      for (int j = 0; j < kWide; ++j) {
        Vector x[kHigh];
        for (int i = 0; i < kHigh; ++i) {
          const int64_t offset = offsets[i * kWide + j];
          x[i] = offset < 0 ? Vector{} : load_lanes<kLanes>(source + offset);
        }
        Axes::template run<RowTile>(x, columns[j]);
      }
      for (int i = 0; i < kRows; ++i) {
        Vector x[kWide], points[kColumns];
        for (int j = 0; j < kWide; ++j) x[j] = columns[j][i];
        Axes::template run<ColumnTile>(x, points);
        for (int j = 0; j < kColumns; ++j) store_lanes<kLanes>(to + planes.offset(i, j), points[j]);
      }
    }
  };
};

struct SourceAxes {
  template <typename Tile>
  static constexpr int kPixels = Tile::kSources;
  template <typename Tile, typename V>
  static ATROUSX_ALWAYS_INLINE void run(const V* x, V* points) {
    transform_axis<Tile>(x, points);
  }
};
template <typename Rows, typename Columns>
using TransformSources = TransformTiles<Rows, Columns, SourceAxes>;

struct GradientAxes {
  template <typename Tile>
  static constexpr int kPixels = Tile::kPixels;
  template <typename Tile, typename V>
  static ATROUSX_ALWAYS_INLINE void run(const V* y, V* points) {
    transform_gradient_axis<Tile>(y, points);
  }
};
template <typename Rows, typename Columns>
using TransformGradients = TransformTiles<Rows, Columns, GradientAxes>;

// Sums of tiles become rows of channels: the tile's destinations, rows
// first, go to those that `rows` names.
template <typename RowTile, typename ColumnTile>
struct TransformSums {
  static constexpr int kRows = RowTile::kPoints, kHigh = RowTile::kPixels;
  static constexpr int kColumns = ColumnTile::kPoints, kWide = ColumnTile::kPixels;

  template <int kBytes>
  struct Loop {
    template <typename A>
    static ATROUSX_ALWAYS_INLINE void run(const A* sums, TilePlanes planes, int64_t tiles,
                                          int64_t channels, const int64_t* rows, A* to) {
      constexpr int kLanes = kLanesIn<kBytes, A>;
      for (int64_t t = 0; t < tiles; ++t, sums += channels, rows += kHigh * kWide) {
        int64_t c = 0;
        for (; c + kLanes <= channels; c += kLanes)
          transform<kLanes>(sums + c, planes, rows, channels, to + c);
        if (c < channels) transform<kLanes / 2>(sums + c, planes, rows, channels, to + c);
      }
    }

   private:
    template <int kLanes, typename A>
    static ATROUSX_ALWAYS_INLINE void transform(const A* sums, TilePlanes planes,
                                                const int64_t* rows, int64_t channels, A* to) {
      using Vector = Lanes<A, kLanes>;
      Vector columns[kColumns][kHigh];
      for (int j = 0; j < kColumns; ++j) {
        Vector m[kRows];
        for (int i = 0; i < kRows; ++i) m[i] = load_lanes<kLanes>(sums + planes.offset(i, j));
        transform_axis_back<RowTile>(m, columns[j]);
      }
      for (int i = 0; i < kHigh; ++i) {
        Vector m[kColumns], y[kWide];
        for (int j = 0; j < kColumns; ++j) m[j] = columns[j][i];
        transform_axis_back<ColumnTile>(m, y);
        for (int j = 0; j < kWide; ++j)
          store_lanes<kLanes>(to + rows[i * kWide + j] * channels, y[j]);
      }
    }
  };
};

// Filters [9 taps, channels, columns] become [points, channels, columns]; columns as above.
template <int kRowForm, int kColumnForm>
struct TransformFilters {
  static constexpr int kRows = winograd_filters(kRowForm);
  static constexpr int kColumns = winograd_filters(kColumnForm);

  template <int kBytes>
  struct Loop {
    template <typename A>
    static ATROUSX_ALWAYS_INLINE void run(const A* taps, bool mirror_rows, bool mirror_columns,
                                          int64_t count, A* to) {
      constexpr int kLanes = kLanesIn<kBytes, A>;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes)
        transform<kLanes>(taps + i, mirror_rows, mirror_columns, count, to + i);
      if (i < count) transform<kLanes / 2>(taps + i, mirror_rows, mirror_columns, count, to + i);
    }

   private:
    template <int kLanes, typename A>
    static ATROUSX_ALWAYS_INLINE void transform(const A* taps, bool mirror_rows,
                                                bool mirror_columns, int64_t step, A* to) {
      using Vector = Lanes<A, kLanes>;
      Vector columns[3][kRows];
      for (int j = 0; j < 3; ++j) {
        Vector g[3];
        for (int i = 0; i < 3; ++i)
          g[i] = load_lanes<kLanes>(
              taps + ((mirror_rows ? 2 - i : i) * 3 + (mirror_columns ? 2 - j : j)) * step);
        transform_filter_axis<kRowForm>(g, columns[j]);
      }
      for (int i = 0; i < kRows; ++i) {
        Vector g[3], points[kColumns];
        for (int j = 0; j < 3; ++j) g[j] = columns[j][i];
        transform_filter_axis<kColumnForm>(g, points);
        for (int j = 0; j < kColumns; ++j)
          store_lanes<kLanes>(to + (i * kColumns + j) * step, points[j]);
      }
    }
  };
};

// In place, planes of points' gradients become those of the nine taps, the first nine.
template <int kRowForm, int kColumnForm>
struct TransformFilterGradients {
  static constexpr int kRows = winograd_filters(kRowForm);
  static constexpr int kColumns = winograd_filters(kColumnForm);

  template <int kBytes>
  struct Loop {
    template <typename A>
    static ATROUSX_ALWAYS_INLINE void run(A* sums, int64_t plane) {
      constexpr int kLanes = kLanesIn<kBytes, A>;
      int64_t i = 0;
      for (; i + kLanes <= plane; i += kLanes) transform<kLanes>(sums + i, plane);
      if (i < plane) transform<kLanes / 2>(sums + i, plane);
    }

   private:
    template <int kLanes, typename A>
    static ATROUSX_ALWAYS_INLINE void transform(A* sums, int64_t plane) {
      using Vector = Lanes<A, kLanes>;
      Vector columns[kColumns][3];
      for (int j = 0; j < kColumns; ++j) {
        Vector points[kRows];
        for (int i = 0; i < kRows; ++i)
          points[i] = load_lanes<kLanes>(sums + (i * kColumns + j) * plane);
        transform_filter_gradient_axis<kRowForm>(points, columns[j]);
      }
      for (int i = 0; i < 3; ++i) {
        Vector points[kColumns], g[3];
        for (int j = 0; j < kColumns; ++j) points[j] = columns[j][i];
        transform_filter_gradient_axis<kColumnForm>(points, g);
        for (int j = 0; j < 3; ++j) store_lanes<kLanes>(sums + (i * 3 + j) * plane, g[j]);
      }
    }
  };
};

}  // namespace atrousx
