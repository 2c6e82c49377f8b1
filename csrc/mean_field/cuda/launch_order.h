// The order in which mean-field inference launches its kernels, from raw pointers. `launch(kernel,
// threads, arguments...)` runs a kernel over that many threads. CUDA and the tests' host executor
// share this file. Nothing here waits for the device or reads its data, so a stream may capture it.
#pragma once

#include <utility>
#include <vector>

#include "mean_field/cuda/mean_field_kernels.cuh"

namespace atrousx {

// One term of the energy: its lattice from _permutohedral_build, its normaliser, its compatibility,
// and its workspace.
template <typename T, typename Index>
struct MeanFieldTerm {
  const T* corner_weights;       // [N P, D + 1]
  const Index* corner_vertices;  // [N P, D + 1]
  const Index* starts;           // [M + 1]
  const Index* entry_points;     // [E]
  const T* entry_weights;        // [E]
  const Index* neighbours;       // [D + 1, 2, M]
  const T* splat_scale;          // [N P], or null for 1
  const T* slice_scale;          // [N P], or null for 1
  const T* compatibility;        // [L, L], a diagonal's [L], or null for Potts
  bool diagonal;
  T weight;
  int64_t vertices, entries;
  int dims;
  T* scaled_entries;      // [E], null without splat_scale
  LabelPack<T>* costs;    // [L, packs] or [packs], null without compatibility
  LabelPack<T>* lattice;  // [M, packs]

  Message<T, Index> message() const {
    return {lattice,
            corner_vertices,
            corner_weights,
            slice_scale,
            costs,
            vertices,
            atrousx::slice_scale<T>(dims),
            weight,
            dims,
            costs != nullptr && !diagonal};
  }
};

// Workspace of rows of labels.
template <typename T>
struct MeanFieldRows {
  LabelPack<T>* log_p;     // [N P, packs]
  LabelPack<T>* q;         // [N P, packs]
  LabelPack<T>* filtered;  // [N P, packs], null if no compatibility is a whole matrix
  LabelPack<T>* spare;     // [M, packs] of the largest lattice
};

// What a call computes.
struct MeanFieldCall {
  int64_t images, points, iterations;
  RowShape shape;

  int64_t rows() const { return images * points; }
};

// If there are few vertices, each gets a block, because some of them may be long runs.
inline int64_t splat_threads(int64_t vertices) {
  constexpr int64_t kSpread = 1024;
  const int64_t blocks =
      max_of(ceil_div<int64_t>(vertices, kSplatWarps), min_of(vertices, kSpread));
  return blocks * kRowThreads;
}

// Computes Blur(Splat(Q)), `count` rows, into the term's lattice. The blurs alternate between two
// arrays. The first array is chosen so that the last blur writes the term's lattice.
template <typename T, typename Index, typename Launch>
void lift_rows(const Launch& launch, const MeanFieldTerm<T, Index>& term,
               const MeanFieldRows<T>& rows, int64_t count, RowShape shape) {
  LabelPack<T>*from = term.lattice, *to = rows.spare;
  if (term.dims % 2 == 0) std::swap(from, to);
  const T* weights = term.scaled_entries == nullptr ? term.entry_weights : term.scaled_entries;
  const LabelPack<T>* q = rows.q;
  launch(mean_field_splat_kernel<T, Index>, splat_threads(term.vertices), q, term.starts,
         term.entry_points, weights, from, count, term.entries, term.vertices, shape);
  for (int axis = 0; axis <= term.dims; ++axis) {
    const LabelPack<T>* source = from;
    launch(mean_field_blur_kernel<T, Index>, term.vertices << shape.shift, source,
           term.neighbours + axis * 2 * term.vertices, to, term.vertices, shape);
    std::swap(from, to);
  }
}

// Prepares data that all iterations use: Q = P, scaled entries, costs.
template <typename T, typename Index, typename Launch>
void begin_mean_field(const Launch& launch, const T* logits,
                      const std::vector<MeanFieldTerm<T, Index>>& terms,
                      const MeanFieldRows<T>& rows, const MeanFieldCall& call) {
  const RowShape shape = call.shape;
  launch(mean_field_start_kernel<T>, call.rows(), logits, rows.log_p, rows.q, call.rows(),
         call.points, shape);
  for (const MeanFieldTerm<T, Index>& term : terms) {
    if (term.scaled_entries != nullptr)
      launch(mean_field_entries_kernel<T, Index>, term.entries, term.entry_weights,
             term.entry_points, term.splat_scale, term.scaled_entries, term.entries, call.rows());
    if (term.costs != nullptr) {
      T* costs = term.costs->v;
      const int64_t rows_of_costs = term.diagonal ? 1 : shape.labels;
      launch(mean_field_costs_kernel<T>, rows_of_costs * shape.packs * LabelPack<T>::kLabels,
             term.compatibility, costs, term.weight, term.diagonal, shape);
    }
  }
}

// `terms` has at most kMaxMessages terms.
template <typename T, typename Index, typename Launch>
void run_mean_field(const Launch& launch, const T* logits, T* output,
                    const std::vector<MeanFieldTerm<T, Index>>& terms, const MeanFieldRows<T>& rows,
                    const MeanFieldCall& call) {
  begin_mean_field(launch, logits, terms, rows, call);
  const RowShape shape = call.shape;
  Messages<T, Index> messages{};
  for (const MeanFieldTerm<T, Index>& term : terms)
    messages.term[messages.count++] = term.message();
  const LabelPack<T>*log_p = rows.log_p, *q = rows.q;
  for (int64_t iteration = 0; iteration < call.iterations; ++iteration) {
    for (const MeanFieldTerm<T, Index>& term : terms)
      lift_rows(launch, term, rows, call.rows(), shape);
    launch(mean_field_update_kernel<T, Index>, call.rows() << shape.shift, messages, log_p,
           rows.filtered, rows.q, call.rows(), shape);
  }
  launch(mean_field_finish_kernel<T>, call.rows(), q, output, call.rows(), call.points, shape);
}

}  // namespace atrousx
