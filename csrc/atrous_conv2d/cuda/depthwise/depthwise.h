// The interface between atrous_conv2d.cu and the depthwise kernels.
#pragma once

#include "atrous_conv2d/cuda/held_epilogue.h"

namespace atrousx {

// Computes the destination of `call`, which must not be empty, from `source`. Returns false, and
// does nothing, if no depthwise kernel exists for the sizes or layouts.
bool gather_depthwise(const Tensor& source, const GatherCall& call);

// Writes the gradient of the weight to `result`, which must not be empty. Returns false as above.
bool grad_weight_depthwise(const ConvGeometry& g, const Tensor& grad_output, const Tensor& input,
                           const Tensor& result);

// Whether a depthwise kernel exists for a dense map of the dtype of `like`.
bool has_depthwise_kernel(const GatherShape& shape, const Tensor& like, bool channels_last,
                          bool of_weight);

}  // namespace atrousx
