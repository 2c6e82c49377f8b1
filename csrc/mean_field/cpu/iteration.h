// One iteration of mean-field inference, or of its gradient, over rows of labels on the CPU.
#pragma once

#include "mean_field/cpu/softmax_rows.h"

namespace atrousx {

// One Gaussian kernel of the energy. Its lattice holds Blur(Splat(Q)). In the gradient it holds the
// slopes, splatted and blurred by the transposed filter.
template <typename T, typename Index>
struct MessageTerm {
  const T* lattice;         // [M, padded L]
  const Index* vertices;    // [N P, D + 1]
  const T* corner_weights;  // [N P, D + 1]
  const T* slice_scale;     // [N P] or null
  const T* costs;           // [L, padded L], a row for each label that is met; null for Potts
  T weight;
  int dims;
};

// How an iteration treats the row at `at`, before and after messages are added to it. This step
// computes the probabilities of a point.
template <typename T>
struct SoftmaxStep {
  using Vector = typename RowVector<T>::type;
  const T* log_p;

  ATROUSX_ALWAYS_INLINE void begin(int64_t at, Vector* v, int64_t vectors) const {
    for (int64_t i = 0; i < vectors; ++i) v[i] = reinterpret_cast<const Vector*>(log_p + at)[i];
  }
  ATROUSX_ALWAYS_INLINE void finish(int64_t, Vector* v, int64_t vectors) const {
    softmax<T>(v, vectors);
  }
};

// This step computes the gradient of the logits that the probabilities came from.
template <typename T>
struct SlopeStep {
  using Vector = typename RowVector<T>::type;
  const T* q;
  T* total;

  ATROUSX_ALWAYS_INLINE void begin(int64_t, Vector* v, int64_t vectors) const {
    for (int64_t i = 0; i < vectors; ++i) v[i] = Vector{};
  }
  ATROUSX_ALWAYS_INLINE void finish(int64_t at, Vector* v, int64_t vectors) const {
    slope<T>(v, reinterpret_cast<const Vector*>(q + at), reinterpret_cast<Vector*>(total + at),
             vectors);
  }
};

// rows[p] = step(messages)
template <typename T, typename Index, typename Step>
struct RowUpdate {
  const MessageTerm<T, Index>* terms;  // [count]
  int64_t count;
  Step step;
  T* rows;     // [N P, padded L]
  T* scratch;  // a row
  int64_t labels, vectors;
};

struct UpdateRows {
  // Adds to sum factor times the filtered labels of one point. kDims is D, or 0 for any D.
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

  // The same for a whole row. It is a function, because a lambda would not be compiled for the
  // instruction set of its caller.
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void add_message(const MessageTerm<T, Index>* term, int64_t point,
                                                T factor, int64_t vectors, T* row) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    if constexpr (kVectors != 0)
      block<kVectors>(0, term, kVectors * kLanes, point, factor, row);
    else
      over_blocks<UpdateRows>(vectors, kLanes, term, vectors * kLanes, point, factor, row);
  }

  // Updates a row. It has kVectors vectors, which stay in registers, or `vectors` if kVectors is 0.
  template <int kVectors, typename T, typename Index, typename Step>
  static ATROUSX_ALWAYS_INLINE void update(const RowUpdate<T, Index, Step>& u, int64_t point,
                                           T* row) {
    using Vector = typename RowVector<T>::type;
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    const int64_t vectors = kVectors != 0 ? kVectors : u.vectors, stride = vectors * kLanes;
    T* const scratch = u.scratch;
    Vector* v = reinterpret_cast<Vector*>(row);
    u.step.begin(point * stride, v, vectors);
    for (const MessageTerm<T, Index>* term = u.terms; term != u.terms + u.count; ++term) {
      // Potts: probabilities sum to one. So the cost of unequal labels is a constant minus that of
      // equal labels, and softmax drops the constant.
      if (term->costs == nullptr) {
        add_message<kVectors>(term, point, term->weight, vectors, row);
        continue;
      }
      for (int64_t i = 0; i < stride; ++i) scratch[i] = T(0);
      add_message<kVectors>(term, point, -term->weight, vectors, scratch);
      for (int64_t l = 0; l < u.labels; ++l) {
        const Vector* cost = reinterpret_cast<const Vector*>(term->costs + l * stride);
        for (int64_t i = 0; i < vectors; ++i) v[i] += scratch[l] * cost[i];
      }
    }
    u.step.finish(point * stride, v, vectors);
  }

  template <int kVectors, typename T, typename Index, typename Step>
  static ATROUSX_ALWAYS_INLINE void points(const RowUpdate<T, Index, Step>& u, int64_t begin,
                                           int64_t end) {
    const int64_t vectors = kVectors != 0 ? kVectors : u.vectors;
    const int64_t stride = vectors * RowVector<T>::kLanes;
    for (int64_t p = begin; p < end; ++p) {
      for (const MessageTerm<T, Index>* term = u.terms; term != u.terms + u.count; ++term)
        prefetch_corners(CornerRows<T, Index>{term->lattice, stride, term->vertices, term->dims}, p,
                         end, vectors);
      T* row = u.rows + p * stride;
      if constexpr (kVectors == 0) {
        update<0>(u, p, row);
      } else {
        RowBlock<T, kVectors> own;
        update<kVectors>(u, p, reinterpret_cast<T*>(own.v));
        own.store(row);
      }
    }
  }

  template <typename T, typename Index, typename Step>
  static ATROUSX_ALWAYS_INLINE void run(RowUpdate<T, Index, Step> u, int64_t begin, int64_t end) {
    switch (u.vectors) {
      case 1:
        return points<1>(u, begin, end);
      case 2:
        return points<2>(u, begin, end);
      case 3:
        return points<3>(u, begin, end);
      default:
        return points<0>(u, begin, end);
    }
  }
};

}  // namespace atrousx
