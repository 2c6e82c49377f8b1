// Returns the algorithm that a pass uses on CUDA. It uses the predicates of atrous_conv2d.cu, and
// assumes that maps are dense.
#include "atrous_conv2d/algorithm.h"
#include "atrous_conv2d/cuda/depthwise/depthwise.h"
#include "atrous_conv2d/cuda/tensorcore/tensorcore.h"
#include "cuda/launch.h"

namespace atrousx {
namespace {

Sizes atrous_conv2d_algorithm_cuda(const Tensor& like, int64_t pass_number, Sizes input,
                                   Sizes weight, Sizes stride, Sizes padding, Sizes dilation,
                                   int64_t groups, bool channels_last, bool /*frozen*/,
                                   bool allow_tf32) {
  const ConvOptions options{std::move(stride), std::move(padding), std::move(dilation), groups};
  const ConvPass pass(conv_geometry(input, weight, options), pass_number);
  if (runs_on_tensorcores(like, pass.shape, allow_tf32))
    return number_of(ConvAlgorithm::kTensorCores);
  if (has_depthwise_kernel(pass.shape, like, channels_last, pass.of_weight))
    return number_of(ConvAlgorithm::kDepthwise);
  return number_of(pass.directly() ? ConvAlgorithm::kDirect : ConvAlgorithm::kProduct);
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("_atrous_conv2d_algorithm", ATROUSX_BOX(atrousx::atrous_conv2d_algorithm_cuda));
}
