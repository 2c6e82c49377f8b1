// Allocates the results of upsample_argmax for the CPU and CUDA.
#pragma once

#include <tuple>

#include "upsample_bilinear2d/arguments.h"

namespace atrousx {

// Labels [N, OH, OW], uint8 or int64, and probabilities in the accumulation type, empty if not
// wanted.
inline std::tuple<Tensor, Tensor> label_maps(const Tensor& logits, const Resampling& r,
                                             bool with_probability, bool narrow) {
  STD_TORCH_CHECK(r.channels > 0 && (!narrow || r.channels <= 256),
                  "logits must have 1 channel or more, at most 256 for uint8 labels");
  const std::array<int64_t, 3> size{r.batch, r.out_height, r.out_width};
  const std::array<int64_t, 1> none{0};
  const ScalarType share =
      logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor labels =
      torch::stable::empty({size.data(), size.size()}, narrow ? ScalarType::Byte : ScalarType::Long,
                           std::nullopt, logits.device());
  const Tensor probability =
      with_probability
          ? torch::stable::empty({size.data(), size.size()}, share, std::nullopt, logits.device())
          : torch::stable::empty({none.data(), none.size()}, share, std::nullopt, logits.device());
  return {labels, probability};
}

}  // namespace atrousx
