// CUDA launcher and registration of upsample_argmax.
#include "cuda/launch.h"
#include "upsample_argmax/cuda/upsample_argmax_kernels.cuh"
#include "upsample_argmax/label_maps.h"

namespace atrousx {
namespace {

std::tuple<Tensor, Tensor> upsample_argmax_cuda(const Tensor& logits,
                                                std::vector<int64_t> output_size,
                                                bool align_corners, bool with_probability,
                                                bool narrow) {
  const auto r = Resampling::forward(logits, output_size, align_corners, {}, {});
  const auto [labels, probability] = label_maps(logits, r, with_probability, narrow);
  if (labels.numel() == 0) return {labels, probability};
  const LaunchContext context(logits.get_device_index());
  const auto run = [&](auto zero, auto label) {
    using T = decltype(zero);
    using Label = decltype(label);
    launch({"_upsample_argmax", grid_for(labels.numel()), kThreads, context.stream()},
           upsample_argmax_kernel<T, Label>, reads<T>(logits), writes<Label>(labels),
           writes<Accumulate<T>>(with_probability ? std::optional(probability) : std::nullopt),
           r.batch, r.channels, r.plan<T>(), strides4(logits));
  };
  dispatch_floating(logits.scalar_type(),
                    [&](auto zero) { narrow ? run(zero, uint8_t{}) : run(zero, int64_t{}); });
  return {labels, probability};
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("_upsample_argmax", ATROUSX_BOX(atrousx::upsample_argmax_cuda));
}
