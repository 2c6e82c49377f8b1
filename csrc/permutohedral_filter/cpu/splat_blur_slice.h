// Loops over rows of channels on the CPU: splat, blur and slice. The rows that they read are
// scattered over megabytes, so each loop prefetches a row some steps before it reads it.
#pragma once

#include <vector>

#include "cpu/dispatch.h"
#include "cpu/workspace.h"
#include "permutohedral_filter/cpu/blur_chains.h"
#include "permutohedral_filter/cpu/row_vectors.h"
#include "permutohedral_filter/lattice.h"

namespace atrousx {

// Rows of values, one per point. Whole vectors are read, so the last vector of a row reaches into
// the rows after it. The final rows are read from a padded copy.
template <typename T>
struct PointRows {
  const T* rows;   // [P, stride]
  const T* final;  // [P - first_final, stride], padded
  int64_t first_final, stride;

  ATROUSX_ALWAYS_INLINE const T* row(int64_t point) const {
    return point < first_final ? rows + point * stride : final + (point - first_final) * stride;
  }
};

// The operands of a splat.
template <typename T, typename Index>
struct Splat {
  PointRows<T> values;
  const Index *starts, *points;  // [M + 1], [E]
  const T* weights;              // [E]
  const T* point_scale;          // [P] or null
  T* lattice;                    // [M, padded channels]
};

// lattice[m] = weighted sum of the points around vertex m
struct SplatRows {
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, Splat<T, Index> splat, int64_t stride,
                                          int64_t begin, int64_t end) {
    constexpr int64_t kAhead = 24;
    const auto& [values, starts, points, weights, point_scale, lattice] = splat;
    const int64_t last = static_cast<int64_t>(starts[end]) - 1;
    for (int64_t m = begin; m < end; ++m) {
      RowBlock<T, kVectors> sum;
      sum.clear();
      for (int64_t e = starts[m]; e < static_cast<int64_t>(starts[m + 1]); ++e) {
        const int64_t point = points[e];
        prefetch_row(values.row(points[std::min(e + kAhead, last)]) + lane, kVectors);
        const T weight = point_scale == nullptr ? weights[e] : weights[e] * point_scale[point];
        sum.add(weight, values.row(point) + lane);
      }
      sum.store(lattice + m * stride + lane);
    }
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(Splat<T, Index> splat, int64_t vectors, int64_t begin,
                                        int64_t end) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    over_blocks<SplatRows>(vectors, kLanes, splat, vectors * kLanes, begin, end);
  }
};

// The rows of a lattice, and which of them are around each point.
template <typename T, typename Index>
struct CornerRows {
  const T* lattice;  // [M, stride]
  int64_t stride;
  const Index* vertices;  // [P, D + 1]
  int dims;
};

// Prefetches the rows around a point a few points after `point`.
template <typename T, typename Index>
ATROUSX_ALWAYS_INLINE void prefetch_corners(const CornerRows<T, Index>& rows, int64_t point,
                                            int64_t end, int64_t vectors) {
  constexpr int64_t kAhead = 6;
  const Index* soon = rows.vertices + std::min(point + kAhead, end - 1) * (rows.dims + 1);
  for (int k = 0; k <= rows.dims; ++k) prefetch_row(rows.lattice + soon[k] * rows.stride, vectors);
}

// Sums the vertices around one point, weighted.
template <typename T, int kVectors, typename Index>
ATROUSX_ALWAYS_INLINE void slice_block(const CornerRows<T, Index>& rows, int64_t point,
                                       const T* weights,  // [P, D + 1]
                                       T scale, RowBlock<T, kVectors>& sum) {
  const Index* vertex = rows.vertices + point * (rows.dims + 1);
  const T* weight = weights + point * (rows.dims + 1);
  sum.clear();
  for (int k = 0; k <= rows.dims; ++k)
    sum.add(scale * weight[k], rows.lattice + vertex[k] * rows.stride);
}

// The operands of a slice.
template <typename T, typename Index>
struct Slice {
  const T* lattice;       // [M, padded channels]
  const Index* vertices;  // [P, D + 1]
  const T* weights;       // [P, D + 1]
  const T* point_scale;   // [P] or null
  T* output;              // [P, channels]
  int64_t channels;
  int dims;
};

// output[p] = weighted sum of the vertices around point p
struct SliceRows {
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, Slice<T, Index> slice, int64_t stride,
                                          int64_t begin, int64_t end) {
    const auto& [lattice, vertices, weights, point_scale, output, channels, dims] = slice;
    const T scale = slice_scale<T>(dims);
    constexpr int64_t kLanes = kVectors * RowVector<T>::kLanes;
    const int64_t count = std::min<int64_t>(kLanes, channels - lane);
    const int64_t whole_end = begin + whole_rows(end - begin, lane, count, kLanes);
    const CornerRows<T, Index> rows{lattice + lane, stride, vertices, dims};
    for (int64_t p = begin; p < end; ++p) {
      prefetch_corners(rows, p, end, kVectors);
      RowBlock<T, kVectors> sum;
      slice_block(rows, p, weights, point_scale == nullptr ? scale : scale * point_scale[p], sum);
      T* row = output + p * channels + lane;
      if (p < whole_end) {
        sum.store(row);
        continue;
      }
      T whole[kLanes];
      sum.store(whole);
      for (int64_t c = 0; c < count; ++c) row[c] = whole[c];
    }
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(Slice<T, Index> slice, int64_t vectors, int64_t begin,
                                        int64_t end) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    over_blocks<SliceRows>(vectors, kLanes, slice, vectors * kLanes, begin, end);
  }

 private:
  // How many rows of a task may be stored as whole vectors. These reach into the rows after them,
  // so those must be written later. At the end of the task, or if an earlier block has already
  // written the next rows, this is not allowed.
  static int64_t whole_rows(int64_t rows, int64_t lane, int64_t count, int64_t lanes) {
    if (count == lanes) return rows;
    if (lane != 0 || rows * count < lanes) return 0;
    return (rows * count - lanes) / count + 1;
  }
};

// Rows per task: enough elements to pay for waking a thread.
inline int64_t row_grain(int64_t row_elements) {
  constexpr int64_t kElementsPerTask = 16384;
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row_elements));
}

// The operands of a lift from points to the lattice.
template <typename T>
struct Lift {
  const T* values;  // [P, stride]
  int64_t stride, vectors;
  const T* entry_weights;  // [E], factors of the splat
  const T* point_scale;    // [P], more factors, or null
  bool transpose;          // blur along the axes in reverse order
  T* lattice;              // [M, padded channels]
};

// Splats, then blurs axis by axis.
template <typename T, typename Index>
void lift(const Lattice& l, const Chains<Index>& chains, const Lift<T>& given) {
  const auto& [values, stride, vectors, entry_weights, point_scale, transpose, lattice] = given;
  using torch::stable::parallel_for;
  const int64_t grain = row_grain(stride);
  const int64_t total = l.points() * stride, padded = vectors * RowVector<T>::kLanes;
  const int64_t first_final = total < padded ? 0 : (total - padded) / stride + 1;
  std::vector<T> final(total - first_final * stride + padded, T(0));
  std::copy(values + first_final * stride, values + total, final.begin());
  const Splat<T, Index> splat{{values, final.data(), first_final, stride},
                              data<Index>(l.starts),
                              data<Index>(l.entry_points),
                              entry_weights,
                              point_scale,
                              lattice};
  parallel_for(0, l.vertices(), grain, [&](int64_t begin, int64_t end) {
    run_best<SplatRows>(splat, given.vectors, begin, end);
  });
  for (int axis = 0; axis <= l.dims(); ++axis) {
    const int64_t line = transpose ? l.dims() - axis : axis;
    const Index* chain = chains.lists[line].data();
    parallel_for(0, chains.counts[line], grain, [&](int64_t begin, int64_t end) {
      run_best<BlurChains>(chain, given.lattice, given.vectors, begin, end);
    });
  }
}

// A new tensor. Large ones use large pages.
inline Tensor empty_large(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype) {
  const Tensor t = empty_like_of(like, size, dtype);
  prefer_huge_pages(t.mutable_data_ptr(), t.numel() * static_cast<int64_t>(t.element_size()));
  return t;
}

}  // namespace atrousx
