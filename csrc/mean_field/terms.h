// The tensors of a term as the operator takes them, and the checks of a direct call.
#pragma once

#include "permutohedral_filter/lattice.h"

namespace atrousx {

constexpr size_t kMeanFieldTermTensors = 9;

// The six tensors of a lattice, the factors of splat and slice, and the compatibility ([L, L], or
// the diagonal of one, [L]). The last three may be empty.
struct MeanFieldTensors {
  Lattice lattice;
  std::optional<Tensor> splat_scale, slice_scale, compatibility;

  static MeanFieldTensors make(const Tensor* t, const Tensor& logits) {
    const auto given = [](const Tensor& tensor) {
      return tensor.numel() == 0 ? std::nullopt : std::optional<Tensor>(tensor);
    };
    MeanFieldTensors term{
        {t[0], t[1], t[2], t[3], t[4], t[5]}, given(t[6]), given(t[7]), given(t[8])};
    const Lattice& l = term.lattice;
    check_lattice(l);
    STD_TORCH_CHECK(l.points() == logits.size(0) * logits.size(2) &&
                        l.corner_weights.scalar_type() == logits.scalar_type(),
                    "a lattice must have the points and the dtype of logits");
    for (const auto* scale : {&term.splat_scale, &term.slice_scale})
      check_values(l, l.corner_weights, *scale, std::nullopt);
    if (term.compatibility) {
      const Tensor& c = *term.compatibility;
      const int64_t labels = logits.size(1);
      STD_TORCH_CHECK(c.numel() == (c.dim() == 1 ? labels : labels * labels) && c.is_contiguous() &&
                          c.scalar_type() == logits.scalar_type(),
                      "a compatibility must be contiguous, [L, L] or [L]");
    }
    return term;
  }

  bool diagonal() const { return compatibility.has_value() && compatibility->dim() == 1; }
};

inline void check_iterations(int64_t iterations) {
  STD_TORCH_CHECK(iterations >= 0 && iterations <= kLargestStep, "iterations must lie in 0..",
                  kLargestStep);
}

// The terms in an operator's arguments. All must have the same index dtype.
inline std::vector<MeanFieldTensors> mean_field_tensors(const Tensor& logits,
                                                        const std::vector<Tensor>& tensors,
                                                        const std::vector<double>& weights) {
  STD_TORCH_CHECK(logits.dim() == 3, "logits must have 3 dimensions [N, L, P]");
  STD_TORCH_CHECK(tensors.size() == weights.size() * kMeanFieldTermTensors,
                  "a term has a weight and ", kMeanFieldTermTensors, " tensors");
  std::vector<MeanFieldTensors> terms;
  for (size_t k = 0; k < weights.size(); ++k) {
    terms.push_back(MeanFieldTensors::make(&tensors[k * kMeanFieldTermTensors], logits));
    STD_TORCH_CHECK(terms[k].lattice.index_type() == terms[0].lattice.index_type(),
                    "lattices must have one index dtype");
  }
  return terms;
}

}  // namespace atrousx
