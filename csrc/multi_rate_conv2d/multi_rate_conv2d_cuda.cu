// CUDA registration of multi_rate_conv2d.
#include "branches.h"

namespace atrousx {
namespace {

auto gather(bool allow_tf32) {
  return [=](const GatherShape& shape, const Tensor& source, const Tensor& weight,
             const WeightStrides& weight_strides, const Tail& tail, const Tensor& destination) {
    gather_cuda(shape, source, weight, weight_strides, tail, destination, allow_tf32);
  };
}

Tensor multi_rate_conv2d_cuda(const Tensor& input, std::vector<Tensor> weights,
                              std::optional<Tensor> bias, Sizes dilations, bool sum,
                              bool allow_tf32) {
  return multi_rate(input, weights, bias, dilations, sum, false, gather(allow_tf32));
}

Tensor multi_rate_conv2d_relu_cuda(const Tensor& input, std::vector<Tensor> weights,
                                   std::optional<Tensor> bias, Sizes dilations, bool sum,
                                   bool allow_tf32) {
  return multi_rate(input, weights, bias, dilations, sum, true, gather(allow_tf32));
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("multi_rate_conv2d", TORCH_BOX(&atrousx::multi_rate_conv2d_cuda));
  m.impl("_multi_rate_conv2d_relu", TORCH_BOX(&atrousx::multi_rate_conv2d_relu_cuda));
}
