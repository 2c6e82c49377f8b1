// Rows of labels on the CPU, one row per point: their softmax, and their conversion from and to
// [N, L, P].
//
// Rows are padded to whole vectors. The padding has log-probability minus infinity, so its
// probability is 0. Its gradients are 0.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/transpose.h"
#include "cpu/vector_math.h"
#include "permutohedral_filter/cpu/splat_blur_slice.h"

namespace atrousx {

// f(a, b) combines b into a. This combines the halves of a vector, then quarters and so on, until
// every lane holds the result for all lanes. f takes references, because compilers warn about the
// ABI of functions that return vectors.
template <int kStep, typename T, typename F, size_t... kLane>
ATROUSX_ALWAYS_INLINE typename RowVector<T>::type over_lanes(typename RowVector<T>::type v,
                                                             const F& f,
                                                             std::index_sequence<kLane...> lanes) {
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  constexpr int kLanes = sizeof...(kLane);
  const Lanes<Index, kLanes> from = {static_cast<Index>(kLane ^ kStep)...};
  f(v, permute_lanes<kLanes, T, Index>(v, v, from));
  if constexpr (kStep > 1)
    return over_lanes<kStep / 2, T>(v, f, lanes);
  else
    return v;
}

template <typename T, typename F>
ATROUSX_ALWAYS_INLINE typename RowVector<T>::type over_lanes(typename RowVector<T>::type v,
                                                             const F& f) {
  constexpr int kLanes = static_cast<int>(RowVector<T>::kLanes);
  return over_lanes<kLanes / 2, T>(v, f, std::make_index_sequence<kLanes>{});
}

template <typename T>
ATROUSX_ALWAYS_INLINE typename RowVector<T>::type largest(const typename RowVector<T>::type* v,
                                                          int64_t vectors) {
  using Vector = typename RowVector<T>::type;
  const auto larger = [](Vector& a, const Vector& b) { a = b > a ? b : a; };
  Vector most = v[0];
  for (int64_t i = 1; i < vectors; ++i) larger(most, v[i]);
  return over_lanes<T>(most, larger);
}

// Takes the softmax in place. Minus infinity becomes 0.
template <typename T>
ATROUSX_ALWAYS_INLINE void softmax(typename RowVector<T>::type* v, int64_t vectors) {
  using Vector = typename RowVector<T>::type;
  const Vector most = largest<T>(v, vectors);
  Vector sums{};
  for (int64_t i = 0; i < vectors; ++i) {
    v[i] = LaneMath<T, RowVector<T>::kLanes>::exp_nonpositive(v[i] - most);
    sums += v[i];
  }
  const Vector scale = T(1) / over_lanes<T>(sums, [](Vector& a, const Vector& b) { a += b; });
  for (int64_t i = 0; i < vectors; ++i) v[i] *= scale;
}

// The sizes of maps [N, L, P], and the number of vectors in a row of labels.
struct LabelMaps {
  int64_t labels, points, vectors;
};

// Converts between the labels [L, P] of an image and rows of labels, in squares of kLanes points
// and labels. A tile has some neighbouring cache lines of each label. This is faster than single
// lines far apart.
template <typename T>
struct LabelSquares {
  using Vector = typename RowVector<T>::type;
  static constexpr int64_t kLanes = RowVector<T>::kLanes, kTile = 128;

  // How many of the points [p, end) are transposed at once: whole squares within an image, or 0 if
  // there are fewer points than a square has.
  static ATROUSX_ALWAYS_INLINE int64_t tile(int64_t p, int64_t end, int64_t points) {
    return std::min({kTile, end - p, points - p % points}) / kLanes * kLanes;
  }

  // Converts points from p on of labels [N, L, P] to rows with the given padding, but none from
  // `end` on. Returns the number of points.
  static ATROUSX_ALWAYS_INLINE int64_t to_rows(const T* labels, LabelMaps maps, int64_t p,
                                               int64_t end, T padding, T* rows) {
    const int64_t count = maps.labels, points = maps.points, vectors = maps.vectors;
    const T* source = labels + p / points * count * points + p % points;
    const int64_t taken = tile(p, end, points), stride = vectors * kLanes;
    if (taken == 0) {
      for (int64_t l = 0; l < stride; ++l) rows[l] = l < count ? source[l * points] : padding;
      return 1;
    }
    for (int64_t i = 0; i < vectors; ++i)
      for (int64_t at = 0; at < taken; at += kLanes) {
        transpose_square<kLanes>(
            [&](int64_t j) ATROUSX_INLINE_LAMBDA {
              const int64_t label = i * kLanes + j;
              return label < count ? load_raw<Vector>(source + label * points + at)
                                   : Vector{} + padding;
            },
            [&](int64_t j, auto v) ATROUSX_INLINE_LAMBDA {
              reinterpret_cast<Vector*>(rows)[(at + j) * vectors + i] = v;
            });
      }
    return taken;
  }

  // The inverse conversion.
  static ATROUSX_ALWAYS_INLINE int64_t to_labels(const T* rows, LabelMaps maps, int64_t p,
                                                 int64_t end, T* labels) {
    const int64_t count = maps.labels, points = maps.points, vectors = maps.vectors;
    T* target = labels + p / points * count * points + p % points;
    const int64_t taken = tile(p, end, points);
    if (taken == 0) {
      for (int64_t l = 0; l < count; ++l) target[l * points] = rows[l];
      return 1;
    }
    for (int64_t i = 0; i < vectors; ++i)
      for (int64_t at = 0; at < taken; at += kLanes) {
        transpose_square<kLanes>(
            [&](int64_t j) ATROUSX_INLINE_LAMBDA {
              return reinterpret_cast<const Vector*>(rows)[(at + j) * vectors + i];
            },
            [&](int64_t j, auto v) ATROUSX_INLINE_LAMBDA {
              const int64_t label = i * kLanes + j;
              if (label < count) *reinterpret_cast<Vector*>(target + label * points + at) = v;
            });
      }
    return taken;
  }
};

// logits [N, L, P] -> rows of labels: log P, up to a constant per point, and Q = P
struct StartRows {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* logits, T* log_p, T* q, LabelMaps maps,
                                        int64_t begin, int64_t end) {
    using Vector = typename RowVector<T>::type;
    const int64_t vectors = maps.vectors, stride = vectors * RowVector<T>::kLanes;
    constexpr T kNever = -std::numeric_limits<T>::infinity();
    for (int64_t p = begin, count; p < end; p += count) {
      T* rows = log_p + p * stride;
      count = LabelSquares<T>::to_rows(logits, maps, p, end, kNever, rows);
      for (int64_t i = 0; i < count; ++i) {
        Vector* row = reinterpret_cast<Vector*>(rows + i * stride);
        Vector* own = reinterpret_cast<Vector*>(q + (p + i) * stride);
        const Vector most = largest<T>(row, vectors);
        for (int64_t v = 0; v < vectors; ++v) own[v] = row[v] -= most;
        softmax<T>(own, vectors);
      }
    }
  }
};

// rows -> [N, L, P]
struct FinishRows {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* rows, T* output, LabelMaps maps, int64_t begin,
                                        int64_t end) {
    const int64_t stride = maps.vectors * RowVector<T>::kLanes;
    for (int64_t p = begin; p < end;)
      p += LabelSquares<T>::to_labels(rows + p * stride, maps, p, end, output);
  }
};

// Replaces the gradient v of a softmax's result by the gradient of its logits, and adds it to the
// total over all uses of the logits: v = q (v - <v, q>), total += v.
template <typename T>
ATROUSX_ALWAYS_INLINE void slope(typename RowVector<T>::type* v,
                                 const typename RowVector<T>::type* q,
                                 typename RowVector<T>::type* total, int64_t vectors) {
  using Vector = typename RowVector<T>::type;
  Vector sums{};
  for (int64_t i = 0; i < vectors; ++i) sums += v[i] * q[i];
  const Vector mean = over_lanes<T>(sums, [](Vector& a, const Vector& b) { a += b; });
  for (int64_t i = 0; i < vectors; ++i) {
    v[i] = q[i] * (v[i] - mean);
    total[i] += v[i];
  }
}

// Gradients of logits: those of one iteration, and the sum over all iterations.
template <typename T>
struct SlopeRows {
  T *slopes, *total;
};

// Gradient of Q [N, L, P] -> gradient of its logits, in `slopes` and `total`. Each further
// iteration replaces the slopes and adds to the total.
struct StartSlopeRows {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* grad, const T* q, SlopeRows<T> to, LabelMaps maps,
                                        int64_t begin, int64_t end) {
    using Vector = typename RowVector<T>::type;
    const int64_t vectors = maps.vectors, stride = vectors * RowVector<T>::kLanes;
    T *slopes = to.slopes, *total = to.total;
    std::fill(total + begin * stride, total + end * stride, T(0));
    for (int64_t p = begin, count; p < end; p += count) {
      count = LabelSquares<T>::to_rows(grad, maps, p, end, T(0), slopes + p * stride);
      for (int64_t i = p * stride; i < (p + count) * stride; i += stride)
        slope<T>(reinterpret_cast<Vector*>(slopes + i), reinterpret_cast<const Vector*>(q + i),
                 reinterpret_cast<Vector*>(total + i), vectors);
    }
  }
};

}  // namespace atrousx
