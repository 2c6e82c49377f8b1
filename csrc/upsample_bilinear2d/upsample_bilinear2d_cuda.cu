// CUDA launchers and registration of upsample_bilinear2d and its backward.
#include "../cuda_launch.h"
#include "arguments.h"
#include "upsample_bilinear2d_kernels.cuh"

namespace atrousx {
namespace {

Tensor upsample_bilinear2d_cuda(const Tensor& input, std::vector<int64_t> output_size,
                                bool align_corners, std::optional<double> scale_h,
                                std::optional<double> scale_w) {
  const auto r = Resampling::forward(input, output_size, align_corners, scale_h, scale_w);
  const bool channels_last = is_channels_last(input);
  const Tensor output = empty4(input, r.output_size(), channels_last);
  if (output.numel() == 0) return output;
  const LaunchContext context(input.get_device_index());
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = channels_last ? upsample_bilinear2d_forward_kernel<T, true>
                                      : upsample_bilinear2d_forward_kernel<T, false>;
    kernel<<<grid_for(output.numel()), kThreads, 0, context.stream()>>>(
        static_cast<const T*>(input.const_data_ptr()), static_cast<T*>(output.mutable_data_ptr()),
        r.batch, r.channels, r.plan<T>(), strides4(input), strides4(output));
  });
  check_cuda(cudaGetLastError(), "upsample_bilinear2d");
  return output;
}

Tensor upsample_bilinear2d_backward_cuda(const Tensor& grad_output, std::vector<int64_t> input_size,
                                         bool align_corners, std::optional<double> scale_h,
                                         std::optional<double> scale_w) {
  const auto r = Resampling::backward(grad_output, input_size, align_corners, scale_h, scale_w);
  const bool channels_last = is_channels_last(grad_output);
  const Tensor grad_input = empty4(grad_output, r.input_size(), channels_last);
  if (grad_input.numel() == 0) return grad_input;
  const LaunchContext context(grad_output.get_device_index());
  dispatch_floating(grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = channels_last ? upsample_bilinear2d_backward_kernel<T, true>
                                      : upsample_bilinear2d_backward_kernel<T, false>;
    kernel<<<grid_for(grad_input.numel()), kThreads, 0, context.stream()>>>(
        static_cast<const T*>(grad_output.const_data_ptr()),
        static_cast<T*>(grad_input.mutable_data_ptr()), r.batch, r.channels, r.plan<T>(),
        strides4(grad_output), strides4(grad_input));
  });
  check_cuda(cudaGetLastError(), "_upsample_bilinear2d_backward");
  return grad_input;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("upsample_bilinear2d", TORCH_BOX(&atrousx::upsample_bilinear2d_cuda));
  m.impl("_upsample_bilinear2d_backward", TORCH_BOX(&atrousx::upsample_bilinear2d_backward_cuda));
}
