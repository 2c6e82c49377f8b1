// What an iteration adds to the gradients of a term's parameters, over rows of labels on the CPU.
//
// The slopes s are the gradient of the logits that an iteration's probabilities came from. The
// message is -w mu (F Q), and the filter is F = A S B (B splats, S blurs, A slices). Then
//   energies += (F^T s) Q^T, from which the gradients of w and mu are computed;
//   corners[p, k] += <-w mu^T s, (S B Q)[k]> + <-w mu Q, (S^T A^T s)[k]>, the gradient of the
//     weight of corner k of point p. The first term is for the weight in A, the second for B.
#pragma once

#include "mean_field/cpu/iteration.h"

namespace atrousx {

// Sums over points. New terms are added to them. A null pointer means that they are not needed.
template <typename T>
struct TermGradients {
  T* energies;  // [L, padded L], a row for each label that pays; for Potts the diagonal, one row
  T* corners;   // [N P, D + 1]
  T* splat;     // [N P], gradients of the scales
  T* slice;     // [N P]
};

// The probabilities and slopes of a point, and its results.
template <typename T>
struct PointGradients {
  const T *q, *slopes;                    // rows
  T* filtered;                            // a row: F^T s
  typename RowVector<T>::type* products;  // [D + 3], lanes are summed later
  T slice_scale, splat_scale;
};

// One pass of a term over rows of labels.
template <typename T, typename Index>
struct ParameterPass {
  const MessageTerm<T, Index>* forward;   // its lattice holds Q; may be null
  const MessageTerm<T, Index>* backward;  // its lattice holds the slopes
  const T *q, *slopes;                    // [N P, padded L]
  T* filtered;                            // [ParameterRows::kPoints, padded L], scratch
  TermGradients<T> gradients;
  int64_t labels, vectors;

  int64_t stride() const { return vectors * RowVector<T>::kLanes; }
};

struct ParameterRows {
  static constexpr int64_t kPoints = 8;  // points whose energies are summed at once

  // Computes the message -weight mu Q and its gradient -weight mu^T s. For Potts both have the
  // opposite sign. Both are computed in one loop, because each is a chain of dependent sums.
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void messages(const ParameterPass<T, Index>& pass,
                                             const PointGradients<T>& point, int64_t lane,
                                             RowBlock<T, kVectors>& paid,
                                             RowBlock<T, kVectors>& caused) {
    const MessageTerm<T, Index>&forward = *pass.forward, &backward = *pass.backward;
    const int64_t stride = pass.stride();
    paid.clear();
    caused.clear();
    if (forward.costs == nullptr) {
      paid.add(forward.weight, point.q + lane);
      caused.add(backward.weight, point.slopes + lane);
      return;
    }
    for (int64_t l = 0; l < pass.labels; ++l) {
      paid.add(-forward.weight * point.q[l], forward.costs + l * stride + lane);
      caused.add(-backward.weight * point.slopes[l], backward.costs + l * stride + lane);
    }
  }

  template <int kVectors, typename T>
  static ATROUSX_ALWAYS_INLINE void add_product(const RowBlock<T, kVectors>& a,
                                                const RowBlock<T, kVectors>& b, T factor,
                                                typename RowVector<T>::type& sums) {
    typename RowVector<T>::type product = a.v[0] * b.v[0];
    for (int i = 1; i < kVectors; ++i) product += a.v[i] * b.v[i];
    sums += factor * product;
  }

  // Handles some vectors of a point's row.
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, ParameterPass<T, Index> pass,
                                          PointGradients<T> point, int64_t at) {
    const MessageTerm<T, Index>*forward = pass.forward, *backward = pass.backward;
    const int64_t stride = pass.stride();
    const int dims = backward->dims;
    const Index* vertex = backward->vertices + at * (dims + 1);
    const T* weight = backward->corner_weights + at * (dims + 1);
    RowBlock<T, kVectors> heard, row;
    heard.clear();
    if (forward == nullptr) {
      for (int k = 0; k <= dims; ++k)
        heard.add(weight[k], backward->lattice + vertex[k] * stride + lane);
      return heard.store(point.filtered + lane);
    }
    RowBlock<T, kVectors> told, paid, caused;
    told.clear();
    messages(pass, point, lane, paid, caused);
    for (int k = 0; k <= dims; ++k) {
      row.load(backward->lattice + vertex[k] * stride + lane);
      add_product(paid, row, point.splat_scale, point.products[k]);
      for (int i = 0; i < kVectors; ++i) heard.v[i] += weight[k] * row.v[i];
      row.load(forward->lattice + vertex[k] * stride + lane);
      add_product(caused, row, point.slice_scale, point.products[k]);
      for (int i = 0; i < kVectors; ++i) told.v[i] += weight[k] * row.v[i];
    }
    add_product(paid, heard, T(1), point.products[dims + 1]);
    add_product(caused, told, T(1), point.products[dims + 2]);
    heard.store(point.filtered + lane);
  }

  // to[i] = the sum of the lanes of products[i]; `to` has room for whole squares.
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void sum_lanes(const typename RowVector<T>::type* products,
                                              int64_t count, T* to) {
    using Vector = typename RowVector<T>::type;
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    for (int64_t at = 0; at < count; at += kLanes) {
      Vector square[kLanes] = {}, sums{};
      for (int64_t i = 0; i < std::min(kLanes, count - at); ++i) square[i] = products[at + i];
      transpose_lanes(square);
      for (int64_t i = 0; i < kLanes; ++i) sums += square[i];
      *reinterpret_cast<Vector*>(to + at) = sums;
    }
  }

  // energies += filtered^T q over `count` points
  struct Energies {
    template <int kVectors, typename T, typename Index>
    static ATROUSX_ALWAYS_INLINE void block(int64_t lane, ParameterPass<T, Index> pass, const T* q,
                                            int64_t count) {
      const int64_t stride = pass.stride();
      for (int64_t l = 0; l < pass.labels; ++l) {
        RowBlock<T, kVectors> sum;
        sum.load(pass.gradients.energies + l * stride + lane);
        for (int64_t p = 0; p < count; ++p)
          sum.add(pass.filtered[p * stride + l], q + p * stride + lane);
        sum.store(pass.gradients.energies + l * stride + lane);
      }
    }
  };

  // Adds the energies of `count` filtered points from `first` on.
  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void add_energies(const ParameterPass<T, Index>& pass, int64_t first,
                                                 int64_t count) {
    const int64_t stride = pass.stride();
    const T* q = pass.q + first * stride;
    if (pass.backward->costs != nullptr)
      return over_blocks<Energies>(pass.vectors, RowVector<T>::kLanes, pass, q, count);
    for (int64_t i = 0; i < count * stride; ++i)
      pass.gradients.energies[i % stride] += pass.filtered[i] * q[i];
  }

  // Visits point p of a task that ends at `end`. Writes the filtered row to `filtered`, and adds
  // the gradients of the point's corners and scales.
  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void visit(const ParameterPass<T, Index>& pass, int64_t p,
                                          int64_t end, T* filtered) {
    using Vector = typename RowVector<T>::type;
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    const MessageTerm<T, Index>*forward = pass.forward, *backward = pass.backward;
    const int64_t stride = pass.stride();
    const int dims = backward->dims;
    const T scale = slice_scale<T>(dims);
    for (const MessageTerm<T, Index>* term : {forward, backward})
      if (term != nullptr)
        prefetch_corners(CornerRows<T, Index>{term->lattice, stride, term->vertices, dims}, p, end,
                         pass.vectors);
    const auto point_scale = [p](const MessageTerm<T, Index>* term) {
      return term == nullptr || term->slice_scale == nullptr ? T(1) : term->slice_scale[p];
    };
    const T splat = point_scale(backward), slice = point_scale(forward);
    Vector products[kMaxFeatures + 3];
    std::fill_n(products, dims + 3, Vector{});
    const PointGradients<T> point{
        pass.q + p * stride, pass.slopes + p * stride, filtered, products, slice, splat};
    over_blocks<ParameterRows>(pass.vectors, kLanes, pass, point, p);
    for (int64_t i = 0; i < pass.vectors; ++i)
      reinterpret_cast<Vector*>(filtered)[i] *= scale * splat;
    if (forward == nullptr) return;
    T sums[kMaxFeatures + 3 + kLanes];
    sum_lanes<T>(products, dims + 3, sums);
    const TermGradients<T>& to = pass.gradients;
    for (int k = 0; k <= dims; ++k) to.corners[p * (dims + 1) + k] += scale * sums[k];
    to.splat[p] += scale * sums[dims + 1];
    to.slice[p] += scale * sums[dims + 2];
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(ParameterPass<T, Index> pass, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kPoints) {
      const int64_t count = std::min(kPoints, end - first);
      for (int64_t i = 0; i < count; ++i)
        visit(pass, first + i, end, pass.filtered + i * pass.stride());
      if (pass.gradients.energies != nullptr) add_energies(pass, first, count);
    }
  }
};

}  // namespace atrousx
