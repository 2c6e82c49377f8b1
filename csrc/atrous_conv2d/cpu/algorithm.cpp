// Returns which algorithm computes a pass on the CPU. It calls the same predicates as
// atrous_conv2d.cpp, indirect_conv.cpp and indirect_grad_weight.h.
#include "atrous_conv2d/algorithm.h"
#include "atrous_conv2d/cpu/depthwise/row_driver.h"
#include "atrous_conv2d/cpu/winograd/winograd_weight.h"

namespace atrousx {
namespace {

ConvAlgorithm direct_algorithm(const ConvPass& pass, ScalarType dtype, bool channels_last) {
  if (pass.shape.outer != 1 || pass.shape.inner != 1) return ConvAlgorithm::kDirect;
  bool by_rows = false;
  dispatch_floating(dtype, [&](auto zero) {
    by_rows = channels_last && !pass.of_weight && PixelWalks<decltype(zero)>::fit(pass.shape);
  });
  return by_rows ? ConvAlgorithm::kDepthwiseRows : ConvAlgorithm::kDepthwise;
}

Sizes atrous_conv2d_algorithm_cpu(const Tensor& like, int64_t pass_number, Sizes input,
                                  Sizes weight, Sizes stride, Sizes padding, Sizes dilation,
                                  int64_t groups, bool channels_last, bool frozen,
                                  bool /*allow_tf32*/) {
  const ConvOptions options{std::move(stride), std::move(padding), std::move(dilation), groups};
  const ConvPass pass(conv_geometry(input, weight, options), pass_number);
  const GatherShape& shape = pass.shape;
  const ScalarType dtype = like.scalar_type();
  if (pass.directly()) return number_of(direct_algorithm(pass, dtype, channels_last));
  // Grad-weight uses minimal filtering only in float32. It transforms no weight, so it passes true
  // for `frozen`. Of the other passes only the forward pass can have weights packed beforehand.
  if (pass.of_weight && dtype != ScalarType::Float) return number_of(ConvAlgorithm::kProduct);
  const auto points = winograd_points(shape, dtype, pass.of_weight || (frozen && pass_number == 0));
  if (!points.has_value()) return number_of(ConvAlgorithm::kProduct);
  return {static_cast<int64_t>(ConvAlgorithm::kMinimalFiltering), form_number((*points)[0]),
          form_number((*points)[1])};
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CompositeExplicitAutograd, m) {
  m.impl("_atrous_conv2d_algorithm", ATROUSX_BOX(atrousx::atrous_conv2d_algorithm_cpu));
}
