// What an iteration gives to the gradients of a term's parameters, over rows of labels, for the
// CPU.
//
// With slopes s, the gradient of the logits that an iteration's probabilities came from, of its
// message -w mu (F Q) and of the filter F = A S B (B splats, S blurs, A slices):
//   energies += (F^T s) Q^T, of which the gradients of w and mu are made;
//   corner k of point p is in A, with <-w mu^T s, (S B Q)[k]>, and in B, with <-w mu Q, (S^T A^T
//   s)[k]>.
#pragma once

#include "mean_field_rows.h"

namespace atrousx {

// energies[pays, met] += sum over points of (F^T s)[pays] Q[met]; with Potts' costs the diagonal
// alone, as one row.
struct EnergyRows {
  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const MessageTerm<T, Index>* term, const T* q, T* filtered,
                                        T* energies, int64_t labels, int64_t vectors, int64_t begin,
                                        int64_t end) {
    using Vector = typename RowVector<T>::type;
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    const int64_t stride = vectors * kLanes;
    const Vector* heard = reinterpret_cast<const Vector*>(filtered);
    for (int64_t p = begin; p < end; ++p) {
      prefetch_corners(term->lattice, stride, term->vertices, p, end, term->dims, vectors);
      const Vector* own = reinterpret_cast<const Vector*>(q + p * stride);
      std::fill(filtered, filtered + stride, T(0));
      UpdateRows::add_message<0>(term, p, T(1), vectors, filtered);
      if (term->costs == nullptr) {
        for (int64_t i = 0; i < vectors; ++i)
          reinterpret_cast<Vector*>(energies)[i] += heard[i] * own[i];
        continue;
      }
      for (int64_t l = 0; l < labels; ++l)
        for (int64_t i = 0; i < vectors; ++i)
          reinterpret_cast<Vector*>(energies + l * stride)[i] += filtered[l] * own[i];
    }
  }
};

// Gradients of the corners' weights and of the scales, added to what is there.
template <typename T>
struct CornerGradients {
  T* corners;  // [N P, D + 1]
  T* splat;    // [N P]
  T* slice;    // [N P]
};

struct CornerRows {
  // factor * costs^T row
  template <typename T>
  static ATROUSX_ALWAYS_INLINE void message(const T* costs, T weight, const T* row, int64_t labels,
                                            int64_t vectors, T* out) {
    using Vector = typename RowVector<T>::type;
    const int64_t stride = vectors * RowVector<T>::kLanes;
    Vector* to = reinterpret_cast<Vector*>(out);
    const Vector* from = reinterpret_cast<const Vector*>(row);
    for (int64_t i = 0; i < vectors; ++i) to[i] = costs == nullptr ? weight * from[i] : Vector{};
    for (int64_t l = 0; costs != nullptr && l < labels; ++l)
      for (int64_t i = 0; i < vectors; ++i)
        to[i] -= weight * row[l] * reinterpret_cast<const Vector*>(costs + l * stride)[i];
  }

  template <typename T>
  static ATROUSX_ALWAYS_INLINE T product(const T* a, const T* b, int64_t vectors) {
    using Vector = typename RowVector<T>::type;
    Vector sums{};
    for (int64_t i = 0; i < vectors; ++i)
      sums += reinterpret_cast<const Vector*>(a)[i] * reinterpret_cast<const Vector*>(b)[i];
    return over_lanes<T>(sums, [](Vector x, Vector y) -> Vector { return x + y; })[0];
  }

  // `forward` holds Blur(Splat(Q)), `backward` that of the slopes; scratch holds two rows.
  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const MessageTerm<T, Index>* forward,
                                        const MessageTerm<T, Index>* backward, const T* q,
                                        const T* slopes, T* scratch, CornerGradients<T> gradients,
                                        int64_t labels, int64_t vectors, int64_t begin,
                                        int64_t end) {
    const int64_t stride = vectors * RowVector<T>::kLanes;
    const int dims = forward->dims;
    const T scale = slice_scale<T>(dims);
    T *paid = scratch, *caused = scratch + stride;
    for (int64_t p = begin; p < end; ++p) {
      for (const MessageTerm<T, Index>* term : {forward, backward})
        prefetch_corners(term->lattice, stride, term->vertices, p, end, dims, vectors);
      message(forward->costs, forward->weight, q + p * stride, labels, vectors, paid);
      message(backward->costs, backward->weight, slopes + p * stride, labels, vectors, caused);
      const T slice = forward->slice_scale == nullptr ? T(1) : forward->slice_scale[p];
      const T splat = backward->slice_scale == nullptr ? T(1) : backward->slice_scale[p];
      for (int64_t c = p * (dims + 1); c < (p + 1) * (dims + 1); ++c) {
        const int64_t vertex = forward->vertices[c] * stride;
        const T sliced = scale * product(caused, forward->lattice + vertex, vectors);
        const T splatted = scale * product(paid, backward->lattice + vertex, vectors);
        gradients.corners[c] += slice * sliced + splat * splatted;
        gradients.slice[p] += forward->corner_weights[c] * sliced;
        gradients.splat[p] += forward->corner_weights[c] * splatted;
      }
    }
  }
};

}  // namespace atrousx
