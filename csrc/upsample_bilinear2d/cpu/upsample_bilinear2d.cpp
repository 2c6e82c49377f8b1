// CPU tasks, checks and registration of upsample_bilinear2d and its backward.
//
// A task is a range of destination rows: of one channel if the maps are contiguous, of whole pixels
// if they are channels_last.
#include <cstring>

#include "cpu/huge_pages.h"
#include "cpu/workspace.h"
#include "upsample_bilinear2d/arguments.h"
#include "upsample_bilinear2d/cpu/backward.h"
#include "upsample_bilinear2d/cpu/forward.h"

namespace atrousx {
namespace {

// How a map is cut into rows of pixels: `maps` of height x width pixels.
struct Pixels {
  int64_t maps, size;

  // In NCHW each channel is a map of its own, whose pixels are single numbers.
  Pixels(const Resampling& r, bool channels_last)
      : maps(channels_last ? r.batch : r.batch * r.channels),
        size(channels_last ? r.channels : 1) {}

  template <typename A>
  bool fill(int64_t bytes) const {
    return size * static_cast<int64_t>(sizeof(A)) >= bytes;
  }
};

// Runs a loop over rows [0, count) in tasks. Each row reads or writes `row` elements. Each task has
// `room` numbers of its own.
template <template <int> class Loop, typename A, typename... Args>
void over_rows(int64_t count, int64_t row, int64_t room, Args... args) {
  constexpr int64_t kElementsPerTask = 16384;  // enough to pay for waking a thread
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row));
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const Workspace<A> numbers(room);
    run_with_lanes<Loop, Args..., A*>(args..., numbers.data(), begin, end);
  });
}

template <typename T>
void copy(const T* from, T* to, int64_t count) {
  constexpr int64_t kElementsPerTask = 65536;
  torch::stable::parallel_for(0, count, kElementsPerTask, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin, from + begin, (end - begin) * sizeof(T));
  });
}

template <typename T>
void forward(const T* input, T* output, const Resampling& r, bool channels_last) {
  using A = Accumulate<T>;
  if (r.same_size()) return copy(input, output, r.batch * r.channels * r.height * r.width);
  const Pixels pixels(r, channels_last);
  const auto axes = r.plan<T>();
  const ForwardPlan<T> plan{input, output, pixels.size, CpuAxis<A>(axes.rows),
                            CpuAxis<A>(axes.columns)};
  const int64_t rows = pixels.maps * r.out_height, row = r.out_width * pixels.size;
  if (pixels.fill<A>(vector_bytes())) {
    over_rows<ForwardWide, A>(rows, row, plan.room(), &plan);
  } else {
    const ColumnGroups<A> columns(plan.columns, pixels.size, vector_bytes());
    over_rows<ForwardNarrow, A>(rows, row, columns.room(), &plan, &columns);
  }
}

template <typename T>
void backward(const T* grad_output, T* grad_input, const Resampling& r, bool channels_last) {
  using A = Accumulate<T>;
  if (r.same_size())
    return copy(grad_output, grad_input, r.batch * r.channels * r.height * r.width);
  const Pixels pixels(r, channels_last);
  const auto axes = r.plan<T>();
  const BackwardPlan<T> plan{grad_output, grad_input, pixels.size, CpuAxis<A>(axes.rows),
                             CpuAxis<A>(axes.columns)};
  const int64_t read = std::max<int64_t>(1, r.out_height / r.height) * r.out_width;
  const int64_t rows = pixels.maps * r.height, row = std::max(r.width, read) * pixels.size;
  if (pixels.fill<A>(vector_bytes()))
    over_rows<BackwardWide, A>(rows, row, plan.wide_room(), &plan);
  else if (pixels.fill<A>(vector_bytes() / 2))
    over_rows<BackwardHalf, A>(rows, row, plan.wide_room(), &plan);
  else
    over_rows<BackwardNarrow, A>(rows, row, plan.narrow_room(vector_bytes()), &plan);
}

Tensor upsample_bilinear2d_cpu(const Tensor& input, std::vector<int64_t> output_size,
                               bool align_corners, std::optional<double> scale_h,
                               std::optional<double> scale_w) {
  const auto r = Resampling::forward(input, output_size, align_corners, scale_h, scale_w);
  const bool channels_last = is_channels_last(input);
  const Tensor output = empty4(input, r.output_size(), channels_last);
  if (output.numel() == 0) return output;
  prefer_huge_pages(output.mutable_data_ptr(), output.numel() * output.element_size());
  const Tensor source = dense4(input, channels_last);
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    forward(static_cast<const T*>(source.const_data_ptr()),
            static_cast<T*>(output.mutable_data_ptr()), r, channels_last);
  });
  return output;
}

Tensor upsample_bilinear2d_backward_cpu(const Tensor& grad_output, int64_t height, int64_t width,
                                        bool align_corners, std::optional<double> scale_h,
                                        std::optional<double> scale_w) {
  const auto r = Resampling::backward(grad_output, height, width, align_corners, scale_h, scale_w);
  const bool channels_last = is_channels_last(grad_output);
  const Tensor grad_input = empty4(grad_output, r.input_size(), channels_last);
  if (grad_input.numel() == 0) return grad_input;
  const Tensor source = dense4(grad_output, channels_last);
  dispatch_floating(grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    backward(static_cast<const T*>(source.const_data_ptr()),
             static_cast<T*>(grad_input.mutable_data_ptr()), r, channels_last);
  });
  return grad_input;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CPU, m) {
  m.impl("upsample_bilinear2d", ATROUSX_BOX(atrousx::upsample_bilinear2d_cpu));
  m.impl("_upsample_bilinear2d_backward", ATROUSX_BOX(atrousx::upsample_bilinear2d_backward_cpu));
}
