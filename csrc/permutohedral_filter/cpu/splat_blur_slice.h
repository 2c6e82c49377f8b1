// Loops over rows of channels on the CPU: splat, blur and slice. The rows that they read are
// scattered over megabytes, so each loop prefetches a row some steps before it reads it.
//
// Values and vertices are rows of channels. A row is cut into vectors of 32 bytes. Up to four
// vectors stay in registers while a loop visits its rows; with more channels it visits them four
// vectors at a time. Rows of vertices are padded to whole vectors. The padding holds whatever
// follows the row of values in memory. This is harmless: lanes are independent, and nothing reads
// the padding.
#pragma once

#include <vector>

#include "cpu/dispatch.h"
#include "cpu/lanes.h"
#include "cpu/workspace.h"
#include "permutohedral_filter/lattice.h"

namespace atrousx {

template <typename T>
struct RowVector {
  static constexpr int64_t kLanes = kLanesIn<32, T>;
  using type = Lanes<T, kLanes>;
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

// Prefetches `vectors` vectors, but at most 256 bytes. Rows begin at multiples of 32 bytes, so a
// row of whole cache lines may reach into one more line.
template <typename T>
ATROUSX_ALWAYS_INLINE void prefetch_row(const T* row, int64_t vectors) {
  constexpr int64_t kLine = 64, kMost = 4 * kLine;
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t size = std::min<int64_t>(kMost, vectors * 32);
  for (int64_t at = 0; at < size; at += kLine) __builtin_prefetch(bytes + at);
  if (size % kLine == 0) __builtin_prefetch(bytes + size - 1);
}

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

// The vertices linked along each axis, chain after chain. A vertex without neighbours is in no
// chain. The last vertex m of a chain is written as ~m.
template <typename Index>
struct Chains {
  static constexpr int64_t kAhead = 12;  // the list of an axis ends with vertex 0, kAhead times

  std::vector<int64_t> counts;          // [D + 1]
  std::vector<Workspace<Index>> lists;  // [D + 1], counts + kAhead each

  // Needs checked indices (index_check.h).
  static Chains make(const Lattice& l) {
    const int64_t axes = l.dims() + 1, vertices = l.vertices();
    Chains chains;
    chains.counts.resize(axes);
    chains.lists.resize(axes);
    torch::stable::parallel_for(0, axes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t axis = begin; axis < end; ++axis)
        chains.counts[axis] =
            list(data<Index>(l.neighbours) + axis * 2 * vertices, vertices, chains.lists[axis]);
    });
    for (const int64_t count : chains.counts)
      STD_TORCH_CHECK(count != kBroken, "neighbours must be mutual, ahead and behind");
    return chains;
  }

 private:
  static constexpr int64_t kBroken = -1;

  static int64_t list(const Index* ahead, int64_t vertices, Workspace<Index>& out) {
    const Index* behind = ahead + vertices;
    out = Workspace<Index>(vertices + kAhead);
    // The first vertices of the chains are gathered without branches, at the end of the list.
    int64_t first = vertices, count = 0;
    for (int64_t m = vertices - 1; m >= 0; --m) {
      out[first - 1] = static_cast<Index>(m);
      first -= (behind[m] & ~ahead[m]) < 0;  // with two comparisons the compiler makes a branch
    }
    // If each vertex is behind the one ahead of it, chains share no vertex and come to an end.
    for (; first < vertices; ++first) {
      for (Index at = out[first], next; at >= 0; at = next) {
        out[count++] = at;
        next = ahead[at];
        if (next >= 0 && behind[next] != at) return kBroken;
      }
      out[count - 1] = ~out[count - 1];
    }
    std::fill_n(&out[count], kAhead, Index{0});
    return count;
  }
};

// Blurs along one axis in place: lattice[m] += half of each neighbour's former value. A task owns
// the chains that begin in [begin, end) of the list.
struct BlurChains {
  template <int kVectors, typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void block(int64_t lane, const Index* chain, T* lattice,
                                          int64_t stride, int64_t begin, int64_t end) {
    while (begin != 0 && begin < end && chain[begin - 1] >= 0) ++begin;
    if (begin == end) return;
    while (chain[end - 1] >= 0) ++end;
    const auto row_of = [&](Index at) {
      return lattice + static_cast<int64_t>(at < 0 ? ~at : at) * stride + lane;
    };
    RowBlock<T, kVectors> before, here, after;
    before.clear();
    after.clear();
    T* row = row_of(chain[begin]);
    here.load(row);
    for (int64_t i = begin; i < end; ++i) {
      prefetch_row(row_of(chain[i + Chains<Index>::kAhead]), kVectors);
      T* next = row_of(chain[i + 1]);  // if this chain ends: the first of the next chain
      if (i + 1 < end) after.load(next);
      if (chain[i] >= 0) {
        for (int v = 0; v < kVectors; ++v)
          before.v[v] = here.v[v] + T(0.5) * (before.v[v] + after.v[v]);
        before.store(row);
        before = here;
      } else {
        for (int v = 0; v < kVectors; ++v) here.v[v] += T(0.5) * before.v[v];
        here.store(row);
        before.clear();
      }
      here = after;
      row = next;
    }
  }

  template <typename T, typename Index>
  static ATROUSX_ALWAYS_INLINE void run(const Index* chain, T* lattice, int64_t vectors,
                                        int64_t begin, int64_t end) {
    constexpr int64_t kLanes = RowVector<T>::kLanes;
    over_blocks<BlurChains>(vectors, kLanes, chain, lattice, vectors * kLanes, begin, end);
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
