// The loops of mean-field inference over rows of labels, for the CPU.
//
// Rows are padded to whole vectors with log-probabilities of minus infinity, so that the padding's
// probabilities are 0.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "../cpu_lanes.h"
#include "../permutohedral/cpu_rows.h"

namespace atrousx {

// e^x of each lane, x <= 0. Float: 2^k e^r with |r| <= log(2) / 2 and r's series up to r^7 (5e-9);
// results below 2^-126 are 0, NaN stays.
ATROUSX_ALWAYS_INLINE void exp_lanes(typename RowVector<float>::type& x) {
  using Vector = typename RowVector<float>::type;
  typedef int32_t Bits __attribute__((vector_size(32)));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const Vector shifted = x * 1.44269504f + kRound;
  const Vector k = shifted - kRound;
  const Vector r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // log(2) in two parts
  Vector series = r * (1.0f / 5040) + 1.0f / 720;
  for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    series = series * r + coefficient;
  Bits exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  std::memcpy(&bits, &series, sizeof bits);
  // The integer is in the last bits of `shifted`; the first ones are shifted out.
  const Bits scaled = bits + (exponent << 23);
  const Bits vanished = x < -87.0f;
  const Bits result = scaled & ~vanished;
  std::memcpy(&x, &result, sizeof result);
}

ATROUSX_ALWAYS_INLINE void exp_lanes(typename RowVector<double>::type& x) {
  for (int i = 0; i < RowVector<double>::kLanes; ++i) x[i] = std::exp(x[i]);
}

// f of all lanes, in every lane; halves are joined, then quarters, ...
template <int kStep, typename T, typename F, size_t... kLane>
ATROUSX_ALWAYS_INLINE typename RowVector<T>::type over_lanes(typename RowVector<T>::type v,
                                                             const F& f,
                                                             std::index_sequence<kLane...> lanes) {
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  constexpr int kLanes = sizeof...(kLane);
  const Lanes<Index, kLanes> from = {static_cast<Index>(kLane ^ kStep)...};
  v = f(v, permute_lanes<kLanes, T, Index>(v, v, from));
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
  const auto larger = [](Vector a, Vector b) -> Vector { return a > b ? a : b; };
  Vector most = v[0];
  for (int64_t i = 1; i < vectors; ++i) most = larger(v[i], most);
  return over_lanes<T>(most, larger);
}

// In place; minus infinity becomes 0.
template <typename T>
ATROUSX_ALWAYS_INLINE void softmax(typename RowVector<T>::type* v, int64_t vectors) {
  using Vector = typename RowVector<T>::type;
  const Vector most = largest<T>(v, vectors);
  Vector sums{};
  for (int64_t i = 0; i < vectors; ++i) {
    Vector x = v[i] - most;
    exp_lanes(x);
    v[i] = x;
    sums += x;
  }
  const Vector scale = T(1) / over_lanes<T>(sums, [](Vector a, Vector b) { return a + b; });
  for (int64_t i = 0; i < vectors; ++i) v[i] *= scale;
}

// Between labels [L, P] of an image and rows of labels: squares of kLanes points and labels turn
// over in registers. A label's part of a tile is some cache lines long, which memory likes better
// than single ones far apart.
template <typename T>
struct Turned {
  using Vector = typename RowVector<T>::type;
  static constexpr int64_t kLanes = RowVector<T>::kLanes, kTile = 128;

  // How many of the points [p, end) a call of f(image's labels at p, count) takes: whole squares
  // within an image, or 0 where there are too few.
  static ATROUSX_ALWAYS_INLINE int64_t tile(int64_t p, int64_t end, int64_t points) {
    return std::min({kTile, end - p, points - p % points}) / kLanes * kLanes;
  }

  // labels at the first of `tile` points [L, points] -> rows [tile, vectors]
  static ATROUSX_ALWAYS_INLINE void to_rows(const T* labels, int64_t points, int64_t count,
                                            int64_t vectors, int64_t tile, T* rows) {
    for (int64_t i = 0; i < vectors; ++i)
      for (int64_t p = 0; p < tile; p += kLanes) {
        Vector square[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) {
          const int64_t label = i * kLanes + j;
          square[j] = label < count ? load_raw<Vector>(labels + label * points + p)
                                    : Vector{} - std::numeric_limits<T>::infinity();
        }
        transpose_lanes(square);
        for (int64_t j = 0; j < kLanes; ++j)
          reinterpret_cast<Vector*>(rows)[(p + j) * vectors + i] = square[j];
      }
  }

  // The same back.
  static ATROUSX_ALWAYS_INLINE void to_labels(const T* rows, int64_t points, int64_t count,
                                              int64_t vectors, int64_t tile, T* labels) {
    for (int64_t i = 0; i < vectors; ++i)
      for (int64_t p = 0; p < tile; p += kLanes) {
        Vector square[kLanes];
        for (int64_t j = 0; j < kLanes; ++j)
          square[j] = reinterpret_cast<const Vector*>(rows)[(p + j) * vectors + i];
        transpose_lanes(square);
        for (int64_t j = 0; j < std::min(kLanes, count - i * kLanes); ++j)
          *reinterpret_cast<Vector*>(labels + (i * kLanes + j) * points + p) = square[j];
      }
  }
};

// logits [N, L, P] -> log P, up to a constant per point, and Q = P: rows of labels
struct StartRows {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* logits, T* log_p, T* q, int64_t labels,
                                        int64_t vectors, int64_t points, int64_t begin,
                                        int64_t end) {
    using Vector = typename RowVector<T>::type;
    const int64_t stride = vectors * RowVector<T>::kLanes;
    for (int64_t p = begin, count; p < end; p += count) {
      const T* source = logits + p / points * labels * points + p % points;
      T* rows = log_p + p * stride;
      count = Turned<T>::tile(p, end, points);
      if (count > 0) {
        Turned<T>::to_rows(source, points, labels, vectors, count, rows);
      } else {
        count = 1;
        for (int64_t l = 0; l < stride; ++l)
          rows[l] = l < labels ? source[l * points] : -std::numeric_limits<T>::infinity();
      }
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

// One Gaussian kernel of the energy, with Blur(Splat(Q)).
template <typename T, typename Index>
struct MessageTerm {
  const T* lattice;         // [M, padded L]
  const Index* vertices;    // [N P, D + 1]
  const T* corner_weights;  // [N P, D + 1]
  const T* slice_scale;     // [N P] or null
  const T* costs;           // [L, padded L], row: the label that is met; null is Potts'
  T weight;
  int dims;
};

// q[p] = softmax(log P[p] - messages)
struct UpdateRows {
  // sum += factor * the filtered labels of one point. D is kDims where that is not 0.
  template <int kDims, int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void add_filtered(const MessageTerm<T, Index>& term, int64_t lane,
                                                 int64_t stride, int64_t point, T factor,
                                                 RowBlock<T, kVectors>& sum) {
    const int dims = kDims != 0 ? kDims : term.dims;
    const Index* vertex = term.vertices + point * (dims + 1);
    const T* weight = term.corner_weights + point * (dims + 1);
    if (term.slice_scale != nullptr) factor *= term.slice_scale[point];
    factor *= slice_scale<T>(dims);
    for (int k = 0; k <= dims; ++k)
      sum.add(factor * weight[k], term.lattice + vertex[k] * stride + lane);
  }

  // row += factor * the filtered labels of one point
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, const MessageTerm<T, Index>* term,
                                          int64_t stride, int64_t point, T factor, T* row) {
    RowBlock<T, kVectors> sum;
    sum.load(row + lane);
    if (term->dims == 2)
      add_filtered<2>(*term, lane, stride, point, factor, sum);
    else if (term->dims == 5)
      add_filtered<5>(*term, lane, stride, point, factor, sum);
    else
      add_filtered<0>(*term, lane, stride, point, factor, sum);
    sum.store(row + lane);
  }

  // A row is `vectors` vectors; where kVectors is not 0, it is that many and stays in registers.
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void update(const MessageTerm<T, Index>* terms, int64_t count,
                                           const T* start, int64_t point, int64_t labels,
                                           int64_t vectors, T* scratch, T* row) {
    using Vector = typename RowVector<T>::type;
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    const int64_t stride = vectors * kLanes;
    const auto add_message = [&](const MessageTerm<T, Index>* term, T factor, T* to) {
      if constexpr (kVectors != 0)
        block<kVectors>(0, term, stride, point, factor, to);
      else
        over_blocks<UpdateRows>(vectors, kLanes, term, stride, point, factor, to);
    };
    Vector* v = reinterpret_cast<Vector*>(row);
    for (int64_t i = 0; i < vectors; ++i) v[i] = reinterpret_cast<const Vector*>(start)[i];
    for (const MessageTerm<T, Index>* term = terms; term != terms + count; ++term) {
      // Potts: probabilities sum to one, so what unequal labels cost is a constant less what equal
      // ones do, and softmax drops the constant.
      if (term->costs == nullptr) {
        add_message(term, term->weight, row);
        continue;
      }
      for (int64_t i = 0; i < stride; ++i) scratch[i] = T(0);
      add_message(term, -term->weight, scratch);
      for (int64_t l = 0; l < labels; ++l) {
        const Vector* cost = reinterpret_cast<const Vector*>(term->costs + l * stride);
        for (int64_t i = 0; i < vectors; ++i) v[i] += scratch[l] * cost[i];
      }
    }
    softmax<T>(v, vectors);
  }

  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void points(const MessageTerm<T, Index>* terms, int64_t count,
                                           const T* log_p, T* q, T* scratch, int64_t labels,
                                           int64_t vectors, int64_t begin, int64_t end) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    if constexpr (kVectors != 0) vectors = kVectors;
    const int64_t stride = vectors * kLanes;
    for (int64_t p = begin; p < end; ++p) {
      for (const MessageTerm<T, Index>* term = terms; term != terms + count; ++term)
        prefetch_corners(term->lattice, stride, term->vertices, p, end, term->dims, vectors);
      T* row = q + p * stride;
      if constexpr (kVectors == 0) {
        update<0>(terms, count, log_p + p * stride, p, labels, vectors, scratch, row);
      } else {
        RowBlock<T, kVectors> own;
        update<kVectors>(terms, count, log_p + p * stride, p, labels, kVectors, scratch,
                         reinterpret_cast<T*>(own.v));
        own.store(row);
      }
    }
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const MessageTerm<T, Index>* terms, int64_t count,
                                        const T* log_p, T* q, T* scratch, int64_t labels,
                                        int64_t vectors, int64_t begin, int64_t end) {
    switch (vectors) {
      case 1:
        return points<1>(terms, count, log_p, q, scratch, labels, vectors, begin, end);
      case 2:
        return points<2>(terms, count, log_p, q, scratch, labels, vectors, begin, end);
      case 3:
        return points<3>(terms, count, log_p, q, scratch, labels, vectors, begin, end);
      default:
        return points<0>(terms, count, log_p, q, scratch, labels, vectors, begin, end);
    }
  }
};

// rows of Q -> [N, L, P]
struct FinishRows {
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void run(const T* q, T* output, int64_t labels, int64_t vectors,
                                        int64_t points, int64_t begin, int64_t end) {
    const int64_t stride = vectors * RowVector<T>::kLanes;
    for (int64_t p = begin, count; p < end; p += std::max<int64_t>(1, count)) {
      T* target = output + p / points * labels * points + p % points;
      count = Turned<T>::tile(p, end, points);
      if (count > 0)
        Turned<T>::to_labels(q + p * stride, points, labels, vectors, count, target);
      else
        for (int64_t l = 0; l < labels; ++l) target[l * points] = q[p * stride + l];
    }
  }
};

}  // namespace atrousx
