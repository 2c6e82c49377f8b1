// How mean-field kernels read and filter rows of labels on a lattice: gather, splat and blur.
// Letters as in mean_field_kernels.cuh. Every kernel gathers, so every sum has a fixed order that
// does not depend on a row's place in its batch. No kernel follows an index that is out of range:
// results that depend on it become NaN. A neighbour out of range counts as no neighbour.
#pragma once

#include <limits>

#include "cuda/device.cuh"
#include "mean_field/cuda/label_layout.h"
#include "permutohedral_filter/plan.h"

namespace atrousx {

constexpr unsigned int kAllLanes = 0xffffffffu;

// `pack` is passed by value so that it is loaded whole. By reference it would be loaded element by
// element.
template <typename T>
__device__ __forceinline__ void add_scaled(LabelPack<T>& sum, T factor, LabelPack<T> pack) {
  ATROUSX_UNROLL
  for (int i = 0; i < LabelPack<T>::kLabels; ++i) sum.v[i] += factor * pack.v[i];
}

template <typename T>
struct PackedRows {
  const LabelPack<T>* data;  // [count, packs]
  int64_t count;
  int packs;
};

// Every step-th entry in [from, end): a row and its weight.
template <typename T, typename Index>
struct WeightedRows {
  const Index* rows;
  const T* weights;
  int64_t from, end, step;
};

// Adds weights[e] * rows[entries.rows[e]] to `sum`, in one pack, for all entries e. kBatch rows are
// loaded before the first is used: most sums are shorter than that, so a warp waits once, not once
// per row.
template <int kBatch, typename T, typename Index>
__device__ __forceinline__ void gather(LabelPack<T>& sum, const PackedRows<T>& rows,
                                       const WeightedRows<T, Index>& entries, int pack) {
  const int64_t end = entries.end, step = entries.step;
  for (int64_t first = entries.from; first < end; first += kBatch * step) {
    Index point[kBatch];
    T weight[kBatch];
    LabelPack<T> row[kBatch];
    ATROUSX_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      const int64_t e = first + i * step;
      point[i] = Index(-1);
      weight[i] = T(0);
      if (e >= end) continue;
      point[i] = entries.rows[e];
      weight[i] =
          is_index(point[i], rows.count) ? entries.weights[e] : std::numeric_limits<T>::quiet_NaN();
    }
    ATROUSX_UNROLL
    for (int i = 0; i < kBatch; ++i) {
      row[i] = LabelPack<T>{};
      if (is_index(point[i], rows.count))
        row[i] = rows.data[static_cast<int64_t>(point[i]) * rows.packs + pack];
    }
    ATROUSX_UNROLL
    for (int i = 0; i < kBatch; ++i) add_scaled(sum, weight[i], row[i]);
  }
}

// Who: one thread owns one entry, in a grid-stride loop. Reads: its weight and its point's scale.
// Writes: their product, which all iterations use. Synchronisation: none.
template <typename T, typename Index>
__global__ void mean_field_entries_kernel(const T* weights,      // [E], by vertex
                                          const Index* points,   // [E], by vertex
                                          const T* point_scale,  // [N P]
                                          T* scaled,             // [E]
                                          int64_t entries, int64_t rows) {
  for (int64_t e = global_thread(); e < entries; e += global_threads()) {
    const Index point = points[e];
    scaled[e] = is_index(point, rows) ? weights[e] * point_scale[point]
                                      : std::numeric_limits<T>::quiet_NaN();
  }
}

constexpr int kSplatWarps = 8, kSplatBatch = 4;
constexpr int kRowThreads = kSplatWarps * kWarpLanes;  // threads of a block, at most
// A vertex with more entries is summed by a whole block. Points of one colour concentrate on a few
// vertices, with tens of thousands on each.
constexpr int64_t kLongRun = 256;

// Returns one pack of the sum of entries. The sum also goes over the warp's groups of lanes, which
// start one entry apart. All lanes of the warp must call it.
template <typename T, typename Index>
__device__ __forceinline__ LabelPack<T> splat_pack(const PackedRows<T>& q,
                                                   WeightedRows<T, Index> entries, int pack,
                                                   RowShape shape) {
  LabelPack<T> sum{};
  entries.from += threadIdx.x % kWarpLanes >> shape.shift;  // the number of the group
  if (pack < shape.packs) gather<kSplatBatch>(sum, q, entries, pack);
  for (int distance = shape.lanes(); distance < kWarpLanes; distance *= 2) {
    ATROUSX_UNROLL
    for (int i = 0; i < LabelPack<T>::kLabels; ++i)
      sum.v[i] += __shfl_xor_sync(kAllLanes, sum.v[i], distance);
  }
  return sum;
}

// Who: one warp owns one vertex, and its groups of lanes take the vertex's entries in turn. The
// warps of the block share a long run. Neighbours in the order of vertices go to different blocks,
// because long runs are adjacent. Reads: the rows of Q of the points around the vertex. Writes: its
// row. Synchronisation: a barrier tells whether any run of the block is long. If so, all threads
// visit the long runs, with barriers after the warps' parts are written and after they are read.
// Runs are overwritten only after the next such barrier.
template <typename T, typename Index>
__global__ void __launch_bounds__(kRowThreads, 5)
    mean_field_splat_kernel(const LabelPack<T>* q,  // [N P, packs]
                            const Index* starts,    // [M + 1]
                            const Index* points,    // [E], by vertex
                            const T* weights,       // [E], by vertex, scaled
                            LabelPack<T>* lattice,  // [M, packs]
                            int64_t rows, int64_t entries, int64_t vertices, RowShape shape) {
  ATROUSX_SHARED(int64_t, runs, 2 * kSplatWarps);
  ATROUSX_SHARED(LabelPack<T>, parts, kSplatWarps * kWarpLanes);
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int lanes = shape.lanes(), groups = kWarpLanes / lanes, member = lane & (lanes - 1);
  const int warps = blockDim.x / kWarpLanes;  // at most kSplatWarps
  const int64_t stride = gridDim.x;
  const PackedRows<T> values{q, rows, shape.packs};
  for (int64_t first = blockIdx.x; first < vertices; first += warps * stride) {
    const int64_t own = first + warp * stride;
    const EntryRange run(starts, min_of(own, vertices - 1), entries);
    const int64_t begin = run.begin, end = own < vertices ? run.end : begin;
    if (own < vertices && end - begin <= kLongRun)
      for (int base = 0; base < shape.packs; base += lanes) {
        const int pack = base + member;
        LabelPack<T> sum =
            splat_pack<T, Index>(values, {points, weights, begin, end, groups}, pack, shape);
        if (!run.valid()) sum.v[0] = std::numeric_limits<T>::quiet_NaN();
        if (lane < lanes && pack < shape.packs) lattice[own * shape.packs + pack] = sum;
      }
    if (!__syncthreads_or(end - begin > kLongRun)) continue;
    if (lane < 2) runs[2 * warp + lane] = lane == 0 ? begin : end;
    __syncthreads();  // the runs are written
    for (int other = 0; other < warps; ++other) {
      const int64_t from = runs[2 * other], to = runs[2 * other + 1];
      if (to - from <= kLongRun) continue;
      for (int base = 0; base < shape.packs; base += lanes) {
        const int pack = base + member;
        const LabelPack<T> part = splat_pack<T, Index>(
            values, {points, weights, from + warp * groups, to, int64_t{warps} * groups}, pack,
            shape);
        if (lane < lanes) parts[warp * kWarpLanes + lane] = part;
        __syncthreads();  // the parts are written
        if (warp == 0 && lane < lanes && pack < shape.packs) {
          LabelPack<T> sum = part;
          for (int w = 1; w < warps; ++w) add_scaled(sum, T(1), parts[w * kWarpLanes + lane]);
          lattice[(first + other * stride) * shape.packs + pack] = sum;
        }
        __syncthreads();  // the parts are read
      }
    }
  }
}

// Who: `lanes` threads own one vertex, in a grid-stride loop. Reads: its row and the rows of its
// two neighbours along one axis. Writes: its row of another array. Synchronisation: none; the next
// axis is another launch.
template <typename T, typename Index>
__global__ void mean_field_blur_kernel(const LabelPack<T>* lattice,  // [M, packs]
                                       const Index* neighbours,      // [2, M] of this axis
                                       LabelPack<T>* blurred,        // [M, packs]
                                       int64_t vertices, RowShape shape) {
  for (int64_t i = global_thread(); i < vertices << shape.shift; i += global_threads()) {
    const int64_t vertex = i >> shape.shift;
    const Index ahead = neighbours[vertex], behind = neighbours[vertices + vertex];
    for (int pack = static_cast<int>(i) & (shape.lanes() - 1); pack < shape.packs;
         pack += shape.lanes()) {
      LabelPack<T> sum = lattice[vertex * shape.packs + pack], a{}, b{};
      if (is_index(ahead, vertices)) a = lattice[int64_t{ahead} * shape.packs + pack];
      if (is_index(behind, vertices)) b = lattice[int64_t{behind} * shape.packs + pack];
      ATROUSX_UNROLL
      for (int l = 0; l < LabelPack<T>::kLabels; ++l) sum.v[l] += T(0.5) * (a.v[l] + b.v[l]);
      blurred[vertex * shape.packs + pack] = sum;
    }
  }
}

}  // namespace atrousx
