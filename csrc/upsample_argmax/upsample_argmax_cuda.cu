// CUDA launcher and registration of upsample_argmax.
#include "../cuda_launch.h"
#include "label_maps.h"
#include "upsample_argmax_kernels.cuh"

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
  const auto launch = [&](auto zero, auto label) {
    using T = decltype(zero);
    using Label = decltype(label);
    using A = Accumulate<T>;
    upsample_argmax_kernel<T, Label><<<grid_for(labels.numel()), kThreads, 0, context.stream()>>>(
        static_cast<const T*>(logits.const_data_ptr()),
        static_cast<Label*>(labels.mutable_data_ptr()),
        with_probability ? static_cast<A*>(probability.mutable_data_ptr()) : nullptr, r.batch,
        r.channels, r.plan<T>(), strides4(logits));
  };
  dispatch_floating(logits.scalar_type(),
                    [&](auto zero) { narrow ? launch(zero, uint8_t{}) : launch(zero, int64_t{}); });
  check_cuda(cudaGetLastError(), "_upsample_argmax");
  return {labels, probability};
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, CUDA, m) {
  m.impl("_upsample_argmax", ATROUSX_BOX(atrousx::upsample_argmax_cuda));
}
