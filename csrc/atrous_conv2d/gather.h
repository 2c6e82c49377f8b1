// A gathering pass between tensors. atrous_conv2d and the operators that consist of several
// convolutions use it.
#pragma once

#include "atrous_conv2d/arguments.h"

namespace atrousx {

// An Epilogue whose operands are tensors. `residual` has the sizes of the destination and any
// strides.
struct Tail {
  std::optional<Tensor> bias, residual;
  bool relu = false;

  template <typename T>
  Epilogue<T> epilogue() const {
    return {data<T>(bias), data<T>(residual),
            residual.has_value() ? strides4(*residual) : Strides4{}, relu};
  }
};

inline void check_residual(const std::optional<Tensor>& residual, const Tensor& input,
                           const ConvGeometry& g) {
  if (!residual.has_value()) return;
  STD_TORCH_CHECK(sizes4(*residual, "residual") == Sizes({g.batch, g.outputs, g.out_h, g.out_w}),
                  "residual does not have the size of the output");
  check_same_kind(*residual, input, "residual");
}

// A checked call of one of the three passes: the geometry, and the size and memory format of the
// result.
struct ConvCall {
  ConvGeometry g;
  std::array<int64_t, 4> size;
  bool channels_last;
};

// Checks the arguments of a forward pass. Also makes the bias in `tail` contiguous.
inline ConvCall forward_call(const Tensor& input, const Tensor& weight, Tail& tail,
                             const ConvOptions& options) {
  const ConvGeometry g = conv_geometry(sizes4(input, "input"), sizes4(weight, "weight"), options);
  check_same_kind(weight, input, "weight");
  check_bias(tail.bias, input, g);
  check_residual(tail.residual, input, g);
  if (tail.bias.has_value()) tail.bias = torch::stable::contiguous(*tail.bias);
  return {g,
          {g.batch, g.outputs, g.out_h, g.out_w},
          is_channels_last(input) || is_channels_last(weight)};
}

inline ConvCall grad_input_call(const Tensor& grad_output, const Tensor& weight,
                                const Sizes& input_size, const ConvOptions& options) {
  const ConvGeometry g = conv_geometry(input_size, sizes4(weight, "weight"), options);
  check_grad_output(grad_output, g);
  check_same_kind(weight, grad_output, "weight");
  return {g,
          {g.batch, g.channels, g.height, g.width},
          is_channels_last(grad_output) || is_channels_last(weight)};
}

inline ConvCall grad_weight_call(const Tensor& grad_output, const Tensor& input,
                                 const Sizes& weight_size, const ConvOptions& options) {
  const ConvGeometry g = conv_geometry(sizes4(input, "input"), weight_size, options);
  check_grad_output(grad_output, g);
  check_same_kind(input, grad_output, "input");
  return {g,
          {g.outputs, g.group_channels(), g.kernel_h, g.kernel_w},
          is_channels_last(grad_output) || is_channels_last(input)};
}

// A pass that writes `destination`, which may be a slice of a larger tensor. `weight` gives only
// the address and dtype of the weight. Its strides in this pass are `weight_strides`. On the CPU
// `packed` may hold the packed weight.
struct GatherCall {
  GatherShape shape;
  Tensor weight;
  WeightStrides weight_strides;
  Tail tail;
  Tensor destination;
  std::optional<Tensor> packed = std::nullopt;
};

// Runs calls that read the same source, in order. A destination may be the residual of a later
// call.
void gather_cpu(const Tensor& source, const std::vector<GatherCall>& calls);
void gather_cuda(const Tensor& source, const GatherCall& call, bool allow_tf32);

}  // namespace atrousx
