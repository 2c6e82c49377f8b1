// What an iteration gives to the gradients of a term's parameters, over rows of labels, for the
// CPU.
//
// With slopes s, the gradient of the logits that an iteration's probabilities came from, of its
// message -w mu (F Q) and of the filter F = A S B (B splats, S blurs, A slices):
//   energies += (F^T s) Q^T, of which the gradients of w and mu are made;
//   corner k of point p is in A, with <-w mu^T s, (S B Q)[k]>, and in B, with
//   <-w mu Q, (S^T A^T s)[k]>.
#pragma once

#include "mean_field/cpu/iteration.h"

namespace atrousx {

// Sums over points, added to what is there; null where they are not asked for.
template <typename T>
struct TermGradients {
  T* energies;  // [L, padded L], row: the label that pays; with Potts' costs the diagonal, one row
  T* corners;   // [N P, D + 1]
  T* splat;     // [N P], of the scales
  T* slice;     // [N P]
};

// A point's probabilities and slopes, and what is found for it.
template <typename T>
struct PointGradients {
  const T *q, *slopes;                    // rows
  T* filtered;                            // a row: F^T s
  typename RowVector<T>::type* products;  // [D + 3], whose lanes are to be summed
  T slice_scale, splat_scale;
};

struct ParameterRows {
  static constexpr int64_t kPoints = 8;  // whose energies are summed at once

  // The message -weight mu Q and its gradient -weight mu^T s; Potts' has the opposite sign. Side by
  // side: each is a chain of dependent sums.
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void messages(const MessageTerm<T, Index>& forward,
                                             const MessageTerm<T, Index>& backward,
                                             const PointGradients<T>& point, int64_t lane,
                                             int64_t labels, int64_t stride,
                                             RowBlock<T, kVectors>& paid,
                                             RowBlock<T, kVectors>& caused) {
    paid.clear();
    caused.clear();
    if (forward.costs == nullptr) {
      paid.add(forward.weight, point.q + lane);
      caused.add(backward.weight, point.slopes + lane);
      return;
    }
    for (int64_t l = 0; l < labels; ++l) {
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

  // Some vectors of a point's row. `forward`, whose lattice holds Q, may be null; `backward` holds
  // the slopes.
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, const MessageTerm<T, Index>* forward,
                                          const MessageTerm<T, Index>* backward,
                                          PointGradients<T> point, int64_t at, int64_t labels,
                                          int64_t stride) {
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
    messages(*forward, *backward, point, lane, labels, stride, paid, caused);
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

  // to[i] = the sum of products[i]'s lanes; `to` has room for whole squares.
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
    template <int kVectors, typename T>
    static ATROUSX_ALWAYS_INLINE void block(int64_t lane, const T* filtered, const T* q,
                                            int64_t count, int64_t labels, int64_t stride,
                                            T* energies) {
      for (int64_t l = 0; l < labels; ++l) {
        RowBlock<T, kVectors> sum;
        sum.load(energies + l * stride + lane);
        for (int64_t p = 0; p < count; ++p)
          sum.add(filtered[p * stride + l], q + p * stride + lane);
        sum.store(energies + l * stride + lane);
      }
    }
  };

  // scratch holds kPoints rows.
  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const MessageTerm<T, Index>* forward,
                                        const MessageTerm<T, Index>* backward, const T* q,
                                        const T* slopes, T* scratch, TermGradients<T> gradients,
                                        int64_t labels, int64_t vectors, int64_t begin,
                                        int64_t end) {
    using Vector = typename RowVector<T>::type;
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    const int64_t stride = vectors * kLanes;
    const int dims = backward->dims;
    const T scale = slice_scale<T>(dims);
    Vector products[kMaxFeatures + 3];
    T sums[kMaxFeatures + 3 + kLanes];
    for (int64_t first = begin; first < end; first += kPoints) {
      const int64_t count = std::min(kPoints, end - first);
      for (int64_t p = first; p < first + count; ++p) {
        for (const MessageTerm<T, Index>* term : {forward, backward})
          if (term != nullptr)
            prefetch_corners(term->lattice, stride, term->vertices, p, end, dims, vectors);
        T* filtered = scratch + (p - first) * stride;
        const T splat = backward->slice_scale == nullptr ? T(1) : backward->slice_scale[p];
        const T slice =
            forward == nullptr || forward->slice_scale == nullptr ? T(1) : forward->slice_scale[p];
        std::fill_n(products, dims + 3, Vector{});
        const PointGradients<T> point{
            q + p * stride, slopes + p * stride, filtered, products, slice, splat};
        over_blocks<ParameterRows>(vectors, kLanes, forward, backward, point, p, labels, stride);
        for (int64_t i = 0; i < vectors; ++i)
          reinterpret_cast<Vector*>(filtered)[i] *= scale * splat;
        if (forward == nullptr) continue;
        sum_lanes<T>(products, dims + 3, sums);
        for (int k = 0; k <= dims; ++k) gradients.corners[p * (dims + 1) + k] += scale * sums[k];
        gradients.splat[p] += scale * sums[dims + 1];
        gradients.slice[p] += scale * sums[dims + 2];
      }
      if (gradients.energies == nullptr) continue;
      if (backward->costs != nullptr) {
        over_blocks<Energies>(vectors, kLanes, static_cast<const T*>(scratch), q + first * stride,
                              count, labels, stride, gradients.energies);
        continue;
      }
      for (int64_t i = 0; i < count * stride; ++i)
        gradients.energies[i % stride] += scratch[i] * q[first * stride + i];
    }
  }
};

}  // namespace atrousx
