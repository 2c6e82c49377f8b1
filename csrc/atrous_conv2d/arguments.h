// Checks of tensor arguments, shared by CPU and CUDA. They only keep a direct call of
// torch.ops.atrousx.* from reading out of bounds. The Python wrapper has the helpful messages.
#pragma once

#include "atrous_conv2d/plan.h"
#include "checked.h"
#include "tensor.h"

namespace atrousx {

using Sizes = std::vector<int64_t>;

// Returns the size of the output along one axis. `padding` is the sum of both sides.
inline int64_t conv_extent(int64_t in, int64_t taps, int64_t stride, int64_t padding,
                           int64_t dilation) {
  const int64_t span = checked_mul(dilation, taps - 1);
  const int64_t room = checked_add(checked_add(in, padding), -span - 1);
  return room < 0 ? 0 : room / stride + 1;
}

// The arguments of the operators besides tensors and their sizes.
struct ConvOptions {
  Sizes stride, padding, dilation;  // padding: top, left, bottom, right
  int64_t groups;
};

// Checks the limits of a geometry. Within them every later result fits 64 bits.
inline void check_steps(const Sizes& weight, const ConvOptions& options) {
  const auto& [stride, padding, dilation, groups] = options;
  STD_TORCH_CHECK(std::min({stride[0], stride[1], dilation[0], dilation[1], groups}) > 0,
                  "stride, dilation and groups must be positive");
  STD_TORCH_CHECK(*std::min_element(padding.begin(), padding.end()) >= 0,
                  "padding must not be negative");
  STD_TORCH_CHECK(weight[2] > 0 && weight[3] > 0, "weight must have a non-empty kernel");
  STD_TORCH_CHECK(std::max({stride[0], stride[1], dilation[0], dilation[1], weight[2], weight[3],
                            *std::max_element(padding.begin(), padding.end())}) <= kLargestStep,
                  "stride, padding, dilation and kernel must be at most ", kLargestStep);
}

inline ConvGeometry conv_geometry(const Sizes& input, const Sizes& weight,
                                  const ConvOptions& options) {
  const auto& [stride, padding, dilation, groups] = options;
  STD_TORCH_CHECK(input.size() == 4 && weight.size() == 4, "input and weight must have rank 4");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
                  "stride and dilation must have 2 values, padding 4 (top, left, bottom, right)");
  check_steps(weight, options);
  checked_numel(input);
  checked_numel(weight);
  STD_TORCH_CHECK(weight[0] % groups == 0 && input[1] == checked_mul(weight[1], groups),
                  "weight does not fit the input's channels and groups");
  const int64_t out_h =
      conv_extent(input[2], weight[2], stride[0], padding[0] + padding[2], dilation[0]);
  const int64_t out_w =
      conv_extent(input[3], weight[3], stride[1], padding[1] + padding[3], dilation[1]);
  STD_TORCH_CHECK(out_h > 0 && out_w > 0, "the output would be empty");
  checked_numel(std::array{input[0], weight[0], out_h, out_w});
  return {input[0],   input[1],   input[2],    input[3],   weight[0], weight[2],
          weight[3],  groups,     out_h,       out_w,      stride[0], stride[1],
          padding[0], padding[1], dilation[0], dilation[1]};
}

inline Sizes sizes4(const Tensor& t, const char* name) {
  check_rank4(t, name);
  return {t.size(0), t.size(1), t.size(2), t.size(3)};
}

inline void check_same_kind(const Tensor& t, const Tensor& reference, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == reference.scalar_type() && t.device() == reference.device(),
                  name, " must have the dtype and device of the other tensors");
}

inline void check_grad_output(const Tensor& grad_output, const ConvGeometry& g) {
  STD_TORCH_CHECK(
      sizes4(grad_output, "grad_output") == Sizes({g.batch, g.outputs, g.out_h, g.out_w}),
      "grad_output does not have the size of the output");
}

inline void check_bias(const std::optional<Tensor>& bias, const Tensor& input,
                       const ConvGeometry& g) {
  if (!bias.has_value()) return;
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == g.outputs, "bias must have K elements");
  check_same_kind(*bias, input, "bias");
}

// Returns an uninitialised tensor of `count` elements of the accumulation type of `like`.
inline Tensor scratch(const Tensor& like, int64_t count) {
  const bool wide = like.scalar_type() == ScalarType::Double;
  return torch::stable::empty({&count, 1}, wide ? ScalarType::Double : ScalarType::Float,
                              std::nullopt, like.device());
}

}  // namespace atrousx
