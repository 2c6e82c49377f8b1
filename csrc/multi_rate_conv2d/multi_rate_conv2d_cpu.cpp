// CPU registration of multi_rate_conv2d.
#include "branches.h"

namespace atrousx {
namespace {

Tensor multi_rate_conv2d_cpu(const Tensor& input, std::vector<Tensor> weights,
                             std::optional<Tensor> bias, Sizes dilations, bool sum,
                             bool /*allow_tf32*/) {
  return multi_rate(input, weights, bias, dilations, sum, false, gather_cpu);
}

Tensor multi_rate_conv2d_relu_cpu(const Tensor& input, std::vector<Tensor> weights,
                                  std::optional<Tensor> bias, Sizes dilations, bool sum,
                                  bool /*allow_tf32*/) {
  return multi_rate(input, weights, bias, dilations, sum, true, gather_cpu);
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("multi_rate_conv2d", TORCH_BOX(&atrousx::multi_rate_conv2d_cpu));
  m.impl("_multi_rate_conv2d_relu", TORCH_BOX(&atrousx::multi_rate_conv2d_relu_cpu));
}
