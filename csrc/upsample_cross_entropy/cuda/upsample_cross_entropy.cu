// CUDA launchers and registration of upsample_cross_entropy and its backward.
#include "cuda/launch.h"
#include "upsample_cross_entropy/arguments.h"
#include "upsample_cross_entropy/cuda/backward_kernels.cuh"

namespace atrousx {
namespace {

template <typename A>
auto held_loss(const LossArguments& arguments) {
  const auto make = [&](const A* class_weight) { return arguments.loss<A>(class_weight); };
  return combine(make, reads<A>(arguments.class_weight));
}

struct CudaLoss {
  static void forward(const LossArguments& arguments, const LossResults& results) {
    const LaunchContext context(arguments.logits.get_device_index());
    const Resampling& r = arguments.r;
    const auto jobs = LossJobs::make(r.batch, r.out_height, r.out_width);
    const Tensor sums = arguments.empty({2, jobs.count()}, ScalarType::Double);
    const auto job_loss = writes<double>(sums), job_weight = job_loss + jobs.count();
    const bool per_pixel = arguments.reduction == Reduction::kNone;
    dispatch_loss(arguments, [&](auto zero, auto label) {
      using T = decltype(zero);
      using Label = decltype(label);
      using A = Accumulate<T>;
      const auto loss = writes<A>(results.loss), nothing = writes<A>(std::nullopt);
      if (jobs.count() > 0)
        launch({"_upsample_cross_entropy", job_grid(jobs.count()), kLossThreads, context.stream()},
               upsample_cross_entropy_forward_kernel<T, Label>, reads<T>(arguments.logits),
               reads<Label>(arguments.target), writes<A>(results.log_sum),
               per_pixel ? loss : nothing, job_loss, job_weight, jobs, r.plan<T>(),
               held_loss<A>(arguments), strides4(arguments.logits));
      launch({"_upsample_cross_entropy, total", 1, kLossThreads, context.stream()},
             upsample_cross_entropy_total_kernel<A>, job_loss, job_weight, jobs.count(),
             arguments.reduction == Reduction::kMean, per_pixel ? nothing : loss,
             writes<double>(results.total_weight));
    });
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
      const bool mean = arguments.reduction == Reduction::kMean;
      const auto make = [&](const A* address, const double* total_weight) {
        return PixelGradient<A>{address, total_weight, arguments.reduction == Reduction::kNone};
      };
      const auto grad =
          combine(make, reads<A>(gradient.grad),
                  reads<double>(mean ? std::optional(gradient.total_weight) : std::nullopt));
      launch({"_upsample_cross_entropy_backward", job_grid(jobs.count()), kLossThreads,
              context.stream()},
             upsample_cross_entropy_backward_kernel<T, Label>, grad, reads<T>(arguments.logits),
             reads<Label>(arguments.target), reads<A>(gradient.log_sum), writes<T>(grad_logits),
             jobs, plan, held_loss<A>(arguments), strides4(arguments.logits),
             strides4(grad_logits));
    });
  }
};

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("_upsample_cross_entropy",
         ATROUSX_BOX(atrousx::upsample_cross_entropy<atrousx::CudaLoss>));
  m.impl("_upsample_cross_entropy_backward",
         ATROUSX_BOX(atrousx::upsample_cross_entropy_backward<atrousx::CudaLoss>));
}
