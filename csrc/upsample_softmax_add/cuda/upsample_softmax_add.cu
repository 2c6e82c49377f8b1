// CUDA launcher and registration of upsample_softmax_add.
#include "cuda/launch.h"
#include "upsample_softmax_add/arguments.h"
#include "upsample_softmax_add/cuda/upsample_softmax_add_kernels.cuh"

namespace atrousx {
namespace {

void upsample_softmax_add_cuda(Tensor sum, const Tensor& logits, double alpha, bool flip,
                               bool align_corners) {
  const auto r = softmax_add_arguments(sum, logits, align_corners);
  if (sum.numel() == 0) return;
  const LaunchContext context(logits.get_device_index());
  dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    launch({"_upsample_softmax_add_", grid_for(r.batch * r.out_height * r.out_width), kThreads,
            context.stream()},
           upsample_softmax_add_kernel<T>, reads<T>(logits), writes<A>(sum), r.batch, r.channels,
           r.plan<T>(), static_cast<A>(alpha), flip, strides4(logits), strides4(sum));
  });
}

}  // namespace
}  // namespace atrousx

STABLE_TORCH_LIBRARY_IMPL(atrousx, ATROUSX_CUDA_KEY, m) {
  m.impl("_upsample_softmax_add_", ATROUSX_BOX(atrousx::upsample_softmax_add_cuda));
}
