// CUDA launchers and registration of upsample_bilinear2d and its backward.
#include "../cuda_launch.h"
#include "arguments.h"
#include "upsample_bilinear2d_backward_kernels.cuh"

namespace atrousx {
namespace {

// What a map's rows are made of.
struct Layout {
  int64_t maps, pixel;

  Layout(const Resampling& r, bool channels_last)
      : maps(channels_last ? r.batch : r.batch * r.channels),
        pixel(channels_last ? r.channels : 1) {
    STD_TORCH_CHECK(std::max(r.width, r.out_width) * pixel < (int64_t{1} << 31),
                    "a row of a map must hold fewer than 2^31 numbers");
  }
};

// Whether everything that is moved starts at a multiple of 16 bytes.
bool moves_vectors(const void* memory, int64_t numbers, int vector) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0 && numbers % vector == 0;
}

template <typename T>
void forward(const T* input, T* output, const Resampling& r, const Layout& layout,
             cudaStream_t stream) {
  const int64_t row = r.out_width * layout.pixel;
  const bool vectors = moves_vectors(output, row, kFullVector<T>);
  const auto jobs = ForwardJobs::make(layout.maps, r.out_height, row, vectors ? kFullVector<T> : 1);
  const auto kernel = vectors ? upsample_bilinear2d_forward_kernel<T, kFullVector<T>>
                              : upsample_bilinear2d_forward_kernel<T, 1>;
  kernel<<<job_grid(jobs.count()), kForwardThreads, 0, stream>>>(input, output, jobs, layout.pixel,
                                                                 r.plan<T>());
}

template <typename T, bool kShort, int kVector>
bool gather(const T* grad_output, T* grad_input, const Resampling& r, const Layout& layout,
            cudaStream_t stream) {
  constexpr int kNumbers = kGatherNumbers<T, kShort, kVector>;
  const auto plan = r.plan<T>();
  const auto jobs = GatherJobs::make(layout.maps, layout.pixel, plan, kVector, kNumbers);
  // Pieces of pixels must be vectors, too.
  if (jobs.columns == 0 || (jobs.slices > 1 && layout.pixel % kVector != 0)) return false;
  upsample_bilinear2d_backward_kernel<T, kVector, kNumbers>
      <<<job_grid(jobs.count()), kGatherThreads, 0, stream>>>(grad_output, grad_input, jobs,
                                                              layout.pixel, plan);
  return true;
}

template <typename T, bool kShort>
bool gather(const T* grad_output, T* grad_input, const Resampling& r, const Layout& layout,
            cudaStream_t stream) {
  constexpr int kFull = kFullVector<T>;
  if (moves_vectors(grad_output, r.out_width * layout.pixel, kFull) &&
      gather<T, kShort, kFull>(grad_output, grad_input, r, layout, stream))
    return true;
  return gather<T, kShort, 1>(grad_output, grad_input, r, layout, stream);
}

template <typename T>
void backward(const T* grad_output, T* grad_input, const Resampling& r, const Layout& layout,
              cudaStream_t stream) {
  if (layout.pixel < kShortPixel ? gather<T, true>(grad_output, grad_input, r, layout, stream)
                                 : gather<T, false>(grad_output, grad_input, r, layout, stream))
    return;
  const int64_t count = layout.maps * r.height * r.width * layout.pixel;
  upsample_bilinear2d_backward_far_kernel<T><<<grid_for(count), kThreads, 0, stream>>>(
      grad_output, grad_input, layout.maps, layout.pixel, r.plan<T>());
}

Tensor upsample_bilinear2d_cuda(const Tensor& input, std::vector<int64_t> output_size,
                                bool align_corners, std::optional<double> scale_h,
                                std::optional<double> scale_w) {
  const auto r = Resampling::forward(input, output_size, align_corners, scale_h, scale_w);
  const bool channels_last = is_channels_last(input);
  const Tensor output = empty4(input, r.output_size(), channels_last);
  if (output.numel() == 0) return output;
  const LaunchContext context(input.get_device_index());
  const Tensor source = dense4(input, channels_last);
  dispatch_floating(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    forward(static_cast<const T*>(source.const_data_ptr()),
            static_cast<T*>(output.mutable_data_ptr()), r, Layout(r, channels_last),
            context.stream());
  });
  check_cuda(cudaGetLastError(), "upsample_bilinear2d");
  return output;
}

Tensor upsample_bilinear2d_backward_cuda(const Tensor& grad_output, int64_t height, int64_t width,
                                         bool align_corners, std::optional<double> scale_h,
                                         std::optional<double> scale_w) {
  const auto r = Resampling::backward(grad_output, height, width, align_corners, scale_h, scale_w);
  const bool channels_last = is_channels_last(grad_output);
  const Tensor grad_input = empty4(grad_output, r.input_size(), channels_last);
  if (grad_input.numel() == 0) return grad_input;
  const LaunchContext context(grad_output.get_device_index());
  const Tensor source = dense4(grad_output, channels_last);
  dispatch_floating(grad_output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    backward(static_cast<const T*>(source.const_data_ptr()),
             static_cast<T*>(grad_input.mutable_data_ptr()), r, Layout(r, channels_last),
             context.stream());
  });
  check_cuda(cudaGetLastError(), "_upsample_bilinear2d_backward");
  return grad_input;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("upsample_bilinear2d", ATROUSX_BOX(atrousx::upsample_bilinear2d_cuda));
  m.impl("_upsample_bilinear2d_backward", ATROUSX_BOX(atrousx::upsample_bilinear2d_backward_cuda));
}
