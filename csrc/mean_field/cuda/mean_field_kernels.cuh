// Mean-field kernels: start; per iteration splat, blur (lattice_kernels.cuh) and update; then
// finish. Letters: N images, P points of an image, L labels, D features, E = N P (D + 1) corners, M
// vertices.
#pragma once

#include <cmath>
#include <limits>

#include "mean_field/cuda/lattice_kernels.cuh"

namespace atrousx {

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
