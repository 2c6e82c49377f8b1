// One gathering pass between tensors: what operators made of several convolutions share with
// atrous_conv2d.
#pragma once

#include "arguments.h"

namespace atrousx {

// An Epilogue whose operands are tensors; `residual` has the destination's sizes and any strides.
struct Tail {
  std::optional<Tensor> bias, residual;
  bool relu = false;

  template <typename T>
  Epilogue<T> epilogue() const {
    const auto data = [](const std::optional<Tensor>& t) {
      return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
    };
    return {data(bias), data(residual), residual.has_value() ? strides4(*residual) : Strides4{},
            relu};
  }
};

inline void check_residual(const std::optional<Tensor>& residual, const Tensor& input,
                           const ConvGeometry& g) {
  if (!residual.has_value()) return;
  STD_TORCH_CHECK(sizes4(*residual, "residual") == Sizes({g.batch, g.outputs, g.out_h, g.out_w}),
                  "residual does not have the size of the output");
  check_same_kind(*residual, input, "residual");
}

// source -> destination, which may be a slice of a larger tensor. Only the weight's address is
// taken from `weight`; `weight_strides` say how the pass sees it.
void gather_cpu(const GatherShape& shape, const Tensor& source, const Tensor& weight,
                const WeightStrides& weight_strides, const Tail& tail, const Tensor& destination);
void gather_cuda(const GatherShape& shape, const Tensor& source, const Tensor& weight,
                 const WeightStrides& weight_strides, const Tail& tail, const Tensor& destination,
                 bool allow_tf32);

}  // namespace atrousx
