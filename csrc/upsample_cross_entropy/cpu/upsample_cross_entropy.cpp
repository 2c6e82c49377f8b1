// CPU tasks and registration of upsample_cross_entropy and its backward. A task is a range of pixel
// rows (cpu/forward.h), or of rows of logits (cpu/backward.h).
#include <numeric>

#include "cpu/workspace.h"
#include "upsample_cross_entropy/arguments.h"
#include "upsample_cross_entropy/cpu/backward.h"
#include "upsample_cross_entropy/cpu/forward.h"

namespace atrousx {
namespace {

template <typename A>
LossPlan<A> loss_plan(const LossArguments& arguments) {
  LossPlan<A> plan{LinesPlan<A>(arguments.r, arguments.logits),
                   arguments.loss<A>(data<A>(arguments.class_weight)), A(0),
                   Labels{arguments.target.const_data_ptr(), arguments.target.scalar_type(),
                          arguments.r.channels, arguments.ignore_index}};
  plan.loss.ignore_index = kIgnoredClass;
  plan.total = plan.loss.total_weight();
  return plan;
}

template <typename A>
void forward_as(const LossArguments& arguments, const LossResults& results) {
  const Resampling& r = arguments.r;
  const bool per_pixel = arguments.reduction == Reduction::kNone;
  const int64_t rows = r.batch * r.out_height;
  std::vector<double> row_loss(rows), row_weight(rows);
  const LossForwardPlan<A> plan{loss_plan<A>(arguments), mutable_data<A>(results.log_sum),
                                per_pixel ? mutable_data<A>(results.loss) : nullptr,
                                row_loss.data(), row_weight.data()};
  over_pixel_rows<LossBlocks>(plan);
  const double weight = std::accumulate(row_weight.begin(), row_weight.end(), 0.0);
  *mutable_data<double>(results.total_weight) = weight;
  if (per_pixel) return;
  const double loss = std::accumulate(row_loss.begin(), row_loss.end(), 0.0);
  *mutable_data<A>(results.loss) =
      static_cast<A>(arguments.reduction == Reduction::kMean ? loss / weight : loss);
}

template <typename A>
void backward_as(const LossArguments& arguments, const LossGradient& gradient,
                 const Tensor& grad_logits) {
  const Resampling& r = arguments.r;
  const A* grad = data<A>(gradient.grad);
  const bool per_pixel = arguments.reduction == Reduction::kNone;
  const double weight =
      arguments.reduction == Reduction::kMean ? *data<double>(gradient.total_weight) : 1.0;
  const LossBackwardPlan<A> plan{loss_plan<A>(arguments), data<A>(gradient.log_sum),
                                 per_pixel ? grad : nullptr,
                                 per_pixel ? A(0) : static_cast<A>(*grad / weight),
                                 GradientRows{grad_logits.mutable_data_ptr(),
                                              grad_logits.scalar_type(), strides4(grad_logits)}};
  // A row of logits needs the work of all pixel rows around it.
  const int64_t pixel_rows = std::max<int64_t>(1, r.out_height / r.height);
  const int64_t grain = std::max<int64_t>(1, plan.lines.grain() / pixel_rows);
  torch::stable::parallel_for(0, r.batch * r.height, grain, [&](int64_t begin, int64_t end) {
    const Workspace<A> room(plan.room());
    run_with_lanes<LossBackward>(&plan, room.data(), begin, end);
  });
}

struct CpuLoss {
  static void forward(const LossArguments& arguments, const LossResults& results) {
    arguments.sums() == ScalarType::Double ? forward_as<double>(arguments, results)
                                           : forward_as<float>(arguments, results);
  }
  static void backward(const LossArguments& arguments, const LossGradient& gradient,
                       const Tensor& grad_logits) {
    arguments.sums() == ScalarType::Double ? backward_as<double>(arguments, gradient, grad_logits)
                                           : backward_as<float>(arguments, gradient, grad_logits);
  }
};

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("_upsample_cross_entropy", ATROUSX_BOX(atrousx::upsample_cross_entropy<atrousx::CpuLoss>));
  m.impl("_upsample_cross_entropy_backward",
         ATROUSX_BOX(atrousx::upsample_cross_entropy_backward<atrousx::CpuLoss>));
}
