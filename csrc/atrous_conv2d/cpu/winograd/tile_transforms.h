// Transforms of a tile's sources, of filters and of sums, in two dimensions (winograd_plan.h).
#pragma once

#include <algorithm>

#include "atrous_conv2d/cpu/winograd/axis_transforms.h"
#include "cpu/lanes.h"

namespace atrousx {

template <WinogradForm kForm>
using FormConstant = std::integral_constant<WinogradForm, kForm>;

// Calls f with the forms of both axes as FormConstants. kHalf chooses the forms of half types, else
// those of float32.
template <bool kHalf, typename F>
void with_forms(const WinogradPoints& points, F&& f) {
  using enum WinogradForm;
  const auto twice = [&](auto form) { f(form, form); };
  const auto with_columns = [&](auto rows) {
    if (points[1] == kF2) return f(rows, FormConstant<kF2>{});
    f(rows, FormConstant<kPairs>{});
  };
  if constexpr (kHalf)
    twice(FormConstant<kF4>{});
  else if (points[0] == kTriples)
    twice(FormConstant<kTriples>{});
  else if (points[0] == kQuads)
    twice(FormConstant<kQuads>{});
  else if (points[0] == kF2)
    with_columns(FormConstant<kF2>{});
  else
    with_columns(FormConstant<kPairs>{});
}

template <WinogradForm kForm, typename F>
void with_pixels(int pixels, F&& f) {
  constexpr int kLeast = traits(kForm).least_pixels, kMost = traits(kForm).most_pixels;
  [&]<int... kMore>(std::integer_sequence<int, kMore...>) {
    (void)((pixels == kLeast + kMore && (f(TileOf<kForm, kLeast + kMore>{}), true)) || ...);
  }(std::make_integer_sequence<int, kMost - kLeast + 1>{});
}

// Calls f with the tiles of both axes as TileOfs.
template <bool kHalf, typename F>
void with_tiles(const WinogradTile& rows, const WinogradTile& columns, F&& f) {
  with_forms<kHalf>({rows.form, columns.form}, [&](auto row_form, auto column_form) {
    with_pixels<row_form.value>(rows.pixels, [&](auto r) {
      with_pixels<column_form.value>(columns.pixels, [&](auto c) { f(r, c); });
    });
  });
}

// Where the points of a form lie, rows first. A tile with fewer points has the first ones of each
// axis.
struct TilePlanes {
  int64_t row, column;  // the distance from one point to the next

  constexpr int64_t offset(int i, int j) const { return i * row + j * column; }
};

// Some channels of the pixels of tiles.
template <typename T>
struct TilePixels {
  const T* map;  // from the first of these channels on
  // Where the pixels of each tile lie, rows first. A negative offset means padding, which is read
  // as zero.
  const int64_t* offsets;
  int64_t tiles, channels;
};

// Transforms the pixels of tiles to [points, tiles, width]. Axes defines the pixels of a tile along
// an axis and their transform.
template <typename RowTile, typename ColumnTile, typename Axes>
struct TransformTiles {
  static constexpr int kRows = RowTile::kPoints, kHigh = Axes::template kPixels<RowTile>;
  static constexpr int kColumns = ColumnTile::kPoints, kWide = Axes::template kPixels<ColumnTile>;

  template <int kBytes>
  struct Loop {
    template <typename T, typename A>
    static ATROUSX_ALWAYS_INLINE void run(TilePixels<T> from, int64_t width, TilePlanes planes,
                                          A* to) {
      auto [source, offsets, tiles, channels] = from;
      constexpr int kLanes = kLanesIn<kBytes, A>;
      constexpr int kAhead = 2;  // tiles; the CPU does not foresee pixels that lie so far apart
      // Vectors of a cache line. Each vector prefetches its share of the pixels of a later tile.
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
    AxisTransforms<Tile::kForm>::template sources<Tile::kPixels>(x, points);
  }
};
template <typename Rows, typename Columns>
using TransformSources = TransformTiles<Rows, Columns, SourceAxes>;

struct GradientAxes {
  template <typename Tile>
  static constexpr int kPixels = Tile::kPixels;
  template <typename Tile, typename V>
  static ATROUSX_ALWAYS_INLINE void run(const V* y, V* points) {
    AxisTransforms<Tile::kForm>::template gradients<Tile::kPixels>(y, points);
  }
};
template <typename Rows, typename Columns>
using TransformGradients = TransformTiles<Rows, Columns, GradientAxes>;

// Transforms the sums of tiles to rows of channels. The destinations of a tile, rows first, go to
// the rows of `to` that `rows` names.
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
        AxisTransforms<RowTile::kForm>::template destinations<kHigh>(m, columns[j]);
      }
      for (int i = 0; i < kHigh; ++i) {
        Vector m[kColumns], y[kWide];
        for (int j = 0; j < kColumns; ++j) m[j] = columns[j][i];
        AxisTransforms<ColumnTile::kForm>::template destinations<kWide>(m, y);
        for (int j = 0; j < kWide; ++j)
          store_lanes<kLanes>(to + rows[i * kWide + j] * channels, y[j]);
      }
    }
  };
};

// Transforms filters [9 taps, channels, columns] to [points, channels, columns]. count: channels
// times columns.
template <WinogradForm kRowForm, WinogradForm kColumnForm>
struct TransformFilters {
  static constexpr int kRows = traits(kRowForm).filters;
  static constexpr int kColumns = traits(kColumnForm).filters;

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
        AxisTransforms<kRowForm>::filter(g, columns[j]);
      }
      for (int i = 0; i < kRows; ++i) {
        Vector g[3], points[kColumns];
        for (int j = 0; j < 3; ++j) g[j] = columns[j][i];
        AxisTransforms<kColumnForm>::filter(g, points);
        for (int j = 0; j < kColumns; ++j)
          store_lanes<kLanes>(to + (i * kColumns + j) * step, points[j]);
      }
    }
  };
};

// Transforms the gradients of a filter's points in place, a plane for each point. The first nine
// planes become the gradients of the nine taps.
template <WinogradForm kRowForm, WinogradForm kColumnForm>
struct TransformFilterGradients {
  static constexpr int kRows = traits(kRowForm).filters;
  static constexpr int kColumns = traits(kColumnForm).filters;

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
        AxisTransforms<kRowForm>::filter_gradients(points, columns[j]);
      }
      for (int i = 0; i < 3; ++i) {
        Vector points[kColumns], g[3];
        for (int j = 0; j < kColumns; ++j) points[j] = columns[j][i];
        AxisTransforms<kColumnForm>::filter_gradients(points, g);
        for (int j = 0; j < 3; ++j) store_lanes<kLanes>(sums + (i * 3 + j) * plane, g[j]);
      }
    }
  };
};

}  // namespace atrousx
