// The part of upsample_cross_entropy that the CPU and CUDA share: checks, allocation, and the
// choice of types. A device adds `forward` and `backward`.
#pragma once

#include <tuple>

#include "upsample_bilinear2d/arguments.h"
#include "upsample_cross_entropy/plan.h"

namespace atrousx {

enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

// The arguments of the operators besides tensors.
struct LossOptions {
  int64_t ignore_index;
  double label_smoothing;
  bool align_corners;
  int64_t reduction;
};

struct LossArguments {
  Tensor logits, target;  // [N, C, H, W], [N, OH, OW]
  std::optional<Tensor> class_weight;
  Resampling r;
  int64_t ignore_index;
  double smoothing;
  Reduction reduction;

  static LossArguments make(const Tensor& logits, const Tensor& target,
                            const std::optional<Tensor>& class_weight, const LossOptions& options) {
    STD_TORCH_CHECK(target.dim() == 3 && target.is_contiguous() &&
                        target.size(0) == logits.size(0) && target.device() == logits.device(),
                    "target must be a contiguous [N, OH, OW] on the device of logits");
    const auto r = Resampling::forward(logits, {target.size(1), target.size(2)},
                                       options.align_corners, {}, {});
    STD_TORCH_CHECK(r.channels > 0, "logits must have a channel");
    STD_TORCH_CHECK(options.reduction >= 0 && options.reduction <= 2,
                    "reduction must be 0, 1 or 2");
    const LossArguments arguments{logits,
                                  target,
                                  class_weight,
                                  r,
                                  options.ignore_index,
                                  options.label_smoothing,
                                  static_cast<Reduction>(options.reduction)};
    STD_TORCH_CHECK(
        !class_weight.has_value() ||
            (class_weight->dim() == 1 && class_weight->size(0) == r.channels &&
             class_weight->is_contiguous() && class_weight->scalar_type() == arguments.sums() &&
             class_weight->device() == logits.device()),
        "weight must be [C] in the accumulation type on the device of logits");
    return arguments;
  }

  // The dtype of all sums.
  ScalarType sums() const {
    return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  template <typename A>
  PixelLoss<A> loss(const A* class_weights) const {
    return {class_weights, r.channels, ignore_index, static_cast<A>(smoothing)};
  }

  Tensor empty(const std::vector<int64_t>& size, ScalarType dtype) const {
    return torch::stable::empty({size.data(), size.size()}, dtype, std::nullopt, logits.device());
  }
};

// The results of the forward.
struct LossResults {
  Tensor loss;          // [], or per pixel [N, OH, OW]
  Tensor total_weight;  // [], float64: sum over the pixels that count
  Tensor log_sum;       // [N, OH, OW], needed by the backward

  explicit LossResults(const LossArguments& arguments) {
    const Resampling& r = arguments.r;
    const std::vector<int64_t> one{}, pixels{r.batch, r.out_height, r.out_width};
    loss =
        arguments.empty(arguments.reduction == Reduction::kNone ? pixels : one, arguments.sums());
    total_weight = arguments.empty(one, ScalarType::Double);
    log_sum = arguments.empty(pixels, arguments.sums());
  }
};

// The arguments of the backward besides those of the forward.
struct LossGradient {
  Tensor grad;          // shaped like the forward's loss
  Tensor total_weight;  // []
  Tensor log_sum;       // [N, OH, OW]

  void check(const LossArguments& arguments) const {
    const auto matches = [&](const Tensor& t, ScalarType dtype) {
      return t.scalar_type() == dtype && t.device() == arguments.logits.device() &&
             t.is_contiguous();
    };
    const bool per_pixel = arguments.reduction == Reduction::kNone;
    STD_TORCH_CHECK(grad.dim() == (per_pixel ? 3 : 0) && matches(grad, arguments.sums()) &&
                        (!per_pixel || grad.numel() == arguments.target.numel()),
                    "grad must be like the loss, and contiguous");
    STD_TORCH_CHECK(total_weight.numel() == 1 && matches(total_weight, ScalarType::Double) &&
                        log_sum.numel() == arguments.target.numel() &&
                        matches(log_sum, arguments.sums()),
                    "total_weight and log_sum must be the forward's");
  }
};

// Calls f with a value of the logits' C++ type and a value of the labels' C++ type.
template <typename F>
void dispatch_loss(const LossArguments& arguments, F&& f) {
  dispatch_floating(arguments.logits.scalar_type(), [&](auto zero) {
    switch (arguments.target.scalar_type()) {
      case ScalarType::Long:
        return f(zero, int64_t{});
      case ScalarType::Int:
        return f(zero, int32_t{});
      case ScalarType::Byte:
        return f(zero, uint8_t{});
      default:
        STD_TORCH_CHECK(false, "target must be int64, int32 or uint8");
    }
  });
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> upsample_cross_entropy(
    const Tensor& logits, const Tensor& target, std::optional<Tensor> weight, int64_t ignore_index,
    double label_smoothing, bool align_corners, int64_t reduction) {
  const auto arguments = LossArguments::make(
      logits, target, weight, {ignore_index, label_smoothing, align_corners, reduction});
  const LossResults results(arguments);
  Device::forward(arguments, results);
  return {results.loss, results.total_weight, results.log_sum};
}

template <typename Device>
Tensor upsample_cross_entropy_backward(const Tensor& grad, const Tensor& logits,
                                       const Tensor& target, std::optional<Tensor> weight,
                                       const Tensor& total_weight, const Tensor& log_sum,
                                       int64_t ignore_index, double label_smoothing,
                                       bool align_corners, int64_t reduction) {
  const auto arguments = LossArguments::make(
      logits, target, weight, {ignore_index, label_smoothing, align_corners, reduction});
  const LossGradient gradient{grad, total_weight, log_sum};
  gradient.check(arguments);
  const Tensor grad_logits = empty4(logits, arguments.r.input_size(), is_channels_last(logits));
  if (grad_logits.numel() > 0) Device::backward(arguments, gradient, grad_logits);
  return grad_logits;
}

}  // namespace atrousx
