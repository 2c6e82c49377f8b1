// What minimal filtering makes of a tile's sources, of filters and of sums; see winograd.h.
#pragma once

#include <algorithm>

#include "../cpu_lanes.h"
#include "winograd.h"

namespace atrousx {

// A tile along an axis, as a type.
template <int kFilterPoints, int kTilePixels>
struct TileOf {
  static constexpr WinogradTile kTile{kFilterPoints, kTilePixels};
  static constexpr int kFilter = kFilterPoints, kPixels = kTilePixels;
  static constexpr int kPoints = kTile.points(), kSources = kTile.sources();
};

// The transforms along an axis, of numbers or vectors.
//
// What six points' filters are divided by, sources are multiplied by.
template <typename Tile, typename V>
ATROUSX_ALWAYS_INLINE void transform_axis(const V* x, V* points) {
  constexpr bool kHalf = Tile::kFilter == kHalfPoints;
  constexpr float kZero = kHalf ? 4 : 1, kOne = kHalf ? -3 : 1;
  if constexpr (Tile::kFilter == kPairPoints && Tile::kPixels == 2) {
    points[0] = x[0] - x[1];
    points[1] = x[1];
    points[2] = x[0];
  } else if constexpr (Tile::kFilter == kPairPoints) {
    points[0] = x[0];
  } else if constexpr (Tile::kPixels == 1 && kHalf) {
    points[0] = (x[0] - x[1]) * 4.f;
    points[1] = x[2] - x[1];
    points[2] = x[1] * -6.f;
  } else if constexpr (Tile::kPixels == 1) {
    points[0] = x[0];
    points[1] = x[2];
    points[2] = x[1];
    points[3] = -x[1];
  } else if constexpr (Tile::kPixels == 2) {
    points[0] = (x[0] - x[2]) * kZero;
    points[1] = x[3] - x[1];
    points[2] = (x[1] + x[2]) * kOne;
    points[3] = (x[2] - x[1]) * kOne;
  } else if constexpr (Tile::kPixels == 3) {
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
  if constexpr (Tile::kFilter == kPairPoints && Tile::kPixels == 2) {
    y[0] = m[1] + m[0];
    y[1] = m[2] - m[0];
  } else if constexpr (Tile::kFilter == kPairPoints) {
    y[0] = m[0];
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
  if constexpr (Tile::kFilter == kPairPoints && Tile::kPixels == 2) {
    m[0] = y[0] - y[1];
    m[1] = y[0];
    m[2] = y[1];
  } else if constexpr (Tile::kFilter == kPairPoints) {
    m[0] = y[0];
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

template <int kPoints, typename V>
ATROUSX_ALWAYS_INLINE void transform_filter_axis(const V* g, V* points) {
  if constexpr (kPoints == kPairPoints) {
    points[0] = g[1];
    points[1] = g[2] + g[1];
    points[2] = g[0] + g[1];
  } else if constexpr (kPoints == kTilePoints) {
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
template <int kPoints, typename V>
ATROUSX_ALWAYS_INLINE void transform_filter_gradient_axis(const V* points, V* g) {
  if constexpr (kPoints == kPairPoints) {
    g[0] = points[2];
    g[1] = points[0] + points[1] + points[2];
    g[2] = points[1];
  } else if constexpr (kPoints == kTilePoints) {
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

// Calls f with a filter's points along an axis as integral constants, or those of a half type's.
template <bool kHalf, typename F>
void with_filter_points(int points, F&& f) {
  if constexpr (kHalf)
    f(std::integral_constant<int, kHalfPoints>{});
  else if (points == kTilePoints)
    f(std::integral_constant<int, kTilePoints>{});
  else
    f(std::integral_constant<int, kPairPoints>{});
}

// Calls f with an axis's tile, of a filter for half types or for float32, as a TileOf.
template <bool kHalf, typename F>
void with_tile(const WinogradTile& tile, F&& f) {
  with_filter_points<kHalf>(tile.filter, [&](auto filter) {
    [&]<int... kLess>(std::integer_sequence<int, kLess...>) {
      (void)((tile.pixels == kLess + 1 && (f(TileOf<filter, kLess + 1>{}), true)) || ...);
    }(std::make_integer_sequence<int, winograd_most_pixels(filter)>{});
  });
}

// Where a filter's points lie, rows first; a tile has the first of either axis.
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
template <int kRows, int kColumns>
struct TransformFilters {
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
        transform_filter_axis<kRows>(g, columns[j]);
      }
      for (int i = 0; i < kRows; ++i) {
        Vector g[3], points[kColumns];
        for (int j = 0; j < 3; ++j) g[j] = columns[j][i];
        transform_filter_axis<kColumns>(g, points);
        for (int j = 0; j < kColumns; ++j)
          store_lanes<kLanes>(to + (i * kColumns + j) * step, points[j]);
      }
    }
  };
};

// In place, planes of points' gradients become those of the nine taps, the first nine.
template <int kRows, int kColumns>
struct TransformFilterGradients {
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
        transform_filter_gradient_axis<kRows>(points, columns[j]);
      }
      for (int i = 0; i < 3; ++i) {
        Vector points[kColumns], g[3];
        for (int j = 0; j < kColumns; ++j) points[j] = columns[j][i];
        transform_filter_gradient_axis<kColumns>(points, g);
        for (int j = 0; j < 3; ++j) store_lanes<kLanes>(sums + (i * 3 + j) * plane, g[j]);
      }
    }
  };
};

}  // namespace atrousx
