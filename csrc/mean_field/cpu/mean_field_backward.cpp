// The gradient of mean-field inference on the CPU, with all iterations in one call.
//
// The gradient of an iteration is computed like the iteration, with slopes in place of
// probabilities and with transposed filters. Slopes are the gradients of the logits that the
// probabilities came from. They are splatted and blurred on each kernel's lattice, then each point
// is visited once. The gradients of a kernel's parameters need one more visit, and those of its
// features also one more lift.
#include "mean_field/cpu/lattice_term.h"
#include "mean_field/cpu/parameter_gradients.h"

namespace atrousx {
namespace {

using torch::stable::contiguous;
using torch::stable::new_zeros;
using torch::stable::parallel_for;

// The sums that the gradients of a term's parameters need, over all iterations
// (parameter_gradients.h).
template <typename T, typename Index>
class TermGradient {
 public:
  TermGradient(const CpuTerm<T, Index>& backward, int64_t labels)
      : backward_(backward),
        labels_(labels),
        rows_(backward.tensors->lattice.points()),
        energy_size_((backward.costs.empty() ? 1 : labels) * backward.lattice.size(1)) {}

  // The term's lattice holds the slopes, and that of `forward` holds Q. If `forward` is null, the
  // gradients of corners are left out.
  void add(const CpuTerm<T, Index>* forward, const T* q, const T* slopes, bool of_energies,
           TermGradients<T> gradients) {
    // Each chunk of points has its own sums, so they are the same with any number of threads.
    const int64_t chunk = std::max<int64_t>(kLeastChunk, (rows_ + kChunks - 1) / kChunks);
    const int64_t chunks = (rows_ + chunk - 1) / chunk;
    if (of_energies) energies_.resize(chunks * energy_size_, T(0));
    const MessageTerm<T, Index>* message = forward == nullptr ? nullptr : &forward->message;
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(ParameterRows::kPoints * stride());
      TermGradients<T> own = gradients;
      for (int64_t c = begin; c < end; ++c) {
        if (of_energies) own.energies = energies_.data() + c * energy_size_;
        run_best<ParameterRows>(ParameterPass<T, Index>{message, &backward_.message, q, slopes,
                                                        scratch.data(), own, labels_, vectors()},
                                c * chunk, std::min(rows_, (c + 1) * chunk));
      }
    });
  }

  // Sums the energies [L, L] of all points.
  void finish(T* energies) const {
    const int64_t size = energy_size_;
    for (int64_t at = 0; at < size; ++at) {
      const int64_t met = at % stride(), pays = backward_.costs.empty() ? met : at / stride();
      if (met >= labels_) continue;
      double sum = 0;
      for (size_t chunk = 0; chunk < energies_.size(); chunk += size) sum += energies_[chunk + at];
      energies[pays * labels_ + met] = static_cast<T>(sum);
    }
  }

 private:
  static constexpr int64_t kChunks = 64, kLeastChunk = 256;

  int64_t stride() const { return backward_.lattice.size(1); }
  int64_t vectors() const { return stride() / RowVector<T>::kLanes; }

  const CpuTerm<T, Index>& backward_;
  int64_t labels_, rows_, energy_size_;
  std::vector<T> energies_;  // [chunks, 1 or L, padded L]
};

// Which gradients are computed besides that of the logits.
struct Wanted {
  bool energies, corners;
};

struct Gradients {
  Tensor logits;    // [N, L, P]
  Tensor energies;  // [terms, L, L], or empty
  Tensor corners;   // [sum of N P (D + 1)]
  Tensor scales;    // [terms, 2, N P]: of splat, of slice
};

template <typename T, typename Index>
void differentiate(const Tensor& grad, const Tensor& states,
                   const std::vector<MeanFieldTensors>& given, const std::vector<double>& weights,
                   Wanted wanted, Gradients& result) {
  const int64_t labels = grad.size(1), points = grad.size(2), rows = grad.size(0) * points;
  const int64_t vectors = row_vectors<T>(labels), stride = vectors * RowVector<T>::kLanes;
  const Tensor slopes = empty_large(grad, {rows, stride}, grad.scalar_type());
  const Tensor total = empty_large(grad, {rows, stride}, grad.scalar_type());
  T* s = mutable_data<T>(slopes);
  const int64_t last = states.size(0) - 1;
  const auto state = [&](int64_t i) { return data<T>(states) + i * rows * stride; };
  const auto terms = cpu_terms<T, Index>(given, weights, labels, true);
  CpuTerms<T, Index> forward;
  if (wanted.corners) forward = cpu_terms<T, Index>(given, weights, labels, false);
  std::vector<TermGradient<T, Index>> parameters;
  for (const auto& term : terms) parameters.emplace_back(term, labels);
  parallel_for(0, rows, row_grain(stride), [&](int64_t begin, int64_t end) {
    run_best<StartSlopeRows>(data<T>(grad), state(last), SlopeRows<T>{s, mutable_data<T>(total)},
                             LabelMaps{labels, points, vectors}, begin, end);
  });
  for (int64_t i = last - 1; i >= 0; --i) {
    const T* q = state(i);
    T* corners = mutable_data<T>(result.corners);
    for (size_t k = 0; k < terms.size(); ++k) {
      terms[k].lift_rows(s);
      if (!wanted.energies && !wanted.corners) continue;
      if (wanted.corners) forward[k].lift_rows(q);
      T* scales = mutable_data<T>(result.scales) + k * 2 * rows;
      parameters[k].add(wanted.corners ? &forward[k] : nullptr, q, s, wanted.energies,
                        {nullptr, corners, scales, scales + rows});
      corners += rows * (given[k].lattice.dims() + 1);
    }
    update_rows(terms, SlopeStep<T>{q, mutable_data<T>(total)}, s, rows, labels);
  }
  for (size_t k = 0; k < terms.size() && wanted.energies; ++k)
    parameters[k].finish(mutable_data<T>(result.energies) + k * labels * labels);
  result.logits = finish_rows(data<T>(total), grad);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mean_field_backward_cpu(
    const Tensor& grad, const Tensor& states, std::vector<Tensor> tensors,
    std::vector<double> weights, bool of_energies, bool of_corners) {
  const auto terms = checked_terms(grad, tensors, weights);
  const int64_t images = grad.size(0), labels = grad.size(1), points = grad.size(2);
  const int64_t count = static_cast<int64_t>(terms.size()), rows = images * points;
  int64_t corners = 0;
  for (const auto& term : terms) corners += term.lattice.corner_weights.numel();
  Gradients result{empty_like_of(grad, {images, labels, points}),
                   new_zeros(grad, {of_energies ? count : 0, labels, labels}),
                   new_zeros(grad, {of_corners ? corners : 0}),
                   new_zeros(grad, {of_corners ? count : 0, 2, rows})};
  if (grad.numel() != 0) {
    const ScalarType index = terms.empty() ? ScalarType::Int : terms[0].lattice.index_type();
    dispatch_lattice(grad.scalar_type(), index, [&](auto zero, auto i) {
      check_states<decltype(zero)>(states, grad);
      differentiate<decltype(zero), decltype(i)>(contiguous(grad), states, terms, weights,
                                                 {of_energies, of_corners}, result);
    });
  }
  return {result.logits, result.energies, result.corners, result.scales};
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_mean_field_backward", ATROUSX_BOX(atrousx::mean_field_backward_cpu));
}
