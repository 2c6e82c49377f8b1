// Mean-field inference of the dense CRF on the CPU, all iterations in one call.
//
// Labels are the channels of the permutohedral loops; rows of labels are padded to whole vectors
// with log-probabilities of minus infinity, so that their probabilities are 0. An iteration splats
// and blurs Q on each kernel's lattice, then visits each point once: it slices, subtracts the
// messages from log P and takes the softmax, all in the row of Q that it replaces.
#include "mean_field_rows.h"
#include "terms.h"

namespace atrousx {
namespace {

using torch::stable::contiguous;
using torch::stable::parallel_for;

// entry_weights times the points' splat_scale, once for all iterations
template <typename T, typename Index>
Tensor scaled_entries(const MeanFieldTensors& term) {
  if (!term.splat_scale) return term.lattice.entry_weights;
  const Tensor& given = term.lattice.entry_weights;
  const int64_t entries = given.numel();
  const Tensor result = empty_large(given, {entries}, given.scalar_type());
  T* scaled = mutable_data<T>(result);
  const T* weight = data<T>(given);
  const T* scale = data<T>(term.splat_scale);
  const Index* point = data<Index>(term.lattice.entry_points);
  parallel_for(0, entries, row_grain(1), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) scaled[e] = weight[e] * scale[point[e]];
  });
  return result;
}

// The compatibility [L, L], or its diagonal, transposed, in padded rows.
template <typename T>
std::vector<T> padded_costs(const MeanFieldTensors& term, int64_t labels, int64_t stride) {
  if (!term.compatibility) return {};
  const T* given = data<T>(term.compatibility);
  std::vector<T> costs(labels * stride, T(0));
  for (int64_t pays = 0; pays < labels; ++pays) {
    if (term.diagonal()) costs[pays * stride + pays] = given[pays];
    for (int64_t met = 0; met < labels && !term.diagonal(); ++met)
      costs[met * stride + pays] = given[pays * labels + met];
  }
  return costs;
}

// Q after all iterations, rows of labels; what led to it is freed.
template <typename T, typename Index>
Tensor iterate(const Tensor& logits, const std::vector<MeanFieldTensors>& terms,
               const std::vector<double>& weights, int64_t iterations) {
  const int64_t images = logits.size(0), labels = logits.size(1), points = logits.size(2);
  const int64_t rows = images * points, vectors = row_vectors<T>(labels);
  const int64_t stride = vectors * RowVector<T>::kLanes, grain = row_grain(stride);
  const ScalarType type = logits.scalar_type();
  const Tensor log_p = empty_large(logits, {rows, stride}, type);
  const Tensor q = empty_large(logits, {rows, stride}, type);
  std::vector<Tensor> lattices, entries;
  std::vector<Chains<Index>> chains;
  std::vector<std::vector<T>> costs;
  std::vector<MessageTerm<T, Index>> messages;
  for (size_t k = 0; k < terms.size(); ++k) {
    const Lattice& l = terms[k].lattice;
    lattices.push_back(empty_large(logits, {l.vertices(), stride}, type));
    chains.push_back(Chains<Index>::make(l));
    entries.push_back(scaled_entries<T, Index>(terms[k]));
    costs.push_back(padded_costs<T>(terms[k], labels, stride));
    messages.push_back({data<T>(lattices[k]), data<Index>(l.corner_vertices),
                        data<T>(l.corner_weights), data<T>(terms[k].slice_scale),
                        costs[k].empty() ? nullptr : costs[k].data(), static_cast<T>(weights[k]),
                        l.dims()});
  }
  parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    run_best<StartRows>(data<T>(logits), mutable_data<T>(log_p), mutable_data<T>(q), labels,
                        vectors, points, begin, end);
  });
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    for (size_t k = 0; k < terms.size(); ++k)
      lift<T, Index>(terms[k].lattice, chains[k], data<T>(q), stride, vectors, data<T>(entries[k]),
                     static_cast<const T*>(nullptr), false, mutable_data<T>(lattices[k]));
    parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(stride);
      run_best<UpdateRows>(static_cast<const MessageTerm<T, Index>*>(messages.data()),
                           static_cast<int64_t>(messages.size()), data<T>(log_p),
                           mutable_data<T>(q), scratch.data(), labels, vectors, begin, end);
    });
  }
  return q;
}

template <typename T, typename Index>
Tensor infer(const Tensor& logits, const std::vector<MeanFieldTensors>& terms,
             const std::vector<double>& weights, int64_t iterations) {
  const Tensor q = iterate<T, Index>(logits, terms, weights, iterations);
  const int64_t images = logits.size(0), labels = logits.size(1), points = logits.size(2);
  const int64_t vectors = row_vectors<T>(labels);
  const Tensor output = empty_large(logits, {images, labels, points}, logits.scalar_type());
  parallel_for(0, q.size(0), row_grain(q.size(1)), [&](int64_t begin, int64_t end) {
    run_best<FinishRows>(data<T>(q), mutable_data<T>(output), labels, vectors, points, begin, end);
  });
  return output;
}

Tensor mean_field_cpu(const Tensor& logits, std::vector<Tensor> tensors,
                      std::vector<double> weights, int64_t iterations) {
  const auto terms = mean_field_tensors(logits, tensors, weights);
  if (logits.numel() == 0)
    return empty_like_of(logits, {logits.size(0), logits.size(1), logits.size(2)});
  const Tensor source = contiguous(logits);
  const ScalarType index = terms.empty() ? ScalarType::Int : terms[0].lattice.index_type();
  std::optional<Tensor> output;
  dispatch_lattice(logits.scalar_type(), index, [&](auto zero, auto i) {
    output = infer<decltype(zero), decltype(i)>(source, terms, weights, iterations);
  });
  return *output;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_mean_field", TORCH_BOX(&atrousx::mean_field_cpu));
}
