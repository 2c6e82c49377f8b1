// Sizes and checks with torch tensors, shared by the CPU and CUDA. The checks only keep a direct
// call of torch.ops.atrousx.* from reading out of bounds. The Python wrapper raises the helpful
// messages.
#pragma once

#include "tensor.h"
#include "upsample_bilinear2d/plan.h"

namespace atrousx {

// The arguments that forward and backward share, whichever of the two maps is given.
struct Resampling {
  int64_t batch, channels, height, width, out_height, out_width;
  bool align_corners;
  std::optional<double> scale_h, scale_w;

  static Resampling forward(const Tensor& input, const std::vector<int64_t>& output_size,
                            bool align_corners, std::optional<double> scale_h,
                            std::optional<double> scale_w) {
    check_rank4(input, "input");
    STD_TORCH_CHECK(output_size.size() == 2, "output_size must hold OH and OW");
    return Resampling{input.size(0),  input.size(1), input.size(2), input.size(3), output_size[0],
                      output_size[1], align_corners, scale_h,       scale_w}
        .checked();
  }

  static Resampling backward(const Tensor& grad_output, int64_t height, int64_t width,
                             bool align_corners, std::optional<double> scale_h,
                             std::optional<double> scale_w) {
    check_rank4(grad_output, "grad_output");
    return Resampling{
        grad_output.size(0), grad_output.size(1), height,  width,  grad_output.size(2),
        grad_output.size(3), align_corners,       scale_h, scale_w}
        .checked();
  }

  std::array<int64_t, 4> input_size() const { return {batch, channels, height, width}; }
  // Equal sizes mean a copy, whatever the scale factors.
  bool same_size() const { return height == out_height && width == out_width; }
  std::array<int64_t, 4> output_size() const { return {batch, channels, out_height, out_width}; }

  template <typename T>
  BilinearPlan<Accumulate<T>> plan() const {
    using Axis = BilinearAxis<Accumulate<T>>;
    return {Axis::make(height, out_height, align_corners, scale_h),
            Axis::make(width, out_width, align_corners, scale_w)};
  }

 private:
  Resampling checked() const {
    STD_TORCH_CHECK(std::min({height, width, out_height, out_width}) > 0,
                    "both maps must have a height and a width");
    checked_numel(input_size());
    checked_numel(output_size());
    return *this;
  }
};

}  // namespace atrousx
