// CUDA launchers and registration of upsample_bilinear2d and its backward.
#include "cuda/launch.h"
#include "upsample_bilinear2d/arguments.h"
#include "upsample_bilinear2d/cuda/backward_kernels.cuh"

namespace atrousx {
namespace {

// How the rows of a map are made of numbers (forward_kernels.cuh).
struct Layout {
  int64_t maps, pixel;

  Layout(const Resampling& r, bool channels_last)
      : maps(channels_last ? r.batch : r.batch * r.channels),
        pixel(channels_last ? r.channels : 1) {
    STD_TORCH_CHECK(std::max(r.width, r.out_width) * pixel < (int64_t{1} << 31),
                    "a row of a map must hold fewer than 2^31 numbers");
  }
};

// Whether all addresses that a kernel moves are multiples of 16 bytes.
bool moves_vectors(const void* memory, int64_t numbers, int vector) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0 && numbers % vector == 0;
}

template <typename T>
void forward(const Held<const T*>& input, const Held<T*>& output, const Resampling& r,
             const Layout& layout, cudaStream_t stream) {
  const int64_t row = r.out_width * layout.pixel;
  const bool vectors = moves_vectors(output.value(), row, kFullVector<T>);
  const auto jobs = ForwardJobs::make(layout.maps, r.out_height, row, vectors ? kFullVector<T> : 1);
  const auto kernel = vectors ? upsample_bilinear2d_forward_kernel<T, kFullVector<T>>
                              : upsample_bilinear2d_forward_kernel<T, 1>;
  launch({"upsample_bilinear2d", job_grid(jobs.count()), kForwardThreads, stream}, kernel, input,
         output, jobs, layout.pixel, r.plan<T>());
}

template <typename T, bool kShort, int kVector>
bool gather(const Held<const T*>& grad_output, const Held<T*>& grad_input, const Resampling& r,
            const Layout& layout, cudaStream_t stream) {
  constexpr int kNumbers = kGatherNumbers<T, kShort, kVector>;
  const auto plan = r.plan<T>();
  const auto jobs = GatherJobs::make(layout.maps, layout.pixel, plan, kVector, kNumbers);
  // Pieces of pixels must be whole vectors, too.
  if (jobs.columns == 0 || (jobs.slices > 1 && layout.pixel % kVector != 0)) return false;
  launch({"_upsample_bilinear2d_backward", job_grid(jobs.count()), kGatherThreads, stream},
         upsample_bilinear2d_backward_kernel<T, kVector, kNumbers>, grad_output, grad_input, jobs,
         layout.pixel, plan);
  return true;
}

template <typename T, bool kShort>
bool gather(const Held<const T*>& grad_output, const Held<T*>& grad_input, const Resampling& r,
            const Layout& layout, cudaStream_t stream) {
  constexpr int kFull = kFullVector<T>;
  if (moves_vectors(grad_output.value(), r.out_width * layout.pixel, kFull) &&
      gather<T, kShort, kFull>(grad_output, grad_input, r, layout, stream))
    return true;
  return gather<T, kShort, 1>(grad_output, grad_input, r, layout, stream);
}

template <typename T>
void backward(const Held<const T*>& grad_output, const Held<T*>& grad_input, const Resampling& r,
              const Layout& layout, cudaStream_t stream) {
  if (layout.pixel < kShortPixel ? gather<T, true>(grad_output, grad_input, r, layout, stream)
                                 : gather<T, false>(grad_output, grad_input, r, layout, stream))
    return;
  const int64_t count = layout.maps * r.height * r.width * layout.pixel;
  launch({"_upsample_bilinear2d_backward, far", grid_for(count), kThreads, stream},
         upsample_bilinear2d_backward_far_kernel<T>, grad_output, grad_input, layout.maps,
         layout.pixel, r.plan<T>());
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
    forward(reads<T>(source), writes<T>(output), r, Layout(r, channels_last), context.stream());
  });
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
    backward(reads<T>(source), writes<T>(grad_input), r, Layout(r, channels_last),
             context.stream());
  });
  return grad_input;
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("upsample_bilinear2d", ATROUSX_BOX(atrousx::upsample_bilinear2d_cuda));
  m.impl("_upsample_bilinear2d_backward", ATROUSX_BOX(atrousx::upsample_bilinear2d_backward_cuda));
}
