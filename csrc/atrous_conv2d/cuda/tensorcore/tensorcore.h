// The interface between atrous_conv2d.cu and the tensor-core kernels.
#pragma once

#include "atrous_conv2d/gather.h"

namespace atrousx {

// Whether a pass over tensors like `t` runs on tensor cores. Half types do, and float32 if the
// caller allows TF32. Groups must be wide enough for a tile, and the GPU must have the
// instructions.
bool runs_on_tensorcores(const Tensor& t, const GatherShape& shape, bool allow_tf32);

// Returns `t`, or a channels_last copy of it if the kernels would pack it. Use it when several
// passes read the same map.
Tensor map_for_tensorcores(const Tensor& t);

// Computes the destination of `call`, which must not be empty, from `source`.
void gather_on_tensorcores(const Tensor& source, const GatherCall& call);

// Writes the gradient of the weight to `result`, which must not be empty.
void grad_weight_on_tensorcores(const ConvGeometry& g, const Tensor& grad_output,
                                const Tensor& input, const Tensor& result);

}  // namespace atrousx
