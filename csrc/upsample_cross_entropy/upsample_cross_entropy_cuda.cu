// CUDA launchers and registration of upsample_cross_entropy and its backward.
#include "../cuda_launch.h"
#include "arguments.h"
#include "upsample_cross_entropy_backward_kernels.cuh"

namespace atrousx {
namespace {

struct CudaLoss {
  static void forward(const LossArguments& arguments, const LossResults& results) {
    const LaunchContext context(arguments.logits.get_device_index());
    const Resampling& r = arguments.r;
    const auto jobs = LossJobs::make(r.batch, r.out_height, r.out_width);
    const Tensor sums = arguments.empty({2, jobs.count()}, ScalarType::Double);
    double* job_loss = write_as<double>(sums);
    double* job_weight = job_loss + jobs.count();
    const bool per_pixel = arguments.reduction == Reduction::kNone;
    dispatch_loss(arguments, [&](auto zero, auto label) {
      using T = decltype(zero);
      using Label = decltype(label);
      using A = Accumulate<T>;
      A* loss = write_as<A>(results.loss);
      if (jobs.count() > 0)
        upsample_cross_entropy_forward_kernel<T, Label>
            <<<job_grid(jobs.count()), kLossThreads, 0, context.stream()>>>(
                read_as<T>(arguments.logits), read_as<Label>(arguments.target),
                write_as<A>(results.log_sum), per_pixel ? loss : nullptr, job_loss, job_weight,
                jobs, r.plan<T>(), arguments.loss<A>(), strides4(arguments.logits));
      upsample_cross_entropy_total_kernel<A><<<1, kLossThreads, 0, context.stream()>>>(
          job_loss, job_weight, jobs.count(), arguments.reduction == Reduction::kMean,
          per_pixel ? nullptr : loss, write_as<double>(results.total_weight));
    });
    check_cuda(cudaGetLastError(), "_upsample_cross_entropy");
  }

  static void backward(const LossArguments& arguments, const LossGradient& gradient,
                       const Tensor& grad_logits) {
    const LaunchContext context(arguments.logits.get_device_index());
    const Resampling& r = arguments.r;
    dispatch_loss(arguments, [&](auto zero, auto label) {
      using T = decltype(zero);
      using Label = decltype(label);
      using A = Accumulate<T>;
      const auto plan = r.plan<T>();
      const auto jobs = SlopeJobs::make(r.batch, plan);
      const PixelGradient<A> grad{read_as<A>(gradient.grad),
                                  arguments.reduction == Reduction::kMean
                                      ? read_as<double>(gradient.total_weight)
                                      : nullptr,
                                  arguments.reduction == Reduction::kNone};
      upsample_cross_entropy_backward_kernel<T, Label>
          <<<job_grid(jobs.count()), kLossThreads, 0, context.stream()>>>(
              grad, read_as<T>(arguments.logits), read_as<Label>(arguments.target),
              read_as<A>(gradient.log_sum), write_as<T>(grad_logits), jobs, plan,
              arguments.loss<A>(), strides4(arguments.logits), strides4(grad_logits));
    });
    check_cuda(cudaGetLastError(), "_upsample_cross_entropy_backward");
  }
};

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("_upsample_cross_entropy",
         ATROUSX_BOX(atrousx::upsample_cross_entropy<atrousx::CudaLoss>));
  m.impl("_upsample_cross_entropy_backward",
         ATROUSX_BOX(atrousx::upsample_cross_entropy_backward<atrousx::CudaLoss>));
}
