// The algorithm of a pass of atrous_conv2d. The operator _atrous_conv2d_algorithm returns it
// without computing the pass.
#pragma once

#include "atrous_conv2d/arguments.h"

namespace atrousx {

// The numbers are those of atrousx/backend/algorithm.py, which has a description of each algorithm.
enum class ConvAlgorithm : int64_t {
  kProduct,
  kMinimalFiltering,
  kDepthwise,
  kDirect,
  kTensorCores,
  kDepthwiseRows  // depthwise, whole rows at a time, channels_last
};

struct ConvPass {
  ConvGeometry g;
  bool of_weight;
  GatherShape shape;  // for grad-weight the shape of the forward pass

  // number: 0 forward, 1 grad-input, 2 grad-weight.
  ConvPass(const ConvGeometry& geometry, int64_t number)
      : g(geometry),
        of_weight(number == 2),
        shape(number == 1 ? geometry.grad_input() : geometry.forward()) {
    STD_TORCH_CHECK(number >= 0 && number <= 2, "pass_number must be 0, 1 or 2");
  }
  bool directly() const { return of_weight ? grad_weight_directly(g) : gathers_directly(shape); }
};

inline Sizes number_of(ConvAlgorithm algorithm) { return {static_cast<int64_t>(algorithm)}; }

}  // namespace atrousx
