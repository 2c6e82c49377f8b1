// CUDA launchers and registration of upsample_cross_entropy and its backward.
#include "../cuda_launch.h"
#include "arguments.h"
#include "upsample_cross_entropy_kernels.cuh"

namespace atrousx {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_cross_entropy_cuda(
    const Tensor& logits, const Tensor& target, std::optional<Tensor> weight, int64_t ignore_index,
    double label_smoothing, bool align_corners, bool per_pixel) {
  const auto arguments =
      LossArguments::make(logits, target, weight, ignore_index, label_smoothing, align_corners);
  const LossMaps maps(arguments, logits, per_pixel);
  if (target.numel() == 0) return maps.all();
  const LaunchContext context(logits.get_device_index());
  const Resampling& r = arguments.r;
  dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    dispatch_label(target.scalar_type(), [&](auto label) {
      using Label = decltype(label);
      // One block a row of pixels.
      upsample_cross_entropy_forward_kernel<T, Label>
          <<<grid_for(r.batch * r.out_height * kThreads), kLossThreads, 0, context.stream()>>>(
              static_cast<const T*>(logits.const_data_ptr()),
              static_cast<const Label*>(target.const_data_ptr()),
              static_cast<A*>(maps.log_sum.mutable_data_ptr()), maps.pixel_losses<A>(),
              static_cast<double*>(maps.row_loss.mutable_data_ptr()),
              static_cast<double*>(maps.row_weight.mutable_data_ptr()), r.batch, r.plan<T>(),
              arguments.loss<A>(), strides4(logits));
    });
  });
  check_cuda(cudaGetLastError(), "_upsample_cross_entropy");
  return maps.all();
}

Tensor upsample_cross_entropy_backward_cuda(const Tensor& grad, const Tensor& logits,
                                            const Tensor& target, std::optional<Tensor> weight,
                                            const Tensor& log_sum, int64_t ignore_index,
                                            double label_smoothing, bool align_corners) {
  const auto arguments =
      LossArguments::make(logits, target, weight, ignore_index, label_smoothing, align_corners);
  check_loss_gradient(grad, logits, target, log_sum);
  const Resampling& r = arguments.r;
  const Tensor grad_logits = empty4(logits, r.input_size(), is_channels_last(logits));
  if (grad_logits.numel() == 0) return grad_logits;
  const LaunchContext context(logits.get_device_index());
  dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    dispatch_label(target.scalar_type(), [&](auto label) {
      using Label = decltype(label);
      upsample_cross_entropy_backward_kernel<T, Label>
          <<<grid_for(grad_logits.numel()), kThreads, 0, context.stream()>>>(
              static_cast<const A*>(grad.const_data_ptr()),
              static_cast<const T*>(logits.const_data_ptr()),
              static_cast<const Label*>(target.const_data_ptr()),
              static_cast<const A*>(log_sum.const_data_ptr()),
              static_cast<T*>(grad_logits.mutable_data_ptr()), r.batch, r.plan<T>(),
              arguments.loss<A>(), strides4(logits), pixel_strides(grad), strides4(grad_logits));
    });
  });
  check_cuda(cudaGetLastError(), "_upsample_cross_entropy_backward");
  return grad_logits;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("_upsample_cross_entropy", TORCH_BOX(&atrousx::upsample_cross_entropy_cuda));
  m.impl("_upsample_cross_entropy_backward",
         TORCH_BOX(&atrousx::upsample_cross_entropy_backward_cuda));
}
