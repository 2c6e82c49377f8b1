// Mean-field kernels: start; per iteration splat, blur and update; then finish. Letters: N images,
// P points of an image, L labels, D features, E = N P (D + 1) corners, M vertices. Every kernel
// gathers, so every sum has a fixed order that does not depend on a row's place in its batch. The
// kernels never follow an index that is out of range: results that depend on it become NaN. A
// neighbour out of range counts as no neighbour.
#pragma once

#include <cmath>
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

// Who: one thread owns one point, in a grid-stride loop. Reads: its logits, three times. Writes:
// its rows of log P (up to a constant) and of Q = P; padding is -infinity and 0. Synchronisation:
// none.
template <typename T>
__global__ void mean_field_start_kernel(const T* logits,      // [N, L, P]
                                        LabelPack<T>* log_p,  // [N P, packs]
                                        LabelPack<T>* q,      // [N P, packs]
                                        int64_t rows, int64_t points, RowShape shape) {
  constexpr int kLabels = LabelPack<T>::kLabels;
  for (int64_t row = global_thread(); row < rows; row += global_threads()) {
    const T* source = logits + row / points * shape.labels * points + row % points;
    T most = source[0], sum = T(0);
    for (int64_t l = 1; l < shape.labels; ++l) most = max_of(most, source[l * points]);
    for (int64_t l = 0; l < shape.labels; ++l) sum += std::exp(source[l * points] - most);
    for (int pack = 0; pack < shape.packs; ++pack) {
      LabelPack<T> x, p;
      ATROUSX_UNROLL
      for (int i = 0; i < kLabels; ++i) {
        const int64_t l = int64_t{pack} * kLabels + i;
        const bool there = l < shape.labels;
        x.v[i] = there ? source[l * points] - most : -std::numeric_limits<T>::infinity();
        p.v[i] = there ? std::exp(x.v[i]) / sum : T(0);
      }
      log_p[row * shape.packs + pack] = x;
      q[row * shape.packs + pack] = p;
    }
  }
}

// Who: one thread owns one point, in a grid-stride loop. Reads: its row of Q. Writes: its labels.
// Synchronisation: none.
template <typename T>
__global__ void mean_field_finish_kernel(const LabelPack<T>* q,  // [N P, packs]
                                         T* output,              // [N, L, P]
                                         int64_t rows, int64_t points, RowShape shape) {
  constexpr int kLabels = LabelPack<T>::kLabels;
  for (int64_t row = global_thread(); row < rows; row += global_threads()) {
    T* target = output + row / points * shape.labels * points + row % points;
    for (int pack = 0; pack < shape.packs; ++pack) {
      const LabelPack<T> p = q[row * shape.packs + pack];
      ATROUSX_UNROLL
      for (int i = 0; i < kLabels; ++i) {
        const int64_t l = int64_t{pack} * kLabels + i;
        if (l < shape.labels) target[l * points] = p.v[i];
      }
    }
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

// Who: one thread owns one cost, in a grid-stride loop. Reads: the compatibility, a matrix (row:
// the label that pays) or only its diagonal. Writes: the factors of filtered Q, transposed and
// padded with 0. Synchronisation: none.
template <typename T>
__global__ void mean_field_costs_kernel(const T* compatibility,  // [L, L], or [L]
                                        T* costs,                // [L or 1, packs] packs
                                        T weight, bool diagonal, RowShape shape) {
  const int64_t width = int64_t{shape.packs} * LabelPack<T>::kLabels;
  const int64_t count = (diagonal ? 1 : shape.labels) * width;
  for (int64_t i = global_thread(); i < count; i += global_threads()) {
    const int64_t met = i / width, pays = i % width;
    const int64_t place = diagonal ? pays : pays * shape.labels + met;
    costs[i] = pays < shape.labels ? -weight * compatibility[place] : T(0);
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

// The number of corners of a point with position and colour (D = 5).
constexpr int kSliceBatch = 6;

// One Gaussian kernel of the energy, with its Blur(Splat(Q)).
template <typename T, typename Index>
struct Message {
  const LabelPack<T>* lattice;  // [M, packs]
  const Index* vertices;        // [N P, D + 1]
  const T* corner_weights;      // [N P, D + 1]
  const T* point_scale;         // [N P], or null for 1
  const LabelPack<T>* costs;    // [L, packs], a diagonal's [packs], or null for -weight
  int64_t count;                // M
  T scale;                      // scale of the slice
  T weight;
  int dims;
  bool matrix;  // costs are a whole matrix

  __device__ __forceinline__ LabelPack<T> sliced(int64_t row, int pack, int packs) const {
    LabelPack<T> sum{}, result{};
    const int64_t corner = row * (dims + 1);
    gather<kSliceBatch>(
        sum, PackedRows<T>{lattice, count, packs},
        WeightedRows<T, Index>{vertices, corner_weights, corner, corner + dims + 1, 1}, pack);
    add_scaled(result, point_scale == nullptr ? scale : scale * point_scale[row], sum);
    return result;
  }

  // Subtracts the cost of the filtered labels from `x`. For Potts and diagonal costs each label
  // pays only for itself.
  __device__ __forceinline__ void pay(LabelPack<T>& x, const LabelPack<T>& filtered,
                                      int pack) const {
    if (costs == nullptr) return add_scaled(x, weight, filtered);
    const LabelPack<T> cost = costs[pack];
    ATROUSX_UNROLL
    for (int i = 0; i < LabelPack<T>::kLabels; ++i) x.v[i] += cost.v[i] * filtered.v[i];
  }

  // The same with a matrix of costs. It reads the whole filtered row.
  __device__ __forceinline__ void pay_all(LabelPack<T>& x, const T* filtered, int pack,
                                          RowShape shape) const {
    for (int64_t met = 0; met < shape.labels; ++met)
      add_scaled(x, filtered[met], costs[met * shape.packs + pack]);
  }
};

constexpr int kMaxMessages = 8;

template <typename T, typename Index>
struct Messages {
  Message<T, Index> term[kMaxMessages];
  int count;
};

// Combines the values of the lanes that share a row.
template <typename T, typename Combine>
__device__ __forceinline__ T across_row(T value, RowShape shape, Combine combine) {
  for (int distance = shape.lanes() / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

// Turns a row of log-probabilities into probabilities in `row`. The log-probabilities are in `x` if
// `resident`, otherwise in `row`. All lanes of the warp must call it.
template <typename T>
__device__ __forceinline__ void softmax_row(LabelPack<T> x, LabelPack<T>* row, int packs,
                                            int member, bool resident, RowShape shape) {
  constexpr int kLabels = LabelPack<T>::kLabels;
  T most = -std::numeric_limits<T>::infinity(), sum = T(0);
  for (int pack = member; pack < packs; pack += shape.lanes()) {
    if (!resident) x = row[pack];
    ATROUSX_UNROLL
    for (int i = 0; i < kLabels; ++i) most = max_of(most, x.v[i]);
  }
  most = across_row(most, shape, [](T a, T b) { return max_of(a, b); });
  for (int pack = member; pack < packs; pack += shape.lanes()) {
    if (!resident) x = row[pack];
    ATROUSX_UNROLL
    for (int i = 0; i < kLabels; ++i) sum += x.v[i] = std::exp(x.v[i] - most);
    if (!resident) row[pack] = x;
  }
  sum = across_row(sum, shape, [](T a, T b) { return a + b; });
  for (int pack = member; pack < packs; pack += shape.lanes()) {
    if (!resident) x = row[pack];
    ATROUSX_UNROLL
    for (int i = 0; i < kLabels; ++i) x.v[i] /= sum;
    row[pack] = x;
  }
}

// q[row] = softmax(log P - messages)
//
// Who: `lanes` lanes of a warp own one point, in a grid-stride loop over warps. Reads: its log P
// and the vertices around it in every lattice. Writes: its row of Q. If a lane has only one pack,
// it stays in registers; longer rows are kept in Q between the steps. Synchronisation: if costs are
// a matrix, the lanes write the filtered row to `filtered`, with warp barriers before and after it
// is multiplied. Lanes without a row or a pack take part in the exchanges of the softmax.
template <typename T, typename Index>
__global__ void mean_field_update_kernel(Messages<T, Index> messages,
                                         const LabelPack<T>* log_p,  // [N P, packs]
                                         LabelPack<T>* filtered,  // [N P, packs], null if no matrix
                                         LabelPack<T>* q,         // [N P, packs]
                                         int64_t rows, RowShape shape) {
  constexpr int kLabels = LabelPack<T>::kLabels;
  constexpr T kNothing = -std::numeric_limits<T>::infinity();
  const int lane = threadIdx.x % kWarpLanes, lanes = shape.lanes(), member = lane & (lanes - 1);
  const bool resident = shape.packs <= lanes;
  for (int64_t i = global_thread(); i - lane < rows << shape.shift; i += global_threads()) {
    const int64_t row = i >> shape.shift;
    const int packs = row < rows ? shape.packs : 0;
    const int64_t place = row * shape.packs;
    LabelPack<T> x;
    ATROUSX_UNROLL
    for (int l = 0; l < kLabels; ++l) x.v[l] = kNothing;
    for (int pack = member; pack < packs; pack += lanes) {
      x = log_p[place + pack];
      if (!resident) q[place + pack] = x;
    }
    for (int t = 0; t < messages.count; ++t) {
      const Message<T, Index>& message = messages.term[t];
      if (message.matrix) {
        for (int pack = member; pack < packs; pack += lanes)
          filtered[place + pack] = message.sliced(row, pack, shape.packs);
        __syncwarp();  // the filtered row is written
      }
      for (int pack = member; pack < packs; pack += lanes) {
        if (!resident) x = q[place + pack];
        if (message.matrix)
          message.pay_all(x, reinterpret_cast<const T*>(filtered + place), pack, shape);
        else
          message.pay(x, message.sliced(row, pack, shape.packs), pack);
        if (!resident) q[place + pack] = x;
      }
      if (message.matrix) __syncwarp();  // the filtered row is read
    }
    softmax_row(x, q + place, packs, member, resident, shape);
  }
}

}  // namespace atrousx
