// The transforms of minimal filtering along one axis, of numbers or vectors; see winograd_plan.h.
#pragma once

#include "atrous_conv2d/cpu/winograd/winograd_plan.h"
#include "cpu/dispatch.h"

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
    V all[4];
    turn_quad(m[0], m[1], m[2], m[3], all);
    y[0] = all[0];
    for (int i = 1; i < Tile::kPixels; ++i) y[i] = all[i] + m[3 + i];
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

}  // namespace atrousx
