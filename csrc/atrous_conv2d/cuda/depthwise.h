// The depthwise kernels of atrous_conv2d on CUDA, as atrous_conv2d.cu sees them.
#pragma once

#include "atrous_conv2d/cuda/held_epilogue.h"

namespace atrousx {

// source -> destination, which is not empty; false, and nothing done, where there is no depthwise
// kernel for the sizes or layouts.
bool gather_depthwise(const GatherShape& shape, const Tensor& source, const Tensor& weight,
                      const WeightStrides& weight_strides, const Tail& tail,
                      const Tensor& destination);

// The gradient of the weight into `result`, which is not empty; false likewise.
bool grad_weight_depthwise(const ConvGeometry& g, const Tensor& grad_output, const Tensor& input,
                           const Tensor& result);

// Whether a map of the dtype of `like`, dense in its format, has such a kernel.
bool has_depthwise_kernel(const GatherShape& shape, const Tensor& like, bool channels_last,
                          bool of_weight);

}  // namespace atrousx
