// What minimal filtering makes of a tile's sources, of filters and of sums; see winograd.h.
#pragma once

#include <algorithm>

#include "../cpu_lanes.h"
#include "winograd.h"

namespace atrousx {

// The transforms along an axis, of numbers or vectors, by a tile's points: 4, 3 or 1.
template <int kPoints, typename V>
ATROUSX_ALWAYS_INLINE void transform_axis(const V* x, V* points) {
  if constexpr (kPoints == 4) {
    points[0] = x[0] - x[2];
    points[1] = x[1] + x[2];
    points[2] = x[2] - x[1];
    points[3] = x[1] - x[3];
  } else if constexpr (kPoints == 3) {
    points[0] = x[0] - x[1];
    points[1] = x[1];
    points[2] = x[0];
  } else {
    points[0] = x[0];
  }
}

template <int kPoints, typename V>
ATROUSX_ALWAYS_INLINE void transform_axis_back(const V* m, V* y) {
  if constexpr (kPoints == 4) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  } else if constexpr (kPoints == 3) {
    y[0] = m[1] + m[0];
    y[1] = m[2] - m[0];
  } else {
    y[0] = m[0];
  }
}

// The transpose of transform_axis_back.
template <int kPoints, typename V>
ATROUSX_ALWAYS_INLINE void transform_gradient_axis(const V* y, V* m) {
  if constexpr (kPoints == 4) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  } else if constexpr (kPoints == 3) {
    m[0] = y[0] - y[1];
    m[1] = y[0];
    m[2] = y[1];
  } else {
    m[0] = y[0];
  }
}

template <int kPoints, typename V>
ATROUSX_ALWAYS_INLINE void transform_filter_axis(const V* g, V* points) {
  if constexpr (kPoints == 4) {
    points[0] = g[0];
    points[1] = (g[0] + g[1] + g[2]) * 0.5f;
    points[2] = (g[0] - g[1] + g[2]) * 0.5f;
    points[3] = g[2];
  } else {
    points[0] = g[1];
    points[1] = g[2] + g[1];
    points[2] = g[0] + g[1];
  }
}

// Its transpose.
template <int kPoints, typename V>
ATROUSX_ALWAYS_INLINE void transform_filter_gradient_axis(const V* points, V* g) {
  if constexpr (kPoints == 4) {
    const V even = (points[1] + points[2]) * 0.5f;
    g[0] = points[0] + even;
    g[1] = (points[1] - points[2]) * 0.5f;
    g[2] = even + points[3];
  } else {
    g[0] = points[2];
    g[1] = points[0] + points[1] + points[2];
    g[2] = points[1];
  }
}

// Calls f with a tile's points, or a filter's, as integral constants.
template <typename F>
void with_tile_points(int rows, int columns, F&& f) {
  const auto with = [](int points, auto&& g) {
    if (points == 4) return g(std::integral_constant<int, 4>{});
    if (points == 3) return g(std::integral_constant<int, 3>{});
    return g(std::integral_constant<int, 1>{});
  };
  with(rows, [&](auto r) { with(columns, [&](auto c) { f(r, c); }); });
}

// Some channels of tiles' pixels become [points, tiles, width], points `plane` apart. offsets: of
// each tile's pixels, rows first; negative where there is none, and zeros are read.
// kRows and kColumns are a tile's points, kHigh and kWide its pixels; Axes transforms along
// either.
template <int kRows, int kColumns, int kHigh, int kWide, typename Axes>
struct TransformTiles {
  template <int kBytes>
  struct Loop {
    template <typename A>
    static ATROUSX_ALWAYS_INLINE void run(const A* source, const int64_t* offsets, int64_t tiles,
                                          int64_t channels, int64_t width, int64_t plane, A* to) {
      constexpr int kLanes = kLanesIn<kBytes, A>;
      constexpr int kAhead = 2;  // tiles: their pixels lie too far apart for the CPU to foresee
      for (int64_t t = 0; t < tiles; ++t, offsets += kHigh * kWide, to += width) {
        if (t + kAhead < tiles)
          for (int i = 0; i < kHigh * kWide; ++i)
            for (int64_t c = 0; c < channels; c += 64 / static_cast<int64_t>(sizeof(A)))
              __builtin_prefetch(source + offsets[kAhead * kHigh * kWide + i] + c);
        int64_t c = 0;
        for (; c + kLanes <= channels; c += kLanes)
          transform<kLanes>(source + c, offsets, to + c, plane);
        if (c + kLanes / 2 <= channels) {
          transform<kLanes / 2>(source + c, offsets, to + c, plane);
          c += kLanes / 2;
        }
        for (; c < channels; ++c) transform<1>(source + c, offsets, to + c, plane);
      }
    }

   private:
    template <int kLanes, typename A>
    static ATROUSX_ALWAYS_INLINE void transform(const A* source, const int64_t* offsets, A* to,
                                                int64_t plane) {
      using Vector = Lanes<A, kLanes>;
      Vector columns[kWide][kRows];
      for (int j = 0; j < kWide; ++j) {
        Vector x[kHigh];
        for (int i = 0; i < kHigh; ++i) {
          const int64_t offset = offsets[i * kWide + j];
          x[i] = offset < 0 ? Vector{} : load_lanes<kLanes>(source + offset);
        }
        Axes::template run<kRows>(x, columns[j]);
      }
      for (int i = 0; i < kRows; ++i) {
        Vector x[kWide], points[kColumns];
        for (int j = 0; j < kWide; ++j) x[j] = columns[j][i];
        Axes::template run<kColumns>(x, points);
        for (int j = 0; j < kColumns; ++j)
          store_lanes<kLanes>(to + (i * kColumns + j) * plane, points[j]);
      }
    }
  };
};

struct SourceAxes {
  template <int kPoints, typename V>
  static ATROUSX_ALWAYS_INLINE void run(const V* x, V* points) {
    transform_axis<kPoints>(x, points);
  }
};
template <int kRows, int kColumns>
using TransformSources = TransformTiles<kRows, kColumns, winograd_sources(kRows),
                                        winograd_sources(kColumns), SourceAxes>;

struct GradientAxes {
  template <int kPoints, typename V>
  static ATROUSX_ALWAYS_INLINE void run(const V* y, V* points) {
    transform_gradient_axis<kPoints>(y, points);
  }
};
template <int kRows, int kColumns>
using TransformGradients = TransformTiles<kRows, kColumns, winograd_destinations(kRows),
                                          winograd_destinations(kColumns), GradientAxes>;

// Sums of tiles, points `plane` apart, become rows of channels: the tile's destinations, rows
// first, go to those that `rows` names.
template <int kRows, int kColumns>
struct TransformSums {
  static constexpr int kHigh = winograd_destinations(kRows);
  static constexpr int kWide = winograd_destinations(kColumns);

  template <int kBytes>
  struct Loop {
    template <typename A>
    static ATROUSX_ALWAYS_INLINE void run(const A* sums, int64_t plane, int64_t tiles,
                                          int64_t channels, const int64_t* rows, A* to) {
      constexpr int kLanes = kLanesIn<kBytes, A>;
      for (int64_t t = 0; t < tiles; ++t, sums += channels, rows += kHigh * kWide) {
        int64_t c = 0;
        for (; c + kLanes <= channels; c += kLanes)
          transform<kLanes>(sums + c, plane, rows, channels, to + c);
        if (c < channels) transform<kLanes / 2>(sums + c, plane, rows, channels, to + c);
      }
    }

   private:
    template <int kLanes, typename A>
    static ATROUSX_ALWAYS_INLINE void transform(const A* sums, int64_t plane, const int64_t* rows,
                                                int64_t channels, A* to) {
      using Vector = Lanes<A, kLanes>;
      Vector columns[kColumns][kHigh];
      for (int j = 0; j < kColumns; ++j) {
        Vector m[kRows];
        for (int i = 0; i < kRows; ++i)
          m[i] = load_lanes<kLanes>(sums + (i * kColumns + j) * plane);
        transform_axis_back<kRows>(m, columns[j]);
      }
      for (int i = 0; i < kHigh; ++i) {
        Vector m[kColumns], y[kWide];
        for (int j = 0; j < kColumns; ++j) m[j] = columns[j][i];
        transform_axis_back<kColumns>(m, y);
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
