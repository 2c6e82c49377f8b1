// How a pass of atrous_conv2d is computed, for those who only ask: _atrous_conv2d_algorithm.
#pragma once

#include "atrous_conv2d/arguments.h"

namespace atrousx {

// By their numbers in atrousx/backend/algorithm.py, which has the words.
enum class ConvAlgorithm : int64_t {
  kProduct,
  kMinimalFiltering,
  kDepthwise,
  kDirect,
  kTensorCores,
  kDepthwiseRows  // by whole rows of channels_last
};

struct ConvPass {
  ConvGeometry g;
  bool of_weight;
  GatherShape shape;  // of a grad-weight the forward's

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
