// Checks of upsample_softmax_add's tensors, shared by the CPU and CUDA.
#pragma once

#include "upsample_bilinear2d/arguments.h"

namespace atrousx {

inline Resampling softmax_add_arguments(const Tensor& sum, const Tensor& logits,
                                        bool align_corners) {
  check_rank4(sum, "sum");
  const auto r = Resampling::forward(logits, {sum.size(2), sum.size(3)}, align_corners, {}, {});
  const ScalarType accumulate =
      logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(sum.size(0) == r.batch && sum.size(1) == r.channels &&
                      sum.scalar_type() == accumulate && sum.device() == logits.device(),
                  "sum must have N and C of logits, their accumulation type and their device");
  return r;
}

}  // namespace atrousx
