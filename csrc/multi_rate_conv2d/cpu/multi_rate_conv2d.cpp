// Computes multi_rate_conv2d on the CPU and registers it.
#include "multi_rate_conv2d/branches.h"

namespace atrousx {
namespace {

// Runs all passes in one call, so that the input is packed once for all of them.
Tensor run(const MultiRate& call, const Tensor& input, const std::vector<Tensor>& weights, bool sum,
           const std::vector<Tensor>& packed) {
  if (call.output.numel() > 0) gather_cpu(input, branch_calls(call, weights, sum, packed));
  return call.output;
}

Tensor multi_rate_conv2d_cpu(const Tensor& input, std::vector<Tensor> weights,
                             std::optional<Tensor> bias, Sizes dilations, bool sum,
                             bool /*allow_tf32*/) {
  return run(multi_rate_call(input, weights, bias, dilations, sum, false), input, weights, sum, {});
}

Tensor multi_rate_conv2d_relu_cpu(const Tensor& input, std::vector<Tensor> weights,
                                  std::optional<Tensor> bias, Sizes dilations, bool sum,
                                  bool /*allow_tf32*/, std::vector<Tensor> packed) {
  return run(multi_rate_call(input, weights, bias, dilations, sum, true), input, weights, sum,
             packed);
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("multi_rate_conv2d", ATROUSX_BOX(atrousx::multi_rate_conv2d_cpu));
  m.impl("_multi_rate_conv2d_relu", ATROUSX_BOX(atrousx::multi_rate_conv2d_relu_cpu));
}
