// Torch-facing checks and allocation of upsample_cross_entropy, shared by the CPU and CUDA sides.
#pragma once

#include <tuple>

#include "../upsample_bilinear2d/arguments.h"
#include "plan.h"

namespace atrousx {

struct LossArguments {
  Resampling r;
  int64_t ignore_index;
  double smoothing;
  std::optional<Tensor> class_weight;

  static LossArguments make(const Tensor& logits, const Tensor& target,
                            const std::optional<Tensor>& class_weight, int64_t ignore_index,
                            double smoothing, bool align_corners) {
    STD_TORCH_CHECK(target.dim() == 3 && target.is_contiguous() &&
                        target.size(0) == logits.size(0) && target.device() == logits.device(),
                    "target must be a contiguous [N, OH, OW] on the device of logits");
    const auto r =
        Resampling::forward(logits, {target.size(1), target.size(2)}, align_corners, {}, {});
    STD_TORCH_CHECK(r.channels > 0, "logits must have a channel");
    STD_TORCH_CHECK(
        !class_weight.has_value() ||
            (class_weight->dim() == 1 && class_weight->size(0) == r.channels &&
             class_weight->is_contiguous() && class_weight->scalar_type() == sum_dtype(logits) &&
             class_weight->device() == logits.device()),
        "weight must be [C] in the accumulation type on the device of logits");
    return {r, ignore_index, smoothing, class_weight};
  }

  static ScalarType sum_dtype(const Tensor& logits) {
    return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  template <typename A>
  PixelLoss<A> loss() const {
    return {
        class_weight.has_value() ? static_cast<const A*>(class_weight->const_data_ptr()) : nullptr,
        r.channels, ignore_index, static_cast<A>(smoothing)};
  }

  Tensor empty(const std::vector<int64_t>& size, ScalarType dtype, const Tensor& like) const {
    return torch::stable::empty({size.data(), size.size()}, dtype, std::nullopt, like.device());
  }
};

// The C++ types of one call, and typed pointers to its tensors.
template <typename Scalar, typename Integer>
struct LossTypes {
  using T = Scalar;
  using Label = Integer;
  using A = Accumulate<T>;

  static const T* logits(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }
  static const A* numbers(const Tensor& t) { return static_cast<const A*>(t.const_data_ptr()); }
  static T* new_logits(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }
  static A* new_numbers(const Tensor& t) { return static_cast<A*>(t.mutable_data_ptr()); }
  static const Label* labels(const Tensor& t) {
    return static_cast<const Label*>(t.const_data_ptr());
  }
};

// Calls f with the LossTypes of a call.
template <typename F>
void dispatch_loss(const Tensor& logits, const Tensor& target, F&& f) {
  dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    switch (target.scalar_type()) {
      case ScalarType::Long:
        return f(LossTypes<T, int64_t>{});
      case ScalarType::Int:
        return f(LossTypes<T, int32_t>{});
      case ScalarType::Byte:
        return f(LossTypes<T, uint8_t>{});
      default:
        STD_TORCH_CHECK(false, "target must be int64, int32 or uint8");
    }
  });
}

// The forward's results.
struct LossMaps {
  Tensor row_loss, row_weight;  // [N, OH], float64
  Tensor losses;                // [N, OH, OW], or empty
  Tensor log_sum;               // [N, OH, OW], what the backward needs

  LossMaps(const LossArguments& arguments, const Tensor& logits, bool per_pixel) {
    const Resampling& r = arguments.r;
    const ScalarType sums = LossArguments::sum_dtype(logits);
    const std::vector<int64_t> lines{r.batch, r.out_height};
    const std::vector<int64_t> pixels{r.batch, r.out_height, r.out_width};
    row_loss = arguments.empty(lines, ScalarType::Double, logits);
    row_weight = arguments.empty(lines, ScalarType::Double, logits);
    losses = arguments.empty(per_pixel ? pixels : std::vector<int64_t>{0}, sums, logits);
    log_sum = arguments.empty(pixels, sums, logits);
  }

  template <typename A>
  A* pixel_losses() const {
    return losses.dim() == 3 ? static_cast<A*>(losses.mutable_data_ptr()) : nullptr;
  }
  std::tuple<Tensor, Tensor, Tensor, Tensor> all() const {
    return {row_loss, row_weight, losses, log_sum};
  }
};

// The forward of either device: allocates the results and has `compute(maps, types)` fill them.
template <typename F>
std::tuple<Tensor, Tensor, Tensor, Tensor> loss_maps(const LossArguments& arguments,
                                                     const Tensor& logits, const Tensor& target,
                                                     bool per_pixel, F&& compute) {
  const LossMaps maps(arguments, logits, per_pixel);
  if (target.numel() > 0) dispatch_loss(logits, target, [&](auto types) { compute(maps, types); });
  return maps.all();
}

inline void check_loss_gradient(const Tensor& grad, const Tensor& logits, const Tensor& target,
                                const Tensor& log_sum) {
  const ScalarType sums = LossArguments::sum_dtype(logits);
  const bool rows = grad.dim() == 2 || (grad.dim() == 3 && grad.size(2) == target.size(2));
  STD_TORCH_CHECK(rows && grad.size(0) == target.size(0) && grad.size(1) == target.size(1) &&
                      grad.scalar_type() == sums && grad.device() == logits.device(),
                  "grad must be [N, OH] or [N, OH, OW] in the accumulation type");
  STD_TORCH_CHECK(log_sum.numel() == target.numel() && log_sum.is_contiguous() &&
                      log_sum.scalar_type() == sums && log_sum.device() == logits.device(),
                  "log_sum must be the forward's");
}

// Where the gradient of pixel (n, oh, ow) lies: one per pixel [N, OH, OW], or one per row [N, OH].
inline Strides4 pixel_strides(const Tensor& grad) {
  return {grad.stride(0), 0, grad.stride(1), grad.dim() == 3 ? grad.stride(2) : 0};
}

}  // namespace atrousx
