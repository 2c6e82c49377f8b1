// Loops over rows of channels, for the CPU: splat, blur and slice.
//
// Values and vertices are rows of channels. A row is cut into vectors of 32 bytes, and up to four
// of them stay in registers while a loop visits its rows; more channels are visited four vectors at
// a time. Rows of vertices are padded to whole vectors. The lanes of the padding hold whatever lay
// behind the values' rows: no lane looks at another, and nothing reads them.
#pragma once

#include <vector>

#include "../cpu_dispatch.h"
#include "lattice.h"

namespace atrousx {

template <typename T>
struct RowVector {
  // Unaligned, and free to look at elements of a plain array.
  typedef T type __attribute__((vector_size(32), aligned(alignof(T)), may_alias));
  static constexpr int64_t kLanes = 32 / sizeof(T);
};

template <typename T>
int64_t row_vectors(int64_t channels) {
  return (channels + RowVector<T>::kLanes - 1) / RowVector<T>::kLanes;
}

// `kVectors` vectors of a row.
template <typename T, int kVectors>
struct RowBlock {
  using Vector = typename RowVector<T>::type;
  Vector v[kVectors];

  ATROUSX_ALWAYS_INLINE void clear() {
    for (int i = 0; i < kVectors; ++i) v[i] = Vector{};
  }
  ATROUSX_ALWAYS_INLINE void load(const T* from) {
    for (int i = 0; i < kVectors; ++i) v[i] = reinterpret_cast<const Vector*>(from)[i];
  }
  ATROUSX_ALWAYS_INLINE void store(T* to) const {
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<Vector*>(to)[i] = v[i];
  }
  ATROUSX_ALWAYS_INLINE void add(T weight, const T* from) {
    for (int i = 0; i < kVectors; ++i) v[i] += weight * reinterpret_cast<const Vector*>(from)[i];
  }
};

// Calls Loop::block<kVectors>(first lane, args...) until `vectors` are done.
template <typename Loop, typename... Args>
ATROUSX_ALWAYS_INLINE void over_blocks(int64_t vectors, int64_t lanes, Args... args) {
  int64_t at = 0;
  for (; vectors - at > 4; at += 4) Loop::template block<4>(at * lanes, args...);
  switch (vectors - at) {
    case 1:
      return Loop::template block<1>(at * lanes, args...);
    case 2:
      return Loop::template block<2>(at * lanes, args...);
    case 3:
      return Loop::template block<3>(at * lanes, args...);
    case 4:
      return Loop::template block<4>(at * lanes, args...);
  }
}

// Rows of values, one a point. Whole vectors are read, so that a row's last reaches into the rows
// behind it; the final rows are read from a copy that has room.
template <typename T>
struct PointRows {
  const T* rows;   // [P, stride]
  const T* final;  // [P - first_final, stride], padded
  int64_t first_final, stride;

  ATROUSX_ALWAYS_INLINE const T* row(int64_t point) const {
    return point < first_final ? rows + point * stride : final + (point - first_final) * stride;
  }
};

// lattice[m] = sum of the points around vertex m
struct SplatRows {
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, PointRows<T> values, const Index* starts,
                                          const Index* points, const T* weights,
                                          const T* point_scale, T* lattice, int64_t stride,
                                          int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      RowBlock<T, kVectors> sum;
      sum.clear();
      for (int64_t e = starts[m]; e < static_cast<int64_t>(starts[m + 1]); ++e) {
        const int64_t point = points[e];
        const T weight = point_scale == nullptr ? weights[e] : weights[e] * point_scale[point];
        sum.add(weight, values.row(point) + lane);
      }
      sum.store(lattice + m * stride + lane);
    }
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(PointRows<T> values, const Index* starts,
                                        const Index* points, const T* weights, const T* point_scale,
                                        T* lattice, int64_t vectors, int64_t begin, int64_t end) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    over_blocks<SplatRows>(vectors, kLanes, values, starts, points, weights, point_scale, lattice,
                           vectors * kLanes, begin, end);
  }
};

// One axis, in place: lattice[m] += half of each neighbour's former value. Vertices linked along
// the axis are a chain, walked from the first one by the task that owns it; a vertex without
// neighbours stays as it is and is not even read.
struct BlurChains {
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, const Index* ahead, const Index* behind,
                                          T* lattice, int64_t stride, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      if (behind[m] >= 0 || ahead[m] < 0) continue;
      RowBlock<T, kVectors> before, here, after;
      before.clear();
      T* row = lattice + m * stride + lane;
      here.load(row);
      for (int64_t next = ahead[m]; next >= 0; next = ahead[next]) {
        T* next_row = lattice + next * stride + lane;
        after.load(next_row);
        for (int i = 0; i < kVectors; ++i)
          before.v[i] = here.v[i] + T(0.5) * (before.v[i] + after.v[i]);
        before.store(row);
        before = here;
        here = after;
        row = next_row;
      }
      for (int i = 0; i < kVectors; ++i) here.v[i] += T(0.5) * before.v[i];
      here.store(row);
    }
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const Index* ahead, const Index* behind, T* lattice,
                                        int64_t vectors, int64_t begin, int64_t end) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    over_blocks<BlurChains>(vectors, kLanes, ahead, behind, lattice, vectors * kLanes, begin, end);
  }
};

// The vertices around one point, weighted.
template <typename T, int kVectors, typename Index>
ATROUSX_ALWAYS_INLINE void slice_block(const T* lattice, int64_t stride, const Index* vertex,
                                       const T* weight, T scale, int dims,
                                       RowBlock<T, kVectors>& sum) {
  sum.clear();
  for (int k = 0; k <= dims; ++k) sum.add(scale * weight[k], lattice + vertex[k] * stride);
}

// output[p] = the vertices around point p, weighted
struct SliceRows {
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, const T* lattice, int64_t stride,
                                          const Index* vertices, const T* weights,
                                          const T* point_scale, T* output, int64_t channels,
                                          int dims, int64_t begin, int64_t end) {
    const T scale = slice_scale<T>(dims);
    const int64_t count = std::min<int64_t>(kVectors * RowVector<T>::kLanes, channels - lane);
    for (int64_t p = begin; p < end; ++p) {
      RowBlock<T, kVectors> sum;
      slice_block(lattice + lane, stride, vertices + p * (dims + 1), weights + p * (dims + 1),
                  point_scale == nullptr ? scale : scale * point_scale[p], dims, sum);
      T whole[kVectors * RowVector<T>::kLanes];
      sum.store(whole);
      T* row = output + p * channels + lane;
      for (int64_t c = 0; c < count; ++c) row[c] = whole[c];
    }
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const T* lattice, const Index* vertices, const T* weights,
                                        const T* point_scale, T* output, int64_t channels,
                                        int64_t vectors, int dims, int64_t begin, int64_t end) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    over_blocks<SliceRows>(vectors, kLanes, lattice, vectors * kLanes, vertices, weights,
                           point_scale, output, channels, dims, begin, end);
  }
};

// Rows per task: enough elements to pay for waking a thread.
inline int64_t row_grain(int64_t row_elements) {
  constexpr int64_t kElementsPerTask = 16384;
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row_elements));
}

// Splat, then blur axis by axis, in reverse when transposed, into `lattice` [M, padded channels].
// entry_weights [E] and point_scale [P] or null are what splatting multiplies by.
template <typename T, typename Index>
void lift(const Lattice& l, const T* values, int64_t stride, int64_t vectors,
          const T* entry_weights, const T* point_scale, bool transpose, T* lattice) {
  using torch::stable::parallel_for;
  const int64_t vertices = l.vertices(), grain = row_grain(stride);
  const int64_t total = l.points() * stride, padded = vectors * RowVector<T>::kLanes;
  const int64_t first_final = total < padded ? 0 : (total - padded) / stride + 1;
  std::vector<T> final(total - first_final * stride + padded, T(0));
  std::copy(values + first_final * stride, values + total, final.begin());
  const PointRows<T> rows{values, final.data(), first_final, stride};
  parallel_for(0, vertices, grain, [&](int64_t begin, int64_t end) {
    run_best<SplatRows>(rows, data<Index>(l.starts), data<Index>(l.entry_points), entry_weights,
                        point_scale, lattice, vectors, begin, end);
  });
  for (int axis = 0; axis <= l.dims(); ++axis) {
    const int64_t line = transpose ? l.dims() - axis : axis;
    const Index* ahead = data<Index>(l.neighbours) + line * 2 * vertices;
    parallel_for(0, vertices, grain, [&](int64_t begin, int64_t end) {
      run_best<BlurChains>(ahead, ahead + vertices, lattice, vectors, begin, end);
    });
  }
}

}  // namespace atrousx
