// A term of the energy for the CPU's loops, with the memory of its lattice.
#pragma once

#include "mean_field/cpu/iteration.h"
#include "mean_field/terms.h"
#include "permutohedral_filter/cpu/index_check.h"

namespace atrousx {

// Multiplies entry_weights by the scale of the points, once for all iterations.
template <typename T, typename Index>
Tensor scaled_entries(const Lattice& lattice, const std::optional<Tensor>& point_scale) {
  const Tensor& given = lattice.entry_weights;
  if (!point_scale) return given;
  const int64_t entries = given.numel();
  const Tensor result = empty_large(given, {entries}, given.scalar_type());
  T* scaled = mutable_data<T>(result);
  const T* weight = data<T>(given);
  const T* scale = data<T>(point_scale);
  const Index* point = data<Index>(lattice.entry_points);
  torch::stable::parallel_for(0, entries, row_grain(1), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) scaled[e] = weight[e] * scale[point[e]];
  });
  return result;
}

// Copies the compatibility [L, L], or its diagonal, to padded rows. A row belongs to the label that
// is met or, if transposed, to the label that pays.
template <typename T>
std::vector<T> padded_costs(const MeanFieldTensors& term, int64_t labels, int64_t stride,
                            bool transpose) {
  if (!term.compatibility) return {};
  const T* given = data<T>(term.compatibility);
  std::vector<T> costs(labels * stride, T(0));
  for (int64_t pays = 0; pays < labels; ++pays) {
    if (term.diagonal()) costs[pays * stride + pays] = given[pays];
    for (int64_t met = 0; met < labels && !term.diagonal(); ++met)
      costs[transpose ? pays * stride + met : met * stride + pays] = given[pays * labels + met];
  }
  return costs;
}

// `transpose` transposes the filter, the scales and the compatibility.
template <typename T, typename Index>
struct CpuTerm {
  const MeanFieldTensors* tensors;
  bool transpose;
  Tensor lattice, entries;
  Chains<Index> chains;
  std::vector<T> costs;
  MessageTerm<T, Index> message;

  static CpuTerm make(const MeanFieldTensors& given, double weight, int64_t labels,
                      bool transpose) {
    const Lattice& l = given.lattice;
    const int64_t stride = row_vectors<T>(labels) * RowVector<T>::kLanes;
    const auto& splat_scale = transpose ? given.slice_scale : given.splat_scale;
    const auto& slice_scale = transpose ? given.splat_scale : given.slice_scale;
    CpuTerm term{
        &given,
        transpose,
        empty_large(l.corner_weights, {l.vertices(), stride}, l.corner_weights.scalar_type()),
        scaled_entries<T, Index>(l, splat_scale),
        Chains<Index>::make(l),
        padded_costs<T>(given, labels, stride, transpose),
        {}};
    term.message = {data<T>(term.lattice),
                    data<Index>(l.corner_vertices),
                    data<T>(l.corner_weights),
                    data<T>(slice_scale),
                    term.costs.empty() ? nullptr : term.costs.data(),
                    static_cast<T>(weight),
                    l.dims()};
    return term;
  }

  // Splats and blurs rows of labels onto the lattice.
  void lift_rows(const T* rows) const {
    const int64_t stride = lattice.size(1);
    lift<T, Index>(tensors->lattice, chains,
                   {rows, stride, stride / RowVector<T>::kLanes, data<T>(entries), nullptr,
                    transpose, mutable_data<T>(lattice)});
  }
};

template <typename T, typename Index>
using CpuTerms = std::vector<CpuTerm<T, Index>>;

template <typename T, typename Index>
CpuTerms<T, Index> cpu_terms(const std::vector<MeanFieldTensors>& given,
                             const std::vector<double>& weights, int64_t labels, bool transpose) {
  CpuTerms<T, Index> terms;
  for (size_t k = 0; k < given.size(); ++k)
    terms.push_back(CpuTerm<T, Index>::make(given[k], weights[k], labels, transpose));
  return terms;
}

// rows [count, padded labels] = step(messages). The lattices of the terms must be filled.
template <typename T, typename Index, typename Step>
void update_rows(const CpuTerms<T, Index>& terms, const Step& step, T* rows, int64_t count,
                 int64_t labels) {
  std::vector<MessageTerm<T, Index>> messages;
  for (const auto& term : terms) messages.push_back(term.message);
  const int64_t vectors = row_vectors<T>(labels), stride = vectors * RowVector<T>::kLanes;
  torch::stable::parallel_for(0, count, row_grain(stride), [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(stride);
    run_best<UpdateRows>(
        RowUpdate<T, Index, Step>{messages.data(), static_cast<int64_t>(messages.size()), step,
                                  rows, scratch.data(), labels, vectors},
        begin, end);
  });
}

// rows of labels -> [N, L, P], the shape of `like`
template <typename T>
Tensor finish_rows(const T* rows, const Tensor& like) {
  const int64_t images = like.size(0), labels = like.size(1), points = like.size(2);
  const Tensor output = empty_large(like, {images, labels, points}, like.scalar_type());
  const LabelMaps maps{labels, points, row_vectors<T>(labels)};
  const int64_t grain = row_grain(maps.vectors * RowVector<T>::kLanes);
  torch::stable::parallel_for(0, images * points, grain, [&](int64_t begin, int64_t end) {
    run_best<FinishRows>(rows, mutable_data<T>(output), maps, begin, end);
  });
  return output;
}

// The terms in an operator's arguments, after a check of their lattices' indices.
inline std::vector<MeanFieldTensors> checked_terms(const Tensor& logits,
                                                   const std::vector<Tensor>& tensors,
                                                   const std::vector<double>& weights) {
  auto terms = mean_field_tensors(logits, tensors, weights);
  for (const MeanFieldTensors& term : terms) check_indices(term.lattice);
  return terms;
}

// Checks that the states can come from _mean_field_states for logits like `grad`.
template <typename T>
void check_states(const Tensor& states, const Tensor& grad) {
  STD_TORCH_CHECK(states.dim() == 3 && states.size(0) >= 1 && states.is_contiguous() &&
                      states.size(1) == grad.size(0) * grad.size(2) &&
                      states.size(2) == row_vectors<T>(grad.size(1)) * RowVector<T>::kLanes &&
                      states.scalar_type() == grad.scalar_type(),
                  "states must be those of the logits that grad belongs to");
}

}  // namespace atrousx
