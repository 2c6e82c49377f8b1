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
  const LaunchContext context(logits.get_device_index());
  const Resampling& r = arguments.r;
  const auto maps =
      loss_maps(arguments, logits, target, per_pixel, [&](const LossMaps& results, auto types) {
        using Types = decltype(types);
        using T = typename Types::T;
        // One block a row of pixels.
        upsample_cross_entropy_forward_kernel<T, typename Types::Label>
            <<<grid_for(r.batch * r.out_height * kThreads), kLossThreads, 0, context.stream()>>>(
                Types::logits(logits), Types::labels(target), Types::new_numbers(results.log_sum),
                results.pixel_losses<typename Types::A>(),
                static_cast<double*>(results.row_loss.mutable_data_ptr()),
                static_cast<double*>(results.row_weight.mutable_data_ptr()), r.batch, r.plan<T>(),
                arguments.loss<typename Types::A>(), strides4(logits));
      });
  check_cuda(cudaGetLastError(), "_upsample_cross_entropy");
  return maps;
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
  dispatch_loss(logits, target, [&](auto types) {
    using Types = decltype(types);
    using T = typename Types::T;
    upsample_cross_entropy_backward_kernel<T, typename Types::Label>
        <<<grid_for(grad_logits.numel()), kThreads, 0, context.stream()>>>(
            Types::numbers(grad), Types::logits(logits), Types::labels(target),
            Types::numbers(log_sum), Types::new_logits(grad_logits), r.batch, r.plan<T>(),
            arguments.loss<typename Types::A>(), strides4(logits), pixel_strides(grad),
            strides4(grad_logits));
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
