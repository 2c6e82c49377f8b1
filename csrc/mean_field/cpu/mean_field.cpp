// Mean-field inference of the dense CRF on the CPU, with all iterations in one call.
//
// Labels are the channels of the permutohedral loops. Rows of labels are padded to whole vectors.
// The padding has log-probability minus infinity, so its probability is 0. An iteration splats and
// blurs Q on each kernel's lattice. Then it visits each point once: it slices, subtracts the
// messages from log P and takes the softmax, all in one row of Q. If no gradient is needed, this
// row replaces the old one.
#include "mean_field/cpu/lattice_term.h"

namespace atrousx {
namespace {

using torch::stable::contiguous;
using torch::stable::parallel_for;

// Q before and after each iteration, [iterations + 1, N P, padded labels]. Without `keep` only the
// last Q.
template <typename T, typename Index>
Tensor iterate(const Tensor& logits, const std::vector<MeanFieldTensors>& given,
               const std::vector<double>& weights, int64_t iterations, bool keep) {
  const int64_t labels = logits.size(1), points = logits.size(2), rows = logits.size(0) * points;
  const int64_t vectors = row_vectors<T>(labels), stride = vectors * RowVector<T>::kLanes;
  const ScalarType type = logits.scalar_type();
  const Tensor log_p = empty_large(logits, {rows, stride}, type);
  const Tensor states = empty_large(logits, {keep ? iterations + 1 : 1, rows, stride}, type);
  const auto terms = cpu_terms<T, Index>(given, weights, labels, false);
  T* q = mutable_data<T>(states);
  parallel_for(0, rows, row_grain(stride), [&](int64_t begin, int64_t end) {
    run_best<StartRows>(data<T>(logits), mutable_data<T>(log_p), q,
                        LabelMaps{labels, points, vectors}, begin, end);
  });
  for (int64_t i = 0; i < iterations; ++i) {
    for (const auto& term : terms) term.lift_rows(q);
    if (keep) q += rows * stride;
    update_rows(terms, SoftmaxStep<T>{data<T>(log_p)}, q, rows, labels);
  }
  return states;
}

// The last state as [N, L, P], and the states.
std::tuple<Tensor, Tensor> infer(const Tensor& logits, const std::vector<Tensor>& tensors,
                                 const std::vector<double>& weights, int64_t iterations,
                                 bool keep) {
  const auto terms = checked_terms(logits, tensors, weights);
  check_iterations(iterations);
  if (logits.numel() == 0) {
    const int64_t kept = keep ? iterations + 1 : 1;
    return {empty_like_of(logits, {logits.size(0), logits.size(1), logits.size(2)}),
            empty_like_of(logits, {kept, logits.size(0) * logits.size(2), 0})};
  }
  const Tensor source = contiguous(logits);
  const ScalarType index = terms.empty() ? ScalarType::Int : terms[0].lattice.index_type();
  std::optional<std::tuple<Tensor, Tensor>> results;
  dispatch_lattice(logits.scalar_type(), index, [&](auto zero, auto i) {
    using T = decltype(zero);
    const Tensor states = iterate<T, decltype(i)>(source, terms, weights, iterations, keep);
    const T* last = data<T>(states) + (states.size(0) - 1) * states.stride(0);
    results = {finish_rows(last, source), states};
  });
  return *results;
}

Tensor mean_field_cpu(const Tensor& logits, std::vector<Tensor> tensors,
                      std::vector<double> weights, int64_t iterations) {
  return std::get<0>(infer(logits, tensors, weights, iterations, false));
}

std::tuple<Tensor, Tensor> mean_field_states_cpu(const Tensor& logits, std::vector<Tensor> tensors,
                                                 std::vector<double> weights, int64_t iterations) {
  return infer(logits, tensors, weights, iterations, true);
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_mean_field", ATROUSX_BOX(atrousx::mean_field_cpu));
  m.impl("_mean_field_states", ATROUSX_BOX(atrousx::mean_field_states_cpu));
}
