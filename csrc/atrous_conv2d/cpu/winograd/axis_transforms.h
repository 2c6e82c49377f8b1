// The transforms of minimal filtering along one axis (winograd_plan.h). V is a number or a vector.
#pragma once

#include "atrous_conv2d/cpu/winograd/winograd_plan.h"
#include "cpu/dispatch.h"

namespace atrousx {

// A tile along an axis, as a type.
template <WinogradForm kTileForm, int kTilePixels>
struct TileOf {
  static constexpr WinogradTile kTile{kTileForm, kTilePixels};
  static constexpr WinogradForm kForm = kTileForm;
  static constexpr int kPixels = kTilePixels;
  static constexpr int kPoints = kTile.points(), kSources = kTile.sources();
};

// The transforms of a form:
//   sources:          from the sources x of a tile to its points
//   destinations:     from the products m of a tile's points to its destinations y
//   gradients:        the transpose of destinations, from gradients y
//   filter:           from a filter g to its points
//   filter_gradients: the transpose of filter
template <WinogradForm kForm>
struct AxisTransforms;

template <>
struct AxisTransforms<WinogradForm::kPairs> {
  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void sources(const V* x, V* points) {
    if constexpr (kPixels == 2) {
      points[0] = x[0] - x[1];
      points[1] = x[1];
      points[2] = x[0];
    } else {
      points[0] = x[0];
    }
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void destinations(const V* m, V* y) {
    if constexpr (kPixels == 2) {
      y[0] = m[1] + m[0];
      y[1] = m[2] - m[0];
    } else {
      y[0] = m[0];
    }
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void gradients(const V* y, V* m) {
    if constexpr (kPixels == 2) {
      m[0] = y[0] - y[1];
      m[1] = y[0];
      m[2] = y[1];
    } else {
      m[0] = y[0];
    }
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter(const V* g, V* points) {
    points[0] = g[1];
    points[1] = g[2] + g[1];
    points[2] = g[0] + g[1];
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter_gradients(const V* points, V* g) {
    g[0] = points[2];
    g[1] = points[0] + points[1] + points[2];
    g[2] = points[1];
  }
};

template <>
struct AxisTransforms<WinogradForm::kTriples> {
  static constexpr float kRootOfTwo = 1.41421356f;

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void sources(const V* x, V* points) {
    const V ends = kPixels == 3 ? x[0] + x[kPixels - 1] : x[0];
    points[0] = kPixels == 3 ? x[0] - x[kPixels - 1] : kPixels == 2 ? x[0] : x[0] * 2.f;
    if constexpr (kPixels > 1) {
      points[1] = ends + x[1] * kRootOfTwo;
      points[2] = ends - x[1] * kRootOfTwo;
      points[3] = x[0];
    }
    if constexpr (kPixels > 2) points[4] = x[1];
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void destinations(const V* m, V* y) {
    y[0] = m[0];
    if constexpr (kPixels > 1) {
      y[0] = m[0] + (m[1] + m[2]);
      y[1] = (m[1] - m[2]) * kRootOfTwo + m[3];
    }
    if constexpr (kPixels > 2) y[2] = (m[1] + m[2]) - m[0] + m[4];
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void gradients(const V* y, V* m) {
    m[0] = kPixels == 3 ? y[0] - y[kPixels - 1] : y[0];
    if constexpr (kPixels > 1) {
      const V ends = kPixels == 3 ? y[0] + y[kPixels - 1] : y[0];
      m[1] = ends + y[1] * kRootOfTwo;
      m[2] = ends - y[1] * kRootOfTwo;
      m[3] = y[1];
    }
    if constexpr (kPixels > 2) m[4] = y[2];
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter(const V* g, V* points) {
    points[0] = g[1] * 0.5f;
    points[1] = (g[1] + g[2] * kRootOfTwo) * 0.25f;
    points[2] = (g[1] - g[2] * kRootOfTwo) * 0.25f;
    points[3] = g[0] - g[2];
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter_gradients(const V* points, V* g) {
    g[0] = points[3];
    g[1] = points[0] * 0.5f + (points[1] + points[2]) * 0.25f;
    g[2] = (points[1] - points[2]) * (0.25f * kRootOfTwo) - points[3];
  }
};

template <>
struct AxisTransforms<WinogradForm::kQuads> {
  static constexpr float kGolden = 1.61803399f;
  // by_eigenvectors, applied twice, multiplies by 1 / kScale.
  static constexpr float kScale = 0.138196601f;

  // Multiplies four numbers by the matrix of eigenvectors, which are not normalised. The matrix is
  // symmetric and, except for a factor, its own inverse.
  template <typename V>
  static ATROUSX_ALWAYS_INLINE void by_eigenvectors(const V& x0, const V& x1, const V& x2,
                                                    const V& x3, V* to) {
    const V even0 = x0 + x3, even1 = x1 + x2, odd0 = x0 - x3, odd1 = x1 - x2;
    to[0] = even0 + even1 * kGolden;
    to[1] = odd0 * kGolden + odd1;
    to[2] = even0 * kGolden - even1;
    to[3] = odd0 - odd1 * kGolden;
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void sources(const V* x, V* points) {
    by_eigenvectors(x[0], x[1], x[2], kPixels == 4 ? x[kPixels - 1] : V{}, points);
    for (int i = 0; i + 1 < kPixels; ++i) points[4 + i] = x[i];
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void destinations(const V* m, V* y) {
    V all[4];
    by_eigenvectors(m[0], m[1], m[2], m[3], all);
    y[0] = all[0];
    for (int i = 1; i < kPixels; ++i) y[i] = all[i] + m[3 + i];
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void gradients(const V* y, V* m) {
    by_eigenvectors(y[0], y[1], y[2], kPixels == 4 ? y[kPixels - 1] : V{}, m);
    for (int i = 0; i + 1 < kPixels; ++i) m[4 + i] = y[i + 1];
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter(const V* g, V* points) {
    const V own = g[1] * kScale, large = g[2] * (kScale * kGolden);
    const V small = g[2] * (kScale * (kGolden - 1));
    points[0] = own + large;
    points[1] = own + small;
    points[2] = own - small;
    points[3] = own - large;
    points[4] = g[0] - g[2];
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter_gradients(const V* points, V* g) {
    g[0] = points[4];
    g[1] = (points[0] + points[1] + points[2] + points[3]) * kScale;
    g[2] = (points[0] - points[3]) * (kScale * kGolden) +
           (points[1] - points[2]) * (kScale * (kGolden - 1)) - points[4];
  }
};

template <>
struct AxisTransforms<WinogradForm::kF2> {
  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void sources(const V* x, V* points) {
    if constexpr (kPixels == 1) {
      points[0] = x[0];
      points[1] = x[2];
      points[2] = x[1];
      points[3] = -x[1];
    } else {
      points[0] = x[0] - x[2];
      points[1] = x[3] - x[1];
      points[2] = x[1] + x[2];
      points[3] = x[2] - x[1];
    }
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void destinations(const V* m, V* y) {
    if constexpr (kPixels == 1) {
      y[0] = m[0] + m[1] + (m[2] + m[3]);
    } else {
      y[0] = m[0] + m[2] + m[3];
      y[1] = m[2] - m[3] + m[1];
    }
  }

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void gradients(const V* y, V* m) {
    m[0] = y[0];
    m[1] = y[kPixels - 1];
    m[2] = kPixels == 1 ? y[0] : y[0] + y[kPixels - 1];
    m[3] = kPixels == 1 ? y[0] : y[0] - y[kPixels - 1];
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter(const V* g, V* points) {
    points[0] = g[0];
    points[1] = g[2];
    points[2] = (g[0] + g[1] + g[2]) * 0.5f;
    points[3] = (g[0] - g[1] + g[2]) * 0.5f;
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter_gradients(const V* points, V* g) {
    const V even = (points[2] + points[3]) * 0.5f;
    g[0] = points[0] + even;
    g[1] = (points[2] - points[3]) * 0.5f;
    g[2] = even + points[1];
  }
};

// Filters are divided by constants, and sources are multiplied by them. So tiles of all sizes use
// the same points of a filter.
template <>
struct AxisTransforms<WinogradForm::kF4> {
  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void sources(const V* x, V* points) {
    if constexpr (kPixels == 1) {
      points[0] = (x[0] - x[1]) * 4.f;
      points[1] = x[2] - x[1];
      points[2] = x[1] * -6.f;
    } else if constexpr (kPixels == 2) {
      points[0] = (x[0] - x[2]) * 4.f;
      points[1] = x[3] - x[1];
      points[2] = (x[1] + x[2]) * -3.f;
      points[3] = (x[2] - x[1]) * -3.f;
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

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void destinations(const V* m, V* y) {
    if constexpr (kPixels == 1) {
      y[0] = m[0] + m[1] + m[2];
    } else if constexpr (kPixels == 2) {
      y[0] = m[0] + m[2] + m[3];
      y[1] = m[2] - m[3] + m[1];
    } else if constexpr (kPixels == 3) {
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

  template <int kPixels, typename V>
  static ATROUSX_ALWAYS_INLINE void gradients(const V* y, V* m) {
    m[0] = y[0];
    m[1] = y[kPixels - 1];
    if constexpr (kPixels == 1) {
      m[2] = y[0];
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

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter(const V* g, V* points) {
    const V even1 = (g[0] + g[2]) * (-1 / 6.f), odd1 = g[1] * (-1 / 6.f);
    const V even2 = (g[0] + g[2] * 4.f) * (1 / 24.f), odd2 = g[1] * (1 / 12.f);
    points[0] = g[0] * 0.25f;
    points[1] = g[2];
    points[2] = even1 + odd1;
    points[3] = even1 - odd1;
    points[4] = even2 + odd2;
    points[5] = even2 - odd2;
  }

  template <typename V>
  static ATROUSX_ALWAYS_INLINE void filter_gradients(const V* points, V* g) {
    const V even1 = (points[2] + points[3]) * (-1 / 6.f);
    const V odd1 = (points[2] - points[3]) * (-1 / 6.f);
    const V even2 = (points[4] + points[5]) * (1 / 24.f);
    const V odd2 = (points[4] - points[5]) * (1 / 12.f);
    g[0] = points[0] * 0.25f + even1 + even2;
    g[1] = odd1 + odd2;
    g[2] = even1 + even2 * 4.f + points[1];
  }
};

}  // namespace atrousx
