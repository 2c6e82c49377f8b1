// The tensor-core side of atrous_conv2d on CUDA, as atrous_conv2d.cu sees it.
#pragma once

#include "atrous_conv2d/gather.h"

namespace atrousx {

// Whether a pass over tensors like `t` runs on tensor cores: half types always, float32 where the
// caller allows TF32; groups wide enough to be worth a tile; a GPU that has the instructions.
bool runs_on_tensorcores(const Tensor& t, const GatherShape& shape, bool allow_tf32);

// `t`, or a channels_last copy of it if the kernels would pack it: for those who pass over it
// often.
Tensor map_for_tensorcores(const Tensor& t);

// source -> destination, which is not empty.
void gather_on_tensorcores(const GatherShape& shape, const Tensor& source, const Tensor& weight,
                           const WeightStrides& weight_strides, const Tail& tail,
                           const Tensor& destination);

// The gradient of the weight into `result`, which is not empty.
void grad_weight_on_tensorcores(const ConvGeometry& g, const Tensor& grad_output,
                                const Tensor& input, const Tensor& result);

}  // namespace atrousx
