// CUDA registration of multi_rate_conv2d.
#include "branches.h"

namespace atrousx {
namespace {

Tensor multi_rate_conv2d_cuda(const Tensor& input, std::vector<Tensor> weights,
                              std::optional<Tensor> bias, Sizes dilations, bool sum) {
  return multi_rate(input, weights, bias, dilations, sum, false, gather_cuda);
}

Tensor multi_rate_conv2d_relu_cuda(const Tensor& input, std::vector<Tensor> weights,
                                   std::optional<Tensor> bias, Sizes dilations, bool sum) {
  return multi_rate(input, weights, bias, dilations, sum, true, gather_cuda);
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("multi_rate_conv2d", TORCH_BOX(&atrousx::multi_rate_conv2d_cuda));
  m.impl("_multi_rate_conv2d_relu", TORCH_BOX(&atrousx::multi_rate_conv2d_relu_cuda));
}
